"""Strict JSON: what config files, shard indices and safetensors headers are read with."""

import json
import math
import os
import stat
from typing import Any

from minibert.errors import ConfigError

MAX_CONFIG_BYTES = 1 << 20


def parse_json(text: bytes, where: str, error: type[Exception] = ConfigError) -> Any:
    """Parses strict JSON: UTF-8, no duplicate keys, no NaN or infinite numbers.

    Args:
        text: the bytes.
        where: what they are, for the message.
        error: the type of error to raise.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise error(f"{where}: the key {key!r} appears twice")
            found[key] = value
        return found

    def finite(literal: str) -> float:
        number = float(literal)
        if not math.isfinite(number):
            raise error(f"{where}: {literal} is not a finite number")
        return number

    try:
        return json.loads(
            text.decode("utf-8"),
            object_pairs_hook=unique,
            parse_constant=finite,
            parse_float=finite,
        )
    except UnicodeDecodeError as reason:
        raise error(f"{where}: not UTF-8 text ({reason})") from None
    except json.JSONDecodeError as reason:
        raise error(f"{where}: not JSON ({reason})") from None
    except RecursionError:
        raise error(f"{where}: nested too deeply") from None
    except ValueError as reason:
        if isinstance(reason, error):
            raise
        raise error(f"{where}: {reason}") from None  # an integer of thousands of digits


def read_json(
    path: str, error: type[Exception] = ConfigError, limit: int = MAX_CONFIG_BYTES
) -> Any:
    """Reads a JSON file of at most `limit` bytes; see `parse_json`."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise error(f"{path}: not a regular file")
        with open(path, "rb") as file:
            text = file.read(limit + 1)
    except OSError as reason:
        raise error(f"{path}: cannot be read ({reason.strerror or reason})") from None
    if len(text) > limit:
        raise error(f"{path}: larger than {limit:,} bytes")
    return parse_json(text, path, error)
