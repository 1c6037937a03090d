"""Texts from files: contents, progress and errors."""

import csv
import gzip
import json
import os
import pathlib
import re

import pytest

from malformed import promptly
from minibert.data.documents import read_documents
from minibert.data.files import open_texts, read_text, while_unchanged
from minibert.data.records import Records
from minibert.errors import InputError, SourceError

TEXTS = ["one", "", "two words", 'a "quoted", text\nof two lines', "عربي 🙂", "x" * 200_000]


def write(folder, kind, texts=TEXTS, column="text"):
    path = folder / f"texts.{kind}"
    if kind.endswith(".gz"):
        plain = write(folder, kind.removesuffix(".gz"), texts, column)
        path.write_bytes(gzip.compress(pathlib.Path(plain).read_bytes()))
    elif kind == "txt":
        path.write_text("".join(text.replace("\n", " ") + "\n" for text in texts), "utf-8")
    elif kind == "jsonl":
        lines = [json.dumps({column: text, "n": n}) for n, text in enumerate(texts)]
        path.write_text("\n".join(lines), "utf-8")
    elif kind == "json":
        path.write_text(json.dumps([{column: t, "n": n} for n, t in enumerate(texts)]), "utf-8")
    elif kind in ("csv", "tsv"):
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, dialect="excel-tab" if kind == "tsv" else "excel")
            writer.writerows([["n", column], *([n, t] for n, t in enumerate(texts))])
    else:
        pyarrow = pytest.importorskip("pyarrow", reason="parquet files are read by pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"n": range(len(texts)), column: texts}), path)
    return str(path)


KINDS = ["txt", "jsonl", "json", "csv", "tsv", "parquet"]


@pytest.mark.parametrize("kind", [*KINDS, "txt.gz", "jsonl.gz", "json.gz", "csv.gz", "TSV.GZ"])
def test_all_texts_in_order(kind, tmp_path):
    expected = [t.replace("\n", " ") for t in TEXTS] if "txt" in kind else TEXTS
    path = write(tmp_path, kind.lower())
    if kind.isupper():
        os.rename(path, path := str(tmp_path / f"texts.{kind}"))
    with open_texts(path) as texts:
        assert list(texts) == expected
        assert texts.done == texts.total > 0


@pytest.mark.parametrize("kind", KINDS[1:])
def test_another_column(kind, tmp_path):
    with open_texts(write(tmp_path, kind, column="body"), "body") as texts:
        assert list(texts) == TEXTS
    with (
        pytest.raises(InputError, match="'title'"),
        open_texts(write(tmp_path, kind), "title") as texts,
    ):
        list(texts)


def test_lines_keep_all_but_their_ends(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\r\n  two \n\nthree".encode())
    with open_texts(str(path)) as texts:
        assert list(texts) == ["one", "  two ", "", "three"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"good\n\xff\xfe\n", "line 2: not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\nnonsense\n', "line 2: not JSON"),
        ("a.jsonl", b'{"text": "a"}\n["b"]\n', "line 2: expected an object with 'text'"),
        ("a.jsonl", b'{"text": 3}\n', "line 1: text: expected a text, found 3"),
        ("a.jsonl", b'{"text": null}\n', "expected a text, found None"),
        ("a.jsonl", b'{"text": "a"}\n\n', "line 2: is blank"),
        ("a.jsonl", b'{"text": "a", "text": "b"}\n', "line 1: not JSON .*'text' appears twice"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "line 1: text: half a surrogate pair"),
        ("a.csv", b"text,n,text\na,1,b\n", "2 columns have the name 'text'"),
        ("a.csv", b'"text\na\n', "not a readable csv file: its header: unexpected end"),
        ("a.csv", b'text\n"a\n', "not a readable csv file: row 1: unexpected end"),
        ("a.csv", b'text\n\na\n"b"c\n', "not a readable csv file: row 2: "),
        ("a.csv", b"title\nx\n", "no column 'text'; it has \\['title'\\]"),
        ("a.csv", b"", "no column 'text'"),
        ("a.csv", b"n,text\n1,a\n1,b,c\n", "row 2: expected 2 cells, found 3"),
        ("a.csv", b"text\n\xff\n", "csv"),
        ("a.parquet", b"PAR1 nonsense", "not a parquet file"),
        ("a.json", b'[{"text": "a"}', "not JSON"),
        ("a.json", b'{"text": "a"}', "expected an array of objects, found {'text': 'a'}"),
        ("a.json", b'[{"text": "a"}, 3]', "row 2: expected an object, found 3"),
        ("a.json", b'[{"text": "a"}, {"n": 1}]', "row 2: no column 'text'"),
        ("a.json", b'[{"text": "a"}, {"text": 1}]', "row 2: text: expected a text, found 1"),
        ("a.json", b"[" * 100_000, "not JSON"),
        (
            "a.tsv",
            b'n\ttext\n1\ta "b"\n2\n',
            "a readable tsv file: row 2: expected 2 cells, found 1",
        ),
        ("a.txt.gz", b"text", "not a whole gzip file .*Not a gzipped file"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"text": "a"}\n' * 9, mtime=0)[:-9],
            "not a whole gzip file",
        ),
        (
            "a.csv.gz",
            gzip.compress(b"text\na\n", mtime=0)[:-6] + b"wrong!",
            "not a whole gzip file",
        ),
    ],
)
def test_what_is_no_text_is_named(name, content, said, tmp_path):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="parquet files are read by pyarrow")
    (tmp_path / name).write_bytes(content)
    with (
        pytest.raises(InputError, match=said) as found,
        open_texts(str(tmp_path / name)) as texts,
    ):
        list(texts)
    assert str(tmp_path / name) in str(found.value)


