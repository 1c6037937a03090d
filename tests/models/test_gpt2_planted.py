"""Known mistakes with decoders, planted: each must be seen 1000 tolerances away."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

torch = pytest.importorskip("torch", reason="the oracle is PyTorch")

import oracle  # noqa: E402
from planting import (  # noqa: E402
    distances,
    edit,
    epsilon,
    in_activation,
    in_attend,
    in_model,
    swap,
    swapped,
    transpose,
    without,
    zero,
)

BLOCK = "transformer.h.1"
NORMS = ["transformer.ln_f"] + [
    f"transformer.h.{layer}.{norm}"
    for layer in range(2)
    for norm in ("ln_1", "ln_2", "ln_cross_attn")
]
ENCODED = np.random.default_rng(1).normal(size=(3, 5, 24))
ENCODER_MASK = np.array([[1, 1, 1, 1, 1], [0, 1, 1, 0, 1], [1, 0, 0, 0, 0]])
BY_LAYER = {"scale_attn_by_inverse_layer_idx": True}


def reordered(order):
    """The parts of a fused projection in another order."""
    return lambda kernel: jnp.concatenate(
        [jnp.split(kernel, len(order), axis=-1)[part] for part in order], axis=-1
    )


def interleaved(kernel):
    """Query, key and value head by head, as other families have them."""
    return kernel.reshape(-1, 3, 3, 8).swapaxes(1, 2).reshape(kernel.shape)


def scale(value, *rooms):
    """Scores multiplied with another number, in one layer's attention."""

    def planted(model, given):
        for room in rooms:
            block = model.transformer.h[1]
            getattr(block, room).scale = value

    return in_model(planted)


def no_last_norm(model, given):
    return swapped(model.transformer, "ln_f", lambda hidden: hidden)


def untied(model, given):
    model.lm_head.kernel = nnx.Param(jnp.roll(model.transformer.wte.embedding[...].T, 1, axis=1))


def positions_of(change):
    return in_model(lambda model, given: given.update(position_ids=change(given)))


def not_causal(attend, query, key, value, options):
    """Every token looks at all that any token may look at."""
    mask = options["mask"]
    if mask is not None and mask.shape[2] > 1:
        options = options | {"mask": mask.any(axis=2, keepdims=True)}
    return attend(query, key, value, **options)


def strictly_causal(attend, query, key, value, options):
    """A token does not look at itself, unless it is the first."""
    mask = options["mask"]
    if mask is not None and mask.shape[2] > 1:
        size = mask.shape[2]
        itself = jnp.eye(size, dtype=bool) & (jnp.arange(size) > 0)
        options = options | {"mask": mask & ~itself}
    return attend(query, key, value, **options)


