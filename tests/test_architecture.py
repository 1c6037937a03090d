"""The invariants of ARCHITECTURE.md, each an absence."""

import ast
import os
import pathlib
import subprocess
import sys
import tomllib

import pytest

import minibert
from minibert import names

ROOT = pathlib.Path(__file__).parents[1]
LIBRARY = sorted((ROOT / "minibert").rglob("*.py"))
# From the bottom up: a room imports only from rooms on lower floors.
FLOORS = [
    {"assets", "errors", "printing"},
    {"atomic_file", "checks", "norms", "text_lists"},
    {"attention", "layers", "report", "sharding_rules", "strict_json"}
    | {"processors", "sampling"}
    | {"pooling", "parameters", "embedding_outputs", "cli_shared", "progress", "plots"},
    {
        "activations",
        "atomic",
        "cache",
        "config",
        "finite",
        "sharding",
        "tables",
        "tensor_files",
    },
    {"embedding_parts", "model_files", "similarity", "texts"},
    {"embedding_job", "quantization"},
    {"checkpoint", "decoding", "generation_arrays", "generation_rules", "inputs", "outputs"}
    | {"placement", "sources"},
    {"beams", "generation_config", "hub", "matching", "stack"},
    {"agreement"},
    {"saving"},
    {"assembly"},
    {"pretrained", "prompts", "bert_config", "gpt2_config"},
    {"generation", "bert_blocks", "gpt2_blocks"},
    {"bert", "gpt2"},
    {"bert_heads", "bert_lm_heads", "gpt2_heads"},
    {"auto", "batching", "compilation", "capture", "scratch"},
    {"packing"},
    {"analysis", "token_ids"},
    {"pipelines", "sentence_modules", "sentence_settings"},
    {"sentence_folder", "sentence_run"},
    {"sentence_hub", "sentence_outputs", "sentence_saving"},
    {"sentence_loading", "train"},
    {"documents"},
    {"demo_pictures", "sentence"},
    {"cli_demo", "cli_embed", "cli_train"},
    {"cli", "names"},
    {"__init__", "__main__"},
]


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
        "import sys, time, jax, jax.numpy; start = time.process_time(); import minibert.names; "
        "print(time.process_time() - start); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, modules = done.stdout.splitlines()
    heavy = {"torch", "transformers", "tokenizers", "huggingface_hub", "orbax", "grain", "pandas"}
    heavy |= {"typer", "matplotlib", "sentence_transformers", "convert"}
    assert not heavy & set(modules.split())
    assert float(seconds) < 5  # of CPU time; a quiet machine takes under one


def test_the_package_brings_in_nothing_until_it_is_asked():
    code = "import sys, minibert; print('jax' in sys.modules); minibert.BertModel"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert minibert.__all__ == names.__all__


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
def test_rooms(path):
    own = path.relative_to(ROOT / "minibert").parts[0].removesuffix(".py")  # a folder is a room
    level = next(index for index, floor in enumerate(FLOORS) if own in floor)
    below = {room for floor in FLOORS[:level] for room in floor}
    for module in imports(path):
        top, _, rest = module.partition(".")
        assert top not in ("convert", "tests", "benchmarks"), module
        room = rest.partition(".")[0]
        if top == "minibert" and room and (room != own or path.stem == own):
            assert room in below, f"{path.stem} imports {room}, which is not below it"
    assert "from __future__" not in path.read_text()


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
    if path.stem == "auto" or path.stem.startswith(("bert", "gpt2")):
        return
    strings = {
        n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)
    }
    code = {text for text in strings if isinstance(text, str) and "\n" not in text}
    bert = ("encoder.layer", "cls.predictions", "attention.self", "word_embeddings")
    gpt2 = ("c_attn", "c_proj", "c_fc", "wte", "ln_f", "lm_head", "multiple_choice_head")
    for room in bert + gpt2:
        assert not any(room in text for text in code), room


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
