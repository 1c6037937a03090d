"""What `minibert train` reads and holds out, and settings that contradict each other."""

import json

import numpy as np
import pytest

from minibert.assets import BERT, GPT2
from minibert.errors import ConfigError, InputError
from minibert.models.bert import BertConfig
from minibert.train import data
from minibert.train.job.settings import read_settings
from minibert.train.job.tasks import TASKS, dataset_of, sources_of, tokenizer_of

ROWS = [f"{word} of the {word}" for word in ("one", "two", "three", "four", "five", "six")]


def settings_of(task, path="rows.jsonl", **keys):
    given = {"output": "out", "model": BERT, "steps": 1, "max_length": 16, "batch_size": 2}
    return read_settings(None, {**given, "task": task, "data": str(path), **keys})


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    labelled = ({"body": text, "label": len(text) % 2} for text in ROWS)
    path.write_text("".join(json.dumps(row) + "\n" for row in labelled))
    return path


def test_the_end_of_a_text_is_held_out(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(ROWS))
    given = settings_of("causal-lm", path, model=GPT2, evaluation_fraction=0.25)
    tokenizer = tokenizer_of(given)
    assert tokenizer.pad_token == tokenizer.eos_token
    before, after = sources_of(given, tokenizer)
    whole = data.token_ids(str(path), tokenizer)
    np.testing.assert_array_equal(np.concatenate([before, after]), whole)
    assert len(after) == round(len(whole) / 4)
    assert sources_of(settings_of("causal-lm", path, evaluation="x"), tokenizer) == (str(path), "x")


def test_documents_are_held_out(tmp_path):
    path = tmp_path / "documents.txt"
    path.write_text("\n\n".join(f"{text}\nof one\nand more" for text in ROWS))
    parts = sources_of(settings_of("pretraining", path, evaluation_fraction=1 / 3), None)
    assert [len(part) for part in parts] == [4, 2]
    firsts = [document[0] for part in parts for document in part]
    assert sorted(firsts) == sorted(ROWS)


def test_rows_are_held_out(rows):
    pytest.importorskip("grain", reason="it makes the batches")
    given = settings_of("masked-lm", rows, text="body", pack=False, evaluation_fraction=0.5)
    tokenizer = tokenizer_of(given)
    before, after = sources_of(given, tokenizer)
    assert sorted([*before, *after]) == sorted(ROWS)
    assert len(after) == 3

    def texts(source):
        batches = dataset_of(given, source, tokenizer, None, epochs=1, shuffle=False)
        return sum(len(batch["input_ids"]) for batch in batches)

    assert texts(str(rows)) == 6  # by the column
    assert texts(list(before) + before[:1]) == 4  # of texts, which have none
    with pytest.raises(InputError, match=r"evaluation_fraction: .*found 0.01, which is 0 of 6"):
        sources_of(settings_of("masked-lm", rows, text="body", evaluation_fraction=0.01), None)


def test_records_are_held_out(rows):
    given = settings_of("classification", rows, text="body", evaluation_fraction=1 / 3)
    parts = sources_of(given, None)
    assert [len(part) for part in parts] == [4, 2]
    assert sorted(record["body"] for part in parts for record in part) == sorted(ROWS)


def test_classes_have_weights():
    config = BertConfig.tiny(num_labels=2)
    plain, weighted = (
        TASKS["classification"].objective(settings_of("classification", **keys), config)
        for keys in ({}, {"class_weights": [1.0, 3.0], "label_smoothing": 0.1})
    )
    assert weighted.settings != plain.settings
    found = settings_of("classification", label_smoothing=0.1, problem_type="regression")
    with pytest.raises(ConfigError, match="label_smoothing, class_weights: not implemented for"):
        TASKS["classification"].objective(found, config)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"output": None}, "missing keys: output"),
        ({"model": None, "config": "tiny"}, "tokenizer: expected a folder"),
        ({"evaluation": "x", "evaluation_fraction": 0.1}, "evaluation, evaluation_fraction: "),
    ],
)
def test_contradictions(keys, said, tmp_path):
    given = {"task": "masked-lm", "data": "x", "output": "out", "model": BERT, "steps": 1}
    found = {name: value for name, value in {**given, **keys}.items() if value is not None}
    path = tmp_path / "CONFIG.toml"
    path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in found.items()))
    with pytest.raises(ConfigError, match=said):
        read_settings(str(path), {})
