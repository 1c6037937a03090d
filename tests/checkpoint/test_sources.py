"""Sources of models: folders without a model, unknown names, a cache that lacks a file."""

import shutil

import pytest

import minibert
from malformed import INDEX, WEIGHTS, cases, edit_json, load, refused
from minibert.errors import ShardIndexError, SourceError, WeightsFileError

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
    "nul": (lambda path: f"{path}\0x", "no such folder"),
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
