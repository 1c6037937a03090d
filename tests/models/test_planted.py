"""The oracle tested: every known porting mistake, planted, must be seen 1000 tolerances away."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the oracle is PyTorch")

import oracle  # noqa: E402
from planting import (  # noqa: E402
    distances,
    epsilon,
    in_activation,
    in_attend,
    in_model,
    swap,
    transpose,
    without,
    zero,
)

LAYER = "encoder.layer.0"
NORMS = ["embeddings.LayerNorm"] + [
    f"encoder.layer.{layer}.{room}.LayerNorm"
    for layer in range(2)
    for room in ("attention.output", "output")
]
MISTAKES = {
    "tanh GELU for the exact one": in_activation(
        "gelu", lambda x: jax.nn.gelu(x, approximate=True)
    ),
    "sigmoid GELU for the exact one": in_activation(
        "gelu", lambda x: x * jax.nn.sigmoid(1.702 * x)
    ),
    "epsilon 1e-5 for 1e-12": epsilon(1e-5, *NORMS),
    "epsilon 1e-6, the framework's default": epsilon(1e-6, *NORMS),
    "attention output bias dropped": zero(f"{LAYER}.attention.output.dense.bias"),
    "query bias dropped": zero(f"{LAYER}.attention.self.query.bias"),
    "LayerNorm bias dropped": zero("embeddings.LayerNorm.bias"),
    "the other LayerNorm": swap(
        f"{LAYER}.attention.output.LayerNorm.scale", f"{LAYER}.output.LayerNorm.scale"
    ),
    "query and key swapped": swap(
        f"{LAYER}.attention.self.query.kernel", f"{LAYER}.attention.self.key.kernel"
    ),
    "layers in the wrong order": swap(
        "encoder.layer.0.output.dense.kernel", "encoder.layer.1.output.dense.kernel"
    ),
    "square kernel not transposed": transpose(f"{LAYER}.attention.self.value.kernel"),
    "pooler kernel not transposed": transpose("pooler.dense.kernel"),
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
    right, wrong = distances(MISTAKES[mistake], "BertModel", tmp_path, oracle.inputs())
    assert right <= 1
    assert wrong >= 1000


def test_there_are_twelve():
    assert len(MISTAKES) >= 12
