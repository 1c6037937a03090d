"""Opening the weights of a model folder: choice of the file or shards, and refusal of pickles."""

import argparse
import os
import pathlib
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import ml_dtypes
import numpy as np

from minibert.checkpoint.files import (
    ADAPTER_CONFIG,
    ADAPTER_PICKLE,
    ADAPTER_TENSORS,
    ORBAX,
    hub_blobs,
    is_content_addressed,
    refuse_adapter,
)
from minibert.checkpoint.tensors import (
    Arrays,
    ArraySource,
    SafetensorsSource,
    TensorSource,
    flat_arrays,
    joined,
    raw_bytes,
)
from minibert.core.paths import open_file
from minibert.core.strict_json import read_json
from minibert.errors import (
    PickleRefusedError,
    ShardIndexError,
    SourceError,
    WeightsFileError,
    shown,
)

SAFETENSORS = "model.safetensors"
PICKLE = "pytorch_model.bin"
CHECKSUMS = "minibert_crc32"  # key in the custom metadata of an Orbax checkpoint
FLAX = "flax_model.msgpack"
MAX_INDEX_BYTES = 64 << 20
Result = TypeVar("Result")
MIN_TORCH = (2, 10)  # the first version whose weights_only unpickler has no known vulnerability


def open_source(folder: str, *, allow_pickle: bool = False) -> TensorSource:
    """Opens the weights of a model folder.

    Looks for `model.safetensors`, its shards, an Orbax checkpoint in `orbax/`, and
    `pytorch_model.bin` or its shards, in that order.

    Raises:
        SourceError: there are no weights.
        PickleRefusedError: there is only a pickle, and `allow_pickle` is False.
        ShardIndexError: the shard index is invalid or disagrees with the shards.
        WeightsFileError: a file is damaged.
        UnsupportedConfigError: the folder contains an adapter next to the weights.
    """
    refuse_adapter(folder)

    def path(name: str) -> str:
        return os.path.join(folder, name)

    if os.path.lexists(path(SAFETENSORS)):
        return SafetensorsSource([path(SAFETENSORS)])
    if os.path.lexists(path(f"{SAFETENSORS}.index.json")):
        return open_shards(folder, SAFETENSORS, SafetensorsSource)
    if os.path.isdir(path(ORBAX)):
        return _open_orbax(path(ORBAX))
    for name in (PICKLE, f"{PICKLE}.index.json"):
        if os.path.lexists(path(name)):
            if not allow_pickle:
                raise PickleRefusedError(
                    f"{path(name)}: expected {SAFETENSORS}, found only a pickle, which can run "
                    "code when it is opened; if you trust its author, pass allow_pickle=True "
                    "(minibert convert: --allow-pickle)"
                )
            if name == PICKLE:
                return _unpickle([path(PICKLE)])
            return open_shards(folder, PICKLE, _unpickle)
    if has_flax(folder):
        raise SourceError(
            f"{path(FLAX)}: expected {SAFETENSORS}, found weights of the old Flax classes; convert "
            f"them: minibert convert {folder} OUT"
        )
    raise SourceError(f"{folder}: no {SAFETENSORS}, no {SAFETENSORS}.index.json, no {PICKLE}")


def has_flax(folder: str) -> bool:
    """Returns whether a folder contains weights of the old Flax classes, in a file or in shards."""
    names = (FLAX, f"{FLAX}.index.json")
    return any(os.path.lexists(os.path.join(folder, name)) for name in names)


def open_adapter(folder: str, *, allow_pickle: bool = False) -> TensorSource:
    """Opens the weights of an adapter: `adapter_model.safetensors`, or else `adapter_model.bin`.

    Raises:
        SourceError: there is neither.
        PickleRefusedError: there is only a pickle, and `allow_pickle` is False.
        WeightsFileError: the file is damaged.
    """
    path, pickle = os.path.join(folder, ADAPTER_TENSORS), os.path.join(folder, ADAPTER_PICKLE)
    if os.path.lexists(path):
        return SafetensorsSource([path])
    if not os.path.lexists(pickle):
        raise SourceError(f"{folder}: expected {ADAPTER_CONFIG} and {ADAPTER_TENSORS}")
    if not allow_pickle:
        raise PickleRefusedError(
            f"{pickle}: expected {ADAPTER_TENSORS}, found only a pickle, which can run code when "
            "it is opened; if you trust its author, pass allow_pickle=True"
        )
    return _unpickle([pickle])


