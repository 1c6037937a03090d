"""The ledger's comparisons of signatures, help texts and old files find every difference."""

import pytest

from ledger import environment, part_artefacts, part_commands, part_signatures, part_tests, records


def differences(part, name):
    return part.compare(records.read(name), part.found()).differences


@pytest.fixture
def same_versions():
    """Skips where annotations and help texts may be another version's."""
    before, now = records.read("environment"), environment.versions()
    other = sorted(n for n in now if n != "processor" and before[n] != now[n])
    if other:
        pytest.skip(f"recorded with other versions of {', '.join(other)}")


@pytest.mark.usefixtures("same_versions")
def test_signatures():
    assert differences(part_signatures, "signatures") == []


@pytest.mark.usefixtures("same_versions")
def test_commands():
    assert differences(part_commands, "commands") == []


@pytest.mark.slow
def test_artefacts():
    pytest.importorskip("grain", reason="the data are Grain's")
    pytest.importorskip("orbax.checkpoint", reason="the checkpoints are Orbax's")
    assert differences(part_artefacts, "artefacts") == []


def test_what_parameters_may_become():
    before = ["self", "x: Any", "y: int = 1", "*, key: Any = None", "**options: Any"]

    def compared(*after):
        return part_signatures.different_parameters(before, list(after))

    assert compared(*before) == ([], [])
    harmless = [*before[:3], "z: int = 2", *before[3:4], "*, more: str = 'a'", before[4]]
    assert compared(*harmless) == ([], ["z: int = 2", "*, more: str = 'a'"])
    for worse in (
        before[:3] + before[4:],  # lost
        [*before[:2], "y: int = 2", *before[3:]],  # another default
        [*before[:2], "*, y: int = 1", *before[3:]],  # by name alone
        [before[0], before[2], before[1], *before[3:]],  # another order
        [*before[:2], "z: int = 2", *before[2:]],  # in the middle
        [*before[:3], "z: int", *before[3:]],  # needed
        [*before[:4], "*, z: int", before[4]],  # needed
    ):
        assert compared(*worse)[0], worse


def test_a_list_may_grow():
    def compared(after):
        return part_signatures.compare({"a": {"value": [1, 2]}}, {"a": {"value": after}})

    assert compared([1, 2]).differences == compared([1, 2]).added == []
    assert (compared([1, 2, 3]).differences, compared([1, 2, 3]).added) == ([], ["a: value: 3"])
    for worse in ([1], [2, 1], [3, 1, 2], None):
        assert compared(worse).differences, worse


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        ({}, False),
        ({"projections": [1 + 1e-12, 2.0, 1e-13], "sha256": "b"}, False),
        ({"projections": [1 + 1e-9, 2.0, 0.0], "sha256": "b"}, True),
        ({"shape": [3, 2]}, True),
        ({"dtype": "float32"}, True),
        ({"not_finite": 1}, True),
    ],
)
def test_numbers(change, seen):
    array = {"shape": [2, 3], "dtype": "float64", "projections": [1.0, 2.0, 0.0], "sha256": "a"}
    assert bool(records.different(array, array | change)) == seen


def test_an_error_is_one_difference():
    before, raised = {"a/x": 1, "a/y": 2, "ab/x": 3}, "ValueError: no"
    assert records.compare(before, before).differences == []
    found = records.compare(before, {"a/raised": raised, "ab/x": 4, "ac/x": 5})
    assert found.differences == ["a/: ValueError: no", "ab/x: was 3, is 4"]
    assert found.added == ["ac/x"]


def test_lost_tests_are_seen():
    ids = ["tests/test_a.py::test_b[c]", "tests/test_planted_a.py::test_seen[zero]"]
    before = part_tests.counted([*ids, "tests/test_planted_a.py::test_seen[swap]"])
    assert part_tests.compare(before, before).differences == []
    moved = [one.replace("tests/test_", "tests/bert/test_") for one in ids]
    assert part_tests.compare(before, part_tests.counted(moved)).differences == [
        "cases of test_seen: were 2, are 1",
        "kind planted: were 2, are 1",
        "mistakes of test_seen: lost swap",
    ]
