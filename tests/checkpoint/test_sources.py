"""Sources of models: folders without a model, unknown names, a cache that lacks a file."""

import os
import shutil

import pytest

import minibert
from malformed import INDEX, WEIGHTS, cases, edit_json, load, promptly, refused
from minibert.errors import InputError, ShardIndexError, SourceError, WeightsFileError

OTHERS = {
    "nothing": (lambda folder: None, "no model.safetensors"),
    "flax": (lambda folder: (folder / "flax_model.msgpack").touch(), "old Flax classes"),
    "tensorflow": (lambda folder: (folder / "tf_model.h5").touch(), "no model.safetensors"),
}


@pytest.mark.parametrize(("make", "said"), cases(OTHERS))
def test_no_weights(make, said, folder):
    (folder / WEIGHTS).unlink()
    make(folder)
    refused(SourceError, (str(folder), said), lambda: load(folder))


@pytest.mark.parametrize("content", ["nothing", "junk", "file"])
def test_not_an_orbax_folder(content, folder):
    (folder / WEIGHTS).unlink()
    (folder / "orbax").mkdir()
    if content == "junk":
        (folder / "orbax" / "_METADATA").write_text("{")
        (folder / "orbax" / "manifest.ocdbt").write_text("x")
    elif content == "file":
        shutil.rmtree(folder / "orbax")
        (folder / "orbax").touch()
        refused(SourceError, (str(folder), WEIGHTS), lambda: load(folder))
        return
    refused(WeightsFileError, (str(folder / "orbax"), "Orbax"), lambda: load(folder))


FOLDERS = {
    "absent": (lambda path: path, "no such folder"),
    "file": (lambda path: path.touch() or path, "found a file"),
    "empty": (lambda path: path.mkdir() or path, "no config.json"),
    "no-name": (lambda path: "", "''"),
    "not-a-name": (lambda path: "a b/c d", "'a b/c d'"),
    "long": (lambda path: "x" * 10**6, "not found"),
    "newline": (lambda path: "a\nb", "'a\\nb'"),
    "not-in-the-cache": (lambda path: "no-such-owner/no-such-model", "cannot be reached"),
}


@pytest.mark.parametrize(("make", "said"), cases(FOLDERS))
def test_no_such_source(make, said, tmp_path):
    source = make(tmp_path / "model")
    refused(SourceError, (said,), lambda: minibert.BertModel.from_pretrained(source))


@pytest.mark.parametrize("load", [minibert.load, minibert.SentenceEncoder.from_pretrained])
def test_a_mistyped_folder(load, tmp_path, monkeypatch):
    """With one slash it could be a repository, which is looked for; the folders here are named."""
    (tmp_path / "out" / "minilm").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    said = ("'out/minilmm': there is no such folder here (did you mean out/minilm?)", "Hub")
    refused(SourceError, said, lambda: load("out/minilmm"))
    refused(SourceError, ("no such folder here", "Hub"), lambda: load("elsewhere/minilm"))
    refused(SourceError, ("no such folder", "did you mean"), lambda: load("./out/minilmm"))


OPTIONS = {
    "from_pt": (True, "leave it out"),
    "_do_init": (False, "nnx.split"),
    "seed": (1, "rngs=nnx.Rngs"),
    "input_shape": ((1, 1), "leave it out"),
    "torch_dtype": ("auto", "param_dtype"),
    "ignore_mismatched_sizes": (True, "new_head=True"),
    "rng": (1, "BertConfig"),
}


@pytest.mark.parametrize("load", [minibert.load, minibert.BertModel.from_pretrained])
@pytest.mark.parametrize("name", OPTIONS)
def test_an_argument_of_transformers(name, load, folder):
    value, said = OPTIONS[name]
    refused(InputError, (f"{name}: not an argument", said), lambda: load(folder, **{name: value}))


def test_a_pipe_in_an_orbax_folder(folder):
    (folder / WEIGHTS).unlink()
    (folder / "orbax" / "d").mkdir(parents=True)
    os.mkfifo(folder / "orbax" / "d" / "0")
    said = (str(folder / "orbax" / "d" / "0"), "expected a regular file")
    with promptly():
        refused(WeightsFileError, said, lambda: load(folder))


@pytest.fixture
def cached(pristine, tmp_path):
    """The Hub's cache, holding a tiny model in shards; and the model's folder there."""
    repository = tmp_path / "cache" / "models--owner--tiny"
    snapshot = pristine.copy(repository / "snapshots" / ("0" * 40), max_shard_size="20KB")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    return tmp_path / "cache", snapshot


def load_cached(cache, **options):
    return minibert.BertModel.from_pretrained("owner/tiny", cache_dir=cache, **options)


@pytest.mark.parametrize("options", [{}, {"local_files_only": True}, {"revision": "0" * 40}])
def test_the_cache_is_used(options, cached):
    assert load_cached(cached[0], **options).pooler is not None


def without(pattern):
    def change(folder):
        for file in folder.glob(pattern):
            file.unlink()

    return change


def escaping(folder):
    edit_json(folder / INDEX, lambda index: index["weight_map"].update(x="../../../refs/main"))


CACHES = {
    "no-config": (without("config.json"), SourceError, "not in the cache"),
    "no-weights": (without("model*"), SourceError, "its weights are not in the cache"),
    "no-shard": (without("model-00002*"), SourceError, "cannot be reached"),
    "escaping-index": (escaping, ShardIndexError, "'../../../refs/main'"),
}


@pytest.mark.parametrize(("change", "error", "said"), cases(CACHES))
def test_cache_that_lacks_something(change, error, said, cached):
    cache, snapshot = cached
    change(snapshot)
    refused(error, (said,), lambda: load_cached(cache))


def test_revision_that_is_not_cached(cached):
    said = ("'owner/tiny'", "cannot be reached")
    refused(SourceError, said, lambda: load_cached(cached[0], revision="other"))
