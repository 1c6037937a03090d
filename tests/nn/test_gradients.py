"""Gradients beside PyTorch's float64, compiled: by themselves, vectorised, rematerialised."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from conftest import FLOAT64, GRADIENT

torch = pytest.importorskip("torch", reason="the oracle is PyTorch")

import gradients  # noqa: E402
import losses  # noqa: E402
import minibert  # noqa: E402
import oracle  # noqa: E402
import references  # noqa: E402
from gradient_cases import CASES, SIDES  # noqa: E402
from minibert import pooling, scratch, train  # noqa: E402
from minibert.embedding.modules import Normalize, Pooling, SentenceModel  # noqa: E402
from minibert.errors import InputError  # noqa: E402
from minibert.nn.activations import ACTIVATION_NAMES, activation  # noqa: E402
from minibert.nn.tree import Structure, parameters  # noqa: E402
from slowly import slow_but  # noqa: E402
from tiny import drawn  # noqa: E402

F = torch.nn.functional
SINGLE = 1e-5  # relative to a gradient's largest entry, in float32
TOLERANCES = {jnp.float32: SINGLE, jnp.float64: GRADIENT}


@pytest.mark.parametrize(
    ("transform", "width"),
    slow_but([(gradients.gradient, 30), (gradients.batched, 24)], (gradients.gradient, 30)),
)
@pytest.mark.parametrize("name", CASES)
def test_double_precision(name, transform, width):
    assert gradients.distance(CASES[name], transform, width, jnp.float64) <= GRADIENT


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_single_precision(name):
    assert gradients.distance(CASES[name], gradients.gradient, 36, jnp.float32) <= SINGLE


@pytest.mark.parametrize("dtype", TOLERANCES, ids=["float32", "float64"])
@pytest.mark.parametrize(
    ("name", "width"),
    slow_but(
        [
            *[("max", width) for width in (8, 24, 30, 768)],
            ("LayerNorm", 768),
            ("attention, causal and padding, dropout", 768),
        ],
        ("max", 30),
        ("max", 768),
    ),
)
def test_as_programs_are_compiled_by_default(name, width, dtype):
    found = gradients.distance(CASES[name], gradients.gradient, width, dtype, {})
    assert found <= TOLERANCES[dtype]


def by_equality(h, a, c):
    """Max pooling with JAX's derivative of a maximum, which is split among equal entries."""
    largest = jnp.where(c["mask"][:, :, None], h, -jnp.inf).max(axis=1)
    return jnp.where(c["mask"].any(axis=1, keepdims=True), largest, 0)


def recomputed(h, a, c):
    """The same where the maximum's last bits differ on every platform."""
    shown = jnp.where(c["mask"][:, :, None], h, -jnp.inf)
    near_one = jnp.square(h).mean()
    again = jax.lax.stop_gradient((shown + near_one) - near_one)
    largest = again.max(axis=1, keepdims=True)
    chosen = shown == largest
    return jnp.where(chosen, h, 0).sum(axis=1) / jnp.maximum(chosen.sum(axis=1), 1)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=["float32", "float64"])
@pytest.mark.parametrize("wrong", [by_equality, recomputed])
def test_equality_of_numbers_computed_twice_is_seen(wrong, dtype):
    case = dataclasses.replace(CASES["max"], ours=wrong)
    found = gradients.distance(case, gradients.gradient, 30, dtype)
    assert not found <= 1000 * TOLERANCES[dtype]


# Elementwise functions at the points where they have a kink, beside torch's.

POINTS = [-200, -30, -20, -10, -6, -3, -1, -1e-3, -0.0, 0, 1e-3, 1, 3, 6, 10, 20, 21, 30, 100, 200]
POINTS = np.concatenate([POINTS, np.random.default_rng(0).normal(scale=4, size=40)])
POINTS = POINTS.astype(np.float32).astype(np.float64)


