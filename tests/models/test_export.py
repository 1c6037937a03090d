"""A model's program for processes that have neither minibert nor Flax."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from minibert.errors import InputError
from minibert.models.compilation import compiled
from minibert.models.inputs import known_inputs
from tiny import drawn

IDS = np.arange(1, 22, dtype=np.int64).reshape(3, 7)
MASK = np.arange(7) < np.array([7, 5, 2])[:, None]


def single(name: str, **config: object):
    """A tiny model in float32."""
    with jax.enable_x64(True):
        model = drawn(name, **config)
    return jax.tree.map(lambda leaf: jax.numpy.asarray(np.float32(leaf)), model)


ALONE = """
import sys
import jax, jax.export
import numpy as np

given = dict(np.load(sys.argv[2]))
names = {"input_ids", "attention_mask", "token_type_ids"} & given.keys()
inputs = {name: given.pop(name) for name in names}
with open(sys.argv[1], "rb") as file:
    program = jax.export.deserialize(file.read())
for rows in (3, 2):
    cut = {name: array[:rows, : rows + 4] for name, array in inputs.items()}
    np.savez(f"{sys.argv[3]}-{rows}", **program.call(given, cut))
assert "minibert" not in sys.modules and "flax" not in sys.modules
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "BertModel",
        "GPT2LMHeadModel",
        "DistilBertForMaskedLM",
        "MPNetModel",
        "ElectraModel",
        "AlbertModel",
    ],
)
def test_exported_to_a_process_without_it(name, tmp_path):
    model = single(name)
    inputs = {"input_ids": IDS, "attention_mask": MASK, "token_type_ids": IDS % 2}
    inputs = {k: array.astype(np.int32) for k, array in known_inputs(model, inputs).items()}
    fast = compiled(model)
    program = fast.export(inputs=tuple(inputs), platforms=["cpu", "tpu"])
    assert program.platforms == ("cpu", "tpu")
    (tmp_path / "program").write_bytes(program.serialize())
    np.savez(tmp_path / "given.npz", **fast.parameters, **inputs)
    subprocess.run(
        [sys.executable, "-c", ALONE, tmp_path / "program", tmp_path / "given.npz", "out"],
        cwd=tmp_path,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        check=True,
    )
    for rows in (3, 2):  # sizes left open
        found = np.load(tmp_path / f"out-{rows}.npz")
        expected = model(**{name: array[:rows, : rows + 4] for name, array in inputs.items()})
        assert list(found) == [name for name in expected if name != "past_key_values"]
        for key in found:
            np.testing.assert_allclose(found[key], expected[key], atol=1e-5)


@pytest.mark.slow
def test_exported_with_options_and_sizes():
    fast = compiled(single("BertModel"))
    program = fast.export((3, 7), inputs=["input_ids"], output_hidden_states=True)
    assert [shape.shape for shape in program.in_avals[-1:]] == [(3, 7)]
    out = program.call(fast.parameters, {"input_ids": IDS.astype(np.int32)})
    states = fast(IDS, output_hidden_states=True).hidden_states
    for ours, theirs in zip(out["hidden_states"], states, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    with pytest.raises(ValueError, match="shape"):
        program.call(fast.parameters, {"input_ids": IDS[:2].astype(np.int32)})


@pytest.mark.slow
def test_exported_with_a_heads_own_option():
    fast = compiled(single("GPT2LMHeadModel"))
    program = fast.export(inputs=["input_ids"], logits_to_keep=np.int64(1))
    out = program.call(fast.parameters, {"input_ids": IDS.astype(np.int32)})
    np.testing.assert_allclose(out["logits"], fast(IDS).logits[:, -1:], atol=1e-5)
    with pytest.raises(InputError, match="use_cache: an exported program has no cache"):
        fast.export((2, 4), use_cache=True)


@pytest.mark.slow
@pytest.mark.parametrize("use_cache", [True, False])
def test_exported_with_positions_that_restart(use_cache):
    """An export computes what its model does with the same arguments."""
    fast = compiled(single("GPT2LMHeadModel", n_layer=1, use_cache=use_cache))
    inputs = {"input_ids": IDS[:1], "position_ids": np.array([[0, 1, 2, 0, 1, 0, 1]])}
    inputs = {name: array.astype(np.int32) for name, array in inputs.items()}
    found = fast.export((1, 7), inputs=tuple(inputs)).call(fast.parameters, inputs)["logits"]
    assert np.abs(found - fast(**inputs).logits).max() <= 1e-5
    for other in (True, False):  # a call's own word counts before the config's
        same = np.abs(found - fast.model(**inputs, use_cache=other).logits).max() <= 1e-5
        assert bool(same) is (other is use_cache)


def test_exported_as_it_was_compiled():
    model = single("BertModel")
    fast = compiled(model)
    model.train()  # with dropout, for which an export has no keys
    with jax.default_matmul_precision("highest"):
        program = fast.export((3, 7), inputs=["input_ids"])
    assert "HIGHEST" in program.mlir_module()
    assert "HIGHEST" not in fast.export((3, 7), inputs=["input_ids"]).mlir_module()
    out = program.call(fast.parameters, {"input_ids": IDS.astype(np.int32)})
    np.testing.assert_allclose(out["last_hidden_state"], fast(IDS).last_hidden_state, atol=1e-5)


def test_open_rows_need_padding():
    fast = compiled(single("GPT2ForSequenceClassification", pad_token_id=None))
    assert fast.export((1, "seq")).serialize()
    with pytest.raises(InputError, match=r"config\.pad_token_id"):
        fast.export()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"shape": ("batch",)},
            r"shape: expected sizes or names, such as \('?\"batch\"'?, 128\), found",
        ),
        ({"shape": "batch, seq"}, "shape: expected sizes or names"),
        ({"shape": (3, 0)}, "shape: expected sizes or names"),
        ({"shape": ("batch", "2 * seq")}, "shape: expected sizes or names"),
        ({"shape": (2, 41)}, "41 positions"),
        ({"shape": ("max", "seq")}, "shape: expected sizes or names"),
        ({"attention_mask": None}, "attention_mask: an array argument"),
        ({"head_mask": np.ones(2)}, "head_mask: expected a bool, an int or a string"),
        ({"output_atentions": True}, "output_atentions: not an argument of BertModel"),
        ({"use_cache": True}, "use_cache: an exported program has no cache"),
        ({"use_cache": "no"}, "use_cache: expected True or False, found 'no'"),
        ({"attention_mask": 1}, "attention_mask: an array argument; name it in inputs"),
        ({"rngs": 1}, "rngs: an exported program has no dropout"),
        ({"platforms": "cpu"}, "platforms: expected some of cpu, cuda, rocm, tpu; found 'cpu'"),
        ({"platforms": ["gpu"]}, r"platforms: expected some of .* found \['gpu'\]"),
        ({"platforms": []}, "platforms: expected some of"),
        ({"inputs": [["input_ids"]]}, "inputs: expected some of input_ids"),
        ({"inputs": []}, "inputs: expected some of input_ids"),
        ({"inputs": None}, "inputs: expected some of input_ids"),
        ({"inputs": "input_ids"}, "inputs: expected some of input_ids, attention_mask, token_type"),
        ({"inputs": ["input_ids", "head_mask"]}, "inputs: expected some of .* 'head_mask'"),
    ],
)
def test_exports_that_are_none(options, message):
    with pytest.raises(InputError, match=message):
        compiled(single("BertModel")).export(**options)
