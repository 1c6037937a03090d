"""`minibert embed` on a large file: the same bytes after kills, in constant memory."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import minibert
from commands import model_folder

LINES = 100_000
WORDS = "the a cat dog house tree river of in and runs sleeps sees old new small".split()

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("minilm")]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    """A small random encoder with the real vocabulary."""
    transformers = pytest.importorskip("transformers", reason="the tokenizer is transformers'")
    folder = tmp_path_factory.mktemp("encoder")
    source = model_folder(folder / "model", "BertModel", max_position_embeddings=64)
    model = minibert.BertModel.from_pretrained(source)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    minibert.SentenceEncoder(model, tokenizer, pooling="mean").save_pretrained(folder / "encoder")
    return str(folder / "encoder")


def write_lines(path: pathlib.Path, count: int) -> pathlib.Path:
    draw = np.random.default_rng(0)
    with open(path, "w") as file:
        for number in range(count):
            file.write(f"{number} {' '.join(draw.choice(WORDS, draw.integers(1, 20)))}\n")
    return path


def start(source: pathlib.Path, output: pathlib.Path, encoder: str) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "minibert.cli.app",
        "embed",
        source,
        "-o",
        output,
        "-m",
        encoder,
    ]
    return subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True)


def peak(process: subprocess.Popen) -> int:
    """Waits for a process; its largest resident set, in kilobytes."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    assert process.stdout is not None
    process.stdout.close()
    return usage.ru_maxrss


def test_killed_and_resumed(encoder, tmp_path):
    source = write_lines(tmp_path / "lines.txt", LINES)
    whole, output = tmp_path / "whole.npy", tmp_path / "killed.npy"
    large = peak(start(source, whole, encoder))
    draw, kills, found = np.random.default_rng(1), 0, ""
    parts = tmp_path / "killed.npy.parts"
    while not output.exists():
        process = start(source, output, encoder)
        before = len(list(parts.glob("*.npz"))) if parts.exists() else 0
        wanted = before + int(draw.integers(1, 9))
        while kills < 5 and process.poll() is None:
            if parts.exists() and len(list(parts.glob("*.npz"))) >= wanted:
                process.kill()
                kills += 1
                break
        found, _ = process.communicate()
    assert kills == 5
    assert "resumed" in found
    assert output.read_bytes() == whole.read_bytes()
    assert np.load(output).shape == (LINES, 24)
    assert sorted(os.listdir(tmp_path)) == ["killed.npy", "lines.txt", "whole.npy"]
    small = write_lines(tmp_path / "small.txt", LINES // 5)
    assert large <= 1.1 * peak(start(small, tmp_path / "small.npy", encoder))
