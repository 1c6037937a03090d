"""Outputs of submodules read and replaced by path, as with PyTorch's forward hooks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")

from flax import nnx

import losses
import minibert
import oracle
from conftest import FLOAT64
from minibert.errors import InputError
from minibert.inspection.capture import captured, submodules

LAYERS = {"bert": "num_hidden_layers", "gpt2": "n_layer"}
# torch's activation of the pooler is a submodule of its own, whose output is the pooler's
ONLY_THERE = {"bert.pooler.activation"}


def plain(output):
    """Returns a submodule's output; the first, if there are several."""
    for name in ("last_hidden_state", "logits"):
        if hasattr(output, name):
            return getattr(output, name)
    return output[0] if isinstance(output, tuple) else output


def hooked(model, arguments, replace=None):
    """Returns the outputs of torch's modules by path; the first, if there are several."""
    found, handles = {}, []

    def hook(path):
        def run(module, args, output):
            if replace and path == replace[0]:
                value = replace[1](plain(output))
                found[path] = value
                return (value, *output[1:]) if isinstance(output, tuple) else value
            found[path] = plain(output)
            return None

        return run

    for path, module in model.named_modules():
        if path:
            handles.append(module.register_forward_hook(hook(path)))
    outputs = oracle.run_torch(model, arguments)
    for handle in handles:
        handle.remove()
    return {path: tensor.detach().numpy() for path, tensor in found.items()}, outputs


def pair(name, folder):
    return losses.pair(name, folder, **{LAYERS[oracle.family(name)]: 2})


def distance(found, expected, mask):
    found = np.asarray(plain(found))
    if found.shape[:2] == mask.shape:
        found, expected = found[mask], expected[mask]
    return np.abs(found - expected).max()


@pytest.mark.parametrize(
    ("name", "count"),
    [("BertForMaskedLM", 49), ("BertForPreTraining", 52), ("GPT2LMHeadModel", 30)],
)
def test_every_submodule_returns_what_torchs_does(name, count, tmp_path):
    with oracle.float64():
        theirs, ours = pair(name, tmp_path)
        arguments = losses.words(name)
        expected, _ = hooked(theirs, arguments)
        paths = expected.keys() - ONLY_THERE
        assert len(paths) == count
        assert paths <= submodules(ours).keys()
        found = captured(ours, sorted(paths), **arguments)
        mask = arguments["attention_mask"].astype(bool)
        for path in paths:
            assert distance(found[path], expected[path], mask) <= FLOAT64, path
        np.testing.assert_array_equal(found.outputs[0], ours(**arguments)[0])


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("BertForMaskedLM", "bert.encoder.layer.0.attention.self"),
        ("BertForMaskedLM", "bert.encoder.layer.1.output.LayerNorm"),
        ("BertForMaskedLM", "bert.embeddings"),
        ("GPT2LMHeadModel", "transformer.h.0.attn"),
        ("GPT2LMHeadModel", "transformer.h.0.mlp.act"),
        ("GPT2LMHeadModel", "transformer.h.1"),
    ],
)
def test_replaced_as_by_torchs_hooks(name, path, tmp_path):
    with oracle.float64():
        theirs, ours = pair(name, tmp_path)
        arguments = losses.words(name)
        mask = arguments["attention_mask"].astype(bool)
        expected, outputs = hooked(theirs, arguments, (path, lambda value: value * 0.5 - 1))
        edits = {path: lambda value: value * 0.5 - 1}
        found = captured(ours, [path], **arguments, replace=edits)
        assert distance(found[path], expected[path], mask) <= FLOAT64
        assert distance(found.outputs.logits, outputs.logits.numpy(), mask) <= FLOAT64
        assert np.abs(found.outputs.logits - ours(**arguments).logits).max() > 1000 * FLOAT64
        fixed = captured(ours, path, **arguments, replace={path: jnp.asarray(found[path])})
        assert distance(fixed.outputs.logits, outputs.logits.numpy(), mask) <= FLOAT64


@pytest.fixture
def gpt2():
    config = minibert.GPT2Config.tiny()
    return minibert.GPT2LMHeadModel(config, rngs=nnx.Rngs(0)).eval()


IDS = np.arange(10).reshape(2, 5)


def test_under_jit_and_grad(gpt2):
    plain = captured(gpt2, "transformer.h.*.attn", IDS)
    assert list(plain) == ["transformer.h.0.attn", "transformer.h.1.attn"]

    @jax.jit
    def jitted(model, ids, factor):
        edits = {"transformer.h.0.mlp": lambda value: value * factor}
        found = captured(model, "transformer.h.*.attn", ids, replace=edits)
        return dict(found), found.outputs.logits

    found, logits = jitted(gpt2, IDS, 1.0)
    np.testing.assert_allclose(logits, gpt2(IDS).logits, atol=1e-5)
    for path, value in plain.items():
        np.testing.assert_allclose(found[path], value, atol=1e-5)
    total = lambda factor: jitted(gpt2, IDS, factor)[1].sum()  # noqa: E731
    slope = jax.grad(total)(1.0)
    assert slope == pytest.approx(float(total(1.01) - total(0.99)) / 0.02, rel=0.05, abs=1e-3)


