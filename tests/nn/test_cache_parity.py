"""Decoding with a cache beside transformers' own decoding with its own: every step, in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from conftest import FLOAT64

torch = pytest.importorskip("torch", reason="the oracle is PyTorch")

import transformers  # noqa: E402

import minibert  # noqa: E402
import oracle  # noqa: E402
from oracle import CACHE, SEQ, arguments  # noqa: E402
from slowly import slow_but  # noqa: E402

ENCODED = np.random.default_rng(1).normal(size=(3, 5, 24))
ENCODER_MASK = np.array([[1, 1, 1, 1, 1], [0, 1, 1, 0, 1], [1, 0, 0, 0, 0]])
SETTINGS = {
    "GPT2LMHeadModel": {"scale_attn_by_inverse_layer_idx": True},
    "BertLMHeadModel": {"is_decoder": True},
    "GPT2DoubleHeadsModel": {},
    "GPT2Model": {},
    "BertModel": {"is_decoder": True},
}


def new_cache(crossed):
    cache = transformers.DynamicCache()
    return (
        transformers.EncoderDecoderCache(cache, transformers.DynamicCache()) if crossed else cache
    )


def layers(cache):
    """Keys and values of transformers' cache, layer by layer."""
    cache = getattr(cache, "self_attention_cache", cache)
    return [(layer.keys.numpy(), layer.values.numpy()) for layer in cache.layers]


@pytest.mark.parametrize(
    "sizes", slow_but([[1] * SEQ, [7, 1, 1, 1, 1], [4, 4, 3]], [7, 1, 1, 1, 1]), ids=str
)
@pytest.mark.parametrize("padding", slow_but(["left", "right"], "left"))
@pytest.mark.parametrize("name", SETTINGS)
def test_steps(name, padding, sizes, tmp_path):
    compare(name, padding, sizes, tmp_path, SETTINGS[name], {})


@pytest.mark.parametrize("sizes", slow_but([[7, 1, 3], [11]], [7, 1, 3]), ids=str)
@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "BertLMHeadModel"])
def test_steps_that_attend_both_ways(name, sizes, tmp_path):
    """A token attends to all of its call and of the cache; the cache stays as it was."""
    compare(name, "left", sizes, tmp_path, SETTINGS[name] | {"is_causal": False}, {})


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "BertLMHeadModel"])
def test_generation_that_attends_both_ways(name, options, tmp_path):
    theirs = oracle.saved(name, tmp_path, **SETTINGS[name] | {"is_causal": False}).double()
    ids = np.random.default_rng(0).integers(1, 96, (3, 7))  # without the pad token
    options = {"max_new_tokens": 6, "pad_token_id": 0, "eos_token_id": None} | options
    expected = theirs.generate(torch.tensor(ids), do_sample=False, **options)
    with oracle.float64():
        model = oracle.ours(name, tmp_path, param_dtype=jnp.float64)
        np.testing.assert_array_equal(minibert.generate(model, ids, **options), expected)


@pytest.mark.parametrize(
    "padded", slow_but([False, True], True), ids=["encoder unpadded", "encoder padded"]
)
@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "BertLMHeadModel"])
def test_steps_with_an_encoder(name, padded, tmp_path):
    encoder = {"encoder_hidden_states": ENCODED}
    if padded:
        encoder["encoder_attention_mask"] = ENCODER_MASK
    config = SETTINGS[name] | {"add_cross_attention": True}
    compare(name, "left", [7, 1, 1, 2], tmp_path, config, encoder)


def compare(name, padding, sizes, folder, config, encoder):
    theirs = oracle.saved(name, folder, **config).double()
    given = arguments("GPT2Model" if name.startswith("GPT2") else name, padding=padding)
    mask = given["attention_mask"]
    given["position_ids"] = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    past, end = new_cache(bool(encoder)), 0
    with oracle.float64():
        model = oracle.ours(name, folder, param_dtype=jnp.float64)
        cache = model.init_cache(3, SEQ)
        for size in sizes:
            start, end = end, end + size
            part = {key: array[:, start:end] for key, array in given.items()}
            seen = {"attention_mask": mask[:, :end]}  # theirs is of all tokens so far
            with torch.no_grad():
                tensors = {key: torch.tensor(a) for key, a in (part | seen | encoder).items()}
                expected = theirs(**tensors, **{CACHE: past}, use_cache=True)
            found = model(**part, past_key_values=cache, **encoder)
            cache, past = found.past_key_values, expected[CACHE]
            real = part["attention_mask"] == 1
            error = np.abs(np.asarray(found[0]) - expected[0].numpy())
            assert error[real].max(initial=0) <= FLOAT64, (start, end)
    every = np.broadcast_to(mask[:, None, :, None] == 1, cache.keys[0].shape)
    for index, (keys, values) in enumerate(layers(past)):
        assert np.abs(np.asarray(cache.keys[index]) - keys)[every].max() <= FLOAT64
        assert np.abs(np.asarray(cache.values[index]) - values)[every].max() <= FLOAT64