MISTAKES = {
    "exact GELU for tanh": (
        in_activation("gelu_new", lambda x: jax.nn.gelu(x, approximate=False)),
        {},
    ),
    "epsilon 1e-6 for 1e-5": (epsilon(1e-6, *NORMS), {}),
    "epsilon 1e-12 for 1e-5": (epsilon(1e-12, *NORMS), {}),
    "epsilon of one norm": (epsilon(1e-6, f"{BLOCK}.ln_cross_attn"), {}),
    "the other LayerNorm": (swap(f"{BLOCK}.ln_1.scale", f"{BLOCK}.ln_2.scale"), {}),
    "LayerNorm bias dropped": (zero(f"{BLOCK}.ln_2.bias"), {}),
    "no last LayerNorm": (no_last_norm, {}),
    "key, query, value": (edit(f"{BLOCK}.attn.c_attn.kernel", reordered((1, 0, 2))), {}),
    "value, key, query": (edit(f"{BLOCK}.attn.c_attn.kernel", reordered((2, 1, 0))), {}),
    "heads interleaved": (edit(f"{BLOCK}.attn.c_attn.kernel", interleaved), {}),
    "fused bias dropped": (zero(f"{BLOCK}.attn.c_attn.bias"), {}),
    "projection bias dropped": (zero(f"{BLOCK}.attn.c_proj.bias"), {}),
    "Conv1D transposed": (transpose(f"{BLOCK}.attn.c_proj.kernel"), {}),
    "cross Conv1D transposed": (transpose(f"{BLOCK}.crossattention.q_attn.kernel"), {}),
    "a narrower MLP": (edit(f"{BLOCK}.mlp.c_proj.kernel", lambda k: k.at[79].set(0)), {}),
    "not causal": (in_attend(not_causal), {}),
    "strictly causal": (in_attend(strictly_causal), {}),
    "no padding mask": (without("attention_mask"), {}),
    "no token types": (without("token_type_ids"), {}),
    "padding takes positions": (positions_of(lambda given: np.arange(11)[None]), {}),
    "positions from 1": (positions_of(lambda given: given["position_ids"] + 1), {}),
    "scaled all the same": (scale(8**-0.5, "attn"), {"scale_attn_weights": False}),
    "not scaled": (scale(1.0, "attn"), {}),
    "scaled by layer where it is not asked for": (scale(8**-0.5 / 2, "attn"), {}),
    "not scaled by layer": (scale(8**-0.5, "attn"), BY_LAYER),
    "layers counted from 2": (scale(8**-0.5 / 3, "attn"), BY_LAYER),
    "cross-attention not scaled by layer": (scale(8**-0.5, "crossattention"), BY_LAYER),
    "no encoder mask": (without("encoder_attention_mask"), {}),
    "cross key and value swapped": (
        edit(f"{BLOCK}.crossattention.c_attn.kernel", reordered((1, 0))),
        {},
    ),
    "cross query bias dropped": (zero(f"{BLOCK}.crossattention.q_attn.bias"), {}),
    "the other norm before cross-attention": (
        swap(f"{BLOCK}.ln_cross_attn.scale", f"{BLOCK}.ln_2.scale"),
        {},
    ),
    "tied head replaced": (in_model(untied), {}),
    "table rows shifted": (edit("transformer.wte.embedding", lambda t: jnp.roll(t, 1, 0)), {}),
}


def given_to(name):
    """Left-padded, with segments, counted positions and a padded encoder."""
    given = oracle.arguments(name, padding="left")
    given["position_ids"] = np.maximum(np.cumsum(given["attention_mask"], axis=1) - 1, 0)
    return given | {"encoder_hidden_states": ENCODED, "encoder_attention_mask": ENCODER_MASK}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_seen(mistake, tmp_path):
    name, (planted, config) = "GPT2LMHeadModel", MISTAKES[mistake]
    config = config | {"add_cross_attention": True}
    right, wrong = distances(planted, name, tmp_path, given_to(name), **config)
    assert right <= 1
    assert wrong >= 1000


LAYER = "bert.encoder.layer.1"
BERT_MISTAKES = {
    "looks both ways": in_attend(not_causal),
    "strictly causal": in_attend(strictly_causal),
    "no encoder mask": without("encoder_attention_mask"),
    "cross key and value swapped": swap(
        f"{LAYER}.crossattention.self.key.kernel", f"{LAYER}.crossattention.self.value.kernel"
    ),
    "the other norm after cross-attention": swap(
        f"{LAYER}.crossattention.output.LayerNorm.scale",
        f"{LAYER}.attention.output.LayerNorm.scale",
    ),
    "cross projection not transposed": transpose(f"{LAYER}.crossattention.output.dense.kernel"),
    "padding takes positions": positions_of(lambda given: np.arange(11)[None]),
    "decoder bias dropped": zero("cls.predictions.bias"),
}


@pytest.mark.parametrize("mistake", BERT_MISTAKES)
def test_mistake_with_bert_is_seen(mistake, tmp_path):
    name, config = "BertLMHeadModel", {"is_decoder": True, "add_cross_attention": True}
    right, wrong = distances(BERT_MISTAKES[mistake], name, tmp_path, given_to(name), **config)
    assert right <= 1
    assert wrong >= 1000
