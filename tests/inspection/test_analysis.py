"""Analyses against numpy, torch and scikit-learn, and against what must hold."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import minibert
from minibert import analysis
from minibert.errors import InputError
from minibert.inspection.capture import captured

CLOSE = 1e-6
RANDOM = np.random.default_rng(0)
MASK = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0]])
STATES = tuple(RANDOM.normal(size=(3, 6, 8)).astype(np.float32) for _ in range(4))


def test_layers_pooled_as_by_torch():
    torch = pytest.importorskip("torch")
    mask = torch.tensor(MASK)
    found = analysis.pool_layers(STATES, MASK)
    assert found.shape == (4, 3, 8)
    for ours, state in zip(found, STATES, strict=True):
        wide = mask.unsqueeze(-1).expand(state.shape).float()
        theirs = (torch.tensor(state) * wide).sum(1) / wide.sum(1).clamp(min=1e-9)
        np.testing.assert_allclose(ours, theirs, atol=CLOSE)
    first = analysis.pool_layers(STATES, MASK, "cls")
    np.testing.assert_array_equal(first[2, :, 0], STATES[2][[0, 1, 2], [0, 0, 2], 0])
    with pytest.raises(InputError, match=r"pooling: expected one of cls, .*found 'middle'"):
        analysis.pool_layers(STATES, MASK, "middle")
    with pytest.raises(InputError, match=r"attention_mask: expected .3, 6., as the states"):
        analysis.pool_layers(STATES, MASK[:, :5])


def test_similarities_of_layers():
    pairwise = pytest.importorskip("sklearn.metrics.pairwise")
    pooled = analysis.pool_layers(STATES, MASK)
    static, steps = analysis.static_to_layers(pooled), analysis.layer_to_layer(pooled)
    assert static.shape == steps.shape == (3, 3)
    for layer in range(3):
        for text in range(3):
            behind = pooled[layer + 1, text]
            (expected,) = pairwise.cosine_similarity([pooled[0, text]], [behind])[0]
            assert static[layer, text] == pytest.approx(expected, abs=CLOSE)
            (expected,) = pairwise.cosine_similarity([pooled[layer, text]], [behind])[0]
            assert steps[layer, text] == pytest.approx(expected, abs=CLOSE)


def test_similarity_matrices():
    torch = pytest.importorskip("torch")
    vectors = STATES[0][0]
    found = analysis.similarity_matrices(vectors)
    assert list(found) == ["cosine", "softmax", "softmax × 10"]
    tensor = torch.tensor(vectors)
    theirs = torch.nn.functional.cosine_similarity(tensor[:, None], tensor[None], dim=-1)
    np.testing.assert_allclose(found["cosine"], theirs, atol=CLOSE)
    for name, factor in (("softmax", 1), ("softmax × 10", 10)):
        wide = tensor.double() * factor
        theirs = torch.softmax(wide @ wide.T, dim=-1)
        np.testing.assert_allclose(found[name], theirs, atol=CLOSE)
        np.testing.assert_allclose(found[name].sum(1), 1, atol=CLOSE)


def test_described_as_by_pandas():
    """Values whose `describe()` returns these for 1, 2, 4, 8."""
    found = analysis.describe([8, 1, 4, 2])
    assert list(found) == ["count", "mean", "std", "min", "25%", "50%", "75%", "max"]
    expected = [4, 3.75, 3.095695936834452, 1, 1.75, 3, 5, 8]
    np.testing.assert_allclose(list(found.values()), expected)
    with pytest.raises(InputError, match="values: expected at least one"):
        analysis.describe([])


def test_one_token_through_the_layers():
    found = analysis.token_through_layers(STATES, 1, 2)
    states = np.stack([state[1, 2] for state in STATES]).astype(np.float64)
    lengths = np.linalg.norm(states, axis=1)
    np.testing.assert_allclose(found["norm"], lengths, rtol=CLOSE)
    for name, other in (("to_first", 0), ("to_last", -1)):
        expected = states @ states[other] / lengths / lengths[other]
        np.testing.assert_allclose(found[name], expected, atol=CLOSE)
    with pytest.raises(InputError, match="position: expected a whole number from 0 to 5"):
        analysis.token_through_layers(STATES, 1, 6)


def test_attention_statistics():
    """By loops over every text and token, of random weights on real tokens."""
    scores = RANDOM.normal(size=(2, 3, 4, 6, 6))
    weights = np.exp(scores) * MASK[None, :, None, None, :]
    weights /= weights.sum(-1, keepdims=True)
    found = analysis.attention_statistics(weights.astype(np.float32), MASK)
    sums = {name: np.zeros((2, 4)) for name in found}
    for text, mask in enumerate(MASK):
        real = np.flatnonzero(mask)
        for token in real:
            row = weights[:, text, :, token]
            sums["entropy"] -= (row[..., real] * np.log(row[..., real])).sum(-1)
            for other in real:
                share = row[..., other]
                sums["distance"] += share * abs(int(token) - int(other))
                sums["itself"] += share * (token == other)
                sums["previous"] += share * (token - other == 1)
                sums["next"] += share * (other - token == 1)
                sums["first"] += share * (other == real[0])
    for name, total in sums.items():
        np.testing.assert_allclose(found[name], total / MASK.sum(), atol=CLOSE, err_msg=name)
    even = np.full((1, 1, 1, 6, 6), 1 / 6)
    found = analysis.attention_statistics(even, MASK[:1])
    assert found["entropy"] == pytest.approx(np.log(6))


def made(name):
    rngs = nnx.Rngs(0)
    if name == "gpt2":
        return minibert.GPT2LMHeadModel(minibert.GPT2Config.tiny(), rngs=rngs).eval()
    return minibert.BertForMaskedLM(minibert.BertConfig.tiny(), rngs=rngs).eval()


IDS = np.arange(10).reshape(2, 5)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_logit_lens(name):
    model = made(name)
    found = analysis.logit_lens(model, IDS)
    outputs = model(IDS, output_hidden_states=True)
    assert found.shape == (3, *outputs.logits.shape)
    np.testing.assert_allclose(found[-1], outputs.logits, atol=CLOSE)
    for layer in range(2):  # the last of GPT-2's states is behind its norm
        state = outputs.hidden_states[layer]
        if name == "gpt2":
            table = model.transformer.wte.embedding[...]
            expected = model.transformer.ln_f(state) @ table.T
        else:
            expected = model.cls(state, model.bert.embeddings.word_embeddings.embedding[...])
        np.testing.assert_allclose(found[layer], expected, atol=CLOSE)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_heads_knocked_out(name):
    model = made(name)
    fallen = analysis.knocked_out(model, lambda outputs: outputs.logits[0, 2, 7], IDS)
    full = float(model(IDS).logits[0, 2, 7])
    assert fallen.shape == (2, 3)
    for layer, head in ((0, 1), (1, 2)):
        factors = np.ones((2, 3), np.float32)
        factors[layer, head] = 0
        without = float(model(IDS, head_mask=factors).logits[0, 2, 7])
        assert fallen[layer, head] == pytest.approx(full - without, abs=CLOSE)
    assert np.abs(fallen).min() > 0


@pytest.mark.slow
def test_texts_embedded_by_layer():
    model = minibert.BertModel(minibert.BertConfig.tiny(), rngs=nnx.Rngs(0)).eval()
    inputs = {
        "input_ids": RANDOM.integers(0, 97, (6, 6)),
        "attention_mask": np.concatenate([MASK, MASK]),
    }
    layers, pooled = analysis.embed_by_layer(model, inputs, batch_size=4)
    assert layers.shape == (3, 6, 24)
    outputs = model(**inputs, output_hidden_states=True)
    expected = analysis.pool_layers(outputs.hidden_states, inputs["attention_mask"])
    np.testing.assert_allclose(layers, expected, atol=CLOSE)
    np.testing.assert_allclose(pooled, outputs.pooler_output, atol=CLOSE)
    with pytest.raises(InputError, match=r"attention_mask, found .'input_ids'"):
        analysis.embed_by_layer(model, {"input_ids": inputs["input_ids"]})
    with pytest.raises(InputError, match="inputs: expected texts"):
        analysis.embed_by_layer(model, {name: array[:0] for name, array in inputs.items()})


def test_nearest_words():
    class Tokenizer:
        def convert_ids_to_tokens(self, ids):
            return [f"w{number}" for number in ids]

    table = jnp.eye(4)
    found = analysis.nearest_words(table, jnp.array([0.0, 3.0, 4.0, 0.0]), Tokenizer(), 2)
    assert [name for name, _ in found] == ["w2", "w1"]
    np.testing.assert_allclose([value for _, value in found], [0.8, 0.6], atol=CLOSE)


def test_a_replaced_state_is_what_the_lens_reads():
    """A lens without the norm or the head would return other numbers."""
    model = made("gpt2")
    last = analysis.last_block(model)
    assert last == "transformer.h.1"
    zero = captured(model, (), IDS, replace={last: lambda value: value * 0}).outputs.logits
    assert np.abs(np.asarray(zero)).max() < 1e-6


def test_bfloat16_is_compared_in_float32():
    states = tuple(jnp.asarray(state, jnp.bfloat16) for state in STATES)
    pooled = analysis.pool_layers(states, MASK)
    assert pooled.dtype == np.float32
    np.testing.assert_allclose(analysis.pairwise_cosine(pooled[0], pooled[0]), 1, atol=CLOSE)
    assert analysis.token_through_layers(states, 1, 2)["to_first"][0] == pytest.approx(1, abs=CLOSE)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: analysis.pool_layers((), MASK), "hidden_states: expected at least one"),
        (lambda: analysis.attention_statistics(None, MASK), "attentions: .* found 0 layers"),
        (
            lambda: analysis.attention_statistics(np.ones((1, 3, 2, 6, 6)), 0 * MASK),
            "attentions: .* found 1 layers and 0 tokens",
        ),
        (
            lambda: analysis.attention_statistics(np.ones((1, 3, 2, 6, 6)), MASK[:1]),
            r"attention_mask: expected shape .3, 6., found .1, 6.",
        ),
        (
            lambda: analysis.attention_statistics(np.ones((1, 3, 2, 4, 6)), MASK),
            r"attentions: expected shape .3, 2, 6, 6., found .3, 2, 4, 6.",
        ),
        (
            lambda: analysis.knocked_out(made("bert"), lambda outputs: outputs.logits, IDS),
            r"score: expected shape .., found .2, 5, 97.",
        ),
        (
            lambda: analysis.knocked_out(made("bert"), None, IDS, head_mask=np.ones((2, 3))),
            "head_mask: expected none, as knocked_out uses it",
        ),
        (
            lambda: analysis.logit_lens(made("bert").bert, IDS),
            "model: expected one with logits, found BertModel",
        ),
    ],
)
def test_refusals(call, said):
    with pytest.raises(InputError, match=said):
        call()
