"""Checks of single arguments: dtype, shape and, for concrete arrays, values.

Each raises an `InputError` that states the argument, what was expected and what was found.
"""

from collections.abc import Collection, ItemsView, Iterable, Iterator, KeysView, Mapping, Set
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import Array

from minibert.core import fields
from minibert.core.types import AnyArray, ArrayLike, Size
from minibert.errors import InputError, shown


def indices(name: str, ids: ArrayLike, limit: int, limit_name: str) -> Array:
    """Returns indices as a JAX array; checks that concrete ones are from 0 to `limit` - 1."""
    return jnp.asarray(checked_indices(name, ids, limit, limit_name))


def checked_indices(name: str, ids: ArrayLike, limit: int, limit_name: str) -> Any:
    """Checks like `indices`, but does not move the array to a device, which compiles per shape."""
    ids = as_array(name, ids)
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise InputError(f"{name}: expected integers, found {ids.dtype}")
    for value in _extremes(ids):
        if not 0 <= int(value) < limit:
            raise InputError(
                f"{name}: {value} is out of range; expected 0 to {limit - 1} ({limit_name} {limit})"
            )
    return ids


def zeros_and_ones(name: str, mask: ArrayLike) -> Array:
    """Returns a mask as a JAX array; checks that it consists of 0 and 1, or of booleans."""
    return jnp.asarray(checked_zeros_and_ones(name, mask))


def checked_zeros_and_ones(name: str, mask: ArrayLike) -> Any:
    """Checks like `zeros_and_ones`, but does not move the array to a device."""
    mask = as_array(name, mask)
    if not (jnp.issubdtype(mask.dtype, jnp.integer) or mask.dtype == bool):
        raise InputError(
            f"{name}: expected integers or booleans, 1 to keep and 0 to mask; found {mask.dtype}"
        )
    for value in _extremes(mask):
        if value not in (0, 1):
            raise InputError(f"{name}: expected only 0 and 1, found {value}")
    return mask


def checked_mask(name: str, mask: ArrayLike) -> Any:
    """Returns an attention mask after checking its values, without moving it to a device.

    With four axes it may hold floating-point numbers, which are added to scores; otherwise it
    consists of 0 and 1, or of booleans, and is returned as booleans.
    """
    array = as_array(name, mask)
    if array.ndim != 4 or not jnp.issubdtype(array.dtype, jnp.floating):
        return checked_zeros_and_ones(name, array).astype(bool)
    for value in _extremes(array):
        if not value < np.inf:  # NaN too
            raise InputError(f"{name}: expected finite numbers or -inf to add, found {value}")
    return array


def floats(name: str, values: object) -> Array:
    """Returns values as a JAX array; checks that they are floating-point numbers.

    Those of less than 16 bits, such as float8, are refused: JAX does not compute with them.
    """
    values = as_array(name, values)
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise InputError(f"{name}: expected floating-point numbers, found {values.dtype}")
    if values.dtype.itemsize < 2:
        raise InputError(
            f"{name}: expected floating-point numbers of at least 16 bits, found {values.dtype}; "
            "convert them first, with .astype"
        )
    return jnp.asarray(values)


def lengths(
    name: str, array: Array, tail: tuple[int, ...], longest: int, limit_name: str
) -> tuple[Size, Size]:
    """Returns the batch and sequence sizes of an array of shape `(batch, seq, *tail)`."""
    if array.ndim != 2 + len(tail) or array.shape[2:] != tail:
        expected = ", ".join(["batch", "seq", *map(str, tail)])
        raise InputError(f"{name}: expected shape ({expected}), found {array.shape}")
    batch, seq = array.shape[:2]
    if not 1 <= seq <= longest:
        raise InputError(f"{name}: {seq} positions; expected 1 to {longest} ({limit_name})")
    return batch, seq


def whole(name: str, value: object, least: int, most: int | None = None) -> int:
    """Returns an integer after checking that it is at least `least` and at most `most`."""
    return fields.whole(least, most).check(name, value, InputError)


def flag(name: str, value: object) -> bool:
    """Returns a bool of Python or NumPy as a bool of Python."""
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{name}: expected True or False, found {shown(value)}")
    return bool(value)


def known(shape: tuple[Size, ...]) -> bool:
    """Returns whether all sizes of a shape are integers, none symbolic."""
    return all(isinstance(size, int) for size in shape)


def shaped(name: str, array: AnyArray, shapes: list[tuple[Size, ...]]) -> Any:
    """Returns the array after checking that it has one of the shapes."""
    if array.shape not in shapes:
        expected = " or ".join(map(str, dict.fromkeys(shapes)))
        raise InputError(f"{name}: expected shape {expected}, found {array.shape}")
    return array


def _extremes(array: AnyArray) -> tuple[Any, ...]:
    if isinstance(array, jax.core.Tracer) or not array.size or array.dtype == bool:
        return ()
    values = jax.device_get(array)
    return values.min(), values.max()


def unmasked(name: str, value: object) -> Any:
    """Returns a value unchanged, after checking that no NumPy mask hides an element of it.

    Conversions to an array discard the mask of a masked array, also of one in a list.

    Raises:
        InputError: an element is masked.
    """
    if _masked(value):
        raise InputError(
            f"{name}: expected an array without masked elements, found a NumPy masked array; "
            "replace masked elements with .filled(value) (in an attention_mask, 0 is padding)"
        )
    return value


