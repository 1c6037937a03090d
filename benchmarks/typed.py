"""How much of the code is typed: parameters annotated with `Any`, and what users can see.

    python -m benchmarks.typed [--check] [--list] [--pyright COMMAND]

Parameters are those of every function of `minibert`, `self` and `cls` excepted, counted by folder.
A parameter is untyped if it has no annotation, or `Any`, an alias of it, or a union with one. The
completeness is pyright's (`--verifytypes`), of the installed package; without a pyright it is left
out. `--check` exits with 1 if a bound is missed, and `--list` names the untyped parameters.
"""

import argparse
import ast
import collections
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parents[1]
MAX_UNTYPED = 0.05  # of the parameters
MIN_COMPLETE = 95.0  # %, of the public symbols, by pyright


def aliases(trees: dict[pathlib.Path, ast.Module]) -> set[str]:
    """Returns `Any` and the names that are assigned it, anywhere in the package."""
    found = {"Any", "typing.Any"}
    while True:
        more = set(found)
        for tree in trees.values():
            for node in tree.body:
                match node:
                    case ast.ImportFrom(names=names):
                        more |= {one.asname for one in names if one.asname and one.name in found}
                    case ast.Assign(targets=[ast.Name(id=name)], value=value):
                        more |= {name} if is_untyped(value, found) else set()
                    case ast.AnnAssign(target=ast.Name(id=name), value=value) if value:
                        more |= {name} if is_untyped(value, found) else set()
        if more == found:
            return found
        found = more


def is_untyped(annotation: ast.expr | None, names: set[str]) -> bool:
    """Returns whether an annotation says nothing: `Any`, an alias, or a union with one."""
    match annotation:
        case None:
            return True
        case ast.Constant(value=str(text)):  # quoted
            return not names.isdisjoint(part.strip() for part in text.split("|"))
        case ast.BinOp(op=ast.BitOr(), left=left, right=right):
            return is_untyped(left, names) or is_untyped(right, names)
    return ast.unparse(annotation) in names


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[ast.arg]:
    """Yields a function's parameters, but not `self` or `cls`."""
    given = function.args
    places = [*given.posonlyargs, *given.args]
    if places and places[0].arg in ("self", "cls"):
        places = places[1:]
    yield from (*places, *given.kwonlyargs)
    yield from (one for one in (given.vararg, given.kwarg) if one is not None)


def counted(root: pathlib.Path) -> tuple[dict[str, list[int]], list[str]]:
    """Returns by folder how many parameters are untyped and how many there are; and which."""
    trees = {path: ast.parse(path.read_text("utf-8")) for path in sorted(root.rglob("*.py"))}
    names = aliases(trees)
    counts: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    untyped = []
    for path, tree in trees.items():
        inner = path.relative_to(root)
        folder = inner.parts[0] if len(inner.parts) > 1 else "."
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for one in parameters(node):
                    missing = is_untyped(one.annotation, names)
                    counts[folder][0] += missing
                    counts[folder][1] += 1
                    if missing:
                        untyped.append(f"{inner}:{one.lineno}: {node.name}: {one.arg}")
    return dict(counts), untyped


def completeness(pyright: str) -> float | None:
    """Returns the percentage of public symbols whose types pyright knows; None without pyright."""
    command = [pyright, "--verifytypes", "minibert", "--ignoreexternal"]
    here = os.path.dirname(sys.executable)  # the environment whose minibert is looked at
    env = os.environ | {"PATH": os.pathsep.join((here, os.environ["PATH"]))}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=here)
    except FileNotFoundError:
        return None
    found = re.search(r"Type completeness score: ([\d.]+)%", done.stdout)
    if found is None:
        raise SystemExit(f"{pyright}: found no score in {done.stdout or done.stderr!r}")
    return float(found[1])


def main() -> None:
    """Prints both, and checks them if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", type=pathlib.Path, default=ROOT, help="another checkout")
    parser.add_argument("--pyright", default="pyright", help="the command that runs pyright")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a bound is missed")
    parser.add_argument("--list", action="store_true", help="name the untyped parameters")
    given = parser.parse_args()
    counts, untyped = counted(given.root / "minibert")
    if given.list:
        print(*untyped, sep="\n")
    for folder, (missing, total) in counts.items():
        print(f"{folder:<12} {missing:>5} of {total:>5}  {missing / total:6.1%}")
    missing, total = (sum(column) for column in zip(*counts.values(), strict=True))
    print(f"{'together':<12} {missing:>5} of {total:>5}  {missing / total:6.1%}")
    complete = completeness(given.pyright)
    print("completeness:", "no pyright" if complete is None else f"{complete} %")
    if given.check and (
        missing / total > MAX_UNTYPED or (complete is not None and complete < MIN_COMPLETE)
    ):
        raise SystemExit(f"expected at most {MAX_UNTYPED:.0%} untyped, {MIN_COMPLETE} % complete")


if __name__ == "__main__":
    main()
