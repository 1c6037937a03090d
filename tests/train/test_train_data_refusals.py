"""Errors for invalid training data."""

import json
import math

import numpy as np
import pytest

from malformed import with_damaged_map
from minibert.data.records import Records
from minibert.errors import InputError
from minibert.train import data
from minibert.train.data.batching import Collate

pytest.importorskip("grain", reason="training data are read by grain")

IDS = np.arange(65)


@pytest.fixture
def read(tokenizer):
    """Returns the batches of a task, by its name."""

    def reading(task, source, **options):
        given = {"max_length": 12, "batch_size": 1} | options
        return getattr(data, task)(source, tokenizer, **given)

    return reading


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"stride": 0}, "stride: expected a whole number of at least 1, found 0"),
        ({"stride": 1.5}, "stride: expected a whole number"),
        ({"max_length": 0}, "max_length: expected a whole number of at least 1"),
        ({"max_length": 65}, "65 tokens; a window of 65 and the next token need 66"),
        ({"ids": []}, "ids: expected whole numbers"),
        ({"ids": [[1, 2], [3]]}, "ids: expected an array"),
        ({"ids": np.full(65, 1 << 32)}, "ids: 4294967296 is out of range"),
        ({"ids": np.full(65, -1)}, "ids: -1 is out of range"),
        ({"ids": [1.0, 2.0]}, "ids: expected whole numbers of shape .tokens,., found float64"),
        ({"ids": [[1, 2], [3, 4]]}, "found int64 of .2, 2."),
        ({"batch_size": 0}, "batch_size: expected a whole number of at least 1, found 0"),
        ({"batch_size": True}, "batch_size"),
        ({"epochs": 0}, "epochs: expected a whole number of at least 1"),
        ({"seed": -1}, "seed: expected"),
        ({"workers": -1}, "workers: expected"),
        ({"shuffle": 1}, "shuffle: expected True or False, found 1"),
        ({"drop_last": None}, "drop_last: expected True or False"),
        ({"batch_size": 17, "drop_last": True}, "17 is more than the 16 examples"),
        ({"share": (2, 2)}, "share: index: expected a whole number from 0 to 1, found 2"),
        ({"share": (0, 0)}, "share: count: expected"),
        ({"share": 2}, r"share: expected .index, count., found 2"),
        ({"share": (0, 3)}, "4 rows cannot be shared by 3 hosts"),
        (
            {"stride": 6, "share": (0, 4)},
            "drop_last: 11 examples cannot be shared by 4 hosts equally; expected True",
        ),
    ],
)
def test_refusals(options, said):
    given = {"ids": IDS, "max_length": 4, "stride": 4, "batch_size": 4} | options
    with pytest.raises(InputError, match=said):
        data.windows(given.pop("ids"), **given)


def test_an_unknown_option():
    with pytest.raises(TypeError, match="strides"):
        data.windows(IDS, max_length=4, strides=2, batch_size=1)


def test_a_tokenizer_that_panics(tokenizer):
    damaged, options = with_damaged_map(tokenizer), {"max_length": 12, "batch_size": 1}
    rows = [{"text": text, "label": 0} for text in ("plain", "text", "é", "東")]
    said = r"^tokenizer: cannot encode 'é' \('a failure inside the tokenizers library"
    with pytest.raises(InputError, match=said):
        data.classification(rows, damaged, **options)
    with pytest.raises(InputError, match=said):
        data.masked_lm([row["text"] for row in rows], damaged, **options)
    assert list(data.classification(rows[:2], damaged, **options))


def test_no_examples():
    with pytest.raises(InputError, match="examples: expected at least one, found none"):
        data.batches([], batch_size=1)


MASKED = np.ma.masked_array([1, 0], mask=[False, True])


def padded(example):
    return data.batches([example], batch_size=1, collate=Collate(lengths=(2,), pads={"ids": 0}))


@pytest.mark.parametrize("batched", [padded, lambda one: data.batches([one], batch_size=1)])
@pytest.mark.parametrize("value", [MASKED, [MASKED]])
@pytest.mark.parametrize("name", ["ids", "labels"])
def test_masked_arrays_in_examples(batched, name, value):
    with pytest.raises(InputError, match=f"examples: {name}: .* without masked elements"):
        list(batched({name: value}))


AB, ABC = {"a": 0, "b": 1}, {"a": 0, "b": 1, "c": 2}
MULTI = {"problem_type": "multi_label_classification"}
REAL = {"problem_type": "regression"}


def labelled(*labels):
    return [{"text": "a", "label": label} for label in labels]


