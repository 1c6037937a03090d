"""The plan for many TPUs: how it reads programs, its rooflines, and a row for real."""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import minibert
from benchmarks import scale
from benchmarks.hlo_costs import Program
from benchmarks.scale_rows import described, faults, mesh_sizes, requested_bytes
from benchmarks.scale_step import with_scan
from minibert.errors import InputError
from minibert.sharding.mesh import Sharding

# five turns (0, 2, … below 9) of: a gather of 8 × 4 in bfloat16 from four devices, said twice, as
# its start and its end are; a product of 8 × 4 and 4 × 16. After them an all-reduce of which each
# device keeps a part, a product as a convolution, and a slice of an array in HBM.
PROGRAM = """\
HloModule jit_step, is_scheduled=true, num_partitions=4

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add.9 = f32[] add(%a, %b)
}

%start (p: bf16[2,4]) -> bf16[8,4] {
  %p = bf16[2,4]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.1 = bf16[8,4]{1,0} all-gather(%p), channel_id=7, replica_groups=[1,4]<=[4]
}

%all-reduce-scatter (q: f32[8,16]) -> f32[2,16] {
  %q = f32[8,16]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %all-reduce = f32[8,16]{1,0} all-reduce(%q), channel_id=8, replica_groups={{0,1,2,3}}, \
to_apply=%sum
  ROOT %part = f32[2,16]{1,0} dynamic-slice(%all-reduce, %zero, %zero), dynamic_slice_sizes={2,16}
}

%cond (s: (s32[], bf16[2,4])) -> pred[] {
  %s = (s32[]{:T(128)}, bf16[2,4]{1,0}) parameter(0)
  %limit = s32[] constant(9)
  %i = s32[] get-tuple-element(%s), index=0
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%body (t: (s32[], bf16[2,4])) -> (s32[], bf16[2,4]) {
  %t = (s32[]{:T(128)}, bf16[2,4]{1,0}) parameter(0)
  %two = s32[] constant(2)
  %j = s32[] get-tuple-element(%t), index=0
  %x = bf16[2,4]{1,0} get-tuple-element(%t), index=1
  %next = s32[] add(%j, %two), metadata={op_name="jit(step)/add"}
  %fusion.1 = bf16[8,4]{1,0:S(1)} fusion(%x), kind=kCustom, calls=%start
  %again = bf16[8,4]{1,0:S(1)} fusion(%x), kind=kCustom, calls=%start
  %w = bf16[4,16]{1,0:T(8,128)S(1)} constant({...})
  %dot = f32[8,16]{1,0:S(1)} dot(%fusion.1, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %out = (s32[], bf16[2,4]{1,0}) tuple(%next, %x)
}

ENTRY %main (arg: bf16[2,4], n: s32[]) -> f32[2,16] {
  %arg = bf16[2,4]{1,0} parameter(0), sharding={replicated}
  %n = s32[] parameter(1)
  %first = s32[] constant(0)
  %copied = s32[] copy(%first)
  %init = (s32[], bf16[2,4]{1,0}) tuple(%copied, %arg)
  %loop = (s32[], bf16[2,4]{1,0}) while(%init), condition=%cond, body=%body
  %k = f32[3,5,6]{2,1,0:S(1)} constant({...})
  %l = f32[3,5,7]{2,1,0:S(1)} constant({...})
  %conv = f32[3,6,7]{2,1,0:S(1)} convolution(%k, %l), window={size=3 stride=2 lhs_dilate=3}, \
dim_labels=0fb_0io->0bf
  %big = f32[8,16]{1,0} broadcast(%first), dimensions={}
  ROOT %kept = f32[2,16]{1,0} fusion(%big), kind=kCustom, calls=%all-reduce-scatter
}
"""


def test_reads_loops_and_what_is_in_them():
    program = Program(PROGRAM)
    assert program.devices == 4
    assert program.times["body"] == 5
    assert program.fused == {"start", "all-reduce-scatter"}
    assert program.argument_bytes == 2 * 4 * 2  # not the single number


