"""Checkpoints and calls that other implementations read wrongly, mostly without an error."""

import jax.numpy as jnp
import numpy as np
import pytest

from conftest import FLOAT64

torch = pytest.importorskip("torch", reason="the oracle is PyTorch")

from flax import nnx  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

import minibert  # noqa: E402
import oracle  # noqa: E402
from minibert.errors import CheckpointMismatchError  # noqa: E402
from oracle import arguments, worst  # noqa: E402

BERT, GPT2 = "BertModel", "GPT2LMHeadModel"
DEEP = {BERT: {"num_hidden_layers": 12}, GPT2: {"n_layer": 12}}
CONFIGS = {
    "exact GELU": (BERT, {"hidden_act": "gelu"}),
    "tanh GELU": (BERT, {"hidden_act": "gelu_new"}),
    "another epsilon": (BERT, {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5}),
    "ReLU": (BERT, {"hidden_act": "relu"}),
    "the standard GPT-2": (GPT2, {}),
    "scores divided by the layer's number": (
        GPT2,
        {"scale_attn_by_inverse_layer_idx": True},
    ),
    "scores not divided by the square root": (GPT2, {"scale_attn_weights": False}),
    "GPT-2 with exact GELU": (GPT2, {"activation_function": "gelu"}),
    "GPT-2 with another inner size": (GPT2, {"n_inner": 256}),
    "GPT-2 with no inner size": (GPT2, {"n_inner": None}),
    "GPT-2 with another epsilon": (GPT2, {"layer_norm_epsilon": 1e-3}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CONFIGS)
def test_configs(case, tmp_path):
    """Twelve layers, thirteen states, each as PyTorch's."""
    name, config = CONFIGS[case]
    theirs = oracle.saved(name, tmp_path, **DEEP[name] | config)
    assert worst(name, tmp_path, theirs, arguments(name)) <= FLOAT64
    states = oracle.ours(name, tmp_path)(**arguments(name), output_hidden_states=True)
    assert len(states.hidden_states) == 13


@pytest.mark.parametrize("name", [BERT, GPT2])
def test_half_a_head_is_not_none(name, tmp_path):
    """A fractional head mask is a factor, not a switch."""
    theirs = oracle.saved(name, tmp_path).double()
    given = arguments(name)
    oracle.scale_heads(theirs, np.full((2, 3), 0.5))
    expected = oracle.run_torch(theirs, given)
    with oracle.float64():
        model = oracle.ours(name, tmp_path, param_dtype=jnp.float64)
        half = model(**given, head_mask=np.full(3, 0.5))
        none = model(**given, head_mask=np.zeros(3))
    assert max(oracle.errors(half, expected, given["attention_mask"]).values()) <= FLOAT64
    assert np.abs(np.asarray(half[0] - none[0])).max() > 0.1


@pytest.mark.parametrize("name", [BERT, GPT2])
@pytest.mark.parametrize("prefix", ["encoder_model.", "bert.model.", "x."])
def test_an_unknown_prefix_is_refused(prefix, name, tmp_path):
    """No random weights beside a warning."""
    oracle.saved(name, tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({prefix + key: tensor for key, tensor in load_file(file).items()}, file)
    with pytest.raises(CheckpointMismatchError, match="found no such tensor"):
        oracle.ours(name, tmp_path)


@pytest.mark.parametrize(("name", "layer"), [(BERT, "encoder.layer.1."), (GPT2, "h.1.")])
def test_a_missing_layer_is_refused(name, layer, tmp_path):
    oracle.saved(name, tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({key: t for key, t in load_file(file).items() if layer not in key}, file)
    with pytest.raises(CheckpointMismatchError) as caught:
        oracle.ours(name, tmp_path)
    assert len(caught.value.faults) == (16 if name == BERT else 12)
    assert all(layer in fault for fault in caught.value.faults)


def test_a_checkpoint_without_a_pooler_has_none(tmp_path):
    """As every saved masked language model."""
    theirs = oracle.saved("BertForMaskedLM", tmp_path)
    model, info = oracle.ours(BERT, tmp_path, output_loading_info=True)
    assert model.pooler is None
    assert "pooler" in info.absent
    outputs, given = model(**arguments(BERT)), arguments(BERT)
    assert outputs.pooler_output is None
    expected = oracle.run_torch(theirs.bert, given).last_hidden_state.numpy()
    error = np.abs(np.asarray(outputs.last_hidden_state) - expected)
    assert error[given["attention_mask"] == 1].max() < 2e-5


@pytest.mark.parametrize("name", [BERT, GPT2])
def test_no_format_in_the_metadata(name, tmp_path):
    oracle.saved(name, tmp_path)
    file = tmp_path / "model.safetensors"
    before = oracle.named_arrays(oracle.ours(name, tmp_path))
    save_file(load_file(file), file)
    after = oracle.named_arrays(oracle.ours(name, tmp_path))
    assert all((after[key] == array).all() for key, array in before.items())


@pytest.mark.parametrize("name", [BERT, GPT2])
def test_sharded_safetensors_in_and_out(name, tmp_path):
    oracle.torch_model(name).save_pretrained(tmp_path / "in", max_shard_size="20KB")
    model = oracle.ours(name, tmp_path / "in")
    model.save_pretrained(tmp_path / "out", max_shard_size="20KB")
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    assert not list((tmp_path / "out").glob("*.msgpack"))


@pytest.mark.parametrize("name", [BERT, GPT2])
def test_saving_over_the_source_loses_nothing(name, tmp_path):
    oracle.saved(name, tmp_path / "model")
    model = oracle.ours(name, tmp_path / "model")
    before = oracle.named_arrays(model)
    model.save_pretrained(tmp_path / "model", overwrite=True)
    after = oracle.named_arrays(oracle.ours(name, tmp_path / "model"))
    for key, array in before.items():
        assert array.any()
        np.testing.assert_array_equal(after[key], array)


@pytest.mark.slow
@pytest.mark.parametrize("name", [BERT, GPT2])
def test_a_loaded_model_does_not_drop(name, tmp_path):
    oracle.saved(name, tmp_path)
    model = oracle.ours(name, tmp_path)
    modules = [module for _, module in nnx.iter_modules(model)]
    assert all(getattr(module, "deterministic", True) for module in modules)
    np.testing.assert_array_equal(model([[5, 6]])[0], model([[5, 6]])[0])


@pytest.mark.slow
def test_left_padding_changes_nothing_where_positions_are_counted(tmp_path):
    oracle.saved(GPT2, tmp_path)
    with oracle.float64():
        model = oracle.ours(GPT2, tmp_path, param_dtype=jnp.float64)
        ids, mask = np.array([[0, 0, 0, 5, 6, 7]]), np.array([[0, 0, 0, 1, 1, 1]])
        alone = model(ids[:, 3:]).logits
        counted = model(ids, attention_mask=mask, position_ids=[[0, 0, 0, 0, 1, 2]]).logits
        plain = model(ids, attention_mask=mask).logits
    assert np.abs(counted[:, 3:] - alone).max() <= FLOAT64
    assert np.abs(plain[:, 3:] - alone).max() > 0.1


def test_a_layer_norm_of_numbers_far_from_zero():
    """The fast variance loses its digits there."""
    from minibert.nn.layers import LayerNorm

    rows = 300 + np.random.default_rng(0).normal(size=(64, 256))
    norm = LayerNorm(256, epsilon=1e-12, rngs=nnx.Rngs(0), dtype=None, param_dtype=jnp.float32)
    expected = (rows - rows.mean(-1, keepdims=True)) / rows.std(-1, keepdims=True)
    assert np.abs(np.asarray(norm(jnp.asarray(rows, jnp.float32))) - expected).max() < 2e-4


def test_a_file_of_another_family_is_refused(tmp_path):
    oracle.saved(GPT2, tmp_path)
    with pytest.raises(minibert.errors.ConfigError, match="expected 'bert', found 'gpt2'"):
        minibert.BertModel.from_pretrained(tmp_path)
