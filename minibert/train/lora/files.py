"""Adapters in PEFT's format: a folder with `adapter_config.json`, `adapter_model.safetensors`."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from minibert.checkpoint.files import ADAPTER_CONFIG, ADAPTER_TENSORS, adapter_paths, unchanged
from minibert.checkpoint.hub import AnyPath, adapter_folder
from minibert.checkpoint.leaves import Expected, read_exactly
from minibert.checkpoint.saving import file_leaves, write_arrays
from minibert.checkpoint.sources import open_adapter
from minibert.checkpoint.tensors import SafetensorsSource
from minibert.core.atomic import atomic_folder
from minibert.core.paths import path_text
from minibert.core.strict_json import read_object_if_there, write_json
from minibert.errors import (
    ConfigError,
    MinibertError,
    SourceError,
    TargetError,
    UnsupportedConfigError,
    shown,
    writing,
)
from minibert.models.base import PretrainedModel
from minibert.nn.numerics import wide_dtype
from minibert.nn.tree import submodules
from minibert.train.lora.adapter import Adapter, check_adapter
from minibert.train.lora.config import LoRA
from minibert.train.lora.initial import CHANGING, relative_to_base
from minibert.train.lora.sites import (
    TOKENS,
    shapes,
    sites,
    target_names,
    tied_copies,
    token_rows,
    whole_leaves,
)

PREFIX = "base_model.model."  # PEFT's two wrappers
NAMES = {  # of a file's tensors, by those of an adapter's arrays
    "lora_A": "lora_A.weight",
    "lora_B": "lora_B.weight",
    "lora_bias": "lora_B.bias",
    "lora_embedding_A": "lora_embedding_A",
    "lora_embedding_B": "lora_embedding_B",
    "lora_magnitude_vector": "lora_magnitude_vector",
}

# Fields of PEFT's `LoraConfig` that do not affect the numbers, whatever their values.
INERT = frozenset(
    """
    auto_mapping inference_mode megatron_core peft_version qalora_group_size revision runtime_config
    """.split()
)


def save_adapter(
    model: PretrainedModel,
    adapter: Adapter,
    folder: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> None:
    """Writes an adapter in PEFT's format: complete, flushed and checked, or not at all.

    Args:
        model: the model that it adapts.
        adapter: the adapter.
        folder: the folder to write. It may exist; it must not hold an adapter unless `overwrite`,
            nor a model, because transformers would apply the adapter to it. Other files are kept.
        overwrite: whether to replace an adapter's files.

    Raises:
        InputError: the adapter does not fit the model, or `folder` is not a path.
        TargetError: the folder holds an adapter or a model, or cannot be written; or a number is
            NaN or infinite.
    """
    folder = path_text("folder", folder)
    check_adapter(model, adapter)
    if os.path.lexists(path := os.path.join(folder, "config.json")):
        raise TargetError(
            f"{path}: expected a folder without a model, because transformers would apply the "
            "adapter whenever it loads the model; choose another folder"
        )
    arrays = {}
    for name, tensor in tensors(model, adapter.config).items():
        array = np.asarray(adapter.params[tensor.path])
        arrays[name] = np.ascontiguousarray(array.T if tensor.transposed else array)
    fields = config_fields(model, adapter.config)

    def check(written: str) -> None:
        with SafetensorsSource([os.path.join(written, ADAPTER_TENSORS)]) as source:
            same = source.tensors.keys() == arrays.keys() and all(
                source.read(name).tobytes() == array.tobytes() for name, array in arrays.items()
            )
        if not same:
            raise TargetError(f"{folder}: the files written differ from the adapter in memory")

    target = os.fspath(folder)
    with (
        atomic_folder(target, owned=adapter_paths, overwrite=overwrite, check=check) as new,
        writing(target),
    ):
        write_json(fields, os.path.join(new, ADAPTER_CONFIG))
        write_arrays(arrays, os.path.join(new, ADAPTER_TENSORS))


def load_adapter(
    model: PretrainedModel,
    folder: AnyPath,
    *,
    revision: str | None = None,
    subfolder: str = "",
    cache_dir: AnyPath | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    allow_pickle: bool = False,
) -> Adapter:
    """Loads an adapter that PEFT or `save_adapter` wrote.

    Args:
        model: the model to adapt.
        folder: the folder with `adapter_config.json` and `adapter_model.safetensors`, or a
            repository of the Hub, `user/name`.
        revision: a branch, tag or commit of the repository.
        subfolder: the path of the adapter in the folder or repository.
        cache_dir: a folder to use instead of the Hub's default cache.
        token: access token for private repositories.
        local_files_only: whether to use only the Hub's cache.
        allow_pickle: whether an `adapter_model.bin` may be opened, which older versions of PEFT
            wrote.

    Returns:
        The adapter, in float32 or wider, for `merge`, `attach` or `Trainer`.

    Raises:
        SourceError: one of the files is missing, or they were replaced while they were read.
        ConfigError: a field is wrong, or the settings do not fit the model.
        UnsupportedConfigError: a field requests something that is not implemented.
        WeightsFileError: the weights are damaged, or are a pickle and `allow_pickle` is off.
        CheckpointMismatchError: a tensor is missing, unexpected, of the wrong shape or not finite.
    """
    folder = adapter_folder(
        folder,
        revision=revision,
        subfolder=subfolder,
        cache_dir=cache_dir,
        token=token,
        local_files_only=local_files_only,
        allow_pickle=allow_pickle,
    )
    config = os.path.join(folder, ADAPTER_CONFIG)
    with unchanged(folder):
        fields = adapter_fields(folder)
        with open_adapter(folder, allow_pickle=allow_pickle) as source:
            try:
                kind = fields.get("init_lora_weights")
                if kind in CHANGING:
                    fields = fields | {"init_lora_weights": True}
                lora = read_config(fields)
                expected = tensors(model, lora)
                more = repeated(model, lora) if lora.bias == "all" else set()
            except UnsupportedConfigError as reason:
                raise UnsupportedConfigError(f"{config}: {reason}") from None
            except MinibertError as reason:
                raise ConfigError(f"{config}: {reason}") from None
            source.tensors = {n: one for n, one in source.tensors.items() if n not in more}
            where = os.path.join(folder, ADAPTER_TENSORS)
            where = next((one.file for one in source.tensors.values()), where)
            adapter = Adapter(lora, read_exactly(source, where, expected, wide_dtype))
            try:
                return relative_to_base(model, adapter, kind) if kind in CHANGING else adapter
            except UnsupportedConfigError as reason:
                raise UnsupportedConfigError(f"{config}: {reason}") from None


def adapter_fields(folder: str) -> dict[str, Any]:
    """Returns the contents of `adapter_config.json`.

    Raises:
        SourceError: there is no such file.
        ConfigError: it is not a JSON object.
    """
    fields = read_object_if_there(os.path.join(folder, ADAPTER_CONFIG))
    if fields is None:
        raise SourceError(f"{folder}: expected {ADAPTER_CONFIG} and {ADAPTER_TENSORS}")
    return fields


def tensors(model: PretrainedModel, lora: LoRA) -> dict[str, Expected]:
    """Returns the expected tensors of an adapter's file, by name."""
    found, adapted = {}, sites(model, lora)
    layers = {f"{site.path}.bias" for site in adapted}
    for path, leaf in whole_leaves(model, lora).items():
        name = leaf.name.removeprefix(model.tensor_prefix)
        if path in layers:  # PEFT's name of the layer inside the one that it puts in its place
            name = f"{path.removesuffix('bias')}base_layer.bias"
        found[f"{PREFIX}{name}"] = leaf.expected._replace(path=path)
    sizes = shapes(model, lora)
    for module in token_rows(model, lora):
        path = f"{module}.{TOKENS}"
        found[f"{PREFIX}{module}.token_adapter.{TOKENS}"] = Expected(path, sizes[path], False)
    for site in adapted:
        for path, shape in site.factors.items():
            suffix = NAMES[path.removeprefix(f"{site.path}.")]
            found[f"{PREFIX}{site.path}.{suffix}"] = Expected(path, shape[::-1], len(shape) == 2)
    return found


