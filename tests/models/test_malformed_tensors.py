"""Tensors that do not correspond with the model, one to one: every fault is found and named."""

import jax.numpy as jnp
import numpy as np
import pytest

from malformed import (
    FINITE,
    add,
    edit_json,
    edit_tensors,
    load,
    refused,
)
from minibert.errors import CheckpointMismatchError, ConfigError, InputError

pytestmark = pytest.mark.unoptimised

WORDS = "embeddings.word_embeddings.weight"


def test_no_tensor_at_all(folder):
    edit_tensors(folder, lambda tensors: tensors.clear())
    said = (
        "num_hidden_layers: expected at most the number of tensors in the checkpoint, 0, found 2",
    )
    refused(ConfigError, said, lambda: load(folder))


def test_many_faults_are_counted_and_twenty_shown(folder):
    many = {f"x{i}": np.ones(i + 1, np.float32) for i in range(100)}
    edit_tensors(folder, lambda tensors: tensors.update(many))
    error = refused(
        CheckpointMismatchError, ("100 faults", "… and 80 more …"), lambda: load(folder)
    )
    assert len(error.faults) == 100


def test_of_many_faults_every_reason_is_shown(folder):
    """A config of another width: not the names of all tensors, but each shape that differs."""
    edit_json(folder / "config.json", lambda config: config.update(hidden_size=48))
    said = [f"expected shape {s}, found {o}" for s, o in (((48,), (24,)), ((48, 48), (24, 24)))]
    said += ["expected shape (97, 48), found (97, 24)", "more like it)"]
    error = refused(CheckpointMismatchError, tuple(said), lambda: load(folder))
    assert len(error.faults) > 20
    assert "more …" not in str(error)


def test_buffers_are_ignored_with_a_reason(folder):
    edit_tensors(folder, add("embeddings.position_ids", np.arange(40)[None]))
    _, info = load(folder, output_loading_info=True)
    assert info.ignored == {"embeddings.position_ids": "0, 1, 2, …, which are computed"}


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bool_, "int8", "floaty"])
@pytest.mark.parametrize("argument", ["dtype", "param_dtype"])
def test_dtype_that_is_not_floating(argument, dtype, pristine):
    said = (f"{argument}: expected a floating-point type", "found")
    refused(InputError, said, lambda: load(pristine.folder(), **{argument: dtype}))


UP = "encoder.layer.0.intermediate.dense.weight"
WIDE = 12_345  # rows of 24 numbers: more than two of the blocks a tensor is read by


def widen(folder):
    """Two tensors of several blocks, one of which is transposed; their numbers."""
    draw = np.random.default_rng(0)
    big = {name: draw.normal(size=(WIDE, 24)).astype(np.float32) for name in (WORDS, UP)}

    def change(tensors):
        for layer in range(2):
            tensors[UP.replace("0", str(layer))] = big[UP]
            tensors[f"encoder.layer.{layer}.intermediate.dense.bias"] = np.zeros(WIDE, np.float32)
            tensors[f"encoder.layer.{layer}.output.dense.weight"] = big[UP].T.copy()
        tensors[WORDS] = big[WORDS]

    edit_tensors(folder, change)
    sizes = {"vocab_size": WIDE, "intermediate_size": WIDE}
    edit_json(folder / "config.json", lambda config: config.update(sizes))
    return big


def test_tensors_of_several_blocks(folder):
    big = widen(folder)
    model = load(folder)
    np.testing.assert_array_equal(model.embeddings.word_embeddings.embedding[...], big[WORDS])
    for layer in model.encoder.layer:
        np.testing.assert_array_equal(layer.intermediate.dense.kernel[...], big[UP].T)
        np.testing.assert_array_equal(layer.output.dense.kernel[...], big[UP])


@pytest.mark.parametrize("place", [0, WIDE // 2, WIDE - 1])
@pytest.mark.parametrize("name", [WORDS, UP, "encoder.layer.1.output.dense.weight"])
def test_one_bad_number_in_any_block(name, place, folder):
    widen(folder)

    def spoil(value):
        def change(tensors):
            rows = tensors[name] if tensors[name].shape[0] == WIDE else tensors[name].T
            rows[place, -1] = value

        return change

    edit_tensors(folder, spoil(np.nan))
    refused(CheckpointMismatchError, (name, FINITE), lambda: load(folder))
    edit_tensors(folder, spoil(7e4))
    said = (name, "expected numbers that fit in param_dtype float16")
    refused(CheckpointMismatchError, said, lambda: load(folder, param_dtype=np.float16))
    assert load(folder).pooler is not None
