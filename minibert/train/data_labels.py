"""Labels of records: names to ids, one, several or real numbers, of records or of words."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from minibert.errors import InputError, shown
from minibert.train.data_records import Records

PROBLEMS = (
    "single_label_classification",
    "multi_label_classification",
    "regression",
)
MOST = 1 << 20  # labels; a larger number is none, but an id or an amount


def label_ids(source: Any, label: Any = "label") -> dict[str, int]:
    """The ids that the labels of records get, by name: what a model's `label2id` should be.

    Names are sorted. Whole numbers, or their digits, are ids already.

    Args:
        source: records, as for `classification`.
        label: their column: a label in each row, or a list of them.

    Raises:
        InputError: something is no label.
    """
    records = Records(source, [label])
    found = [
        (value, records.where(index, label))
        for index, row in enumerate(records)
        for value in (row[label] if isinstance(row[label], list | tuple) else [row[label]])
    ]
    return names_to_ids(found)


def names_to_ids(labels: Iterable[tuple[Any, str]]) -> dict[str, int]:
    """The ids of labels, each given with its place for messages."""
    labels = list(labels)
    for value, place in labels:
        _check_label(value, place)
    values = {value for value, _ in labels}
    if not values:
        raise InputError("label: there are none")
    if all(not isinstance(value, str) or value.isdecimal() for value in values):
        for value, place in labels:
            _check_label(_as_number(value), place)
        return {str(number): number for number in range(max(map(int, values)) + 1)}
    for value, place in labels:
        if not isinstance(value, str):
            raise InputError(f"{place}: expected a name as elsewhere, found {shown(value)}")
    return {name: number for number, name in enumerate(sorted(values))}


def checked_label2id(label2id: Any) -> dict[str, int]:
    """A model's `label2id`: names to 0, 1, 2, ….

    Raises:
        InputError: it is something else, or two names have one id.
    """
    if not isinstance(label2id, Mapping) or not label2id:
        raise InputError(f"label2id: expected ids by name, found {shown(label2id)}")
    if any(type(number) is not int for number in label2id.values()) or sorted(
        label2id.values()
    ) != list(range(len(label2id))):
        raise InputError(
            f"label2id: expected the ids 0 to {len(label2id) - 1}, each once; found "
            f"{shown(dict(label2id))}"
        )
    return dict(label2id)


def label_id(value: Any, label2id: Mapping[str, int], place: str) -> int:
    """The id of a label, which is a name, an id, or an id's digits.

    Raises:
        InputError: it is none of the known ones.
    """
    _check_label(value, place)
    if isinstance(value, str) and value.isdecimal() and value not in label2id:
        value = int(value) if len(value) <= len(str(MOST)) else value
    if not isinstance(value, str):
        if label2id.get(str(value), value) != value:
            raise InputError(
                f"{place}: {value} is the id of one label and the name of another in "
                f"{shown(dict(label2id))}; expected a name"
            )
        if 0 <= value < len(label2id):
            return int(value)
        raise InputError(f"{place}: {value} is out of range; expected 0 to {len(label2id) - 1}")
    if value not in label2id:
        raise InputError(f"{place}: {shown(value)} is not in label2id: {shown(list(label2id))}")
    return label2id[value]


def record_labels(
    records: Records, column: str, problem: str, label2id: Any
) -> list[np.ndarray | np.integer | np.floating]:
    """The labels of records: an id, a row of 0 and 1 for each label, or real numbers.

    Raises:
        InputError: a label is empty, unknown, not finite or given twice.
    """
    if problem not in PROBLEMS:
        raise InputError(f"problem_type: expected {', '.join(PROBLEMS)}; found {shown(problem)}")
    values = [(row[column], records.where(i, column)) for i, row in enumerate(records)]
    if problem == "regression":
        if label2id is not None:
            raise InputError("label2id: a regression has none")
        return _same_length([(_numbers(*pair), pair[1]) for pair in values])
    if problem == "single_label_classification":
        known = names_to_ids(values) if label2id is None else checked_label2id(label2id)
        return [np.int32(label_id(value, known, place)) for value, place in values]
    flat = [(one, place) for value, place in values for one in listed(value, place)]
    known = names_to_ids(flat) if label2id is None else checked_label2id(label2id)
    return [_multi_hot(value, known, place) for value, place in values]


def listed(value: Any, place: str) -> list[Any]:
    """A list of labels or words.

    Raises:
        InputError: it is none.
    """
    if not isinstance(value, list | tuple | np.ndarray):
        raise InputError(f"{place}: expected a list, found {shown(value)}")
    return list(value)


def _check_label(value: Any, place: str) -> None:
    if isinstance(value, str) and value.strip():
        return
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 0:
        raise InputError(f"{place}: expected a label's name or number, found {shown(value)}")
    if value >= MOST:
        raise InputError(f"{place}: expected a label's number, under {MOST}; found {value}")


def _as_number(value: Any) -> int:
    """The number of digits; of more of them than any label's has, one that is too large."""
    return int(value) if len(str(value)) <= len(str(MOST)) else MOST


def _multi_hot(value: Any, known: Mapping[str, int], place: str) -> np.ndarray:
    ids = [label_id(one, known, place) for one in listed(value, place)]
    if len(set(ids)) < len(ids):
        raise InputError(f"{place}: a label is given twice in {shown(value)}")
    row = np.zeros(len(known), np.float32)
    row[ids] = 1
    return row


def _numbers(value: Any, place: str) -> Any:
    several = isinstance(value, list | tuple | np.ndarray)
    numbers = [_number(one, place) for one in (value if several else [value])]
    if not numbers:
        raise InputError(f"{place}: expected numbers, found none")
    return np.array(numbers, np.float32) if several else np.float32(numbers[0])


def _number(value: Any, place: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{place}: expected a finite number, found {shown(value)}")
    return number


def _same_length(rows: Sequence[tuple[Any, str]]) -> list[Any]:
    expected = np.shape(rows[0][0])
    for row, place in rows:
        if np.shape(row) != expected:
            raise InputError(
                f"{place}: expected numbers of shape {expected} as in the first record, found "
                f"{np.shape(row)}"
            )
    return [row for row, _ in rows]
