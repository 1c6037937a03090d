"""Decoders of both families beside PyTorch's, in float64: causality and cross-attention."""

import numpy as np
import pytest

from conftest import FLOAT64

torch = pytest.importorskip("torch", reason="the oracle is PyTorch")

import oracle  # noqa: E402
from families import FACTS  # noqa: E402
from oracle import ALL, arguments, worst  # noqa: E402

ENCODED = np.random.default_rng(1).normal(size=(3, 5, 24))
HOLES = np.array([[1, 1, 1, 1, 1], [0, 1, 1, 0, 1], [1, 0, 0, 0, 0]])
DECODER = {"is_decoder": True}
HEADS = {name: config for name, config in FACTS["bert"].classes.items() if config != DECODER}
CROSSED = {
    "BertModel": {"is_decoder": True, "add_cross_attention": True},
    "BertLMHeadModel": {"is_decoder": True, "add_cross_attention": True},
    "GPT2Model": {"add_cross_attention": True},
    "GPT2LMHeadModel": {"add_cross_attention": True},
}


@pytest.mark.parametrize("padding", ["right", "left", None])
@pytest.mark.parametrize("name", ["BertModel", "BertForMaskedLM"])
def test_bert(name, padding, tmp_path):
    theirs = oracle.saved(name, tmp_path, **DECODER)
    given = arguments(name, padding=padding)
    if padding is None:
        del given["attention_mask"]
    assert worst(name, tmp_path, theirs, given) <= FLOAT64


@pytest.mark.parametrize("name", HEADS)
def test_every_head_of_bert_on_a_decoder(name, tmp_path):
    theirs = oracle.saved(name, tmp_path, **DECODER | HEADS[name])
    assert worst(name, tmp_path, theirs, arguments(name)) <= FLOAT64


def test_without_is_decoder_a_language_model_attends_both_ways(tmp_path):
    """As in transformers, which only warns."""
    theirs = oracle.saved("BertLMHeadModel", tmp_path)
    given = arguments("BertLMHeadModel")
    assert worst("BertLMHeadModel", tmp_path, theirs, given) <= FLOAT64
    model = oracle.ours("BertLMHeadModel", tmp_path)
    changed = given | {"input_ids": given["input_ids"] * (np.arange(11) != 5)}
    before = np.asarray(model(**given).logits - model(**changed).logits)[0, :5]
    assert np.abs(before).max() > 1e-3


@pytest.mark.parametrize("name", ["BertLMHeadModel", "GPT2LMHeadModel", "GPT2Model", "BertModel"])
def test_nothing_sees_the_future(name, tmp_path):
    oracle.saved(name, tmp_path, **DECODER)
    model, given = oracle.ours(name, tmp_path), arguments(name, padding=None)
    del given["attention_mask"]
    changed = given | {"input_ids": np.where(np.arange(11) == 5, 96, given["input_ids"])}
    one, other = np.asarray(model(**given)[0]), np.asarray(model(**changed)[0])
    np.testing.assert_array_equal(one[:, :5], other[:, :5])
    assert np.abs(one[:, 5:] - other[:, 5:]).max(axis=(0, 2)).min() > 1e-4


@pytest.mark.parametrize("mask", [None, HOLES], ids=["encoder unpadded", "encoder padded"])
@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("name", CROSSED)
def test_cross_attention(name, padding, mask, tmp_path):
    theirs = oracle.saved(name, tmp_path, **CROSSED[name])
    given = arguments(name, padding=padding) | {"encoder_hidden_states": ENCODED}
    if mask is not None:
        given["encoder_attention_mask"] = mask
    assert worst(name, tmp_path, theirs, given) <= FLOAT64


@pytest.mark.parametrize("name", CROSSED)
def test_cross_attention_without_an_encoder_is_left_out(name, tmp_path):
    theirs = oracle.saved(name, tmp_path, **CROSSED[name])
    assert worst(name, tmp_path, theirs, arguments(name)) <= FLOAT64
    assert oracle.ours(name, tmp_path)(**arguments(name), **ALL).cross_attentions is None


@pytest.mark.slow
@pytest.mark.parametrize("length", [1, 11, 50])
@pytest.mark.parametrize("name", CROSSED)
def test_encoders_of_any_length(name, length, tmp_path):
    """Longer than the decoder's own positions, even."""
    theirs = oracle.saved(name, tmp_path, **CROSSED[name])
    encoded = np.random.default_rng(2).normal(size=(3, length, 24))
    given = arguments(name) | {"encoder_hidden_states": encoded}
    assert worst(name, tmp_path, theirs, given) <= FLOAT64


@pytest.mark.parametrize(
    "config",
    [
        {"scale_attn_by_inverse_layer_idx": True, "n_layer": 3},
        {"scale_attn_weights": False},
        {"n_head": 8},
        {"layer_norm_epsilon": 1e-3},
    ],
    ids=lambda config: next(iter(config)),
)
def test_switches_reach_cross_attention(config, tmp_path):
    theirs = oracle.saved("GPT2LMHeadModel", tmp_path, add_cross_attention=True, **config)
    given = arguments("GPT2LMHeadModel") | {"encoder_hidden_states": ENCODED}
    given["encoder_attention_mask"] = HOLES
    assert worst("GPT2LMHeadModel", tmp_path, theirs, given) <= FLOAT64


@pytest.mark.slow
@pytest.mark.parametrize("name", CROSSED)
def test_gradients(name, tmp_path):
    theirs = oracle.saved(name, tmp_path, **CROSSED[name])
    given = arguments(name) | {"encoder_hidden_states": ENCODED, "encoder_attention_mask": HOLES}
    assert oracle.worst_gradient(name, tmp_path, theirs, given) <= 1


@pytest.mark.parametrize("change", ["full mask", "head mask", "positions", "logits_to_keep"])
def test_bert_decoders_inputs(change, tmp_path):
    name, draw = "BertLMHeadModel", np.random.default_rng(0)
    theirs = oracle.saved(name, tmp_path, **CROSSED[name])
    given = arguments(name) | {"encoder_hidden_states": ENCODED}
    flags, extra = ALL, {}
    match change:
        case "full mask":
            full = (draw.random((3, 11, 11)) < 0.6).astype(int)
            given["attention_mask"], extra = oracle.additive(full), {"attention_mask": full}
        case "head mask":
            factors = draw.random((2, 3))
            oracle.scale_heads(theirs.double(), factors)
            flags, extra = {"output_hidden_states": True}, {"head_mask": factors}
        case "positions":
            given["position_ids"] = draw.integers(0, 40, (3, 11))
            del given["attention_mask"]
            flags = ALL | {"use_cache": False}
        case "logits_to_keep":
            del given["attention_mask"]
            flags = ALL | {"logits_to_keep": 2}
    assert worst(name, tmp_path, theirs, given, flags, **extra) <= FLOAT64
