"""Generation with unusual files, half precision and damaged weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import minibert
from minibert.checkpoint.generation_config import GenerationConfig
from minibert.errors import InputError, NotFiniteError
from minibert.nn.layers import Dropout

pytestmark = pytest.mark.unoptimised


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


WAYS = {"greedy": {}, "beams": {"num_beams": 3}, "drawn": {"do_sample": True}}


def fails(error, message, model, prompts, streamed=False, **options):
    """Asserts that `generate` and `stream` raise an error."""
    options |= {"key": jax.random.key(0)} if options.get("do_sample") else {}
    with pytest.raises(error, match=message):
        minibert.generate(model, prompts, **options)
    if streamed:
        with pytest.raises(error, match=message):
            list(minibert.stream(model, prompts, **options))


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_logits_that_are_nan_name_the_row(way):
    model = tiny()
    model.transformer.wpe.embedding[...] = model.transformer.wpe.embedding[...].at[2].set(jnp.nan)
    message = "logits for row 1 of input_ids are not finite"
    options = {"max_new_tokens": 2, "eos_token_id": None, "streamed": way == "greedy"} | WAYS[way]
    fails(NotFiniteError, message, model, [[1], [2, 3, 4], [5]], **options)
    # from its second token on
    fails(NotFiniteError, message, model, [[1], [2, 3], [5]], **options)


@pytest.mark.parametrize("weight", [jnp.inf, -jnp.inf, 6e4], ids=["inf", "-inf", "float16"])
def test_logits_that_are_infinite(weight):
    model = tiny(tie_word_embeddings=False)
    if abs(weight) < jnp.inf:
        model = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), model)
    model.transformer.ln_f.bias[...] = jnp.ones_like(model.transformer.ln_f.bias[...])
    kernel = model.lm_head.kernel[...]
    model.lm_head.kernel[...] = kernel.at[:, 7].set(weight)  # no other token is affected
    fails(NotFiniteError, "for row 0 .* not finite", model, [[1, 2]], max_new_tokens=2)


def test_invalid_values_can_be_removed():
    model = tiny()
    model.transformer.ln_f.bias[...] = jnp.full(24, jnp.nan)
    options = {"max_new_tokens": 3, "eos_token_id": None, "remove_invalid_values": True}
    found = minibert.generate(model, [[1, 2]], **options)
    assert found[0, 2:].tolist() == [0, 0, 0]  # NaN becomes 0, as in transformers


def all_but(*tokens):
    return sorted(set(range(97)) - set(tokens))


BANNED = {
    "suppressed": {"suppress_tokens": all_but()},
    "bad words": {"bad_words_ids": [[token] for token in all_but()], "eos_token_id": None},
    "no end yet": {"suppress_tokens": all_but(7), "eos_token_id": 7, "min_new_tokens": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "way"),
    [*(("suppressed", way) for way in WAYS), ("bad words", "greedy"), ("no end yet", "greedy")],
)
def test_rows_that_no_token_can_follow(name, way):
    options = {"max_new_tokens": 8, "eos_token_id": None} | BANNED[name] | WAYS[way]
    message = f"^input_ids: row 0: .*the options ban (all|every) .*{next(iter(BANNED[name]))}"
    streamed = (name, way) == ("suppressed", "greedy")
    fails(InputError, message, tiny(), [[1, 2], [7, 8]], streamed, **options)


@pytest.mark.slow
def test_only_rows_that_go_on_need_a_token():
    """Three tokens that may not be repeated: the end comes last, and is enough."""
    model, options = tiny(), {"suppress_tokens": all_but(7, 8, 9), "no_repeat_ngram_size": 1}
    short = minibert.generate(model, [[1, 2], [7, 8]], max_new_tokens=1, **options)
    assert short[1, 2] == 9
    found = minibert.generate(
        model, [[1], [7]], max_new_tokens=9, eos_token_id=[7, 8, 9], **options
    )
    assert found.shape == (2, 2)
    steps = minibert.stream(model, [[7, 8]], max_new_tokens=2, eos_token_id=None, **options)
    assert next(steps).tolist() == [9]
    with pytest.raises(InputError, match="row 0: the options ban every next token"):
        next(steps)


@pytest.mark.slow
def test_fewer_texts_than_beams():
    options = {"max_new_tokens": 1, "suppress_tokens": all_but(7, 8), "eos_token_id": None}
    found = minibert.generate(tiny(), [[1]], num_beams=4, num_return_sequences=2, **options)
    assert sorted(found[:, 1].tolist()) == [7, 8]
    with pytest.raises(InputError, match="row 0: expected 3 texts, found 2: the options ban"):
        minibert.generate(tiny(), [[1]], num_beams=4, num_return_sequences=3, **options)


@pytest.mark.slow
def test_what_a_calls_config_leaves_open_is_the_checkpoints():
    stored = {"eos_token_id": 7, "pad_token_id": 9, "max_new_tokens": 4}
    model, free = tiny(generation=stored), tiny()
    prompts = [[1, 2], [3, 4]]
    for way in ({}, {"num_beams": 2}):
        expected = minibert.generate(free, prompts, **stored, **way)
        config = minibert.GenerationConfig(**way)
        found = minibert.generate(model, prompts, generation_config=config)
        np.testing.assert_array_equal(found, expected)
    ends = minibert.generate(free, prompts, eos_token_id=None, max_new_tokens=2)[:, 2]
    model = tiny(generation=stored | {"eos_token_id": ends.tolist()})
    config = minibert.GenerationConfig(max_new_tokens=8)
    assert minibert.generate(model, prompts, generation_config=config).shape == (2, 3)
    assert len(list(minibert.stream(model, prompts, generation_config=config))) == 1
    none = config.replace(eos_token_id=None)  # an option of None is no open field
    assert minibert.generate(model, prompts, generation_config=none).shape == (2, 10)


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
    with pytest.raises(InputError, match="expected rows from 0 to 1"):
        tiny().init_cache(2, 4).rows(jnp.array(indices))


@pytest.mark.parametrize(
    "wrong", [0, nnx.Rngs(params=0), None, "key"], ids=["seed", "stream", "none", "text"]
)
def test_dropout_names_the_keys_it_wants(wrong):
    with pytest.raises(InputError, match=r"rngs=nnx.Rngs\(dropout=key\)"):
        Dropout(0.5)(jnp.ones(3), wrong)


@pytest.mark.slow
def test_a_mask_as_transformers_has_it_with_a_cache():
    model = tiny()
    past = model(np.array([[1, 2, 3]]), past_key_values=model.init_cache(1, 8)).past_key_values
    with pytest.raises(InputError, match="the cache stores the mask of earlier"):
        model(np.array([[4]]), past_key_values=past, attention_mask=np.ones((1, 4), int))


@pytest.mark.slow
def test_a_cache_that_remembers_an_encoder():
    crossed = tiny(add_cross_attention=True)
    states = np.ones((1, 5, 24), np.float32)
    past = crossed(
        np.array([[1]]), past_key_values=crossed.init_cache(1, 8), encoder_hidden_states=states
    ).past_key_values
    with pytest.raises(InputError, match="no cross-attention"):
        tiny()(np.array([[2]]), past_key_values=past)
