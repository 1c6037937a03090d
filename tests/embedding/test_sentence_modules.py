"""Modules around the pooling, compared with sentence-transformers in both directions."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

pytest.importorskip("sentence_transformers", reason="the reference is sentence-transformers")

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer import modules as reference

import minibert
import oracle  # noqa: F401  # silences transformers
import sentences
from conftest import EMBEDDING, FLOAT64
from minibert import train
from minibert.embedding.encoder import SentenceEncoder
from minibert.embedding.folder import TORCH_ACTIVATIONS
from minibert.embedding.modules import (
    Dense,
    LayerNorm,
    Normalize,
    Pooling,
    SentenceModel,
    WeightedLayerPooling,
)
from minibert.errors import CheckpointMismatchError, ConfigError, InputError, UnsupportedConfigError
from minibert.nn.activations import TORCH_ONLY
from minibert.nn.activations import activation as activation_module
from minibert.nn.layers import Dropout
from minibert.train.job.encoders import encoder_modules, open_initial_model

TEXTS = sentences.FEW[1:4]
TOKENS = "token_embeddings"


def loaded(folder: object) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu")


def drawn(module: torch.nn.Module, low: float = -1.0, high: float = 1.5) -> torch.nn.Module:
    """Draws all parameters, so that none has a value that hides a mistake."""
    for parameter in module.parameters():
        torch.nn.init.uniform_(parameter, low, high)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Returns a folder that sentence-transformers saved, with modules on both sides, in float64."""
    home = tmp_path_factory.mktemp("modules")
    sentences.encoder().save_pretrained(home / "plain")
    torch.manual_seed(0)
    transformer = loaded(home / "plain")[0]
    transformer.model.config.output_hidden_states = True
    elu, prelu = torch.nn.ELU(), torch.nn.PReLU()
    modules = [
        transformer,
        drawn(reference.WeightedLayerPooling(24, num_hidden_layers=2, layer_start=1), 0.2),
        drawn(reference.Dense(24, 12, activation_function=elu, module_input_name=TOKENS)),
        reference.Normalize(TOKENS),
        reference.Pooling(12, ["cls", "mean"]),
        reference.Normalize(),
        drawn(reference.Dense(24, 24, use_residual=True)),
        drawn(reference.Dense(24, 9, activation_function=prelu, use_residual=True), -0.2, 0.3),
        drawn(reference.LayerNorm(9)),
        reference.Dropout(0.4),
    ]
    SentenceTransformer(modules=modules, device="cpu").double().save(str(home / "theirs"))
    return home / "theirs"


@pytest.fixture(scope="module")
def expected(folder) -> np.ndarray:
    theirs = loaded(folder)
    assert [type(module).__name__ for module in theirs].count("Dense") == 3
    return theirs.double().encode(TEXTS)


def test_all_modules_in_float64(folder, expected):
    with jax.enable_x64(True):
        found = SentenceEncoder.from_pretrained(folder).encode(TEXTS)
    assert found.dtype == expected.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=0, atol=FLOAT64)


def from_layer(start):
    def change(chain):
        chain[0].layer_start = start
        chain[0].layer_weights = nnx.Param(jnp.ones(3 - start))

    return change


MISTAKES = {
    "none": lambda chain: None,
    "equal weights of layers": lambda chain: chain[0].layer_weights.set_value(jnp.ones(2)),
    "all layers": from_layer(0),
    "the last layer": from_layer(2),
    "another activation": lambda chain: setattr(chain[1].activation_function, "name", "relu"),
    "token vectors of other lengths": lambda chain: chain.__delitem__(2),
    "no residual": lambda chain: setattr(chain[5], "use_residual", False),
    "the input as the residual": lambda chain: chain[6].residual.kernel.set_value(jnp.eye(24, 9)),
    "PyTorch's initial slope": lambda chain: chain[6].activation_function.weight.set_value(
        jnp.full(1, 0.25)
    ),
    "BERT's epsilon": lambda chain: setattr(chain[7].norm, "epsilon", 1e-12),
    "no shift": lambda chain: chain[7].norm.bias.set_value(jnp.zeros(9)),
}


