"""Tiny minibert models with random parameters, for tests that do not need PyTorch."""

import zlib
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

import minibert
from minibert.checkpoint.leaves import leaves
from minibert.nn.layers import LayerNorm

STILL = {
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "distilbert": {"dropout": 0.0, "attention_dropout": 0.0},
}


def drawn(name: str, seed: int = 0, **config: Any) -> Any:
    """Returns a float64 model of a class; norms are drawn around one, the rest around zero."""
    cls = getattr(minibert, name)
    model = cls(cls.config_class.tiny(**config), rngs=nnx.Rngs(0), param_dtype=jnp.float64)
    for leaf in leaves(model):
        draw = np.random.default_rng([seed, zlib.crc32(leaf.name.encode())])
        noise = draw.standard_normal(leaf.variable.shape)
        norm = isinstance(leaf.owner, LayerNorm) and leaf.attribute == "scale"
        leaf.variable.set_value(jnp.asarray(1 + 0.3 * noise if norm else 0.2 * noise))
    return model.eval()


def texts(rows=4, seq=9, seed=0, vocab=97):
    """Texts with different numbers of labels: more in the later rows."""
    draw = np.random.default_rng(seed)
    ids = draw.integers(0, vocab, (rows, seq))
    kept = np.arange(seq) < 2 + np.arange(rows)[:, None] % (seq - 2)
    return {"input_ids": ids, "labels": np.where(kept, ids, -100)}
