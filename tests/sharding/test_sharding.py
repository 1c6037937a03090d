"""Training and loading over eight devices: numbers, bytes, programs, refusals."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

import minibert
import sharded
from checkout import PYTHONPATH
from conftest import FLOAT64
from forked import Forked
from minibert.errors import InputError
from minibert.nn.tree import parameters
from minibert.sharding.mesh import Sharding
from minibert.sharding.placement import check_table
from slowly import slow_but

FLAGS = "--xla_force_host_platform_device_count={} --xla_backend_optimization_level=0"


def environment(devices):
    """For a process of its own, with that many devices."""
    return os.environ | {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {FLAGS.format(devices)}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": PYTHONPATH,
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }


def python(*arguments, devices=8):
    """What a Python with that many devices prints, as JSON."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, env=environment(devices), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def start(jobs, *process, devices=8):
    """A process with that many devices that trains, one job after the other."""
    flags = environment(devices)["XLA_FLAGS"]
    return Forked(sharded.main, json.dumps(jobs), *process, XLA_FLAGS=flags)


def finished(process):
    """What it found, job by job."""
    printed = process.communicate(timeout=900)
    assert process.poll() == 0, printed[-3000:]
    return json.loads(printed.splitlines()[-1])  # gloo speaks first


def trained(jobs, devices=8):
    """What jobs find in one process."""
    return finished(start(jobs, devices=devices))


def check_equal(alone, together):
    distance = np.abs(np.subtract(together["losses"], alone["losses"])).max()
    assert distance <= FLOAT64
    assert abs(together["evaluation"] - alone["evaluation"]) <= FLOAT64
    assert abs(together.get("few", alone["few"]) - alone["few"]) <= FLOAT64
    for path, total in alone["sums"].items():
        assert abs(together["sums"][path] - total) <= FLOAT64 * 1000, path
    assert together["bytes"] == together["said"]


MIX = {"data": 2, "fsdp": 2, "tensor": 2}
MESHES = [{"data": 8}, {"fsdp": 8}, {"data": 2, "tensor": 4}, {"fsdp": [2, 2], "tensor": 2}]


@pytest.mark.parametrize(
    "family",
    slow_but(["gpt2", "bert", "xlm-roberta", "distilbert", "mpnet", "electra", "albert"], "gpt2"),
)
def test_a_mix_has_the_losses_of_one_device(family):
    jobs = [{"family": family, "sizes": sizes, "dropout": 0.1} for sizes in (None, MIX)]
    alone, mixed = trained(jobs)
    check_equal(alone, mixed)
    # nothing is gathered or summed that is larger than a device's tensor-parallel part of a tensor
    assert mixed["moved"] <= mixed["largest"] / MIX["tensor"]
    assert mixed["bytes"] <= 1.01 * mixed["whole"] / 4
    assert mixed["state_bytes"] <= 1.01 * alone["state_bytes"] / 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "layers"), [("gpt2", 1), ("bert", 1), ("distilbert", 1), ("albert", 2)]
)
def test_every_mesh_has_the_losses_of_one_device(family, layers, capsys):
    job = {"family": family, "layers": layers, "dropout": 0.1}
    jobs = [job | {"sizes": sizes} for sizes in (None, *MESHES)]
    alone, *found = trained(jobs)
    for sizes, together in zip(MESHES, found, strict=True):
        check_equal(alone, together)
        shares = np.prod([np.prod(sizes.get(axis, 1)) for axis in ("fsdp", "tensor")])
        with capsys.disabled():
            parts = f"{together['bytes']} of {together['whole']} bytes of parameters a device"
            sys.stdout.write(f"\n{family} {sizes}: {parts}, 1/{shares} expected")
        assert together["bytes"] <= 1.01 * together["whole"] / shares


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_sizes_that_nothing_divides(family):
    """And accumulation and rematerialisation, which the rest is done without."""
    job = {"family": family, "layers": 1, "even": False, "dropout": 0.1, "accumulate": 2}
    shared = job | {"sizes": {"fsdp": [2, 2], "tensor": 2}, "remat": True}
    alone, together = trained([job | {"sizes": None}, shared])
    check_equal(alone, together)
    named = {entry[0]: entry for entry in together["partial"]}
    table = next(
        path for path in named if path.endswith(("wte.embedding", "word_embeddings.embedding"))
    )
    assert named[table][2] == 2  # 61 × 30: one axis of two, the others divide nothing
    extra = sum(entry[3] for entry in named.values())
    assert abs(together["whole"] / 8 + extra - together["bytes"]) <= len(together["sums"])


