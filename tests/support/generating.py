"""What the tests of generation share: tiny models of both sides, and a count of compilations."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
from flax import nnx

import minibert

PAD = 96  # not 0: behind a beam's end transformers writes the end token where the pad token is 0
VOCAB = 97


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """The names of the programs that are compiled meanwhile."""
    found: list[str] = []

    def listen(event: str, seconds: float, **about: Any) -> None:
        if "backend_compile" in event:
            found.append(str(about.get("fun_name", event)))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def tiny(seed: int = 0, scale: float = 0.3, **config: Any) -> minibert.GPT2LMHeadModel:
    """A tiny GPT-2 in float64, every parameter drawn anew; needs 64-bit mode."""
    settings = minibert.GPT2Config.tiny(**config)
    model = minibert.GPT2LMHeadModel(settings, rngs=nnx.Rngs(0), param_dtype=jnp.float64).eval()
    draw = np.random.default_rng(seed)
    leaves, treedef = jax.tree.flatten(model)
    drawn = [jnp.asarray(scale * draw.normal(size=leaf.shape)) for leaf in leaves]
    return jax.tree.unflatten(treedef, drawn)


def prompts(random: np.random.Generator, lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Prompts of those lengths, padded on the left, from a small alphabet so that tokens recur."""
    width = max(lengths)
    mask = np.arange(width) >= width - np.array(lengths)[:, None]
    ids = random.choice(random.integers(0, PAD, 6), (len(lengths), width))
    return np.where(mask, ids, PAD), mask.astype(np.int64)


def same_texts(found: np.ndarray, expected: list[np.ndarray]) -> bool:
    """Returns whether our padded rows hold those texts, and only padding after them.

    Args:
        found: `(rows, generated)`, without the prompts.
        expected: each row's generated tokens, of its own length.
    """
    longest = max(map(len, expected))
    rows = [np.concatenate([row, np.full(longest - len(row), PAD)]) for row in expected]
    return found.shape == (len(rows), longest) and bool((found == np.stack(rows)).all())
