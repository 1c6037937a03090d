"""Every output and every gradient of tiny models, beside PyTorch's, in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from conftest import FLOAT64

torch = pytest.importorskip("torch", reason="the oracle is PyTorch")

import oracle  # noqa: E402
from minibert.nn.activations import ACTIVATION_NAMES  # noqa: E402
from oracle import ENCODERS, arguments, worst  # noqa: E402


@pytest.mark.parametrize("padded", [True, False], ids=["padded", "unpadded"])
@pytest.mark.parametrize("name", ENCODERS)
def test_heads(name, padded, tmp_path):
    theirs = oracle.saved(name, tmp_path, **ENCODERS[name])
    given = arguments(name)
    if not padded:
        del given["attention_mask"]
    assert worst(name, tmp_path, theirs, given) <= FLOAT64


@pytest.mark.parametrize("act", ACTIVATION_NAMES)
def test_activations(act, tmp_path):
    theirs = oracle.saved("BertForMaskedLM", tmp_path, hidden_act=act)
    assert worst("BertForMaskedLM", tmp_path, theirs, arguments("BertModel")) <= FLOAT64


@pytest.mark.parametrize(
    "config",
    [
        {"layer_norm_eps": 1e-5},
        {"layer_norm_eps": 1e-3},
        {"type_vocab_size": 1},
        {"type_vocab_size": 5},
        {"num_attention_heads": 1},
        {"num_attention_heads": 8},
        {"num_attention_heads": 24},
        {"num_hidden_layers": 1},
        {"num_hidden_layers": 5},
        {"pad_token_id": None},
        {"pad_token_id": 3},
        {"chunk_size_feed_forward": 11},
        {"tie_word_embeddings": False},
    ],
    ids=lambda config: "-".join(f"{key}={value}" for key, value in config.items()),
)
def test_config_switches(config, tmp_path):
    theirs = oracle.saved("BertForPreTraining", tmp_path, **config)
    given = arguments("BertModel", segments=config.get("type_vocab_size", 2))
    assert worst("BertForPreTraining", tmp_path, theirs, given) <= FLOAT64


@pytest.mark.parametrize(
    "change",
    [
        {"token_type_ids": None},
        {"position_ids": np.tile(np.arange(10, -1, -1), (3, 1))},
        {"position_ids": np.random.default_rng(0).integers(0, 40, (3, 11))},
        {"attention_mask": np.array([[1, 0] * 5 + [1]] * 3)},
        {"attention_mask": np.eye(11, dtype=int)[[0, 4, 10]]},
    ],
    ids=["no segments", "positions reversed", "positions drawn", "mask with holes", "mask of one"],
)
def test_inputs(change, tmp_path):
    theirs = oracle.saved("BertModel", tmp_path)
    given = {k: v for k, v in (arguments("BertModel") | change).items() if v is not None}
    assert worst("BertModel", tmp_path, theirs, given) <= FLOAT64


def test_inputs_embeds(tmp_path):
    theirs = oracle.saved("BertForMaskedLM", tmp_path)
    given = arguments("BertModel")
    del given["input_ids"]
    given["inputs_embeds"] = np.random.default_rng(0).normal(size=(3, 11, 24))
    assert worst("BertForMaskedLM", tmp_path, theirs, given) <= FLOAT64


def test_full_mask(tmp_path):
    theirs = oracle.saved("BertModel", tmp_path)
    given = arguments("BertModel")
    draw = np.random.default_rng(0)
    full = (draw.random((3, 11, 11)) < 0.6).astype(int)
    full[1, 2] = 0  # a query that may look nowhere
    flags = {"output_hidden_states": True, "output_attentions": True}
    expected = oracle.run_torch(
        theirs.double(), given | {"attention_mask": oracle.additive(full)}, **flags
    )
    with oracle.float64():
        found = oracle.ours("BertModel", tmp_path, param_dtype=jnp.float64)(
            **given | {"attention_mask": full}, **flags
        )
    assert max(oracle.errors(found, expected).values()) <= FLOAT64


@pytest.mark.parametrize("shape", [(3,), (2, 3)], ids=["heads", "layers by heads"])
def test_head_mask(shape, tmp_path):
    theirs = oracle.saved("BertForSequenceClassification", tmp_path, num_labels=5)
    factors = np.random.default_rng(0).random(shape)
    given = arguments("BertModel")
    with oracle.float64():
        model = oracle.ours("BertForSequenceClassification", tmp_path, param_dtype=jnp.float64)
        found = model(**given, head_mask=factors, output_hidden_states=True)
    oracle.scale_heads(theirs.double(), np.broadcast_to(factors, (2, 3)))
    expected = oracle.run_torch(theirs, given, output_hidden_states=True)
    assert max(oracle.errors(found, expected, given["attention_mask"]).values()) <= FLOAT64


def test_head_mask_scales_the_returned_weights(tmp_path):
    oracle.saved("BertModel", tmp_path)
    model, given = oracle.ours("BertModel", tmp_path), arguments("BertModel")
    plain = model(**given, output_attentions=True).attentions[0]
    masked = model(**given, output_attentions=True, head_mask=np.array([0.5, 0.0, 2.0])).attentions[
        0
    ]
    np.testing.assert_allclose(masked, plain * np.array([0.5, 0, 2])[:, None, None], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "act"),
    [(name, "gelu") for name in ENCODERS]
    + [("BertForMaskedLM", "prelu"), ("BertForMaskedLM", "xielu")],
)
def test_gradients(name, act, tmp_path):
    """The gradient of every parameter, of a weighted sum of every output at unpadded positions."""
    theirs = oracle.saved(name, tmp_path, hidden_act=act, **ENCODERS[name])
    assert oracle.worst_gradient(name, tmp_path, theirs, arguments(name)) <= 1


@pytest.mark.parametrize("act", [n for n in ACTIVATION_NAMES if n not in ("prelu", "xielu")])
def test_activation_by_itself(act):
    """Each activation over a wide range, and its float32 value beside torch's float64."""
    from transformers.activations import ACT2FN

    from minibert.nn.activations import Activation

    x = np.concatenate([np.linspace(-30, 30, 2001), [0.0, 20.0, np.nextafter(20, 21)]])
    expected = ACT2FN[act](torch.tensor(x)).numpy()
    with oracle.float64():
        found = np.asarray(Activation(act)(jnp.asarray(x)))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    single = np.asarray(Activation(act)(jnp.asarray(x, jnp.float32)))
    np.testing.assert_allclose(single, expected, rtol=2e-5, atol=1e-5)
