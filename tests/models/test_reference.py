"""minibert against recorded outputs of PyTorch, where PyTorch need not be installed.

The recordings, and how they were made: `record/reference_outputs.py`.
"""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import minibert
from conftest import FIXTURES, FLOAT32, FLOAT64
from minibert.models.registry import MODELS

REFERENCE = FIXTURES / "reference"
INPUTS = ("input_ids", "attention_mask", "token_type_ids", "encoder_hidden_states")
OTHERS = {"GPT2LMHeadModel", "GPT2DoubleHeadsModel", "GPT2ForSequenceClassification"}
OTHERS |= {"RobertaForMaskedLM", "RobertaForSequenceClassification"}
OTHERS |= {"XLMRobertaForMaskedLM", "CamembertForTokenClassification"}
OTHERS |= {"DistilBertForMaskedLM", "DistilBertForSequenceClassification"}
OTHERS |= {"MPNetForMaskedLM", "MPNetForSequenceClassification"}
OTHERS |= {"ElectraForPreTraining", "ElectraForMaskedLM"}
OTHERS |= {"AlbertForPreTraining", "AlbertForSequenceClassification"}
CLASSES = sorted(path.parent.name for path in REFERENCE.glob("*/config.json"))


def test_every_class_is_recorded():
    """The tests below are parametrised by what there is; nothing may be missing unseen."""
    assert {name for name in MODELS if name.startswith("Bert")} | OTHERS == set(CLASSES)


@pytest.mark.parametrize("name", CLASSES)
def test_tiny_models_compute_what_pytorch_computed(name: str):
    """Every output and hidden state, in float64."""
    recorded = load_file(REFERENCE / name / "outputs.safetensors")
    given = {key: recorded.pop(key) for key in INPUTS if key in recorded}
    with jax.enable_x64(True):
        model = getattr(minibert, name).from_pretrained(REFERENCE / name, param_dtype=jnp.float64)
        flags = {"output_hidden_states": True, "output_attentions": "attentions.0" in recorded}
        found = flattened(model(**given, **flags))
    assert found.keys() == recorded.keys()
    for key, expected in recorded.items():
        assert found[key].dtype == expected.dtype == np.float64
        assert error(key, found[key], expected, given["attention_mask"]) <= FLOAT64, key


def flattened(outputs: Any) -> dict[str, np.ndarray]:
    """A model's outputs by name, `hidden_states.0` and so on."""
    found: dict[str, np.ndarray] = {}
    for key, value in zip(outputs.keys(), outputs.to_tuple(), strict=True):
        if isinstance(value, tuple):
            found |= {f"{key}.{index}": np.asarray(part) for index, part in enumerate(value)}
        else:
            found[key] = np.asarray(value)
    return found


def error(key: str, ours: np.ndarray, theirs: np.ndarray, mask: np.ndarray) -> float:
    """The largest difference at unpadded positions; a position is a row of the attentions."""
    assert ours.shape == theirs.shape, key
    real = mask.reshape(-1, mask.shape[-1]) == 1
    if key.startswith("attentions"):
        ours, theirs = ours.swapaxes(1, 2), theirs.swapaxes(1, 2)
    if key.startswith("hidden_states"):  # one may have an axis of choices
        ours, theirs = (array.reshape(-1, *array.shape[-2:]) for array in (ours, theirs))
    if ours.shape[:2] == real.shape:
        ours, theirs = ours[real], theirs[real]
    return float(np.abs(ours - theirs).max())


@pytest.mark.parametrize("name", CLASSES)
def test_load_finds_the_class_pytorch_saved(name: str):
    """By `architectures`, as transformers wrote it."""
    config = json.loads((REFERENCE / name / "config.json").read_bytes())
    assert config["architectures"] == [name]
    assert type(minibert.load(REFERENCE / name)) is getattr(minibert, name)


def test_minilm_computes_what_pytorch_computed(minilm: str):
    """All seven hidden states and the pooler of trained weights, in float32."""
    recorded = load_file(REFERENCE / "minilm.safetensors")
    given = {key: recorded[key] for key in INPUTS if key in recorded}
    model = minibert.BertModel.from_pretrained(minilm)
    with jax.default_matmul_precision("highest"):
        outputs = model(**given, output_hidden_states=True)
    real = given["attention_mask"] == 1
    expected = recorded["hidden_states"]
    assert len(outputs.hidden_states) == len(expected) == 7
    for layer, state in enumerate(outputs.hidden_states):
        assert np.abs(np.asarray(state)[real] - expected[layer]).max() <= FLOAT32, layer
    assert np.abs(outputs.pooler_output - recorded["pooler_output"]).max() <= FLOAT32
