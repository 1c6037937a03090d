"""Masking: which tokens are drawn, how often, and which are left unchanged."""

import copy
import itertools

import numpy as np
import pytest

from minibert.errors import InputError
from minibert.train import data
from minibert.train.data import text as masking
from minibert.train.data.text import Masking

pytest.importorskip("grain", reason="training data are read by grain")
stats = pytest.importorskip("scipy.stats")

CLS, SEP, UNK, MASK, PAD, IGNORED = 101, 102, 100, 103, 0, -100
TEXTS = (
    "Antidisestablishmentarianism isn't unphotographable, they say.",
    "The lighthouse keeper smiled and left.",
    "🙂 nobody knew why; a literal [MASK] stands here.",
    "Zürich, São Paulo, and the hyperventilating xylophonist.",
)
IMPROBABLE = 1e-4  # one run in ten thousand would be refused, were the seed not fixed


def likelihood(plan, words=False, probability=0.15):
    """Returns the probability of a masking's counts under 15 % and 80/10/10."""
    generator = np.random.default_rng(7)
    ids = generator.integers(1000, 30000, size=400).astype(np.int32)
    starts = np.arange(400) % 4 == 0
    counts = np.zeros(4)
    for _ in range(600):
        made = plan({"input_ids": ids, "word_starts": starts}, generator)
        target = made["labels"] != IGNORED
        np.testing.assert_array_equal(made["labels"][target], ids[target])
        np.testing.assert_array_equal(made["input_ids"][~target], ids[~target])
        now = made["input_ids"][target]
        masked, kept = (now == MASK).sum(), (now == ids[target]).sum()
        unit = 4 if words else 1
        if words:
            np.testing.assert_array_equal(target, np.repeat(target[::4], 4))
        counts += [masked, kept, len(now) - masked - kept, (len(ids) - len(now)) / unit]
    targets, others = counts[:3].sum(), counts[3]
    drawn = np.array([targets / unit, others])
    expected = np.array([probability, 1 - probability]) * drawn.sum()
    return min(
        stats.chisquare(counts[:3], targets * np.array([0.8, 0.1, 0.1])).pvalue,
        stats.chisquare(drawn, expected).pvalue,
    )


def plan(**changes):
    given = {"mask": MASK, "vocab_size": 30522, "special": (PAD, UNK, CLS, SEP, MASK)}
    return Masking(**given | changes)


@pytest.mark.parametrize("words", [False, True])
@pytest.mark.parametrize("probability", [0.15, 0.4])
def test_fractions(words, probability):
    made = plan(whole_words=words, probability=probability)
    assert likelihood(made, words, probability) > IMPROBABLE


@pytest.mark.parametrize(("name", "value"), [("MASKED", 0.82), ("RANDOM", 0.115)])
def test_other_fractions_would_be_detected(name, value, monkeypatch):
    monkeypatch.setattr(masking, name, value)
    assert likelihood(plan()) < IMPROBABLE


def test_another_probability_would_be_seen():
    assert likelihood(plan(probability=0.155)) < IMPROBABLE


def test_random_tokens_are_any():
    generator = np.random.default_rng(0)
    ids = np.full(2000, 5, np.int32)
    drawn = []
    for _ in range(200):
        made = plan(vocab_size=23, mask=22, special=(0,))({"input_ids": ids}, generator)
        drawn += made["input_ids"][(made["input_ids"] != 5) & (made["input_ids"] != 22)].tolist()
    counts = np.bincount(drawn, minlength=23)
    assert counts[5] == counts[22] == 0
    assert stats.chisquare(np.delete(counts, [5, 22])).pvalue > IMPROBABLE


