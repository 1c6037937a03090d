"""Labels of records and of words: class ids, multi-hot vectors and regression targets."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from minibert.core.checks import check_choice, unmasked
from minibert.core.fields import whole
from minibert.core.types import Path
from minibert.data.records import Records
from minibert.errors import InputError, shown

PROBLEMS = (
    "single_label_classification",
    "multi_label_classification",
    "regression",
)
Placed = tuple[Any, str]  # a value, and how messages name it
MAX_FLOAT32 = float(np.finfo(np.float32).max)
INDEX = whole(0)
MAX_LABELS = 1 << 20  # a larger number is not a label, but an amount or another id


def label_ids(
    source: Path | Iterable[Mapping[str, Any]],
    label: str = "label",
    *,
    problem_type: str | None = None,
) -> dict[str, int]:
    """Returns the ids of the labels of records by name, as for a config's `label2id`.

    Names are sorted. Integers, or their digits, are ids already.

    Args:
        source: records, as for `classification`.
        label: their column: a label in each row, or a list of labels.
        problem_type: with `multi_label_classification`, a row may also hold a 0 or a 1 for each
            label, as for `classification`; the labels' names are then "0", "1", ….

    Raises:
        InputError: something is not a label.
    """
    check_choice("problem_type", problem_type, (None, *PROBLEMS[:2]))
    records = Records(source, [label])
    rows = _labels_and_places(records, label)
    lists = [(value if _is_list(value) else [value], place) for value, place in rows]
    if problem_type == "multi_label_classification" and is_multi_hot(lists, None):
        return _numbered(len(lists[0][0]))
    return names_to_ids([(one, place) for values, place in lists for one in values])


def names_to_ids(labels: Iterable[Placed]) -> dict[str, int]:
    """Returns the ids of labels, each of which is passed with its name for messages."""
    labels = list(labels)
    for value, place in labels:
        _check_label(value, place)
    values = {value for value, _ in labels}
    if not values:
        raise InputError("label: expected at least one label, found none")
    if all(not isinstance(value, str) or _is_digits(value) for value in values):
        for value, place in labels:
            _check_label(_as_number(value), place)
        return _numbered(max(map(int, values)) + 1)
    for value, place in labels:
        if not isinstance(value, str):
            raise InputError(f"{place}: expected a name, as for other labels, found {shown(value)}")
    return {name: number for number, name in enumerate(sorted(values))}


def known_labels(label2id: object, labels: Iterable[Placed]) -> dict[str, int]:
    """Returns `label2id`, checked; by default the ids of the labels found."""
    return names_to_ids(labels) if label2id is None else checked_label2id(label2id)


def checked_label2id(label2id: object) -> dict[str, int]:
    """Returns a config's `label2id`, if it maps names to 0, 1, 2, ….

    Raises:
        InputError: the ids are not 0, 1, 2, …, or two names have the same id.
    """
    if not isinstance(label2id, Mapping) or not label2id:
        raise InputError(f"label2id: expected ids by name, found {shown(label2id)}")
    ids = label2id.values()
    if any(type(number) is not int for number in ids) or sorted(ids) != list(range(len(ids))):
        raise InputError(
            f"label2id: expected the ids 0 to {len(ids) - 1}, each once; found "
            f"{shown(dict(label2id))}"
        )
    return dict(label2id)


def label_id(value: Any, label2id: Mapping[str, int], place: str) -> int:
    """Returns the id of a label, which is a name, an id, or an id's digits.

    Raises:
        InputError: the label is not in `label2id`.
    """
    _check_label(value, place)
    if isinstance(value, str):
        if value in label2id:
            return label2id[value]
        if not _is_digits(value) or len(value) > len(str(MAX_LABELS)):
            raise InputError(f"{place}: {shown(value)} is not in label2id: {shown(list(label2id))}")
    number = int(value)
    if label2id.get(str(number), number) != number:
        raise InputError(
            f"{place}: {value} is the id of one label and the name of another in "
            f"{shown(dict(label2id))}; expected a name"
        )
    if number >= len(label2id):
        raise InputError(f"{place}: {value} is out of range; expected 0 to {len(label2id) - 1}")
    return number


def record_labels(
    records: Records, column: str, problem: str, label2id: Mapping[str, int] | None
) -> list[np.ndarray | np.integer | np.floating]:
    """Returns the labels of records: ids, multi-hot vectors, or real numbers.

    Raises:
        InputError: a label is empty, unknown, not finite or repeated; or lists of labels are
            ambiguous, see `is_multi_hot`.
    """
    check_choice("problem_type", problem, PROBLEMS)
    values = _labels_and_places(records, column)
    if problem == "regression":
        if label2id is not None:
            raise InputError("label2id: expected None for a regression, found a value")
        return _numbers(values)
    if problem == "single_label_classification":
        known = known_labels(label2id, values)
        return [np.int32(label_id(value, known, place)) for value, place in values]
    lists = [(checked_list(value, place), place) for value, place in values]
    known = None if label2id is None else checked_label2id(label2id)
    if is_multi_hot(lists, known):
        return [np.array(row, np.float32) for row, _ in lists]
    if known is None:
        known = names_to_ids([(one, place) for row, place in lists for one in row])
    return [_multi_hot(row, known, place) for row, place in lists]


def is_multi_hot(
    rows: Sequence[tuple[Sequence[Any], str]], known: Mapping[str, int] | None
) -> bool:
    """Returns whether lists of labels are multi-hot vectors, and not names or ids.

    Floating-point numbers and booleans are multi-hot. Integers may be ids, which a list holds once
    each, or multi-hot, with lists of one length, the number of labels. All rows together decide.

    Args:
        rows: the lists, each with its name for messages.
        known: the ids of the labels; None if they are not known.

    Raises:
        InputError: integers may be either, or numbers that must be multi-hot are not 0 and 1.
    """
    kinds = {np.asarray(one).dtype.kind for row, _ in rows for one in row}
    size = len(known) if known else max((len(row) for row, _ in rows), default=0)
    wrong = [
        (row, place)
        for row, place in rows
        if len(row) != size or any(one not in (0, 1) for one in row)
    ]
    if kinds & {"f", "b"} and kinds <= {"f", "b", "i", "u"}:
        for row, place in wrong:
            raise InputError(
                f"{place}: expected {size} numbers, a 0 or a 1 for each label; found {shown(row)}"
            )
        return True
    if not kinds or not kinds <= {"i", "u"} or wrong:
        return False
    if any(len(set(row)) < len(row) or (known and max(row) >= size) for row, _ in rows):
        return True
    row, place = rows[0]
    raise InputError(
        f"{place}: {shown(row)} and all others may be ids of labels, or a 0 or a 1 for each label; "
        'pass floats, such as [1.0, 0.0], for 0 and 1; for ids pass names, or texts such as ["1"]'
    )


def checked_list(value: object, place: str) -> list[Any]:
    """Returns a list, tuple or array of labels or words as a list.

    Raises:
        InputError: the value is not a list, tuple or array, or elements are masked.
    """
    if not _is_list(value):
        raise InputError(f"{place}: expected a list, found {shown(value)}")
    return list(unmasked(place, value))


def texts_of(records: Records, column: str) -> list[str]:
    """Returns each record's text in a column."""
    return [records.text(index, column) for index in range(len(records))]


