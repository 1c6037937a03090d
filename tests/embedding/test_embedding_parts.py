"""A job's folder of parts: no foreign files or vectors are used, and only one job at a time."""

import io
import json
import os

import numpy as np
import pytest

from minibert.embedding.job import EmbeddingResult, check_output, embed_file
from minibert.embedding.job_parts import Parts
from minibert.errors import SourceError, TargetError, TextError

TEXTS = [f"text {number}" for number in range(10)]


def job(output, texts=TEXTS, number=1.0, made_by=None, **options):
    """A job whose model returns one number."""
    return embed_file(
        texts,
        lambda some: np.full((len(some), 2), number, np.float32),
        str(output),
        made_by={"model": number} if made_by is None else made_by,
        rows_a_part=2,
        **options,
    )


def killing(after):
    yield from TEXTS[:after]
    raise KeyboardInterrupt


def killed(output, after=5, **options):
    """Leaves the parts of a job that was killed."""
    with pytest.raises(KeyboardInterrupt):
        job(output, killing(after), **options)


def finished_only(output, monkeypatch, **options):
    """Creates a job that was killed when it was finished but its parts were not yet removed."""

    def stop(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Parts, "discard", stop)
        with pytest.raises(KeyboardInterrupt):
            job(output, **options)


@pytest.mark.parametrize("options", [{"restart": True}, {"overwrite": True}, {}])
def test_a_job_at_work_is_left_alone(options, tmp_path):
    output = tmp_path / "out.npy"

    def texts():
        for number, text in enumerate(TEXTS):
            if number == 7:
                with pytest.raises(TargetError, match="another job is writing it"):
                    job(output, number=2.0, **options)
            yield text

    assert job(output, texts()) == EmbeddingResult(10, 10, 0)
    assert (np.load(output) == 1).all()
    assert os.listdir(tmp_path) == ["out.npy"]


def test_a_part_of_another_job_is_refused(tmp_path):
    killed(tmp_path / "other.npy", number=2.0)
    killed(tmp_path / "out.npy")
    part = "0000001.npz"
    os.replace(tmp_path / "other.npy.parts" / part, tmp_path / "out.npy.parts" / part)
    with pytest.raises(TargetError, match=f"{part}: is a part of another job; --restart"):
        job(tmp_path / "out.npy")


@pytest.mark.parametrize(
    ("change", "done"),
    [
        ({}, EmbeddingResult(10, 0, 0)),
        ({"texts": ["another", *TEXTS[1:]]}, None),
        ({"texts": TEXTS[:8]}, None),
        ({"number": 2.0}, None),
        ({"overwrite": True}, EmbeddingResult(10, 10, 0)),
        ({"overwrite": True, "number": 2.0}, EmbeddingResult(10, 10, 0)),
        ({"overwrite": True, "restart": True}, EmbeddingResult(10, 10, 0)),
    ],
)
def test_just_finished_is_the_same_job_of_the_same_texts(change, done, tmp_path, monkeypatch):
    output = tmp_path / "out.npy"
    finished_only(output, monkeypatch)
    if done is None:
        with pytest.raises(TargetError, match="exists"):
            job(output, **change)
        assert (np.load(output) == 1).all()
    else:
        assert job(output, **change) == done
        assert (np.load(output) == change.get("number", 1)).all()
        assert os.listdir(tmp_path) == ["out.npy"]


def test_an_empty_folder_says_nothing(tmp_path):
    output = tmp_path / "out.npy"
    output.write_bytes(b"precious")
    (tmp_path / "out.npy.parts").mkdir()
    with pytest.raises(TargetError, match="exists"):
        job(output)
    assert output.read_bytes() == b"precious"


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("name", ["notes.txt", "0000001.npz", "folder", "whole"])
def test_what_is_not_a_jobs_stays(name, started, restart, tmp_path):
    output, parts = tmp_path / "out.npy", tmp_path / "out.npy.parts"
    if started:
        killed(output)
    parts.mkdir(exist_ok=True)
    if name == "folder" or (started and name != "notes.txt"):
        (parts / name).unlink(missing_ok=True)
        (parts / name).mkdir()
    else:
        (parts / name).write_text("precious")
    with pytest.raises(
        TargetError, match=f"contains an unrelated file, .*{name}.*; move it elsewhere"
    ):
        job(output, restart=restart)
    assert (parts / name).exists()
    assert not output.exists()


def test_what_is_put_there_meanwhile_stays(tmp_path):
    output, parts = tmp_path / "out.npy", tmp_path / "out.npy.parts"

    def texts():
        yield from TEXTS
        (parts / "notes").mkdir()

    assert job(output, texts()) == EmbeddingResult(10, 10, 0)
    assert os.listdir(parts) == ["notes"]
    assert len(np.load(output)) == 10


def test_a_file_of_the_locks_name_stays(tmp_path):
    (tmp_path / "out.npy.lock").write_text("precious")
    with pytest.raises(TargetError, match=r"out\.npy\.lock: expected an empty file"):
        job(tmp_path / "out.npy")
    assert (tmp_path / "out.npy.lock").read_text() == "precious"


