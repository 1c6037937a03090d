"""A job over a file writes the same bytes however often it is killed, and repeats no work."""

import os
import subprocess
import sys

import numpy as np
import pytest

from malformed import promptly
from minibert.embedding.job import embed_file
from minibert.embedding.job_parts import Parts
from minibert.errors import InputError, NotFiniteError, SourceError, TargetError

pytestmark = pytest.mark.unoptimised

TEXTS = [f"text {number}" for number in range(23)]
MADE_BY = {"model": "a digest", "precision": "float32"}


def encode(texts):
    return np.array([[len(text), hash(text[5:]) % 97, 1.5] for text in texts], np.float32)


def job(output, texts=TEXTS, made_by=MADE_BY, rows_a_part=4, **options):
    done = embed_file(
        texts, encode, str(output), made_by=made_by, rows_a_part=rows_a_part, **options
    )
    return done[:2]


def read(output):
    if output.suffix == ".npy":
        return np.load(output)
    parquet = pytest.importorskip("pyarrow.parquet", reason="the output is parquet")
    table = parquet.read_table(output)
    assert table["row"].to_pylist() == list(range(len(TEXTS)))
    return np.stack(table["embedding"].to_numpy())


@pytest.mark.parametrize("kind", [".npy", ".parquet"])
def test_whole(kind, tmp_path):
    if kind == ".parquet":
        pytest.importorskip("pyarrow", reason="the output is parquet")
    output, seen = tmp_path / f"out{kind}", []
    assert job(output, progress=lambda rows, new: seen.append((rows, new))) == (23, 23)
    np.testing.assert_array_equal(read(output), encode(TEXTS))
    assert seen == [(4, True)] * 5 + [(3, True)]
    assert os.listdir(tmp_path) == [output.name]


@pytest.mark.parametrize("dtype", [np.float32, np.int8, np.uint8])
def test_dtypes(dtype, tmp_path):
    output = tmp_path / "out.npy"
    embed_file(TEXTS, lambda t: encode(t).astype(dtype), str(output), made_by={}, rows_a_part=5)
    assert np.load(output).dtype == dtype


def test_finished_with_the_ranges_of_all(tmp_path):
    output = tmp_path / "out.npy"

    def finish(vectors, ranges):
        lowest, highest = ranges
        return np.round(255 * (vectors - lowest) / np.maximum(highest - lowest, 1)).astype(np.uint8)

    job(output, finish=finish)
    whole = encode(TEXTS)
    expected = finish(whole, np.stack([whole.min(axis=0), whole.max(axis=0)]))
    np.testing.assert_array_equal(np.load(output), expected)


def killing(texts, after):
    for number, text in enumerate(texts):
        if number == after:
            raise KeyboardInterrupt
        yield text


def test_a_job_resumes_where_it_was(tmp_path):
    output = tmp_path / "out.npy"
    with pytest.raises(KeyboardInterrupt):
        job(output, killing(TEXTS, 10))
    assert not output.exists()
    assert job(output) == (23, 15)
    whole = tmp_path / "whole.npy"
    job(whole)
    assert output.read_bytes() == whole.read_bytes()


def test_an_unfinished_part_is_made_again(tmp_path):
    output = tmp_path / "out.npy"
    with pytest.raises(KeyboardInterrupt):
        job(output, killing(TEXTS, 10))
    (tmp_path / "out.npy.parts" / "0000002.npz.new").write_bytes(b"half")
    (tmp_path / "out.npy.parts" / "whole").write_bytes(b"half")
    assert job(output) == (23, 15)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"texts": ["another", *TEXTS[1:]]}, "the input has changed"),
        ({"texts": TEXTS[:4]}, "the input has changed"),
        ({"made_by": MADE_BY | {"precision": "int8"}}, "another precision"),
        ({"made_by": MADE_BY | {"prompt": None}}, "another prompt"),
        ({"rows_a_part": 5}, "another rows_a_part"),
    ],
)
def test_another_job_is_not_mixed_in(change, said, tmp_path):
    output = tmp_path / "out.npy"
    with pytest.raises(KeyboardInterrupt):
        job(output, killing(TEXTS, 10))
    with pytest.raises(TargetError, match=said):
        job(output, **change)
    rows, computed = job(output, restart=True, **change)
    assert rows == computed == len(change.get("texts", TEXTS))


def test_a_private_output_stays_private(tmp_path):
    output = tmp_path / "out.npy"
    output.write_bytes(b"old")
    output.chmod(0o600)
    job(output, overwrite=True)
    assert np.load(output).shape == (23, 3)
    assert output.stat().st_mode & 0o777 == 0o600


def test_a_pipe_in_place_of_the_record_of_a_job(tmp_path):
    output = tmp_path / "out.npy"
    output.write_bytes(b"old")
    (tmp_path / "out.npy.parts").mkdir()
    os.mkfifo(tmp_path / "out.npy.parts" / "finished")
    with promptly(), pytest.raises(TargetError, match="exists"):
        job(output)


def test_an_output_is_replaced_only_with_overwrite(tmp_path):
    output = tmp_path / "out.npy"
    output.write_bytes(b"precious")
    with pytest.raises(TargetError, match="exists"):
        job(output)
    assert output.read_bytes() == b"precious"
    job(output, overwrite=True)
    assert len(np.load(output)) == 23


def test_killed_after_the_last_rename(tmp_path, monkeypatch):
    output = tmp_path / "out.npy"

    def killed(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Parts, "discard", killed)
        with pytest.raises(KeyboardInterrupt):
            job(output)
    assert job(output) == (23, 0)
    assert os.listdir(tmp_path) == ["out.npy"]


