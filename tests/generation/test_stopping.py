"""Decisions on the host between steps stop the texts that transformers stops, token for token."""

import time

import jax
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs PyTorch, the oracle")

import torch
import transformers
from flax import nnx
from transformers import StopStringCriteria

import minibert
from minibert.errors import InputError
from minibert.generation.stopping import StopStrings
from slowly import slow_but

PROMPTS = ("The for statement is used to", "When a function is called,", "The value")
STOPS = {
    "sentence": ["."],
    "word": [" the"],
    "two words": ["function", '"with"'],
    "letter": ["a", "never there"],
    "words": [" is called as"],
    "lines": ["\n\n"],
}
FOLDERS = {"gpt2": minibert.assets.GPT2, "bert": minibert.assets.BERT}
GREEDY = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 1}

pytestmark = pytest.mark.unoptimised


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(minibert.assets.GPT2)


@pytest.fixture(scope="module")
def ours():
    return minibert.GPT2LMHeadModel.from_pretrained(minibert.assets.GPT2)


@pytest.fixture(scope="module")
def theirs():
    return transformers.GPT2LMHeadModel.from_pretrained(minibert.assets.GPT2).eval()


@pytest.fixture(scope="module")
def small():
    return minibert.GPT2LMHeadModel(minibert.GPT2Config.tiny(), rngs=nnx.Rngs(0)).eval()


def of_torch(theirs, ids, **options):
    ids = torch.tensor([ids])
    mask = torch.ones_like(ids)
    return theirs.generate(ids, attention_mask=mask, **{**GREEDY, **options}).numpy()


@pytest.mark.parametrize("folder", slow_but(FOLDERS, "gpt2"))
def test_stop_strings_are_found_where_transformers_finds_them(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDERS[folder])
    draw, text = (
        np.random.default_rng(0),
        "in the a naïve — 🤷 東京 of statements, function(s): ing",
    )
    parts = [text[i : i + n] for i in range(0, len(text), 3) for n in (1, 2, 5)]
    ids = tokenizer(text * 3, add_special_tokens=False)["input_ids"]
    rows = np.array([np.roll(ids, -shift)[:9] for shift in range(len(ids))])
    noise = draw.integers(0, len(tokenizer) + 3, rows.shape)  # a few ids are not the tokenizer's
    rows = np.concatenate([rows, np.where(draw.random(rows.shape) < 0.2, noise, rows)])
    hits = 0
    for strings in (*([part] for part in parts), ["zzzzz", "the"], parts[:6]):
        own = StopStrings(strings, tokenizer)
        try:
            theirs = StopStringCriteria(tokenizer, strings)
        except ValueError:  # no token of the vocabulary ends the string
            assert not own(rows).any()
            continue
        for length in (1, 4, 9):
            expected = theirs(torch.tensor(rows[:, :length]), None).numpy()
            np.testing.assert_array_equal(own(rows[:, :length]), expected, str(strings))
            hits += expected.sum()
    assert hits > 300


@pytest.mark.parametrize("stops", slow_but(STOPS, "sentence"))
def test_texts_stop_with_the_token_that_completes_a_string(ours, theirs, tokenizer, stops):
    ids = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    given = {"stop_strings": STOPS[stops], "tokenizer": tokenizer}
    expected = [of_torch(theirs, prompt, **given)[0] for prompt in ids]
    longest = max(map(len, ids))
    found = minibert.generate(ours, ids, **GREEDY, **given)
    for row, prompt, text in zip(found, ids, expected, strict=True):
        new = text[len(prompt) :]
        np.testing.assert_array_equal(row[longest : longest + len(new)], new)
        assert (row[longest + len(new) :] == 1).all()
    columns = np.stack(list(minibert.stream(ours, ids, **GREEDY, **given)), axis=1)
    np.testing.assert_array_equal(columns, found[:, longest:])


def test_stop_strings_of_a_checkpoint(ours, tokenizer):
    config = minibert.GenerationConfig.from_dict({"stop_strings": ["."], "max_time": 60})
    assert config.stop_strings == (".",)
    assert config.to_dict() == {"stop_strings": ["."], "max_time": 60.0}
    ids, given = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS], {**GREEDY}
    given["generation_config"] = config
    with pytest.raises(InputError, match="stop_strings: needs the model's tokenizer"):
        minibert.generate(ours, ids, **given)
    found = minibert.generate(ours, ids, tokenizer=tokenizer, **given)
    assert tokenizer.decode(found[0], skip_special_tokens=True).rstrip("!").endswith("statement.")
    assert minibert.generate(ours, ids, stop_strings=None, **given).shape[1] == 6 + 16


