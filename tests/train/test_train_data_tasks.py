"""Datasets of labels, answers and contrastive pairs: files, targets and shapes."""

import copy
import csv
import json

import numpy as np
import pytest

from minibert.checkpoint.tokenizer import load_tokenizer
from minibert.errors import InputError, SourceError
from minibert.train import data
from minibert.train.data.spans import tokens_of

pytest.importorskip("grain", reason="training data are read by grain")

pytestmark = pytest.mark.unoptimised

CLS, SEP = 101, 102
REVIEWS = [
    {"text": "a great film", "label": "good"},
    {"text": "dull", "label": "bad"},
    {"text": "it is about a lighthouse, they say", "label": "neither"},
    {"text": 'so "so",\nreally', "label": "bad"},
]


def write(path, rows):
    if path.suffix in (".jsonl", ".ndjson"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".csv":
        pytest.importorskip("pyarrow", reason="csv files are read by pyarrow")
        with open(path, "w", newline="") as file:
            csv.DictWriter(file, rows[0]).writeheader()
            csv.DictWriter(file, rows[0]).writerows(rows)
    else:
        pyarrow = pytest.importorskip("pyarrow", reason="parquet files are read by pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def only(batches):
    (batch,) = batches
    return batch


@pytest.fixture
def classify(tokenizer):
    def read(source, **options):
        given = {"max_length": 12, "batch_size": 100} | options
        return data.classification(source, tokenizer, **given)

    return read


@pytest.mark.parametrize("kind", [None, "jsonl", "ndjson", "csv", "parquet"])
def test_classification(classify, tokenizer, tmp_path, kind):
    source = REVIEWS if kind is None else write(tmp_path / f"a.{kind}", REVIEWS)
    batch = only(classify(source))
    texts = [row["text"] for row in REVIEWS]
    expected = tokenizer(texts, padding="max_length", max_length=12, return_tensors="np")
    assert batch.keys() == {*expected, "labels", "example"}
    for name in expected:
        np.testing.assert_array_equal(batch[name], expected[name])
        assert batch[name].dtype == np.int32
    assert batch["labels"].tolist() == [1, 0, 2, 0]  # bad, good, neither
    assert batch["example"].tolist() == [0, 1, 2, 3]
    assert data.label_ids(source) == {"bad": 0, "good": 1, "neither": 2}
    other = {"neither": 0, "good": 1, "bad": 2}
    assert only(classify(source, label2id=other))["labels"].tolist() == [1, 2, 0, 2]


@pytest.mark.parametrize("kind", [None, "csv", "parquet"])
def test_numbers_are_ids(classify, tmp_path, kind):
    rows = [{"text": "a", "label": n} for n in (10, 9, 0, 2)]
    source = rows if kind is None else write(tmp_path / f"a.{kind}", rows)
    assert only(classify(source))["labels"].tolist() == [10, 9, 0, 2]
    assert data.label_ids(source) == {str(n): n for n in range(11)}
    names = {f"LABEL_{n}": n for n in range(11)}
    assert only(classify(source, label2id=names))["labels"].tolist() == [10, 9, 0, 2]
    names = {str(n): 10 - n for n in range(11)}  # texts are names, if they are any
    if kind == "csv":
        assert only(classify(source, label2id=names))["labels"].tolist() == [0, 1, 10, 8]
        return
    with pytest.raises(InputError, match="10 is the id of one label and the name of another"):
        classify(source, label2id=names)


def test_a_label_of_many_digits(classify):
    rows = [{"text": "a", "label": "9" * 5000}, {"text": "b", "label": "1"}]
    with pytest.raises(InputError, match=r"record 0: label: expected a label's number, under"):
        classify(rows)
    with pytest.raises(InputError, match=r"record 0: label: '999.* is not in label2id"):
        classify(rows, label2id={"a": 0, "b": 1})


def test_words_cut_on_the_left_lose_their_labels(tokenizer):
    other = copy.deepcopy(tokenizer)
    other.truncation_side = "left"
    rows = [{"tokens": ["one", "two", "three", "four"], "labels": ["a", "b", "c", "d"]}]
    options = {"max_length": 4, "batch_size": 1, "truncation": True}
    batch = only(data.token_classification(rows, other, **options))
    assert other.decode(batch["input_ids"][0], skip_special_tokens=True) == "three four"
    assert batch["labels"].tolist() == [[-100, 2, 3, -100]]


def test_names_are_sorted():
    names = [f"{n:02}-th" for n in range(40)]
    rows = [{"label": name} for name in reversed(names)]
    assert data.label_ids(rows) == {name: n for n, name in enumerate(names)}


def test_pairs_of_texts(classify, tokenizer):
    rows = [{"a": "one two", "b": "three", "label": 0}, {"a": "four", "b": "five six", "label": 1}]
    batch = only(classify(rows, text="a", text_pair="b"))
    first, second = zip(*((row["a"], row["b"]) for row in rows), strict=True)
    expected = tokenizer(
        list(first), list(second), padding="max_length", max_length=12, return_tensors="np"
    )
    for name in expected:
        np.testing.assert_array_equal(batch[name], expected[name])
    assert batch["token_type_ids"].any()


def test_truncation_is_that_of_transformers(classify, tokenizer):
    rows = [{"a": "one " * n, "b": "two " * m, "label": 0} for n, m in ((9, 2), (2, 9), (8, 8))]
    pairs = [list(texts) for texts in zip(*((row["a"], row["b"]) for row in rows), strict=True)]
    cut = {"truncation": True, "max_length": 12, "padding": "max_length", "return_tensors": "np"}
    batch = only(classify(rows, text="a", text_pair="b", truncation=True))
    np.testing.assert_array_equal(batch["input_ids"], tokenizer(*pairs, **cut)["input_ids"])
    batch = only(classify(rows, text="a", truncation=True, max_length=8))
    expected = tokenizer(pairs[0], **cut | {"max_length": 8})["input_ids"]
    np.testing.assert_array_equal(batch["input_ids"], expected)


def test_several_labels(classify):
    rows = [{"text": "a", "label": ["x", "z"]}, {"text": "b", "label": []}]
    rows += [{"text": "c", "label": ["y"]}]
    labels = only(classify(rows, problem_type="multi_label_classification"))["labels"]
    assert labels.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert labels.dtype == np.float32
    rows = [{"text": "a", "label": [2]}]
    labels = only(classify(rows, problem_type="multi_label_classification"))["labels"]
    assert labels.tolist() == [[0, 0, 1]]


def test_real_numbers(classify, tmp_path):
    rows = [{"text": "a", "label": 0.25}, {"text": "b", "label": -3}]
    for source in (rows, write(tmp_path / "a.jsonl", rows)):
        labels = only(classify(source, problem_type="regression"))["labels"]
        assert (labels.dtype, labels.tolist()) == (np.float32, [0.25, -3])
    rows = [{"text": "a", "label": [0.5, 1.5]}]
    assert only(classify(rows, problem_type="regression"))["labels"].tolist() == [[0.5, 1.5]]


def test_few_shapes(classify):
    rows = [{"text": "one " * n, "label": 0} for n in range(1, 31)]
    found = list(classify(rows, pad_to=(8, 16), max_length=32, batch_size=2))
    lengths = [batch["input_ids"].shape[1] for batch in found]
    assert lengths == [8] * 3 + [16] * 4 + [32] * 8
    assert all(batch["attention_mask"].sum(axis=1).max() > 2 for batch in found)
    with pytest.raises(InputError, match="pad_to: expected one length for 2 hosts"):
        classify(rows, pad_to=8, max_length=32, batch_size=2, share=(0, 2))


WORDS = [
    {"tokens": ["Wolfgang", "lives", "in", "Berlin", "."], "labels": ["PER", "O", "O", "LOC", "O"]},
    {"tokens": ["unphotographable"], "labels": ["O"]},
]


def test_a_words_label_is_at_its_first_token(tokenizer):
    batch = only(data.token_classification(WORDS, tokenizer, max_length=16, batch_size=2))
    known = data.label_ids(WORDS, "labels")
    assert known == {"LOC": 0, "O": 1, "PER": 2}
    for row, ids, labels in zip(WORDS, batch["input_ids"], batch["labels"], strict=True):
        expected = [-100]
        for word, label in zip(row["tokens"], row["labels"], strict=True):
            pieces = tokenizer(word, add_special_tokens=False)["input_ids"]
            expected += [known[label]] + [-100] * (len(pieces) - 1)
        assert labels.tolist() == expected + [-100] * (16 - len(expected))
        assert ids[len(expected)] == SEP
    assert (batch["labels"][1] == known["O"]).sum() == 1


def multi_hot(labels, **options):
    rows = [{"text": "a", "label": label} for label in labels]
    options = {"max_length": 4, "batch_size": len(rows)} | options
    return lambda tokenizer: only(
        data.classification(rows, tokenizer, problem_type="multi_label_classification", **options)
    )["labels"].tolist()


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        ([[1, 0, 0], [0, 0, 1]], None, [[1, 0, 0], [0, 0, 1]]),
        ([[1, 0], [0, 1], [1, 1]], None, [[1, 0], [0, 1], [1, 1]]),
        ([[1.0, 0.0], [0.0, 1.0]], None, [[1, 0], [0, 1]]),
        ([[True, False]], "ab", [[1, 0]]),
        ([np.array([0, 1, 0]), np.array([1, 0, 0])], "abc", [[0, 1, 0], [1, 0, 0]]),
        ([[1], [0]], "a", [[1], [0]]),
        ([[1], [0]], "ab", [[0, 1], [1, 0]]),
        ([[1, 0]], "abc", [[1, 1, 0]]),
        ([[1, 0], [1]], "ab", [[1, 1], [0, 1]]),
        ([[1, 0], []], "ab", [[1, 1], [0, 0]]),
        ([["1", "0"], ["0"]], None, [[1, 1], [1, 0]]),
        ([["b"], ["a", "c"]], None, [[0, 1, 0], [1, 0, 1]]),
    ],
)
def test_several_labels_are_names_ids_or_zeros_and_ones(tokenizer, labels, names, expected):
    label2id = None if names is None else {name: i for i, name in enumerate(names)}
    assert multi_hot(labels, label2id=label2id)(tokenizer) == expected