@pytest.mark.parametrize(
    ("source", "options", "said"),
    [
        ([], {}, "records: expected at least 1 record, found none"),
        (7, {}, "records: expected a path or mappings, found 7"),
        ({"text": "a", "label": 0}, {}, "records: expected a path or mappings"),
        (["a"], {}, "record 0: expected values by column, found 'a'"),
        ([{"text": "a"}], {}, "record 0: no column 'label'; it has .'text'."),
        (labelled(0), {"text": "body"}, "record 0: no column 'body'"),
        (labelled(0), {"text": 3}, "column: expected a name, found 3"),
        ([*labelled(0), {"text": "", "label": 0}], {}, "record 1: text: the text is empty"),
        ([{"text": " \n", "label": 0}], {}, "record 0: text: the text is empty"),
        ([{"text": float("nan"), "label": 0}], {}, "record 0: text: expected a text, found nan"),
        ([{"text": "\ud83d", "label": 0}], {}, "record 0: text: half a surrogate pair"),
        ([{"text": "a " * 20, "label": 0}], {}, "record 0: text: 22 tokens; expected at most 12"),
        ([{"text": "\u200b", "label": 0}], {}, "record 0: text: has no token"),
        (labelled(""), {}, "record 0: label: expected a label's name or number, found ''"),
        (labelled(None), {}, "record 0: label: expected .* found None"),
        (labelled(True), {}, "record 0: label: expected .* found True"),
        (labelled(-1), {}, "record 0: label: expected .* found -1"),
        (labelled(0.5), {}, "record 0: label: expected .* found 0.5"),
        (labelled(float("nan")), {}, "record 0: label: expected .* found nan"),
        (labelled(1 << 40), {}, "record 0: label: expected a label's number, under 1048576"),
        (labelled(str(1 << 40)), {}, "record 0: label: expected a label's number, under 1048576"),
        (labelled("a", 1), {}, "record 1: label: expected a name, as for other labels, found 1"),
        (labelled("a", "c"), {"label2id": {"a": 0, "b": 1}}, "record 1: label: 'c' is not in"),
        (labelled(2), {"label2id": {"a": 0, "b": 1}}, "2 is out of range; expected 0 to 1"),
        (labelled("a"), {"label2id": {"a": 0, "b": 0}}, "label2id: expected the ids 0 to 1, each"),
        (labelled("a"), {"label2id": {"a": 1}}, "label2id: expected the ids 0 to 0"),
        (labelled("a"), {"label2id": {"a": "0"}}, "label2id: expected the ids 0 to 0"),
        (labelled("a"), {"label2id": ["a"]}, "label2id: expected ids by name, found .'a'."),
        (labelled("a"), {"problem_type": "ranking"}, "problem_type: expected one of single_label_"),
        (labelled("a"), MULTI, "record 0: label: expected a list, found 'a'"),
        (labelled(["a", "a"]), MULTI, "record 0: label: a label occurs twice"),
        (labelled([1, 0], [0, 1]), MULTI, r"record 0: label: \[1, 0\] and all others may be ids"),
        (labelled([1], [0]), MULTI, r"\[1\] and all others may be ids .* pass floats"),
        (labelled([1, 0]), MULTI | {"label2id": AB}, r"\[1, 0\] and all others may be ids"),
        (labelled([0]), MULTI | {"label2id": {"a": 0}}, r"\[0\] and all others may be ids"),
        (labelled([1, 0, 0]), MULTI | {"label2id": AB}, "twice in .1, 0, 0.; .* each of 2 labels"),
        (labelled([1.0, 0]), MULTI | {"label2id": ABC}, "expected 3 numbers, a 0 or a 1 for each"),
        (labelled([1.0, 0.0], [1.0]), MULTI, "record 1: label: expected 2 numbers"),
        (labelled([1.0, 0.5]), MULTI, r"a 0 or a 1 for each label; found \[1.0, 0.5\]"),
        (labelled([1.0, math.nan]), MULTI, "a 0 or a 1 for each label"),
        (labelled([2.0, 1.0]), MULTI, "a 0 or a 1 for each label"),
        (labelled(["a", 1.0]), MULTI, "expected a label's name or number, found 1.0"),
        (labelled([True, "a"]), MULTI, "expected a label's name or number, found True"),
        (labelled(np.array(1)), MULTI, r"expected a list, found array\(1\)"),
        (labelled([["a"], ["b", "c"]]), MULTI, "expected a label's name or number"),
        (labelled("01", "1", 2), {}, "expected a name, as for other labels, found 2"),
        (labelled([]), MULTI, "label: expected at least one label, found none"),
        (labelled([1.0, 0.0], MASKED), MULTI, "record 1: label: .* without masked elements"),
        (labelled([1.0, 0.0], MASKED), REAL, "record 1: label: .* without masked elements"),
        (labelled(0, MASKED[1]), {}, "record 1: label: .* without masked elements"),
        (labelled(0.5, float("nan")), REAL, "record 1: label: expected a finite number, found nan"),
        (labelled(0.5, float("inf")), REAL, "expected a finite number, found inf"),
        (labelled("high"), REAL, "expected a finite number, found 'high'"),
        (labelled(None), REAL, "expected a finite number, found None"),
        (labelled(True), REAL, "expected a finite number, found True"),
        (labelled(np.True_), REAL, "expected a finite number, found .*True"),
        (labelled(1e300), REAL, "found 1e.300, which float32 cannot hold"),
        (labelled(10**400), REAL, "expected a finite number, found 1"),
        (labelled("1_000"), REAL, "expected a finite number, found '1_000'"),
        (labelled([[1.0], [2.0, 3.0]]), REAL, r"expected a finite number, found \[1.0\]"),
        (labelled([]), REAL, "record 0: label: expected numbers, found none"),
        (labelled(1.0, [1.0]), REAL, "record 1: label: expected numbers of shape .. as in the"),
        (labelled(1.0), REAL | {"label2id": {"a": 0}}, "label2id: expected None for a regression"),
    ],
)
def test_records(read, source, options, said):
    with pytest.raises(InputError, match=said):
        read("classification", source, **options)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"text": "a", "label": 0}\n{"text": "a " }\n', "line 2: no column 'label'"),
        ('{"text": "a", "label": 0}\nnonsense\n', "line 2: not JSON"),
        ('{"text": "a", "label": 0, "label": 1}\n', "line 1: not JSON .*'label' appears twice"),
        ('["a"]\n', "line 1: expected an object"),
        ('{"text": "a", "label": 0}\n\n', "line 2: is blank"),
        ('{"text": "a", "label": NaN}\n', "line 1: label: expected .* found nan"),
        ('{"text": "", "label": 0}\n', "line 1: text: the text is empty"),
        ("", "expected at least 1 record, found none"),
    ],
)
def test_lines(read, tmp_path, content, said):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(InputError, match=said) as found:
        read("classification", tmp_path / "a.jsonl")
    assert str(tmp_path / "a.jsonl") in str(found.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"text,label\na,0\n,1\n", "row 2: text: the text is empty"),
        ("a.csv", b"text,label\na,\n", "row 1: label: expected a label's name"),
        ("a.csv", b"text,kind\na,0\n", "no column 'label'; it has .'text', 'kind'."),
        ("a.csv", b"text,label,label\na,0,1\n", "2 columns have the name 'label'"),
        ("a.csv", b"text,label\na,0,1\n", "not a readable csv file"),
        ("a.csv", b"text,label\n\xff,0\n", "a.csv"),
        ("a.csv", b"", "no column 'text'; it has .\\]"),
        ("a.csv", b"text,label\n", "expected at least 1 record, found none"),
        ("a.parquet", b"PAR1 nonsense", "not a parquet file"),
    ],
)
def test_tables(read, tmp_path, name, content, said):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="parquet files are read by pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said) as found:
        read("classification", tmp_path / name)
    assert str(tmp_path / name) in str(found.value)