def test_counts_collectives_as_often_as_they_run():
    gather, scatter = sorted(Program(PROGRAM).collectives, key=lambda found: found.kind)
    assert (gather.kind, gather.times, gather.bytes, gather.largest) == ("all-gather", 10, 64, 64)
    assert (scatter.kind, scatter.times, scatter.bytes) == ("reduce-scatter", 1, 8 * 16 * 4)
    assert gather.groups == scatter.groups == [[0, 1, 2, 3]]
    assert gather.sent == 64 * 3 / 4


def test_counts_products():
    batched = 3 * (6 * 5 * 7)  # a convolution whose window picks each batch's own matrix
    assert Program(PROGRAM).flops == 2 * (5 * (8 * 4 * 16) + batched)


@pytest.mark.parametrize(
    ("said", "groups"),
    [
        ("replica_groups={{0,2},{1,3}}", [[0, 2], [1, 3]]),
        ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", [[0, 1, 2, 3]]),
        ("replica_groups={}", [[0, 1, 2, 3]]),
    ],
)
def test_reads_groups(said: str, groups: list):
    text = PROGRAM.replace("replica_groups=[1,4]<=[4]", said)
    found = next(each for each in Program(text).collectives if each.kind == "all-gather")
    assert found.groups == groups


def test_a_permutation_links_its_pairs():
    pairs = "collective-permute(%p), channel_id=7, source_target_pairs={{0,1},{1,0},{2,3},{3,2}}"
    text = PROGRAM.replace("all-gather(%p), channel_id=7, replica_groups=[1,4]<=[4]", pairs)
    found = next(each for each in Program(text).collectives if each.kind == "collective-permute")
    assert (found.groups, found.sent) == ([[0, 1], [2, 3]], 16)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("direction=LT", "direction=NE", "cannot read the end of the loop"),
        ("add(%j, %two)", "multiply(%j, %two)", "cannot read the counter of the loop"),
        ("copy(%first)", "add(%n, %n)", "cannot read the counter of the loop"),
        ("replica_groups=[1,4]<=[4]", "replica_groups=new", "groups that cannot be read"),
    ],
)
def test_refuses_what_it_cannot_read(old: str, new: str, message: str):
    with pytest.raises(ValueError, match=message):
        assert Program(PROGRAM.replace(old, new)).collectives


def test_reads_a_program_of_this_machine():
    """XLA's own count of a program without loops, and the loop's turns in one with."""
    weights = jnp.ones((3, 16, 16))
    plain: Any = jax.jit(lambda x: x @ x).lower(jnp.ones((16, 16))).compile()
    loop = jax.jit(lambda x, w: jax.lax.scan(lambda h, k: (jnp.sin(h @ k), None), x, w)[0])
    looped: Any = loop.lower(jnp.ones((16, 16)), weights).compile()
    cost = plain.cost_analysis()
    assert Program(plain.as_text()).flops == (cost[0] if isinstance(cost, list) else cost)["flops"]
    assert Program(looped.as_text()).flops == 3 * 2 * 16**3


def test_reads_meshes():
    assert mesh_sizes("data=2,fsdp=64x4,tensor=8") == {"data": 2, "fsdp": (64, 4), "tensor": 8}
    assert mesh_sizes("tensor=4") == {"data": 1, "tensor": 4}
    for wrong in ("fsdp", "fsdp=x", "data=2x2", "pipe=4", ""):
        with pytest.raises(InputError, match="mesh: expected such as"):
            mesh_sizes(wrong)


def test_plans():
    given = argparse.Namespace(model="gpt2-xl", topology=None, mesh=None)
    assert {model for model, *_ in scale.plan(given)} == {"gpt2-xl"}
    given = argparse.Namespace(model=None, topology="v5e:2x2", mesh="fsdp=4")
    assert scale.plan(given) == [("gpt2-xl", "v5e:2x2", "fsdp=4")]
    given = argparse.Namespace(model=None, topology="v5e:2x2", mesh=None)
    with pytest.raises(SystemExit, match="expected both"):
        scale.plan(given)
    given = argparse.Namespace(model="gpt2", topology=None, mesh=None)
    with pytest.raises(SystemExit, match="not in the table"):
        scale.plan(given)


