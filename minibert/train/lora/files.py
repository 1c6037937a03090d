"""Adapters in PEFT's format: a folder with `adapter_config.json`, `adapter_model.safetensors`."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from minibert.checkpoint.files import ADAPTER_CONFIG, ADAPTER_TENSORS, adapter_paths, unchanged
from minibert.checkpoint.leaves import Expected, read_exactly
from minibert.checkpoint.saving import write_arrays
from minibert.checkpoint.tensors import SafetensorsSource
from minibert.core.atomic import atomic_folder
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
from minibert.train.lora.adapter import Adapter, check_adapter, saved_leaves, sites, target_names
from minibert.train.lora.config import LoRA

PREFIX = "base_model.model."  # PEFT's two wrappers

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
        InputError: the adapter does not fit the model.
        TargetError: the folder holds an adapter or a model, or cannot be written; or a number is
            NaN or infinite.
    """
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


def load_adapter(model: PretrainedModel, folder: str | os.PathLike[str]) -> Adapter:
    """Loads an adapter that PEFT or `save_adapter` wrote.

    Args:
        model: the model to adapt.
        folder: the folder with `adapter_config.json` and `adapter_model.safetensors`.

    Returns:
        The adapter, in float32 or wider, for `merge` or `Trainer`.

    Raises:
        SourceError: one of the files is missing, or they were replaced while they were read.
        ConfigError: a field is wrong, or the settings do not fit the model.
        UnsupportedConfigError: a field requests something that is not implemented.
        WeightsFileError: the weights are damaged.
        CheckpointMismatchError: a tensor is missing, unexpected, of the wrong shape or not finite.
    """
    folder = os.fspath(folder)
    config, path = os.path.join(folder, ADAPTER_CONFIG), os.path.join(folder, ADAPTER_TENSORS)
    with unchanged(folder):
        fields = read_object_if_there(config)
        if fields is None or not os.path.lexists(path):
            raise SourceError(f"{folder}: expected {ADAPTER_CONFIG} and {ADAPTER_TENSORS}")
        try:
            lora = read_config(fields)
            expected = tensors(model, lora)
        except UnsupportedConfigError as reason:
            raise UnsupportedConfigError(f"{config}: {reason}") from None
        except MinibertError as reason:
            raise ConfigError(f"{config}: {reason}") from None
        with SafetensorsSource([path]) as source:
            return Adapter(lora, read_exactly(source, path, expected, wide_dtype))


def tensors(model: PretrainedModel, lora: LoRA) -> dict[str, Expected]:
    """Returns the expected tensors of an adapter's file, by name."""
    found = {}
    for path, leaf in saved_leaves(model, lora).items():
        name = leaf.name.removeprefix(model.tensor_prefix)
        found[f"{PREFIX}{name}"] = leaf.expected._replace(path=path)
    for site in sites(model, lora):
        for path, shape in site.factors.items():
            found[f"{PREFIX}{path}.weight"] = Expected(path, shape[::-1], True)
    return found


def config_fields(model: PretrainedModel, lora: LoRA) -> dict[str, Any]:
    """Returns the contents of `adapter_config.json`, with the model's defaults filled in."""
    return {
        **vars(lora),
        "target_modules": target_names(model, lora),
        "fan_in_fan_out": any(site.fan_in_fan_out for site in sites(model, lora)),
        "rank_pattern": dict(lora.rank_pattern),
        "alpha_pattern": dict(lora.alpha_pattern),
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
