"""Reading and writing of sentence-transformers folders.

`modules.json` lists the modules; each has a folder with a config.json, and a Dense also with
weights. Both schemas of a Pooling are supported. A missing, unknown or contradictory field raises
an error that names the file and the field; nothing is replaced by a default.
"""

import contextlib
import os
import re
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jax.typing import DTypeLike

from minibert.checkpoint.agreement import tree_faults
from minibert.checkpoint.files import (
    BODY_CONFIGS,
    MODULE_KINDS,
    MODULES,
    TOP_CONFIG,
    encoder_paths,
    unchanged,
)
from minibert.checkpoint.leaves import read_exactly
from minibert.checkpoint.saving import (
    check_saved,
    file_leaves,
    write_model,
    write_tensors,
    write_tokenizer,
)
from minibert.checkpoint.sources import SAFETENSORS, open_source
from minibert.core.atomic import atomic_folder
from minibert.core.fields import COUNT, SWITCH, refuse
from minibert.core.strict_json import read_json, read_object_if_there, write_json
from minibert.core.types import Path
from minibert.embedding.modules import Dense, Normalize, Pooling, SentenceModel, pooling_modes
from minibert.embedding.settings import SentenceSettings, read_from
from minibert.errors import (
    CheckpointMismatchError,
    ConfigError,
    InputError,
    UnsupportedConfigError,
    shown,
    writing,
)
from minibert.nn.activations import ACTIVATIONS
from minibert.nn.layers import Module

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A relative path of plain names: no hidden folder, no "..".
_PLAIN = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
INNER = re.compile(rf"({_PLAIN}(/{_PLAIN})*/?)?")

# The older schema's switches, in the order of concatenation.
SWITCHES: dict[str, str] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# The fields for a module's input and output, which have only one supported value.
NAMES = dict.fromkeys(("module_input_name", "module_output_name"), ("sentence_embedding", None))
WIDTHS = ("word_embedding_dimension", "embedding_dimension")
# PyTorch's activations without arguments, by class name.
TORCH_ACTIVATIONS: dict[str, str] = {
    "Identity": "linear",
    "Tanh": "tanh",
    "ReLU": "relu",
    "ReLU6": "relu6",
    "GELU": "gelu",
    "SiLU": "silu",
    "Sigmoid": "sigmoid",
    "LeakyReLU": "leaky_relu",
    "Mish": "mish",
    "Hardswish": "hardswish",
}


class Entry(NamedTuple):
    """An entry of modules.json: the class name, and the module's path inside the folder."""

    kind: str
    path: str