def test_label_ids_of_zeros_and_ones():
    rows = [{"text": "a", "label": [1, 0, 0]}, {"text": "b", "label": [0, 0, 1]}]
    kind = {"problem_type": "multi_label_classification"}
    assert data.label_ids(rows, **kind) == {"0": 0, "1": 1, "2": 2}
    assert data.label_ids(rows) == {"0": 0, "1": 1}
    with pytest.raises(
        InputError, match="problem_type: expected one of None, single_label_classification"
    ):
        data.label_ids(rows, problem_type="regression")


def test_digits_with_a_zero_before_them_are_names():
    rows = [{"text": "a", "label": label} for label in ("01", "1", "10")]
    assert data.label_ids(rows) == {"01": 0, "1": 1, "10": 2}


def test_cut_words_lose_their_labels(tokenizer):
    batch = only(
        data.token_classification(WORDS, tokenizer, max_length=5, batch_size=2, truncation=True)
    )
    assert batch["labels"].tolist() == [[-100, 2, 1, 1, -100], [-100, 1, -100, -100, -100]]


CONTEXT = "The keeper lives on Skagen. Her name is Marit, and the lamp is forty years old."


def answer(text):
    return {"text": [text], "answer_start": [CONTEXT.index(text)]}


QUESTIONS = [
    {"question": "Who?", "context": CONTEXT, "answers": answer("Marit")},
    {"question": "How old is it?", "context": CONTEXT, "answers": answer("forty years old")},
    {"question": "Where to?", "context": CONTEXT, "answers": {"text": [], "answer_start": []}},
    {"question": "What?", "context": CONTEXT, "answers": answer("The keeper")},
]


