"""BERT-base compiled for TPUs, on a machine without one.

XLA's TPU compiler is in PyPI's `libtpu`, and compiles for a TPU that is only described. Nothing is
run and no weight is made: a model built with `rngs=None` is a tree of shapes. The compiler runs in
a process of its own, since it prints a great deal and reads its settings when it is loaded; this
file is that process's program too: `python tests/models/test_tpu.py TOPOLOGY DTYPE`, `CLASS …`, or
`shared`.
"""

import importlib.util
import itertools
import json
import math
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

import minibert
from minibert.models.registry import FAMILIES

KINDS = {"v5e:2x2": "TPU v5 lite", "v5p:2x2x1": "TPU v5", "v6e:2x2": "TPU v6 lite"}
DTYPES = ("bfloat16", "float32")
BATCH, SEQ = 8, 128
BASE = minibert.BertConfig.base()
SHARED = minibert.AlbertConfig(  # widths that fill a TPU's tiles; all layers share one block
    vocab_size=1024, embedding_size=128, hidden_size=256, num_attention_heads=4,
    intermediate_size=512, num_hidden_layers=6,
)  # fmt: skip
SETTINGS = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",  # do not look for a TPU on the network
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no TPU is opened, so others may compile too
    "JAX_OPTIMIZATION_LEVEL": "O1",  # a fifth of the time; the default schedules memory better
}


@pytest.fixture(scope="module", params=itertools.product(KINDS, DTYPES), ids="-".join)
def compiled(request: pytest.FixtureRequest) -> dict:
    """Returns what `describe` reports of the compiled program, with its arguments."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs the package libtpu, which holds XLA's compiler for TPUs")
    topology, dtype = request.param
    return program(topology, dtype) | {"topology": topology, "dtype": dtype}


def program(*arguments: str) -> dict:
    """Returns what this file prints as a program."""
    root = str(pathlib.Path(minibert.__file__).parents[1])
    paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, __file__, *arguments],
        env=os.environ | SETTINGS | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_language_model_of_every_family_compiles():
    """With padding; the compiler counts at least the products of the layers' kernels."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs the package libtpu, which holds XLA's compiler for TPUs")
    tasks = [family.tasks for family in FAMILIES]
    classes = [one.get("fill-mask") or one["text-generation"] for one in tasks]
    found = program(*(cls.__name__ for cls in classes))
    assert found.keys() == {cls.__name__ for cls in classes}
    assert all(flops > 2 * BATCH * SEQ * 2 * 24 * (4 * 24 + 2 * 80) for flops in found.values())


@pytest.mark.slow
def test_it_is_a_program_for_that_tpu(compiled: dict):
    """By the device it is bound to, and by the tiles of 8 × 128 a TPU's memory is laid out in."""
    assert compiled["device_kind"] == KINDS[compiled["topology"]]
    assert "T(8,128)" in compiled["layout"]


@pytest.mark.slow
def test_it_does_the_work_of_the_matrix_products(compiled: dict):
    """And little else: everything elementwise adds less than 1 %.

    The compiler may put a kernel of its own in the place of a layer's softmax and the product that
    follows it; what a kernel does it does not count, so that product is added here.
    """
    assert compiled["kernels"] in (0, BASE.num_hidden_layers)
    weighted = 2 * BATCH * SEQ * SEQ * BASE.hidden_size
    done = compiled["flops"] + compiled["kernels"] * weighted
    assert 1.0 <= done / flops(BASE, BATCH, SEQ) <= 1.02


@pytest.mark.slow
def test_it_holds_the_weights_once(compiled: dict):
    """Arguments are the weights and ids, results the outputs, and scratch a few activations."""
    width = jnp.dtype(compiled["dtype"]).itemsize
    weights = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_bert("float32")))
    ids = 2 * BATCH * SEQ * 4
    outputs = BATCH * SEQ * BASE.hidden_size + BATCH * BASE.hidden_size
    assert weights == 109_482_240
    assert compiled["arguments"] == pytest.approx(weights * width + ids, rel=0.01)
    assert compiled["outputs"] == pytest.approx(outputs * width, rel=0.01)
    assert compiled["temporary"] <= 5 * BATCH * SEQ * BASE.intermediate_size * width


