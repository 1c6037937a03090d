"""Plants mistakes in a model, to verify that the tests detect them.

A mistake is a function from a model and the arguments of its call to a context in which both are
wrong.
"""

import contextlib
import sys

import jax.numpy as jnp

from minibert.models.registry import FAMILIES
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
    """A mistake in the arguments or the results of `attend`."""

    @contextlib.contextmanager
    def planted(model, given):
        original = attention.attend

        def wrong(query, key, value, **options):
            return change(original, query, key, value, options)

        with contextlib.ExitStack() as stack:
            for module in {sys.modules[family.base.__module__] for family in FAMILIES}:
                if hasattr(module, "attend"):
                    stack.enter_context(swapped(module, "attend", wrong))
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


def positions_of(change):
    """Other positions, from the arguments."""
    return in_model(lambda model, given: given.update(position_ids=change(given)))


def not_causal(attend, query, key, value, options):
    """Every token attends to all tokens that any token may attend to."""
    mask = options["mask"]
    if mask is not None and mask.shape[2] > 1:
        options = options | {"mask": mask.any(axis=2, keepdims=True)}
    return attend(query, key, value, **options)


def strictly_causal(attend, query, key, value, options):
    """A token does not attend to itself, unless it is the first."""
    mask = options["mask"]
    if mask is not None and mask.shape[2] > 1:
        size = mask.shape[2]
        itself = jnp.eye(size, dtype=bool) & (jnp.arange(size) > 0)
        options = options | {"mask": mask & ~itself}
    return attend(query, key, value, **options)
