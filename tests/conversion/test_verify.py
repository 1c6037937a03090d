"""`minibert.verify` and the commands `minibert convert` and `minibert verify`."""

import json
import pathlib

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from typer.testing import CliRunner

import minibert
from converting import HAS_TORCH, needs_torch
from malformed import refused
from minibert.cli.app import app
from minibert.cli.convert import DIFFERS, REFUSED
from minibert.conversion import parity
from minibert.errors import SourceError, UnsupportedConfigError
from minibert.nn import activations

pytestmark = pytest.mark.unoptimised


@pytest.fixture(scope="module")
def model():
    return minibert.BertForMaskedLM(minibert.BertConfig.tiny(), rngs=nnx.Rngs(0)).eval()


@pytest.fixture
def source(model, tmp_path):
    model.save_pretrained(tmp_path / "source")
    return tmp_path / "source"


def command(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


@needs_torch
def test_of_a_folder(source):
    steps = []
    verification = minibert.verify(source, progress=steps.append)
    assert verification.passed
    assert verification.reference == "the source"
    assert [row.output for row in verification.rows] == [
        *(f"hidden_states[{layer}]" for layer in range(3)),
        "logits",
    ]
    assert all(row.float64 < 1e-12 for row in verification.rows)
    assert steps[0] == "reading"
    assert len(steps) == 5
    assert json.loads(json.dumps(verification.to_dict()))["outputs"][0]["passed"]
    assert "hidden_states[2]" in str(verification)


@needs_torch
@pytest.mark.parametrize(
    ("field", "error", "said"),
    [
        ("transformers_weights", UnsupportedConfigError, "transformers_weights: 'x'"),
        ("sub_configs", SourceError, "nothing can be verified: transformers failed"),
        ("to_dict", SourceError, "nothing can be verified: transformers failed"),
    ],
)
def test_a_config_that_transformers_cannot_read(field, error, said, source):
    path = source / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: "x"}))
    refused(error, (said,), lambda: minibert.verify(source))


@needs_torch
def test_of_a_model_in_memory(model):
    """In the dtype it has: PyTorch reads the rounded parameters."""
    half = minibert.BertForMaskedLM(model.config, rngs=nnx.Rngs(1), param_dtype=jnp.bfloat16).eval()
    for one in (model, half):
        verification = minibert.verify(one)
        assert verification.passed
        assert verification.reference == "minibert's own copy (the model is in memory)"


@needs_torch
def test_a_planted_mistake_is_in_the_certificate(source, model, monkeypatch):
    monkeypatch.setitem(activations.ACTIVATIONS, "gelu", lambda x: jax.nn.gelu(x, approximate=True))
    for of in (source, model):
        verification = minibert.verify(of)
        assert not verification.passed
        assert verification.rows[0].passed  # the embeddings
        assert not verification.rows[1].passed
    printed = command("verify", source, "--json")
    assert printed.exit_code == DIFFERS
    assert not json.loads(printed.stdout)["passed"]
    printed = command("verify", source)
    assert printed.exit_code == DIFFERS
    assert "DIFFERS" in printed.output


@needs_torch
def test_commands(source, tmp_path):
    done = command("convert", source, tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "equal" in done.output
    recorded = json.loads((tmp_path / "out" / "parity.json").read_text())
    done = command("verify", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["outputs"] == recorded["outputs"]
    assert recorded.keys() - found.keys() == {"sha256"}


@needs_torch
def test_what_is_no_source():
    with pytest.raises(SourceError, match="'no/such/folder': expected a folder or a repository"):
        minibert.verify("no/such/folder")


@pytest.mark.skipif(HAS_TORCH, reason="torch is here: what is said without it cannot be seen")
def test_without_torch(source, model, tmp_path):
    for of in (source, model):
        with pytest.raises(SourceError, match="torch is not installed"):
            minibert.verify(of)
    assert command("verify", source).exit_code == REFUSED
    done = command("convert", source, tmp_path / "out")
    assert done.exit_code == 0
    assert "Not verified: torch is not installed" in done.output


def test_the_text_that_is_compared_is_the_licence():
    root = pathlib.Path(__file__).parents[2]
    assert pathlib.Path(parity.TEXT).read_bytes() == (root / "LICENSE").read_bytes()


def test_version():
    assert command("--version").stdout == f"minibert {minibert.__version__}\n"
