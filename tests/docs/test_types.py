"""What type checkers are told: every public name, and few parameters of any type."""

import ast
import inspect
import pathlib

import pytest

import minibert
from benchmarks import typed
from minibert.models.registry import MODELS

ROOT = pathlib.Path(__file__).parents[2]


def test_the_typed_program_names_everything():
    """`.ci/run` has pyright and ty check it against the wheel."""
    tree = ast.parse((ROOT / "tests" / "support" / "typed_program.py").read_text("utf-8"))
    named = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "minibert"
    }
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "minibert"
        for alias in node.names
    }
    assert {*minibert.__all__, *minibert.SUBMODULES} <= named | imported


def test_few_parameters_are_of_any_type():
    counts, untyped = typed.counted(ROOT / "minibert")
    total = sum(count for _, count in counts.values())
    assert len(untyped) <= typed.MAX_UNTYPED * total


@pytest.mark.parametrize(
    ("annotation", "says_nothing"),
    [("Any", True), ("int", False), ("'Any'", True), ("Any | None", True), ("list[Any]", False)],
)
def test_what_says_nothing(annotation, says_nothing):
    tree = ast.parse(annotation, mode="eval").body
    assert typed.is_untyped(tree, {"Any"}) is says_nothing


def test_aliases_and_missing_annotations_count(tmp_path):
    (tmp_path / "one.py").write_text(
        "from typing import Any\nLeaf = Any\nclass C:\n def f(self, a, b: Leaf, *c: int): ..."
    )
    counts, untyped = typed.counted(tmp_path)
    assert counts == {".": [2, 3]}
    assert [line.split()[-1] for line in untyped] == ["a", "b"]


@pytest.mark.parametrize("name", MODELS)
def test_a_call_spells_its_arguments_out(name):
    parameters = inspect.signature(MODELS[name].__call__).parameters.values()
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    assert "attention_mask" in {one.name for one in parameters}
    assert not any(one.kind in variable for one in parameters)


def test_the_wheel_says_that_it_is_typed():
    assert (ROOT / "minibert" / "py.typed").exists()