@pytest.mark.parametrize(("length", "stride"), [(64, 0), (16, 4), (14, 1), (12, 0)])
def test_answers_are_found_by_their_tokens(tokenizer, length, stride):
    found = list(
        data.question_answering(
            QUESTIONS, tokenizer, max_length=length, doc_stride=stride, batch_size=1
        )
    )
    given = [row["answers"]["text"] for row in QUESTIONS]
    answered = set()
    for batch in found:
        ids, number = batch["input_ids"][0], int(batch["example"][0])
        first, last = int(batch["start_positions"][0]), int(batch["end_positions"][0])
        window = tokenizer.decode(ids[batch["attention_mask"][0] == 1])
        context = window.split("[SEP]")[1]
        expected = given[number][0].lower() if given[number] else None
        if expected is not None and f" {expected}" in context.replace(" .", "."):
            assert tokenizer.decode(ids[first : last + 1]) == expected
            answered.add(number)
        else:
            assert (first, last) == (0, 0)
    assert answered == {0, 1, 3}
    windows = tokenizer(
        [row["question"] for row in QUESTIONS],
        [CONTEXT] * 4,
        max_length=length,
        stride=stride,
        truncation="only_second",
        return_overflowing_tokens=True,
        padding="max_length",
    )
    assert [batch["input_ids"][0].tolist() for batch in found] == windows["input_ids"]
    owners = windows["overflow_to_sample_mapping"]
    assert [int(batch["example"][0]) for batch in found] == owners


