"""The benchmark of embedding runs and judges."""

import importlib.util
import json
import subprocess
import sys

import pytest

from benchmarks import embed

needs_reference = pytest.mark.skipif(
    importlib.util.find_spec("sentence_transformers") is None,
    reason="the other contender is sentence-transformers",
)


@pytest.mark.parametrize(
    ("ratios", "broken"),
    [
        (embed.MIN_RATIOS, []),
        (
            {"sentence-transformers": 1.5, embed.SORTED: 1.2},
            ["rate: onnxruntime, minibert's batches was not measured"],
        ),
        (
            embed.MIN_RATIOS | {"sentence-transformers": 1.44, embed.ONNX: 1.1},
            [
                "rate: 1.44 × that of sentence-transformers, under 1.5 ×",
                "rate: 1.10 × that of onnxruntime, minibert's batches, under 1.2 ×",
            ],
        ),
    ],
)
def test_judges(ratios, broken):
    assert embed.faults({"results": {n: {"ratio": r} for n, r in ratios.items()}}) == broken


def test_the_others_batches_are_of_like_length():
    lengths = [3, 9, 1, 7] * 12
    batches = embed.by_length(lengths, 512)
    assert [(batch.rows, batch.length) for batch in batches] == [(32, 9), (16, 3)]
    assert sorted(index for batch in batches for index in batch.indices) == list(range(48))
    assert all(lengths[index] <= batch.length for batch in batches for index in batch.indices)


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
    command.append("--ragged")
    done = subprocess.run(
        [*command, "--json", str(path)], cwd=embed.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(path.read_text())
    missing = {
        name
        for name, packages in embed.OPTIONAL.items()
        if any(importlib.util.find_spec(package) is None for package in packages)
    }
    assert report["results"].keys() == (embed.CONTENDERS | embed.RAGGED).keys() - missing
    for name, result in report["results"].items():
        assert name.partition(",")[0] in done.stdout
        assert result["rate"] > 0
        assert len(result["seconds"]) == 1