def places_of(records: Records, column: str) -> list[str]:
    """Returns how messages name each record's value in a column."""
    return [records.where(index, column) for index in range(len(records))]


def _labels_and_places(records: Records, column: str) -> list[Placed]:
    """Returns each record's value in a column, and how messages name it."""
    placed = zip(records, places_of(records, column), strict=True)
    return [(unmasked(place, row[column]), place) for row, place in placed]


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim > 0)


def _check_label(value: Any, place: str) -> None:
    if isinstance(value, str) and value.strip():
        return
    if not INDEX.allows(value):
        raise InputError(f"{place}: expected a label's name or number, found {shown(value)}")
    if value >= MAX_LABELS:
        raise InputError(f"{place}: expected a label's number, under {MAX_LABELS}; found {value}")


def _is_digits(text: str) -> bool:
    """Returns whether a text is an integer as Python writes it; "01" is a name other than "1"."""
    return text.isascii() and text.isdecimal() and (text == "0" or text[0] != "0")


def _numbered(count: int) -> dict[str, int]:
    return {str(number): number for number in range(count)}


def _as_number(value: Any) -> int:
    """Returns the integer of a label's digits, or `MAX_LABELS` if there are too many digits."""
    return int(value) if len(str(value)) <= len(str(MAX_LABELS)) else MAX_LABELS


def _multi_hot(labels: Sequence[Any], known: Mapping[str, int], place: str) -> np.ndarray:
    ids = [label_id(one, known, place) for one in labels]
    if len(set(ids)) < len(ids):
        raise InputError(
            f"{place}: a label occurs twice in {shown(labels)}; expected each once, or a 0 or a "
            f"1 for each of {len(known)} labels"
        )
    row = np.zeros(len(known), np.float32)
    row[ids] = 1
    return row


def _numbers(values: Sequence[Placed]) -> list[Any]:
    """Returns numbers, or lists of them, in float32; all of one shape."""
    rows: list[Any] = []
    for value, place in values:
        if _is_list(value):
            rows.append(np.array([_number(one, place) for one in value], np.float32))
        else:
            rows.append(np.float32(_number(value, place)))
        if not rows[-1].size:
            raise InputError(f"{place}: expected numbers, found none")
    expected = rows[0].shape
    for row, (_, place) in zip(rows, values, strict=True):
        if row.shape != expected:
            raise InputError(
                f"{place}: expected numbers of shape {expected} as in the first record, found "
                f"{row.shape}"
            )
    return rows


def _number(value: Any, place: str) -> float:
    grouped = isinstance(value, str) and "_" in value  # Python reads "1_000" as a number
    try:
        number = math.nan if grouped or isinstance(value, bool | np.bool_) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not abs(number) <= MAX_FLOAT32:
        why = ", which float32 cannot hold" if math.isfinite(number) else ""
        raise InputError(f"{place}: expected a finite number, found {shown(value)}{why}")
    return number
