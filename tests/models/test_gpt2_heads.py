"""GPT-2's heads in their corners, beside PyTorch's, in float64: choices, summaries, last tokens."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import minibert
from conftest import FLOAT64
from minibert.errors import InputError
from slowly import slow_but

torch = pytest.importorskip("torch", reason="the oracle is PyTorch")

import oracle  # noqa: E402
from minibert.models.gpt2.config import SUMMARY_TYPES  # noqa: E402
from oracle import ALL, arguments, worst  # noqa: E402

DOUBLE, CLASSIFIER = "GPT2DoubleHeadsModel", "GPT2ForSequenceClassification"
CHOSEN = np.array([[10, 6, 3]])


@pytest.mark.parametrize("choices", slow_but([True, False], True), ids=["choices", "no choices"])
@pytest.mark.parametrize(
    ("kind", "projected", "to_labels"),
    list(itertools.product(SUMMARY_TYPES, [True, False], [True, False])),
)
def test_summaries(kind, projected, to_labels, choices, tmp_path):
    switches = {
        "summary_type": kind,
        "summary_use_proj": projected,
        "summary_proj_to_labels": to_labels,
        "summary_activation": "tanh" if to_labels else None,
    }
    theirs = oracle.saved(DOUBLE, tmp_path, **switches)
    given = arguments(DOUBLE) | {"mc_token_ids": CHOSEN}
    if not choices:
        given = {key: array[0] for key, array in given.items()}
    assert worst(DOUBLE, tmp_path, theirs, given) <= FLOAT64


@pytest.mark.parametrize("activation", ["relu", "gelu", "sigmoid", "gelu_new"])
def test_summary_activation(activation, tmp_path):
    theirs = oracle.saved(DOUBLE, tmp_path, summary_activation=activation)
    assert worst(DOUBLE, tmp_path, theirs, arguments(DOUBLE)) <= FLOAT64


@pytest.mark.parametrize("chosen", [None, CHOSEN, np.zeros((1, 3), int)])
def test_chosen_tokens(chosen, tmp_path):
    """By default the last token stands for its choice, padding or not."""
    theirs = oracle.saved(DOUBLE, tmp_path)
    given = arguments(DOUBLE) | ({} if chosen is None else {"mc_token_ids": chosen})
    assert worst(DOUBLE, tmp_path, theirs, given) <= FLOAT64


@pytest.mark.parametrize("shape", [(1, 3), (3, 1), (3, 2)])
def test_choices_are_rows(shape, tmp_path):
    """Several rows of several choices, positions and embeddings too: as in rows of their own."""
    oracle.saved(DOUBLE, tmp_path)
    draw = np.random.default_rng(0)
    given = {
        "inputs_embeds": draw.normal(size=(*shape, 11, 24)),
        "attention_mask": np.ones((*shape, 11), int),
        "token_type_ids": draw.integers(0, 97, (*shape, 11)),
        "position_ids": draw.integers(0, 40, (*shape, 11)),
        "mc_token_ids": draw.integers(0, 11, shape),
    }
    rows = {key: array.reshape(-1, *array.shape[2:]) for key, array in given.items()}
    with oracle.float64():
        model = oracle.ours(DOUBLE, tmp_path, param_dtype=jnp.float64)
        joined, apart = model(**given, **ALL), model(**rows, **ALL)
    assert joined.logits.shape == (*shape, 11, 97)
    assert joined.mc_logits.shape == shape
    np.testing.assert_array_equal(joined.logits.reshape(-1, 11, 97), apart.logits)
    np.testing.assert_array_equal(joined.mc_logits.reshape(-1), apart.mc_logits)
    assert joined.hidden_states[-1].shape == (*shape, 11, 24)
    for one, other in zip(joined.hidden_states, apart.hidden_states, strict=True):
        np.testing.assert_array_equal(one.reshape(other.shape), other)


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("pad", [0, 5, 96, -1, 1000])
def test_the_last_token_that_is_not_padding_is_classified(pad, padding, tmp_path):
    """It is known by its id, whether it stands at the end, at the start, or inside."""
    theirs = oracle.saved(CLASSIFIER, tmp_path, pad_token_id=pad, num_labels=5)
    given = arguments(CLASSIFIER, padding=padding)
    if 0 <= pad < 97:
        given["input_ids"] = np.where(given["attention_mask"], given["input_ids"], pad)
        given["input_ids"][:, 5] = pad
        given["input_ids"][2] = pad
    assert worst(CLASSIFIER, tmp_path, theirs, given) <= FLOAT64


@pytest.mark.parametrize("pad", [None, 0])
def test_of_embeddings_the_last_position_is_classified(pad, tmp_path):
    theirs = oracle.saved(CLASSIFIER, tmp_path, pad_token_id=pad, num_labels=5)
    rows = 1 if pad is None else 3
    given = {"inputs_embeds": np.random.default_rng(0).normal(size=(rows, 11, 24))}
    assert worst(CLASSIFIER, tmp_path, theirs, given) <= FLOAT64


def test_one_row_needs_no_padding_token(tmp_path):
    theirs = oracle.saved(CLASSIFIER, tmp_path, num_labels=5)
    given = {key: array[1:2] for key, array in arguments(CLASSIFIER).items()}
    assert worst(CLASSIFIER, tmp_path, theirs, given) <= FLOAT64
    with pytest.raises(ValueError, match="no padding token"):
        oracle.run_torch(theirs, arguments(CLASSIFIER))
    with pytest.raises(InputError, match=r"found 3; for several rows set config\.pad_token_id"):
        oracle.ours(CLASSIFIER, tmp_path)(**arguments(CLASSIFIER))


@pytest.mark.parametrize("labels", [1, 2, 9])
@pytest.mark.parametrize("name", [CLASSIFIER, "GPT2ForTokenClassification"])
def test_labels(name, labels, tmp_path):
    theirs = oracle.saved(name, tmp_path, num_labels=labels, pad_token_id=0)
    assert worst(name, tmp_path, theirs, arguments(name)) <= FLOAT64


@pytest.mark.slow
def test_the_last_dropout_of_the_summary():
    """It acts on the scores of choices, even if nothing else is dropped."""
    rates = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    config = minibert.GPT2Config.tiny(
        **rates, summary_first_dropout=0.0, summary_last_dropout=0.5, summary_proj_to_labels=False
    )
    model = minibert.GPT2DoubleHeadsModel(config, rngs=nnx.Rngs(0))
    ids = np.arange(18).reshape(1, 2, 9)
    one, other = (model(ids, rngs=nnx.Rngs(dropout=key)) for key in (0, 1))
    np.testing.assert_array_equal(one.logits, other.logits)
    assert np.abs(one.mc_logits - other.mc_logits).max() > 1e-3
    assert np.abs(one.mc_logits - model.eval()(ids).mc_logits).max() > 1e-3
