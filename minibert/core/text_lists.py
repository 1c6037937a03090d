"""Validation of arguments that hold several texts.

Everything that takes several texts or records reads them through `elements`, so that all entry
points accept and refuse the same collections. No library of tables is imported: tables
are recognised by the attributes that their types share.
"""

from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, Set
from typing import Any

from minibert.errors import InputError, shown

COLUMN = 'select one column, such as table["text"]'


def elements(
    name: str,
    values: Any,
    *,
    expected: str = "a text or texts",
    table: str = COLUMN,
    ordered: bool = True,
) -> Iterator[Any]:
    """Returns an iterator over the elements of a collection, in the collection's order.

    Lists, tuples, generators, views of dicts, one-dimensional arrays, and columns of pandas,
    polars, pyarrow and datasets have elements of their own. Iterating over a mapping or a table
    yields the names of its columns (or the columns), over bytes numbers, over a string characters,
    and over a set an arbitrary order; these are errors.

    Args:
        name: the argument, for messages.
        values: the collection. An iterator is not advanced.
        expected: what the argument may be, for messages.
        table: what to pass in place of a mapping or a table, for messages.
        ordered: whether the order of the elements matters. Otherwise a set is accepted.

    Raises:
        InputError: `values` is not such a collection.
    """
    kind = type(values)
    if isinstance(values, Mapping) or hasattr(kind, "columns"):  # pandas, polars, pyarrow
        found = "a mapping" if isinstance(values, Mapping) else "a table"
        raise InputError(f"{name}: expected {expected}, found {found} ({_name(kind)}); {table}")
    if ordered and isinstance(values, Set) and not isinstance(values, KeysView | ItemsView):
        raise InputError(
            f"{name}: expected {expected} in an order, found a {kind.__name__}, which has none; "
            "pass a list"
        )
    scalar = isinstance(values, str | bytes | bytearray | memoryview)
    if scalar or not isinstance(values, Iterable):
        raise InputError(f"{name}: expected {expected}, found {shown(values)}")
    if hasattr(kind, "to_pylist"):  # arrays of pyarrow, whose own elements are not Python's
        values = values.to_pylist()
    try:
        return iter(values)
    except TypeError as reason:  # an array without an axis has __iter__ too
        raise InputError(f"{name}: expected {expected} ({reason})") from None


def check_text(text: Any, where: str = "") -> None:
    """Raises an `InputError` beginning with `where` unless `text` is a `str` that UTF-8 encodes."""
    where = where and f"{where}: "
    if not isinstance(text, str):
        hint = "; pass the text itself, such as row['text']" if isinstance(text, Mapping) else ""
        raise InputError(f"{where}expected a text, found {shown(text)}{hint}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}half a surrogate pair in {shown(text)}") from None


def text_list(name: str, texts: Any, *, ordered: bool = True) -> list[str]:
    """Returns a text, or several, as a list. The arguments are those of `elements`.

    Raises:
        InputError: `texts` is neither; see `elements` and `check_text`.
    """
    found = [texts] if isinstance(texts, str) else list(elements(name, texts, ordered=ordered))
    for text in found:
        check_text(text, name)
    return found


def _name(kind: type) -> str:
    module = kind.__module__.partition(".")[0]
    return kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"