@pytest.fixture(scope="module")
def states(folder):
    """Returns the hidden states of the last of the texts, in float64."""
    with jax.enable_x64(True):
        ours = SentenceEncoder.from_pretrained(folder)
        given = ours.tokenize(TEXTS[-1:])
        return minibert.compiled(ours.model.transformer)(**given).hidden_states


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_module(mistake, folder, expected, states):
    with jax.enable_x64(True):
        ours = SentenceEncoder.from_pretrained(folder)
        MISTAKES[mistake](chain := list(ours.model.chain))
        model, mask = (
            SentenceModel(ours.model.transformer, chain),
            jnp.ones(states[0].shape[:2], bool),
        )
        found = jax.jit(lambda model: model.pooled(model.combined(states), mask))(model)
    difference = np.abs(np.asarray(found)[0] - expected[-1]).max()
    assert difference < FLOAT64 if mistake == "none" else difference > 1000 * FLOAT64


@pytest.mark.slow
def test_all_modules_there_and_back(folder, tmp_path):
    theirs = loaded(folder).float()
    theirs.save(str(tmp_path / "theirs"))
    ours, expected = SentenceEncoder.from_pretrained(tmp_path / "theirs"), theirs.encode(TEXTS)
    found = ours.encode(TEXTS)
    np.testing.assert_allclose(found, expected, rtol=0, atol=EMBEDDING)
    np.testing.assert_allclose(ours.encode(TEXTS, packing=16), expected, rtol=0, atol=EMBEDDING)
    pairs = zip(
        ours.encode(TEXTS, output_value=TOKENS),
        theirs.encode(TEXTS, output_value=TOKENS),
        strict=True,
    )
    for one, other in pairs:
        np.testing.assert_allclose(one, other, rtol=0, atol=EMBEDDING)
    ours.set_pooling_include_prompt(False)
    theirs.set_pooling_include_prompt(False)
    prompted = theirs.encode(TEXTS, prompt="it is ")
    np.testing.assert_allclose(
        ours.encode(TEXTS, prompt="it is "), prompted, rtol=0, atol=EMBEDDING
    )
    ours.set_pooling_include_prompt(True)
    ours.save_pretrained(tmp_path / "ours")
    back = loaded(tmp_path / "ours")
    np.testing.assert_allclose(back.encode(TEXTS), expected, rtol=0, atol=EMBEDDING)
    again = SentenceEncoder.from_pretrained(tmp_path / "ours")
    np.testing.assert_array_equal(again.encode(TEXTS), found)
    assert str(again.model.chain) == str(ours.model.chain)


def test_new_modules_are_saved(tmp_path):
    """A transformer whose config does not return hidden states, and new modules of ours."""
    rngs = nnx.Rngs(0)
    modules = [
        WeightedLayerPooling(24, 2, 0, rngs=rngs),
        Dense(24, 8, activation="prelu", use_residual=True, rngs=rngs),
        Pooling("max", 8),
        LayerNorm(8, rngs=rngs),
        Dropout(0.5),
        Dense(8, 5, activation="softsign", rngs=rngs),
        Normalize(),
    ]
    ours = SentenceEncoder(sentences.model(), sentences.tokenizer(), modules=modules)
    assert ours.get_embedding_dimension() == 5
    ours.save_pretrained(tmp_path / "ours")
    theirs = loaded(tmp_path / "ours")
    assert [type(one).__name__ for one in theirs][1:] == [type(one).__name__ for one in modules]
    np.testing.assert_allclose(ours.encode(TEXTS), theirs.encode(TEXTS), rtol=0, atol=EMBEDDING)


NUMBERS = np.array([*np.linspace(-30, 30, 241), -700, 700, *np.linspace(-4, 4, 33)])


@pytest.mark.parametrize("kind", [k for k, ours in TORCH_ACTIVATIONS.items() if ours in TORCH_ONLY])
def test_an_activation_of_pytorch(kind):
    """Value and derivative, also at the bounds of the pieces."""
    given = torch.tensor(NUMBERS, requires_grad=True)
    theirs = getattr(torch.nn, kind)()(given)
    theirs.sum().backward()
    with jax.enable_x64(True):
        function = activation_module(TORCH_ACTIVATIONS[kind], rngs=None, param_dtype="float64")
        values, back = jax.vjp(function, jnp.asarray(NUMBERS))
        (slopes,) = back(jnp.ones_like(values))
    np.testing.assert_allclose(values, theirs.detach(), rtol=1e-12, atol=1e-15)
    sixth = 1e-7 if kind == "Hardsigmoid" else 1e-12  # PyTorch's is a float32 in the gradient
    np.testing.assert_allclose(slopes, given.grad, rtol=sixth, atol=1e-15)