PLANTED = """
import json, sys, jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
import sharded
import minibert.train.trainer as module
from minibert.sharding.mesh import Sharding

def found():
    trained = sharded.trainer("gpt2", dict(data=2, tensor=4), rules=RULES)
    return sharded.program(trained) | {"losses": sharded.losses(trained, 2)}

RULES = None
with jax.enable_x64(True):
    right = found()
    RULES = {"*attn.c_attn.kernel": (None, "heads"), "*attn.c_attn.bias": ("heads",)}
    contiguous = found()
    RULES = None
    Sharding.rows = ()
    replicated = found()

    def each_its_own(sharding, given):
        '''Every device takes its rows for the whole batch.'''
        def lie(array):
            split = jax.device_put(array, NamedSharding(sharding.mesh, PartitionSpec("data")))
            parts = [part.data for part in split.addressable_shards]
            shape, where = parts[0].shape, sharding.everywhere
            return jax.make_array_from_single_device_arrays(shape, where, parts)
        return {name: lie(array) for name, array in given.items()}

    module.put_batch = each_its_own
    unreduced = found()
sys.stdout.write(json.dumps([right, contiguous, replicated, unreduced]))
"""


def test_planted_mistakes_are_seen():
    right, contiguous, replicated, unreduced = python("-c", PLANTED)
    alone = trained([{"family": "gpt2", "sizes": None}])[0]["losses"][:2]
    assert np.abs(np.subtract(right["losses"], alone)).max() <= FLOAT64
    assert np.abs(np.subtract(unreduced["losses"], alone)).max() > 1000 * FLOAT64
    # the partitioner keeps numbers right whatever the rules: what is wrong there is what it costs
    assert sum(contiguous["made"].values()) > 1.1 * sum(right["made"].values())
    assert replicated["flops"] > 1.5 * right["flops"]


LOADED = """
import json, re, sys
import jax, numpy as np
import minibert
from minibert.nn.tree import parameters
from minibert.sharding.mesh import Sharding

def memory(name):
    with open("/proc/self/status") as file:
        return 1024 * int(re.search(rf"{name}:\\s+(\\d+)", file.read())[1])

sharding = Sharding.of_devices(fsdp=4, tensor=2)
jax.block_until_ready(jax.device_put(np.ones(8), sharding.everywhere))
before = memory("VmRSS")
model = minibert.GPT2LMHeadModel.from_pretrained(sys.argv[1], sharding=sharding)
jax.block_until_ready(model)
peak = memory("VmHWM")
arrays = parameters(model)
parts = {p: a.nbytes / a.addressable_shards[0].data.nbytes for p, a in arrays.items()}
plain = parameters(minibert.GPT2LMHeadModel.from_pretrained(sys.argv[1]))
same = all(np.array_equal(np.asarray(a), np.asarray(plain[p])) for p, a in arrays.items())
model.save_pretrained(sys.argv[2])
whole = sum(a.nbytes for a in arrays.values())
largest = max(a.nbytes for a in arrays.values())
sys.stdout.write(json.dumps(
    dict(peak=peak - before, whole=whole, largest=largest, least=min(parts.values()), same=same)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_puts_only_parts_on_devices(tmp_path):
    config = minibert.GPT2Config(n_embd=512, n_head=8, n_layer=8, vocab_size=20000)
    write_random(config, tmp_path / "model")
    found = python("-c", LOADED, tmp_path / "model", tmp_path / "again")
    assert found["same"]
    assert found["least"] == 8
    # all eight devices are in this host's memory: beyond their parts, one tensor is read at a time
    assert found["peak"] <= found["whole"] + 2 * found["largest"] + (32 << 20), found
    ours, theirs = (tmp_path / n / "model.safetensors" for n in ("model", "again"))
    assert ours.stat().st_size == pytest.approx(theirs.stat().st_size, rel=1e-3)


def write_random(config, folder):
    """A checkpoint of random numbers, written without a model of them."""
    from safetensors.numpy import save_file

    from minibert.checkpoint.saving import file_leaves

    folder.mkdir()
    random = np.random.default_rng(0)
    model = minibert.GPT2LMHeadModel(config, rngs=None)
    shapes = {name: leaf.shape_in("torch") for name, leaf in file_leaves(model).items()}
    shapes.pop("lm_head.weight", None)
    tensors = {name: random.random(shape, np.float32) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config.to_dict()))


def one(**options):
    return Sharding.of_devices(devices=jax.devices()[:1], **options)


def test_refusals():
    with pytest.raises(
        InputError, match=r"fsdp × tensor: .* number of devices, 1, found 2 × 3 = 6"
    ):
        one(data=1, fsdp=2, tensor=3)
    with pytest.raises(InputError, match="data: expected 1, the remaining devices, found 2"):
        one(data=2)
    with pytest.raises(InputError, match="fsdp: expected a whole number of at least 1, found '8'"):
        one(fsdp="8")
    with pytest.raises(InputError, match="number of devices, 0"):
        Sharding.of_devices(devices=[])
    mesh = Mesh(np.array(jax.devices()[:1]), ("rows",))
    with pytest.raises(InputError, match=r"each of its axes .'rows'"):
        Sharding(mesh, data=("data",))
    with pytest.raises(InputError, match="each of its axes"):
        Sharding(mesh, data=("rows",), fsdp=("rows",))
    for rule in (
        ("columns", None),
        "heads",
        5,
        (None, 0, "heads"),
        (2, "heads", 3, None),
        ("heads", "features"),
        (None, 3),
    ):
        with pytest.raises(InputError, match=r"'heads', 'features' or None for each dimension"):
            one(rules={"*.kernel": rule})
    with pytest.raises(InputError, match="rules: expected dimensions by pattern"):
        one(rules=["*.kernel"])
    model = minibert.BertModel(minibert.BertConfig.tiny(), rngs=None)
    with pytest.raises(InputError, match=r"rules: '\*query.weight' matches no parameter"):
        one(rules={"*query.weight": (None, "heads")}).for_model(model)
    with pytest.raises(
        InputError, match=r"'\*query.kernel': expected a rule that fits .*query.kernel, of"
    ):
        one(rules={"*query.kernel": ("heads",)}).for_model(model)
    with pytest.raises(
        InputError, match=r"'\*query.kernel': expected a rule that fits .*, of shape .24, 24"
    ):
        one(rules={"*query.kernel": (None, 5, "heads")}).for_model(model)
    gpt2 = minibert.GPT2Model(minibert.GPT2Config.tiny(n_embd=24, n_head=4), rngs=None)
    mesh = AbstractMesh((2,), ("tensor",))
    alone = Sharding(mesh, tensor=("tensor",), rules={"*attn.c_attn.kernel": (None, "heads")})
    with pytest.raises(
        InputError, match=r"c_attn.kernel would be stored as .24, 72., but its bias as"
    ):
        alone.for_model(gpt2)


def test_shares_are_compared():
    """Each process's share, the checksum of its rows, and their number."""
    check_table([[0, 5, 8], [0, 5, 8], [1, 7, 8], [1, 7, 8]], 2)
    check_table([[0, 2**31 - 1, 8], [1, 7, 8]], 2)
    with pytest.raises(InputError, match="processes 2 and 3, which both have share 1 of 2"):
        check_table([[0, 5, 8], [0, 5, 8], [1, 7, 8], [1, 6, 8]], 2)
    with pytest.raises(InputError, match=r"the same number of rows in all processes, found .8, 4."):
        check_table([[0, 5, 8], [1, 7, 4]], 2)


