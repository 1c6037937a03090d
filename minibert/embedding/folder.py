"""Reading of sentence-transformers folders.

`modules.json` lists the modules; each has a folder with a config.json, and with weights if it has
parameters. Both schemas of a Pooling are supported. A missing, unknown or contradictory field
raises an error that names the file and the field; nothing is replaced by a default.
"""

import contextlib
import os
import re
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.typing import DTypeLike

from minibert.checkpoint.config import Config
from minibert.checkpoint.files import MODULE_KINDS, MODULES, unchanged
from minibert.checkpoint.leaves import read_exactly
from minibert.checkpoint.saving import file_leaves
from minibert.checkpoint.sources import open_source
from minibert.core.fields import COUNT, PROBABILITY, SWITCH, refuse, whole
from minibert.core.strict_json import read_json, read_object_if_there
from minibert.embedding.modules import (
    AFTER,
    BEFORE,
    Dense,
    LayerNorm,
    Normalize,
    Pooling,
    WeightedLayerPooling,
    names_of,
    pooling_modes,
    token_features,
)
from minibert.embedding.settings import read_from
from minibert.errors import ConfigError, UnsupportedConfigError, shown
from minibert.nn.layers import Dropout, Module
from minibert.nn.tree import parameters

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
# The fields for the input and the output of a Dense or Normalize; see `_check_names`.
NAMES = ("module_input_name", "module_output_name")
WIDTHS = ("word_embedding_dimension", "embedding_dimension")
WIDTH_FIELDS = (*WIDTHS, "in_features", "dimension")  # of any module
# PyTorch's elementwise activations without required arguments, by class name.
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
    "ELU": "elu",
    "CELU": "elu",
    "SELU": "selu",
    "PReLU": "prelu",
    "Hardtanh": "hardtanh",
    "Hardsigmoid": "hardsigmoid",
    "Hardshrink": "hardshrink",
    "Softshrink": "softshrink",
    "Tanhshrink": "tanhshrink",
    "Softplus": "softplus",
    "Softsign": "softsign",
    "LogSigmoid": "logsigmoid",
}
# Modules that are not implemented, and what replaces them.
_ROUTES = (
    "; save each of its routes as an encoder with sentence-transformers, SentenceTransformer("
    "modules=[*model[0].sub_modules['query'], *list(model)[1:]]).save('queries'), and load one for "
    "queries and one for documents"
)
ELSEWHERE = {
    "Router": _ROUTES,
    "Asym": _ROUTES,
    "StaticEmbedding": "; it has no transformer: model2vec computes it, without PyTorch",
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
    first, *kinds = [entry.kind for entry in entries]
    place = kinds.index("Pooling") if "Pooling" in kinds else len(kinds)
    sides = ((kinds[:place], BEFORE), (kinds[place + 1 :], AFTER))
    fits = all(kind in names_of(known).split(", ") for kinds, known in sides for kind in kinds)
    if first != "Transformer" or place == len(kinds) or not fits:
        raise UnsupportedConfigError(
            f"{where}: expected a Transformer, any of {names_of(BEFORE)}, a Pooling, then any of "
            f"{names_of(AFTER)}; found {', '.join([first, *kinds])}"
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
        instead = f"; expected sentence_transformers' {', '.join(MODULE_KINDS)}"
        raise UnsupportedConfigError(
            f"{where}: type: {shown(item['type'])} is not implemented{ELSEWHERE.get(kind, instead)}"
        )
    if not INNER.fullmatch(path):
        raise ConfigError(f"{where}: path: expected a relative path, found {shown(path)}")
    return Entry(kind, path.rstrip("/"))


def read_modules(
    folder: str,
    entries: Sequence[Entry],
    config: Config,
    *,
    layers: str = "last",
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike | None = None,
    allow_pickle: bool = False,
) -> list[Module]:
    """Reads the modules other than the Transformer, in evaluation mode.

    Args:
        folder: the top folder.
        entries: the entries of modules.json, the Transformer's first.
        config: the transformer's config.
        layers: the hidden states from which token vectors are computed.
        dtype: the dtype of computation; None for the parameters' dtype.
        param_dtype: the dtype of parameters; None to keep each as stored in the file.
        allow_pickle: whether weights may be pickles.

    Raises:
        ConfigError: if a config.json is missing, invalid or does not fit the previous module.
        UnsupportedConfigError: if a config.json requests a feature that is not implemented.
        WeightsFileError: if weights are damaged.
        CheckpointMismatchError: if weights do not match their config.
    """
    features, chain, before = token_features(config, layers), [], True
    for entry in entries[1:]:
        home = os.path.join(folder, entry.path)
        where = os.path.join(home, "config.json")
        data = read_object_if_there(where)
        if data is None:  # an older Normalize has no config, and git keeps no empty folder
            data = {} if entry.kind == "Normalize" else read_json(where)  # raises: it is missing
        dtypes = {"dtype": dtype, "param_dtype": param_dtype or np.float32}
        match entry.kind:
            case "Pooling":
                module, before = _pooling(data, where), False
            case "Dense":
                module = _dense(data, where, before, dtypes)
            case "LayerNorm":
                refuse(data, {}, ("dimension",), f"{where}: ")
                width = COUNT.check(f"{where}: dimension", data.get("dimension"))
                module = LayerNorm(width, rngs=None, **dtypes)
            case "Dropout":
                refuse(data, {}, ("dropout",), f"{where}: ")
                rate = PROBABILITY.check(f"{where}: dropout", data.get("dropout"))
                module = Dropout(rate).eval()
            case "WeightedLayerPooling":
                module = _weighted(data, where, config, dtypes["param_dtype"])
            case _:
                refuse(data, {}, NAMES, f"{where}: ")
                _check_names(data, where, before)
                module = Normalize()
        taken = getattr(module, "in_features", features)
        if taken != features:
            name = next(name for name in WIDTH_FIELDS if name in data)
            raise ConfigError(
                f"{where}: {name}: expected {features}, the width of its input; found {taken}"
            )
        if parameters(module):
            _fill(module, home, param_dtype, allow_pickle)
        features = getattr(module, "out_features", features)
        chain.append(module)
    return chain


def _check_names(data: dict[str, Any], where: str, before: bool) -> None:
    """Checks the names of a module's input and output, which depend on its side of the Pooling."""
    expected, side = ("token_embeddings", "before") if before else ("sentence_embedding", "after")
    given = "sentence_embedding"  # the input's default; the output's is the input's name
    for name in NAMES:
        given = data[name] if data.get(name) is not None else given
        if given != expected:
            raise UnsupportedConfigError(
                f"{where}: {name}: expected {expected!r} {side} the Pooling, found {shown(given)}"
            )


def _width(data: dict[str, Any], where: str) -> int:
    widths = [COUNT.check(f"{where}: {name}", data[name]) for name in WIDTHS if name in data]
    if not widths:
        raise ConfigError(f"{where}: {WIDTHS[0]}: missing")
    if widths[0] != widths[-1]:
        raise ConfigError(f"{where}: {WIDTHS[0]}: {widths[0]}, but {WIDTHS[1]} is {widths[-1]}")
    return widths[0]


def _weighted(
    data: dict[str, Any], where: str, config: Any, param_dtype: DTypeLike
) -> WeightedLayerPooling:
    refuse(data, {}, (*WIDTHS, "layer_start", "num_hidden_layers"), f"{where}: ")
    if not config.output_hidden_states:
        raise UnsupportedConfigError(
            f"{where}: expected output_hidden_states true in the transformer's config.json, found "
            "false, with which sentence-transformers ignores this module; set it, or remove the "
            f"module from {MODULES}"
        )
    count = len(config.layer_paths)
    return WeightedLayerPooling(
        _width(data, where),
        whole(count, count).check(f"{where}: num_hidden_layers", data.get("num_hidden_layers")),
        whole(0, count).check(f"{where}: layer_start", data.get("layer_start")),
        rngs=None,
        param_dtype=param_dtype,
    )


def _pooling(data: dict[str, Any], where: str) -> Pooling:
    refuse(data, {}, (*SWITCHES, *WIDTHS, "pooling_mode", "include_prompt"), f"{where}: ")
    width = _width(data, where)
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


def _dense(data: dict[str, Any], where: str, before: bool, dtypes: dict[str, Any]) -> Dense:
    known = ("in_features", "out_features", "bias", "activation_function", "use_residual")
    refuse(data, {}, (*known, *NAMES), f"{where}: ")
    _check_names(data, where, before)
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
        use_residual=SWITCH.check(f"{where}: use_residual", data.get("use_residual", False)),
        rngs=None,
        **dtypes,
    )


def _fill(module: Module, home: str, param_dtype: DTypeLike | None, allow_pickle: bool) -> None:
    """Fills a tree of shapes with the weights in its folder, which must match exactly."""
    own = file_leaves(module)
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
