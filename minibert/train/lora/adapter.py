"""LoRA: training of low-rank updates that are added to a model's kernels.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685; settings, names
and numbers are those of PEFT.

It is implemented as a reparametrisation: a training step uses the kernels
`kernel + scaling · lora_A lora_B`, where `kernel` is frozen and the factors are trained, and the
modules are unchanged. Only where that is not the same, or not wanted (see `layers`), are modules
replaced by others that compute an adapter's outputs beside their own.
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from minibert.errors import InputError, UnsupportedConfigError, shown
from minibert.models.base import Model, PretrainedModel
from minibert.nn.numerics import common_dtype, wide_dtype
from minibert.nn.tree import Structure, parameters
from minibert.train.lora.config import DRAWN, LoRA
from minibert.train.lora.layers import MAGNITUDES, AdaptedEmbed, AdaptedLinear, updated_kernel
from minibert.train.lora.sites import (
    TOKENS,
    Site,
    shapes,
    sites,
    tied_sites,
    token_rows,
    whole_leaves,
)

Arrays = Mapping[str, Any]  # by path
Rows = Mapping[str, tuple[int, ...]]  # tokens, by the path of their embedding matrix
ZEROS = ("lora_B", "lora_bias", "lora_embedding_A")  # so that an adapter starts without an effect


@dataclasses.dataclass(frozen=True)
class Adapter:
    """The parameters that LoRA trains, without the model that they adapt.

    Attributes:
        config: the settings.
        params: `<module>.lora_A` `(in, r)` and `<module>.lora_B` `(r, out)` for every linear layer,
            `<module>.lora_embedding_A` and `….lora_embedding_B` for every embedding matrix, further
            arrays `<module>.lora_…` `(out,)` if the settings request them, the rows of trained
            tokens, `<module>.trainable_tokens_delta`, and the biases and the parameters of
            `modules_to_save`, by their own paths.
    """

    config: LoRA
    params: Arrays


def init_adapter(model: PretrainedModel, lora: LoRA, *, seed: int = 0) -> Adapter:
    """Returns a newly initialised adapter, which by default does not change the model's outputs.

    Args:
        model: the model to adapt.
        lora: the settings.
        seed: the random seed; the numbers of a layer do not depend on which others are adapted.

    Raises:
        InputError: the settings do not fit the model.
        UnsupportedConfigError: only PEFT initialises an adapter so.
    """
    if lora.init_lora_weights not in DRAWN:
        raise UnsupportedConfigError(
            f"init_lora_weights: {lora.init_lora_weights!r} is implemented only for adapters that "
            "are loaded"
        )
    arrays, key = parameters(model), jax.random.key(seed)
    params = {path: arrays[path] for path in whole_leaves(model, lora)}
    for path, rows in token_rows(model, lora).items():
        matrix = arrays[f"{path}.embedding"][jnp.asarray(rows)]
        params[f"{path}.{TOKENS}"] = matrix.astype(wide_dtype(matrix.dtype))
    for site in sites(model, lora):
        kernel = arrays[site.kernel]
        dtype = wide_dtype(kernel.dtype)
        found = {}
        for path, shape in site.factors.items():
            name = path.removeprefix(f"{site.path}.")
            own = jax.random.fold_in(key, zlib.crc32(path.encode()))
            found[name] = _drawn(name, own, shape, dtype, lora, site.rank)
        if MAGNITUDES in found:
            rest = {name: array for name, array in found.items() if name != MAGNITUDES}
            whole = updated_kernel(kernel.astype(dtype), rest, site.scaling)
            found[MAGNITUDES] = jnp.linalg.norm(whole, axis=0)
        params |= {f"{site.path}.{name}": array for name, array in found.items()}
    return Adapter(lora, params)


def _drawn(
    name: str, key: Array, shape: tuple[int, ...], dtype: Any, lora: LoRA, rank: int
) -> Array:
    """Returns new numbers for an array of an adapter, drawn as by PEFT."""
    if name == MAGNITUDES or (lora.init_lora_weights is not False and name in ZEROS):
        return jnp.zeros(shape, dtype)
    if name.startswith("lora_embedding"):
        return jax.random.normal(key, shape, dtype)
    if lora.init_lora_weights == "gaussian":
        return jax.random.normal(key, shape, dtype) / rank
    # torch.nn.Linear's initialisation: He et al., arXiv:1502.01852, with a = √5
    bound = (rank if name == "lora_bias" else shape[0]) ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def trained_adapter(model: PretrainedModel, given: object, seed: int) -> Adapter:
    """Returns the adapter to train: a new one for a `LoRA`, or the `Adapter` passed.

    Raises:
        InputError: the adapter does not fit the model.
    """
    adapter = init_adapter(model, given, seed=seed) if isinstance(given, LoRA) else given
    if not isinstance(adapter, Adapter):
        raise InputError(f"lora: expected a LoRA or an Adapter, found {shown(given)}")
    check_adapter(model, adapter)
    return adapter


@dataclasses.dataclass(frozen=True)
class Form:
    """A form in which a model is computed with an adapter.

    Attributes:
        model: the model, or one with adapted layers.
        combine: a function from trained and frozen arrays, by path, to all arrays of `model`.
    """

    model: Any
    combine: Callable[[Arrays, Arrays], dict[str, Array]]


def forms(model: PretrainedModel, adapter: Adapter) -> tuple[Form, Form]:
    """Returns the forms of training and of evaluation: merged, or attached where it must be.

    An embedding matrix is not merged in training, because its update has as many rows as tokens.
    """
    lora = adapter.config
    merged = Form(model, combiner(model, lora))
    embeddings = any(site.embedding for site in sites(model, lora))
    if not embeddings and not lora.lora_dropout:
        return merged, merged
    attached = Form(attach(model, adapter), functools.partial(_replaced, token_rows(model, lora)))
    return attached, attached if tied_sites(model, lora) else merged


def combiner(model: PretrainedModel, lora: LoRA) -> Callable[[Arrays, Arrays], dict[str, Array]]:
    """Returns a function that combines trained and frozen arrays into all of the model's arrays."""
    return functools.partial(_combined, sites(model, lora), token_rows(model, lora))