@pytest.mark.slow
def test_the_record_of_a_text_that_stops(ours, tokenizer):
    ids = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    options = {**GREEDY, "return_dict_in_generate": True, "output_scores": True}
    whole = minibert.generate(ours, ids, **options)
    found = minibert.generate(ours, ids, stop_strings=["."], tokenizer=tokenizer, **options)
    longest, steps = max(map(len, ids)), found.log_probs.shape[1]
    assert len(found.scores) == steps == found.sequences.shape[1] - longest
    for row, text in enumerate(found.sequences[:, longest:]):
        done = int((text != 1).sum())  # the rest is padding
        np.testing.assert_array_equal(text[:done], whole.sequences[row, longest : longest + done])
        np.testing.assert_allclose(
            found.log_probs[row, :done], whole.log_probs[row, :done], atol=1e-5
        )
        assert not found.log_probs[row, done:].any()
        np.testing.assert_allclose(found.scores[0], whole.scores[0], atol=1e-4)


@pytest.mark.slow
def test_stopping_criteria(ours, theirs, tokenizer):
    seen = []

    def third(input_ids, scores, **_):
        seen.append((type(input_ids), scores))
        return input_ids[:, -1] == 2 if input_ids.shape[1] < 9 else input_ids.shape[1] >= 11

    def same(input_ids, scores, **_):
        done = torch.as_tensor(third(input_ids.numpy(), scores))
        return done.expand(len(input_ids))

    found = minibert.generate(
        ours, [tokenizer(PROMPTS[0])["input_ids"]], stopping_criteria=[third], **GREEDY
    )
    assert seen
    assert all(kind is np.ndarray and scores is None for kind, scores in seen)
    expected = of_torch(theirs, tokenizer(PROMPTS[0])["input_ids"], stopping_criteria=[same])
    np.testing.assert_array_equal(found, expected)
    assert found.shape == (1, 11)


def test_what_criteria_receive_and_return(small):
    shapes = []

    def watch(texts, scores):
        shapes.append((texts.shape, [one.shape for one in scores]))
        return [True, False] if texts.shape[1] == 3 else texts.shape[1] == 5

    options = {**GREEDY, "return_dict_in_generate": True, "output_scores": True}
    found = minibert.generate(small, [[5, 6], [7, 8]], stopping_criteria=watch, **options)
    vocab = small.config.vocab_size
    assert shapes == [((2, 2 + n), [(2, vocab)] * n) for n in (1, 2, 3)]
    assert found.sequences[0, 3:].tolist() == [1, 1]
    for wrong in (1, [True] * 3, None, np.ones((2, 1), bool)):
        with pytest.raises(InputError, match="stopping_criteria: expected True or False, or 2 of"):
            minibert.generate(
                small, [[5, 6], [7, 8]], stopping_criteria=lambda *_, w=wrong: w, **GREEDY
            )


@pytest.mark.slow
def test_criteria_of_transformers(small):
    longest = transformers.MaxLengthCriteria(max_length=7)
    criteria = transformers.StoppingCriteriaList([longest])
    found = minibert.generate(small, [[5, 6, 7]], stopping_criteria=criteria, **GREEDY)
    np.testing.assert_array_equal(found, minibert.generate(small, [[5, 6, 7]], **GREEDY)[:, :7])


def test_time_ends_all_texts(small):
    minibert.generate(small, [[5, 6]], max_time=100, **GREEDY)  # compiles
    started = time.monotonic()
    slow = minibert.generate(
        small,
        [[5, 6]],
        max_time=0.3,
        stopping_criteria=lambda *_: time.sleep(0.1) or False,
        **GREEDY,
    )
    assert 0.3 < time.monotonic() - started < 5
    assert slow.shape[1] < 2 + 16
    assert minibert.generate(small, [[5, 6]], max_time=1e-9, **GREEDY).shape == (1, 3)


@pytest.mark.slow
def test_only_allowed_tokens_follow(ours, theirs, tokenizer):
    calls = []

    def after(number, text):
        calls.append((number, text.tolist()))
        last = int(text[-1])
        return [(last + 7) % 2048, (last * 3) % 2048, 40 + number]

    def torch_after(number, text):
        return after(number, text.numpy())

    for options in ({}, {"repetition_penalty": 1.7, "min_new_tokens": 3}):
        expected = of_torch(
            theirs,
            tokenizer(PROMPTS[1])["input_ids"],
            prefix_allowed_tokens_fn=torch_after,
            **options,
        )
        of_theirs = calls.copy()
        calls.clear()
        found = minibert.generate(
            ours,
            [tokenizer(PROMPTS[1])["input_ids"]],
            prefix_allowed_tokens_fn=after,
            **GREEDY,
            **options,
        )
        np.testing.assert_array_equal(found, expected)
        assert calls == of_theirs
        calls.clear()