def test_the_context_comes_first_if_padding_is_on_the_left(tokenizer):
    left = copy.deepcopy(tokenizer)
    left.padding_side = "left"
    options = {"max_length": 16, "doc_stride": 4, "batch_size": 1}
    found = list(data.question_answering(QUESTIONS, left, **options))
    windows = left(
        [CONTEXT] * 4,
        [row["question"] for row in QUESTIONS],
        max_length=16,
        stride=4,
        truncation="only_first",
        return_overflowing_tokens=True,
    )
    assert len(found) == len(windows["input_ids"])
    answered = set()
    for batch, ids in zip(found, windows["input_ids"], strict=True):
        assert batch["input_ids"][0, : len(ids)].tolist() == ids
        first, last = int(batch["start_positions"][0]), int(batch["end_positions"][0])
        if last:
            number = int(batch["example"][0])
            expected = QUESTIONS[number]["answers"]["text"][0].lower()
            assert tokenizer.decode(ids[first : last + 1]) == expected
            answered.add(number)
    assert answered == {0, 1, 3}


def test_every_stretch_of_a_context(tokenizer):
    window = tokenizer.backend_tokenizer.encode("why?", CONTEXT)
    inside = [i for i, part in enumerate(window.sequence_ids) if part == 1]
    for one in inside:
        for other in [i for i in inside if i >= one]:
            span = (window.offsets[one][0], window.offsets[other][1])
            assert tokens_of(window, span) == (one, other)
    assert tokens_of(window, None) == (0, 0)


@pytest.mark.parametrize("kind", [None, "jsonl", "csv", "parquet"])
def test_answers_in_two_columns(tokenizer, tmp_path, kind):
    rows = []
    for row in QUESTIONS:
        texts, starts = row["answers"]["text"], row["answers"]["answer_start"]
        flat = {"answer": texts[0] if texts else "", "at": starts[0] if starts else 0}
        rows.append({"question": row["question"], "context": row["context"]} | flat)
    source = rows if kind is None else write(tmp_path / f"a.{kind}", rows)
    options = {"max_length": 48, "doc_stride": 8, "batch_size": 4}
    found = only(data.question_answering(source, tokenizer, answers=("answer", "at"), **options))
    expected = only(data.question_answering(QUESTIONS, tokenizer, **options))
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


