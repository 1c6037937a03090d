"""Pickles: refused by default, and where they are allowed, never run."""

import json
import os
import pickle
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from malformed import PICKLE, WEIGHTS, as_folder, as_link, as_pipe, cases, load, refused
from minibert.errors import PickleRefusedError, WeightsFileError

try:
    import torch
except ImportError:
    torch = None

needs_torch = pytest.mark.skipif(torch is None, reason="needs torch, which writes the pickles")


class Payload:
    """Unpickled, it would make a folder."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.fixture
def marker(tmp_path):
    """What a payload makes when it runs."""
    path = str(tmp_path / "ran")
    yield path
    assert not os.path.exists(path)


@pytest.fixture
def pickled(folder):
    """A tiny model's folder, its weights a pickle."""
    tensors = safetensors.numpy.load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    if torch is not None:
        torch.save({name: torch.tensor(array) for name, array in tensors.items()}, folder / PICKLE)
    else:
        (folder / PICKLE).write_bytes(pickle.dumps(tensors))
    return folder


def index(folder, *names):
    """A shard index that sends every tensor to the first of the shards, and `x…` to the others."""
    tensors = list(torch.load(folder / PICKLE))
    weight_map = dict.fromkeys(tensors, names[0]) | {f"x{name}": name for name in names[1:]}
    (folder / f"{PICKLE}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / PICKLE).rename(folder / names[0])


def test_payload_works(tmp_path):
    pickle.loads(pickle.dumps(Payload(str(tmp_path / "ran"))))
    assert (tmp_path / "ran").exists()


def test_refused_by_default(pickled):
    said = (str(pickled / PICKLE), "can run code", WEIGHTS, "allow_pickle=True")
    refused(PickleRefusedError, said, lambda: load(pickled))


def test_its_index_is_refused_by_default(pickled):
    (pickled / PICKLE).rename(pickled / f"{PICKLE}.index.json")
    said = (f"{PICKLE}.index.json", "can run code", "allow_pickle=True")
    refused(PickleRefusedError, said, lambda: load(pickled))


def test_safetensors_come_first(folder, marker):
    (folder / PICKLE).write_bytes(pickle.dumps(Payload(marker)))
    assert load(folder, allow_pickle=True).pooler is not None


@pytest.mark.skipif(torch is not None, reason="torch is installed")
def test_without_torch(pickled):
    said = (str(pickled / PICKLE), "needs torch")
    refused(WeightsFileError, said, lambda: load(pickled, allow_pickle=True))


@needs_torch
def test_allowed(pickled, pristine):
    one, other = load(pristine.folder()), load(pickled, allow_pickle=True)
    expected, found = one.pooler.dense.kernel[...], other.pooler.dense.kernel[...]
    np.testing.assert_array_equal(found, expected)


MALICIOUS = {
    "protocol-0": (lambda path, load: path.write_bytes(pickle.dumps(load, 0)),),
    "protocol-2": (lambda path, load: path.write_bytes(pickle.dumps(load, 2)),),
    "protocol-5": (lambda path, load: path.write_bytes(pickle.dumps({"x": load}, 5)),),
    "zip": (lambda path, load: torch.save({"x": load}, path),),
    "old-torch": (
        lambda path, load: torch.save({"x": load}, path, _use_new_zipfile_serialization=False),
    ),
    "as-a-key": (lambda path, load: torch.save({(load,): torch.ones(1)}, path),),
}


@needs_torch
@pytest.mark.parametrize("write", cases(MALICIOUS))
def test_payload_is_not_run(write, pickled, marker):
    (pickled / PICKLE).unlink()
    write(pickled / PICKLE, Payload(marker))
    said = (str(pickled / PICKLE), "not a file of weights")
    refused(WeightsFileError, said, lambda: load(pickled, allow_pickle=True))


@needs_torch
def test_payload_of_a_shard_is_not_run(pickled, marker):
    index(pickled, "a.bin", "b.bin")
    torch.save({"xb.bin": Payload(marker)}, pickled / "b.bin")
    said = (str(pickled / "b.bin"), "not a file of weights")
    refused(WeightsFileError, said, lambda: load(pickled, allow_pickle=True))


def compressed(path):
    content = zipfile.ZipFile(path)
    with zipfile.ZipFile(path.with_name("new"), "w", zipfile.ZIP_DEFLATED) as new:
        for name in content.namelist():
            new.writestr(name, content.read(name))
    content.close()
    os.replace(path.with_name("new"), path)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def saved(content):
    return lambda path: torch.save(content(), path)


def changed(change):
    """The pickle with one tensor, "pooler.dense.bias", made of what it was."""

    def apply(path):
        tensors = torch.load(path)
        tensors["pooler.dense.bias"] = change(tensors["pooler.dense.bias"])
        torch.save(tensors, path)

    return apply


ONE = "'pooler.dense.bias'"
BROKEN = {
    "empty": (lambda path: path.write_bytes(b""), "not a file of weights"),
    "text": (lambda path: path.write_text("not weights\n" * 100), "not a file of weights"),
    "cut": (cut, "not a file of weights"),
    "safetensors": (
        lambda path: safetensors.numpy.save_file({"x": np.ones(2, np.float32)}, path),
        "not a file of weights",
    ),
    "empty-zip": (lambda path: zipfile.ZipFile(path, "w").close(), "not a file of weights"),
    "compressed-zip": (compressed, "found a compressed archive"),
    "list": (saved(lambda: [torch.ones(2)]), "a dictionary of named tensors"),
    "one-tensor": (saved(lambda: torch.ones(2)), "a dictionary of named tensors"),
    "nested": (saved(lambda: {"model": {"x": torch.ones(2)}}), "a dictionary of named tensors"),
    "number-for-a-name": (saved(lambda: {0: torch.ones(2)}), "a dictionary of named tensors"),
    "number-for-a-tensor": (saved(lambda: {"step": 1}), "a dictionary of named tensors"),
    "sparse": (changed(lambda x: x.to_sparse()), f"{ONE}: expected a dense tensor"),
    "meta": (changed(lambda x: x.to("meta")), f"{ONE}: expected a dense tensor"),
    "float8": (changed(lambda x: x.to(torch.float8_e4m3fn)), f"{ONE}: unsupported dtype"),
    "expanded": (
        changed(lambda x: torch.ones(1).expand(10**9, 10**9)),
        f"{ONE}: expected 1000000000000000000 elements in the file, found 1",
    ),
    "fifo": (as_pipe, "expected a regular file"),
    "directory": (as_folder, "Is a directory"),
    "link-to-dev-zero": (as_link("/dev/zero"), "expected a regular file"),
}


@needs_torch
@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, on sparse tensors
@pytest.mark.parametrize(("spoil", "said"), cases(BROKEN))
def test_broken(spoil, said, pickled):
    spoil(pickled / PICKLE)
    said = (str(pickled / PICKLE), said)
    refused(WeightsFileError, said, lambda: load(pickled, allow_pickle=True))


@needs_torch
@pytest.mark.parametrize("view", ["transposed", "sliced", "negated", "gradient"])
def test_a_view_is_read_as_what_it_shows(view, pickled):
    tensors = torch.load(pickled / PICKLE)
    kernel = torch.arange(576.0).reshape(24, 24)
    tensors["pooler.dense.weight"] = {
        "transposed": kernel.T.contiguous().T,
        "sliced": torch.cat([kernel, kernel])[:24],
        "negated": torch._neg_view(-kernel),
        "gradient": torch.nn.Parameter(kernel),
    }[view]
    torch.save(tensors, pickled / PICKLE)
    found = load(pickled, allow_pickle=True).pooler.dense.kernel[...]
    np.testing.assert_array_equal(found, kernel.numpy().T)


@needs_torch
def test_tensor_in_two_shards(pickled):
    index(pickled, "a.bin", "b.bin")
    tensors = torch.load(pickled / "a.bin")
    torch.save({"xb.bin": torch.ones(1), "pooler.dense.bias": torch.ones(24)}, pickled / "b.bin")
    assert "pooler.dense.bias" in tensors
    said = (str(pickled / "b.bin"), ONE, "a.bin")
    refused(WeightsFileError, said, lambda: load(pickled, allow_pickle=True))


DISGUISED = {
    "pickle": (lambda path: path.write_bytes(pickle.dumps({"x": 1}, 2)), "found a pickle"),
    "pickle-4": (lambda path: path.write_bytes(pickle.dumps({"x": 1}, 4)), "found a pickle"),
    "zip": (lambda path: _zip(path), "found a pickle"),
}


def _zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"x": 1}, 2))


@pytest.mark.parametrize("allow_pickle", [False, True])
@pytest.mark.parametrize(("write", "said"), cases(DISGUISED))
def test_pickle_named_safetensors(write, said, allow_pickle, folder):
    (folder / WEIGHTS).unlink()
    write(folder / WEIGHTS)
    said = (str(folder / WEIGHTS), said)
    refused(WeightsFileError, said, lambda: load(folder, allow_pickle=allow_pickle))