def words(tokens, labels):
    return [{"tokens": ["a"], "labels": ["O"]}, {"tokens": tokens, "labels": labels}]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (words(["a", "b"], ["O"]), "record 1: tokens: expected a label for each word; found 2"),
        (words([], []), "expected a label for each word; found 0 words and 0 labels"),
        (words("a b", ["O"]), "record 1: tokens: expected a list, found 'a b'"),
        (words(["a"], "O"), "record 1: labels: expected a list, found 'O'"),
        (words(["a", "b"], MASKED), "record 1: labels: .* without masked elements"),
        (words(["a", ""], ["O", "O"]), "record 1: tokens: the text is empty"),
        (words(["a", 3], ["O", "O"]), "record 1: tokens: expected a text, found 3"),
        (words(["a", "\u200b", "b"], ["O"] * 3), "word 1, '.*', has no token"),
        (words(["a", "\u200b"], ["O"] * 2), "word 1, '.*', has no token"),
        (words(["a"] * 11, ["O"] * 11), "record 1: tokens: 13 tokens; expected at most 12"),
        (words(["a"], [None]), "record 1: labels: expected a label's name or number"),
    ],
)
def test_words(read, source, said):
    with pytest.raises(InputError, match=said):
        read("token_classification", source)


def asked(**changes):
    answers = {"text": ["lamp"], "answer_start": [4]}
    return [{"question": "what?", "context": "the lamp burns", "answers": answers} | changes]


