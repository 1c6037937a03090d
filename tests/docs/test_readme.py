"""README's examples run as written, and its commands are the ones that are checked."""

import itertools
import os
import pathlib
import re
import subprocess
import sys

import pytest
from flax import nnx

import minibert

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


@pytest.mark.slow
def test_python_examples(minilm, tmp_path, monkeypatch, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "minilm").symlink_to(minilm)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks("python"):
        exec(block, names)  # one reader's session, top to bottom
    assert names["out"].last_hidden_state.shape == (2, 6, 384)
    assert names["inner"]["encoder.layer.3.attention.self"].shape == (2, 6, 384)
    assert names["pooled"].shape == (7, 2, 384)
    assert (tmp_path / "attention.png").stat().st_size > 5000
    assert names["classifier"].config.num_labels == 3
    printed = capsys.readouterr().out
    assert "(word_embeddings): Embed(30522, 384)" in printed
    assert "new: classifier" in printed
    assert (tmp_path / "out" / "copy" / "model.safetensors").exists()


def sessions() -> list[tuple[str, list[str]]]:
    """Commands, each with the lines that README shows below it."""
    found: list[tuple[str, list[str]]] = []
    blocks = re.findall(r"^```\n(\$ .*?)^```$", README, re.M | re.S)
    for line in "".join(blocks).splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found


def make_heads(folder: pathlib.Path) -> None:
    """Creates the models with untrained heads that README uses."""
    heads = {"labels": "BertForSequenceClassification", "answers": "BertForQuestionAnswering"}
    for name, head in heads.items():
        labels = {"id2label": {0: "glad", 1: "sad"}} if name == "labels" else {}
        model = getattr(minibert, head).from_pretrained(
            folder / "minilm", **labels, new_head=True, rngs=nnx.Rngs(0)
        )
        model.save_pretrained(folder / name)
        for path in (folder / "minilm").glob("*token*"):
            (folder / name / path.name).symlink_to(path)


def same(found: str, shown: str) -> bool:
    """Returns whether two lines have the same words, and numbers that are almost the same."""
    pairs = list(itertools.zip_longest(found.split(), shown.split()))
    return all(
        abs(float(one) - float(other)) <= 2e-4
        if one and other and re.fullmatch(r"0\.\d{4}", one) and re.fullmatch(r"0\.\d{4}", other)
        else one == other
        for one, other in pairs
    )


@pytest.mark.slow
def test_sessions(minilm, tmp_path):
    """The commands print what README shows below them."""
    convert = [sys.executable, "-m", "convert", str(minilm), str(tmp_path / "out" / "minilm")]
    subprocess.run(convert, cwd=ROOT, check=True, capture_output=True)
    (tmp_path / "LICENSE").symlink_to(ROOT / "LICENSE")
    make_heads(tmp_path / "out")
    mark = "=== next"
    script = "".join(f"{command}\necho '{mark}'\n" for command, _ in sessions())
    path = os.pathsep.join((os.path.dirname(sys.executable), os.environ["PATH"]))
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PATH": path, "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    found = [text.strip("\n").splitlines() for text in done.stdout.split(f"{mark}\n")]
    assert len(found) == len(sessions()) + 1 > 10
    for printed, (command, shown) in zip(found, sessions(), strict=False):
        if shown:
            assert len(printed) == len(shown), (command, printed)
            assert all(map(same, printed, shown)), (command, printed)


@pytest.mark.parametrize(
    "command",
    [
        "pip install '.[plots]' && minibert demo",
        'python -m convert "$(python tests/minilm.py)" out/minilm',
        "python -m pytest\n",
    ],
)
def test_commands_are_checked(command):
    assert command in blocks("")[0]
    script = (ROOT / ".ci" / "run").read_text().replace('"$bin/python"', "python")
    assert command.rpartition("&& ")[2].partition(" out/")[0] in script


def test_links_lead_somewhere():
    for path in ROOT.glob("*.md"):
        for link in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            assert link.startswith("http") or (ROOT / link).exists(), (path.name, link)
