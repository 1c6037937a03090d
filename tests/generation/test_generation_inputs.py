"""Invalid calls of `generate` and `stream`: one clear error each, before anything is compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import minibert
from generating import PAD, compilations
from minibert.errors import ConfigError, InputError, UnsupportedConfigError

pytestmark = pytest.mark.unoptimised

IDS = np.arange(12).reshape(2, 6)
MASK = np.ones((2, 6), int)


def gpt2(**config):
    settings = minibert.GPT2Config.tiny(**config)
    return minibert.GPT2LMHeadModel(settings, rngs=nnx.Rngs(0)).eval()


@pytest.fixture(scope="module")
def model():
    return gpt2()


@pytest.fixture(scope="module")
def crossed():
    return gpt2(add_cross_attention=True)


def deleted_key():
    key = jax.random.key(0)
    key.delete()
    return key


class Streamer:
    def put(self, value):
        raise AssertionError

    def end(self):
        raise AssertionError


def fails(message, model, *arguments, error=InputError, **options):
    """Asserts that `generate` and `stream` raise an error before anything is compiled."""
    for generate in (minibert.generate, minibert.stream):
        with compilations() as programs, pytest.raises(error) as caught:
            generate(model, *arguments, **options)
        assert message in str(caught.value)
        assert type(caught.value) is error
        assert programs == []


PROMPTS = {
    "empty batch": (np.zeros((0, 6), int), "input_ids: expected shape (batch, seq), found (0, 6)"),
    "empty prompts": (np.zeros((2, 0), int), "input_ids: expected shape (batch, seq), found (2, 0"),
    "no batch": (np.arange(6), "input_ids: expected shape (batch, seq), found (6,)"),
    "three axes": (IDS[None], "input_ids: expected shape (batch, seq), found (1, 2, 6)"),
    "nothing": (None, "input_ids: expected prompts, or a bos_token_id to begin with"),
    "an empty list": ([], "input_ids: expected shape (batch, seq), found (0,)"),
    "an empty row": ([[1, 2], []], "input_ids: row 1: expected token ids, found []"),
    "empty rows": ([[], []], "input_ids: expected shape (batch, seq), found (2, 0)"),
    "texts": (["a", "bc"], "input_ids: expected an array of numbers, found str"),
    "nested rows": ([[[1], [2]], [[3]]], "input_ids: row 0: expected token ids, found [[1], [2]]"),
    "floats": (IDS / 1.0, "input_ids: expected integers, found float64"),
    "floats in a list": ([[1.5, 2], [3]], "input_ids: expected integers, found float64"),
    "booleans": (IDS > 3, "input_ids: expected integers, found bool"),
    "negative": (IDS - 1, "input_ids: -1 is out of range; expected 0 to 96 (vocab_size 97)"),
    "too large": (IDS + 90, "input_ids: 101 is out of range; expected 0 to 96 (vocab_size 97)"),
    "huge": (IDS + 2**40, "input_ids: 1099511627776 is out of range"),
    "too large in a list": ([[97, 2], [3]], "input_ids: 97 is out of range; expected 0 to 96"),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts(model, name):
    ids, message = PROMPTS[name]
    fails(message, model, ids)


MASKS = {
    "shape": (MASK[:, :5], "attention_mask: expected shape (2, 6), found (2, 5)"),
    "rows": (MASK[:1], "attention_mask: expected shape (2, 6), found (1, 6)"),
    "axes": (MASK[:, None], "attention_mask: expected shape (2, 6), found (2, 1, 6)"),
    "values": (MASK + 1, "attention_mask: expected only 0 and 1, found 2"),
    "floats": (MASK * 1.0, "attention_mask: expected integers or booleans"),
    "all padding": (np.array([[1] * 6, [0] * 6]), "input_ids: row 1 is all padding"),
    "right": (np.array([[1] * 6, [1, 1, 1, 1, 0, 0]]), "attention_mask: row 1 ends in padding"),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks(model, name):
    mask, message = MASKS[name]
    fails(message, model, IDS, mask)


def test_padding_by_the_pad_token(model):
    fails("input_ids: row 0 is all padding", model, np.full((1, 4), PAD), pad_token_id=PAD)
    padded = np.array([[PAD, 1, 2], [1, 2, PAD]])
    fails("attention_mask: row 1 ends in padding; pad on the left", model, padded, pad_token_id=PAD)
    fails("attention_mask: expected None", model, [[1, 2], [3]], np.ones((2, 2), int))
    for name in ("pad_token_id", "eos_token_id"):  # which fills the shorter rows
        message = f"{name}: expected token ids below 97 (vocab_size), found 97"
        fails(message, model, [[1, 2], [3]], **{name: 97})


OPTIONS = {
    "unknown": ({"max_tokens": 3}, "max_tokens: not a generation option (did you mean max_"),
    "misspelt": ({"temprature": 3.0}, "temprature: not a generation option (did you mean temper"),
    "far": ({"xyzzy": 3}, "xyzzy: not a generation option"),
    "too long": (
        {"max_new_tokens": 35},
        "a prompt of 6 tokens and 35 new ones make 41; expected at most 40 (n_positions)",
    ),
    "endless": ({"max_new_tokens": 2**31 - 1}, "input_ids: a prompt of 6 tokens and 2147483647"),
    "no tokens": ({"max_new_tokens": 0}, "max_new_tokens: expected a whole number of at least 1"),
    "short": ({"max_length": 6}, "max_length: 6, but the prompt already has 6 tokens"),
    "both lengths": ({"max_length": 9, "max_new_tokens": 3}, "max_length: 9, but max_new_tokens"),
    "no key": ({"do_sample": True}, "key: sampling needs a random key: expected key=jax.random"),
    "seed": (
        {"do_sample": True, "key": 0},
        "key: sampling needs a random key: expected key=jax",
    ),
    "seeds": ({"do_sample": True, "key": np.arange(2)}, "key: sampling needs a random"),
    "short bits": (
        {"do_sample": True, "key": np.zeros(1, np.uint32)},
        "key: sampling needs a random key: expected key=jax.random.key(0), found uint32 of shape "
        "(1,)",
    ),
    "long bits": ({"do_sample": True, "key": jnp.zeros(5, jnp.uint32)}, "uint32 of shape (5,)"),
    "no bits": ({"do_sample": True, "key": np.zeros(0, np.uint32)}, "found uint32 of shape (0,)"),
    "keys": ({"do_sample": True, "key": jax.random.split(jax.random.key(0))}, "of shape (2,)"),
    "a deleted key": ({"do_sample": True, "key": deleted_key()}, "key: expected an array, found"),
    "unused": ({"temperature": 0.5}, "temperature: 0.5, which needs do_sample=True"),
    "no beams": ({"length_penalty": 2.0}, "length_penalty: 2.0, which needs num_beams of at least"),
    "records": ({"output_scores": True}, "output_scores: true, which needs return_dict_in_generat"),
    "cold": ({"do_sample": True, "temperature": 0.0}, "temperature: expected a number from"),
    "many": (
        {"num_return_sequences": 2},
        "num_return_sequences: 2, but greedy decoding returns one",
    ),
    "end": ({"eos_token_id": 97}, "eos_token_id: expected token ids below 97"),
    "pad": ({"pad_token_id": 97}, "pad_token_id: expected token ids below 97"),
    "bad word": (
        {"bad_words_ids": [[1, 99]]},
        "bad_words_ids: expected token ids below 97",
    ),
    "config": ({"generation_config": {"max_new_tokens": 3}}, "generation_config: expected a Gener"),
}


def test_more_beams_than_fit_into_memory(model):
    message = "num_beams: 1000000 texts for each of 2 prompts: their keys and values need "
    with compilations() as programs, pytest.raises(InputError) as caught:
        minibert.generate(model, IDS, num_beams=1_000_000)
    assert str(caught.value).startswith(message)
    many = {"do_sample": True, "num_return_sequences": 10**7, "key": jax.random.key(0)}
    fails("num_return_sequences: 10000000 texts for each of 2 prompts", model, IDS, **many)
    several = {"num_return_sequences": 10**5, "output_scores": True, **many}
    recorded = {"return_dict_in_generate": True, **several, "num_return_sequences": 10**6}
    with pytest.raises(InputError, match="their keys and values and the scores of all steps need"):
        minibert.generate(model, IDS, **recorded)
    assert programs == []


ELSEWHERE = {
    "logits_processor": "not a generation option: use options, `prefix_allowed_tokens_fn`, or a",
    "prng_key": "not a generation option: pass it as `key`",
    "params": "not a generation option: the model holds its parameters; pass the model",
    "train": "not a generation option: the model must be in evaluation mode",
    "dropout_rng": "not a generation option: generation has no dropout",
    "past_key_values": "not a generation option: pass whole texts as `input_ids`, or write a loop",
    "position_ids": "not a generation option: positions are counted by `attention_mask`",
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_arguments_of_other_libraries(model, name):
    fails(f"{name}: {ELSEWHERE[name]}", model, IDS, **{name: []})


DECISIONS = {
    "no tokenizer": ({"stop_strings": "a"}, "stop_strings: needs the model's tokenizer; expected"),
    "a tokenizer": (
        {"stop_strings": "a", "tokenizer": 5},
        "tokenizer: expected a tokenizer, found",
    ),
    "strings": (
        {"stop_strings": ["a", ""]},
        "stop_strings: expected a non-empty text or a non-emp",
    ),
    "no strings": ({"stop_strings": []}, "stop_strings: expected a non-empty text or a non-empty"),
    "bytes": ({"stop_strings": b"a"}, "stop_strings: expected a non-empty text or a non-empty"),
    "time": ({"max_time": 0}, "max_time: expected a number above 0, found 0"),
    "endless": ({"max_time": float("inf")}, "max_time: expected a number above 0, found inf"),
    "criteria": ({"stopping_criteria": 5}, "stopping_criteria: expected functions of token ids"),
    "criterion": ({"stopping_criteria": [print, 5]}, "stopping_criteria: expected functions of"),
    "allowed": ({"prefix_allowed_tokens_fn": [1]}, "prefix_allowed_tokens_fn: expected a function"),
}


@pytest.mark.parametrize("name", DECISIONS)
def test_decisions_on_the_host(model, name):
    options, message = DECISIONS[name]
    fails(message, model, IDS, **options)


def test_what_beams_cannot_have(model):
    for given in ({"max_time": 5.0}, {"stopping_criteria": [any]}, {"streamer": Streamer()}):
        with pytest.raises(
            InputError, match="num_beams: expected 1 with stop_strings, max_time, st"
        ):
            minibert.generate(model, IDS, num_beams=2, **given)
    with pytest.raises(InputError, match="streamer: expected an object with the methods put and"):
        minibert.generate(model, IDS, streamer=print)


@pytest.mark.parametrize("name", OPTIONS)
def test_options(model, name):
    options, message = OPTIONS[name]
    fails(message, model, IDS, **options)


def test_what_is_not_there(model):
    refused = {"penalty_alpha": 0.6, "num_beam_groups": 2, "use_cache": False}
    for name, value in refused.items():
        fails(f"{name}: ", model, IDS, error=UnsupportedConfigError, **{name: value})
    with pytest.raises(ConfigError, match="temperature"):
        minibert.GenerationConfig(temperature=-1.0)


def test_models(model):
    fails("model: GPT2Model cannot generate", model.transformer, IDS)
    fails("model: dict cannot generate: it returns no next-token logits", {}, IDS)
    bert = minibert.BertConfig.tiny()
    reader = minibert.BertLMHeadModel(bert, rngs=nnx.Rngs(0)).eval()
    fails("model: expected a decoder, found config.is_decoder=False", reader, IDS)
    masked = minibert.BertForMaskedLM(bert, rngs=nnx.Rngs(0)).eval()
    fails("model: BertForMaskedLM cannot generate: it returns no next-token logits", masked, IDS)


def test_traced_arguments(model):
    message = "expected a call outside jax.jit, found traced arguments"
    for generate in (minibert.generate, minibert.stream):
        for call, given in (
            (lambda ids, generate=generate: generate(model, ids), IDS),
            (lambda traced, generate=generate: generate(traced, IDS), model),
            (lambda mask, generate=generate: generate(model, IDS, mask), MASK),
        ):
            with pytest.raises(InputError, match=message):
                jax.jit(call)(given)


def test_dropout_is_on(model):
    training = gpt2().train()
    message = "model: expected evaluation mode, found training mode; call model.eval()"
    with compilations() as programs, pytest.raises(InputError) as caught:
        minibert.generate(training, IDS)
    assert str(caught.value) == message
    with pytest.raises(InputError) as caught:
        next(minibert.stream(training, IDS))
    assert str(caught.value) == message
    assert programs == []
    none = gpt2(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0).train()
    assert minibert.generate(none, IDS, max_new_tokens=2).shape == (2, 8)


STATES = np.zeros((2, 5, 24), np.float32)
ENCODERS = {
    "width": ({"encoder_hidden_states": STATES[..., :23]}, "encoder_hidden_states: expected shape"),
    "batch": ({"encoder_hidden_states": STATES[:1]}, "encoder_hidden_states: expected shape (2, e"),
    "axes": ({"encoder_hidden_states": STATES[0]}, "encoder_hidden_states: expected shape (2, enc"),
    "nothing": ({"encoder_hidden_states": STATES[:, :0]}, "encoder_hidden_states: 0 positions"),
    "integers": (
        {"encoder_hidden_states": STATES.astype(int)},
        "encoder_hidden_states: expected floating-point numbers, found int64",
    ),
    "mask alone": (
        {"encoder_attention_mask": np.ones((2, 5), int)},
        "encoder_attention_mask: passed without encoder_hidden_states",
    ),
    "mask": (
        {"encoder_hidden_states": STATES, "encoder_attention_mask": np.ones((2, 4), int)},
        "encoder_attention_mask: expected shape (2, 5), found (2, 4)",
    ),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders(crossed, name):
    options, message = ENCODERS[name]
    # validation puts small arrays on the device: the program itself is what must not be compiled
    with compilations() as programs, pytest.raises(InputError) as caught:
        minibert.generate(crossed, IDS, **options)
    assert str(caught.value).startswith(message)
    assert not any("run" in program or "search" in program for program in programs)


def test_an_encoder_without_cross_attention(model):
    message = "encoder_hidden_states: the model has no cross-attention"
    fails(message, model, IDS, encoder_hidden_states=STATES)


def test_encoders_of_every_kind(crossed):
    options = {"max_new_tokens": 3, "eos_token_id": None}
    states = np.random.default_rng(0).normal(size=(2, 5, 24)).astype(np.float32)
    expected = minibert.generate(crossed, IDS, encoder_hidden_states=states, **options)
    for given in (states.tolist(), jnp.asarray(states), states.astype(np.float64)):
        found = minibert.generate(crossed, IDS, encoder_hidden_states=given, **options)
        np.testing.assert_array_equal(found, expected)
    assert minibert.generate(crossed, IDS, **options).shape == (2, 9)  # none is needed


@pytest.mark.slow
def test_keys_of_every_kind(model):
    options = {"do_sample": True, "max_new_tokens": 6}
    expected = minibert.generate(model, IDS, key=jax.random.key(4), **options)
    for key in (jax.random.PRNGKey(4), np.asarray(jax.random.PRNGKey(4))):
        np.testing.assert_array_equal(minibert.generate(model, IDS, key=key, **options), expected)