@pytest.mark.parametrize(
    ("source", "options", "said"),
    [
        (
            asked(answers={"text": ["lamp"], "answer_start": [3]}),
            {},
            "expected 'lamp' at position 3 .*' lam'",
        ),
        (
            asked(answers={"text": ["lamp"], "answer_start": [99]}),
            {},
            "expected 'lamp' at position 99",
        ),
        (
            asked(answers={"text": ["lamp"], "answer_start": [-10]}),
            {},
            "expected a text and its position",
        ),
        (asked(answers={"text": ["lamp"], "answer_start": []}), {}, "two lists of one length"),
        (asked(answers={"text": [""], "answer_start": [0]}), {}, "expected a text and its"),
        (asked(answers={"text": [None], "answer_start": [0]}), {}, "expected a text and its"),
        (asked(answers="lamp"), {}, "record 0: answers: expected .* found 'lamp'"),
        (asked(context=""), {}, "record 0: context: the text is empty"),
        (asked(question=None), {}, "record 0: question: expected a text, found None"),
        (
            asked(question="why " * 9),
            {},
            "question: 9 tokens leave 0 of 12 for the context",
        ),
        (
            asked(),
            {"doc_stride": 7},
            "2 tokens leave 7 of 12 for the context; expected over doc_stride, 7",
        ),
        (asked(), {"doc_stride": -1}, "doc_stride: expected a whole number of at least 0"),
        (asked(), {"answers": ("a", "b", "c")}, "answers: expected a column or two"),
        (asked(), {"answers": 3}, "answers: expected a column or two, found 3"),
    ],
)
def test_questions(read, source, options, said):
    with pytest.raises(InputError, match=said):
        read("question_answering", source, **{"doc_stride": 2} | options)


def test_contrastive_texts(read):
    rows = [{"anchor": "a", "positive": "b"}, {"anchor": "a", "positive": ""}]
    with pytest.raises(InputError, match="record 1: positive: the text is empty"):
        read("contrastive", rows)
    with pytest.raises(InputError, match="record 0: no column 'negative'"):
        read("contrastive", rows, negative="negative")


def test_tokenizers(tokenizer):
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    backend = tokenizers.ByteLevelBPETokenizer()
    backend.train_from_iterator(["the lighthouse"], vocab_size=257)
    bare = transformers.PreTrainedTokenizerFast(tokenizer_object=backend._tokenizer)
    options = {"max_length": 12, "batch_size": 1}
    with pytest.raises(
        InputError, match="tokenizer: expected a fast tokenizer of transformers, found 'int'"
    ):
        data.classification(labelled(0), 3, **options)
    with pytest.raises(InputError, match="tokenizer: has no padding token; set one"):
        data.classification(labelled(0), bare, **options)
    with pytest.raises(InputError, match="expected an EOS or separator token, found neither"):
        data.token_ids(["a"], bare)
    bare.pad_token = "a"
    with pytest.raises(InputError, match="expected one that separates words"):
        data.token_classification(words(["a"], ["O"]), bare, **options)


def test_arguments_are_checked_before_anything_is_read(read, tmp_path):
    for task in ("classification", "masked_lm", "pretraining", "question_answering"):
        with pytest.raises(InputError, match="batch_size"):
            read(task, tmp_path / "missing.jsonl", batch_size=0)


def test_progress_is_shown(capfd, tokenizer):
    data.masked_lm(["a b"] * 20, tokenizer, max_length=8, batch_size=1, show_progress=True)
    assert "Tokenizing" in capfd.readouterr().err
    data.masked_lm(["a b"] * 20, tokenizer, max_length=8, batch_size=1)
    assert not capfd.readouterr().err


def test_the_tokenizer_is_left_as_it_was(read, tokenizer):
    before = json.dumps(json.loads(tokenizer.backend_tokenizer.to_str()), sort_keys=True)
    read("classification", labelled(0), truncation=True)
    read("question_answering", asked(), doc_stride=2)
    after = json.dumps(json.loads(tokenizer.backend_tokenizer.to_str()), sort_keys=True)
    assert before == after


def test_a_cell_of_any_length(tmp_path):
    (tmp_path / "a.csv").write_text('text,label\n"' + "the " * 800_000 + '",0\nof,1\n')
    rows = Records(tmp_path / "a.csv", ["label", "text"])
    assert [len(row["text"]) for row in rows] == [3_200_000, 2]
    (tmp_path / "a.csv").write_text('text,label\n"a"b,0\n')
    with pytest.raises(InputError, match="not a readable csv file"):
        Records(tmp_path / "a.csv", ["text"])
