"""Strict reading of JSON: anything that two parsers might read differently is refused; writing."""

import json
import math
import os
from typing import Any

from minibert.core.paths import read_file
from minibert.errors import ConfigError, MinibertError, shown

MAX_BYTES = 1 << 20
MAX_DEPTH = 64  # far below Python's recursion limit


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns an object without duplicate keys, of which parsers keep either the first or the last.

    Raises:
        ValueError: a key appears twice.
    """
    found = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {shown(key)} appears twice")
        found[key] = value
    return found


def parse_json(text: bytes, where: str, error: type[Exception] = ConfigError) -> Any:
    """Parses strict JSON: UTF-8, no duplicate keys, no NaN or infinite numbers, no deep nesting.

    Args:
        text: the encoded JSON.
        where: its origin, for messages.
        error: the type of error to raise.
    """

    def finite(literal: str) -> float:
        number = float(literal)
        if not math.isfinite(number):
            raise ValueError(f"{literal[:40]} is not a finite number")
        return number

    def whole(literal: str) -> int:
        if literal == "-0":  # a float to some parsers
            raise ValueError("-0 is not a whole number")
        return int(literal)

    try:
        value = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=unique_keys,
            parse_constant=finite,
            parse_float=finite,
            parse_int=whole,
        )
        if _depth([value]) > MAX_DEPTH:
            raise RecursionError
        if b"\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # raises for half a surrogate pair
        return value
    except UnicodeDecodeError as reason:
        raise error(f"{where}: not UTF-8 text ({reason})") from None
    except json.JSONDecodeError as reason:
        raise error(f"{where}: not JSON ({reason})") from None
    except RecursionError:
        raise error(f"{where}: nested too deeply") from None
    except ValueError as reason:
        # a duplicate key, thousands of digits, half a surrogate pair, or a number not finite
        raise error(f"{where}: {reason}") from None


def _depth(container: Any) -> int:
    children = container.values() if isinstance(container, dict) else container
    inner = (_depth(child) for child in children if isinstance(child, dict | list))
    return 1 + max(inner, default=0)


def read_object_if_there(path: str) -> dict[str, Any] | None:
    """Reads a JSON file that contains an object; returns None if there is no such file."""
    if not os.path.lexists(path):
        return None
    data = read_json(path)
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected an object of fields, found {type(data).__name__}")
    return data


def read_json(path: str, error: type[MinibertError] = ConfigError, limit: int = MAX_BYTES) -> Any:
    """Reads a JSON file of at most `limit` bytes; see `parse_json`."""
    return parse_json(read_file(path, limit, error), path, error)


def write_json(data: object, path: str) -> None:
    """Writes an indented JSON file with sorted keys."""
    try:
        text = json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
        content = f"{text}\n".encode()
    except (TypeError, ValueError, RecursionError) as reason:
        raise ConfigError(f"{path}: expected values that JSON can represent ({reason})") from None
    with open(path, "wb") as file:
        file.write(content)
