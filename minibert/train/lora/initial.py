"""Adapters whose initialisation changed the base model: PiSSA and OLoRA, as PEFT saves them."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict

from minibert.errors import UnsupportedConfigError
from minibert.models.base import PretrainedModel
from minibert.nn.tree import parameters
from minibert.train.lora.adapter import Adapter
from minibert.train.lora.sites import Site, sites

CHANGING = ("pissa", "olora")


def relative_to_base(model: PretrainedModel, adapter: Adapter, kind: str) -> Adapter:
    """Returns an adapter of the base model itself, with the same effect and twice the rank.

    PiSSA (Meng et al., arXiv:2404.02948) and OLoRA (Büyükakyüz, arXiv:2406.01775) begin with the
    factors of a part of each kernel, which they subtract from it. PEFT does so again whenever it
    loads such an adapter. The one returned has these first factors, with a negative sign, beside
    its own; so PEFT converts adapters, too.

    Args:
        model: the base model.
        adapter: the adapter as it was saved.
        kind: `pissa` or `olora`.

    Raises:
        UnsupportedConfigError: the adapter has magnitudes (DoRA), which do not add up.
    """
    lora, arrays = adapter.config, parameters(model)
    if lora.use_dora:
        raise UnsupportedConfigError(f"use_dora: not implemented with init_lora_weights={kind!r}")
    params = dict(adapter.params)
    for site in sites(model, lora):
        before, after = list(site.factors)[:2]
        first, second = _initial(site, np.asarray(arrays[site.kernel]), kind)
        one, other = params[before], params[after]
        params[before] = jnp.concatenate([one, jnp.asarray(first, one.dtype)], axis=1)
        params[after] = jnp.concatenate([other, -jnp.asarray(second, other.dtype)], axis=0)
    factor = 2**0.5 if lora.use_rslora else 2  # of alpha, so that the scaling stays
    config = dataclasses.replace(
        lora,
        r=2 * lora.r,
        lora_alpha=factor * lora.lora_alpha,
        rank_pattern=FrozenDict({name: 2 * r for name, r in lora.rank_pattern.items()}),
        alpha_pattern=FrozenDict({name: factor * a for name, a in lora.alpha_pattern.items()}),
    )
    return Adapter(config, params)


def _initial(site: Site, kernel: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the factors with which an adapter of a kernel begins, in float32, as in PEFT."""
    inputs, outputs = site.shape
    rank = site.rank
    if site.embedding:
        return np.zeros((inputs, rank)), np.zeros((rank, outputs))
    kernel = kernel.astype(np.float32)
    if kind == "pissa":
        u, s, v = np.linalg.svd(kernel, full_matrices=False)
        root = np.sqrt(s[:rank] / site.scaling)
        return u[:, :rank] * root, root[:, None] * v[:rank]
    if site.fan_in_fan_out:
        raise UnsupportedConfigError(
            f"init_lora_weights: 'olora' is not implemented for {site.path}, a Conv1D, whose "
            "shapes PEFT confuses"
        )
    q, r = np.linalg.qr(kernel.T)
    return r[:rank].T, q[:, :rank].T