def elementwise(name: str) -> tuple[Any, Any, Any]:
    """Ours as a module, its parameters, and torch's with the same."""
    if name == "scratch relu":
        return lambda params: scratch.relu, {}, torch.relu
    from transformers.activations import ACT2FN

    theirs = ACT2FN[name]
    if name not in ("prelu", "xielu"):
        return lambda params: activation(name, rngs=None, param_dtype=jnp.float32), {}, theirs
    theirs = theirs.double()
    state = {path: tensor.detach().double().numpy() for path, tensor in theirs.state_dict().items()}
    empty = Structure(activation(name, rngs=None, param_dtype=jnp.float32))
    return empty.build, state, theirs


@pytest.mark.filterwarnings("ignore:.*xIELU")
@pytest.mark.parametrize("name", [*ACTIVATION_NAMES, "scratch relu"])
def test_kinks(name):
    """At zeros, bounds and thresholds PyTorch's choice among the subderivatives."""
    build, params, theirs = elementwise(name)
    x = torch.tensor(POINTS, requires_grad=True)
    theirs(x).sum().backward()
    expected = {"x": x.grad.numpy()}
    expected |= {
        path: theirs.get_parameter(path).grad.numpy()
        for path in params
        if path in dict(theirs.named_parameters())
    }
    of_both = jax.grad(lambda x, params: build(params)(x).sum(), argnums=(0, 1))
    program = jax.jit(of_both, compiler_options=gradients.QUICKLY)
    for dtype, tolerance in TOLERANCES.items():
        with jax.enable_x64(dtype == jnp.float64):
            given = [jax.tree.map(dtype, arrays) for arrays in (POINTS, params)]
            of_x, of_params = jax.device_get(program(*given))
        found = {"x": of_x, **of_params}
        for constant in found.keys() - expected.keys():
            assert not found[constant].any(), constant  # a buffer of PyTorch's
        found = {path: found[path] for path in expected}
        assert gradients.apart(found, expected) <= tolerance


def test_the_length_of_zeros():
    """A text without a token has a vector of zeros, and gradients as in PyTorch."""
    x = np.zeros((2, 5))
    x[1] = np.arange(5)
    weights = np.random.default_rng(0).normal(size=x.shape)
    tensor = torch.tensor(x, requires_grad=True)
    (F.normalize(tensor, dim=-1) * torch.tensor(weights)).sum().backward()
    with oracle.float64():
        found = jax.jit(jax.grad(lambda x: (Normalize()(x) * weights).sum()))(jnp.asarray(x))
    np.testing.assert_allclose(found, tensor.grad, rtol=GRADIENT)


@pytest.mark.parametrize("mode", pooling.POOLINGS)
def test_what_is_not_pooled_has_no_gradient(mode):
    """Padding that holds NaN or infinity, and a text without a token."""
    tokens = np.random.default_rng(0).normal(size=(3, 5, 24))
    mask = np.arange(5) < np.array([5, 2, 0])[:, None]
    tokens[~mask] = [np.nan, np.inf, -np.inf] * 8
    with oracle.float64():
        total = jax.grad(lambda tokens, mask: pooling.POOLINGS[mode](tokens, mask).sum())
        found = jax.device_get(jax.jit(total)(tokens, mask))
    assert not found[~mask].any()
    assert np.isfinite(found).all()
    assert found[0].any()


def test_equal_maxima_have_one_gradient():
    """The first's, as in PyTorch; NaN is the maximum there and here."""
    tokens = np.array([[[1.0, 2, 0], [3, 2, np.nan], [3, 2, np.nan]]], np.float32)
    tensor = torch.tensor(tokens, requires_grad=True)
    largest = tensor.max(dim=1)[0]
    largest.sum().backward()
    mask = jnp.ones((1, 3), bool)
    program = jax.jit(jax.value_and_grad(lambda tokens: pooling.maximum(tokens, mask).sum()))
    for dtype in (jnp.float32, jnp.bfloat16):
        given = jnp.asarray(tokens, dtype)
        value, found = program(given)
        assert found.dtype == dtype
        assert np.isnan(value)
        np.testing.assert_array_equal(found.astype(np.float32), tensor.grad)
        found = pooling.maximum(given, mask).astype(np.float32)
        np.testing.assert_array_equal(found, largest.detach())


