"""Writers that are killed, that run side by side, and that find what another left behind."""

import fcntl
import os

import numpy as np
import pytest
from malformed import NOT_EMPTY, contents, full, load, refused, run_script, write

from minibert.atomic import PREFIX, atomic_folder
from minibert.errors import TargetError


@pytest.fixture(scope="module")
def model(pristine):
    return load(pristine.folder())


# The package's own __init__ is passed over: it imports JAX, which must not be forked.
WRITER = """
    import json, os, pathlib, shutil, signal, sys, types
    package = types.ModuleType("minibert")
    package.__path__ = ["minibert"]
    sys.modules["minibert"] = package
    from minibert.atomic import atomic_folder
    from minibert.errors import TargetError

    home, start = pathlib.Path(sys.argv[1]), sys.argv[2]
    target = home / "model"

    def write(text, overwrite):
        with atomic_folder(str(target), overwrite=overwrite) as new:
            for name in "abc":
                pathlib.Path(new, name).write_text(text)

    def state():
        if not target.exists():
            return "absent"
        texts = [path.read_text() for path in sorted(target.iterdir())]
        return texts[0] if len(texts) == 3 and len(set(texts)) == 1 else repr(texts)
"""

# Kills a writer at its first, second, … call of the operating system, and then writes again.
KILLED = (
    WRITER
    + """
    def killed_at(step):
        left = step

        def count(event, args):
            nonlocal left
            if event.startswith(("os.", "open", "shutil.", "fcntl.")):
                left -= 1
                if left == -1:
                    os.kill(os.getpid(), signal.SIGKILL)

        child = os.fork()
        if child == 0:
            try:
                sys.addaudithook(count)
                write("new", overwrite=True)
            finally:
                os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL

    def again():
        try:
            write("next", overwrite=False)
        except TargetError as error:
            return str(error)
        return ""

    found = []
    for step in range(1000):
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()
        if start != "absent":
            write("old", overwrite=False)
        if start == "aside":
            target.rename(home / ".minibert-old-model-00000000")
        if not killed_at(step):
            break
        found.append([state(), again(), state(), sorted(os.listdir(home))])
    found.append([state(), "", state(), sorted(os.listdir(home))])
    print(json.dumps(found))
"""
)


STARTS = {
    "absent": ({"absent", "new"}, {"new", "next"}),
    "old": ({"old", "absent", "new"}, {"old", "new"}),
    "aside": ({"absent", "old", "new"}, {"old", "new"}),
}


@pytest.mark.parametrize(("start", "between", "after"), [(k, *v) for k, v in STARTS.items()])
def test_killed_at_every_step(start, between, after, tmp_path):
    """The target is whole or absent; after the next run it is whole, and nothing is beside it."""
    found = run_script(KILLED, tmp_path / "home", start)
    assert len(found) > 15
    assert {first for first, *_ in found} == between
    assert {then for _, _, then, _ in found} == after
    for first, said, then, left in found[:-1]:
        assert left == ["model"]
        assert said == "" if then == "next" else NOT_EMPTY in said
        assert then == first or first == "absent"
    assert found[-1] == ["new", "", "new", ["model"]]


# Lets a writer's first or second rename fail, or be interrupted.
FAILED = (
    WRITER
    + """
    left = 0
    error = OSError(5, "broken") if start == "OSError" else KeyboardInterrupt()

    def fail(event, args):
        global left
        if event == "os.rename":
            left -= 1
            if left == 0:
                raise error

    home.mkdir()
    write("old", overwrite=False)
    sys.addaudithook(fail)
    found = []
    for left in (1, 2):
        try:
            write("new", overwrite=True)
        except BaseException as reason:
            found.append([type(reason).__name__, state(), os.listdir(home)])
    print(json.dumps(found))
"""
)


@pytest.mark.parametrize("error", ["OSError", "KeyboardInterrupt"])
def test_rename_that_fails(error, tmp_path):
    expected = "TargetError" if error == "OSError" else error
    found = run_script(FAILED, tmp_path / "home", error)
    assert found == [[expected, "old", ["model"]]] * 2


def orphan(home, name):
    full(home / name)
    return home / name


