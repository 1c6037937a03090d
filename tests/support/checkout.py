"""Where the checkout is, and what a process needs to import it and the helpers of its tests."""

import os
import pathlib

ROOT = pathlib.Path(__file__).parents[2]
SUPPORT = ROOT / "tests" / "support"
PYTHONPATH = os.pathsep.join(map(str, (ROOT, ROOT / "tests", SUPPORT)))
