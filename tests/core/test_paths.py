"""Paths that callers pass: what is none is refused by name, and only regular files are opened."""

import os

import pytest

import minibert
from malformed import as_pipe, cases, load, promptly
from minibert.conversion.api import convert
from minibert.core.paths import open_file, path_text, read_file
from minibert.data.files import open_texts, read_text
from minibert.embedding.job import embed_file
from minibert.errors import InputError, SourceError

pytestmark = pytest.mark.unoptimised


@pytest.fixture(scope="module")
def source(pristine):
    return pristine.folder()


NOT_PATHS = {"none": None, "number": 3, "bytes": b"a", "list": ["a"], "nul": "a\0b"}
CALLS = {
    "load": (lambda path, source: minibert.load(path), "source"),
    "class": (lambda path, source: minibert.BertModel.from_pretrained(path), "source"),
    "config": (lambda path, source: minibert.BertConfig.from_json(path), "path"),
    "save": (lambda path, source: load(source).save_pretrained(path), "folder"),
    "encoder": (lambda path, source: minibert.SentenceEncoder.from_pretrained(path), "source"),
    "convert": (lambda path, source: convert(path, "out"), "source"),
    "convert-to": (lambda path, source: convert(str(source), path), "target"),
    "embed": (lambda path, source: embed_file(["a"], len, path, made_by={}), "output"),
    "texts": (lambda path, source: open_texts(path).__enter__(), "path"),
    "text": (lambda path, source: read_text(path), "path"),
}


@pytest.mark.parametrize("path", NOT_PATHS.values(), ids=NOT_PATHS)
@pytest.mark.parametrize(("call", "name"), cases(CALLS))
def test_not_a_path(call, name, path, source):
    with pytest.raises(InputError, match=f"^{name}: expected a (path|folder)") as caught:
        call(path, source)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("path", [3, b"a", "a\0b"])
@pytest.mark.parametrize("name", ["cache_dir", "subfolder"])
def test_other_arguments_that_are_not_paths(name, path):
    with pytest.raises(InputError, match=f"^{name}: expected a path"):
        minibert.load("acme/tiny", **{name: path})


@pytest.mark.parametrize("path", [3, b"a", "a\0.txt"])
def test_documents(path):
    with pytest.raises(InputError, match=r"^source: expected a path"):
        minibert.read_documents(path)


def test_paths_of_any_kind(tmp_path):
    assert path_text("folder", tmp_path) == str(tmp_path)
    with pytest.raises(InputError, match="folder: expected a path"):
        path_text("folder", os.DirEntry)


def test_only_regular_files_of_a_size(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_file(path, 5) == b"12345"
    with pytest.raises(SourceError, match=r"file: larger than 4 bytes"):
        read_file(path, 4)
    with pytest.raises(SourceError, match=r"maps: larger than 4 bytes"):  # its size is 0
        read_file("/proc/self/maps", 4)
    as_pipe(path)
    with promptly(), pytest.raises(SourceError, match="file: expected a regular file"):
        open_file(path)
    with pytest.raises(SourceError, match="cannot be read \\(Is a directory\\)"):
        open_file(tmp_path)