def test_allowed_tokens_of_several_texts(small):
    def own(number, text):
        return [50 + number] if len(text) < 5 else [0]  # 0 is the end

    options = {
        "prefix_allowed_tokens_fn": own,
        "max_new_tokens": 9,
        "pad_token_id": 1,
        "eos_token_id": 0,
    }
    found = minibert.generate(small, [[5, 6], [7]], **options)
    np.testing.assert_array_equal(found, [[5, 6, 50, 50, 50, 0], [1, 7, 51, 51, 51, 0]])
    drawn = {"do_sample": True, "num_return_sequences": 2, "key": jax.random.key(0)}
    found = minibert.generate(small, [[5, 6], [7, 8]], **options, **drawn)
    assert found[:, 2].tolist() == [50, 50, 51, 51]
    columns = list(minibert.stream(small, [[5, 6], [7, 8]], **options, **drawn))
    np.testing.assert_array_equal(np.stack(columns, axis=1), found[:, 2:])


@pytest.mark.slow
def test_beams_of_allowed_tokens(ours, theirs, tokenizer):
    """As in retrieval of entities: the beams are the best of a few texts."""
    names = [" statement", " function call", " class object", " the value", " a class"]
    ids = [[*tokenizer(name)["input_ids"], 0] for name in names]
    prompt = tokenizer(PROMPTS[1])["input_ids"]

    def entities(number, text):
        new = text.tolist()[len(prompt) :]
        return [name[len(new)] for name in ids if name[: len(new)] == new] or [0]

    options = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 8}
    expected = of_torch(
        theirs, tokenizer(PROMPTS[1])["input_ids"], prefix_allowed_tokens_fn=entities, **options
    )
    given = {**GREEDY, **options, "prefix_allowed_tokens_fn": entities}
    found = minibert.generate(ours, [prompt], **given)
    np.testing.assert_array_equal(found, expected)
    assert len({tuple(row) for row in found.tolist()}) == 3
    with pytest.raises(InputError, match=r"expected 6 texts, found 5: .*\(prefix_allowed_tokens"):
        minibert.generate(ours, [prompt], **given | {"num_beams": 6, "num_return_sequences": 6})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "prefix_allowed_tokens_fn: expected a non-empty list of token ids for row 0, found"),
        ([0.5], "prefix_allowed_tokens_fn: expected a non-empty list of token ids for row 0"),
        (5, "prefix_allowed_tokens_fn: expected a non-empty list of token ids for row 0, found 5"),
        (None, "prefix_allowed_tokens_fn: expected an array of numbers, found NoneType"),
        ([1, 97], "prefix_allowed_tokens_fn: expected token ids from 0 to 96 .*, found 97"),
        ([-1, 5], "prefix_allowed_tokens_fn: expected token ids from 0 to 96 .*, found -1"),
    ],
)
def test_allowed_tokens_that_cannot_be(small, given, message):
    with pytest.raises(InputError, match=message):
        minibert.generate(small, [[5, 6]], prefix_allowed_tokens_fn=lambda *_: given, **GREEDY)


def test_allowed_tokens_that_options_ban(small):
    with pytest.raises(
        InputError, match=r"row 0: the options ban every next token .*suppress_tokens, prefix_"
    ):
        minibert.generate(
            small,
            [[5, 6]],
            prefix_allowed_tokens_fn=lambda *_: [9],
            suppress_tokens=[9],
            **GREEDY,
        )


class Recorder(transformers.generation.streamers.BaseStreamer):
    def __init__(self):
        self.put_values, self.ends = [], 0

    def put(self, value):
        self.put_values.append(np.asarray(value).tolist())

    def end(self):
        self.ends += 1


@pytest.mark.slow
def test_a_streamer_receives_what_that_of_transformers_does(ours, theirs, tokenizer):
    one, other = Recorder(), Recorder()
    expected = of_torch(theirs, tokenizer(PROMPTS[0])["input_ids"], streamer=other)
    ids = [tokenizer(PROMPTS[0])["input_ids"]]
    found = minibert.generate(ours, ids, streamer=one, **GREEDY)
    np.testing.assert_array_equal(found, expected)
    assert (one.put_values, one.ends) == (other.put_values, other.ends)
    assert one.ends == 1


@pytest.mark.slow
def test_a_streamer_that_prints(ours, tokenizer, capsys):
    streamer = transformers.TextStreamer(tokenizer, skip_prompt=True)
    ids = [tokenizer(PROMPTS[0])["input_ids"]]
    found = minibert.generate(ours, ids, streamer=streamer, **GREEDY)
    assert capsys.readouterr().out == tokenizer.decode(found[0, len(ids[0]) :]) + "\n"
