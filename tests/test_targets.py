"""Where a model is written to: what is there stays, whatever cannot be written or fails."""

import json
import os

import pytest
from malformed import NOT_EMPTY, WEIGHTS, cases, contents, full, load, refused, run_script, write

from minibert.atomic import PREFIX, atomic_folder
from minibert.errors import TargetError


@pytest.fixture(scope="module")
def model(pristine):
    return load(pristine.folder())


def below_a_file(path):
    path.parent.rmdir()
    path.parent.write_text("keep")


TARGETS = {
    "full": (full, {}, NOT_EMPTY),
    "file": (lambda path: path.write_text("keep"), {}, "exists and is not a folder"),
    "file-overwrite": (
        lambda path: path.write_text("keep"),
        {"overwrite": True},
        "exists and is not a folder",
    ),
    "fifo": (os.mkfifo, {"overwrite": True}, "exists and is not a folder"),
    "below-a-file": (below_a_file, {}, "cannot be written"),
    "link-to-itself": (lambda path: path.symlink_to(path.name), {}, "exists and is not a folder"),
}


@pytest.mark.parametrize(("make", "options", "said"), cases(TARGETS))
def test_target_that_is_taken(make, options, said, model, tmp_path):
    target = tmp_path / "home" / "model"
    target.parent.mkdir()
    make(target)
    before = contents(tmp_path)
    said = ("home/model" if said == NOT_EMPTY else "home", said)
    refused(TargetError, said, lambda: model.save_pretrained(target, **options))
    assert contents(tmp_path) == before


NAMES = {
    "empty": ("", "''"),
    "nul": ("a\0b", "'a\\x00b'"),
    "too-long": ("/tmp/" + "x" * 300, "File name too long"),
    "device": ("/dev/null", "exists and is not a folder"),
    "in-proc": ("/proc/minibert", "cannot be written"),
}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(("target", "said"), cases(NAMES))
def test_target_that_cannot_be(target, said, overwrite, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # which "" would name
    refused(TargetError, (said,), lambda: model.save_pretrained(target, overwrite=overwrite))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder(model, tmp_path):
    tmp_path.chmod(0o500)
    refused(TargetError, ("cannot be written",), lambda: model.save_pretrained(tmp_path / "model"))


def test_missing_parents_are_made(model, tmp_path):
    model.save_pretrained(tmp_path / "a" / "b")
    assert load(tmp_path / "a" / "b").pooler is not None


def test_empty_folder_is_filled(model, tmp_path):
    (tmp_path / "model").mkdir()
    model.save_pretrained(tmp_path / "model")
    assert os.listdir(tmp_path) == ["model"]


def test_overwrite_replaces_the_whole_folder(model, folder):
    (folder / "mine").write_text("old")
    (folder / WEIGHTS).write_text("damaged")
    model.save_pretrained(folder, overwrite=True)
    assert sorted(os.listdir(folder)) == ["config.json", WEIGHTS]
    assert os.listdir(folder.parent) == ["model"]


def test_a_model_may_be_written_over_its_source(folder):
    loaded = load(folder)
    before = contents(folder)
    loaded.save_pretrained(folder, overwrite=True)
    assert contents(folder) == before


def test_a_link_to_a_folder_stays_a_link(model, folder):
    link = folder.parent / "link"
    link.symlink_to("model")
    model.save_pretrained(link, overwrite=True)
    assert link.is_symlink()
    assert sorted(os.listdir(folder.parent)) == ["link", "model"]


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize("error", [Interrupted, KeyboardInterrupt, ValueError, OSError])
@pytest.mark.parametrize("stage", ["block", "check"])
def test_failure_leaves_everything_as_it_was(stage, error, tmp_path):
    full(tmp_path / "model")
    before = contents(tmp_path)

    def fail(_):
        raise error

    def run():
        with atomic_folder(str(tmp_path / "model"), overwrite=True, check=fail):
            if stage == "block":
                raise error

    with pytest.raises(TargetError if error is OSError else error):
        run()
    assert contents(tmp_path) == before


def test_a_damaged_copy_is_not_moved_in(tmp_path):
    """What is read back is compared before the folder takes its place."""

    def check(folder):
        assert os.path.dirname(folder) == str(tmp_path)
        assert os.path.basename(folder).startswith(f"{PREFIX}new-model-")
        raise TargetError("differs")

    with pytest.raises(TargetError, match="differs"):
        write(tmp_path / "model", "x", check=check)
    assert os.listdir(tmp_path) == []


FULL_DISK = """
    import json, os, resource, sys
    import minibert
    from minibert.errors import TargetError
    target, sizes, options = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
    model = minibert.BertModel.from_pretrained(target)
    said = []
    for size in sizes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        try:
            model.save_pretrained(target, overwrite=True, **options)
        except Exception as error:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            said.append([type(error).__name__, str(error), os.listdir(os.path.dirname(target))])
    print(json.dumps(said))
"""


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "20KB"}])
def test_file_that_cannot_grow(options, folder):
    """A limit on the size of a file: what a full disk does to a write."""
    before = contents(folder)
    sizes = [0, 1, 100, 600, 3000, 15_000] + [70_000] * (not options)
    found = run_script(FULL_DISK, folder, json.dumps(sizes), json.dumps(options))
    assert len(found) == len(sizes)
    for error, message, left in found:
        assert error == "TargetError", message
        assert "cannot be written" in message
        assert len(message) < 600
        assert left == ["model"]
    assert contents(folder) == before