def described(model, **sizes):
    """A sharding over devices that are not there."""
    fsdp = tuple(name for name in sizes if name.startswith("fsdp"))
    mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes))
    tensor = tuple(name for name in sizes if name == "tensor")
    return Sharding(mesh, fsdp=fsdp, tensor=tensor).for_model(model)


def test_gpt2_xl_over_256_devices():
    config = minibert.GPT2Config(n_embd=1600, n_head=25, n_layer=1)
    model = minibert.GPT2LMHeadModel(config, rngs=None)
    arrays = {path.removeprefix("transformer."): a for path, a in parameters(model).items()}
    two = described(model, fsdp=16, fsdp1=16)
    assert two.spec("h.0.attn.c_proj.kernel", (1600, 1600)) == PartitionSpec("fsdp", "fsdp1")
    assert two.spec("h.0.mlp.c_fc.kernel", (1600, 6400)) == PartitionSpec(None, ("fsdp", "fsdp1"))
    assert two.spec("wpe.embedding", (1024, 1600)) == PartitionSpec(("fsdp", "fsdp1"), None)
    once = [PartitionSpec(None, axis) for axis in ("fsdp", "fsdp1")]
    assert two.spec("wte.embedding", (50257, 1600)) in once
    partial = {entry.path: entry for entry in two.partial(arrays)}
    assert {"wte.embedding", "h.0.ln_1.scale"} <= partial.keys()
    assert not {"h.0.mlp.c_fc.kernel", "h.0.attn.c_attn.kernel"} & partial.keys()
    table = 50257 * 1600 * 4
    assert partial["wte.embedding"].extra_bytes == table // 16 - table // 256


def test_tensor_rules():
    config = minibert.GPT2Config(n_embd=1600, n_head=25, n_layer=1)
    model = minibert.GPT2LMHeadModel(config, rngs=None)
    path = "transformer.h.0.attn.c_attn.kernel"
    four, five = (described(model, fsdp=2, tensor=size) for size in (4, 5))
    assert four.shape(path, (1600, 4800)) == (1600, 4800)  # 25 heads are not split by 4
    assert five.shape(path, (1600, 4800)) == (1600, 3, 1600)
    assert five.used_spec(path, (1600, 3, 1600)) == PartitionSpec(None, None, "tensor")
    assert five.spec(path, (1600, 3, 1600)) == PartitionSpec("fsdp", None, "tensor")
    proj = "transformer.h.0.attn.c_proj.kernel"
    assert five.used_spec(proj, (1600, 1600)) == PartitionSpec("tensor", None)
    assert four.used_spec(proj, (1600, 1600)) == PartitionSpec(None, None)
    assert four.used_spec("x.mlp.c_proj.kernel", (6400, 1600)) == PartitionSpec("tensor", None)
