"""README's examples run as written, and its commands are the ones that are checked."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


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
