"""What GPT-2 alone has, beside PyTorch's, in float64: counted positions, packed texts, …"""

import jax.numpy as jnp
import numpy as np
import pytest

from conftest import FLOAT32, FLOAT64

torch = pytest.importorskip("torch", reason="the oracle is PyTorch")

import oracle  # noqa: E402
from oracle import ALL, arguments, worst  # noqa: E402

LM, BARE = "GPT2LMHeadModel", "GPT2Model"


def counted(mask):
    """Positions as transformers' `generate` counts them: padding takes none."""
    return np.maximum(np.cumsum(mask, axis=-1) - 1, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", [BARE, LM])
def test_left_padding_with_counted_positions(name, tmp_path):
    """Every row computes what it computes alone, without padding."""
    theirs = oracle.saved(name, tmp_path)
    given = arguments(name, padding="left")
    given["position_ids"] = counted(given["attention_mask"])
    assert worst(name, tmp_path, theirs, given) <= FLOAT64
    with oracle.float64():
        model = oracle.ours(name, tmp_path, param_dtype=jnp.float64)
        together = model(**given)[0]
        for row, length in enumerate(oracle.LENGTHS):
            del_padding = {key: given[key][row : row + 1, -length:] for key in given}
            alone = model(del_padding["input_ids"], token_type_ids=del_padding["token_type_ids"])
            assert np.abs(together[row, -length:] - alone[0][0]).max() <= FLOAT64


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("by_layer", [True, False])
def test_reordered_and_upcast_attention(by_layer, scaled, tmp_path):
    """It changes rounding alone: PyTorch has it in float32 only, and in float64 it is nothing."""
    switches = {"scale_attn_by_inverse_layer_idx": by_layer, "scale_attn_weights": scaled}
    plain = oracle.torch_model(LM, **switches)
    theirs = oracle.saved(LM, tmp_path, reorder_and_upcast_attn=True, **switches)
    given = arguments(LM)
    assert worst(LM, tmp_path, plain, given) <= FLOAT64
    with pytest.raises(RuntimeError, match="float32"):
        oracle.run_torch(theirs.double(), given)
    expected = oracle.run_torch(theirs.float(), given, **ALL)
    model = oracle.ours(LM, tmp_path)
    assert model.config.reorder_and_upcast_attn
    errors = oracle.errors(model(**given, **ALL), expected, given["attention_mask"])
    logits = errors.pop("logits")
    assert max(errors.values()) <= FLOAT32
    assert logits <= 2 * FLOAT32


PACKED = {
    "three texts": [[0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3]],
    "one text": [list(range(11))],
    "one text from 5": [list(range(5, 16))],
    "a jump": [[0, 1, 2, 3, 7, 8, 9, 10, 11, 12, 13]],
    "a text a token": [[0] * 11],
    "backwards": [list(range(10, -1, -1))],
    "rows differ": [[0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3], list(range(11)), [0, 1] * 5 + [0]],
}


@pytest.mark.parametrize("use_cache", [False, None])
@pytest.mark.parametrize("positions", PACKED)
def test_packed_texts(positions, use_cache, tmp_path):
    """Positions that restart separate texts where transformers separates them: without a cache."""
    packed(positions, use_cache, tmp_path)


@pytest.mark.parametrize(
    ("use_cache", "config"),
    [(None, {"use_cache": False}), (False, {"is_causal": False})],
    ids=["config", "not causal"],
)
def test_packed_texts_by_the_config(use_cache, config, tmp_path):
    packed("rows differ", use_cache, tmp_path, config)


def packed(positions, use_cache, folder, config=()):
    theirs = oracle.saved(BARE, folder, **dict(config))
    given = arguments(BARE)
    del given["attention_mask"]
    given["position_ids"] = np.array(PACKED[positions])
    flags = ALL | {"use_cache": use_cache}
    assert worst(BARE, folder, theirs, given, flags) <= FLOAT64


@pytest.mark.parametrize("padding", ["right", "left", None])
@pytest.mark.parametrize("name", [BARE, "GPT2ForSequenceClassification"])
def test_attention_both_ways(name, padding, tmp_path):
    theirs = oracle.saved(name, tmp_path, is_causal=False, pad_token_id=0)
    given = arguments(name, padding=padding)
    if padding is None:
        del given["attention_mask"]
    assert worst(name, tmp_path, theirs, given) <= FLOAT64


def test_a_mask_overrules_positions(tmp_path):
    theirs = oracle.saved(BARE, tmp_path)
    given = arguments(BARE) | {"position_ids": np.array(PACKED["three texts"])}
    assert worst(BARE, tmp_path, theirs, given, ALL | {"use_cache": False}) <= FLOAT64


@pytest.mark.slow
def test_texts_in_one_row_are_texts_in_rows_of_their_own(tmp_path):
    oracle.saved(LM, tmp_path)
    with oracle.float64():
        model = oracle.ours(LM, tmp_path, param_dtype=jnp.float64)
        ids = arguments(LM, padding=None)["input_ids"][:1]
        packed = model(ids, position_ids=np.array(PACKED["three texts"]), use_cache=False).logits
        for start, end in ((0, 4), (4, 7), (7, 11)):
            alone = model(ids[:, start:end]).logits
            assert np.abs(packed[:, start:end] - alone).max() <= FLOAT64


@pytest.mark.parametrize("shape", [(3,), (2, 3)], ids=["heads", "layers by heads"])
@pytest.mark.parametrize("crossed", [False, True])
def test_head_mask_of_cross_attention(crossed, shape, tmp_path):
    """Its heads are masked as well, as transformers 4 did, and the returned weights are scaled."""
    theirs = oracle.saved(LM, tmp_path, add_cross_attention=crossed).double()
    factors = np.random.default_rng(0).random(shape)
    given = arguments(LM)
    if crossed:
        given["encoder_hidden_states"] = np.random.default_rng(1).normal(size=(3, 5, 24))
    oracle.scale_heads(theirs, np.broadcast_to(factors, (2, 3)))
    expected = oracle.run_torch(theirs, given, output_hidden_states=True)
    with oracle.float64():
        model = oracle.ours(LM, tmp_path, param_dtype=jnp.float64)
        found = model(**given, head_mask=factors, output_hidden_states=True)
        weights = model(**given, head_mask=factors, output_attentions=True).attentions[1]
        unmasked = model(**given, head_mask=np.ones(3), output_attentions=True).attentions[1]
    assert max(oracle.errors(found, expected, given["attention_mask"]).values()) <= FLOAT64
    assert weights.shape == unmasked.shape
    sums = np.asarray(weights).sum(-1)
    np.testing.assert_allclose(sums, np.broadcast_to(factors, (2, 3))[1][:, None] + 0 * sums)


def test_hidden_states_begin_before_any_norm_and_end_after_the_last(tmp_path):
    oracle.saved(LM, tmp_path)
    model, given = oracle.ours(LM, tmp_path), arguments(LM)
    outputs = model.transformer(**given, output_hidden_states=True)
    assert len(outputs.hidden_states) == model.config.n_layer + 1
    words, positions = model.transformer.wte, model.transformer.wpe
    first = words(given["input_ids"]) + positions(np.arange(11)[None])
    first = first + words(given["token_type_ids"])
    np.testing.assert_allclose(outputs.hidden_states[0], first, atol=1e-6)
    np.testing.assert_array_equal(outputs.hidden_states[-1], outputs.last_hidden_state)
    normed = np.asarray(outputs.last_hidden_state - model.transformer.ln_f.bias[...])
    normed = normed / np.asarray(model.transformer.ln_f.scale[...])
    np.testing.assert_allclose(normed.std(-1), 1, atol=1e-3)
    np.testing.assert_allclose(model(**given).logits, outputs[0] @ words.embedding[...].T)


@pytest.mark.parametrize("kept", [0, 1, 4, 11, 12])
def test_logits_to_keep(kept, tmp_path):
    theirs = oracle.saved(LM, tmp_path)
    given = arguments(LM, padding=None)
    del given["attention_mask"]
    assert worst(LM, tmp_path, theirs, given, ALL | {"logits_to_keep": kept}) <= FLOAT64


@pytest.mark.slow
def test_gradients_under_left_padding(tmp_path):
    theirs = oracle.saved(LM, tmp_path)
    given = arguments(LM, padding="left")
    given["position_ids"] = counted(given["attention_mask"])
    assert oracle.worst_gradient(LM, tmp_path, theirs, given) <= 1
