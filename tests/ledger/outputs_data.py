"""Batches of every kind of training data, what identifies them, and where an iterator stands."""

import json
import pathlib
from typing import Any

import numpy as np

from .outputs_texts import TEXT, tokenizer
from .surface import assets, data

TEXTS = ["The loop ends.", "A string is a sequence.", TEXT, "Tuples are immutable.", "Names."]
DOCUMENTS = [
    ["The loop ends.", "It begins again.", "So it is."],
    ["A string.", "A tuple.", "Ends."],
]
LABELLED = [{"text": text, "label": ["a", "b"][n % 2]} for n, text in enumerate(TEXTS)]
TAGGED = [
    {"tokens": ["The", "loop", "ends"], "labels": ["O", "B", "O"]},
    {"tokens": ["Strings"], "labels": ["B"]},
]
ASKED = [
    {
        "question": "What ends?",
        "context": f"{TEXT} The loop ends. {TEXT}",
        "answers": {"text": ["The loop"], "answer_start": [len(TEXT) + 1]},
    },
    {"question": "Who?", "context": TEXT, "answers": {"text": [], "answer_start": []}},
]
PAIRS = [
    {"anchor": "loop", "positive": "The loop ends.", "negative": "A string."},
    {"anchor": "string", "positive": "A string.", "negative": "Names."},
]
SHORT: dict[str, Any] = {"max_length": 16, "batch_size": 2, "truncation": True}


def kept(batches: Any) -> dict[str, Any]:
    """The batches; what identifies them; where the iterator stands after the first."""
    iterator = iter(batches)
    first = next(iterator)
    place = json.dumps(iterator.get_state(), sort_keys=True, default=str)
    rest = list(iterator)
    told = json.dumps(batches.identity(), indent=1, sort_keys=True, default=str)
    return {"batches": [first, *rest], "identity": told.splitlines(), "place": place}


def texts(folder: pathlib.Path) -> Any:
    words = tokenizer()
    options = {"seed": 5, "epochs": 2, "shuffle": True}
    return {
        "packed": kept(data.masked_lm(TEXTS, words, max_length=12, batch_size=2, **options)),
        "alone": kept(data.masked_lm(TEXTS, words, pack=False, whole_words=True, **SHORT)),
        "pairs": kept(
            data.pretraining(DOCUMENTS, words, max_length=24, batch_size=2, probability=0.3)
        ),
    }


def windows(folder: pathlib.Path) -> Any:
    ids = data.token_ids(TEXTS, tokenizer(assets.GPT2))
    (folder / "lines.txt").write_text("\n".join(TEXTS))
    return {
        "ids": ids,
        "of a file": data.token_ids(folder / "lines.txt", tokenizer(), end=False),
        "plain": kept(data.windows(ids, max_length=8, batch_size=3)),
        "near": kept(
            data.windows(ids, max_length=8, stride=3, batch_size=4, shuffle=True, drop_last=True)
        ),
        "shares": [
            list(data.windows(ids, max_length=8, batch_size=2, drop_last=True, share=(n, 2)))
            for n in range(2)
        ],
    }


def records(folder: pathlib.Path) -> Any:
    words = tokenizer()
    several = [{**row, "label": [row["label"], "c"]} for row in LABELLED]
    numbers = [{**row, "label": n / 2} for n, row in enumerate(LABELLED)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in LABELLED))
    lines = ["text,label", *(f'"{row["text"]}",{row["label"]}' for row in LABELLED)]
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")
    kinds = {"problem_type": "multi_label_classification"}
    return {
        "labels": data.label_ids(LABELLED),
        "one": kept(data.classification(LABELLED, words, **SHORT)),
        "file": kept(data.classification(folder / "rows.jsonl", words, pad_to=[8, 16], **SHORT)),
        "table": kept(data.classification(folder / "rows.csv", words, **SHORT)),
        "several": kept(data.classification(several, words, **kinds, **SHORT)),
        "numbers": kept(data.classification(numbers, words, problem_type="regression", **SHORT)),
        "tags": kept(data.token_classification(TAGGED, words, **SHORT)),
        "answers": kept(
            data.question_answering(ASKED, words, max_length=32, doc_stride=8, batch_size=2)
        ),
        "likes": kept(data.contrastive(PAIRS, words, negative="negative", **SHORT)),
    }


def own(folder: pathlib.Path) -> Any:
    """Examples of the caller's, with a transformation that is drawn."""
    rows = [{"x": np.arange(3) + n, "example": np.int64(n)} for n in range(7)]

    def noisy(example: Any, draw: np.random.Generator) -> Any:
        return {**example, "y": draw.integers(0, 100, 2)}

    options: dict[str, Any] = {"shuffle": True, "epochs": 2, "seed": 9, "about": {"a": 1}}
    return kept(data.batches(rows, batch_size=3, transforms=[noisy], **options))


CASES = (texts, windows, records, own)
