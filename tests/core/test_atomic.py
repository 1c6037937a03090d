"""Writers that are killed, that run concurrently, and that find another one's leftovers."""

import contextlib
import errno
import fcntl
import os

import pytest

from malformed import HOLDS, OWNED, contents, full, load, refused, run_script, write
from minibert.core.atomic import PREFIX, atomic_folder
from minibert.errors import SourceError, TargetError

# The package's own __init__ is passed over: it imports JAX, which must not be forked.
WRITER = """
    import json, os, pathlib, shutil, signal, sys, types
    package = types.ModuleType("minibert")
    package.__path__ = ["minibert"]
    sys.modules["minibert"] = package
    from minibert.core.atomic import atomic_folder
    from minibert.errors import TargetError
    from minibert.checkpoint.files import encoder_paths

    home, start = pathlib.Path(sys.argv[1]), sys.argv[2]
    target = home / "model"
    OWN = ["1_Pooling/config.json", "config.json", "model.safetensors", "modules.json"]
    STALE = ["2_Dense/model.safetensors", "orbax/_METADATA", "orbax/a/b", "pytorch_model.bin"]
    FOREIGN = [".git/HEAD", "1_Pooling/notes", "thesis.tex"]

    def put(folder, names, text):
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)

    def write(text, overwrite):
        with atomic_folder(str(target), owned=encoder_paths, overwrite=overwrite) as new:
            put(pathlib.Path(new), OWN + STALE if text == "old" else OWN, text)

    def prepare():
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()
        if start != "absent":
            put(target, FOREIGN, "mine")
        if start == "old":
            write("old", overwrite=False)
        return inodes()

    def inodes():
        paths = [target, *(target / name for name in FOREIGN)]
        return [path.stat().st_ino for path in paths] if start != "absent" else []

    def files():
        found = {str(p.relative_to(target)): p for p in target.rglob("*") if p.is_file()}
        return {name: p.read_text() for name, p in found.items() if name not in FOREIGN}

    def state():
        # What a reader finds, who looks for config.json first.
        if not (target / "config.json").exists():
            return "absent"
        found = {name: text for name, text in files().items() if name[:10] != ".minibert-"}
        for text in ("old", "new", "next"):
            if found == dict.fromkeys(OWN + STALE if text == "old" else OWN, text):
                return text
        return repr(found)

    def left():
        inside = [name for name in files() if name not in OWN + STALE]
        return sorted(os.listdir(home)) + inside
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
    killed = True
    while killed:
        before = prepare()
        killed = killed_at(len(found))
        found.append([state(), again() if killed else "", state(), left(), inodes() == before])
    print(json.dumps(found))
"""
)


STARTS = {
    "absent": ({"absent", "new"}, {"new", "next"}),
    "foreign": ({"absent", "new"}, {"new", "next"}),
    "old": ({"old", "absent", "new"}, {"old", "new"}),
}


@pytest.mark.parametrize(("start", "between", "after"), [(k, *v) for k, v in STARTS.items()])
def test_killed_at_every_step(start, between, after, tmp_path):
    """One save, or no config.json; after the next run one save, and nothing else is there.

    Files that are not a model's, and the folder itself, are the same all the time.
    """
    found = run_script(KILLED, tmp_path / "home", start)
    assert len(found) > 15
    assert {first for first, *_ in found} == between
    assert {then for _, _, then, *_ in found} == after
    for first, said, then, left, same in found:
        assert left == ["model"]
        assert same
        assert not said or HOLDS in said
        assert then != "next" or not said
        assert then == first or first == "absent"
    assert found[-1] == ["new", "", "new", ["model"], True]


# Lets a writer's first, second, … rename fail, or be interrupted.
FAILED = (
    WRITER
    + """
    left = 0
    error = OSError(5, "broken") if sys.argv[3] == "OSError" else KeyboardInterrupt()

    def fail(event, args):
        global left
        if event == "os.rename":
            left -= 1
            if left == 0:
                raise error

    sys.addaudithook(fail)
    found = []
    reached = 0
    while reached <= 0:
        before = prepare()
        left, said = len(found) + 1, ""
        try:
            write("new", overwrite=True)
        except BaseException as reason:
            said = type(reason).__name__
        reached = left
        left = 0
        inside = [name for name in os.listdir(target) if name.startswith(".minibert-")]
        found.append([said, state(), os.listdir(home), inside, inodes() == before])
    print(json.dumps(found))
"""
)


