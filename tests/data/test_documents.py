"""Documents by title: Python's own, those of tables and folders, and invalid ones."""

import json

import pytest

from minibert.data.documents import read_documents, unwrapped
from minibert.errors import InputError, SourceError

ROWS = [
    {"title": "One", "text": "first words", "year": 1},
    {"title": "Two", "text": "second words", "year": 2},
    {"title": "One", "text": "third words", "year": 3},
]
TEXTS = {"One": "first words", "Two": "second words", "One (2)": "third words"}


def test_python_s_own():
    found = read_documents()
    assert len(found) >= 79
    assert list(found) == sorted(found)
    assert found["assert"].startswith('The "assert" statement')
    assert all(found.values())
    assert "\n****" not in found["assert"]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_tables(ending, tmp_path):
    path = tmp_path / f"poems.{ending}"
    if ending == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif ending == "csv":
        lines = [",".join(map(str, row.values())) for row in ROWS]
        path.write_text("\n".join(["title,text,year", *lines]) + "\n")
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        pyarrow = pytest.importorskip("pyarrow")
        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    assert read_documents(path) == TEXTS
    with pytest.raises(InputError, match=r"poems.*poem"):
        read_documents(path, text="poem")


def test_folders(tmp_path):
    for row in ROWS[:2]:
        (tmp_path / f"{row['title']}.txt").write_text(row["text"])
    (tmp_path / "notes.md").write_text("not a document")
    assert read_documents(str(tmp_path)) == dict(list(TEXTS.items())[:2])
    (tmp_path / "Three.txt").write_text(" \n")
    with pytest.raises(InputError, match=r"Three.txt: the text is empty"):
        read_documents(tmp_path)
    (tmp_path / "Three.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match=r"Three.txt: byte 3: not UTF-8"):
        read_documents(tmp_path)


def test_what_is_none(tmp_path):
    with pytest.raises(InputError, match=r"source: expected a path, found 3"):
        read_documents(3)
    with pytest.raises(InputError, match=r"expected files that end in .txt, found none"):
        read_documents(tmp_path)
    with pytest.raises(SourceError, match=r"poems.doc: expected a file that ends in"):
        read_documents(tmp_path / "poems.doc")
    with pytest.raises(SourceError, match=r"poems.csv: cannot be read"):
        read_documents(tmp_path / "poems.csv")
    (tmp_path / "poems.jsonl").write_text('{"title": "", "text": "words"}\n')
    with pytest.raises(InputError, match=r"poems.jsonl: line 1: title: the text is empty"):
        read_documents(tmp_path / "poems.jsonl")


def test_lines_are_joined_where_they_were_wrapped():
    text = (
        "Title\n*****\n\nSome words that go on until the line is as long as may be, sixty-\n"
        "nine, and on\n\n   code\n   more\n\n+---+\n| a |\n+---+"
    )
    expected = (
        "Title\n\nSome words that go on until the line is as long as may be, sixty-nine, and on\n\n"
        "   code\n   more\n"
    )
    assert unwrapped(text) == expected
