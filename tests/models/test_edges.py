"""Corners that a careful reader found: arguments that disagree, empty batches, odd configs."""

import json
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import minibert
from minibert.checkpoint.loading import assemble
from minibert.checkpoint.tensors import ArraySource
from minibert.errors import (
    CheckpointMismatchError,
    ConfigError,
    InputError,
    SourceError,
    TargetError,
)

pytestmark = pytest.mark.unoptimised

DRAW = np.random.default_rng(0)


def tiny(cls=minibert.BertModel, **changes):
    return cls(minibert.BertConfig.tiny(**changes), rngs=nnx.Rngs(0)).eval()


@pytest.mark.parametrize(
    ("ids", "name", "shape"),
    [
        ((2, 3, 4), "attention_mask", (3, 2, 4)),
        ((2, 2, 4), "attention_mask", (4, 1, 4)),
        ((2, 3, 4), "token_type_ids", (6, 1, 4)),
        ((2, 3, 4), "position_ids", (1, 4)),
        ((2, 4), "input_ids", (2, 4)),
    ],
)
def test_choices_must_agree(ids, name, shape):
    given = {"input_ids": np.ones(ids, int)} | {name: np.ones(shape, int)}
    with pytest.raises(InputError, match=name):
        tiny(minibert.BertForMultipleChoice)(**given)


def test_choices_need_tokens():
    with pytest.raises(InputError, match="exactly one"):
        tiny(minibert.BertForMultipleChoice)()
    with pytest.raises(InputError, match="input_ids"):
        tiny(minibert.BertForMultipleChoice)([[[1, 2], [3]]])


@pytest.mark.parametrize("cls", [minibert.BertModel, minibert.BertForMaskedLM])
def test_an_empty_batch_returns_an_empty_answer(cls):
    assert tiny(cls)(np.zeros((0, 4), int))[0].shape[:2] == (0, 4)
    choices = tiny(minibert.BertForMultipleChoice)(np.zeros((0, 3, 4), int))
    assert choices.logits.shape == (0, 3)


def test_outputs_are_mappings():
    out = tiny()(np.ones((1, 4), int), output_hidden_states=True)
    assert list(out) == ["last_hidden_state", "pooler_output", "hidden_states"]
    assert len(out) == 3
    assert "pooler_output" in out
    assert "attentions" not in out
    assert dict(out.items())["pooler_output"] is out.pooler_output
    with pytest.raises(KeyError):
        out["attentions"]
    doubled = jax.tree.map(lambda x: 2 * x, out)
    np.testing.assert_array_equal(doubled[1], 2 * out.pooler_output)


def test_embeddings_are_called_as_in_pytorch():
    bert, ids = tiny(), DRAW.integers(0, 97, (2, 5))
    states = bert(ids, output_hidden_states=True).hidden_states
    np.testing.assert_array_equal(bert.embeddings(jnp.asarray(ids)), states[0])


@pytest.mark.parametrize("architectures", [[["x"]], [{}], {"x": 1}, ["BertFor"], [3]])
def test_odd_architectures_are_named(architectures, tmp_path):
    tiny().save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": architectures}))
    with pytest.raises(ConfigError, match="architectures"):
        minibert.load(tmp_path / "model")


def test_a_class_that_nothing_determines(tmp_path):
    """Neither `architectures` nor tensors: a head of two classes, or another family's model."""
    tiny(minibert.BertForPreTraining).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    del config["architectures"]
    path.write_text(json.dumps(config | {"model_type": "t5"}))
    with pytest.raises(ConfigError, match=r"model_type: expected 'bert' or .*, found 't5'"):
        minibert.load(tmp_path)
    path.write_text(json.dumps(config))
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["qa_outputs.bias"] = np.zeros(2, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(SourceError, match="no architectures, and the tensors do not determine"):
        minibert.load(tmp_path)


def test_label2id_alone_survives(tmp_path):
    config = minibert.BertConfig.tiny(label2id={"NEG": 0, "POS": 1})
    minibert.BertModel(config, rngs=nnx.Rngs(0)).save_pretrained(tmp_path / "model")
    assert minibert.load(tmp_path / "model").config.label2id == {"NEG": 0, "POS": 1}


def test_what_no_load_would_accept_is_not_saved(tmp_path):
    bert = tiny()
    bert.pooler.dense.bias[...] = bert.pooler.dense.bias[...].at[3].set(jnp.nan)
    with pytest.raises(TargetError, match=r"pooler\.dense\.bias"):
        bert.save_pretrained(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_new_labels_excuse_no_other_shape(tmp_path):
    tiny().save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    damaged = {"pooler.dense.weight": np.ones((24, 30), np.float32)}
    save_file(load_file(file) | damaged, file)
    with pytest.raises(CheckpointMismatchError, match="pooler"):
        minibert.BertForSequenceClassification.from_pretrained(
            tmp_path / "model", num_labels=3, new_head=True, rngs=nnx.Rngs(0)
        )


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"dtype": "foo"}, "dtype"),
        ({"dtype": "int32"}, "dtype"),
        ({"param_dtype": jnp.float8_e4m3fn}, "param_dtype"),
        ({"param_dtype": "complex64"}, "param_dtype"),
    ],
)
def test_dtypes_are_checked(options, name, tmp_path):
    tiny().save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match=name):
        minibert.load(tmp_path / "model", **options)


def test_arrays_in_memory_are_let_go_of_as_they_are_read():
    """A source that is in memory and the model it fills are never both whole."""
    model = tiny(vocab_size=4000, hidden_size=240)
    arrays = {f"bert.{n}": a.copy() for n, a in _named(model).items()}
    whole = sum(array.nbytes for array in arrays.values())
    source = ArraySource(arrays, "memory")
    del arrays
    tracemalloc.start()
    assemble(minibert.BertModel, model.config, source, "memory")
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert not source.arrays
    assert held < 1.2 * whole


def _named(model) -> dict[str, np.ndarray]:
    from minibert.checkpoint.saving import file_leaves

    return {name: leaf.to_file() for name, leaf in file_leaves(model).items()}


@pytest.mark.parametrize("axes", [("data",), ("data", "model")])
def test_saves_what_lies_on_several_devices(axes, tmp_path):
    devices = np.array(jax.devices()[:1]).reshape((1,) * len(axes))
    mesh = jax.sharding.Mesh(devices, axes)
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    model = tiny()
    placed = jax.device_put(model, everywhere)
    placed.save_pretrained(tmp_path / "model")
    again = minibert.load(tmp_path / "model")
    for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(model), strict=True):
        np.testing.assert_array_equal(one, other)