STRANGERS = [
    ".minibert-new-model2-00000000",
    ".minibert-new-model-2-00000000",
    ".minibert-new-mode-00000000",
    ".minibert-old-other-00000000",
    ".minibert-tmp-model-00000000",
    ".minibert-new-model",
    ".other-new-model-00000000",
    "minibert-new-model-00000000",
    "tmp-model",
]


def test_sweep_takes_only_what_is_its_own(tmp_path):
    for name in STRANGERS:
        orphan(tmp_path, name)
    dead = [orphan(tmp_path, f"{PREFIX}new-model-0000000{i}") for i in range(3)]
    write(tmp_path / "model", "x")
    assert sorted(os.listdir(tmp_path)) == sorted([*STRANGERS, "model"])
    assert all(contents(tmp_path / name) == {"mine": b"keep"} for name in STRANGERS)
    assert not any(path.exists() for path in dead)


@pytest.mark.parametrize("kind", ["new", "old"])
def test_sweep_spares_the_living(kind, tmp_path):
    path = orphan(tmp_path, f"{PREFIX}{kind}-model-00000000")
    owner = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(owner, fcntl.LOCK_EX)
        write(tmp_path / "model", "x")
        assert contents(path) == {"mine": b"keep"}
    finally:
        os.close(owner)
    write(tmp_path / "model", "y", overwrite=True)
    assert os.listdir(tmp_path) == ["model"]


OBSTACLES = {
    "file": lambda path: path.write_text("keep"),
    "fifo": os.mkfifo,
    "link-to-folder": lambda path: path.symlink_to("elsewhere"),
    "link-to-nothing": lambda path: path.symlink_to("nowhere"),
}


@pytest.mark.parametrize("kind", ["new", "old"])
@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_sweep_passes_over_what_is_no_folder(obstacle, kind, tmp_path):
    full(tmp_path / "elsewhere")
    path = tmp_path / f"{PREFIX}{kind}-model-00000000"
    OBSTACLES[obstacle](path)
    write(tmp_path / "model", "x")
    assert sorted(os.listdir(tmp_path)) == sorted([path.name, "elsewhere", "model"])
    assert contents(tmp_path / "elsewhere") == {"mine": b"keep"}
    assert not (tmp_path / "model").is_symlink()


@pytest.mark.parametrize("there", ["absent", "empty"])
def test_the_old_folder_is_put_back(there, model, tmp_path):
    """As a run leaves it that was killed between its two renames."""
    model.save_pretrained(tmp_path / f"{PREFIX}old-model-00000000")
    orphan(tmp_path, f"{PREFIX}new-model-00000000")
    if there == "empty":
        (tmp_path / "model").mkdir()
    said = (NOT_EMPTY, "overwrite=True")
    refused(TargetError, said, lambda: model.save_pretrained(tmp_path / "model"))
    assert os.listdir(tmp_path) == ["model"]
    one, other = load(tmp_path / "model").pooler.dense.kernel[...], model.pooler.dense.kernel[...]
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("there", ["folder", "file"])
def test_the_old_folder_is_not_put_over_another(there, tmp_path):
    path = orphan(tmp_path, f"{PREFIX}old-model-00000000")
    if there == "folder":
        write(tmp_path / "other", "x")
        (tmp_path / "other").rename(tmp_path / "model")
    else:
        (tmp_path / "model").write_text("x")
    with pytest.raises(TargetError):
        write(tmp_path / "model", "y")
    assert path.exists() == (there == "file")
    assert "y" not in str(contents(tmp_path))


def test_two_writers_of_one_folder(tmp_path):
    target = tmp_path / "model"
    one, other = atomic_folder(str(target)), atomic_folder(str(target))
    first, second = one.__enter__(), other.__enter__()
    for folder in (first, second):
        with open(os.path.join(folder, "a"), "w") as file:
            file.write(folder)
    other.__exit__(None, None, None)
    with pytest.raises(TargetError, match=NOT_EMPTY):
        one.__exit__(None, None, None)
    assert (target / "a").read_text() == second
    assert os.listdir(tmp_path) == ["model"]
