"""The oracle tested: every known porting mistake, planted, must be seen 1000 tolerances away."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from conftest import FLOAT64

torch = pytest.importorskip("torch", reason="the oracle is PyTorch")

import oracle  # noqa: E402
from minibert import activations, attention, bert_blocks  # noqa: E402


@contextlib.contextmanager
def swapped(owner, attribute, value):
    kept = getattr(owner, attribute)
    setattr(owner, attribute, value)
    try:
        yield
    finally:
        setattr(owner, attribute, kept)


def in_activation(function):
    @contextlib.contextmanager
    def planted(model, given):
        kept = activations.ACTIVATIONS["gelu"]
        activations.ACTIVATIONS["gelu"] = function
        try:
            yield
        finally:
            activations.ACTIVATIONS["gelu"] = kept

    return planted


def in_attend(change):
    """A mistake in what `attend` is given, or in what it returns."""

    @contextlib.contextmanager
    def planted(model, given):
        original = attention.attend

        def wrong(query, key, value, **options):
            return change(original, query, key, value, options)

        with swapped(bert_blocks, "attend", wrong):
            yield

    return planted


def in_model(change):
    @contextlib.contextmanager
    def planted(model, given):
        change(model, given)
        yield

    return planted


def set_epsilon(epsilon):
    def change(model, given):
        model.embeddings.LayerNorm.epsilon = epsilon
        for layer in model.encoder.layer:
            layer.attention.output.LayerNorm.epsilon = epsilon
            layer.output.LayerNorm.epsilon = epsilon

    return change


def zero(path):
    def change(model, given):
        parameter = at(model, path)
        parameter[...] = jnp.zeros_like(parameter[...])

    return change


def swap(one, other):
    def change(model, given):
        first, second = at(model, one), at(model, other)
        first[...], second[...] = second[...], first[...]

    return change


def at(model, path):
    for part in path.split("."):
        model = model[int(part)] if part.isdigit() else getattr(model, part)
    return model


def transpose(path):
    def change(model, given):
        parameter = at(model, path)
        parameter[...] = parameter[...].T

    return change


def without(name):
    return in_model(lambda model, given: given.pop(name))


LAYER = "encoder.layer.0"
MISTAKES = {
    "tanh GELU for the exact one": in_activation(lambda x: jax.nn.gelu(x, approximate=True)),
    "sigmoid GELU for the exact one": in_activation(lambda x: x * jax.nn.sigmoid(1.702 * x)),
    "epsilon 1e-5 for 1e-12": in_model(set_epsilon(1e-5)),
    "epsilon 1e-6, the framework's default": in_model(set_epsilon(1e-6)),
    "attention output bias dropped": in_model(zero(f"{LAYER}.attention.output.dense.bias")),
    "query bias dropped": in_model(zero(f"{LAYER}.attention.self.query.bias")),
    "LayerNorm bias dropped": in_model(zero("embeddings.LayerNorm.bias")),
    "the other LayerNorm": in_model(
        swap(f"{LAYER}.attention.output.LayerNorm.scale", f"{LAYER}.output.LayerNorm.scale")
    ),
    "query and key swapped": in_model(
        swap(f"{LAYER}.attention.self.query.kernel", f"{LAYER}.attention.self.key.kernel")
    ),
    "layers in the wrong order": in_model(
        swap("encoder.layer.0.output.dense.kernel", "encoder.layer.1.output.dense.kernel")
    ),
    "square kernel not transposed": in_model(transpose(f"{LAYER}.attention.self.value.kernel")),
    "pooler kernel not transposed": in_model(transpose("pooler.dense.kernel")),
    "no padding mask": without("attention_mask"),
    "no segments": without("token_type_ids"),
    "segments swapped": in_model(
        lambda model, given: given.update(token_type_ids=1 - given["token_type_ids"])
    ),
    "positions from 1": in_model(
        lambda model, given: given.update(position_ids=np.arange(1, 12)[None])
    ),
    "no 1/sqrt(d)": in_attend(
        lambda attend, q, k, v, options: attend(q * q.shape[-1] ** 0.5, k, v, **options)
    ),
    "1/sqrt(hidden) for 1/sqrt(d)": in_attend(
        lambda attend, q, k, v, options: attend(q / q.shape[1] ** 0.5, k, v, **options)
    ),
    "mask inverted": in_attend(
        lambda attend, q, k, v, options: attend(q, k, v, **options | {"mask": ~options["mask"]})
    ),
    "heads in the wrong order": in_attend(
        lambda attend, q, k, v, options: (
            attend(q, k, v, **options)[0][:, ::-1],
            attend(q, k, v, **options)[1],
        )
    ),
    "causal for bidirectional": in_attend(
        lambda attend, q, k, v, options: attend(
            q, k, v, **options | {"mask": options["mask"] & jnp.tri(q.shape[2], dtype=bool)}
        )
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_seen(mistake, tmp_path):
    theirs = oracle.saved("BertModel", tmp_path)
    given = oracle.inputs()
    mask = given["attention_mask"]
    expected = oracle.run_torch(theirs.double(), given, output_hidden_states=True)
    with oracle.float64():
        model = oracle.ours("BertModel", tmp_path, param_dtype=jnp.float64)
        right = oracle.errors(model(**given, output_hidden_states=True), expected, mask)
        with MISTAKES[mistake](model, given):
            wrong = oracle.errors(model(**given, output_hidden_states=True), expected, mask)
    assert max(right.values()) <= FLOAT64
    assert max(wrong.values()) >= 1000 * FLOAT64, wrong


def test_there_are_twelve():
    assert len(MISTAKES) >= 12
