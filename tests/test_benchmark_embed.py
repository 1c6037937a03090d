"""The benchmark of embedding runs and judges."""

import importlib.util
import json
import subprocess
import sys

import pytest

from benchmarks import embed
from benchmarks.embed import MIN_RATIO

needs_reference = pytest.mark.skipif(
    importlib.util.find_spec("sentence_transformers") is None,
    reason="the other contender is sentence-transformers",
)


@pytest.mark.parametrize(
    ("ratio", "broken"),
    [
        (MIN_RATIO, []),
        (1.04, ["rate: 1.04 × sentence-transformers' rate, under 1.1 ×"]),
    ],
)
def test_judges(ratio, broken):
    assert embed.faults({"ratio": ratio}) == broken


def test_the_texts_are_spread_as_natural_ones_are():
    sizes = sorted(len(text.split()) for text in embed.corpus(2000))
    assert sizes[0] <= 2
    assert 28 <= sizes[1000] <= 34
    assert 90 <= sizes[1800] <= 140
    assert sizes[-1] == embed.LONGEST
    assert embed.corpus(2000) == embed.corpus(2000)


@needs_reference
@pytest.mark.slow
def test_runs(tmp_path):
    path = tmp_path / "report.json"
    command = [sys.executable, "-m", "benchmarks.embed", "--size", "tiny", "--repeats", "1"]
    done = subprocess.run(
        [*command, "--json", str(path)], cwd=embed.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(path.read_text())
    missing = {
        name
        for name, package in embed.OPTIONAL.items()
        if importlib.util.find_spec(package) is None
    }
    assert report["results"].keys() == embed.CONTENDERS.keys() - missing
    for name, result in report["results"].items():
        assert name.partition(",")[0] in done.stdout
        assert result["rate"] > 0
        assert len(result["seconds"]) == 1
    assert report["ratio"] == report["results"]["sentence-transformers"]["ratio"]