def test_contrastive_texts(tokenizer):
    rows = [
        {"anchor": "one", "positive": "two two two two two", "not": "three"},
        {"anchor": "four four", "positive": "five", "not": "six"},
    ]
    options = {"max_length": 12, "pad_to": (4, 8), "batch_size": 2}
    batch = only(data.contrastive(rows, tokenizer, negative="not", **options))
    for prefix, column in (("anchor", "anchor"), ("positive", "positive"), ("negative", "not")):
        expected = tokenizer(
            [row[column] for row in rows], padding="max_length", max_length=8, return_tensors="np"
        )
        np.testing.assert_array_equal(batch[f"{prefix}_input_ids"], expected["input_ids"])
        np.testing.assert_array_equal(batch[f"{prefix}_attention_mask"], expected["attention_mask"])
    names = {f"{p}_{n}" for p in ("anchor", "positive") for n in ("input_ids", "attention_mask")}
    assert only(data.contrastive(rows, tokenizer, **options)).keys() == {*names, "example"}


ORDERS = [
    {"prompt": "Say it: ", "completion": "a lamp"},
    {"prompt": "Why? ", "completion": "because the lighthouse is far, and it rains"},
]


def test_instructions(tokenizer):
    """The prompt is no target, and reads as it does when a model continues it."""
    batch = only(data.instruction(ORDERS, tokenizer, max_length=20, batch_size=2))
    for row, order in enumerate(ORDERS):
        prompt, completion = (
            tokenizer(order[name], add_special_tokens=False)["input_ids"] for name in order
        )
        real = batch["attention_mask"][row] == 1
        assert batch["input_ids"][row][real].tolist() == [CLS, *prompt, *completion, SEP]
        ignored = [-100] * (1 + len(prompt))
        assert batch["labels"][row][real].tolist() == [*ignored, *completion, SEP]
        assert set(batch["labels"][row][~real].tolist()) <= {-100}
    assert batch["example"].tolist() == [0, 1]


@pytest.mark.parametrize("side", ["right", "left"])
def test_truncated_instructions(tokenizer, side):
    cutting = copy.deepcopy(tokenizer)
    cutting.truncation_side = side
    options = {"max_length": 9, "batch_size": 1, "truncation": True}
    whole = only(data.instruction(ORDERS[1:], tokenizer, max_length=20, batch_size=1))
    ids, labels = (
        whole[name][0][whole["attention_mask"][0] == 1] for name in ("input_ids", "labels")
    )
    batch = only(data.instruction(ORDERS[1:], cutting, **options))
    if side == "right":
        assert batch["input_ids"][0].tolist() == ids[:9].tolist()
        assert batch["labels"][0].tolist() == labels[:9].tolist()
    else:
        assert batch["input_ids"][0].tolist() == [CLS, *ids[-8:]]
        assert batch["labels"][0].tolist() == [-100, *labels[-8:]]
    long = [{"prompt": "why " * 9, "completion": "so"}]
    if side == "right":
        with pytest.raises(InputError, match=r"^record 0: .*: truncation leaves no token of the"):
            data.instruction(long, cutting, **options)
    with pytest.raises(InputError, match=r"^record 0: prompt, completion: 12 tokens; expected at"):
        data.instruction(long, cutting, max_length=9, batch_size=1)


def test_instructions_of_gpt2():
    """A text of GPT-2 begins without a special token, and ends with the EOS token."""
    import minibert

    tokenizer = load_tokenizer(minibert.assets.GPT2)
    tokenizer.pad_token = tokenizer.eos_token
    batch = only(data.instruction(ORDERS[:1], tokenizer, max_length=24, batch_size=1))
    prompt, completion = (tokenizer(text)["input_ids"] for text in ORDERS[0].values())
    there = [*prompt, *completion, tokenizer.eos_token_id]
    assert batch["input_ids"][0][: len(there)].tolist() == there
    assert batch["attention_mask"].sum() == len(there)
    targets = batch["labels"][0]
    assert targets[targets != -100].tolist() == there[len(prompt) :]


def test_files_that_are_not_there(classify, tmp_path):
    with pytest.raises(SourceError, match=r"cannot be read \(No such file"):
        classify(tmp_path / "missing.jsonl")
    with pytest.raises(SourceError, match=r"expected a file that ends in \.jsonl"):
        classify("reviews.txt")