@pytest.mark.parametrize(
    ("name", "column", "error", "said"),
    [
        ("a.doc", None, SourceError, "expected a file that ends in"),
        ("a.parquet.gz", None, SourceError, "expected a file that ends in"),
        ("a.gz", None, SourceError, "expected a file that ends in"),
        ("missing.txt", None, SourceError, "No such file"),
        ("a.txt", "text", InputError, "has one text per line"),
    ],
)
def test_what_cannot_be_opened(name, column, error, said, tmp_path):
    with pytest.raises(error, match=said), open_texts(str(tmp_path / name), column):
        pass


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv", "parquet"])
def test_a_pipe_is_not_waited_for(kind, tmp_path):
    os.mkfifo(path := tmp_path / f"a.{kind}")
    readers = {
        "texts": lambda: open_texts(str(path)).__enter__(),
        "records": lambda: Records(path, ["text"]),
        "documents": lambda: read_documents(tmp_path if kind == "txt" else path),
    }
    if kind == "txt":
        readers |= {"records": lambda: read_text(str(path))}
    for reader in readers.values():
        with promptly(), pytest.raises(SourceError, match=f"a.{kind}: expected a regular file"):
            reader()


def test_a_cell_of_any_length(tmp_path):
    texts = ["short", "x" * 3_000_000, 'with "quotes"\n' * 200_000]
    with open_texts(write(tmp_path, "csv", texts)) as found:
        assert list(found) == texts


def test_two_columns_of_one_name(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="parquet files are read by pyarrow")
    from pyarrow import parquet

    table = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 2, names=["text", "text"])
    parquet.write_table(table, tmp_path / "a.parquet")
    with (
        pytest.raises(InputError, match="2 columns have the name 'text'"),
        open_texts(str(tmp_path / "a.parquet")) as texts,
    ):
        list(texts)


@pytest.mark.parametrize("part", [4, 5, 7, 9])  # behind the other column
def test_a_damaged_table(part, tmp_path):
    """Zeros anywhere in it: one error that names the file, of whatever type pyarrow's was."""
    path = write(tmp_path, "parquet", [f"text {number}" for number in range(5000)])
    with open(path, "r+b") as file:
        size = file.seek(0, 2)
        file.seek(size * part // 10)
        file.write(bytes(size // 10))
    with pytest.raises(InputError, match=re.escape(path)), open_texts(path) as texts:
        list(texts)


def shorten(path):
    os.truncate(path, os.path.getsize(path) // 2)


def lengthen(path):
    with open(path, "ab") as file:
        file.write(b"more\n")


def rewrite(path):
    """Writes other bytes of the same length."""
    with open(path, "r+b") as file:
        file.write(b"#")
    state = os.stat(path)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))  # clocks may be coarse


@pytest.mark.parametrize("change", [shorten, lengthen, rewrite])
@pytest.mark.parametrize("kind", [*KINDS, "jsonl.gz"])
def test_a_file_that_changes_while_it_is_read(kind, change, tmp_path):
    path = write(tmp_path, kind, [f"text {number}" for number in range(5_000)])
    with open_texts(path) as texts:
        read = iter(texts)
        next(read)
        change(path)
        with pytest.raises(SourceError, match=r"changed while it was read: it had .* bytes and h"):
            list(read)


def test_a_file_that_is_replaced_is_read_as_it_was(tmp_path):
    path = write(tmp_path, "txt", ["old"] * 20_000)
    (tmp_path / "new").write_text("new\n")
    with open_texts(path) as texts:
        first = next(iter(texts))
        os.replace(tmp_path / "new", path)
        assert {first, *texts} == {"old"}


def test_a_whole_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufefftwo\r\nlines\n".encode())
    assert read_text(str(path)) == "two\r\nlines\n"
    path.write_bytes(b"the lamp\n" * 1000)
    with open(path, "rb") as file:
        blocks = while_unchanged("a.txt", file, iter(lambda: file.read(100), b""))
        next(blocks)
        shorten(path)
        with pytest.raises(SourceError, match=r"a.txt: changed .* had 9,000 bytes and has 4,500"):
            list(blocks)


def test_where_a_text_is(tmp_path):
    for kind, unit in (("txt", "line"), ("jsonl", "line"), ("csv", "row")):
        with open_texts(write(tmp_path, kind)) as texts:
            assert texts.place(2) == f"{texts.path}: {unit} 3"


def test_a_file_that_stops_being_readable(tmp_path):
    from minibert.data.files import TextFile

    def broken():
        yield "one", 1
        raise OSError(5, "Input/output error")

    with pytest.raises(SourceError, match=r"a\.txt: cannot be read \(Input/output error\)"):
        list(TextFile("a.txt", "txt", broken(), 2))
