"""Atomic writing of a model folder: config.json and safetensors, in one file or in shards."""

import functools
import os
import re
from typing import TYPE_CHECKING, Any

from safetensors.numpy import save_file

from minibert.checkpoint.agreement import check_tree
from minibert.checkpoint.config import Config, write_config_files
from minibert.checkpoint.files import encoder_paths, model_paths
from minibert.checkpoint.leaves import Leaf, finite, leaves, stored_dtypes
from minibert.checkpoint.sources import SAFETENSORS, open_source
from minibert.checkpoint.tensors import Arrays
from minibert.core.atomic import atomic_folder
from minibert.core.strict_json import write_json
from minibert.core.types import Path
from minibert.errors import InputError, TargetError, shown, writing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
}


def parse_size(text: str | int) -> int:
    """Returns a size such as `5GB`, `200MiB` or `4096` in bytes.

    Raises:
        InputError: `text` is not a positive size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", str(text).strip())
    size = float(found[1]) * UNITS.get(found[2].upper(), 0) if found else 0
    if not 1 <= size < float("inf"):
        raise InputError(
            f"max_shard_size: expected a size such as 5GB or 200MiB, found {shown(text)}"
        )
    return int(size)


def save_model(
    model: Any,
    folder: Path,
    max_shard_size: str | int,
    overwrite: bool,
    config: Config | None = None,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
) -> None:
    """Writes config.json, the weights and the files of a tokenizer, if any, atomically.

    See `PretrainedModel.save_pretrained`.
    """
    limit = parse_size(max_shard_size)
    check_here(model)
    check = functools.partial(check_saved, model)
    owned = model_paths if tokenizer is None else encoder_paths
    with (
        atomic_folder(folder, owned=owned, overwrite=overwrite, check=check) as new,
        writing(folder),
    ):
        write_model(model, new, limit, config)
        if tokenizer is not None:
            write_tokenizer(tokenizer, new)


def write_tokenizer(tokenizer: "PreTrainedTokenizerBase", folder: str) -> None:
    """Writes a tokenizer's files into an existing folder.

    Raises:
        TargetError: the tokenizer cannot be written.
    """
    try:
        tokenizer.save_pretrained(folder)
    except OSError:
        raise
    except Exception as reason:
        raise TargetError(f"{folder}: the tokenizer cannot be written ({reason})") from None


def check_here(model: Any) -> None:
    """Raises an `InputError` if this process cannot access all shards of a model's parameters."""
    for leaf in leaves(model):
        if not getattr(leaf.variable.get_value(), "is_fully_addressable", True):
            raise InputError(
                f"model: expected all of {leaf.path} in this process, found shards in others; call "
                "minibert.on_host(model) in every process, and save the result in one"
            )


def write_model(model: Any, folder: str, limit: int, config: Config | None = None) -> None:
    """Writes config.json and shards of at most `limit` bytes into an existing folder."""
    write_config(model, folder, config)
    shards = _shards(model, limit)
    if len(shards) == 1:
        write_tensors(shards[0], os.path.join(folder, SAFETENSORS))
        return
    weight_map, total = {}, 0
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        total += write_tensors(shard, os.path.join(folder, file))
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(index, os.path.join(folder, f"{SAFETENSORS}.index.json"))


def write_config(model: Any, folder: str, config: Config | None = None) -> None:
    """Writes config.json with the class and the dtype, and generation_config.json if there was one.

    Args:
        model: the model.
        folder: an existing folder.
        config: the config to write instead of `model.config`; `check_tree` checks either.
    """
    config = model.config if config is None else config
    check_tree(model, config)
    data = config.to_dict()
    data["architectures"] = [type(model).__name__]
    dtypes = list(stored_dtypes(model))
    if len(dtypes) == 1:
        data["dtype"] = dtypes[0]
        if "torch_dtype" in data:
            data["torch_dtype"] = dtypes[0]
    write_config_files(data, config.generation, folder)


def file_leaves(model: Any, layout: str = "torch") -> dict[str, Leaf]:
    """Returns a model's leaves by the names of their tensors in a file of a layout."""
    prefix = model.tensor_prefix
    return {leaf.name_in(layout).removeprefix(prefix): leaf for leaf in leaves(model)}


def check_saved(model: Any, folder: str) -> None:
    """Compares the files written with the model, byte by byte.

    Raises:
        TargetError: a tensor differs.
    """
    with open_source(folder) as source:
        expected = file_leaves(model, source.layout)
        if source.tensors.keys() != expected.keys():
            kind = "tensors" if source.layout == "torch" else "arrays"
            raise TargetError(f"{folder}: expected the {kind} of the model, found others")
        for name, leaf in expected.items():
            read, meant = source.read(name), leaf.to_file(source.layout)
            same = (read.dtype, read.shape) == (meant.dtype, meant.shape)
            if not same or read.tobytes() != meant.tobytes():
                raise TargetError(f"{folder}: {name!r} in the file differs from the model's")


def _shards(model: Any, limit: int) -> list[dict[str, Leaf]]:
    shards: list[dict[str, Leaf]] = [{}]
    left = limit
    for name, leaf in file_leaves(model).items():
        size = leaf.variable[...].nbytes
        if size > left and shards[-1]:
            shards.append({})
            left = limit
        shards[-1][name] = leaf
        left -= size
    return shards


def write_tensors(shard: dict[str, Leaf], path: str) -> int:
    """Writes leaves into a safetensors file and returns their size; see `write_arrays`."""
    return write_arrays({name: leaf.to_file() for name, leaf in shard.items()}, path)


def write_arrays(arrays: Arrays, path: str) -> int:
    """Writes arrays into a safetensors file and returns their total size in bytes.

    Raises:
        TargetError: the file cannot be written, or a number is NaN or infinite.
    """
    if damaged := [name for name, array in arrays.items() if not finite(array)]:
        raise TargetError(
            f"{path}: expected finite numbers, found NaN or infinity in {damaged[:3]}"
        )
    try:
        with open(path, "xb"):  # with the default permissions; those of save_file are 0600
            pass
        mode = os.stat(path).st_mode
        save_file(arrays, path, metadata={"format": "pt"})
        os.chmod(path, mode)
    except Exception as reason:  # SafetensorError carries the operating system's error as text
        raise TargetError(f"{path}: cannot be written ({reason})") from None
    return sum(array.nbytes for array in arrays.values())
