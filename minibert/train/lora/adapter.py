"""LoRA: training of low-rank updates that are added to a model's kernels.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685; settings, names
and numbers are those of PEFT.

It is implemented as a reparametrisation: a training step uses the kernels
`kernel + scaling · lora_A lora_B`, where `kernel` is frozen and the factors are trained, and the
modules are unchanged. Activations never pass through an adapter alone, so training with
`lora_dropout`, which drops an adapter's inputs, is not implemented.
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

from minibert.checkpoint.leaves import Leaf
from minibert.checkpoint.saving import file_leaves
from minibert.errors import InputError, UnsupportedConfigError, shown
from minibert.models.base import PretrainedModel
from minibert.nn.layers import Conv1D, TiedLinear
from minibert.nn.numerics import common_dtype, wide_dtype
from minibert.nn.tree import Structure, parameters, submodules
from minibert.train.lora.config import LoRA

Arrays = Mapping[str, Any]  # by path
ALL_LINEAR = "all-linear"


@dataclasses.dataclass(frozen=True)
class Adapter:
    """The parameters that LoRA trains, without the model that they adapt.

    Attributes:
        config: the settings.
        params: `<module>.lora_A` `(in, r)` and `<module>.lora_B` `(r, out)` for every target, and
            the parameters of `modules_to_save`, by their own paths.
    """

    config: LoRA
    params: Arrays


@dataclasses.dataclass(frozen=True)
class Site:
    """A linear layer that gets an adapter.

    Attributes:
        path: the path of the layer.
        shape: the shape of the kernel, `(in, out)`.
        rank: the rank of the adapter.
        scaling: the factor by which the product of `lora_A` and `lora_B` is multiplied.
        fan_in_fan_out: whether checkpoints store the kernel as (in, out).
    """

    path: str
    shape: tuple[int, int]
    rank: int
    scaling: float
    fan_in_fan_out: bool

    @property
    def factors(self) -> dict[str, tuple[int, int]]:
        """The shapes of `lora_A` and `lora_B` by path, in this order."""
        inputs, outputs = self.shape
        return {
            f"{self.path}.lora_A": (inputs, self.rank),
            f"{self.path}.lora_B": (self.rank, outputs),
        }


def sites(model: PretrainedModel, lora: LoRA) -> tuple[Site, ...]:
    """Returns the linear layers that get an adapter.

    Raises:
        InputError: no layer is adapted; a target is not a linear layer, or has no kernel; or
            `fan_in_fan_out` is wrong.
    """
    targets = target_names(model, lora)
    chosen = {path: m for path, m in submodules(model) if lora.selects(path, targets)}
    if not chosen:
        raise InputError(f"target_modules: {shown(targets)}: no module to adapt has such a name")
    for path, module in chosen.items():
        if not isinstance(module, nnx.Linear) or module.kernel is None:
            tied = " without a kernel of its own" if isinstance(module, nnx.Linear) else ""
            found = f"{type(module).__name__}{tied}"
            raise InputError(f"target_modules: {path}: expected a linear layer, found {found}")
    found_sites = tuple(
        Site(path, m.kernel.shape, lora.rank(path), lora.scaling(path), isinstance(m, Conv1D))
        for path, m in chosen.items()
    )
    if lora.fan_in_fan_out not in {None, *(site.fan_in_fan_out for site in found_sites)}:
        path, kind = found_sites[0].path, type(chosen[found_sites[0].path]).__name__
        raise InputError(
            f"fan_in_fan_out: expected {not lora.fan_in_fan_out} or None, because {path} is a "
            f"{kind}; found {lora.fan_in_fan_out}"
        )
    return found_sites


def target_names(model: PretrainedModel, lora: LoRA) -> str | tuple[str, ...]:
    """Returns `target_modules`: the family's for None, and the layers' paths for `all-linear`."""
    if lora.target_modules is None:
        return model.lora_targets
    if lora.target_modules != ALL_LINEAR:
        return lora.target_modules
    return tuple(
        path
        for path, module in submodules(model)
        if isinstance(module, nnx.Linear)
        and not isinstance(module, TiedLinear)
        and not lora.saves_within(path)  # PEFT fails where a task's head is also named as a target
    )


def saved_leaves(model: PretrainedModel, lora: LoRA) -> dict[str, Leaf]:
    """Returns the parameters of `modules_to_save`, by path.

    A name that matches nothing is ignored if another one matches, because PEFT lists all possible
    names of a head.

    Raises:
        InputError: no name matches; or one of the parameters is tied to another one.
    """
    prefix = model.tensor_prefix
    whole = tuple(f"{path}." for path, _ in submodules(model) if lora.saves(path))
    leaves = {leaf.path.removeprefix(prefix): leaf for leaf in file_leaves(model).values()}
    found = {path: leaf for path, leaf in leaves.items() if path.startswith(whole)}
    if lora.modules_to_save and not found:
        names = shown(lora.modules_to_save)
        raise InputError(f"modules_to_save: {names}: no module with parameters has such a name")
    present = {leaf.name for leaf in leaves.values()}
    parted = {leaf.name: path for path, leaf in found.items()}
    for copy, original in model.tied.items():
        if original in parted and copy not in present:
            raise InputError(f"modules_to_save: {parted[original]}: {copy} is tied to it")
    return found


def init_adapter(model: PretrainedModel, lora: LoRA, *, seed: int = 0) -> Adapter:
    """Returns a newly initialised adapter, which by default does not change the model's outputs.

    Args:
        model: the model to adapt.
        lora: the settings.
        seed: the random seed; the numbers of a layer do not depend on which others are adapted.

    Raises:
        InputError: the settings do not fit the model.
    """
    arrays, key = parameters(model), jax.random.key(seed)
    params = {path: arrays[path] for path in saved_leaves(model, lora)}
    for site in sites(model, lora):
        dtype = wide_dtype(arrays[f"{site.path}.kernel"].dtype)
        for path, shape in site.factors.items():
            own = jax.random.fold_in(key, zlib.crc32(path.encode()))
            if path.endswith("lora_B") and lora.init_lora_weights is not False:
                params[path] = jnp.zeros(shape, dtype)
            elif lora.init_lora_weights == "gaussian":
                params[path] = jax.random.normal(own, shape, dtype) / site.rank
            else:  # torch.nn.Linear's initialisation: He et al., arXiv:1502.01852, with a = √5
                bound = shape[0] ** -0.5
                params[path] = jax.random.uniform(own, shape, dtype, -bound, bound)
    return Adapter(lora, params)


def trained_adapter(model: PretrainedModel, given: object, seed: int) -> Adapter:
    """Returns the adapter to train: a new one for a `LoRA`, or the `Adapter` passed.

    Raises:
        InputError: the adapter does not fit the model.
        UnsupportedConfigError: the adapter has `lora_dropout`.
    """
    adapter = init_adapter(model, given, seed=seed) if isinstance(given, LoRA) else given
    if not isinstance(adapter, Adapter):
        raise InputError(f"lora: expected a LoRA or an Adapter, found {shown(given)}")
    if adapter.config.lora_dropout:
        raise UnsupportedConfigError(
            f"lora_dropout: {adapter.config.lora_dropout} is not implemented in training (only 0, "
            "because adapters are added to kernels and have no inputs of their own to drop)"
        )
    check_adapter(model, adapter)
    return adapter


def combiner(model: PretrainedModel, lora: LoRA) -> Callable[[Arrays, Arrays], dict[str, Array]]:
    """Returns a function that combines trained and frozen arrays into all of the model's arrays."""
    return functools.partial(_combined, sites(model, lora))