def test_two_at_once(tmp_path):
    output = tmp_path / "out.npy"

    def texts():
        with pytest.raises(TargetError, match="another job is writing it"):
            job(output)
        yield from TEXTS

    assert job(output, texts()) == (23, 23)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda good: None, "encode: expected an array of numbers"),
        (lambda good: good[:-1], r"encode: expected .* \(4, dim\), a row for each .* \(3, 3\)"),
        (lambda good: np.concatenate([good, good]), r"found float32 of shape \(8, 3\)"),
        (lambda good: good[:, 0], r"found float32 of shape \(4,\)"),
        (lambda good: good[:, :0], r"found float32 of shape \(4, 0\)"),
        (lambda good: good[None], r"found float32 of shape \(1, 4, 3\)"),
        (lambda good: good.astype(object), "encode: expected an array of numbers"),
        (lambda good: good.astype(complex), "encode: expected an array of numbers"),
        (lambda good: good > 1, "encode: expected an array of numbers"),
        (lambda good: [[1.0], [1.0, 2.0]], "encode: expected an array"),
        (lambda good: good[:, :2], r"float32 of shape \(4, 3\), as for previous texts; found"),
        (lambda good: good.astype(np.float64), "as for previous texts; found float64"),
        (lambda good: np.where(good == good[2], np.nan, good), "sentence 6: its vector is not fin"),
        (lambda good: np.where(good == good[1], np.inf, good), "sentence 5: .* NaN or infinity"),
    ],
)
def test_what_is_not_a_row_for_each_text(made, said, tmp_path):
    def spoiled(texts):
        good = np.arange(3 * len(texts), dtype=np.float32).reshape(-1, 3)
        return made(good) if "text 4" in texts else good

    output = tmp_path / "out.npy"
    with pytest.raises((InputError, NotFiniteError), match=said):
        embed_file(TEXTS, spoiled, str(output), made_by=MADE_BY, rows_a_part=4)
    assert not output.exists()
    assert job(output) == (23, 19)  # the first part is kept


@pytest.mark.parametrize("first", [True, False])
def test_parts_of_another_width_say_how_to_go_on(first, tmp_path):
    """Parts are of an earlier run of the same job, whose vectors had another width."""
    output, folder = tmp_path / "out.npy", tmp_path / "out.npy.parts"
    with pytest.raises(KeyboardInterrupt):
        job(output, killing(TEXTS, 10))
    if not first:  # the first part is computed, the second is the earlier run's
        (folder / "0000000.npz").unlink()

    def narrower(texts):
        return encode(texts)[:, :2]

    said = rf"as for previous texts; found .* an earlier job are in {folder}: --restart"
    with pytest.raises(TargetError, match=said):
        embed_file(TEXTS, narrower, str(output), made_by=MADE_BY, rows_a_part=4)
    done = embed_file(TEXTS, narrower, str(output), made_by=MADE_BY, rows_a_part=4, restart=True)
    assert done[:2] == (23, 23)


def test_a_folder_of_parts_that_cannot_be_removed(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(TargetError, match=r"out\.npy\.parts: cannot be removed .Permission denied"):
        job(tmp_path / "out.npy")


@pytest.mark.parametrize("wrong", [lambda some: some[1:], lambda some: None, lambda some: some[0]])
def test_what_is_finished_has_a_row_for_each_text(wrong, tmp_path):
    with pytest.raises(InputError, match="finish: expected an array of numbers"):
        job(tmp_path / "out.npy", finish=lambda some, ranges: wrong(some))
    assert not (tmp_path / "out.npy").exists()


def test_texts_that_are_none(tmp_path):
    with pytest.raises(InputError, match="text 5: expected a text, found 3"):
        job(tmp_path / "out.npy", iter([*TEXTS[:5], 3]))
    with pytest.raises(InputError, match="a NUL character"):
        job("a\0.npy")


@pytest.mark.parametrize(
    ("output", "texts", "error", "said"),
    [
        ("out.csv", TEXTS, TargetError, "ends in .npy or .parquet"),
        ("out.npy", [], SourceError, "no texts"),
        ("missing/out.npy", TEXTS, None, None),
        ("folder.npy", TEXTS, TargetError, "is a folder"),
        ("file/out.npy", TEXTS, TargetError, "cannot be written"),
    ],
)
def test_outputs(output, texts, error, said, tmp_path):
    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "file").write_text("")
    if error is None:
        job(tmp_path / output, texts)
    else:
        with pytest.raises(error, match=said):
            job(tmp_path / output, texts)


SCRIPT = """
import sys, time
import numpy as np
from minibert.embedding.job import embed_file

def encode(texts):
    time.sleep(0.05)  # 125 parts: over six seconds, however fast the machine
    return np.array([[len(t), ord(t[-1])] for t in texts], np.float32)

texts = (f"text {n}" for n in range(2000))
embed_file(texts, encode, sys.argv[1], made_by={}, rows_a_part=16)
"""


@pytest.mark.slow
def test_killed_at_random(tmp_path):
    draw = np.random.default_rng(0)
    output = tmp_path / "out.npy"
    command = [sys.executable, "-c", SCRIPT, str(output)]
    kills = 0
    while not output.exists():
        process = subprocess.Popen(command)
        try:
            process.wait(timeout=draw.uniform(0.5, 1.5) if kills < 5 else 60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    assert kills
    expected = np.array([[len(f"text {n}"), ord(f"text {n}"[-1])] for n in range(2000)], np.float32)
    np.testing.assert_array_equal(np.load(output), expected)
