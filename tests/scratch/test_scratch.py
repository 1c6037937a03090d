"""Attention from scratch: every printed figure of the course notes, and torch's counterparts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from conftest import FLOAT64
from minibert import scratch
from minibert.errors import InputError

# "Your journey starts with one step", each word in three numbers from 0 to 1.
WORDS = np.array(
    [
        [0.24, 0.40, 0.11],
        [0.63, 0.30, 0.32],
        [1.00, 0.98, 0.45],
        [0.40, 0.26, 0.44],
        [0.38, 0.39, 0.00],
        [0.50, 0.98, 0.72],
    ],
    np.float32,
)
PRINTED = 5e-5 + 1e-6  # four decimals


def printed(found, expected):
    np.testing.assert_allclose(np.asarray(found), expected, rtol=0, atol=PRINTED)


SCORES = [
    [0.2297, 0.3064, 0.6815, 0.2484, 0.2472, 0.5912],
    [0.3064, 0.5893, 1.0680, 0.4708, 0.3564, 0.8394],
    [0.6815, 1.0680, 2.1629, 0.8528, 0.7622, 1.7844],
    [0.2484, 0.4708, 0.8528, 0.4212, 0.2534, 0.7716],
    [0.2472, 0.3564, 0.7622, 0.2534, 0.2965, 0.5722],
    [0.5912, 0.8394, 1.7844, 0.7716, 0.5722, 1.7288],
]
WEIGHTS = [
    [0.1404, 0.1516, 0.2206, 0.1430, 0.1429, 0.2015],
    [0.1190, 0.1579, 0.2549, 0.1403, 0.1251, 0.2028],
    [0.0823, 0.1211, 0.3619, 0.0976, 0.0892, 0.2479],
    [0.1256, 0.1569, 0.2299, 0.1493, 0.1263, 0.2120],
    [0.1383, 0.1543, 0.2315, 0.1392, 0.1453, 0.1914],
    [0.0919, 0.1178, 0.3032, 0.1101, 0.0902, 0.2868],
]
CONTEXT = [
    [0.5620, 0.6082, 0.3713],
    [0.5880, 0.6288, 0.3861],
    [0.6548, 0.7270, 0.4321],
    [0.5726, 0.6184, 0.3858],
    [0.5685, 0.6089, 0.3678],
    [0.6212, 0.7141, 0.4392],
]


def test_attention_of_one_word():
    words = jnp.asarray(WORDS)
    scores = words @ words[1]
    printed(scores, SCORES[1])
    for shares in (scratch.softmax_naive(scores), scratch.softmax(scores)):
        printed(shares, WEIGHTS[1])
        assert float(shares.sum()) == pytest.approx(1)
        printed(shares @ words, CONTEXT[1])


def test_attention_of_all_words():
    words = jnp.asarray(WORDS)
    printed(words @ words.T, SCORES)
    found = scratch.attention(words, words, words)
    printed(found.weights, WEIGHTS)
    printed(found.context, CONTEXT)


def test_large_scores():
    scores = jnp.array([1000.0, 999.0])
    assert np.isnan(scratch.softmax_naive(scores)).all()
    printed(scratch.softmax(scores), [0.7311, 0.2689])


def ported(torch_module, module):
    """Ours with torch's weights, in float64."""
    state = {name: tensor.double().numpy() for name, tensor in torch_module.state_dict().items()}
    for name, tensor in state.items():
        owner, _, kind = name.rpartition(".")
        if owner:
            leaf = getattr(getattr(module, owner), "kernel" if kind == "weight" else "bias")
            leaf.set_value(jnp.asarray(tensor.T if kind == "weight" else tensor))
    return module.eval()


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def references(torch):
    """The notes' modules, as PyTorch has their parts."""

    class SelfAttention(torch.nn.Module):
        def __init__(self, d_in, d_out, bias=False):
            super().__init__()
            self.W_query = torch.nn.Linear(d_in, d_out, bias=bias)
            self.W_key = torch.nn.Linear(d_in, d_out, bias=bias)
            self.W_value = torch.nn.Linear(d_in, d_out, bias=bias)

        def forward(self, x, causal=False):
            return torch.nn.functional.scaled_dot_product_attention(
                self.W_query(x), self.W_key(x), self.W_value(x), is_causal=causal
            )

    class MultiHeadAttention(SelfAttention):
        def __init__(self, d_in, d_out, num_heads, bias=False):
            super().__init__(d_in, d_out, bias)
            self.out_proj = torch.nn.Linear(d_out, d_out)
            self.num_heads = num_heads

        def forward(self, x):
            parts = [
                project(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
                for project in (self.W_query, self.W_key, self.W_value)
            ]
            found = torch.nn.functional.scaled_dot_product_attention(*parts, is_causal=True)
            return self.out_proj(found.transpose(1, 2).flatten(2))

    return SelfAttention, MultiHeadAttention


FIRST = [[-0.0125, 0.1567], [-0.0123, 0.1572], [-0.0129, 0.1581]]
FIRST += [[-0.0121, 0.1572], [-0.0126, 0.1566], [-0.0125, 0.1582]]
CAUSAL = [[-0.2810, -0.1618], [-0.3837, -0.1213], [-0.5832, -0.2144]]
CAUSAL += [[-0.5292, -0.1581], [-0.4817, -0.1670], [-0.5365, -0.1788]]
HEADS = [[0.2035, 0.5207], [0.2297, 0.4747], [0.2453, 0.3592]]
HEADS += [[0.2474, 0.3960], [0.2365, 0.4187], [0.2444, 0.3881]]
MASKED = [
    [1.0000, 0.0000, 0.0000, 0.0000, 0.0000, 0.0000],
    [0.4776, 0.5224, 0.0000, 0.0000, 0.0000, 0.0000],
    [0.2985, 0.3569, 0.3446, 0.0000, 0.0000, 0.0000],
    [0.2360, 0.2568, 0.2508, 0.2564, 0.0000, 0.0000],
    [0.1939, 0.2045, 0.2032, 0.2054, 0.1930, 0.0000],
    [0.1503, 0.1790, 0.1720, 0.1794, 0.1494, 0.1699],
]
UNMASKED = [
    [0.1609, 0.1703, 0.1687, 0.1708, 0.1603, 0.1689],
    [0.1583, 0.1731, 0.1694, 0.1732, 0.1579, 0.1681],
    [0.1494, 0.1786, 0.1725, 0.1796, 0.1481, 0.1718],
    [0.1591, 0.1731, 0.1691, 0.1728, 0.1590, 0.1670],
    [0.1610, 0.1699, 0.1688, 0.1706, 0.1603, 0.1695],
    [0.1503, 0.1790, 0.1720, 0.1794, 0.1494, 0.1699],
]


def test_query_key_and_value(torch):
    """Drawn by torch's generator, as printed."""
    torch.manual_seed(123)
    query, key, value = (jnp.asarray(torch.rand(3, 2).numpy()) for _ in range(3))
    printed(query, [[0.2961, 0.5166], [0.2517, 0.6886], [0.0740, 0.8665]])
    printed(key, [[0.1366, 0.1025], [0.1841, 0.7264], [0.3153, 0.6871]])
    printed(value, [[0.0756, 0.1966], [0.3164, 0.4017], [0.1186, 0.8274]])
    words = jnp.asarray(WORDS)
    second = words[1:2] @ query
    printed(second, [[0.2857, 0.8093]])
    printed(second @ (words @ key).T, [[0.3565, 0.4757, 1.0404, 0.4996, 0.2961, 1.1539]])
    found = scratch.attention(second, words @ key, words @ value, scale=2**-0.5)
    printed(found.weights, [[0.1328, 0.1444, 0.2153, 0.1469, 0.1272, 0.2333]])
    printed(found.context, [[0.2862, 0.6841]])


def test_self_attention_as_printed(torch):
    torch.manual_seed(789)
    theirs = references(torch)[0](3, 2)
    ours = ported(theirs, scratch.SelfAttention(3, 2, rngs=None))
    printed(ours(jnp.asarray(WORDS)), FIRST)
    found = ours.attend(jnp.asarray(WORDS))
    printed(found.weights, UNMASKED)
    printed(ours.attend(jnp.asarray(WORDS), scratch.causal_mask(6)).weights, MASKED)


SEEN = [  # scores before the softmax; what is ahead is minus infinity
    [-1.5175e-04],
    [-6.5602e-03, 1.2047e-01],
    [-5.4193e-03, 2.4702e-01, 1.9771e-01],
    [-9.1383e-03, 1.1044e-01, 7.7196e-02, 1.0829e-01],
    [2.0232e-03, 7.7698e-02, 6.8403e-02, 8.3507e-02, -4.7449e-03],
    [-1.0605e-02, 2.3689e-01, 1.8059e-01, 2.4008e-01, -1.8712e-02, 1.6290e-01],
]
DROPPED = [
    [2.0000, 0.0000, 0.0000, 0.0000, 0.0000, 0.0000],
    [0.0000, 0.0000, 0.0000, 0.0000, 0.0000, 0.0000],
    [0.0000, 0.0000, 0.6893, 0.0000, 0.0000, 0.0000],
    [0.0000, 0.5136, 0.0000, 0.5128, 0.0000, 0.0000],
    [0.0000, 0.4091, 0.4064, 0.4108, 0.3859, 0.0000],
    [0.3005, 0.3580, 0.0000, 0.0000, 0.2988, 0.3398],
]


def test_masked_scores_and_dropout_as_printed(torch):
    """Which weights are dropped is as printed too: torch draws others on other machines."""
    torch.manual_seed(789)
    ours = ported(references(torch)[0](3, 2), scratch.SelfAttention(3, 2, rngs=None))
    words = jnp.asarray(WORDS)
    scores = np.asarray(ours.W_query(words) @ ours.W_key(words).T)
    for row, (found, expected) in enumerate(zip(scores, SEEN, strict=True)):
        printed(found[: row + 1], expected)
    kept = np.array(DROPPED) > 0
    drop = lambda weights: weights * kept * 2  # noqa: E731
    found = ours.attend(words, scratch.causal_mask(6), drop).weights
    printed(found, DROPPED)


def test_token_and_position_embeddings_are_added():
    """Two of the printed windows; their tables were drawn without a seed."""
    table = [[-1.2239, 0.9454, -1.0618], [1.6218, -0.3814, 0.6126]]
    table += [[0.1450, 1.1302, -0.6425], [-0.5892, -1.5937, 0.0803]]
    places = [[-0.2958, 0.0469, -0.1967], [0.7208, 0.6753, -0.3788]]
    places += [[-0.5114, 0.2414, 1.1345], [-0.6289, 0.0640, 0.8413]]
    body = scratch.ToyBody(
        scratch.ToyConfig(vocab_size=4, hidden_size=3, num_hidden_layers=0, positions=4),
        rngs=None,
        dtype=None,
        param_dtype=jnp.float32,
    )
    body.embedding.embedding.set_value(jnp.array(table))
    body.positions.embedding.set_value(jnp.array(places))
    expected = [[-1.5197, 0.9923, -1.2585], [2.3426, 0.2939, 0.2338]]
    expected += [[-0.3665, 1.3716, 0.4920], [-1.2181, -1.5297, 0.9216]]
    np.testing.assert_allclose(body(np.arange(4)[None])[0], expected, atol=1.5e-4)


@pytest.mark.parametrize("kind", ["causal", "heads"])
def test_causal_attention_as_printed(torch, kind):
    torch.manual_seed(123)
    single, several = references(torch)
    batch = jnp.asarray(np.stack([WORDS, WORDS]))
    if kind == "causal":
        ours = ported(single(3, 2), scratch.CausalAttention(3, 2, rngs=None))
    else:
        ours = ported(several(3, 2, 2), scratch.MultiHeadAttention(3, 2, num_heads=2, rngs=None))
    for row in ours(batch):
        printed(row, CAUSAL if kind == "causal" else HEADS)


@pytest.mark.parametrize("bias", [False, True])
def test_modules_equal_torchs(torch, bias):
    """In double precision, on a longer batch."""
    single, several = references(torch)
    torch.manual_seed(0)
    x = torch.randn(3, 7, 12, dtype=torch.float64)
    with jax.enable_x64(True):
        options = {"qkv_bias": bias, "rngs": None, "param_dtype": jnp.float64}
        heads = scratch.MultiHeadAttention(12, 8, num_heads=4, **options)
        pairs = [
            (single(12, 8, bias), scratch.SelfAttention(12, 8, **options), {}),
            (single(12, 8, bias), scratch.CausalAttention(12, 8, **options), {"causal": True}),
            (several(12, 8, 4, bias), heads, {}),
        ]
        for theirs, ours, given in pairs:
            expected = theirs.double()(x, **given).detach().numpy()
            found = ported(theirs, ours)(jnp.asarray(x.numpy()))
            assert np.abs(np.asarray(found) - expected).max() <= FLOAT64
        own = torch.nn.functional.scaled_dot_product_attention(x, x, x).numpy()
        assert np.abs(scratch.calculate_attention(jnp.asarray(x.numpy())) - own).max() <= FLOAT64


def test_dropout_is_of_weights_and_in_training_alone():
    module = scratch.CausalAttention(3, 2, dropout=0.5, rngs=nnx.Rngs(0))
    x = jnp.asarray(WORDS)
    weights = module.eval().attend(x).weights
    dropped = module.train().attend(x, dropout=lambda w: module.dropout(w, nnx.Rngs(dropout=0)))
    kept = np.asarray(dropped.weights) > 0
    np.testing.assert_allclose(np.asarray(dropped.weights)[kept], 2 * np.asarray(weights)[kept])
    assert 0 < kept.sum() < (np.asarray(weights) > 0).sum()
    with pytest.raises(InputError, match="expected random keys for dropout"):
        module(x)


def test_heads_divide_the_features():
    with pytest.raises(InputError, match="num_heads: expected a divisor of 8, found 3"):
        scratch.MultiHeadAttention(4, 8, num_heads=3, rngs=nnx.Rngs(0))


def test_linear_and_relu_equal_torchs(torch):
    layer = torch.nn.Linear(6, 24, dtype=torch.float64)
    x = torch.randn(5, 6, dtype=torch.float64)
    with jax.enable_x64(True):
        given, kernel, bias = (
            jnp.asarray(tensor.detach().numpy()) for tensor in (x, layer.weight.T, layer.bias)
        )
        np.testing.assert_allclose(
            scratch.relu(scratch.linear(given, kernel, bias)),
            torch.relu(layer(x)).detach(),
            rtol=0,
            atol=FLOAT64,
        )
        expected = (x @ layer.weight.T).detach()
        np.testing.assert_allclose(scratch.linear(given, kernel), expected, rtol=0, atol=FLOAT64)