@pytest.fixture
def small(tmp_path):
    """Returns a folder whose Dense stands before the Pooling, after a WeightedLayerPooling."""
    modules = [
        WeightedLayerPooling(24, 2, 1, rngs=nnx.Rngs(0)),
        sentences.dense(24, 8),
        Pooling("mean", 8),
        LayerNorm(8, rngs=nnx.Rngs(0)),
        Dropout(0.5),
    ]
    ours = SentenceEncoder(sentences.model(), sentences.tokenizer(), modules=modules)
    ours.save_pretrained(tmp_path / "small")
    return tmp_path / "small"


WEIGHTED, DENSE, NORM, DROPOUT = (
    f"{name}/config.json"
    for name in ("1_WeightedLayerPooling", "2_Dense", "4_LayerNorm", "5_Dropout")
)


@pytest.mark.parametrize(
    ("file", "changes", "error", "message"),
    [
        (WEIGHTED, {"layer_start": 3}, ConfigError, "layer_start: expected a whole number from 0"),
        (WEIGHTED, {"layer_start": 0}, CheckpointMismatchError, "'layer_weights': expected shape"),
        (WEIGHTED, {"num_hidden_layers": 12}, ConfigError, "num_hidden_layers: .* from 2 to 2"),
        (WEIGHTED, {"word_embedding_dimension": 8}, ConfigError, "dimension: expected 24"),
        ("config.json", {"output_hidden_states": False}, UnsupportedConfigError, "ignores this"),
        (
            DENSE,
            {"module_input_name": "sentence_embedding"},
            UnsupportedConfigError,
            "module_input_name: expected 'token_embeddings' before the Pooling",
        ),
        (DENSE, {"module_input_name": None}, UnsupportedConfigError, "module_input_name: expected"),
        (
            DENSE,
            {"module_output_name": "other"},
            UnsupportedConfigError,
            "module_output_name: expected 'token_embeddings' before the Pooling, found 'other'",
        ),
        (DENSE, {"use_residual": True}, CheckpointMismatchError, "'residual.weight': missing"),
        (DENSE, {"use_residual": 1}, ConfigError, "use_residual: expected true or false"),
        (NORM, {"dimension": 9}, ConfigError, "dimension: expected 8, the width of its input"),
        (NORM, {"epsilon": 1e-6}, UnsupportedConfigError, "epsilon"),
        (DROPOUT, {"dropout": 2}, ConfigError, "dropout: expected a number from 0 to 1, found 2"),
        (DROPOUT, {"dropout": None}, ConfigError, "dropout: expected a number from 0 to 1"),
    ],
)
def test_a_wrong_field_of_a_module(file, changes, error, message, small):
    path = small / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(error, match=message):
        SentenceEncoder.from_pretrained(small)