def _masked(value: object) -> bool:
    if isinstance(value, list | tuple):
        kinds = set(map(type, value))  # few, however many elements there are
        some = any(issubclass(kind, list | tuple | np.ma.MaskedArray) for kind in kinds)
        return some and any(map(_masked, value))
    return isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value)


def as_array(name: str, value: object) -> Any:
    """Returns a JAX array unchanged, and any other array of numbers as a NumPy array.

    The dtype is not narrowed to those of JAX; the order of bytes becomes that of the machine.

    Raises:
        InputError: `value` is not an array of numbers, elements are masked, or it is a JAX array
            that was deleted.
    """
    if isinstance(value, jax.Array):
        return undeleted(name, value)
    found = type(unmasked(name, value)).__name__
    try:
        array = np.asarray(value)
    except Exception as reason:  # conversions of objects can raise any type
        raise InputError(
            f"{name}: expected an array, found {found} ({shown(str(reason))})"
        ) from None
    if array.dtype.kind not in "biufV":  # V: dtypes of ml_dtypes such as bfloat16
        raise InputError(f"{name}: expected an array of numbers, found {found} of {array.dtype}")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def undeleted(name: str, array: Array) -> Array:
    """Returns a JAX array after checking that its buffer was not deleted, as donation does."""
    if not isinstance(array, jax.core.Tracer) and array.is_deleted():
        raise InputError(
            f"{name}: expected an array, found one that was deleted; a compiled function to which "
            "an array is donated (donate_argnums) deletes it: pass a copy, or what it returned"
        )
    return array


def concrete(value: Array) -> int:
    """Returns the value of a scalar array, or 0 if it is traced."""
    return 0 if isinstance(value, jax.core.Tracer) else int(jax.device_get(value))


def elements(
    name: str,
    values: Any,
    *,
    expected: str = "a text or texts",
    table: str = 'select one column, such as table["text"]',
    ordered: bool = True,
) -> Iterator[Any]:
    """Returns an iterator over the elements of a collection, in the collection's order.

    Lists, tuples, generators, views of dicts, one-dimensional arrays, columns of pandas, polars,
    pyarrow and datasets, and objects that only have a length and indices (PyTorch's datasets) are
    accepted. Iteration over a mapping or a table would yield names of columns (or columns), over
    bytes numbers, over a string characters, and over a set an arbitrary order; these are errors.

    Args:
        name: the argument, for messages.
        values: the collection. An iterator is not advanced.
        expected: what the argument may be, for messages.
        table: what to pass instead of a mapping or a table, for messages.
        ordered: whether the order of the elements matters. Otherwise sets are accepted.

    Raises:
        InputError: `values` is not such a collection.
    """
    kind = type(values)
    if isinstance(values, Mapping) or hasattr(kind, "columns"):  # pandas, polars, pyarrow
        found = "a mapping" if isinstance(values, Mapping) else "a table"
        module = kind.__module__.partition(".")[0]
        full = kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"
        raise InputError(f"{name}: expected {expected}, found {found} ({full}); {table}")
    if ordered and isinstance(values, Set) and not isinstance(values, KeysView | ItemsView):
        raise InputError(
            f"{name}: expected {expected} in an order, found an unordered {kind.__name__}; pass a "
            "list"
        )
    iterable = isinstance(values, Iterable)
    indexed = not iterable and hasattr(kind, "__getitem__") and hasattr(kind, "__len__")
    if isinstance(values, str | bytes | bytearray | memoryview) or not (iterable or indexed):
        raise InputError(f"{name}: expected {expected}, found {shown(values)}")
    if indexed:
        return (values[index] for index in range(len(values)))
    if hasattr(kind, "to_pylist"):  # arrays of pyarrow, whose elements are not Python objects
        values = values.to_pylist()
    try:
        return iter(values)
    except TypeError as reason:  # an array without an axis has __iter__ too
        raise InputError(f"{name}: expected {expected} ({reason})") from None


def check_choice(name: str, value: object, choices: Collection[str | None]) -> None:
    """Raises an `InputError` unless the argument `name` is one of the choices."""
    if not isinstance(value, str | None) or value not in tuple(choices):
        known = ", ".join(map(str, choices))
        raise InputError(f"{name}: expected one of {known}; found {shown(value)}")


def check_text(text: object, where: str = "") -> None:
    """Raises an `InputError` that begins with `where` unless `text` is a `str` valid in UTF-8."""
    where = where and f"{where}: "
    if not isinstance(text, str):
        hint = "; pass the text itself, such as row['text']" if isinstance(text, Mapping) else ""
        raise InputError(f"{where}expected a text, found {shown(text)}{hint}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}half a surrogate pair in {shown(text)}") from None


def text_list(name: str, texts: object, *, ordered: bool = True) -> list[str]:
    """Returns one or several texts as a list; the arguments are those of `elements`.

    Raises:
        InputError: `texts` is neither; see `elements` and `check_text`.
    """
    found = [texts] if isinstance(texts, str) else list(elements(name, texts, ordered=ordered))
    for text in found:
        check_text(text, name)
    return found
