"""The embedding matrix: an index of any type returns its row or NaN."""

import jax.numpy as jnp
import numpy as np
import pytest

from minibert.nn.layers import Embed

pytestmark = pytest.mark.unoptimised


@pytest.mark.parametrize("size", [1, 128, 300, 2**15 + 8])
@pytest.mark.parametrize(
    "dtype", ["int4", "int8", "int16", "int32", "uint4", "uint8", "uint16", "uint32"]
)
def test_an_index_of_any_width_returns_its_row_or_nan(dtype, size):
    table = Embed(size, 1, stddev=1.0, rngs=None, dtype=None, param_dtype=jnp.float32)
    table.embedding.set_value(jnp.arange(size, dtype=jnp.float32)[:, None])
    limits = jnp.iinfo(dtype)
    tried = {
        0,
        1,
        -1,
        -2,
        -size,
        size - 1,
        size,
        size + 1,
        size % 256,
        size - 256,
        limits.max,
        limits.min,
    }
    tried = sorted(i for i in tried if limits.min <= i <= limits.max)
    rows = table(jnp.array(tried).astype(dtype) if limits.max < 2**31 else jnp.array(tried, dtype))
    expected = [float(i) if 0 <= i < size else np.nan for i in tried]
    np.testing.assert_array_equal(rows[:, 0], expected)
