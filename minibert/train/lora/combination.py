"""Weighted combinations of several adapters of a model, as by PEFT's `add_weighted_adapter`."""

import dataclasses
import math
from collections.abc import Sequence

import jax.numpy as jnp
from flax.core import FrozenDict
from jax import Array

from minibert.core.checks import check_choice, whole
from minibert.core.fields import NUMBER
from minibert.errors import InputError, UnsupportedConfigError
from minibert.models.base import PretrainedModel
from minibert.train.lora.adapter import Adapter, check_adapter, sites

KINDS = ("cat", "svd", "linear")
Factors = tuple[Array, Array, float]  # lora_A, lora_B and the factor of their product


def weighted_adapter(
    model: PretrainedModel,
    adapters: Sequence[Adapter],
    weights: Sequence[float],
    *,
    combination_type: str = "cat",
    svd_rank: int | None = None,
) -> Adapter:
    """Returns one adapter whose update is the weighted sum of the updates of several.

    Args:
        model: the model that they adapt.
        adapters: the adapters. Each may adapt other layers.
        weights: the weight of each adapter, of any sign.
        combination_type: `cat` for the exact sum, whose rank is the sum of their ranks; `svd` for
            the best sum of a smaller rank; `linear` for weighted sums of the factors themselves,
            a rough approximation, for adapters of equal rank.
        svd_rank: the rank of an `svd`; None for the largest of theirs.

    Raises:
        InputError: an argument is wrong, or an adapter does not fit the model.
        UnsupportedConfigError: an adapter has more than factors: magnitudes (DoRA), biases,
            or modules that it trains whole.
    """
    check_choice("combination_type", combination_type, KINDS)
    if not adapters or len(adapters) != len(weights):
        raise InputError(
            f"weights: expected one for each of the {len(adapters)} adapters, at least one, found "
            f"{len(weights)}"
        )
    weights = [NUMBER.check("weights", weight, InputError) for weight in weights]
    for adapter in adapters:
        check_adapter(model, adapter)
    found: dict[str, list[Factors]] = {}
    for adapter, weight in zip(adapters, weights, strict=True):
        rest = dict(adapter.params)
        for site in sites(model, adapter.config):
            before, after, *more = site.factors
            if more:
                rest |= dict.fromkeys(more)
                break
            scale = weight * site.scaling
            found.setdefault(site.path, []).append((rest.pop(before), rest.pop(after), scale))
        if rest:
            raise UnsupportedConfigError(
                f"adapters: {min(rest)}: only products of two factors are combined"
            )
    ranks = [max(site.rank for site in sites(model, adapter.config)) for adapter in adapters]
    rank = {"cat": sum(ranks), "svd": max(ranks), "linear": max(ranks)}[combination_type]
    if combination_type == "svd" and svd_rank is not None:
        rank = whole("svd_rank", svd_rank, 1)
    config = dataclasses.replace(
        adapters[0].config,
        r=rank,
        lora_alpha=rank,
        use_rslora=False,
        target_modules=tuple(found),
        exclude_modules=None,
        layers_to_transform=None,
        layers_pattern=None,
        rank_pattern=FrozenDict(),
        alpha_pattern=FrozenDict(),
        init_lora_weights=True,
    )
    params = {}
    for site in sites(model, config):
        combined = _COMBINED[combination_type](site.path, found[site.path], rank)
        params |= dict(zip(site.factors, map(jnp.asarray, combined), strict=True))
    return Adapter(config, params)


def _cat(path: str, factors: list[Factors], rank: int) -> tuple[Array, Array]:
    before = jnp.concatenate([scale * one for one, _, scale in factors], axis=1)
    after = jnp.concatenate([other for _, other, _ in factors], axis=0)
    missing = rank - len(after)  # of adapters that leave this layer out
    return jnp.pad(before, ((0, 0), (0, missing))), jnp.pad(after, ((0, missing), (0, 0)))


def _linear(path: str, factors: list[Factors], rank: int) -> tuple[Array, Array]:
    if any(len(after) != rank for _, after, _ in factors):
        found = [len(after) for _, after, _ in factors]
        raise InputError(f"adapters: {path}: expected equal ranks for 'linear', found {found}")
    roots = [math.sqrt(abs(scale)) for _, _, scale in factors]
    signs = [math.copysign(1, scale) for _, _, scale in factors]
    before = sum(s * r * f[0] for s, r, f in zip(signs, roots, factors, strict=True))
    after = sum(r * f[1] for r, f in zip(roots, factors, strict=True))
    return jnp.asarray(before), jnp.asarray(after)


def _svd(path: str, factors: list[Factors], rank: int) -> tuple[Array, Array]:
    before, after = _cat(path, factors, sum(len(one) for _, one, _ in factors))
    # of the product, by those of its factors: the product of an embedding matrix is large
    left, upper = jnp.linalg.qr(before)
    right, lower = jnp.linalg.qr(after.T)
    u, s, v = jnp.linalg.svd(upper @ lower.T, full_matrices=False)
    before, after = left @ (u * s), v @ right.T
    missing = max(0, rank - len(after))
    before, after = before[:, :rank], after[:rank]
    return jnp.pad(before, ((0, 0), (0, missing))), jnp.pad(after, ((0, missing), (0, 0)))


_COMBINED = {"cat": _cat, "svd": _svd, "linear": _linear}