ROW = {
    "model": "m",
    "topology": "v5e:2x2",
    "mesh": "fsdp=4",
    "fits": True,
    "even_bytes": 1000.0,
    "predicted_bytes": 1010,
    "argument_bytes": 1110,
    "batch_bytes": 100,
    "largest_tensor": 50,
    "partial": [{"extra_bytes": 10}],
    "collectives": {"all-gather": {"largest": 50}},
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"argument_bytes": 1111}, "a device holds 1011 bytes, not 1010"),
        ({"partial": []}, "stores 1010 bytes, not 1000"),
        ({"collectives": {"all-gather": {"largest": 51}}}, "all-gather of 51 bytes at once"),
        ({"fits": False, "argument_bytes": None}, None),
    ],
)
def test_judges(changes: dict, message: str | None):
    found = faults(ROW | changes)
    assert len(found) == (message is not None)
    assert message is None or message in found[0]


def test_what_does_not_fit_is_shown():
    """Both ways that XLA has of saying so."""
    plain = "Ran out of memory in memory space hbm. Used 21.60G of 15.75G hbm. Exceeded by"
    assert requested_bytes(plain) == 21.6 * 2**30
    message = "the total memory required for HLO temporaries (33.46G) exceeds available HBM"
    row = ROW | {"fits": False, "peak": requested_bytes(message), "limit": 16e9}
    assert faults(row) == []
    row |= {"parameters": 1e6, "batch": 1, "seq": 8, "parts": 1}
    table = scale.steps("m", [row])
    cells = [next(iter(column.cells)) for column in table.columns]
    assert cells[5:7] == ["≥ 33.5 GiB", "225%"]
    with pytest.raises(RuntimeError, match="something else"):
        requested_bytes("something else")


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        minibert.GPT2LMHeadModel(minibert.GPT2Config.tiny(), rngs=nnx.Rngs(0)),
        minibert.BertForMaskedLM(minibert.BertConfig.tiny(), rngs=nnx.Rngs(0)),
    ],
    ids=["gpt2", "bert"],
)
def test_scanned_blocks_give_the_same_numbers(model):
    ids, rngs = np.arange(22).reshape(2, 11), nnx.Rngs(dropout=0)
    plain = model.eval()(ids).logits
    leaves, treedef = jax.tree.flatten(model)
    sharding = Sharding.of_devices(devices=jax.devices()[:1]).for_model(model)
    scanned = with_scan(sharding, jax.tree.unflatten(treedef, leaves))
    np.testing.assert_allclose(scanned(ids, rngs=rngs).logits, plain, atol=1e-5)


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.scale", *arguments],
        cwd=os.path.dirname(os.path.dirname(scale.__file__)),
        capture_output=True,
        text=True,
        timeout=900,
    )


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="needs the package libtpu, which holds XLA's compiler for TPUs",
)


@pytest.mark.slow
@needs_libtpu
def test_compiles_a_row(tmp_path):
    path = tmp_path / "rows.json"
    wanted = ("--model", "gpt2-tiny", "--topology", "v5e:2x2", "--mesh", "fsdp=4")
    done = run(*wanted, "--json", str(path))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "gpt2-tiny: collectives" in done.stdout
    (row,) = json.loads(path.read_text())
    model = minibert.GPT2LMHeadModel(minibert.GPT2Config.tiny(), rngs=None)
    head = 97 * 24  # tied
    assert row["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(model)) - head
    assert row["partial"] == []  # 24 can be split in four
    assert row["predicted_bytes"] == 3 * 4 * row["parameters"] / 4
    assert row["argument_bytes"] == row["predicted_bytes"] + row["batch_bytes"]
    assert row["collectives"]["all-gather"]["largest"] <= row["largest_tensor"]
    assert 0 < max(row["least_seconds"].values()) < 1e-3


@needs_libtpu
def test_refuses_unknown_topologies():
    with pytest.raises(InputError, match="topology: expected v5e, v6e, v5p and a shape"):
        described("h100:8")


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_says_what_it_needs():
    done = run("--model", "gpt2-tiny", "--topology", "v5e:2x2", "--mesh", "fsdp=4")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "pip install" in done.stderr
