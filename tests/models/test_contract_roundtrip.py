"""Hugging Face folder → tree → Hugging Face folder: the same bytes, and the same outputs."""

import copy
import json

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the other side is PyTorch")

import transformers  # noqa: E402
from flax import nnx  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

import minibert  # noqa: E402
import oracle  # noqa: E402
from families import CLASSES, FACTS, OF_CLASS, SOME  # noqa: E402
from folders import contents  # noqa: E402
from minibert.errors import (  # noqa: E402
    CheckpointMismatchError,
    MissingHeadError,
    PickleRefusedError,
)
from oracle import arguments  # noqa: E402
from slowly import slow_but  # noqa: E402

pytestmark = pytest.mark.unoptimised
WEIGHTS = "model.safetensors"


@pytest.fixture(params=FACTS.values(), ids=FACTS)
def facts(request):
    return request.param


def rewrite(folder, change):
    """Changes a file's tensors, and leaves out its {"format": "pt"}."""
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)


@pytest.mark.parametrize("shard", ["5GB", "10KB"], ids=["single", "sharded"])
@pytest.mark.parametrize("dtype", slow_but(["float32", "float16", "bfloat16"], "bfloat16"))
@pytest.mark.parametrize("name", slow_but(CLASSES, *SOME))
def test_bytes_and_outputs(name, dtype, shard, tmp_path):
    theirs = oracle.torch_model(name, **CLASSES[name]).to(getattr(torch, dtype))
    theirs.save_pretrained(tmp_path / "in", max_shard_size=shard)
    model = minibert.load(tmp_path / "in")
    assert type(model).__name__ == name
    model.save_pretrained(tmp_path / "out", max_shard_size=shard)
    assert contents(tmp_path / "out") == contents(tmp_path / "in")
    shards = len(list((tmp_path / "out").glob("*.safetensors")))
    assert (shards > 1) == (shard == "10KB")
    back, info = getattr(transformers, name).from_pretrained(
        tmp_path / "out", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info.values()), info
    assert back.dtype == theirs.dtype
    for one, other in zip(theirs.parameters(), back.parameters(), strict=True):
        assert torch.equal(one, other)
    # copies, for PyTorch's last bits depend on where in memory a tensor lies
    given, pair = arguments(name), (copy.deepcopy(theirs), copy.deepcopy(back).eval())
    before, after = (oracle.run_torch(model, given) for model in pair)
    for key in before.keys() - set(oracle.CACHES):
        assert torch.equal(before[key], after[key]), key


def test_config_survives(facts, tmp_path):
    name, _ = facts.labelled
    junk = {
        "directionality": "bidi",
        "pooler_type": "first_token_transform",
        "auto_map": {"a": "b"},
    }
    oracle.saved(name, tmp_path / "in", num_labels=3, **junk)
    model, info = oracle.ours(name, tmp_path / "in", output_loading_info=True)
    assert set(info.config_ignored) == junk.keys() | {*facts.ignored}
    model.save_pretrained(tmp_path / "out")
    before, after = (
        json.loads((tmp_path / folder / "config.json").read_text()) for folder in ("in", "out")
    )
    assert {key: after[key] for key in before} == before


WRAPPERS = ["model.", "module.", "0.auto_model.", "_orig_mod.", "module._orig_mod.model."]


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", [name for facts in FACTS.values() for name in facts.wrapped])
def test_wrappers(name, wrapper, tmp_path):
    oracle.saved(name, tmp_path)
    plain = oracle.ours(name, tmp_path)
    rewrite(tmp_path, lambda tensors: {wrapper + key: tensors[key] for key in tensors})
    wrapped = oracle.ours(name, tmp_path)
    for model, folder in ((plain, "plain"), (wrapped, "wrapped")):
        model.save_pretrained(tmp_path / folder)
    one, other = (tmp_path / folder / "model.safetensors" for folder in ("plain", "wrapped"))
    assert one.read_bytes() == other.read_bytes()  # with names without a wrapper
    rewrite(tmp_path, lambda tensors: half_wrapped(tensors, wrapper))
    with pytest.raises(CheckpointMismatchError, match="no leaf of"):
        oracle.ours(name, tmp_path)


def half_wrapped(tensors, wrapper):
    """The first tensor without the wrapper."""
    first, *others = tensors
    return {first.removeprefix(wrapper): tensors[first]} | {key: tensors[key] for key in others}


