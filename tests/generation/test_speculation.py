"""Proposed tokens change no text: those of greedy search and of sampling, with fewer runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import minibert
from generating import PAD, prompts, tiny
from minibert.errors import InputError
from minibert.generation import speculation
from minibert.generation.decoding import Plan, State
from minibert.models import compilation
from minibert.nn.cache import KVCache

NEW = 14
RECORDS = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
LOOKUP = {"prompt_lookup_num_tokens": 4, "max_matching_ngram_size": 3}
WAYS = {
    "greedy": {},
    "records": RECORDS,
    "processors": {"no_repeat_ngram_size": 3, "repetition_penalty": 1.1, "min_new_tokens": 5},
    "sampled": {"do_sample": True, "temperature": 0.6, "num_return_sequences": 2},
}


@pytest.fixture(scope="module", autouse=True)
def model():
    """A model that repeats itself: its texts are sometimes what was proposed."""
    with jax.enable_x64(True):
        yield tiny(scale=0.2)


def equal(found, expected, options):
    if not options.get("return_dict_in_generate"):
        np.testing.assert_array_equal(found, expected)
        return
    np.testing.assert_array_equal(found.sequences, expected.sequences)
    np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-5)
    for name in ("scores", "logits"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        np.testing.assert_allclose(np.stack(ours), np.stack(theirs), atol=1e-4)


def options_of(way, seed):
    ends = np.random.default_rng(seed).choice(96, 4, replace=False).tolist()
    options = {"max_new_tokens": NEW, "eos_token_id": ends, "pad_token_id": PAD, **WAYS[way]}
    return options | ({"key": jax.random.key(seed)} if way == "sampled" else {})


def slowly(*case):
    return pytest.param(*case, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("way", "by"),
    [
        ("records", "lookup"),
        ("records", "itself"),
        slowly("processors", "lookup"),
        slowly("sampled", "another"),
    ],
)
def test_the_texts_are_those_of_plain_decoding(model, way, by):
    """Proposals are looked up, always right (the model's own), or another model's."""
    given = LOOKUP if by == "lookup" else {"num_assistant_tokens": 3}
    if by != "lookup":
        given["assistant_model"] = model if by == "itself" else tiny(1, 0.2, n_layer=1, n_head=4)
        given["assistant_confidence_threshold"] = 0.0 if by == "itself" else 0.02
    for seed, lengths in enumerate([[9, 4, 12], [5, 5, 1], [12, 12, 12]]):
        ids, mask = prompts(np.random.default_rng(seed), lengths)
        options = options_of(way, seed)
        expected = minibert.generate(model, ids, mask, **options)
        equal(minibert.generate(model, ids, mask, **given, **options), expected, options)


@pytest.mark.slow
def test_of_another_family():
    """RoBERTa's positions depend on the tokens: the pad token has one of its own."""
    config = minibert.RobertaConfig.tiny(is_decoder=True, pad_token_id=3)
    model = minibert.RobertaForCausalLM(config, rngs=nnx.Rngs(0), param_dtype=jnp.float64).eval()
    draw = np.random.default_rng(0)
    leaves, treedef = jax.tree.flatten(model)
    drawn = [jnp.asarray(0.3 * draw.normal(size=leaf.shape)) for leaf in leaves]
    model = jax.tree.unflatten(treedef, drawn)
    ids = np.array([[5, 9, 5, 9, 3, 5], [7, 3, 7, 3, 7, 3]])
    options = {"max_new_tokens": NEW, "eos_token_id": None, "no_repeat_ngram_size": 5}
    options["suppress_tokens"] = sorted(set(range(97)) - {3, 5, 7, 9})
    options["sequence_bias"] = [[[3], 2.0]]
    expected = minibert.generate(model, ids, np.ones_like(ids), **options)
    assert (expected[:, 6:] == 3).any()
    found = minibert.generate(model, ids, np.ones_like(ids), **LOOKUP, **options)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
def test_up_to_the_last_position(model):
    """Proposals past the model's last position are not used."""
    ids, mask = prompts(np.random.default_rng(0), [26])
    options = {"max_new_tokens": 14, "eos_token_id": None}
    expected = minibert.generate(model, ids, mask, **options)
    assert expected.shape == (1, model.config.n_positions)
    for given in ({"prompt_lookup_num_tokens": 10}, {"assistant_model": model}):
        np.testing.assert_array_equal(
            minibert.generate(model, ids, mask, **given, **options), expected
        )


def state_of(texts, steps=8, length=10):
    """The state after two steps, without a model; texts are padded on the left with a 0 or more."""
    tokens = np.zeros((len(texts), length + steps - 2), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for row, text in enumerate(texts):
        tokens[row, length - len(text) : length] = text
        mask[row, length - len(text) : length - 1] = True  # the last token is not in the cache
    cache = KVCache(keys=(), values=(), mask=jnp.asarray(mask), index=jnp.zeros((), jnp.int32))
    done = jnp.zeros(len(texts), bool)
    return State(jnp.asarray(2), jnp.asarray(tokens), done, done, done, cache, {})


LOOKED_UP = {
    "one token": ([5, 6, 7, 8, 5], [6, 7, 8], 2),
    "the longest match": ([5, 1, 9, 5, 2, 8, 9, 5], [2, 8, 9], 2),
    "one token at most": ([5, 1, 9, 5, 2, 8, 9, 5], [1, 9, 5], 1),
    "the first match": ([9, 1, 9, 2, 9], [1, 9, 2], 2),
    "up to the end": ([1, 2, 3, 2], [3, 2, -1], 2),
    "none": ([1, 2, 3, 4], [-1, -1, -1], 2),
    "not of padding": ([1, 2, 3, 0], [-1, -1, -1], 2),
    "of a repeated token": ([4, 4, 4], [4, -1, -1], 2),
}


@pytest.mark.parametrize("name", LOOKED_UP)
def test_what_is_looked_up(name):
    text, expected, ngram = LOOKED_UP[name]
    plan = Plan(steps=8, proposed=3, ngram=ngram)
    found, usable = speculation.lookup(state_of([text, text]), plan)
    assert found.tolist() == [expected, expected]
    assert bool(usable) == (expected[0] >= 0)


def test_one_row_without_a_match():
    state = state_of([[1, 2, 1], [1, 2, 3]])
    plan = Plan(steps=8, proposed=3, ngram=2)
    assert not speculation.lookup(state, plan)[1]
    done = state._replace(done=jnp.array([False, True]))
    assert speculation.lookup(done, plan)[1]


@pytest.mark.slow
def test_fewer_runs(model, monkeypatch):
    """Of an assistant that is always right the model runs once for all its tokens and one more."""
    runs = []
    read = speculation._read

    def counting(model, tokens, cache, rules):
        if tokens.shape[1] > 1:
            jax.debug.callback(lambda: runs.append(1))
        return read(model, tokens, cache, rules)

    monkeypatch.setattr(speculation, "_read", counting)
    compilation.program.cache_clear()
    options = {"max_new_tokens": 13, "eos_token_id": None, "num_assistant_tokens": 3}
    options["assistant_confidence_threshold"] = 0.0
    minibert.generate(model, [[1, 2, 3]], assistant_model=model, **options)
    jax.effects_barrier()
    assert len(runs) == 3  # the first token is the prompt's; then four at a time
    compilation.program.cache_clear()


class Streamer:
    def put(self, value):
        raise AssertionError

    def end(self):
        raise AssertionError


def test_what_is_refused(model):
    ids = [[1, 2, 3]]
    other = minibert.GPT2LMHeadModel(minibert.GPT2Config.tiny(vocab_size=50), rngs=nnx.Rngs(0))
    encoder = minibert.BertLMHeadModel(minibert.BertConfig.tiny(), rngs=nnx.Rngs(0))
    for given, message in (
        ({"assistant_model": model.transformer}, "assistant_model: expected a model that generat"),
        ({"assistant_model": "gpt2"}, "assistant_model: expected a model that generates, found"),
        ({"assistant_model": encoder}, "assistant_model: expected a decoder, found config.is_deco"),
        (
            {"assistant_model": other},
            "assistant_model: expected the model's vocab_size, 97, found 5",
        ),
        ({"assistant_model": model, "num_beams": 2}, "num_beams: expected 1 with assistant_model"),
        (
            {"assistant_model": model, **LOOKUP},
            "prompt_lookup_num_tokens: expected None with assistant_model, found 4",
        ),
        (
            {"assistant_model": model, "guidance_scale": 2},
            "guidance_scale: expected 1.0 with assistant_model, found 2.0",
        ),
        (
            {"assistant_model": model, "token_type_ids": ids},
            "token_type_ids: not supported with assistant_model; expected None",
        ),
        (
            {"assistant_model": tiny(n_positions=20)},
            "make 23; expected at most 20 (assistant_model's n_positions)",
        ),
        (
            {**LOOKUP, "streamer": Streamer()},
            "prompt_lookup_num_tokens: expected None with stop",
        ),
        ({**LOOKUP, "max_time": 5.0}, "prompt_lookup_num_tokens: expected None with stop_strings"),
        ({**LOOKUP, "num_beams": 2}, "prompt_lookup_num_tokens: 4, which needs num_beams=1"),
    ):
        with pytest.raises(InputError) as caught:
            minibert.generate(model, ids, **given)
        assert message in str(caught.value)
    for given in (LOOKUP, {"assistant_model": model}):
        with pytest.raises(InputError, match=r"(prompt_lookup_num_tokens|assistant_model): not"):
            minibert.stream(model, ids, **given)
