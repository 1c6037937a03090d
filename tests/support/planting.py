"""Planting mistakes in a model, to see that the tests see them.

A mistake is a function from a model and the arguments of its call to a context in which both are
wrong.
"""

import contextlib
from typing import Any

import jax.numpy as jnp

import oracle
from conftest import FLOAT64
from minibert.models.bert import modeling as bert_blocks
from minibert.models.gpt2 import modeling as gpt2_blocks
from minibert.nn import activations, attention


@contextlib.contextmanager
def swapped(owner, attribute, value):
    kept = getattr(owner, attribute)
    setattr(owner, attribute, value)
    try:
        yield
    finally:
        setattr(owner, attribute, kept)


def in_activation(name, function):
    @contextlib.contextmanager
    def planted(model, given):
        kept = activations.ACTIVATIONS[name]
        activations.ACTIVATIONS[name] = function
        try:
            yield
        finally:
            activations.ACTIVATIONS[name] = kept

    return planted


def in_attend(change):
    """A mistake in what `attend` is given, or in what it returns."""

    @contextlib.contextmanager
    def planted(model, given):
        original = attention.attend

        def wrong(query, key, value, **options):
            return change(original, query, key, value, options)

        with swapped(bert_blocks, "attend", wrong), swapped(gpt2_blocks, "attend", wrong):
            yield

    return planted


def in_model(change):
    @contextlib.contextmanager
    def planted(model, given):
        change(model, given)
        yield

    return planted


def without(name):
    return in_model(lambda model, given: given.pop(name))


def at(model, path):
    for part in path.split("."):
        model = model[int(part)] if part.isdigit() else getattr(model, part)
    return model


def edit(path, change):
    """One parameter changed."""

    def planted(model, given):
        parameter = at(model, path)
        parameter[...] = change(parameter[...])

    return in_model(planted)


def zero(path):
    return edit(path, jnp.zeros_like)


def transpose(path):
    return edit(path, jnp.transpose)


def swap(one, other):
    def planted(model, given):
        first, second = at(model, one), at(model, other)
        first[...], second[...] = second[...], first[...]

    return in_model(planted)


def epsilon(value, *paths):
    """Another epsilon for LayerNorms."""

    def planted(model, given):
        for path in paths:
            at(model, path).epsilon = value

    return in_model(planted)


def distances(
    mistake: Any, name: str, folder: Any, given: dict[str, Any], **config: Any
) -> tuple[float, float]:
    """How far from PyTorch a model is without a mistake, and with it, in tolerances."""
    theirs = oracle.saved(name, folder, **config)
    mask = given["attention_mask"]
    expected = oracle.run_torch(theirs.double(), given, output_hidden_states=True)
    with oracle.float64():
        model = oracle.ours(name, folder, param_dtype=jnp.float64)
        right = oracle.errors(model(**given, output_hidden_states=True), expected, mask)
        with mistake(model, given):
            wrong = oracle.errors(model(**given, output_hidden_states=True), expected, mask)
    return max(right.values()) / FLOAT64, max(wrong.values()) / FLOAT64