def test_there_is_always_a_target():
    generator = np.random.default_rng(0)
    ids = np.array([CLS, 5000, 6000, SEP], np.int32)
    for words in (False, True):
        found = np.zeros(4)
        for _ in range(400):
            starts = np.array([True, True, False, True])
            made = plan(probability=1e-9, whole_words=words)
            target = made({"input_ids": ids, "word_starts": starts}, generator)["labels"] != -100
            assert target.sum() == (2 if words else 1)
            found += target
        assert found[0] == found[3] == 0
        assert stats.chisquare(found[1:3]).pvalue > IMPROBABLE


def test_every_token_may_be_one():
    made = plan(probability=1.0)(
        {"input_ids": np.array([CLS, 7, UNK, 8, SEP], np.int32)}, np.random.default_rng(0)
    )
    assert made["labels"].tolist() == [-100, 7, -100, 8, -100]


def test_special_tokens_are_those_of_transformers(tokenizer):
    made = masking.masking_of(tokenizer, 0.15, False)
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        special = tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True)
        np.testing.assert_array_equal(made.free(np.array(ids)), ~np.array(special, bool))
    assert (made.mask, made.vocab_size) == (MASK, 30522)


def restored(batch):
    return np.where(batch["labels"] == IGNORED, batch["input_ids"], batch["labels"])


def test_texts_are_masked_and_nothing_else(tokenizer):
    batches = list(
        data.masked_lm(TEXTS, tokenizer, max_length=32, batch_size=2, pack=False, epochs=40)
    )
    whole = tokenizer(list(TEXTS), padding="max_length", max_length=32, return_tensors="np")
    seen = set()
    for batch in batches:
        rows = batch["example"]
        np.testing.assert_array_equal(restored(batch), whole["input_ids"][rows])
        np.testing.assert_array_equal(batch["attention_mask"], whole["attention_mask"][rows])
        assert (batch["labels"] != IGNORED).any(axis=1).all()
        assert np.isin(batch["labels"], [PAD, UNK, CLS, SEP, MASK]).sum() == 0
        assert batch.keys() == {"input_ids", "attention_mask", "labels", "example"}
        seen |= {(n, *row) for n, row in zip(rows.tolist(), batch["labels"].tolist(), strict=True)}
    assert len(seen) > 60  # 160 examples; those of the shortest text repeat


def test_masks_do_not_depend_on_order_or_hosts(tokenizer):
    def rows(**options):
        made = data.masked_lm(
            TEXTS, tokenizer, max_length=32, pack=False, epochs=2, seed=3, **options
        )
        found = [
            (int(n), ids.tolist())
            for batch in made
            for n, ids in zip(batch["example"], batch["input_ids"], strict=True)
        ]
        return sorted(found)

    alone = rows(batch_size=1)
    assert alone == rows(batch_size=4, shuffle=True)
    shares = [rows(batch_size=2, share=(i, 2)) for i in range(2)]
    assert alone == sorted(shares[0] + shares[1])


def test_whole_words_are_those_with_hashes(tokenizer):
    seen = 0
    for batch in data.masked_lm(
        TEXTS, tokenizer, max_length=32, batch_size=1, pack=False, whole_words=True, epochs=30
    ):
        tokens = tokenizer.convert_ids_to_tokens(restored(batch)[0].tolist())
        target = batch["labels"][0] != IGNORED
        for place, token in enumerate(tokens):
            if token.startswith("##"):
                assert target[place] == target[place - 1], tokens
                seen += target[place]
    assert seen > 30


def test_whole_words_of_byte_level_tokens():
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    backend = tokenizers.ByteLevelBPETokenizer()
    backend.train_from_iterator(["the lighthouse"] * 3, vocab_size=258, special_tokens=["<mask>"])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend._tokenizer, mask_token="<mask>", pad_token="<mask>"
    )
    (batch,) = data.masked_lm(
        ["the lighthouse keeper"],
        tokenizer,
        max_length=40,
        batch_size=1,
        pack=False,
        whole_words=True,
        probability=1e-9,
    )
    (target,) = np.nonzero(batch["labels"][0] != IGNORED)
    assert tokenizer.decode(restored(batch)[0][target]) in ("the", " lighthouse", " keeper")


