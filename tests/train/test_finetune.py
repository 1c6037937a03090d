"""The fine-tuning benchmark runs and reports accuracies."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from flax import nnx

import minibert
from benchmarks import finetune

needs_texts = pytest.mark.skipif(
    any(importlib.util.find_spec(p) is None for p in (finetune.MODEL, finetune.TEXTS, "sklearn")),
    reason="the weights, the headlines and tf-idf come with the test dependencies",
)


def report(whole, lora, plain, share):
    means = {"whole": whole, "LoRA": lora, "tf-idf": plain}
    return {"results": {name: {"mean": mean} for name, mean in means.items()}, "share": share}


@pytest.mark.parametrize(
    ("figures", "broken"),
    [
        ((80.0, 78.1, 70.0, 0.01), []),
        ((80.0, 77.9, 70.0, 0.01), ["LoRA: 2.1 points below the whole model, over 2.0"]),
        ((74.9, 75.1, 70.0, 0.01), ["whole: 4.9 points above tf-idf, under 5.0"]),
        ((80.0, 80.0, 70.0, 0.021), ["LoRA: 2.10% of the parameters, over 2%"]),
    ],
)
def test_judges(figures, broken):
    assert finetune.faults(report(*figures)) == broken


@needs_texts
def test_what_is_held_out_is_never_drawn():
    (texts, labels), (held, sections) = finetune.split()
    assert not set(texts) & set(held)
    assert len(set(texts)) == len(texts)
    assert np.bincount(sections).tolist() == [finetune.HELD_OUT] * 5
    chosen = finetune.sample(labels, 16, np.random.default_rng(0))
    assert np.bincount(labels[chosen]).tolist() == [16] * 5
    assert len(set(chosen.tolist())) == 80


@needs_texts
@pytest.mark.slow
def test_one_draw(tmp_path):
    path = tmp_path / "report.json"
    command = [sys.executable, "-m", "benchmarks.finetune", "--draws", "1", "--json", str(path)]
    done = subprocess.run(
        command,
        cwd=os.path.dirname(os.path.dirname(finetune.__file__)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    assert finetune.SHA256 in found["source"]
    for name, result in found["results"].items():
        assert name in done.stdout
        assert len(result["accuracy"]) == 1
    # the mean of ten draws is judged by --check; one alone may miss what they keep
    assert found["results"]["LoRA"]["mean"] > found["results"]["tf-idf"]["mean"]
    assert found["results"]["whole"]["mean"] > found["results"]["tf-idf"]["mean"]
    assert found["share"] <= finetune.MAX_SHARE


@pytest.mark.slow
def test_padding_does_not_dilute_a_text():
    """The logits of a row are the mean over its tokens, whatever its padding."""
    config = minibert.BertConfig.tiny()
    model = minibert.BertForTokenClassification(config, rngs=nnx.Rngs(0)).eval()
    mask = np.array([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]])
    ids = np.arange(1, 13).reshape(2, 6) * mask
    found = finetune.mean_pooled(model, {"input_ids": ids, "attention_mask": mask}, None).logits
    for row, length in enumerate((3, 6)):
        alone = np.asarray(model(ids[row : row + 1, :length]).logits)[0]
        np.testing.assert_allclose(found[row], alone.mean(axis=0), atol=1e-6)
