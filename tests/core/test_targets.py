"""Targets of saving: existing files are kept if writing fails."""

import json
import os

import numpy as np
import pytest

import sentences
from malformed import (
    HOLDS,
    MOUNTED,
    OWNED,
    UNPRIVILEGED,
    WEIGHTS,
    cases,
    contents,
    full,
    load,
    refused,
    run_script,
    runs,
    write,
)
from minibert.core.atomic import PREFIX, atomic_folder
from minibert.core.atomic_file import new_file
from minibert.embedding.encoder import SentenceEncoder
from minibert.errors import TargetError
from minibert.train.checkpoints import RUN_LOCK, one_run
from minibert.train.job.run import check_output, clear

pytestmark = pytest.mark.unoptimised


@pytest.fixture(scope="module")
def model(pristine):
    return load(pristine.folder())


def below_a_file(path):
    path.parent.rmdir()
    path.parent.write_text("keep")


def taken(path):
    path.mkdir()
    (path / "config.json").write_text("keep")


def with_a_folder_for_a_file(path):
    full(path / "config.json")


TARGETS = {
    "taken": (taken, {}, f"{HOLDS} config.json"),
    "folder-for-a-file": (with_a_folder_for_a_file, {"overwrite": True}, "expected a file"),
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
    refused(TargetError, ("home", said), lambda: model.save_pretrained(target, **options))
    assert contents(tmp_path) == before


NAMES = {
    "empty": ("", "''"),
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


STALE = [
    "model-00001-of-00002.safetensors",
    "model.safetensors.index.json",
    "model.fp16.safetensors",
    "pytorch_model.bin",
    "pytorch_model-00002-of-00003.bin",
    "tf_model.h5",
    "flax_model.msgpack",
    "adapter_config.json",
    "adapter_model.safetensors",
    "generation_config.json",
    "parity.json",
    "orbax/_METADATA",
]
FOREIGN = [
    ".git/HEAD",
    ".gitattributes",
    "README.md",
    "thesis.tex",
    "tokenizer.json",
    "vocab.txt",
    "modules.json",
    "1_Pooling/config.json",
    "my_model.safetensors",
    "checkpoints/3/model.safetensors",
    "loss.png",
]


def fill(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("old")


def inodes(folder):
    return {str(p.relative_to(folder)): p.stat().st_ino for p in [folder, *folder.rglob("*")]}


@pytest.mark.parametrize("where", ["path", "."])
def test_overwrite_replaces_what_is_a_models(where, model, folder, monkeypatch):
    """Everything else stays, the folder itself too: processes may be working in it."""
    fill(folder, FOREIGN)
    before = inodes(folder)
    fill(folder, STALE)
    (folder / WEIGHTS).write_text("damaged")
    monkeypatch.chdir(folder)
    model.save_pretrained(folder if where == "path" else ".", overwrite=True)
    after = inodes(folder)
    assert after.keys() == before.keys()
    assert {n for n in before if after[n] != before[n]} == {"config.json", WEIGHTS}
    assert os.listdir(folder.parent) == ["model"]
    assert os.path.samefile(".", folder)


@pytest.mark.parametrize("name", STALE)
def test_files_that_would_contradict_are_named(name, model, tmp_path):
    fill(tmp_path / "model", [name, "thesis.tex"])
    before = contents(tmp_path)
    held = name.partition("/")[0]
    said = (f"{HOLDS} {held};", "overwrite=True")
    refused(TargetError, said, lambda: model.save_pretrained(tmp_path / "model"))
    assert contents(tmp_path) == before


def test_beside_other_files_no_overwrite_is_needed(model, tmp_path):
    fill(tmp_path, FOREIGN)
    before = inodes(tmp_path)
    model.save_pretrained(tmp_path)
    after = inodes(tmp_path)
    assert after.keys() - before.keys() == {"config.json", WEIGHTS}
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("first", ["model", "tokenizer"])
def test_beside_a_tokenizer(first, tmp_path):
    encoder = sentences.encoder()
    parts = [encoder.model.transformer, encoder.tokenizer]
    for part in parts if first == "model" else reversed(parts):
        part.save_pretrained(tmp_path)
    again = SentenceEncoder.from_pretrained(tmp_path, pooling="mean")
    np.testing.assert_array_equal(again.encode(["the"]), encoder.encode(["the"]))


def test_an_encoder_over_another(tmp_path):
    """Its own modules and tokenizer are replaced, foreign files in the modules' folders stay."""
    sentences.encoder(dense=sentences.dense(24, 7)).save_pretrained(tmp_path)
    fill(tmp_path, [".git/HEAD", "thesis.tex", "1_Pooling/notes", "2_Dense/pytorch_model.bin"])
    before = inodes(tmp_path)
    encoder = sentences.encoder(normalize=True)
    with pytest.raises(TargetError, match=f"{HOLDS} 1_Pooling/config.json, 2_Dense/config.json"):
        encoder.save_pretrained(tmp_path)
    encoder.save_pretrained(tmp_path, overwrite=True)
    assert not (tmp_path / "2_Dense").exists()
    after = inodes(tmp_path)
    assert (tmp_path / "2_Normalize" / "config.json").exists()
    kept = [".", ".git/HEAD", "thesis.tex", "1_Pooling", "1_Pooling/notes"]
    assert [after[name] for name in kept] == [before[name] for name in kept]
    again = SentenceEncoder.from_pretrained(tmp_path)
    np.testing.assert_array_equal(again.encode(["the"]), encoder.encode(["the"]))


def test_what_was_private_stays_private(model, folder):
    (folder / WEIGHTS).chmod(0o600)
    model.save_pretrained(folder, overwrite=True)
    assert (folder / WEIGHTS).stat().st_mode & 0o777 == 0o600


def test_nothing_is_written_beside_a_folder_that_exists(model, tmp_path):
    target = tmp_path / "home" / "model"
    target.mkdir(parents=True)
    beside = os.stat(target.parent).st_mtime_ns
    model.save_pretrained(target)
    assert os.stat(target.parent).st_mtime_ns == beside


# Writes twice into a folder, whose parent has these permissions, and into one that is missing.
PARENT = """
    import json, os, pathlib, sys, types
    package = types.ModuleType("minibert")  # its own __init__ imports JAX, which takes a while
    package.__path__ = ["minibert"]
    sys.modules["minibert"] = package
    from minibert.core.atomic import atomic_folder
    from minibert.errors import TargetError

    def owned(folder):
        return [name for name in os.listdir(folder) if name == "config.json"]

    home, mode = pathlib.Path(sys.argv[1]), int(sys.argv[2], 8)
    home.chmod(mode)
    said = []
    for name, text in (("model", "old"), ("model", "new"), ("missing", "new")):
        try:
            with atomic_folder(home / name, owned=owned, overwrite=True) as new:
                pathlib.Path(new, "config.json").write_text(text)
        except TargetError as reason:
            said.append(str(reason))
    home.chmod(0o700)
    found = {str(path.relative_to(home)): path.read_text() for path in home.rglob("*.json")}
    print(json.dumps([found, said]))
"""


@pytest.mark.parametrize("mode", ["500", "300", "100"])
def test_a_parent_that_cannot_be_written_or_read(mode, tmp_path):
    """A folder that exists is written inside; the message about another one names its parent."""
    (tmp_path / "model").mkdir()
    before = runs(UNPRIVILEGED) if os.geteuid() == 0 else []
    found, said = run_script(PARENT, tmp_path, mode, before=before)
    assert found.pop("model/config.json") == "new"
    if mode == "300":
        assert (found, said) == ({"missing/config.json": "new"}, [])
    else:
        why = f"no folder can be created in {tmp_path} (Permission denied)"
        assert (found, said) == ({}, [f"{tmp_path}/missing: cannot be written: {why}"])


def test_a_mount_point(tmp_path):
    """Nothing can be renamed over it."""
    (tmp_path / "model").mkdir()
    mounted = runs([*MOUNTED, str(tmp_path / "model")])
    found, said = run_script(PARENT, tmp_path, "700", before=mounted)
    assert found == {"model/config.json": "new", "missing/config.json": "new"}
    assert said == []
    assert os.listdir(tmp_path / "model") == []  # all was written into the mounted file system


@pytest.mark.parametrize("mode", [0o600, 0o664, 0o444])
def test_a_file_that_is_replaced_keeps_its_permissions(mode, tmp_path):
    path = tmp_path / "log.jsonl"
    with new_file(path) as file:
        file.write(b"old")
    usual = path.stat().st_mode
    path.chmod(mode)
    with new_file(path) as file:
        assert os.fstat(file.fileno()).st_mode & 0o777 == mode  # before anything is written
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == mode
    path.unlink()
    path.symlink_to("nowhere")
    with new_file(path):
        pass
    assert path.stat().st_mode == usual


def test_messages_name_the_target_as_it_was_passed(model, tmp_path, monkeypatch):
    """Not its absolute path, nor that of a temporary folder."""
    monkeypatch.chdir(tmp_path)
    model.save_pretrained("model")
    refused(TargetError, (), lambda: model.save_pretrained("model"))
    with pytest.raises(TargetError, match=f"^model: {HOLDS} config.json"):
        model.save_pretrained("model")
    (tmp_path / "link").symlink_to("model")
    with pytest.raises(TargetError, match=f"^./link: {HOLDS} config.json"):
        model.save_pretrained("./link")
    with (
        pytest.raises(TargetError, match=r"^new/a: differs; new$"),
        atomic_folder("new", owned=OWNED) as folder,
    ):
        raise TargetError(f"{folder}/a: differs; {tmp_path}/new")
    assert sorted(os.listdir()) == ["link", "model"]


USERS = ["1_Results/config.json", "1_Results/vocab.txt", "2_Dense/config.json"]


def test_folders_that_are_no_modules_stay(tmp_path):
    """Those whose names end as no module's; and, beside a modules.json, those not named in it."""
    fill(tmp_path, USERS[:2])
    before = contents(tmp_path)
    encoder = sentences.encoder()
    encoder.save_pretrained(tmp_path)
    fill(tmp_path, USERS[2:])
    encoder.save_pretrained(tmp_path, overwrite=True)
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before
    assert after["2_Dense/config.json"] == b"old"
    (tmp_path / "modules.json").unlink()
    encoder.save_pretrained(tmp_path, overwrite=True)
    assert not (tmp_path / "2_Dense").exists()
    assert {name: (tmp_path / name).read_bytes() for name in USERS[:2]} == dict.fromkeys(
        USERS[:2], b"old"
    )


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_only_has_orbaxs_name_is_refused(overwrite, model, tmp_path):
    fill(tmp_path, ["config.json", "orbax/notes.txt"])
    before = inodes(tmp_path)
    said = (f"{tmp_path}/orbax: expected an Orbax checkpoint", "_METADATA")
    refused(TargetError, said, lambda: model.save_pretrained(tmp_path, overwrite=overwrite))
    encoder = sentences.encoder()
    refused(TargetError, said, lambda: encoder.save_pretrained(tmp_path, overwrite=overwrite))
    assert inodes(tmp_path) == before


def test_a_new_run_keeps_foreign_files(tmp_path):
    """`minibert train --overwrite` beside a repository in the model's folder."""
    fill(tmp_path, ["log.jsonl", "model/config.json", "model/vocab.txt", "model/.git/HEAD"])
    fill(tmp_path, ["adapter/adapter_config.json", "checkpoints/3/state/d/1"])
    fill(tmp_path, ["checkpoints/4.orbax-checkpoint-tmp/state/d/1", "checkpoints/notes.txt"])
    clear(str(tmp_path))
    assert contents(tmp_path) == {
        "checkpoints": None,
        "checkpoints/notes.txt": b"old",
        "model": None,
        "model/.git": None,
        "model/.git/HEAD": b"old",
    }


LEFT = ["log.jsonl.1", "log.jsonl.0123abcd.new", "loss.png.0123abcd.new", "checkpoints/5/x"]
LEFT += ["settings.json.0123abcd.new", ".minibert-new-model-0123abcd/config.json"]
MINE = ["log.jsonl.bak", "log.jsonl.1.gz", "loss.png.old", "settings.json.orig"]
MINE += [".minibert-new-thesis/a.tex", ".minibert-old-0123abcd/config.json", "settings.json/a"]


@pytest.mark.parametrize("name", MINE)
def test_a_new_run_refuses_files_that_no_run_writes(name, tmp_path):
    """Names that only begin as those of a run's files are somebody else's."""
    fill(tmp_path, [*LEFT, name])
    before = contents(tmp_path)
    top = name.partition("/")[0]
    said = ("expected only what a training run writes", repr(top))
    refused(TargetError, said, lambda: check_output(str(tmp_path), False, True))
    clear(str(tmp_path))
    assert contents(tmp_path) == {path: before[path] for path in {name, top}}


def test_a_new_run_refuses_a_model_that_cannot_be_replaced(tmp_path):
    """Before it trains: a save at its end would."""
    fill(tmp_path, ["model/config.json", "model/orbax/notes.txt"])
    said = ("model/orbax: expected an Orbax checkpoint",)
    refused(TargetError, said, lambda: check_output(str(tmp_path), False, True))


def test_a_model_is_saved_into_the_folder_of_a_run(model, tmp_path):
    """Checkpoints and model in one folder: the run's lock does not keep the save waiting."""
    with one_run(str(tmp_path)):
        model.save_pretrained(tmp_path)
        left = os.listdir(tmp_path)
    assert sorted(left) == [RUN_LOCK, "config.json", WEIGHTS]
    assert sorted(os.listdir(tmp_path)) == ["config.json", WEIGHTS]


def test_the_lock_of_a_run_that_was_killed(model, tmp_path):
    """It is no foreign file of an output folder, and the next run takes it over."""
    (tmp_path / RUN_LOCK).touch()
    with one_run(str(tmp_path)):
        check_output(str(tmp_path), False, False)
        with pytest.raises(TargetError, match="another run is using it"), one_run(tmp_path):
            pass
        clear(str(tmp_path))
        assert os.listdir(tmp_path) == [RUN_LOCK]
    assert os.listdir(tmp_path) == []


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
    (tmp_path / "model" / "a").write_text("keep")
    before = contents(tmp_path)

    def fail(_):
        raise error

    def run():
        with atomic_folder(str(tmp_path / "model"), owned=OWNED, overwrite=True, check=fail):
            if stage == "block":
                raise error

    reported = error is OSError and stage == "check"  # of the block, it may be about a source
    with pytest.raises(TargetError if reported else error):
        run()
    assert contents(tmp_path) == before


def test_a_damaged_copy_is_not_moved_in(tmp_path):
    """The files written are compared before the folder is renamed."""

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
