"""Shard indices that are wrong, point elsewhere or are damaged, and layouts that must load."""

import json
import os
import shutil

import numpy as np
import pytest
import safetensors.numpy

from malformed import INDEX, WEIGHTS, as_folder, as_link, as_pipe, cases, edit_json, load, refused
from minibert.errors import ShardIndexError, SourceError, WeightsFileError

NAME = "embeddings.LayerNorm.bias"


@pytest.fixture
def sharded(pristine, tmp_path):
    """A tiny model in four shards, to be damaged."""
    return pristine.copy(tmp_path / "model", max_shard_size="20KB")


def shards(folder):
    return sorted(folder.glob("model-*.safetensors"))


def named(shard):
    """The index says that one tensor is in `shard`."""
    return lambda index: index["weight_map"].update({NAME: shard})


PLAIN = "plain name of a .safetensors file"
UNTRUSTED = {
    "parent": (named(f"../model/{WEIGHTS}"), PLAIN),
    "parent-only": (named(".."), PLAIN),
    "absolute": (named("/etc/passwd.safetensors"), PLAIN),
    "subfolder": (named("sub/x.safetensors"), PLAIN),
    "here": (named("./x.safetensors"), PLAIN),
    "drive": (named("C:x.safetensors"), PLAIN),
    "drive-path": (named("C:\\x.safetensors"), PLAIN),
    "unc": (named("\\\\host\\share\\x.safetensors"), PLAIN),
    "backslash-parent": (named("..\\x.safetensors"), PLAIN),
    "url": (named("https://host/x.safetensors"), PLAIN),
    "home": (named("~x.safetensors"), PLAIN),
    "stream": (named("x.safetensors:y.safetensors"), PLAIN),
    "hidden": (named(".x.safetensors"), PLAIN),
    "ending-only": (named(".safetensors"), PLAIN),
    "empty": (named(""), PLAIN),
    "wrong-ending": (named("x.bin"), PLAIN),
    "ending-in-capitals": (named("x.SAFETENSORS"), PLAIN),
    "newline": (named("x.safetensors\n"), PLAIN),
    "nul": (named("x\0.safetensors"), PLAIN),
    "not-ascii": (named("ⅹ.safetensors"), PLAIN),
    "long": (named("x" * 10**6 + "/.safetensors"), PLAIN),
    "too-long-for-a-file-system": (named("x" * 10**6 + ".safetensors"), "does not exist"),
    "number": (named(1), "found 1"),
    "null": (named(None), "found None"),
    "list": (named(["x.safetensors"]), "found ['x.safetensors']"),
    "absent-shard": (named("model-9.safetensors"), "'model-9.safetensors' does not exist"),
    "absent-tensor": (
        lambda i: i["weight_map"].update(x="model-00001-of-00004.safetensors"),
        "'x'",
    ),
    "absent-long-tensor": (
        lambda i: i["weight_map"].update({"x\n" * 10**6: "model-00001-of-00004.safetensors"}),
        "found in no shard",
    ),
    "tensor-in-another-shard": (
        named("model-00002-of-00004.safetensors"),
        f"{NAME!r}: expected in 'model-00002-of-00004.safetensors', found in 'model-0000",
    ),
    "unlisted-tensor": (lambda i: i["weight_map"].pop(NAME), f"not listed: [{NAME!r}]"),
    "size-too-small": (lambda i: i["metadata"].update(total_size=1), "total_size: expected"),
    "size-too-large": (lambda i: i["metadata"].update(total_size=10**15), "found 1000000000000000"),
    "size-text": (lambda i: i["metadata"].update(total_size="1" * 10**6), "total_size: expected"),
    "map-absent": (lambda i: i.pop("weight_map"), "weight_map"),
    "map-empty": (lambda i: i.update(weight_map={}), "weight_map"),
    "map-list": (lambda i: i.update(weight_map=list(i["weight_map"].values())), "weight_map"),
    "map-null": (lambda i: i.update(weight_map=None), "weight_map"),
}


@pytest.mark.parametrize(("change", "said"), cases(UNTRUSTED))
def test_index_content(change, said, sharded):
    edit_json(sharded / INDEX, change)
    refused(ShardIndexError, (str(sharded / INDEX), said), lambda: load(sharded))


def written(content):
    return lambda path: path.write_bytes(content)


def edited(change):
    return lambda path: path.write_bytes(change(path.read_bytes()))


def vast(path):
    with open(path, "ab") as file:
        file.truncate((64 << 20) + 1)


