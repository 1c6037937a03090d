"""minibert on a GPU or TPU beside PyTorch: the same card where PyTorch has it, else its CPU.

Deselected by default. From a checkout, on a machine with an accelerator, whatever its versions:

    python -m pytest tests/models/test_accelerator.py -m accelerator -o addopts= \
        -o filterwarnings=default

(`python -m benchmarks.gpu --only parity` does so too, and keeps the figures.) Every test prints its
figures, state by state, at the unpadded positions of 2,000 tokens. With MINIBERT_ACCELERATOR=cpu in
the environment the tests run on the CPU too, to try them out; with MINIBERT_ACCELERATOR=tiny also
there, with a small model. Where the card is small, XLA_PYTHON_CLIENT_PREALLOCATE=false leaves
memory to PyTorch.
"""

import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import minibert

torch = pytest.importorskip("torch", reason="the reference is PyTorch")
transformers = pytest.importorskip("transformers", reason="the reference is in transformers")

FLOAT32_ON_ACCELERATORS = 5e-5  # two cards' kernels, each with its own order of summation
BFLOAT16_RATIO = 1.3  # our RMS error over PyTorch's own

BATCH, SEQ, SHORTEST = 24, 128, 40
ANYWHERE = os.environ.get("MINIBERT_ACCELERATOR") in ("cpu", "tiny")
CHECKPOINTS = ["base", "minilm"]
CONFIG: dict[str, int] = {}  # of the model whose parameters are drawn; BERT-base
if os.environ.get("MINIBERT_ACCELERATOR") == "tiny":
    BATCH, SEQ, SHORTEST, CHECKPOINTS = 4, 16, 5, ["base"]
    CONFIG = {"hidden_size": 96, "num_hidden_layers": 2, "intermediate_size": 384}

pytestmark = [
    pytest.mark.accelerator,
    # a card's JAX and PyTorch are of other versions than ours, and may warn; here numbers count
    pytest.mark.filterwarnings("default"),
]


@pytest.fixture(scope="module")
def backend() -> str:
    """What JAX runs on."""
    found = jax.default_backend()
    if found == "cpu" and not ANYWHERE:
        pytest.skip("needs a GPU or TPU, and JAX finds the CPU only")
    return found


@pytest.fixture(scope="module", params=CHECKPOINTS)
def folder(request: pytest.FixtureRequest, backend: str, tmp_path_factory: Any) -> str:
    """A checkpoint: BERT-base's shape with every parameter drawn, or all-MiniLM-L6-v2."""
    if request.param == "minilm":
        return request.getfixturevalue("minilm")
    model = transformers.BertModel(transformers.BertConfig(**CONFIG))
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=draw)
            norm = path.endswith("LayerNorm.weight")
            parameter.copy_(1 + 0.1 * noise if norm else 0.04 * noise)
    path = tmp_path_factory.mktemp("base")
    model.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def given() -> dict[str, np.ndarray]:
    """A ragged batch in two segments."""
    draw = np.random.default_rng(0)
    lengths = np.linspace(SEQ, SHORTEST, BATCH).astype(int)[:, None]
    mask = (np.arange(SEQ) < lengths).astype(np.int64)
    types = (np.arange(SEQ) >= lengths // 2) * mask
    ids = draw.integers(0, 30522, mask.shape) * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def our_outputs(folder: str, given: dict[str, np.ndarray], dtype: Any) -> dict[str, np.ndarray]:
    """Our hidden states and pooler, compiled, weights and arithmetic in `dtype`."""
    model = minibert.BertModel.from_pretrained(folder, param_dtype=dtype)
    outputs = jax.jit(lambda m, g: m(**g, output_hidden_states=True))(model, given)
    assert outputs.last_hidden_state.dtype == dtype
    return by_name(outputs, given, lambda array: np.asarray(array, np.float64))


def torch_outputs(folder: str, given: dict[str, np.ndarray], *dtypes: Any) -> dict[str, np.ndarray]:
    """PyTorch's, eager; weights rounded to each of `dtypes` in turn, arithmetic in the last."""
    device = torch_device()
    torch.set_float32_matmul_precision("highest")  # no TF32
    model = transformers.BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    for dtype in dtypes:
        model = model.to(dtype)
    arguments = {name: torch.tensor(array, device=device) for name, array in given.items()}
    with torch.no_grad():
        outputs = model.to(device)(**arguments, output_hidden_states=True)
    return by_name(outputs, given, lambda tensor: tensor.double().cpu().numpy())


def torch_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def by_name(
    outputs: Any, given: dict[str, np.ndarray], to_numpy: Callable[[Any], np.ndarray]
) -> dict[str, np.ndarray]:
    """Each hidden state at the unpadded positions, and the pooler."""
    real = given["attention_mask"] == 1
    states = enumerate(outputs.hidden_states)
    found = {f"hidden_states[{index}]": to_numpy(state)[real] for index, state in states}
    return found | {"pooler_output": to_numpy(outputs.pooler_output)}


def rms(ours: np.ndarray, exact: np.ndarray) -> float:
    return float(np.sqrt(np.mean((ours - exact) ** 2)))


def table(
    request: Any, capsys: Any, columns: tuple[str, ...], rows: dict[str, tuple[float, ...]]
) -> None:
    """Prints figures, whatever pytest captures, and keeps them with the test's report."""
    states = {
        name: dict(zip(columns, map(float, figures), strict=True)) for name, figures in rows.items()
    }
    request.node.user_properties.append(("states", states))
    where = f"JAX on {jax.devices()[0].device_kind}, PyTorch on {torch_device()}"
    lines = [f"\n{request.node.name}: {where}"]
    lines.append(" " * 20 + "".join(f"{column:>14}" for column in columns))
    for name, figures in rows.items():
        lines.append(f"{name:20}" + "".join(f"{figure:14.3g}" for figure in figures))
    with capsys.disabled():
        sys.stdout.write("\n".join(lines) + "\n")


def test_float32(folder: str, given: dict[str, np.ndarray], request: Any, capsys: Any):
    """At the highest precision of the matrix products: PyTorch's numbers at every state."""
    with jax.default_matmul_precision("highest"):
        ours = our_outputs(folder, given, jnp.float32)
    theirs = torch_outputs(folder, given, torch.float32)
    exact = torch_outputs(folder, given, torch.float64)
    rows = {
        name: (
            np.abs(ours[name] - theirs[name]).max(),
            rms(ours[name], exact[name]),
            rms(theirs[name], exact[name]),
            rms(ours[name], exact[name]) / rms(theirs[name], exact[name]),
        )
        for name in exact
    }
    columns = ("max |o - t|", "RMS ours", "RMS torch", "ratio")
    table(request, capsys, columns, rows)
    for name, (largest, *_) in rows.items():
        assert largest <= FLOAT32_ON_ACCELERATORS, name


def test_bfloat16(folder: str, given: dict[str, np.ndarray], request: Any, capsys: Any):
    """Against float64 with the same rounded weights: no further off than PyTorch's bfloat16."""
    ours = our_outputs(folder, given, jnp.bfloat16)
    theirs = torch_outputs(folder, given, torch.bfloat16)
    exact = torch_outputs(folder, given, torch.bfloat16, torch.float64)
    errors = {
        name: (rms(ours[name], exact[name]), rms(theirs[name], exact[name])) for name in exact
    }
    rows = {name: (one, other, one / other) for name, (one, other) in errors.items()}
    table(request, capsys, ("RMS ours", "RMS torch", "ratio"), rows)
    for name, (*_, ratio) in rows.items():
        assert ratio <= BFLOAT16_RATIO, name
