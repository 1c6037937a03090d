"""Words that the project's English does without, wherever somebody reads it."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
WORDS = re.compile(
    r"\b(rooms?|likest|likeliest|afresh|begun|gone\s+on\s+with|is\s+none\s+of)\b", re.I
)
FOLDERS = ("minibert", "convert", "benchmarks", "docs", "notebooks", "tests")
ENDINGS = {".py", ".pyi", ".md", ".ipynb"}
NAMES = ("SentencePairs.room", "room: int", "self.room")  # stored in checkpoints: DECISIONS
PAGES = sorted(
    path
    for folder in FOLDERS
    for path in (ROOT / folder).rglob("*")
    if path.suffix in ENDINGS and path != pathlib.Path(__file__) and "ledger" not in path.parts
) + sorted(ROOT.glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_words(page):
    text = page.read_text("utf-8")
    for name in NAMES:
        text = text.replace(name, "")
    assert not [text[max(0, m.start() - 40) : m.end() + 20] for m in WORDS.finditer(text)]