def _replaced(rows: Rows, params: Arrays, frozen: Arrays) -> dict[str, Array]:
    """Returns frozen and trained arrays, with the trained rows in their matrices."""
    arrays = {**frozen, **params}
    for path, tokens in rows.items():
        matrix, trained = arrays[f"{path}.embedding"], arrays.pop(f"{path}.{TOKENS}")
        places = jnp.asarray(tokens)
        arrays[f"{path}.embedding"] = matrix.at[places].set(trained.astype(matrix.dtype))
    return arrays


def _combined(
    adapted: tuple[Site, ...], rows: Rows, params: Arrays, frozen: Arrays
) -> dict[str, Array]:
    arrays = _replaced(rows, params, frozen)
    for site in adapted:
        factors = site.taken(arrays)
        arrays[site.kernel] = updated_kernel(arrays[site.kernel], factors, site.scaling)
        if "lora_bias" in factors:
            bias = arrays[f"{site.path}.bias"]
            more = site.scaling * factors["lora_bias"].reshape(bias.shape)
            dtype = common_dtype(bias.dtype, more.dtype)
            arrays[f"{site.path}.bias"] = bias.astype(dtype) + more.astype(dtype)
    return arrays


def merge(model: PretrainedModel, adapter: Adapter) -> Any:
    """Returns a model with an adapter merged into its kernels.

    Args:
        model: the model that the adapter was trained on; it is not changed.
        adapter: the adapter.

    Returns:
        A model of the same class and dtypes; it shares the parameters that are not adapted.

    Raises:
        InputError: the adapter does not fit the model, or adapts an embedding matrix to which the
            output is tied.
    """
    check_adapter(model, adapter)
    if tied := tied_sites(model, adapter.config):
        path, copy = next(iter(tied.items()))
        raise InputError(
            f"target_modules: {path}: expected no embedding matrix to which {copy} is tied, which "
            "the adapter does not adapt; use attach"
        )
    arrays = parameters(model)
    merged = combiner(model, adapter.config)(adapter.params, arrays)
    return Structure(model).build(
        {path: merged[path].astype(array.dtype) for path, array in arrays.items()}
    )


def attach(model: Model, adapter: Adapter) -> Model:
    """Returns a model that computes with an adapter, which is not merged into the kernels.

    Args:
        model: the model that the adapter was trained on; it is not changed.
        adapter: the adapter.

    Returns:
        A model of the same class. It shares all parameters of `model` except those that the adapter
        replaces, so each of several adapters takes only the memory of its own arrays, and the
        programs compiled for one are used for others with the same settings. It cannot be saved;
        `merge` the adapter for that.

    Raises:
        InputError: the adapter does not fit the model.
    """
    check_adapter(model, adapter)
    arrays = parameters(model)
    rest = _replaced(token_rows(model, adapter.config), adapter.params, arrays)
    whole = Structure(model).build(
        {path: rest.pop(path).astype(array.dtype) for path, array in arrays.items()}
    )
    for site in sites(model, adapter.config):
        parent, name = _owner(whole, site.path)
        layer, factors = _child(parent, name), site.taken(rest)
        if site.embedding:
            layer = AdaptedEmbed(layer, factors, site.scaling)
        else:
            layer = AdaptedLinear(layer, factors, site.scaling, adapter.config.lora_dropout)
        if isinstance(parent, nnx.List):
            parent[int(name)] = layer
        else:
            setattr(parent, name, layer)
    return whole.eval()


def _owner(model: nnx.Module, path: str) -> tuple[Any, str]:
    *parents, name = path.split(".")
    return functools.reduce(_child, parents, model), name


def _child(owner: Any, name: str) -> Any:
    return owner[int(name)] if isinstance(owner, nnx.List) else getattr(owner, name)


def check_adapter(model: PretrainedModel, adapter: Adapter) -> None:
    """Checks that an adapter has the arrays that its settings require for a model.

    Raises:
        InputError: an array is missing, unexpected or of the wrong shape.
    """
    expected = shapes(model, adapter.config)
    found = {path: tuple(array.shape) for path, array in adapter.params.items()}
    for path in sorted(expected.keys() | found.keys()):
        one, other = expected.get(path), found.get(path)
        if one != other:
            found_text = "no such array" if other is None else other
            raise InputError(f"adapter: {path}: expected {one or 'none'}, found {found_text}")
