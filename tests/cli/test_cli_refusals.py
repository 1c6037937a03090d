"""Errors of the `minibert` command: one line each, and none is ignored."""

import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

import minibert
import sentences
from commands import model_folder, run
from minibert.cli.shared import print_json
from minibert.core.terminal import visible

pytestmark = pytest.mark.unoptimised

UGLY = ["[bold]of[/] and :smile:", "to [/nothing] in", "a\x1b[31m is\x07", "that\rit \u202e日本"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("encoder") / "model"
    sentences.encoder().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def words(tmp_path_factory, minilm) -> dict[str, str]:
    home = tmp_path_factory.mktemp("words")
    labels = {0: "[red]sad[/]", 1: ":glad:"}
    return {
        "fill": model_folder(home / "fill", "BertForMaskedLM", max_position_embeddings=64),
        "labels": model_folder(home / "labels", "BertForSequenceClassification", id2label=labels),
        "answers": model_folder(home / "answers", "BertForQuestionAnswering"),
        "writer": model_folder(
            home / "writer", "BertLMHeadModel", is_decoder=True, max_position_embeddings=64
        ),
        "bare": model_folder(home / "bare", "BertModel"),
    }


def lines(folder: pathlib.Path, *texts: str, name: str = "texts.txt") -> str:
    path = folder / name
    path.write_bytes("".join(f"{text}\n" for text in texts).encode())
    return str(path)


def refused(*arguments: str) -> str:
    found = run(*arguments)
    assert found.exit_code == 1, found.output
    assert found.stderr.startswith("error: ")
    assert found.stderr.count("\n") == 1
    return found.stderr


@pytest.mark.slow
def test_texts_are_printed_as_they_are(encoder, words, tmp_path):
    among = lines(tmp_path, *UGLY)
    found = run("similar", encoder, "[b]query[/]", "other", "--among", among, "--top-k", "4")
    assert found.exit_code == 0, found.output
    assert "[b]query[/]" in found.stdout
    for text in UGLY:
        assert visible(text) in found.stdout
    assert not set(found.stdout) & set("\x1b\x07\r")
    printed = run("classify", words["labels"], "What a day!", "--top-k", "2").stdout
    assert "[red]sad[/]" in printed
    assert ":glad:" in printed


def test_visible():
    assert visible("a\x1b[31m\x07\r\ud800") == r"a\x1b[31m\x07\r\ud800"
    assert visible("\x9b31m \u202e \u2066 \u2028") == r"\x9b31m \u202e \u2066 \u2028"
    assert visible(kept := "\n日本 \u200d🙂 عربي \u200f") == kept


def test_json_controls_no_terminal(capsys):
    value = {"a\x9b31m": "\x1b[1m \u202e\u2066 \u2028 \x7f 日本 \ud800\\"}
    print_json(value)
    printed = capsys.readouterr().out
    assert "日本" in printed
    assert all(one == "\n" or one.isprintable() for one in printed)
    assert json.loads(printed) == value


def test_errors_are_printed_as_they_are(tmp_path):
    name = str(tmp_path / "[bold]:smile:\x1b\nno.txt")
    said = refused("embed", name, "-o", "x.npy", "-m", "x")
    assert r"[bold]:smile:\x1b no.txt" in said


def test_similar_among_nothing(encoder, tmp_path):
    among = lines(tmp_path)
    assert "expected texts" in refused("similar", encoder, "query", "--among", among)


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_bytes_of_one_text(precision, encoder, tmp_path):
    target = tmp_path / "out.npy"
    asked = ("-o", target, "-m", encoder, "--precision", precision)
    assert "at least 2, found 1" in refused("embed", lines(tmp_path, "the"), *asked)
    assert not target.exists()


def test_the_input_as_output(encoder, tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="the input is parquet")
    from pyarrow import parquet

    path = tmp_path / "texts.parquet"
    parquet.write_table(pyarrow.table({"text": ["the", "of"]}), path)
    before = path.read_bytes()
    said = refused("embed", path, "-o", path, "-m", encoder, "--overwrite")
    assert f"{path}: is the input, {path}" in said
    assert path.read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("change", ["dtype", "tokenizer", "precision"])
def test_what_a_job_is_made_by(change, encoder, tmp_path):
    model, target = tmp_path / "model", tmp_path / "out.npy"
    shutil.copytree(encoder, model)
    source = tmp_path / "texts.jsonl"
    good = [json.dumps({"text": "the"})] * 2048
    source.write_text("\n".join([*good, "nonsense"]))
    command = ["embed", source, "-o", target, "-m", model]
    said = refused(*command)
    assert "line 2049: not JSON" in said
    assert f"completed parts are kept in {target}.parts" in said
    source.write_text("\n".join(good))
    if change == "tokenizer":
        path = model / "tokenizer.json"
        path.write_text(path.read_text().replace('"the"', '"xxx"'))
    else:
        command += {"dtype": ["--dtype", "bfloat16"], "precision": ["--precision", "int8"]}[change]
    assert f"a job with another {change}" in refused(*command)
    assert run(*command, "--restart").exit_code == 0


def test_cut_texts_are_counted(encoder, tmp_path):
    source, target = lines(tmp_path, "the", "of " * 50, "and " * 60), tmp_path / "out.npy"
    command = ["embed", source, "-o", target, "-m", encoder]
    assert "Wrote 3 rows" in (said := run(*command).stdout)
    assert "; 2 truncated to 40 tokens" in said
    read = json.loads(run(*command, "--overwrite", "--json").stdout)
    assert (read["cut"], read["max_seq_length"]) == (2, 40)


def test_a_text_without_a_vector_is_named(tmp_path):
    sentences.encoder("GPT2Model").save_pretrained(tmp_path / "gpt2")
    source = lines(tmp_path, *["the"] * 3000, "", "of")
    for command in (
        ["embed", source, "-o", tmp_path / "out.npy", "-m", tmp_path / "gpt2"],
        ["similar", tmp_path / "gpt2", "the", "--among", source],
    ):
        assert f"{source}: line 3001: expected at least 1 token" in refused(*command)


def test_offsets_are_the_files(words, tmp_path):
    path, context = tmp_path / "a.txt", "Lyon\r\nis in France.\r\nRome is in Italy."
    path.write_bytes(f"\ufeff{context}".encode())
    command = ["answer", words["answers"], "Where?", "--json"]
    found = json.loads(run(*command, "--context-file", path).stdout)[0]
    assert context[found["start"] : found["end"]] == found["answer"]
    assert found == json.loads(run(*command, "--context", context).stdout)[0]


def test_targets_and_top_k(words):
    words_asked = [part for word in "a b c d e f g".split() for part in ("--target", word)]
    command = ["fill-mask", words["fill"], "Is it [MASK]?", *words_asked, "--json"]
    assert len(json.loads(run(*command).stdout)) == 7
    assert len(json.loads(run(*command, "--top-k", "2").stdout)) == 2


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            ["generate", "writer", "a", "--temperature", "0.5", "--max-new-tokens", "5"],
            "temperature: .*--seed",
        ),
        (["generate", "writer", "a " * 80], "65 .*--max-new-tokens.*--truncate|--truncate"),
        (
            ["fill-mask", "fill", "a " * 80 + "[MASK]"],
            "at most 64 tokens.*found 83; --truncate truncates",
        ),
        (["fill-mask", "bare", "a [MASK]"], "bare: the head 'cls.predictions' is not in the file"),
        (["inspect", "fill", "--device", "abacus"], "--device: 'abacus' is not available"),
        (["embed", "-", "-o", "x.npy", "-m", "x"], "-: expected a file with an extension"),
        (["similar", "x", "y", "--among", "-"], "-: expected a file with an extension"),
    ],
)
def test_refusals_in_the_words_of_the_shell(command, said, words):
    found = run(*[words.get(part, part) for part in command])
    assert found.exit_code == 1
    assert found.stdout == ""
    assert found.stderr.count("\n") == 1
    assert re.search(said, found.stderr), found.stderr
    for python in ("=True", "jax.random", "nnx.", "callback", "max_new_tokens"):
        assert python not in found.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--seed", "99999999999999999999999"], "less than or equal to 4294967295"),
        (["--seed", "4294967296"], "less than or equal to 4294967295"),
        (["--seed", "-1"], "greater than or equal to 0"),
        (["--beams", "2", "--stop", "x"], "--beams and --stop"),
    ],
)
def test_wrong_usage(options, said, words):
    found = run("generate", words["writer"], "a", "--max-new-tokens", "2", *options)
    assert found.exit_code == 2
    assert said in " ".join(found.stderr.replace("│", " ").split())