@pytest.mark.parametrize("error", ["OSError", "KeyboardInterrupt"])
def test_rename_that_fails(error, tmp_path):
    """Undone before all old files are out of the way; completed afterwards."""
    found = run_script(FAILED, tmp_path / "home", "old", error)
    said = "TargetError" if error == "OSError" else error
    assert all(rest == [["model"], [], True] for _, _, *rest in found)
    outcomes = [(name, state) for name, state, *_ in found]
    assert found[-1][:2] == ["", "new"]
    undone = outcomes.count((said, "old"))
    completed = outcomes[undone:-1]
    assert outcomes[:undone] == [(said, "old")] * undone
    assert set(completed) == {("" if error == "OSError" else said, "new")}
    assert min(undone, len(completed)) > 3


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


@pytest.mark.parametrize("where", ["beside", "inside"])
def test_sweep_spares_the_living(where, tmp_path):
    if where == "beside":
        path = orphan(tmp_path, f"{PREFIX}new-model-00000000")
    else:
        path = orphan(tmp_path / "model", f"{PREFIX}new-00000000")
    owner = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(owner, fcntl.LOCK_EX)
        write(tmp_path / "model", "x")
        assert contents(path) == {"mine": b"keep"}
    finally:
        os.close(owner)
    write(tmp_path / "model", "y", overwrite=True)
    assert os.listdir(tmp_path) == ["model"]
    assert os.listdir(tmp_path / "model") == ["a"]


OBSTACLES = {
    "file": lambda path: path.write_text("keep"),
    "fifo": os.mkfifo,
    "link-to-folder": lambda path: path.symlink_to("elsewhere"),
    "link-to-nothing": lambda path: path.symlink_to("nowhere"),
}


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_sweep_passes_over_what_is_no_folder(obstacle, tmp_path):
    full(tmp_path / "elsewhere")
    path = tmp_path / f"{PREFIX}new-model-00000000"
    OBSTACLES[obstacle](path)
    write(tmp_path / "model", "x")
    assert sorted(os.listdir(tmp_path)) == sorted([path.name, "elsewhere", "model"])
    assert contents(tmp_path / "elsewhere") == {"mine": b"keep"}
    assert not (tmp_path / "model").is_symlink()


@pytest.mark.parametrize("stage", ["old", "put"])
def test_an_interrupted_exchange_is_named_and_settled(stage, folder):
    """No load reads such a folder; the next save undoes or completes the exchange first."""
    before = contents(folder)
    model = load(folder)
    (folder / f"{PREFIX}{stage}-00000000").mkdir()
    (folder / "config.json").rename(folder / f"{PREFIX}{stage}-00000000" / "config.json")
    refused(SourceError, ("whose last save was interrupted",), lambda: load(folder))
    refused(TargetError, (HOLDS, "overwrite=True"), lambda: model.save_pretrained(folder))
    assert contents(folder) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_two_writers_of_one_folder(overwrite, tmp_path):
    target = tmp_path / "model"
    options = {"owned": OWNED, "overwrite": overwrite}
    one, other = atomic_folder(str(target), **options), atomic_folder(str(target), **options)
    first, second = one.__enter__(), other.__enter__()
    for folder in (first, second):
        with open(os.path.join(folder, "a"), "w") as file:
            file.write(folder)
    other.__exit__(None, None, None)
    with contextlib.nullcontext() if overwrite else pytest.raises(TargetError, match=HOLDS):
        one.__exit__(None, None, None)
    assert (target / "a").read_text() == (first if overwrite else second)
    assert os.listdir(tmp_path) == ["model"]
    assert os.listdir(target) == ["a"]


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    """Nothing is swept there, as nobody can know whose it is; all else is as elsewhere."""

    def unsupported(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    path = orphan(tmp_path, f"{PREFIX}new-model-00000000")
    write(tmp_path / "model", "x")
    write(tmp_path / "model", "y", overwrite=True)
    assert contents(tmp_path / "model") == {"a": b"y"}
    assert path.exists()
