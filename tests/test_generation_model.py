"""Generation from models as people have them: odd files, half-precision, weights gone wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import minibert
from minibert.errors import InputError, NotFiniteError
from minibert.generation_config import GenerationConfig
from minibert.layers import Dropout


def tiny(**config):
    return minibert.GPT2LMHeadModel(minibert.GPT2Config.tiny(**config), rngs=nnx.Rngs(0)).eval()


@pytest.mark.parametrize(
    "stored",
    [
        {"use_cache": False},
        {"eos_token_id": 50256, "bos_token_id": 50256},
        {"eos_token_id": [50256, 7], "pad_token_id": 50257},
    ],
    ids=["trained without a cache", "GPT-2's end in a small vocabulary", "one end of two"],
)
@pytest.mark.parametrize("prompts", [[[1, 2, 3]], [[1, 2, 3], [4]]], ids=["one", "ragged"])
def test_what_hugging_face_writes(stored, prompts):
    in_file, in_config = tiny(generation=stored), tiny(extra=stored)
    plain = minibert.generate(tiny(), prompts, max_new_tokens=4, eos_token_id=7)
    for model in (in_file, in_config):
        known = GenerationConfig.of_model(model.config)
        assert known.end_ids in ((), (7,))
        assert known.use_cache
        np.testing.assert_array_equal(
            minibert.generate(model, prompts, max_new_tokens=4, eos_token_id=7)[:, 3:], plain[:, 3:]
        )
    with pytest.raises(InputError, match="eos_token_id"):
        minibert.generate(in_file, prompts, eos_token_id=50256)


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, {"do_sample": True}], ids=["greedy", "beams", "drawn"]
)
def test_nan_is_no_word(options):
    model = tiny()
    model.transformer.ln_f.bias[...] = jnp.full(24, jnp.nan)
    key = jax.random.key(0) if options.get("do_sample") else None
    with pytest.raises(NotFiniteError, match="logits are NaN"):
        minibert.generate(model, [[1, 2]], max_new_tokens=3, key=key, **options)
    if "num_beams" not in options:
        with pytest.raises(NotFiniteError):
            list(minibert.stream(model, [[1, 2]], max_new_tokens=3, key=key, **options))


def test_a_cache_is_as_wide_as_the_widest_part():
    model = tiny()
    words = model.transformer.wte.embedding
    words.set_value(words[...].astype(jnp.bfloat16))
    assert model.init_cache(1, 4).keys[0].dtype == jnp.float32
    ids = np.array([[5, 6, 7, 8]])
    cached = model(ids, past_key_values=model.init_cache(1, 4)).logits
    np.testing.assert_allclose(cached, model(ids).logits, atol=1e-5)


@pytest.mark.parametrize("indices", [[2], [-1], [0, 5]])
def test_rows_that_are_not_there(indices):
    with pytest.raises(InputError, match="expected rows 0 to 1"):
        tiny().init_cache(2, 4).rows(jnp.array(indices))


@pytest.mark.parametrize(
    "wrong", [0, nnx.Rngs(params=0), None, "key"], ids=["seed", "stream", "none", "text"]
)
def test_dropout_names_the_keys_it_wants(wrong):
    with pytest.raises(InputError, match=r"rngs=nnx.Rngs\(dropout=key\)"):
        Dropout(0.5)(jnp.ones(3), wrong)


def test_a_mask_as_transformers_has_it_with_a_cache():
    model = tiny()
    past = model(np.array([[1, 2, 3]]), past_key_values=model.init_cache(1, 8)).past_key_values
    with pytest.raises(InputError, match="the cache remembers those before"):
        model(np.array([[4]]), past_key_values=past, attention_mask=np.ones((1, 4), int))


def test_a_cache_that_remembers_an_encoder():
    crossed = tiny(add_cross_attention=True)
    states = np.ones((1, 5, 24), np.float32)
    past = crossed(
        np.array([[1]]), past_key_values=crossed.init_cache(1, 8), encoder_hidden_states=states
    ).past_key_values
    with pytest.raises(InputError, match="no cross-attention"):
        tiny()(np.array([[2]]), past_key_values=past)
