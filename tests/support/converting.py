"""Running the converter as its command line does."""

import importlib.util

import pytest
from typer.testing import CliRunner

from convert.__main__ import command

HAS_TORCH = importlib.util.find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="verification needs torch")


def run(*arguments: object):
    """Runs `python -m convert`, which may exit with any status, but never with a traceback."""
    result = CliRunner().invoke(command(), [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result
