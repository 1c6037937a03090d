"""What every function that takes texts accepts as a list of texts."""

import collections
import functools
import types

import numpy as np
import pytest

import sentences
from minibert.core.checks import elements, text_list
from minibert.data.records import Records
from minibert.embedding.job import embed_file
from minibert.errors import InputError
from minibert.pipelines import pipeline
from minibert.train import data
from minibert.train.data.next_sentence import read_documents

pytestmark = pytest.mark.unoptimised

TEXTS = ["the [MASK]", "of and"]
TOKENIZER = sentences.tokenizer()


class Table:
    """A table as pandas and polars have them: iterating over it yields the names of its columns."""

    columns = property(lambda self: ["text", "label"])

    def __iter__(self):
        return iter(self.columns)

    def __getitem__(self, column):
        return TEXTS


def table_of_pyarrow():
    return pytest.importorskip("pyarrow").table({"text": TEXTS, "label": [0, 1]})


NOT_LISTS = {
    "table": (Table, r"found a table \(test_text_lists.Table\); select one column"),
    "pyarrow": (table_of_pyarrow, r"found a table \(pyarrow.Table\); select one column"),
    "dict": (lambda: {"text": TEXTS}, r"found a mapping \(dict\); select one column, such as t"),
    "proxy": (lambda: types.MappingProxyType({"text": TEXTS}), "found a mapping"),
    "set": (lambda: set(TEXTS), "in an order, found an unordered set; pass a list"),
    "frozenset": (lambda: frozenset(TEXTS), "found an unordered frozenset"),
    "bytearray": (lambda: bytearray(b"the"), "found bytearray"),
    "no axis": (lambda: np.array("the"), "iteration over a 0-d array"),
    "number": (lambda: 3, "found 3"),
}


@functools.cache
def tools():
    """A tiny encoder, and a pipeline."""
    fill = pipeline("fill-mask", sentences.model("BertForMaskedLM"), tokenizer=TOKENIZER)
    return sentences.encoder().encode, fill


def encode(texts):
    return tools()[0](texts)


def fill(texts):
    return tools()[1](texts)


def lines(texts):
    return data.masked_lm(texts, TOKENIZER, max_length=8, batch_size=1)


def ids(texts):
    return data.token_ids(texts, TOKENIZER, end=False)


def documents(texts):
    return read_documents(texts, None)


def sentences_of(texts):
    return read_documents([["the"], texts], None)


def job(texts):
    return embed_file(texts, lambda some: np.ones((len(some), 2)), "unused.npy", made_by={})


TAKERS = [encode, lines, ids, documents, sentences_of]


@pytest.mark.parametrize("kind", NOT_LISTS)
@pytest.mark.parametrize("taker", TAKERS, ids=lambda taker: taker.__name__)
def test_what_has_no_elements_in_an_order(taker, kind):
    make, said = NOT_LISTS[kind]
    with pytest.raises(InputError, match=f"expected .*{said}"):
        taker(make())


@pytest.mark.parametrize("taker", [fill, job])
@pytest.mark.parametrize("kind", ["table", "set", "frozenset"])
def test_pipelines_and_jobs_refuse_the_same(taker, kind):
    make, said = NOT_LISTS[kind]
    with pytest.raises(InputError, match=f"expected .*{said}"):
        taker(make())


@pytest.mark.parametrize("kind", ["table", "pyarrow", "dict"])
def test_rows_of_a_table(kind):
    make, _ = NOT_LISTS[kind]
    with pytest.raises(InputError, match=r"records: .*; pass its rows, such as table\.to_dict"):
        Records(make(), ["text"])


@pytest.mark.parametrize("kind", ["pyarrow", "no axis", "number"])
def test_pipelines_refuse_what_cannot_be_iterated_over(kind):
    make, said = NOT_LISTS[kind]
    with pytest.raises(InputError, match=f"inputs: expected .*{said}"):
        fill(make())


def test_rows_are_not_texts():
    with pytest.raises(InputError, match=r"text 0: expected a text.*the text itself, such as row"):
        ids([{"text": "the"}])


def column_of_pyarrow():
    return table_of_pyarrow()["text"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: tuple(TEXTS),
        lambda: (text for text in TEXTS),
        lambda: dict.fromkeys(TEXTS).keys(),
        lambda: dict(enumerate(TEXTS)).values(),
        lambda: collections.deque(TEXTS),
        lambda: np.array(TEXTS),
        lambda: np.array(TEXTS, object),
        lambda: Table()["text"],
        column_of_pyarrow,
        lambda: column_of_pyarrow().combine_chunks(),
    ],
)
def test_what_has(make):
    assert text_list("texts", make()) == TEXTS
    assert ids(make()).tolist() == ids(TEXTS).tolist()


def test_an_iterator_is_read_once_and_not_ahead():
    source = iter(TEXTS)
    found = elements("texts", source)
    assert list(source) == TEXTS
    assert list(found) == []


@pytest.mark.slow
def test_a_column_goes_through():
    texts = ["the [MASK]", "of [MASK]"]
    column = pytest.importorskip("pyarrow").array(texts)
    assert list(fill(column)) == fill(texts)
    np.testing.assert_array_equal(encode(column), encode(texts))


def test_where_order_has_no_meaning_a_set_will_do():
    assert text_list("ignore_labels", {"O"}, ordered=False) == ["O"]


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_tables_of_libraries(library):
    table = pytest.importorskip(library).DataFrame({"text": TEXTS, "label": [0, 1]})
    with pytest.raises(InputError, match=f"found a table .{library}.* select one column"):
        text_list("texts", table)
    assert text_list("texts", table["text"]) == TEXTS
