"""Shapes are checked in every test: wrong ones that reach an inner function are seen."""

from collections.abc import Callable

import jax.numpy as jnp
import pytest
from jaxtyping import Float, Int, TypeCheckError, jaxtyped

from minibert.nn.attention import causal_mask
from shapes import checked


def test_the_checker_is_active():
    assert causal_mask(2, 3, jnp.int32(1)).shape[-2:] == (2, 3)
    for offset in (jnp.zeros(2, int), jnp.float32(1), 1.5, "1"):
        with pytest.raises(TypeCheckError):
            causal_mask(2, 3, offset)


@jaxtyped(typechecker=checked)
def added(
    one: Float[jnp.ndarray, "rows size"],
    others: list[Float[jnp.ndarray, "rows size"]],
    scale: int | Int[jnp.ndarray, ""] | None = None,
) -> tuple[Float[jnp.ndarray, "rows size"], int]:
    total = one + sum(others) if scale is None else (one * scale)[:, :-1]
    return total, len(others)


@jaxtyped(typechecker=checked)
def named(
    arrays: list[str] | Float[jnp.ndarray, "rows size"],
    other: Callable[[], int] | tuple[Float[jnp.ndarray, "rows size"], ...] = (),
) -> None: ...


def test_generic_types_beside_shapes():
    one = jnp.ones((2, 3))
    for arguments in ((one,), (["a"],), (one, (one, one)), (["a"], list)):
        named(*arguments)
    for arguments in ((5,), (jnp.ones(3),), (one, 5), (one, (jnp.ones(3),)), (one, {one.ndim})):
        with pytest.raises(TypeCheckError):
            named(*arguments)


def test_what_is_seen():
    one = jnp.ones((2, 3))
    assert added(one, [one])[1] == 1
    wrong = [
        (jnp.ones(3), []),
        (jnp.ones((2, 3), int), []),
        (one, [one, jnp.ones((2, 4))]),
        (one, [], 2.5),
        (one, [], jnp.ones(2, int)),
        (one, [], 2),  # the result has another shape
    ]
    for arguments in wrong:
        with pytest.raises(TypeCheckError):
            added(*arguments)
