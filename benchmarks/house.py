"""Size of the code, and the number of files that a call enters.

    python -m benchmarks.house [--root FOLDER]

Tokens are those of Python in `minibert` and `convert`, without comments, docstrings, line breaks
and indentation. Files are those of `minibert` in which a warm call (everything that it compiles is
compiled) enters a function, as `sys.setprofile` reports in every thread; a package's `__init__.py`
counts. `--root` measures another checkout by the same rules.
"""

import argparse
import ast
import contextlib
import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import tokenize
from collections.abc import Callable, Iterator
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
LAYOUT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}
TEXTS = ["a cat sat", "on the mat there was a dog", "and a bird"]


def tokens(path: pathlib.Path) -> int:
    """Returns the number of tokens of code of a file."""
    text = path.read_text("utf-8")
    docstrings = {
        node.body[0].lineno
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and ast.get_docstring(node, clean=False) is not None
    }
    return sum(
        token.type not in LAYOUT
        and not (token.type == tokenize.STRING and token.start[0] in docstrings)
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
    )


def size(root: pathlib.Path, leave: tuple[str, ...] = ()) -> dict[str, int]:
    """Returns the number of tokens of each package, without the files in `leave`."""
    return {
        package: sum(
            tokens(path) for path in (root / package).rglob("*.py") if path.name not in leave
        )
        for package in ("minibert", "convert")
    }


@contextlib.contextmanager
def entered() -> Iterator[set[str]]:
    """Yields a set that collects the files of minibert in which a function is entered."""
    found: set[str] = set()
    folder = os.path.dirname(sys.modules["minibert"].__file__ or "") + os.sep

    def profile(frame: Any, event: str, argument: Any) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(folder):
            found.add(name[len(folder) :].replace(os.sep, "/"))

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        yield found
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def calls(folder: str) -> dict[str, Callable[[], Any]]:
    """Returns the calls to measure, by name."""
    import numpy as np
    from flax import nnx
    from transformers import BertTokenizerFast  # ty: ignore[missing-module-member]

    import minibert

    words = sorted({word for text in TEXTS for word in text.split()})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    with open(os.path.join(folder, "vocab.txt"), "w", encoding="utf-8") as file:
        file.write("\n".join(vocabulary))
    tokenizer = BertTokenizerFast(os.path.join(folder, "vocab.txt"))
    bert = minibert.BertModel(minibert.BertConfig.tiny(), rngs=nnx.Rngs(0)).eval()
    encoder = minibert.SentenceEncoder(bert, tokenizer, pooling="mean")
    saved, texts = os.path.join(folder, "encoder"), os.path.join(folder, "texts.txt")
    encoder.save_pretrained(saved)
    with open(texts, "w", encoding="utf-8") as file:
        file.write("\n".join(TEXTS))
    gpt2 = minibert.GPT2LMHeadModel(minibert.GPT2Config.tiny(), rngs=nnx.Rngs(0)).eval()
    ids = np.array([[5, 6, 7]])

    def embed() -> None:
        from minibert.__main__ import main

        output = os.path.join(folder, "vectors.npy")
        sys.argv = ["minibert", "embed", texts, "-o", output, "-m", saved, "--overwrite"]
        with contextlib.suppress(SystemExit), contextlib.redirect_stderr(io.StringIO()):
            main()

    return {
        "SentenceEncoder.encode": lambda: encoder.encode(TEXTS),
        "generate": lambda: minibert.generate(gpt2, ids, max_new_tokens=4),
        "BertModel.from_pretrained": lambda: minibert.BertModel.from_pretrained(saved),
        "minibert embed": embed,
    }


def files() -> dict[str, list[str]]:
    """Returns the files that each call enters."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, call in calls(folder).items():
            for _ in range(2):
                call()
            with entered() as seen:
                call()
            found[name] = sorted(seen)
    return found


def main() -> None:
    """Prints sizes and files."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", type=pathlib.Path, default=ROOT, help="another checkout")
    parser.add_argument("--leave", nargs="*", default=(), help="files to leave out")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        print(json.dumps(files()))
        return
    counts = size(given.root, tuple(given.leave))
    for package, count in counts.items():
        print(f"{package}: {count:,} tokens of code")
    print(f"together: {sum(counts.values()):,}")
    done = subprocess.run(
        [sys.executable, os.path.abspath(__file__), "--here"],
        cwd=given.root,
        env=os.environ | {"PYTHONPATH": str(given.root.absolute())},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    for name, entries in json.loads(done.stdout.splitlines()[-1]).items():
        print(f"{name}: {len(entries)} files: {', '.join(entries)}")


if __name__ == "__main__":
    main()
