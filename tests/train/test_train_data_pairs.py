"""Pairs of sentences: their sources and frequencies, and errors."""

import json

import numpy as np
import pytest

from minibert.errors import InputError
from minibert.text.tokenizer import backend_of
from minibert.train import data
from minibert.train.data.encoding import frame_of
from minibert.train.data.next_sentence import _runs

pytest.importorskip("grain", reason="training data are read by grain")
stats = pytest.importorskip("scipy.stats")

CLS, SEP, IGNORED = 101, 102, -100


def restored(batch):
    return np.where(batch["labels"] == IGNORED, batch["input_ids"], batch["labels"])


def test_frames(tokenizer):
    assert frame_of(backend_of(tokenizer), pair=True).types == (0, 1)
    frame = frame_of(backend_of(tokenizer), pair=True)
    assert (frame.before, frame.between, frame.after) == ((CLS,), (SEP,), (SEP,))
    frame = frame_of(backend_of(tokenizer), pair=False)
    assert (frame.before, frame.between, frame.after) == ((CLS,), (), (SEP,))


@pytest.mark.parametrize(
    ("lengths", "runs"),
    [
        ([4, 4], [(0, 2)]),
        ([4, 4, 4, 4], [(0, 2), (2, 4)]),
        ([4, 4, 4], [(0, 2), (1, 3)]),  # the last one goes with its neighbour again
        ([2, 2, 2, 2, 2], [(0, 5)]),
        ([20, 1, 1], [(0, 2), (1, 3)]),
        ([9, 9, 1, 1], [(0, 2), (2, 4)]),
    ],
)
def test_runs_of_sentences(lengths, runs):
    assert list(_runs(lengths, 10)) == runs


NUMBERS = "zero one two three four five six seven eight nine".split()
DOCUMENTS = [
    [f"{NUMBERS[d]} {NUMBERS[s]} goes" + " on" * (s % 3) for s in range(3 + d)] for d in range(7)
]


def test_sentence_order(tokenizer):
    """Both parts are of one document, in their order or swapped; one document is enough."""
    options = {"max_length": 24, "batch_size": 4, "epochs": 30, "sentence_order": True}
    found = {0: set(), 1: set()}
    for batch in data.pretraining(DOCUMENTS[:1], tokenizer, **options):
        assert "next_sentence_label" not in batch
        for row, label in enumerate(batch["sentence_order_label"]):
            ids = restored(batch)[row][batch["attention_mask"][row] == 1].tolist()
            first = ids[1 : ids.index(SEP)]
            second = ids[len(first) + 2 : -1]
            assert batch["token_type_ids"][row].sum() == len(second) + 1
            found[int(label)].add((tuple(first), tuple(second)))
    assert found[0]
    assert {(second, first) for first, second in found[1]} == found[0]
    with pytest.raises(InputError, match="documents: expected at least two"):
        data.pretraining(DOCUMENTS[:1], tokenizer, max_length=24, batch_size=4)


@pytest.fixture(scope="module")
def pairs(tokenizer):
    batches = data.pretraining(
        DOCUMENTS, tokenizer, max_length=24, batch_size=4, shuffle=True, epochs=100
    )
    return [
        {name: array[row] for name, array in batch.items()} | {"whole": restored(batch)[row]}
        for batch in batches
        for row in range(len(batch["input_ids"]))
    ]


def parts(pair, tokenizer):
    ids, types, mask = pair["whole"], pair["token_type_ids"], pair["attention_mask"]
    assert (types[mask == 0] == 0).all()
    texts = [ids[(types == t) & (mask == 1)].tolist() for t in (0, 1)]
    assert texts[0][0] == CLS
    assert texts[0][-1] == texts[1][-1] == SEP
    assert ids[mask == 1].tolist() == texts[0] + texts[1]
    return [tokenizer.decode(part, skip_special_tokens=True) for part in texts]


@pytest.mark.slow
def test_pairs_are_what_their_labels_say(pairs, tokenizer):
    texts = [" ".join(document) for document in DOCUMENTS]
    for pair in pairs:
        first, second = parts(pair, tokenizer)
        (own,) = [d for d, text in enumerate(texts) if text.split()[0] == first.split()[0]]
        assert first in texts[own]
        if pair["next_sentence_label"] == 0:
            assert f"{first} {second}" in texts[own]
        else:
            assert second not in texts[own]
            assert any(second in text for text in texts)


def test_half_of_the_pairs_are_random(pairs):
    random = sum(int(pair["next_sentence_label"]) for pair in pairs)
    assert stats.binomtest(random, len(pairs), 0.5).pvalue > 0.01  # 44 % have 0.0003
    assert len(pairs) == 100 * len({int(pair["example"]) for pair in pairs})
    by_example = [p["next_sentence_label"] for p in pairs if p["example"] == 0]
    assert 20 < sum(by_example) < 80  # drawn anew in every epoch


def test_all_other_documents_are_drawn(pairs, tokenizer):
    drawn = {
        (parts(p, tokenizer)[0].split()[0], parts(p, tokenizer)[1].split()[0])
        for p in pairs
        if p["next_sentence_label"] == 1
    }
    assert drawn == {(a, b) for a in NUMBERS[:7] for b in NUMBERS[:7] if a != b}


def test_pairs_are_truncated_only_on_request(tokenizer):
    long = [["one " * 30, "two " * 5], ["three " * 40, "four " * 40]]
    with pytest.raises(
        InputError, match="document 0: sentences 0 to 1: 38 tokens; expected at most"
    ):
        data.pretraining(long, tokenizer, max_length=24, batch_size=1)
    for batch in data.pretraining(
        long, tokenizer, max_length=24, batch_size=1, truncation=True, epochs=30
    ):
        assert batch["attention_mask"].sum() <= 24
        first, second = parts(
            {name: array[0] for name, array in batch.items()} | {"whole": restored(batch)[0]},
            tokenizer,
        )
        assert first
        assert second


def test_documents_from_files(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("\n\none\ntwo\n\n \nthree\nfour\nfive\n")
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": t}) + "\n" for t in ("one\ntwo", "three\n\nfour\nfive\n"))
    )
    given = [["one", "two"], ["three", "four", "five"]]
    expected = list(data.pretraining(given, tokenizer, max_length=16, batch_size=2, epochs=5))
    for source in (tmp_path / "a.txt", str(tmp_path / "a.jsonl"), ["one\ntwo", given[1]]):
        found = list(data.pretraining(source, tokenizer, max_length=16, batch_size=2, epochs=5))
        for one, other in zip(expected, found, strict=True):
            for name in one:
                np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize(
    ("source", "options", "said"),
    [
        ([["a", "b"]], {}, "documents: expected at least two, found 1"),
        ([["a", "b"], ["c"]], {}, "document 1: expected at least two sentences, found 1"),
        ([["a", "b"], ["c", " "]], {}, "document 1: sentence 1: the text is empty"),
        ([["a", "b"], 3], {}, "document 1: expected a text or sentences, found 3"),
        ([["a", "b"], ["c", "🙂"]], {}, "document 1: sentence 1 has no token that can be masked"),
        (4, {}, "documents: expected a path or documents, found 4"),
        ([["a", "b"]] * 2, {"max_length": 4}, "max_length: expected at least 5, .*; found 4"),
    ],
)
def test_documents_refused(tokenizer, source, options, said):
    with pytest.raises(InputError, match=said):
        data.pretraining(source, tokenizer, **{"max_length": 16, "batch_size": 1} | options)
