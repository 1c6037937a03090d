"""Answers in a context: from characters to tokens, in overlapping windows.

Windows and targets are those of transformers' `run_qa.py`: the context comes first if the tokenizer
pads on the left; both positions are the first token's ([CLS]) if a window does not hold the whole
answer, or there is no answer.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from minibert.core.checks import whole
from minibert.data.records import Records
from minibert.errors import InputError, shown
from minibert.text.tokenizer import question_first
from minibert.train.data.encoding import Encoder, encoded
from minibert.train.data.labels import texts_of

if TYPE_CHECKING:
    from tokenizers import Encoding

Answer = tuple[int, int] | None  # the start and end of its characters in the context


def span_examples(
    records: Records,
    encoder: Encoder,
    columns: tuple[str, str, Any],
    doc_stride: int,
) -> list[dict[str, Any]]:
    """Returns the windows of all records, each with its targets.

    Args:
        records: questions, contexts and answers.
        encoder: tokenizes them.
        columns: their columns.
        doc_stride: the number of tokens by which windows overlap.

    Raises:
        InputError: an answer is not at its position in the context, or a question is too long.
    """
    question, context, answers = columns
    whole("doc_stride", doc_stride, 0)
    asked, found = texts_of(records, question), texts_of(records, context)
    given = [answer_of(records, i, context, answers) for i in range(len(records))]
    _check_capacity(records, encoder, question, asked, doc_stride)
    index_of_context = int(question_first(encoder.tokenizer))
    encoder.backend.enable_truncation(
        encoder.max_length,
        stride=doc_stride,
        strategy="only_second" if index_of_context else "only_first",
        direction="right",
    )
    texts = (asked, found) if index_of_context else (found, asked)
    examples = []
    for index, first in enumerate(encoder.encoded(list(zip(*texts, strict=True)))):
        for window in (first, *first.overflowing):
            start, end = tokens_of(window, given[index], index_of_context)
            examples.append(
                encoder.arrays(window)
                | {
                    "start_positions": np.int32(start),
                    "end_positions": np.int32(end),
                    "example": np.int64(index),
                }
            )
    return examples


def _check_capacity(
    records: Records, encoder: Encoder, column: str, questions: list[str], doc_stride: int
) -> None:
    """Checks that each question leaves more than `doc_stride` tokens for its context."""
    special = encoder.tokenizer.num_special_tokens_to_add(pair=True)
    tokenized = encoded(encoder.backend, questions, special=False, show_progress=False)
    for index, encoding in enumerate(tokenized):
        capacity = encoder.max_length - special - len(encoding.ids)
        if capacity <= doc_stride:
            raise InputError(
                f"{records.where(index, column)}: {len(encoding.ids)} tokens leave "
                f"{max(capacity, 0)} of {encoder.max_length} for the context; expected over "
                f"doc_stride, {doc_stride}"
            )


def answer_of(records: Records, index: int, context: str, answers: str) -> Answer:
    """Returns the characters of a record's first answer; None if it has no answer.

    Args:
        records: the records.
        index: the record's index.
        context: the context's column.
        answers: the column of `{"text": […], "answer_start": […]}`, as in SQuAD; or two columns,
            of a text (empty if there is no answer) and of the position where it begins.

    Raises:
        InputError: the answer is malformed, or is not at its position in the context.
    """
    row = records[index]
    if isinstance(answers, str):
        place, value = records.where(index, answers), row[answers]
        if not isinstance(value, Mapping) or not {"text", "answer_start"} <= set(value):
            expected = '{"text": […], "answer_start": […]}'
            raise InputError(f"{place}: expected {expected}, found {shown(value)}")
        texts, starts = value["text"], value["answer_start"]
        if not (isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts)):
            raise InputError(f"{place}: expected two lists of one length, found {shown(value)}")
        if not texts:
            return None
        text, start = texts[0], starts[0]
    else:
        place = records.where(index, answers[0])
        text, start = row[answers[0]], row[answers[1]]
        if text is None or text == "":
            return None
    if isinstance(start, str) and start.isdecimal() and len(start) < 20:  # csv holds texts only
        start = int(start)
    if not isinstance(text, str) or not text or type(start) is not int or start < 0:
        raise InputError(
            f"{place}: expected a text and its position, found {shown(text)} and {shown(start)}"
        )
    found = row[context][start : start + len(text)]
    if found != text:
        raise InputError(
            f"{place}: expected {shown(text)} at position {start} of the context, found "
            f"{shown(found)}"
        )
    return start, start + len(text)


def tokens_of(window: "Encoding", answer: Answer, context_index: int = 1) -> tuple[int, int]:
    """Returns the first and the last token of an answer; [CLS] for both if it is not in the window.

    Args:
        window: a question and a part of its context, as the tokenizer encodes them.
        answer: the answer's characters in the context.
        context_index: which of the two texts is the context.
    """
    inside = [i for i, sequence in enumerate(window.sequence_ids) if sequence == context_index]
    offsets = window.offsets
    if answer is None or not inside:
        return 0, 0
    start, end = answer
    if offsets[inside[0]][0] > start or offsets[inside[-1]][1] < end:
        return 0, 0
    first = max(i for i in inside if offsets[i][0] <= start)
    last = min(i for i in inside if offsets[i][1] >= end)
    return (first, last) if first <= last else (0, 0)
