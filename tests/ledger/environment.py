"""What holds for every run: the CPU, programs kept from run to run, nothing from the network."""

import importlib.metadata
import os
import pathlib
import platform

ROOT = pathlib.Path(__file__).parents[2]
SETTINGS = {
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".pytest_cache" / "programs"),  # the tests' own
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
PACKAGES = (
    "jax jaxlib flax optax numpy transformers tokenizers grain orbax-checkpoint typer rich click "
    "matplotlib jaxtyping"
)


def prepare() -> None:
    """Sets the environment; to be called before JAX is imported."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


def of_processes() -> dict[str, str]:
    """The environment of another process that is to import this checkout."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**SETTINGS, **os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def versions() -> dict[str, str]:
    """Of what numbers, signatures and help texts depend on besides this library."""
    found = {"python": platform.python_version()}
    for name in PACKAGES.split():
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    return {**found, "processor": _processor()}


def _processor() -> str:
    """The CPU's name: the last bits of sums depend on it."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