TWICE = b'"weight_map": {"embeddings.LayerNorm.bias": "x.safetensors", '
DAMAGED = {
    "empty": (written(b""), "not JSON"),
    "not-json": (written(b"{'a': 1}"), "not JSON"),
    "array": (written(b"[]"), "weight_map"),
    "number": (written(b"5"), "weight_map"),
    "not-utf-8": (edited(lambda c: c.replace(b"Norm", b"N\xffrm")), "UTF-8"),
    "deep": (written(b"[" * 10**5), "nested too deeply"),
    "nan": (written(b'{"metadata": {"total_size": NaN}}'), "NaN is not a finite number"),
    "cut": (edited(lambda c: c[: len(c) // 2]), "not JSON"),
    "duplicate-tensor": (
        edited(lambda c: c.replace(b'"weight_map": {', TWICE)),
        f"{NAME!r} appears",
    ),
    "duplicate-map": (edited(lambda c: c[:-2] + b', "weight_map": {}}'), "'weight_map' appears"),
    "too-large": (vast, "larger than 67,108,864 bytes"),
    "directory": (as_folder, "Is a directory"),
    "fifo": (as_pipe, "expected a regular file"),
    "link-to-nothing": (as_link("nowhere"), "cannot be read"),
}


@pytest.mark.parametrize(("spoil", "said"), cases(DAMAGED))
def test_index_file(spoil, said, sharded):
    spoil(sharded / INDEX)
    refused(ShardIndexError, (str(sharded / INDEX), said), lambda: load(sharded))


def spare(folder):
    """A tensor of the first shard in the second too."""
    first, second = map(safetensors.numpy.load_file, shards(folder)[:2])
    safetensors.numpy.save_file(second | dict([next(iter(first.items()))]), shards(folder)[1])


def shard_as_fifo(folder):
    as_pipe(shards(folder)[0])


def shard_cut(folder):
    shards(folder)[0].write_bytes(shards(folder)[0].read_bytes()[:-1])


def shard_pickled(folder):
    shards(folder)[0].write_bytes(b"\x80\x02}q\0.")


SHARDS = {
    "tensor-in-two": (spare, "is also in"),
    "fifo": (shard_as_fifo, "expected a regular file"),
    "cut": (shard_cut, "truncated"),
    "pickle": (shard_pickled, "found a pickle"),
}


@pytest.mark.parametrize(("spoil", "said"), cases(SHARDS))
def test_shard(spoil, said, sharded):
    spoil(sharded)
    refused(WeightsFileError, ("model-0000", said), lambda: load(sharded))


def test_every_shard_absent(sharded):
    for shard in shards(sharded):
        shard.unlink()
    said = (INDEX, "'model-00001-of-00004.safetensors' does not exist")
    refused(ShardIndexError, said, lambda: load(sharded))


def test_index_absent(sharded):
    (sharded / INDEX).unlink()
    refused(SourceError, (str(sharded), INDEX), lambda: load(sharded))


def outside(folder, shard):
    """Moves the shard out of the folder and replaces it by a link."""
    away = folder.parent / "away"
    away.mkdir()
    shutil.move(shard, away / shard.name)
    shard.symlink_to(away / shard.name)


def below(folder, shard):
    (folder / "sub").mkdir()
    shutil.move(shard, folder / "sub" / shard.name)
    shard.symlink_to(f"sub/{shard.name}")


def to_sibling_of_blobs(folder, shard):
    """As in the Hub's cache, but to a file of another model."""
    (folder.parent / "models--other" / "blobs").mkdir(parents=True)
    blob = folder.parent / "models--other" / "blobs" / "0"
    shutil.move(shard, blob)
    shard.symlink_to(blob)


@pytest.mark.parametrize("move", [outside, below, to_sibling_of_blobs])
def test_link_that_leaves_the_folder(move, sharded):
    shard = shards(sharded)[2]
    move(sharded, shard)
    refused(ShardIndexError, (INDEX, repr(shard.name), "is a link to"), lambda: load(sharded))


def as_snapshot(folder, cache, below):
    """A folder as the Hub's cache keeps it: every file a link to a blob named by its hash."""
    snapshot = cache / "models--a--b" / "snapshots" / "0123abc" / below
    blobs = cache / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        shutil.move(file, blobs / f"{number:064x}")
        up = os.path.relpath(blobs, snapshot)
        (snapshot / file.name).symlink_to(os.path.join(up, f"{number:064x}"))
    return snapshot


@pytest.mark.parametrize("below", ["", "sub", "sub/sub"])
def test_snapshot_of_the_hub_loads(below, sharded, tmp_path):
    expected = load(sharded)
    snapshot = as_snapshot(sharded, tmp_path / "cache", below)
    loaded = load(snapshot)
    one, other = expected.pooler.dense.kernel[...], loaded.pooler.dense.kernel[...]
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("below", ["", "sub"])
def test_snapshot_with_a_link_elsewhere(below, sharded, tmp_path):
    snapshot = as_snapshot(sharded, tmp_path / "cache", below)
    shard = shards(snapshot)[0]
    shutil.copy(shard, tmp_path / "elsewhere")
    shard.unlink()
    shard.symlink_to(tmp_path / "elsewhere")
    refused(ShardIndexError, (repr(shard.name), "elsewhere"), lambda: load(snapshot))


def test_shards_by_digest(sharded, tmp_path):
    """Links with which DVC, git-annex or a cache replaces files."""
    expected = load(sharded)
    for number, file in enumerate([*sharded.iterdir()]):
        shutil.move(file, tmp_path / f"{number:064x}")
        file.symlink_to(tmp_path / f"{number:064x}")
    one, other = expected.pooler.dense.kernel[...], load(sharded).pooler.dense.kernel[...]
    np.testing.assert_array_equal(one, other)


def no_metadata(index):
    del index["metadata"]


def spare_metadata(index):
    index["metadata"] |= {"total_parameters": 1, "note": None}


def float_size(index):
    index["metadata"]["total_size"] = float(index["metadata"]["total_size"])


@pytest.mark.parametrize("change", [no_metadata, spare_metadata, float_size])
def test_index_that_loads(change, sharded):
    edit_json(sharded / INDEX, change)
    assert load(sharded).pooler is not None


def test_link_inside_the_folder_loads(sharded):
    shard = shards(sharded)[0]
    shard.rename(sharded / "x.safetensors")
    shard.symlink_to("x.safetensors")
    assert load(sharded).pooler is not None


def test_index_is_unread_where_there_is_a_single_file(folder):
    (folder / INDEX).write_text(json.dumps({"weight_map": {"x": "../x"}}))
    assert load(folder).pooler is not None