@contextlib.contextmanager
def one_encoder_state(folder: str) -> Generator[list[Entry]]:
    """Guarantees that a folder and its modules do not change within the block; see `unchanged`.

    Yields:
        The modules; an empty list if the folder has no modules.json.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(unchanged(folder))
        there = os.path.lexists(os.path.join(folder, MODULES))
        entries = read_entries(folder) if there else []
        for entry in entries:
            if entry.path:
                stack.enter_context(unchanged(os.path.join(folder, entry.path)))
        yield entries


def read_entries(folder: str) -> list[Entry]:
    """Returns the modules of a folder in order, the Transformer first.

    Raises:
        ConfigError: if modules.json is not a valid list of modules.
        UnsupportedConfigError: if minibert does not implement its modules or their order.
    """
    where = os.path.join(folder, MODULES)
    data = read_json(where)
    if not isinstance(data, list) or not data:
        raise ConfigError(f"{where}: expected a list of modules, found {shown(data)}")
    entries = [_entry(item, f"{where}: module {place}") for place, item in enumerate(data)]
    numbers = [item.get("idx", place) for place, item in enumerate(data)]
    if any(type(number) is not int for number in numbers) or numbers != sorted(set(numbers)):
        raise ConfigError(f"{where}: idx: expected 0, 1, 2, …, found {shown(numbers)}")
    kinds = [entry.kind for entry in entries]
    first = ["Transformer", "Pooling"]
    if kinds[:2] != first or any(kind in first for kind in kinds[2:]):
        raise UnsupportedConfigError(
            f"{where}: expected a Transformer, a Pooling, then any of Dense and Normalize; found "
            f"{', '.join(kinds)}"
        )
    return entries


def _entry(item: object, where: str) -> Entry:
    if not isinstance(item, dict):
        raise ConfigError(f"{where}: expected an object of fields, found {shown(item)}")
    for name in ("type", "path"):
        if not isinstance(item.get(name), str):
            raise ConfigError(f"{where}: {name}: expected a text, found {shown(item.get(name))}")
    for name in item.keys() - {"idx", "name", "path", "type"}:
        if name != "kwargs" or item[name]:
            raise UnsupportedConfigError(f"{where}: {name}: {shown(item[name])} is not implemented")
    library, kind = item["type"].partition(".")[0], item["type"].rpartition(".")[2]
    path = item["path"]
    if library != "sentence_transformers" or kind not in MODULE_KINDS:
        raise UnsupportedConfigError(
            f"{where}: type: {shown(item['type'])} is not implemented; expected "
            f"sentence_transformers' {', '.join(MODULE_KINDS)}"
        )
    if not INNER.fullmatch(path):
        raise ConfigError(f"{where}: path: expected a relative path, found {shown(path)}")
    return Entry(kind, path.rstrip("/"))


def read_module(
    folder: str,
    entry: Entry,
    features: int,
    *,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike | None = None,
    allow_pickle: bool = False,
) -> Module:
    """Reads a module other than the Transformer.

    Args:
        folder: the top folder.
        entry: the module's entry in modules.json.
        features: the width of the vectors passed to it.
        dtype: the dtype of computation; None for the parameters' dtype.
        param_dtype: the dtype of parameters; None to keep each as stored in the file.
        allow_pickle: whether weights may be a pickle.

    Raises:
        ConfigError: if its config.json is missing, invalid or does not fit the previous module.
        UnsupportedConfigError: if its config.json requests a feature that is not implemented.
        WeightsFileError: if its weights are damaged.
        CheckpointMismatchError: if its weights do not match its config.
    """
    home = os.path.join(folder, entry.path)
    where = os.path.join(home, "config.json")
    data = read_object_if_there(where)
    if data is None:  # an older Normalize has no config, and git keeps no empty folder
        data = {} if entry.kind == "Normalize" else read_json(where)  # raises that it is missing
    match entry.kind:
        case "Pooling":
            module = _pooling(data, where)
        case "Dense":
            module = _dense(data, where, dtype, param_dtype)
        case _:
            refuse(data, NAMES, (), f"{where}: ")
            module = Normalize()
    taken = getattr(module, "in_features", features)
    if taken != features:
        name = next(name for name in (*WIDTHS, "in_features") if name in data)
        raise ConfigError(
            f"{where}: {name}: expected {features}, the width of its input; found {taken}"
        )
    if isinstance(module, Dense):
        _fill(module, home, param_dtype, allow_pickle)
    return module


def _pooling(data: dict[str, Any], where: str) -> Pooling:
    refuse(data, {}, (*SWITCHES, *WIDTHS, "pooling_mode", "include_prompt"), f"{where}: ")
    widths = [COUNT.check(f"{where}: {name}", data[name]) for name in WIDTHS if name in data]
    if not widths:
        raise ConfigError(f"{where}: {WIDTHS[0]}: missing")
    width = widths[0]
    if width != widths[-1]:
        raise ConfigError(f"{where}: {WIDTHS[0]}: {width}, but {WIDTHS[1]} is {widths[-1]}")
    include = SWITCH.check(f"{where}: include_prompt", data.get("include_prompt", True))
    on = tuple(
        mode
        for name, mode in SWITCHES.items()
        if SWITCH.check(f"{where}: {name}", data.get(name, False))
    )
    with read_from(where):
        modes = pooling_modes("pooling_mode", data.get("pooling_mode", on or "none switched on"))
    if SWITCHES.keys() & data.keys() and {*on} != {*modes}:
        raise ConfigError(
            f"{where}: pooling_mode: {', '.join(modes)}, but the switches pooling_mode_… select "
            f"{', '.join(on) or 'none'}"
        )
    return Pooling(modes, width, include)


def _dense(
    data: dict[str, Any], where: str, dtype: DTypeLike | None, param_dtype: DTypeLike | None
) -> Dense:
    known = ("in_features", "out_features", "bias", "activation_function")
    refuse(data, {**NAMES, "use_residual": (False, None)}, known, f"{where}: ")
    function = data.get("activation_function")
    if not isinstance(function, str):
        raise ConfigError(
            f"{where}: activation_function: expected the name of a class, found {shown(function)}"
        )
    name = function.rpartition(".")[2]
    if not function.startswith("torch.nn.") or name not in TORCH_ACTIVATIONS:
        raise UnsupportedConfigError(
            f"{where}: activation_function: {shown(function)} is not implemented; expected "
            f"torch.nn's {', '.join(TORCH_ACTIVATIONS)}"
        )
    return Dense(
        COUNT.check(f"{where}: in_features", data.get("in_features")),
        COUNT.check(f"{where}: out_features", data.get("out_features")),
        bias=SWITCH.check(f"{where}: bias", data.get("bias")),
        activation=TORCH_ACTIVATIONS[name],
        rngs=None,
        dtype=dtype,
        param_dtype=param_dtype or np.float32,
    )


def _fill(dense: Dense, home: str, param_dtype: DTypeLike | None, allow_pickle: bool) -> None:
    """Fills a tree of shapes with the weights in its folder, which must match exactly."""
    own = file_leaves(dense)
    expected = {name: leaf.expected for name, leaf in own.items()}
    with open_source(home, allow_pickle=allow_pickle) as source:
        arrays = read_exactly(
            source,
            home,
            expected,
            lambda stored: param_dtype or stored,
            "; or pass param_dtype=jnp.float32",
        )
    for leaf in own.values():
        leaf.variable.set_value(arrays[leaf.path])


SHARD = 5 * 10**9  # maximum bytes of a file, as in `PretrainedModel.save_pretrained`
TYPES = "sentence_transformers.models."


def save_encoder(
    model: SentenceModel,
    tokenizer: "PreTrainedTokenizerBase",
    settings: SentenceSettings,
    folder: Path,
    *,
    overwrite: bool = False,
) -> None:
    """Writes a sentence-transformers folder; see `SentenceEncoder.save_pretrained`."""
    if model.layers != "last":
        raise InputError(
            f"layers: {model.layers!r} cannot be saved: sentence-transformers supports only the "
            "last hidden state"
        )
    kinds = [type(module).__name__ for module in model.chain]
    names = [f"{place}_{kind}" for place, kind in enumerate(kinds, start=1)]
    modules = dict(zip(names, model.chain, strict=True))

    def check(written: str) -> None:
        check_saved(model.transformer, written)
        for name, module in modules.items():
            if isinstance(module, Dense):
                check_saved(module, os.path.join(written, name))

    with (
        atomic_folder(folder, owned=encoder_paths, overwrite=overwrite, check=check) as new,
        writing(folder),
    ):
        write_model(model.transformer, new, SHARD)
        write_tokenizer(tokenizer, new)
        write_json(settings.body_config(), os.path.join(new, BODY_CONFIGS[0]))
        write_json(settings.top_config(), os.path.join(new, TOP_CONFIG))
        for name, module in modules.items():
            _write_module(module, os.path.join(new, name))
        entries = zip(["Transformer", *kinds], ["", *names], strict=True)
        lines = [
            {"idx": place, "name": str(place), "path": path, "type": f"{TYPES}{kind}"}
            for place, (kind, path) in enumerate(entries)
        ]
        write_json(lines, os.path.join(new, MODULES))


def _write_module(module: Any, home: str) -> None:
    os.mkdir(home)
    config: dict[str, Any] = {}
    match module:
        case Pooling():
            config = {"include_prompt": module.include_prompt}
            if list(module.modes) == [mode for mode in SWITCHES.values() if mode in module.modes]:
                config |= {name: mode in module.modes for name, mode in SWITCHES.items()}
                config["word_embedding_dimension"] = module.in_features
            else:
                config["pooling_mode"] = list(module.modes)
                config["embedding_dimension"] = module.in_features
        case Dense():
            widths = (module.in_features, module.out_features)
            config = {
                "in_features": module.in_features,
                "out_features": module.out_features,
                "bias": module.use_bias,
                "activation_function": _torch_name(module.activation_function.name),
            }
            expected = Dense(*widths, bias=module.use_bias, activation="linear", rngs=None)
            expected.activation_function = module.activation_function
            if faults := tree_faults(module, expected):
                raise CheckpointMismatchError(f"{home}: differs from its settings", faults)
            write_tensors(file_leaves(module), os.path.join(home, SAFETENSORS))
    write_json(config, os.path.join(home, "config.json"))


def _torch_name(name: str) -> str:
    """Returns the full name of torch.nn's class for an activation."""
    function = ACTIVATIONS[name]
    known = [cls for cls, ours in TORCH_ACTIVATIONS.items() if ACTIVATIONS[ours] is function]
    if not known:
        raise InputError(
            f"activation: {name!r} cannot be saved: torch.nn has no class for it without arguments"
        )
    home = "linear" if known[0] == "Identity" else "activation"
    return f"torch.nn.modules.{home}.{known[0]}"