# Whole models.


@pytest.mark.parametrize(("name", "width"), [("BertForMaskedLM", 30), ("GPT2LMHeadModel", 36)])
def test_rematerialised_models(name, width, tmp_path):
    """The gradients of all parameters, with blocks rematerialised in the backward pass."""
    size = "n_embd" if name.startswith("GPT2") else "hidden_size"
    objective = train.causal_lm if name.startswith("GPT2") else train.masked_lm
    batch = losses.words(name)
    batch["labels"] = losses.some_ignored(batch["input_ids"], batch["attention_mask"])
    with oracle.float64(), losses.wide_losses():
        theirs, ours = losses.pair(name, tmp_path, **{size: width})
        expected = losses.torch_gradients(theirs, theirs(**losses.tensors(batch)).loss)
        ours.gradient_checkpointing_enable()
        _, found = losses.value_and_gradients(ours, objective, batch)
    assert losses.distance(found, expected) <= GRADIENT


@pytest.mark.slow
def test_the_norm_that_a_trainer_returns(tmp_path):
    """Of contrastive training with max pooling, all the model's gradients together."""
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    batch = {}
    for seed, side in enumerate(SIDES):
        words = losses.words("BertModel", seed=seed)
        batch |= {f"{side}_{name}": array for name, array in words.items()}
    with oracle.float64():
        theirs, ours = losses.pair("BertModel", tmp_path, hidden_size=30, **off)
        loss = references.ranking(pooling="max")(theirs, losses.tensors(batch))
        expected = losses.torch_gradients(theirs, loss)
        trainer = train.Trainer(ours, train.contrastive(pooling="max"), train.adamw(1e-3))
        metrics = trainer.step(batch)
    norm = np.sqrt(sum((array**2).sum() for array in expected.values()))
    assert abs(float(metrics["loss"]) - loss.item()) <= FLOAT64
    assert abs(float(metrics["grad_norm"]) - norm) <= GRADIENT * norm


@pytest.mark.slow
def test_texts_that_share_a_row():
    """The same as each text alone, also where a row has slots for texts that it does not hold."""
    with oracle.float64():
        model = SentenceModel(
            drawn("BertModel", num_hidden_layers=1), [Pooling("max", 24), Normalize()]
        )
        draw = np.random.default_rng(0)
        texts = [draw.integers(1, 90, size) for size in (9, 4)]
        weights = draw.normal(size=(2, 24))
        row = np.zeros((1, 24), np.int64)
        row[0, :13] = np.concatenate(texts)
        segments = jnp.asarray(np.repeat([1, 2, 0], [9, 4, 11])[None])

        def packed(model):
            return (model.packed(row, segments)[0, :2] * weights).sum()

        def alone(model):
            given = [(ids[None], jnp.ones((1, len(ids)), bool)) for ids in texts]
            vectors = [model(*arguments)[1][0] for arguments in given]
            return (jnp.stack(vectors) * weights).sum()

        found, expected = (
            parameters(jax.jit(jax.grad(f), compiler_options=gradients.QUICKLY)(model))
            for f in (packed, alone)
        )
    assert losses.distance(jax.device_get(found), jax.device_get(expected)) <= GRADIENT


def test_constants_are_not_trained():
    """`xielu` has two, which PyTorch keeps as buffers."""
    config = minibert.BertConfig.tiny(hidden_act="xielu", num_hidden_layers=1)
    model = minibert.BertForMaskedLM(config, rngs=nnx.Rngs(0))
    trainer = train.Trainer(model, train.masked_lm, train.adamw(1e-2))
    assert {path.rpartition(".")[2] for path in trainer.frozen} == {"beta", "eps"}
    assert trainer.frozen.keys() | trainer.state.params.keys() == parameters(model).keys()
    with pytest.raises(InputError, match=r"trainable: .*eps' matches no parameter"):
        train.Trainer(model, train.masked_lm, train.adamw(1e-2), trainable=["*.eps"])