@pytest.mark.slow
def test_it_holds_the_weights_of_shared_layers_once():
    """ALBERT's: six layers of work, of the weights of one."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs the package libtpu, which holds XLA's compiler for TPUs")
    found = program("shared")
    weights = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_albert()))
    layer = 4 * SHARED.hidden_size**2 + 2 * SHARED.hidden_size * SHARED.intermediate_size
    assert weights < 2 * layer
    assert found["arguments"] == pytest.approx(4 * weights + 2 * BATCH * SEQ * 4, rel=0.01)
    assert found["flops"] > 2 * BATCH * SEQ * 6 * layer


@pytest.mark.slow
def test_every_entry_point_compiles():
    """Forward, texts to vectors (alone and in shared rows), generation, a step of training."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs the package libtpu, which holds XLA's compiler for TPUs")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.tpu", "--size", "tiny", "--chip", "v6e"],
        cwd=pathlib.Path(minibert.__file__).parents[1],
        env=os.environ | SETTINGS | {"COLUMNS": "140"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    entries = ("forward", "vectors of texts,", "share rows", "generation", "training step")
    for entry in entries:
        assert entry in done.stdout, done.stdout


def flops(config: minibert.BertConfig, batch: int, seq: int) -> int:
    """The floating-point operations of a forward pass's matrix products."""
    hidden, intermediate = config.hidden_size, config.intermediate_size
    projections = 4 * hidden * hidden + 2 * hidden * intermediate
    attention = 2 * seq * hidden  # scores, and the weighted sum of the values
    encoder = batch * seq * config.num_hidden_layers * (projections + attention)
    pooler = batch * hidden * hidden
    return 2 * (encoder + pooler)


def abstract_bert(dtype: str) -> minibert.BertModel:
    """BERT-base as a tree of shapes."""
    return minibert.BertModel(BASE, rngs=None, param_dtype=jnp.dtype(dtype)).eval()


def abstract_albert() -> minibert.AlbertModel:
    """ALBERT as a tree of shapes."""
    return minibert.AlbertModel(SHARED, rngs=None).eval()


def compiled_for(topology: str, model: object) -> jax.stages.Compiled:
    """Returns the forward pass of a tree of shapes, compiled for one chip of a described TPU."""
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    chip = SingleDeviceSharding(devices[0])
    ids = jax.ShapeDtypeStruct((BATCH, SEQ), np.int32)
    model, ids = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=chip), (model, ids)
    )
    forward = jax.jit(lambda model, ids, mask: model(ids, attention_mask=mask))
    return forward.trace(model, ids, ids).lower(lowering_platforms=("tpu",)).compile()


def operations(name: str) -> float:
    """Compiles a tiny model of a class, and returns how many operations it has."""
    cls = getattr(minibert, name)
    config = cls.config_class.tiny(max_position_embeddings=2 * SEQ)
    program = compiled_for("v6e:2x2", cls(config, rngs=None, param_dtype=jnp.float32).eval())
    return program.cost_analysis()["flops"]


def describe_shared() -> dict:
    """Compiles ALBERT, and returns its operations and the bytes of its arguments."""
    program = compiled_for("v6e:2x2", abstract_albert())
    arguments = program.memory_analysis().argument_size_in_bytes
    return {"flops": program.cost_analysis()["flops"], "arguments": arguments}


def describe(topology: str, dtype: str) -> dict:
    """Compiles BERT-base for one chip of a described TPU, and says what came of it."""
    program = compiled_for(topology, abstract_bert(dtype))
    (bound_to,) = jax.tree.leaves(program.output_shardings)[0].device_set
    memory = program.memory_analysis()
    text = program.as_text()
    return {
        "device_kind": bound_to.device_kind,
        "layout": text[:2000],
        "kernels": text.count('custom_call_target="tpu_custom_call"'),
        "flops": program.cost_analysis()["flops"],
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
    }


if __name__ == "__main__":
    given = sys.argv[1:]
    named = {name: operations(name) for name in given if hasattr(minibert, name)}
    found = describe_shared() if given == ["shared"] else named or describe(*given)
    sys.stdout.write(json.dumps(found) + "\n")
