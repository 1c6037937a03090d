"""Environments of peers whose packages are incompatible with ours.

    python -m benchmarks setup

creates or recreates them in out/environments: the last transformers with Flax models, and KerasHub,
both with our version of JAX. Benchmarks skip the peers whose environments do not exist.
"""

import json
import os
import shutil
import subprocess
import sys
import venv
from importlib.metadata import version

from rich.console import Console

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FOLDER = os.path.join(ROOT, "out", "environments")
PACKAGES = {
    "flax": ("transformers==4.57.6", "flax", "safetensors"),
    "keras": ("keras-hub==0.32.0", "safetensors"),
}


def python(name: str) -> str | None:
    """Returns the interpreter of an environment, or None if it does not exist."""
    path = os.path.join(FOLDER, name, "bin", "python")
    return path if os.path.exists(path) else None


def versions(interpreter: str) -> dict[str, str]:
    """Returns the versions of installed packages by name."""
    command = [interpreter, "-m", "pip", "list", "--format=json"]
    found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return {one["name"]: one["version"] for one in found}


def setup() -> None:
    """Creates all environments."""
    console, ours = Console(stderr=True), f"jax=={version('jax')}"
    for name, packages in PACKAGES.items():
        folder = os.path.join(FOLDER, name)
        with console.status(f"{name}: {' '.join(packages)}"):
            venv.create(folder, clear=True, with_pip=True)
            install = [os.path.join(folder, "bin", "python"), "-m", "pip", "install", "--quiet"]
            if subprocess.run([*install, *packages, ours]).returncode:
                shutil.rmtree(folder)
                sys.exit(f"{name}: not installed")
        console.print(f"{name}: {folder}", soft_wrap=True)