def _combined(adapted: tuple[Site, ...], params: Arrays, frozen: Arrays) -> dict[str, Array]:
    arrays = {**frozen, **params}
    for site in adapted:
        before, after = (arrays.pop(path) for path in site.factors)
        kernel = f"{site.path}.kernel"
        after = after.reshape(len(after), *arrays[kernel].shape[1:])  # a sharded kernel may be 3-D
        # on a TPU, the default precision of products is lower
        product = jnp.tensordot(before, after, 1, precision=jax.lax.Precision.HIGHEST)
        added = jnp.asarray(site.scaling, product.dtype) * product
        dtype = common_dtype(arrays[kernel].dtype, added.dtype)
        arrays[kernel] = arrays[kernel].astype(dtype) + added.astype(dtype)
    return arrays


def merge(model: PretrainedModel, adapter: Adapter) -> Any:
    """Returns a model with an adapter merged into its kernels.

    Args:
        model: the model that the adapter was trained on; it is not changed.
        adapter: the adapter.

    Returns:
        A model of the same class and dtypes; it shares the parameters that are not adapted.

    Raises:
        InputError: the adapter does not fit the model.
    """
    check_adapter(model, adapter)
    arrays = parameters(model)
    merged = combiner(model, adapter.config)(adapter.params, arrays)
    return Structure(model).build(
        {path: merged[path].astype(array.dtype) for path, array in arrays.items()}
    )


def check_adapter(model: PretrainedModel, adapter: Adapter) -> None:
    """Checks that an adapter has the arrays that its settings require for a model.

    Raises:
        InputError: an array is missing, unexpected or of the wrong shape.
    """
    leaves = saved_leaves(model, adapter.config)
    expected = {path: leaf.variable.shape for path, leaf in leaves.items()}
    for site in sites(model, adapter.config):
        expected |= site.factors
    found = {path: tuple(array.shape) for path, array in adapter.params.items()}
    for path in sorted(expected.keys() | found.keys()):
        one, other = expected.get(path), found.get(path)
        if one != other:
            found_text = "no such array" if other is None else other
            raise InputError(f"adapter: {path}: expected {one or 'none'}, found {found_text}")