def test_base_file_into_a_head_class(facts, tmp_path):
    name, head = facts.labelled
    oracle.saved(facts.base, tmp_path)
    with pytest.raises(MissingHeadError, match="new_head=True"):
        oracle.ours(name, tmp_path)
    options = {"new_head": True, "num_labels": 4}
    model, info = oracle.ours(name, tmp_path, rngs=nnx.Rngs(0), output_loading_info=True, **options)
    beside = {path for path in oracle.named_arrays(model) if not path.startswith(f"{model.trunk}.")}
    assert set(info.new) == beside >= set(head)
    assert model.config.id2label[3] == "LABEL_3"
    kernel = oracle.named_arrays(model)[head[0]]
    assert kernel.shape == (4, 24)
    assert 0.01 < kernel.std() < 0.03
    biases = [oracle.named_arrays(model)[path] for path in head if path.endswith("bias")]
    assert not any(map(np.any, biases))
    again = oracle.ours(name, tmp_path, rngs=nnx.Rngs(1), **options)
    assert (oracle.named_arrays(again)[head[0]] != kernel).all()


def test_relabelled_head_is_new_and_the_old_one_is_left(facts, tmp_path):
    name, head = facts.labelled
    config = OF_CLASS[name].classes[name] | {"num_labels": 3}
    oracle.saved(name, tmp_path, **config)
    with pytest.raises(MissingHeadError):
        oracle.ours(name, tmp_path, num_labels=5)
    options = {"num_labels": 5, "new_head": True, "rngs": nnx.Rngs(0)}
    model, info = oracle.ours(name, tmp_path, output_loading_info=True, **options)
    assert set(info.left) == set(info.new) == set(head)
    assert model(**arguments(name)).logits.shape == (3, 5)


def test_pickle(facts, tmp_path):
    theirs = oracle.torch_model(facts.words).bfloat16()
    theirs.save_pretrained(tmp_path / "in")
    stored = load_file(tmp_path / "in" / WEIGHTS)
    state = {key: tensor for key, tensor in theirs.state_dict().items() if key in stored}
    torch.save(state, tmp_path / "in" / "pytorch_model.bin")
    expected = contents(tmp_path / "in")
    (tmp_path / "in" / WEIGHTS).unlink()
    with pytest.raises(PickleRefusedError, match="allow_pickle=True"):
        minibert.load(tmp_path / "in")
    minibert.load(tmp_path / "in", allow_pickle=True).save_pretrained(tmp_path / "out")
    assert contents(tmp_path / "out") == expected


def test_dtypes(facts, tmp_path):
    """As stored; or cast, and the config says so; a mixed file stays mixed."""
    oracle.saved(facts.base, tmp_path / "in")
    half = oracle.ours(facts.base, tmp_path / "in", param_dtype=jnp.float16)
    half.save_pretrained(tmp_path / "half")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "float16"
    file = tmp_path / "in" / WEIGHTS
    tensors = load_file(file)
    norms = {key for key in tensors if key.endswith(facts.norms)}
    mixed = {key: tensors[key] if key in norms else tensors[key].bfloat16() for key in tensors}
    save_file(mixed, file)
    model, info = oracle.ours(facts.base, tmp_path / "in", output_loading_info=True)
    assert info.dtypes == {"bfloat16": len(tensors) - len(norms), "float32": len(norms)}
    model.save_pretrained(tmp_path / "mixed")
    assert contents(tmp_path / "mixed") == contents(tmp_path / "in")


def test_double_precision_is_never_halved(facts, tmp_path):
    oracle.torch_model(facts.base).double().save_pretrained(tmp_path)
    with pytest.raises(CheckpointMismatchError, match="enable_x64"):
        oracle.ours(facts.base, tmp_path)
    assert oracle.ours(facts.base, tmp_path, param_dtype=jnp.float32) is not None


def test_single_numbers(tmp_path):
    """The constants of an activation have no axes, in the file either."""
    name, config = "BertModel", {"hidden_act": "xielu"}
    theirs = oracle.saved(name, tmp_path / "in", **config)
    oracle.ours(name, tmp_path / "in").save_pretrained(tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "in")
    shapes = {key: tensor.shape for key, tensor in load_file(tmp_path / "out" / WEIGHTS).items()}
    assert shapes == {key: tensor.shape for key, tensor in theirs.state_dict().items()}
    oracle.ours(name, tmp_path / "out")