def test_the_model_stays_as_it_is(gpt2):
    before = str(gpt2), type(gpt2.transformer.h[0]), gpt2(IDS).logits
    captured(gpt2, "*", IDS, replace={"transformer.h.0": lambda value: value * 0})
    assert (str(gpt2), type(gpt2.transformer.h[0])) == before[:2]
    np.testing.assert_array_equal(gpt2(IDS).logits, before[2])


def test_several_submodules_are_replaced_at_once(gpt2):
    path = "transformer.h.{}.attn.c_proj"
    both = {path.format(number): jnp.zeros_like for number in range(2)}
    one_by_one = captured(gpt2, (), IDS, replace=both).outputs.logits
    at_once = captured(gpt2, (), IDS, replace={path.format("*"): jnp.zeros_like}).outputs.logits
    np.testing.assert_array_equal(at_once, one_by_one)
    assert np.abs(at_once - gpt2(IDS).logits).max() > 1e-3


def test_layers_that_are_computed_again():
    """Values computed inside `jax.checkpoint` could not be returned."""
    model = minibert.GPT2LMHeadModel(minibert.GPT2Config.tiny(), rngs=nnx.Rngs(0)).eval()
    plain = captured(model, "transformer.h.0.attn", IDS)
    model.gradient_checkpointing_enable()
    again = captured(model, "transformer.h.0.attn", IDS)
    assert model.transformer.is_gradient_checkpointing
    np.testing.assert_array_equal(again["transformer.h.0.attn"], plain["transformer.h.0.attn"])


def test_a_model_on_a_mesh(tmp_path):
    model = minibert.GPT2LMHeadModel(minibert.GPT2Config.tiny(), rngs=nnx.Rngs(0)).eval()
    model.save_pretrained(tmp_path / "model")
    sharding = minibert.Sharding.of_devices()
    spread = minibert.GPT2LMHeadModel.from_pretrained(tmp_path / "model", sharding=sharding)
    ours = captured(spread, "transformer.h.0.attn", IDS)["transformer.h.0.attn"]
    plain = captured(model, "transformer.h.0.attn", IDS)["transformer.h.0.attn"]
    np.testing.assert_allclose(ours, plain, atol=1e-6)


def test_refusals(gpt2):
    with pytest.raises(InputError, match=r"paths: 'transformer.h.7' matches no"):
        captured(gpt2, "transformer.h.7", IDS)
    with pytest.raises(InputError, match="replace: 'nowhere' matches no"):
        captured(gpt2, (), IDS, replace={"nowhere": lambda value: value})
    with pytest.raises(InputError, match=r"replace: lm_head: expected shape .2, 5, 97., found"):
        captured(gpt2, (), IDS, replace={"lm_head": jnp.zeros((2, 5, 3))})
    bert = minibert.BertForMaskedLM(minibert.BertConfig.tiny(), rngs=nnx.Rngs(0)).eval()
    embeds = jnp.zeros((1, 3, 24))
    words = "bert.embeddings.word_embeddings"
    with pytest.raises(
        InputError, match=r"paths: .*word_embeddings.: is not executed by this call"
    ):
        captured(bert, words, inputs_embeds=embeds)
    with pytest.raises(
        InputError, match=r"replace: .*word_embeddings.: is not executed by this call"
    ):
        captured(bert, (), inputs_embeds=embeds, replace={words: lambda value: value})
    for wrong, said in (
        (0.0, r"lm_head: expected shape .2, 5, 97., found \(\)"),
        (lambda value: None, "lm_head: expected an array"),
        ("nothing", "lm_head: expected an array"),
    ):
        with pytest.raises(InputError, match=said):
            captured(gpt2, (), IDS, replace={"lm_head": wrong})
    with pytest.raises(InputError, match="transformer: returns BaseModelOutput"):
        captured(gpt2, (), IDS, replace={"transformer": jnp.zeros((2, 5, 24))})
    with pytest.raises(InputError, match="lm_head: matches two patterns"):
        captured(gpt2, (), IDS, replace={"lm_head": jnp.zeros_like, "lm_hea?": jnp.zeros_like})
    with pytest.raises(InputError, match="replace: expected a mapping of paths, found"):
        captured(gpt2, (), IDS, replace=["lm_head"])
    with pytest.raises(InputError, match="paths: expected paths of submodules, found 3"):
        captured(gpt2, 3, IDS)
