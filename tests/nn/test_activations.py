"""Activations compared with PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the oracle is PyTorch")

from minibert.nn.activations import ACTIVATION_NAMES  # noqa: E402


@pytest.mark.parametrize("act", [n for n in ACTIVATION_NAMES if n not in ("prelu", "xielu")])
def test_activation_by_itself(act):
    """Each activation over a wide range, and its float32 value beside torch's float64."""
    from transformers.activations import ACT2FN

    from minibert.nn.activations import Activation

    x = np.concatenate([np.linspace(-30, 30, 2001), [0.0, 20.0, np.nextafter(20, 21)]])
    expected = ACT2FN[act](torch.tensor(x)).numpy()
    with jax.enable_x64(True):
        found = np.asarray(Activation(act)(jnp.asarray(x)))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    single = np.asarray(Activation(act)(jnp.asarray(x, jnp.float32)))
    np.testing.assert_allclose(single, expected, rtol=2e-5, atol=1e-5)