def repeated(model: PretrainedModel, lora: LoRA) -> set[str]:
    """Returns names of tensors that PEFT also writes for `bias="all"`.

    They are copies of other tensors in the file, and biases that the adapter replaces.
    """
    prefix = model.tensor_prefix
    found = {name.removeprefix(prefix) for name in tied_copies(model).values()}
    paths = [leaf.path.removeprefix(prefix) for leaf in file_leaves(model).values()]
    for module, _ in submodules(model):
        if lora.saves(module):
            inner = [path.removeprefix(module) for path in paths if path.startswith(f"{module}.")]
            for wrapped in ("original_module", "modules_to_save"):
                found |= {f"{module}.{wrapped}{path}" for path in inner}
    return {f"{PREFIX}{name}" for name in found if name.endswith(".bias")}


def config_fields(model: PretrainedModel, lora: LoRA) -> dict[str, Any]:
    """Returns the contents of `adapter_config.json`, with the model's defaults filled in."""
    tokens = lora.trainable_token_indices
    return {
        **vars(lora),
        "target_modules": target_names(model, lora),
        "fan_in_fan_out": any(site.fan_in_fan_out for site in sites(model, lora)),
        "rank_pattern": dict(lora.rank_pattern),
        "alpha_pattern": dict(lora.alpha_pattern),
        "trainable_token_indices": dict(tokens) if isinstance(tokens, Mapping) else tokens,
        "peft_type": "LORA",
        "inference_mode": True,
    }


def read_config(fields: Mapping[str, Any]) -> LoRA:
    """Returns the settings in an `adapter_config.json`.

    Raises:
        InputError: a field has an invalid value.
        UnsupportedConfigError: the adapter is not LoRA, or a field requests something that is not
            implemented.
    """
    kind = fields.get("peft_type")
    if kind != "LORA":
        raise UnsupportedConfigError(f"peft_type: expected 'LORA', found {shown(kind)}")
    ours = {field.name for field in dataclasses.fields(LoRA)}
    for name, value in sorted(fields.items()):
        if name not in ours | INERT | {"peft_type"} and value:
            raise UnsupportedConfigError(
                f"{name}: {shown(value)} is not implemented (only null, false or nothing)"
            )
    return LoRA(**{name: value for name, value in fields.items() if name in ours})