def read_index(path: str, kind: str) -> dict[str, Any]:
    """Reads a shard index, whose shards must be plain file names with the extension of `kind`.

    Raises:
        ShardIndexError: the index is damaged, or a shard is not such a name.
    """
    index = read_json(path, ShardIndexError, MAX_INDEX_BYTES)
    match index:
        case {"weight_map": dict(weight_map)} if weight_map:
            pass
        case _:
            raise ShardIndexError(f"{path}: expected an object with a weight_map")
    ending = os.path.splitext(kind)[1]
    plain = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9._-]*{re.escape(ending)}")
    for name, shard in weight_map.items():
        if not (isinstance(shard, str) and plain.fullmatch(shard)):
            raise ShardIndexError(
                f"{path}: {shown(name)}: expected the plain name of a {ending} file next to the "
                f"index, found {shown(shard)}"
            )
    return index


def open_shards(
    folder: str, kind: str, open_files: Callable[[list[str]], TensorSource]
) -> TensorSource:
    """Opens the shards that an index lists.

    Args:
        folder: the folder.
        kind: the name of a file that is not split, whose index is `KIND.index.json`.
        open_files: opens the shards, given their paths.

    Raises:
        ShardIndexError: the index is invalid or disagrees with the shards.
    """
    index_path = os.path.join(folder, f"{kind}.index.json")
    index = read_index(index_path, kind)
    shards = sorted(set(index["weight_map"].values()))
    paths = [os.path.join(folder, shard) for shard in shards]
    home = pathlib.Path(os.path.realpath(folder))
    for shard, path in zip(shards, paths, strict=True):
        if not os.path.exists(path):
            raise ShardIndexError(f"{index_path}: the shard {shown(shard)} does not exist")
        real = pathlib.Path(os.path.realpath(path))
        if real.parent not in (home, hub_blobs(home)) and not is_content_addressed(real):
            raise ShardIndexError(
                f"{index_path}: the shard {shown(shard)} is a link to {shown(str(real))}, outside "
                "of the folder"
            )
    source = open_files(paths)
    try:
        _check_index(index, source, index_path)
    except BaseException:
        source.close()
        raise
    return source


def _check_index(index: dict[str, Any], source: TensorSource, index_path: str) -> None:
    weight_map, tensors = index["weight_map"], source.tensors
    if source.layout == "flax":  # whose indices have the paths of the tree
        weight_map = {name.replace("/", "."): shard for name, shard in weight_map.items()}
    for name, shard in weight_map.items():
        if name not in tensors:
            raise ShardIndexError(
                f"{index_path}: {shown(name)}: expected in {shown(shard)}, found in no shard"
            )
        found = os.path.basename(tensors[name].file)
        if found != shard:
            raise ShardIndexError(
                f"{index_path}: {shown(name)}: expected in {shown(shard)}, found in {shown(found)}"
            )
    if unlisted := sorted(tensors.keys() - weight_map.keys()):
        raise ShardIndexError(
            f"{index_path}: shards contain tensors that are not listed: {shown(unlisted)}"
        )
    metadata = index.get("metadata", {})
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    size = sum(info.nbytes for info in tensors.values())
    if isinstance(source, SafetensorsSource) and total not in (None, size):
        raise ShardIndexError(f"{index_path}: total_size: expected {size}, found {shown(total)}")


def read_files(
    paths: list[str], read: Callable[[str], Arrays], layout: str = "torch"
) -> ArraySource:
    """Reads the arrays of several files.

    Raises:
        WeightsFileError: an array is in two files.
    """
    source = ArraySource({}, "", layout)
    for path in paths:
        one = ArraySource(read(path), path)
        source.tensors = joined(source.tensors, one.tensors)
        source.arrays |= one.arrays
    return source


def _unpickle(paths: list[str]) -> TensorSource:
    return read_files(paths, _load_pickle)