def test_version():
    assert run("--version").stdout == f"minibert {minibert.__version__}\n"


def test_device_in_capitals(words):
    assert run("inspect", words["fill"], "--device", "CPU").exit_code == 0


def test_json_where_letters_are_few(monkeypatch):
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", narrow)
    print_json({"é": "日本 🙂"})
    narrow.flush()
    assert json.loads(narrow.buffer.getvalue()) == {"é": "日本 🙂"}


def own(problems: str) -> str:
    """Without what transformers says where PyTorch is not installed."""
    return "".join(line for line in problems.splitlines(True) if "[transformers]" not in line)


@pytest.mark.slow
@pytest.mark.parametrize("also", [[], ["--json"]])
def test_outputs_that_end(also, encoder, tmp_path):
    """A full device, a pipe nobody reads, a terminal of few letters: never a traceback."""
    among = lines(tmp_path, *UGLY)
    command = [sys.executable, "-m", "minibert.cli.app", "similar", encoder, "日本"]
    command += ["--among", among, *also]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, own(done.stderr)) == (1, "error: No space left on device\n")
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, own(done.stderr)) == (1, "")
    few = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, env=few, check=True)
    assert own(done.stderr) == ""
    assert r"\u65e5\u672c" in done.stdout


def test_vectors_are_the_encoders(encoder, tmp_path):
    source = lines(tmp_path, *sentences.FEW)
    assert run("embed", source, "-o", tmp_path / "out.NPY", "-m", encoder).exit_code == 0
    expected = minibert.SentenceEncoder.from_pretrained(encoder).encode(sentences.FEW)
    np.testing.assert_allclose(np.load(tmp_path / "out.NPY"), expected, atol=1e-6)
