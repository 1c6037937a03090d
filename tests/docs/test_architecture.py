"""The invariants of ARCHITECTURE.md, each an absence."""

import ast
import importlib.util
import inspect
import os
import pathlib
import subprocess
import sys
import tomllib

import pytest

import minibert
from minibert.models.registry import FAMILIES

ROOT = pathlib.Path(__file__).parents[2]
# The files of the families, where alone their tensors are named.
OF_FAMILIES = {
    file
    for family in FAMILIES
    for cls in (family.config, *family.models)
    for home in (pathlib.Path(inspect.getfile(cls)),)
    for file in (home, *home.parent.glob("__init__.py"))
    if file.parent.name != "models" or file == home
}
LIBRARY = sorted((ROOT / "minibert").rglob("*.py"))
# From the ground up: a folder imports only from those before it.
FOLDERS = tuple(
    """errors core assets nn data sharding text checkpoint models scratch generation embedding
    inspection pipelines train conversion cli __init__ __main__""".split()
)


def imports(path: pathlib.Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_import_brings_in_nothing_heavy():
    code = (
        "import sys, time, jax, jax.numpy; start = time.process_time(); import minibert; "
        "[getattr(minibert, name) for name in minibert.__all__]; "
        "print(time.process_time() - start); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, modules = done.stdout.splitlines()
    heavy = {"torch", "transformers", "tokenizers", "huggingface_hub", "orbax", "grain", "pandas"}
    heavy |= {"typer", "matplotlib", "sentence_transformers", "convert"}
    assert not heavy & set(modules.split())
    assert float(seconds) < 5  # of CPU time; a quiet machine takes under one


def test_the_package_imports_nothing_until_a_name_is_used():
    code = "import sys, minibert; print('jax' in sys.modules); minibert.BertModel"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_submodules_are_attributes():
    for name in (*minibert.SUBMODULES, "assets", "errors"):
        assert inspect.ismodule(getattr(minibert, name))
        assert name in dir(minibert)
    code = "import minibert; minibert.train.Trainer"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_interrupt_of_the_command_while_it_starts(tmp_path):
    (tmp_path / "jax.py").write_text("raise KeyboardInterrupt")
    done = subprocess.run(
        [sys.executable, "-m", "minibert", "--help"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.stem)
def test_nothing_imports_upward(path):
    own = path.relative_to(ROOT / "minibert").parts[0].removesuffix(".py")
    assert own in FOLDERS, f"{own} has no place among the folders"
    for module in imports(path):
        top, _, rest = module.partition(".")
        assert top not in ("convert", "tests", "benchmarks"), module
        first = rest.partition(".")[0]
        home = minibert._HOMES.get(first, "minibert") if first not in FOLDERS else "minibert"
        folder = first if home == "minibert" else home.split(".")[1]
        if top == "minibert" and folder not in ("", own, "__version__"):
            assert FOLDERS.index(folder) < FOLDERS.index(own), f"{path} imports minibert.{rest}"
    assert "from __future__" not in path.read_text()


def test_what_is_imported_from_the_library_is_there():
    """Imports inside functions too, which a linter does not follow."""
    for folder in ("minibert", "convert", "benchmarks", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and f"{node.module}".startswith("minibert"):
                    module = importlib.import_module(f"{node.module}")
                    for alias in node.names:
                        name = f"{node.module}.{alias.name}"
                        here = hasattr(module, alias.name) or importlib.util.find_spec(name)
                        assert here, f"{path} imports {name}"


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.stem)
def test_no_global_option_is_touched(path):
    if path.stem == "__main__":
        return  # the command's process is its own
    text = path.read_text()
    for forbidden in ("config.update", "environ", "getenv", "jax.config", "setattr(jax"):
        assert forbidden not in text, forbidden


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.stem)
def test_no_tensor_is_named_outside_its_model(path):
    """No table of names: only a family's own files may say `encoder.layer` or `c_attn`."""
    if path in OF_FAMILIES:
        return
    strings = {
        n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)
    }
    code = {text for text in strings if isinstance(text, str) and "\n" not in text}
    bert = ("encoder.layer", "cls.predictions", "attention.self", "word_embeddings")
    gpt2 = ("c_attn", "c_proj", "c_fc", "wte", "ln_f", "lm_head", "multiple_choice_head")
    for name in bert + gpt2:
        assert not any(name in text for text in code), name


def test_the_wheel_holds_the_library_alone():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["minibert"]
    assert project["project"]["name"] == "minibert-jax"
    assert not (ROOT / "tests" / "__init__.py").exists()


def test_the_other_name_is_never_recommended():
    for path in ROOT.glob("*.md"):
        assert "pip install minibert\n" not in path.read_text()
        assert "pip install minibert`" not in path.read_text()


def test_no_file_is_long():
    for folder in ("minibert", "convert", "tests", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 500, path