def test_modules_that_do_not_fit():
    parts, rngs = (sentences.model(), sentences.tokenizer()), nnx.Rngs(0)
    mean, weighted = Pooling("mean", 24), WeightedLayerPooling(24, 2, 1, rngs=rngs)
    for message, modules in {
        "expected one Pooling, found nothing": [],
        "expected one Pooling, found Pooling, Pooling": [mean, mean],
        "expected only WeightedLayerPooling, Dense, Normalize before the Pooling, found Lay": [
            LayerNorm(24, rngs=rngs),
            mean,
        ],
        "expected only Dense, LayerNorm, Dropout, Normalize after the Pooling, found Weighted": [
            mean,
            weighted,
        ],
        "WeightedLayerPooling: expected as the first module": [Normalize(), weighted, mean],
        "expected num_hidden_layers=2, the transformer's; found 12": [
            WeightedLayerPooling(24, rngs=rngs),
            mean,
        ],
        "LayerNorm: expected in_features=24, found 9": [mean, LayerNorm(9, rngs=rngs)],
    }.items():
        with pytest.raises(InputError, match=message):
            SentenceEncoder(*parts, modules=modules)
    for option in ({"pooling": "cls"}, {"normalize": True}, {"dense": sentences.dense(24, 3)}):
        with pytest.raises(InputError, match="modules: expected None with pooling"):
            SentenceEncoder(*parts, modules=[mean], **option)
    with pytest.raises(InputError, match="expected as the first module, with layers='last'"):
        SentenceEncoder(*parts, modules=[weighted, mean], layers="sum_of_last_four")
    for odd in ("Pooling", mean, [Pooling], [None], 3):
        with pytest.raises(InputError, match="modules: expected a list of modules, found"):
            SentenceEncoder(*parts, modules=odd)
    with pytest.raises(InputError, match="activation: expected a name of ACTIVATIONS"):
        Dense(3, 3, activation="xielu", rngs=None)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Dropout(2.0), "rate: expected a number from 0 to 1, found 2.0"),
        (lambda: Dense(3, 0, rngs=None), "out_features: expected a whole number of at least 1"),
        (lambda: Dense(3, 4.5, rngs=None), "out_features: "),
        (lambda: Dense(3, 4, bias="no", rngs=None), "bias: expected True or False, found 'no'"),
        (lambda: LayerNorm(-1, rngs=None), "in_features: "),
        (lambda: Pooling("mean", 4.0), "in_features: "),
        (lambda: Pooling("mean", 4, "no"), "include_prompt: expected True or False"),
        (lambda: WeightedLayerPooling(4, 0, rngs=None), "num_hidden_layers: "),
    ],
)
def test_wrong_arguments_of_a_module(make, said):
    """They are not found only when the folder that was saved is read."""
    with pytest.raises(InputError, match=f"^{said}"):
        make()


def test_dropout_drops_only_in_training():
    """Of the objective's modules: with random keys, as in a step, and not in an evaluation."""
    ids = np.array([[2, 9, 8, 3], [2, 7, 5, 3]])
    batch = {"anchor_input_ids": ids, "positive_input_ids": ids}
    model, rngs = sentences.model(), nnx.Rngs(dropout=0)
    plain, dropping = (
        train.contrastive(modules=modules) for modules in ([], [Dropout(0.5).eval()])
    )
    expected = plain.apply(model, batch, None)
    np.testing.assert_array_equal(dropping.apply(model, batch, None), expected)
    np.testing.assert_array_equal(plain.apply(model, batch, rngs), expected)
    # without dropout each text equals itself: a cosine of 1, times 20
    np.testing.assert_allclose(np.diag(expected), 20, rtol=1e-5)
    assert np.diag(dropping.apply(model, batch, rngs)).max() < 19


def test_training_refuses_modules_before_the_pooling(small):
    ours = SentenceEncoder.from_pretrained(small)
    with (
        pytest.raises(UnsupportedConfigError, match="directly after the Transformer, found a Weig"),
        open_initial_model(str(small)) as start,
    ):
        encoder_modules(start, None, ours.model.transformer, ours.tokenizer)


@pytest.mark.slow
def test_a_router_is_refused_and_its_routes_are_encoders(tmp_path):
    """As the message says, each route saved by itself is an encoder."""
    sentences.encoder().save_pretrained(tmp_path / "plain")
    documents = [*loaded(tmp_path / "plain"), drawn(reference.Dense(24, 24))]
    queries = list(loaded(tmp_path / "plain"))
    router = Router.for_query_document(query_modules=queries, document_modules=documents)
    model = SentenceTransformer(modules=[router, reference.Normalize()], device="cpu")
    model.save(str(tmp_path / "router"))
    with pytest.raises(UnsupportedConfigError, match=r"Router.*save each of its routes") as caught:
        SentenceEncoder.from_pretrained(tmp_path / "router")
    code = str(caught.value)
    code = code[code.index("SentenceTransformer(") : code.index(", and load one")]
    for route in ("query", "document"):
        home = str(tmp_path / route)
        line = code.replace("query", route).replace("'queries'", repr(home))
        exec(line, {"SentenceTransformer": SentenceTransformer, "model": model})
        found = SentenceEncoder.from_pretrained(home).encode(TEXTS)
        expected = getattr(model, f"encode_{route}")(TEXTS)
        np.testing.assert_allclose(found, expected, rtol=0, atol=EMBEDDING)
