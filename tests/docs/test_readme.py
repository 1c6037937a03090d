"""The examples of README and of the guides run as written, and print what is shown below them."""

import os
import pathlib
import re
import subprocess
import sys

import pytest
from flax import nnx

import minibert

ROOT = pathlib.Path(__file__).parents[2]
README = ROOT / "README.md"
NUMBER = re.compile(r"-?\b\d\.\d{4}\b")
PAGES = [README, *sorted((ROOT / "docs" / "guides").glob("*.md"))]


def blocks(page: pathlib.Path, language: str) -> list[tuple[str, str]]:
    """The fenced blocks of a language, each with the block of output that follows."""
    fence = rf"^```{language}\n(.*?)^```\n\n?(?:```text\n(.*?)^```$)?"
    return re.findall(fence, page.read_text() + "\n", re.M | re.S)


def sessions(page: pathlib.Path) -> list[tuple[str, list[str]]]:
    """The commands of a page, each with the lines that are shown below it."""
    found: list[tuple[str, list[str]]] = []
    for line in "".join(text for text, _ in blocks(page, "console")).splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found


@pytest.fixture(scope="module")
def converted(minilm, tmp_path_factory):
    """What README's second command writes."""
    folder = tmp_path_factory.mktemp("converted") / "minilm"
    command = [sys.executable, "-m", "convert", minilm, str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.fixture
def reader(converted, tmp_path, monkeypatch):
    """A folder to read the pages in."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "minilm").symlink_to(converted)
    (tmp_path / "LICENSE").symlink_to(ROOT / "LICENSE")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_heads(folder: pathlib.Path) -> None:
    """Models with untrained heads, as the pages say they are."""
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
    """Whether two lines are equal but for spaces, and numbers of four places all but agree."""
    texts = [" ".join(text.split()) for text in (found, shown)]
    ours, theirs = ([float(number) for number in NUMBER.findall(text)] for text in texts)
    return len({NUMBER.sub("number", text) for text in texts}) == 1 and all(
        abs(one - other) <= 2e-4 for one, other in zip(ours, theirs, strict=True)
    )


def check_output(printed: str, shown: list[str], what: str) -> None:
    lines = printed.strip("\n").splitlines()
    assert len(lines) == len(shown), (what, printed)
    assert all(map(same, lines, shown)), (what, printed)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_examples(page, reader, capsys):
    names: dict[str, object] = {"__name__": "__main__"}
    for code, shown in blocks(page, "python"):
        exec(compile(code, page.name, "exec"), names)  # one reader's session, top to bottom
        printed = capsys.readouterr().out
        if shown:
            check_output(printed, shown.strip("\n").splitlines(), code)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "console")], ids=lambda page: page.stem
)
def test_sessions(page, reader):
    make_heads(reader / "out")
    for text, _ in blocks(page, "toml"):
        if text.startswith("# CONFIG.toml"):
            (reader / "CONFIG.toml").write_text(text)
    mark = "=== next"
    script = "".join(f"{command}\necho '{mark}'\n" for command, _ in sessions(page))
    path = os.pathsep.join((os.path.dirname(sys.executable), os.environ["PATH"]))
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=reader,
        env=os.environ | {"PATH": path, "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    found = done.stdout.split(f"{mark}\n")
    assert len(found) == len(sessions(page)) + 1
    for printed, (command, shown) in zip(found, sessions(page), strict=False):
        if shown:
            check_output(printed, shown, command)


@pytest.mark.parametrize(
    "command",
    [
        "pip install '.[plots]' && minibert demo",
        'python -m convert "$(python tests/minilm.py)" out/minilm',
        "python -m pytest\n",
    ],
)
def test_commands_are_checked(command):
    assert command in blocks(README, "")[0][0]
    script = (ROOT / ".ci" / "run").read_text().replace('"$bin/python"', "python")
    assert command.rpartition("&& ")[2].partition(" out/")[0] in script


def test_readme_is_short():
    assert len(README.read_text().splitlines()) <= 180
    _, *tours = blocks(README, "python")
    assert len(tours) == 6
    assert all(shown and len(code.splitlines()) <= 8 for code, shown in tours)


def test_links_lead_somewhere():
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "notebooks/README.md"]:
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text()):
            assert link.startswith("http") or (path.parent / link).exists(), (path.name, link)