@pytest.mark.parametrize("length", [5, 8, 13, 200])
def test_blocks_hold_all_tokens(tokenizer, length):
    rows = []
    batches = data.masked_lm(TEXTS, tokenizer, max_length=length, batch_size=3)
    for batch in batches:
        assert batch["input_ids"].shape[1] == length
        for ids, mask in zip(restored(batch), batch["attention_mask"], strict=True):
            rows.append(ids[mask == 1].tolist())
            assert not ids[mask == 0].any()
    assert all(len(row) == length for row in rows[:-1])
    assert all((row[0], row[-1]) == (CLS, SEP) for row in rows)
    content = list(itertools.chain.from_iterable(row[1:-1] for row in rows))
    texts = tokenizer(list(TEXTS), add_special_tokens=False)["input_ids"]
    joined = list(itertools.chain.from_iterable([*text, SEP] for text in texts))
    assert content == joined[:-1]


@pytest.mark.parametrize(
    ("source", "options", "said"),
    [
        (["a", ""], {}, "text 1: the text is empty"),
        (["a", None], {}, "text 1: expected a text, found None"),
        (["a", float("nan")], {}, "text 1: expected a text, found nan"),
        (["a", "\ud800"], {}, "text 1: half a surrogate pair"),
        ([], {}, "texts: expected at least 1 text, found none"),
        (5, {}, "texts: expected a path or texts, found 5"),
        (
            ["a " * 40],
            {"pack": False},
            "text 0: 42 tokens; expected at most 16 .max_length.; truncation=True",
        ),
        (["a", "🙂"], {"pack": False}, "text 1: has no token that can be masked"),
        (
            ["a"],
            {"max_length": 2},
            "max_length: expected over 2, the number of special tokens; found 2",
        ),
        (
            ["a"],
            {"max_length": 2, "pack": False},
            "max_length: expected over 2, the number of special tokens; found 2",
        ),
        (["a"], {"probability": 0}, "probability: expected a number above 0, to 1, found 0"),
        (["a"], {"probability": 1.5}, "probability: expected a number above 0, to 1, found 1.5"),
        (["a"], {"probability": True}, "probability: expected a number above 0"),
        (["a"], {"column": "text"}, "column: expected None for texts, found 'text'"),
        ("a.csv", {"column": ["text"]}, "column: expected a name, found"),
        (["a"], {"whole_words": "yes"}, "whole_words: expected True or False, found 'yes'"),
        (["a"], {"pack": 1}, "pack: expected True or False"),
        (["a"], {"truncation": 1}, "truncation: expected True or False"),
        (["a"], {"pad_to": 17}, "pad_to: 17 is over max_length, 16"),
        (["a"], {"pad_to": 0}, "pad_to: expected a whole number of at least 1"),
        (["a"], {"pad_to": "long"}, "pad_to: expected a whole number"),
    ],
)
def test_texts_refused(tokenizer, source, options, said):
    with pytest.raises(InputError, match=said):
        data.masked_lm(source, tokenizer, **{"max_length": 16, "batch_size": 1} | options)


def test_truncation(tokenizer):
    (batch,) = data.masked_lm(
        ["a " * 40], tokenizer, max_length=16, batch_size=1, pack=False, truncation=True
    )
    assert restored(batch).tolist() == [[CLS, *[1037] * 14, SEP]]


def test_a_tokenizer_without_a_mask(tokenizer):
    bare = copy.deepcopy(tokenizer)
    bare.mask_token = None
    with pytest.raises(InputError, match="tokenizer: expected a tokenizer with a mask token"):
        data.masked_lm(["a"], bare, max_length=8, batch_size=1)
    with pytest.raises(
        InputError, match="expected a fast tokenizer of transformers, found 'NoneType'"
    ):
        data.masked_lm(["a"], None, max_length=8, batch_size=1)