def _load_pickle(path: str) -> Arrays:
    try:
        import torch
    except ImportError:
        raise WeightsFileError(
            f"{path}: reading a pickle needs torch, which is not installed"
        ) from None
    if tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < MIN_TORCH:
        raise WeightsFileError(
            f"{path}: reading a pickle safely needs torch 2.10 or newer, found {torch.__version__}"
        )
    open_file(path, WeightsFileError).close()
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    raise WeightsFileError(
                        f"{path}: expected an archive of torch, found a compressed archive"
                    )
        with torch.serialization.safe_globals([argparse.Namespace]):  # of fairseq's options
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except WeightsFileError:
        raise
    except Exception as reason:  # torch raises many types of errors for a damaged file
        raise WeightsFileError(f"{path}: not a file of weights ({shown(str(reason))})") from None
    if isinstance(loaded, dict) and isinstance(loaded.get("args"), argparse.Namespace):
        loaded = loaded.get("model")  # beside the state of a training run
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor)
        for name, tensor in loaded.items()
    ):
        raise WeightsFileError(f"{path}: expected a dictionary of named tensors")
    return {name: _to_numpy(tensor, f"{path}: {shown(name)}") for name, tensor in loaded.items()}


def _to_numpy(tensor: Any, where: str) -> np.ndarray:
    import torch

    tensor = tensor.detach().resolve_conj().resolve_neg()
    dense = tensor.layout == torch.strided and not (tensor.is_quantized or tensor.is_nested)
    if not dense or tensor.device.type != "cpu":
        raise WeightsFileError(
            f"{where}: expected a dense tensor, found {tensor.layout} on {tensor.device}"
        )
    stored = tensor.untyped_storage().nbytes() // tensor.element_size()
    if tensor.numel() > stored:  # strides of 0 can make a huge tensor of one stored number
        raise WeightsFileError(
            f"{where}: expected {tensor.numel()} elements in the file, found {stored}"
        )
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    try:
        return tensor.contiguous().numpy()
    except (TypeError, RuntimeError):
        raise WeightsFileError(f"{where}: unsupported dtype {tensor.dtype}") from None


def _open_orbax(path: str) -> TensorSource:
    try:
        import orbax.checkpoint as ocp
    except ImportError:
        raise WeightsFileError(
            f"{path}: reading it needs orbax-checkpoint; pip install 'minibert-jax[train]'"
        ) from None
    for root, _, names in os.walk(path):
        for name in names:
            open_file(os.path.join(root, name), WeightsFileError).close()

    absolute = os.path.abspath(path)  # as Orbax requires

    def restore() -> tuple[Any, Any]:
        with ocp.PyTreeCheckpointer() as checkpointer:
            metadata = checkpointer.metadata(absolute)
            shapes = metadata.item_metadata.tree
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
            return checkpointer.restore(absolute, restore_args=as_numpy), metadata

    try:
        restored, metadata = uninterrupted(restore)
    except Exception as reason:  # Orbax, TensorStore and zarr each raise their own types
        raise WeightsFileError(f"{path}: not an Orbax checkpoint ({shown(str(reason))})") from None
    arrays = flat_arrays(restored, path)
    _check_sums(arrays, (metadata.custom_metadata or {}).get(CHECKSUMS), path)
    return ArraySource(arrays, path, layout="tree")


def uninterrupted(call: Callable[[], Result]) -> Result:
    """Returns the result of a call in another thread; a KeyboardInterrupt waits for its end.

    Orbax has threads that would go on after an exception, with files that were removed meanwhile.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


def array_sums(arrays: Arrays) -> dict[str, int]:
    """Returns the CRC-32 of the bytes of each array, by name."""
    return {name: zlib.crc32(raw_bytes(array).data) for name, array in arrays.items()}


def _check_sums(arrays: Arrays, saved: Any, path: str) -> None:
    """Compares arrays with the stored checksums, which only checkpoints of minibert have.

    Raises:
        WeightsFileError: a checksum differs.
    """
    if saved is None:
        return
    if not isinstance(saved, Mapping):
        raise WeightsFileError(f"{path}: checksums: expected numbers by name, found {shown(saved)}")
    found = array_sums(arrays)
    names = found.keys() | saved.keys()
    if wrong := sorted(name for name in names if found.get(name) != saved.get(name)):
        more = f" and {len(wrong) - 1} more" if wrong[1:] else ""
        raise WeightsFileError(
            f"{path}: damaged: the checksum of {shown(wrong[0])}{more} differs from the stored "
            "one; convert the model again"
        )
