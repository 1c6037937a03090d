"""A decoder's arguments, its cache among them: out of range, of a wrong shape, contradictory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from malformed import cases, load, refused
from minibert.errors import InputError

pytestmark = pytest.mark.unoptimised

IDS = np.arange(12).reshape(2, 6)
ONES = np.ones((2, 6), np.int64)
WORDS = np.ones((2, 6, 24), np.float32)
ENCODED = np.ones((2, 5, 24), np.float32)
LM, BERT, DOUBLE = "GPT2LMHeadModel", "BertLMHeadModel", "GPT2DoubleHeadsModel"
CLASSIFIER = "GPT2ForSequenceClassification"
CROSSED = {"add_cross_attention": True}
RANGE = "is out of range; expected 0 to"
WHOLE = "expected a whole number of at least"


def at(array, value):
    """The array with its last number changed."""
    array = np.array(array)
    array.flat[-1] = value
    return array


@pytest.fixture(scope="module")
def models(pristine):
    """Models by name and what differs in their configs, each loaded once."""
    found = {}

    def get(name, **config):
        key = (name, *config.items())
        if key not in found:
            found[key] = load(pristine.folder(name, config), name)
        return found[key]

    return get


REFUSED = {
    "encoder-without-cross": (
        {"input_ids": IDS, "encoder_hidden_states": ENCODED},
        "encoder_hidden_states: the model has no cross-attention (config.add_cross_attention)",
    ),
    "encoder-mask-without-encoder": (
        {"input_ids": IDS, "encoder_attention_mask": ONES},
        "encoder_attention_mask: passed without encoder_hidden_states",
    ),
    "keep-negative": ({"input_ids": IDS, "logits_to_keep": -1}, f"{WHOLE} 0, found -1"),
    "keep-float": ({"input_ids": IDS, "logits_to_keep": 1.0}, f"logits_to_keep: {WHOLE} 0"),
    "keep-bool": ({"input_ids": IDS, "logits_to_keep": True}, "found True"),
    "keep-list": ({"input_ids": IDS, "logits_to_keep": [[1]]}, "found (1, 1)"),
    "keep-none": ({"input_ids": IDS, "logits_to_keep": None}, "found None"),
}


@pytest.mark.parametrize(("arguments", "said"), cases(REFUSED))
def test_refused(arguments, said, models):
    refused(InputError, (said,), lambda: models(LM)(**arguments))


ENCODERS = {
    "integers": ({"encoder_hidden_states": ENCODED.astype(int)}, "floating-point numbers"),
    "width": (
        {"encoder_hidden_states": ENCODED[..., 1:]},
        "encoder_hidden_states: expected shape (2, encoder_seq, 24), found (2, 5, 23)",
    ),
    "batch": ({"encoder_hidden_states": ENCODED[:1]}, "found (1, 5, 24)"),
    "2d": ({"encoder_hidden_states": ENCODED[0]}, "found (5, 24)"),
    "length-0": ({"encoder_hidden_states": ENCODED[:, :0]}, "0 positions; expected at least 1"),
    "strings": ({"encoder_hidden_states": "x"}, "expected an array of numbers, found str"),
    "mask-shape": (
        {"encoder_hidden_states": ENCODED, "encoder_attention_mask": ONES},
        "encoder_attention_mask: expected shape (2, 5), found (2, 6)",
    ),
    "mask-3": (
        {"encoder_hidden_states": ENCODED, "encoder_attention_mask": ONES[:, :5] * 3},
        "encoder_attention_mask: expected only 0 and 1, found 3",
    ),
    "mask-float": (
        {"encoder_hidden_states": ENCODED, "encoder_attention_mask": ONES[:, :5] * 1.0},
        "encoder_attention_mask: expected integers or booleans",
    ),
    "mask-full": (
        {"encoder_hidden_states": ENCODED, "encoder_attention_mask": np.ones((2, 6, 5), int)},
        "found (2, 6, 5)",
    ),
}


@pytest.mark.parametrize("name", [LM, BERT])
@pytest.mark.parametrize(("arguments", "said"), cases(ENCODERS))
def test_encoders(arguments, said, name, models):
    config = CROSSED | ({"is_decoder": True} if name == BERT else {})
    refused(InputError, (said,), lambda: models(name, **config)(IDS, **arguments))


def cut(field):
    """A cache with one layer of `field` too few heads."""

    def change(cache):
        first, *rest = getattr(cache, field)
        return dataclasses.replace(cache, **{field: (first[:, 1:], *rest)})

    return change


CACHES = {
    "tuple": (lambda cache: (cache.keys, cache.values), "expected a KVCache (model.init_cache)"),
    "string": (lambda cache: "cache", "found 'str'"),
    "rows": (lambda cache: cache.rows(jnp.array([0])), "expected 2 layers of shape (2, 3, 8, 8)"),
    "layers": (
        lambda cache: dataclasses.replace(cache, keys=cache.keys[:1]),
        "expected 2 layers of shape (2, 3, 8, 8), found 1 of (2, 3, 8, 8)",
    ),
    "no-layers": (
        lambda cache: dataclasses.replace(cache, keys=(), values=()),
        "expected 2 layers of shape (2, 3, 8, 8), found 0 of ",
    ),
    "heads-of-keys": (cut("keys"), "found 2 of (2, 2, 8, 8) and (2, 3, 8, 8)"),
    "heads-of-values": (cut("values"), "found 2 of (2, 2, 8, 8) and (2, 3, 8, 8)"),
    "full": (
        lambda cache: dataclasses.replace(cache, index=jnp.array(5)),
        "expected at most 3 new tokens (capacity 8, of which 5 are used), found 6",
    ),
}


@pytest.mark.parametrize("name", [LM, BERT])
@pytest.mark.parametrize(("change", "said"), cases(CACHES))
def test_caches(change, said, name, models):
    model = models(name, **({"is_decoder": True} if name == BERT else {}))
    cache = change(model.init_cache(2, 8))
    said = ("past_key_values: ", said)
    refused(InputError, said, lambda: model(IDS, past_key_values=cache))


def test_a_cache_of_another_shape_is_refused_under_jit(models):
    model = models(LM)
    cache = models(LM, n_head=8).init_cache(2, 8)
    said = ("expected 2 layers of shape (2, 3, 8, 8), found 2 of (2, 8, 8, 3)",)
    call = jax.jit(lambda ids, cache: model(ids, past_key_values=cache))
    refused(InputError, said, lambda: call(IDS, cache))


MASKS = {
    "of-all-tokens": np.ones((2, 8), int),
    "by-query": np.ones((2, 6, 7), int),
    "one-row-for-all-queries": np.ones((2, 1, 1, 6), int),
}


@pytest.mark.parametrize("mask", [pytest.param(v, id=k) for k, v in MASKS.items()])
def test_the_keys_of_a_mask_beside_a_cache(mask, models):
    model = models(LM)
    said = ("attention_mask: expected shape (2", f"found {mask.shape}")
    cache = model.init_cache(2, 8)
    refused(InputError, said, lambda: model(IDS, past_key_values=cache, attention_mask=mask))


@pytest.mark.parametrize("size", [0, -1, 2.0, "2", None, True, (2,)], ids=str)
@pytest.mark.parametrize("which", [0, 1], ids=["batch_size", "max_length"])
def test_sizes_of_a_cache(which, size, models):
    sizes = [2, 8]
    sizes[which] = size
    said = (f"{('batch_size', 'max_length')[which]}: {WHOLE} 1",)
    refused(InputError, said, lambda: models(LM).init_cache(*sizes))


def test_an_encoder_has_no_cache(models):
    model, cache = models("BertModel"), models(LM).init_cache(2, 8)
    said = ("only a decoder has a cache, and config.is_decoder is false",)
    refused(InputError, said, lambda: model(IDS, past_key_values=cache))
    said = ("init_cache: only a decoder has a cache, and config.is_decoder is false",)
    refused(InputError, said, lambda: model.init_cache(2, 8))
    assert model(IDS, use_cache=True).past_key_values is None


CHOICES = {
    "chosen-seq": ({"mc_token_ids": [[0, 6]]}, f"mc_token_ids: 6 {RANGE} 5 (seq 6)"),
    "chosen-negative": ({"mc_token_ids": [[0, -1]]}, f"mc_token_ids: -1 {RANGE} 5"),
    "chosen-float": ({"mc_token_ids": [[0.0, 1.0]]}, "mc_token_ids: expected integers"),
    "chosen-shape": ({"mc_token_ids": [0, 1]}, "mc_token_ids: expected shape (1, 2), found (2,)"),
    "chosen-scalar": ({"mc_token_ids": 5}, "mc_token_ids: expected shape (1, 2), found ()"),
    "mask-without-choices": ({"attention_mask": ONES}, "expected shape (1, 2, …)"),
    "types-of-other-rows": (
        {"token_type_ids": ONES[None].repeat(2, 0)},
        "token_type_ids: expected shape (1, 2, …), with the batch and choices of input_ids, found",
    ),
    "positions-without-choices": ({"position_ids": IDS}, "position_ids: expected shape (1, 2, …)"),
    "four-axes": ({"input_ids": IDS[None, None]}, "expected shape (batch, seq), found (1, 2, 6)"),
    "one-axis": ({"input_ids": IDS[0]}, "expected shape (batch, choices, seq, …), found (6,)"),
    "both": ({"inputs_embeds": WORDS[None]}, "pass exactly one of the two"),
    "nothing": ({"input_ids": None}, "pass exactly one of the two"),
}


@pytest.mark.parametrize(("arguments", "said"), cases(CHOICES))
def test_choices(arguments, said, models):
    given = {"input_ids": IDS[None]} | arguments
    refused(InputError, (said,), lambda: models(DOUBLE)(**given))


@pytest.mark.parametrize("dtype", ["int8", "int32", "uint32"])
@pytest.mark.parametrize("chosen", [6, -1, -6], ids=str)
def test_chosen_tokens_under_jit(chosen, dtype, models):
    """An invalid token position returns NaN, and never another token."""
    call = jax.jit(lambda ids, chosen: models(DOUBLE)(ids, mc_token_ids=chosen).mc_logits)
    found = np.array(call(IDS[None], np.array([[5, chosen]]).astype(dtype)))
    assert np.isfinite(found[0, 0])
    assert np.isnan(found[0, 1])


def test_rows_without_a_padding_token(models):
    model = models(CLASSIFIER)
    said = ("input_ids: expected 1 row, found 2", "set config.pad_token_id")
    refused(InputError, said, lambda: model(IDS))
    refused(InputError, said, lambda: model(inputs_embeds=WORDS))
    assert np.isfinite(model(IDS[:1]).logits).all()


ALLOWED = {
    "last-type": {"token_type_ids": at(ONES, 96)},
    "keep-numpy-int": {"logits_to_keep": np.int64(2)},
    "keep-more-than-there-are": {"logits_to_keep": 100},
}


@pytest.mark.parametrize("arguments", [pytest.param(v, id=k) for k, v in ALLOWED.items()])
def test_allowed_and_finite(arguments, models):
    assert np.isfinite(models(LM)(IDS, **arguments).logits).all()