@pytest.mark.parametrize("text", ["{", "[3]", "\x80", "[" * 100_000])
def test_a_damaged_description(text, tmp_path):
    output = tmp_path / "out.npy"
    killed(output)
    (tmp_path / "out.npy.parts" / "job.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(TargetError, match=r"job\.json: is damaged; --restart"):
        job(output)
    assert job(output, restart=True).rows == 10


def altered(**changes):
    """Writes other contents with valid checksums of the archive."""

    def alter(path):
        with np.load(path) as file:
            whole = {name: file[name] for name in file.files}
        whole |= {n: change(whole["vectors"]) for n, change in changes.items() if change}
        kept = {name: value for name, value in whole.items() if changes.get(name, True)}
        np.savez(path, **kept)

    return alter


def array_file():
    file = io.BytesIO()
    np.save(file, np.ones(3))
    return file.getvalue()


def flip(path):
    data = bytearray(path.read_bytes())
    data[data.index(np.float32(1).tobytes())] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "nonsense": lambda path: path.write_bytes(b"PK nonsense"),
    "empty": lambda path: path.write_bytes(b""),
    "an array": lambda path: path.write_bytes(array_file()),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "a bit": flip,
    "NaN": altered(vectors=lambda vectors: vectors * np.nan),
    "other numbers": altered(vectors=lambda vectors: vectors + 1),
    "1-D": altered(vectors=lambda vectors: vectors[:, 0]),
    "fewer rows": altered(vectors=lambda vectors: vectors[:1]),
    "float64": altered(vectors=lambda vectors: vectors.astype(np.float64)),
    "objects": altered(vectors=lambda vectors: vectors.astype(object)),
    "no vectors": altered(vectors=None),
    "no digest": altered(digest=None),
    "texts cut": altered(cut=lambda vectors: np.array(1)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_part_is_computed_again(damage, tmp_path):
    output = tmp_path / "out.npy"
    killed(output)
    DAMAGES[damage](tmp_path / "out.npy.parts" / "0000000.npz")
    said = r"0000000\.npz: is damaged \(.*\); it is computed again"
    with pytest.warns(UserWarning, match=said):
        assert job(output) == EmbeddingResult(10, 8, 0)
    assert (np.load(output) == 1).all()
    assert np.load(output).shape == (10, 2)


def test_a_part_that_is_damaged_meanwhile(tmp_path):
    output = tmp_path / "out.npy"

    def texts():
        yield from TEXTS
        DAMAGES["other numbers"](tmp_path / "out.npy.parts" / "0000001.npz")

    with pytest.raises(TargetError, match=r"0000001\.npz: is damaged .*; start the job again"):
        job(output, texts())
    said: list[str] = []
    assert job(output, warn=said.append) == EmbeddingResult(10, 2, 0)
    assert len(said) == 1
    assert (np.load(output) == 1).all()


def test_a_folder_without_parts_binds_nobody(tmp_path):
    output = tmp_path / "out.npy"
    killed(output, number=2.0)
    for part in (tmp_path / "out.npy.parts").glob("*.npz"):
        part.unlink()
    assert json.loads((tmp_path / "out.npy.parts" / "job.json").read_text())["model"] == 2
    assert job(output) == EmbeddingResult(10, 10, 0)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("there", [False, True])
def test_a_link_is_not_replaced(there, overwrite, tmp_path):
    (tmp_path / "out.npy").symlink_to(tmp_path / "real.npy")
    if there:
        (tmp_path / "real.npy").write_text("precious")
    with pytest.raises(TargetError, match=r"is a link; pass the file itself, .*real\.npy"):
        job(tmp_path / "out.npy", overwrite=overwrite)
    assert (tmp_path / "out.npy").is_symlink()


def test_the_input_is_not_the_output(tmp_path):
    pytest.importorskip("pyarrow", reason="the input is parquet")
    source, link = tmp_path / "texts.parquet", tmp_path / "out.parquet"
    source.write_text("precious")
    os.link(source, link)
    for output in (source, link):
        with pytest.raises(TargetError, match=r"is the input, .*texts\.parquet"):
            check_output(str(output), True, str(source))


def test_ranges_want_two_texts(tmp_path):
    with pytest.raises(SourceError, match="too few texts: expected at least 2, found 1"):
        job(tmp_path / "out.npy", TEXTS[:1], least_rows=2)
    assert not os.listdir(tmp_path)
    assert job(tmp_path / "out.npy", TEXTS[:2], least_rows=2).rows == 2


def test_cut_texts_are_counted_over_all_parts(tmp_path):
    output = tmp_path / "out.npy"
    killed(output, cut=lambda: 1)
    assert job(output, cut=lambda: 2) == EmbeddingResult(10, 6, 2 * 1 + 3 * 2)


def test_a_bad_text_has_its_number_among_all(tmp_path):
    def encode(some):
        if "text 7" in some:
            raise TextError(some.index("text 7"), "is bad")
        return np.ones((len(some), 2), np.float32)

    with pytest.raises(TextError, match="sentence 7: is bad") as caught:
        embed_file(TEXTS, encode, str(tmp_path / "out.npy"), made_by={}, rows_a_part=2)
    assert caught.value.number == 7


def test_the_inputs_errors_are_not_the_outputs(tmp_path):
    def texts():
        yield TEXTS[0]
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        job(tmp_path / "out.npy", texts())
    assert not os.listdir(tmp_path)  # nothing was computed


@pytest.mark.parametrize("name", ["out.NPY", "out.Parquet"])
def test_endings_in_capitals(name, tmp_path):
    pytest.importorskip("pyarrow", reason="parquet is written by it")
    assert job(tmp_path / name).rows == 10
