"""Training data of tasks: texts or words with labels, questions, pairs, prompts."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from minibert.core.types import Path
from minibert.data.records import Records, checked_text
from minibert.errors import InputError, shown
from minibert.text.tokenizer import encode_all
from minibert.train.data.batching import BatchOptions
from minibert.train.data.encoding import (
    Encoder,
    collate_for,
    end_of,
    frame_of,
    unpadded,
    word_starts,
)
from minibert.train.data.labels import (
    checked_list,
    known_labels,
    label_id,
    places_of,
    record_labels,
    texts_of,
)
from minibert.train.data.spans import span_examples
from minibert.train.objectives.labels import IGNORED

if TYPE_CHECKING:
    from grain import IterDataset
    from transformers import PreTrainedTokenizerBase


def classification(
    source: Path | Iterable[Mapping[str, Any]],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_length: int,
    batch_size: int,
    text: str = "text",
    text_pair: str | None = None,
    label: str = "label",
    label2id: Mapping[str, int] | None = None,
    problem_type: str = "single_label_classification",
    truncation: bool = False,
    pad_to: int | Sequence[int] | None = None,
    show_progress: bool | None = None,
    **options: Unpack[BatchOptions],
) -> "IterDataset[dict[str, np.ndarray]]":
    """Returns texts, or pairs, with labels: `input_ids`, `attention_mask`, …, and `labels`.

    `labels` are ids `(batch,)`; with multiple labels multi-hot vectors `(batch, labels)`; for
    regression real numbers `(batch,)` or `(batch, labels)`.

    Args:
        source: a path or an iterable of mappings.
        tokenizer: a fast tokenizer of transformers.
        max_length, truncation, pad_to, show_progress: see `data`.
        batch_size: rows of a batch.
        text: the texts' column.
        text_pair: the second texts' column; None if there are none.
        label: the labels' column: a name or an id; with multiple labels a list of these, or a 0 or
            a 1 for each label (if integers could be either, that is an error; floats are never
            ids); for regression a number or a list of numbers.
        label2id: the config's ids by name; by default those of `label_ids`.
        problem_type: `single_label_classification`, `multi_label_classification`, `regression`.
        **options: those of `batches`.

    Raises:
        SourceError: there is no such file.
        InputError: an argument is wrong, a text is empty or too long, or a label is unknown.
    """
    encoder = Encoder(tokenizer, max_length, truncation, show_progress, batch_size, options)
    collate = collate_for(encoder, pad_to)
    columns = [text] if text_pair is None else [text, text_pair]
    records = Records(source, [*columns, label])
    labels = record_labels(records, label, problem_type, label2id)
    inputs: list[Any] = texts_of(records, text)
    if text_pair is not None:
        inputs = list(zip(inputs, texts_of(records, text_pair), strict=True))
    found = encoder(inputs, places_of(records, ", ".join(columns)))
    examples = [
        encoder.arrays(encoding) | {"labels": labels[i], "example": np.int64(i)}
        for i, encoding in enumerate(found)
    ]
    return encoder.batches(examples, collate)


def token_classification(
    source: Path | Iterable[Mapping[str, Any]],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_length: int,
    batch_size: int,
    words: str = "tokens",
    label: str = "labels",
    label2id: Mapping[str, int] | None = None,
    truncation: bool = False,
    pad_to: int | Sequence[int] | None = None,
    show_progress: bool | None = None,
    **options: Unpack[BatchOptions],
) -> "IterDataset[dict[str, np.ndarray]]":
    """Returns words with labels: `input_ids`, `attention_mask`, …, `labels`, `(batch, seq)` each.

    A word's label is at its first token (the first that remains, if a text is truncated on the
    left); labels of all other tokens are −100.

    Args:
        source: a path (jsonl or parquet, which hold lists) or an iterable of mappings.
        tokenizer: a fast tokenizer of transformers; a byte-level one (GPT-2's,
            RoBERTa's) must have `add_prefix_space=True`.
        max_length, truncation, pad_to, show_progress: see `data`.
        batch_size: rows of a batch.
        words: the column of the lists of words.
        label: the column of the lists of their labels, names or ids.
        label2id: the config's ids by name; by default those of `label_ids`.
        **options: those of `batches`.

    Raises:
        SourceError: there is no such file.
        InputError: an argument is wrong, a record has not as many labels as words, a word has no
            token, a text is too long, or a label is unknown.
    """
    encoder = Encoder(tokenizer, max_length, truncation, show_progress, batch_size, options)
    text = encode_all(encoder.backend, ["a a"])[0]
    split = encode_all(encoder.backend, [["a", "a"]], is_pretokenized=True)[0]
    if text.ids[1:] != split.ids[1:]:
        raise InputError(
            "tokenizer: expected one that separates words; load it with add_prefix_space=True"
        )
    collate = collate_for(encoder, pad_to, labels=True)
    records = Records(source, [words, label])
    inputs, ids = _words_and_labels(records, words, label, label2id)
    places = places_of(records, words)
    examples = []
    for index, encoding in enumerate(encoder(inputs, places, words=True)):
        labels = [
            ids[index][word] if word is not None and begins else IGNORED
            for word, begins in zip(encoding.word_ids, word_starts(encoding), strict=True)
        ]
        read = set(encoding.word_ids) - {None}
        first, last = 0, len(inputs[index]) - 1
        if truncation and tokenizer.truncation_side == "left":
            first = min(read)
        elif truncation:
            last = max(read)
        if missing := set(range(first, last + 1)) - read:
            word = shown(inputs[index][min(missing)])
            raise InputError(f"{places[index]}: word {min(missing)}, {word}, has no token")
        examples.append(
            encoder.arrays(encoding)
            | {"labels": np.array(labels, np.int32), "example": np.int64(index)}
        )
    return encoder.batches(examples, collate)


def question_answering(
    source: Path | Iterable[Mapping[str, Any]],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_length: int = 384,
    doc_stride: int = 128,
    batch_size: int,
    question: str = "question",
    context: str = "context",
    answers: str = "answers",
    pad_to: int | Sequence[int] | None = None,
    show_progress: bool | None = None,
    **options: Unpack[BatchOptions],
) -> "IterDataset[dict[str, np.ndarray]]":
    """Returns questions with windows of contexts: …, `start_positions`, `end_positions` `(batch,)`.

    The positions are the answer's first and last token; 0 ([CLS]) if a window does not hold the
    whole answer, or there is no answer.

    Args:
        source: a path or an iterable of mappings.
        tokenizer: a fast tokenizer of transformers.
        max_length: the max number of tokens of a window, with the question and special tokens.
        doc_stride: the number of tokens of the context by which windows overlap.
        pad_to, show_progress: see `data`.
        batch_size: rows of a batch.
        question: the questions' column.
        context: the contexts' column.
        answers: the column of `{"text": […], "answer_start": […]}` (empty lists: no answer), of
            which the first is used; or two columns, of a text (empty: no answer) and of the
            position in the context where it begins.
        **options: those of `batches`.

    Raises:
        SourceError: there is no such file.
        InputError: an argument is wrong, an answer is not at its position in the context, or a
            question is too long.
    """
    encoder = Encoder(
        tokenizer,
        max_length,
        truncation=False,
        show_progress=show_progress,
        batch_size=batch_size,
        options=options,
    )
    collate = collate_for(encoder, pad_to)
    named = answers if isinstance(answers, list | tuple) else [answers]
    if not (isinstance(answers, str) or len(named) == 2):
        raise InputError(f"answers: expected a column or two, found {shown(answers)}")
    records = Records(source, [question, context, *named])
    examples = span_examples(records, encoder, (question, context, answers), doc_stride)
    return encoder.batches(examples, collate)


def contrastive(
    source: Path | Iterable[Mapping[str, Any]],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_length: int,
    batch_size: int,
    anchor: str = "anchor",
    positive: str = "positive",
    negative: str | None = None,
    truncation: bool = False,
    pad_to: int | Sequence[int] | None = None,
    show_progress: bool | None = None,
    **options: Unpack[BatchOptions],
) -> "IterDataset[dict[str, np.ndarray]]":
    """Returns pairs of texts: `anchor_input_ids`, `anchor_attention_mask`, `positive_…`, ….

    All are `(batch, seq)`, of one length. A text that is twice in a batch is its own negative.

    Args:
        source: a path or an iterable of mappings.
        tokenizer: a fast tokenizer of transformers.
        max_length, truncation, pad_to, show_progress: see `data`.
        batch_size: rows of a batch.
        anchor: the texts' column.
        positive: the column of similar texts.
        negative: the column of dissimilar texts; None if there is none.
        **options: those of `batches`.

    Raises:
        SourceError: there is no such file.
        InputError: an argument is wrong, or a text is empty or too long.
    """
    encoder = Encoder(tokenizer, max_length, truncation, show_progress, batch_size, options)
    columns = {"anchor_": anchor, "positive_": positive}
    if negative is not None:
        columns["negative_"] = negative
    collate = collate_for(encoder, pad_to, prefixes=tuple(columns))
    records = Records(source, columns.values())
    examples: list[dict[str, Any]] = [{"example": np.int64(i)} for i in range(len(records))]
    for prefix, column in columns.items():
        found = encoder(texts_of(records, column), places_of(records, column))
        for example, encoding in zip(examples, found, strict=True):
            example.update(encoder.arrays(encoding, prefix))
    return encoder.batches(examples, collate)


def instruction(
    source: Path | Iterable[Mapping[str, Any]],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_length: int,
    batch_size: int,
    prompt: str = "prompt",
    completion: str = "completion",
    truncation: bool = False,
    pad_to: int | Sequence[int] | None = None,
    show_progress: bool | None = None,
    **options: Unpack[BatchOptions],
) -> "IterDataset[dict[str, np.ndarray]]":
    """Returns prompts with completions: `input_ids`, `attention_mask`, `labels`, `(batch, seq)`.

    They are for `causal_lm`. Labels of the prompt are −100, so that only the completion is learned,
    and the EOS (or separator) token after it. Both texts are tokenized alone, as a prompt is when a
    model continues it, and joined without a space.

    Args:
        source: a path or an iterable of mappings.
        tokenizer: a fast tokenizer of transformers.
        max_length, truncation, pad_to, show_progress: see `data`.
        batch_size: rows of a batch.
        prompt: the prompts' column.
        completion: the completions' column.
        **options: those of `batches`.

    Raises:
        SourceError: there is no such file.
        InputError: an argument is wrong, a text is empty, a prompt with its completion is too long,
            or truncation leaves no token of a completion.
    """
    encoder = Encoder(tokenizer, max_length, truncation, show_progress, batch_size, options)
    collate = collate_for(encoder, pad_to, labels=True)
    before, end = frame_of(encoder.backend, pair=False).before, end_of(tokenizer)
    encoder.check_capacity(len(before) + 1)
    records = Records(source, [prompt, completion])
    prompts, completions = (
        encoder.encoded(texts_of(records, column), special=False) for column in (prompt, completion)
    )
    examples = []
    for index, place in enumerate(places_of(records, f"{prompt}, {completion}")):
        ids = [*before, *prompts[index].ids, *completions[index].ids, end]
        labels = [IGNORED] * (len(before) + len(prompts[index].ids))
        labels += ids[len(labels) :]
        if truncation and tokenizer.truncation_side == "left":
            cut = max(len(ids) - encoder.max_length, 0) + len(before)
            ids, labels = [*before, *ids[cut:]], [IGNORED] * len(before) + labels[cut:]
        elif truncation:
            ids, labels = ids[: encoder.max_length], labels[: encoder.max_length]
        encoder.check_length(place, len(ids))
        if all(label == IGNORED for label in labels[1:]):
            raise InputError(f"{place}: truncation leaves no token of the completion")
        examples.append(
            unpadded(ids) | {"labels": np.array(labels, np.int32), "example": np.int64(index)}
        )
    return encoder.batches(examples, collate)


def _words_and_labels(
    records: Records, words: str, label: str, label2id: Mapping[str, int] | None
) -> tuple[list[list[str]], list[list[int]]]:
    """Returns the words of records, and the ids of their labels."""
    inputs, labels = [], []
    for index, row in enumerate(records):
        place, where = records.where(index, words), records.where(index, label)
        texts = [checked_text(word, place) for word in checked_list(row[words], place)]
        given = [(value, where) for value in checked_list(row[label], where)]
        if not texts or len(texts) != len(given):
            raise InputError(
                f"{place}: expected a label for each word; found {len(texts)} words and "
                f"{len(given)} labels"
            )
        inputs.append(texts)
        labels.append(given)
    known = known_labels(label2id, itertools.chain(*labels))
    return inputs, [[label_id(value, known, place) for value, place in row] for row in labels]
