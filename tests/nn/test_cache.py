"""Decoding with a cache: reading a text in any parts computes the same as one call."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import minibert
from conftest import FLOAT64
from minibert.errors import InputError
from minibert.nn.cache import KVCache
from slowly import slow_but
from tiny import drawn

GPT2, BERT = "GPT2LMHeadModel", "BertLMHeadModel"
SETTINGS = {
    GPT2: {"scale_attn_by_inverse_layer_idx": True},
    BERT: {"is_decoder": True},
    "GPT2Model": {},
    "BertModel": {"is_decoder": True},
}
SEQ = 11
CHUNKS = {
    "token by token": [1] * SEQ,
    "all at once": [SEQ],
    "chunks": [4, 4, 3],
    "prefill and steps": [6, 1, 1, 1, 1, 1],
    "one and the rest": [1, 10],
}
DRAW = np.random.default_rng(0)
IDS = DRAW.integers(0, 97, (3, SEQ))
MASKS = {
    "unpadded": np.ones((3, SEQ), int),
    "left": (np.arange(SEQ) >= np.array([[0], [4], [7]])).astype(int),
    "holes": np.array([[1] * SEQ, [0, 1, 1, 0, 0, 1, 1, 1, 0, 1, 0], [0] * 7 + [1] * 4]),
}
ENCODED = DRAW.normal(size=(3, 5, 24))
ENCODER_MASK = np.array([[1, 1, 1, 1, 1], [0, 1, 1, 0, 1], [1, 0, 0, 0, 0]])


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def positions(mask):
    return np.maximum(np.cumsum(mask, axis=1) - 1, 0)


def parts(given, sizes):
    """A call's arguments, cut along the sequence."""
    ends = np.cumsum(sizes)
    return [
        {key: array[:, end - size : end] for key, array in given.items()}
        for size, end in zip(sizes, ends, strict=True)
    ]


def eager(model, given, cache):
    """The first output, and the cache."""
    outputs = model(**given, past_key_values=cache)
    return outputs[0], outputs.past_key_values


call = jax.jit(eager)  # a program for each class and shape: fewer than of operations, of many sizes


def decoded(model, given, sizes, cache, first=(), every=(), step=call):
    """The first output of every call, joined along the sequence; and the last cache."""
    found, extra = [], dict(first)
    for part in parts(given, sizes):
        output, cache = step(model, part | extra | dict(every), cache)
        extra = {}
        found.append(np.asarray(output))
    return np.concatenate(found, axis=1), cache


def error(mask, one, other):
    return np.abs(np.asarray(one) - np.asarray(other))[mask == 1].max()


@pytest.mark.parametrize(
    "sizes", slow_but(CHUNKS.values(), CHUNKS["chunks"], CHUNKS["prefill and steps"]), ids=CHUNKS
)
@pytest.mark.parametrize("padding", slow_but(MASKS, "left"))
@pytest.mark.parametrize("name", [GPT2, BERT])
def test_pieces_are_the_whole(name, padding, sizes):
    model, mask = drawn(name, **SETTINGS[name]), MASKS[padding]
    given = {"input_ids": IDS, "attention_mask": mask, "position_ids": positions(mask)}
    whole = model(**given)
    assert whole.past_key_values is None
    found, cache = decoded(model, given, sizes, model.init_cache(3, SEQ))
    assert error(mask, found, whole.logits) <= FLOAT64
    assert int(cache.index) == SEQ
    np.testing.assert_array_equal(cache.mask, mask == 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_defaults_go_on_from_the_cache(name):
    """Positions continue, nothing is padding, and a larger capacity than needed changes nothing."""
    model = drawn(name, **SETTINGS[name])
    whole = model(IDS)[0]
    found, cache = decoded(
        model, {"input_ids": IDS}, [3, 1, 7], model.init_cache(3, 17), step=eager
    )
    assert np.abs(found - whole).max() <= FLOAT64
    assert cache.mask[:, :SEQ].all()
    assert not cache.mask[:, SEQ:].any()


@pytest.mark.parametrize(
    "each", slow_but([False, True], False), ids=["encoder once", "encoder each time"]
)
@pytest.mark.parametrize("padded", slow_but([False, True], True), ids=["unpadded", "padded"])
@pytest.mark.parametrize("name", slow_but(SETTINGS, BERT))
def test_cross_attention(name, padded, each):
    model, mask = drawn(name, **SETTINGS[name], add_cross_attention=True), MASKS["left"]
    given = {"input_ids": IDS, "attention_mask": mask, "position_ids": positions(mask)}
    encoder = {
        "encoder_hidden_states": ENCODED,
        "encoder_attention_mask": ENCODER_MASK if padded else None,
    }
    encoder = {key: array for key, array in encoder.items() if array is not None}
    whole = model(**given, **encoder)[0]
    options = {"every" if each else "first": encoder}
    cache = model.init_cache(3, 13)
    found, cache = decoded(model, given, [4, 1, 6], cache, **options, step=eager)
    assert error(mask, found, whole) <= FLOAT64
    assert [key.shape for key in cache.cross_keys] == [(3, 3, 5, 8)] * 2
    without = model(**given)[0]
    assert error(mask, whole, without) > 1e-3


@pytest.mark.slow
def test_an_encoder_that_comes_late_is_seen_from_then_on():
    model = drawn(GPT2, add_cross_attention=True)
    cache = model(IDS[:, :4], past_key_values=model.init_cache(3, SEQ)).past_key_values
    assert cache.cross_keys is None
    late = model(IDS[:, 4:], past_key_values=cache, encoder_hidden_states=ENCODED)
    assert late.past_key_values.cross_keys is not None
    assert np.abs(np.asarray(late.logits - model(IDS).logits[:, 4:])).max() > 1e-3


def test_other_encoder_states_replace_the_first():
    model = drawn(GPT2, add_cross_attention=True)
    caches = []
    for encoded in (ENCODED, ENCODED[:, ::-1] * 2):
        first = {"encoder_hidden_states": encoded, "past_key_values": model.init_cache(3, SEQ)}
        caches.append(model(IDS[:, :4], **first).past_key_values)
    one = dataclasses.replace(caches[0], keys=caches[1].keys, values=caches[1].values)
    other = {"encoder_hidden_states": ENCODED[:, ::-1] * 2}
    found = model(IDS[:, 4:], past_key_values=one, **other).logits
    expected = model(IDS[:, 4:], past_key_values=caches[1]).logits
    assert np.abs(np.asarray(found - expected)).max() <= FLOAT64


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["GPT2DoubleHeadsModel", "GPT2ForSequenceClassification", "BertLMHeadModel"]
)
def test_use_cache_makes_one(name):
    settings = {"is_decoder": True} if name == BERT else {"pad_token_id": 96}
    model = drawn(name, **settings)
    whole = model(IDS)
    assert whole.past_key_values is None
    first = model(IDS[:, :6], use_cache=True)
    cache = first.past_key_values
    assert isinstance(cache, KVCache)
    assert (cache.batch, cache.length, int(cache.index)) == (3, 40, 6)
    rest = model(IDS[:, 6:], past_key_values=cache)
    assert int(rest.past_key_values.index) == SEQ
    found, expected = np.asarray(rest.logits), np.asarray(whole.logits)
    expected = expected if found.ndim == 2 else expected[:, 6:]
    assert np.abs(found - expected).max() <= FLOAT64


@pytest.mark.slow
def test_choices_are_rows_of_a_cache():
    model, ids = drawn("GPT2DoubleHeadsModel"), IDS.reshape(1, 3, SEQ)
    whole = model(ids)
    cache = model(ids[..., :6], past_key_values=model.init_cache(3, SEQ)).past_key_values
    rest = model(ids[..., 6:], past_key_values=cache)
    assert np.abs(np.asarray(rest.logits - whole.logits[..., 6:, :])).max() <= FLOAT64
    assert np.abs(np.asarray(rest.mc_logits - whole.mc_logits)).max() <= FLOAT64


def test_states_and_weights_beside_a_cache():
    """Weights are over the cache's slots; what is not written yet has none."""
    model = drawn(GPT2)
    flags = {"output_hidden_states": True, "output_attentions": True}
    whole = model(IDS, **flags)
    cache = model(IDS[:, :6], past_key_values=model.init_cache(3, 14)).past_key_values
    rest = model(IDS[:, 6:], past_key_values=cache, **flags)
    assert len(rest.hidden_states) == 3
    for one, other in zip(rest.hidden_states, whole.hidden_states, strict=True):
        assert np.abs(np.asarray(one - other[:, 6:])).max() <= FLOAT64
    for one, other in zip(rest.attentions, whole.attentions, strict=True):
        assert one.shape == (3, 3, 5, 14)
        assert np.abs(np.asarray(one[..., :SEQ] - other[:, :, 6:])).max() <= FLOAT64
        assert not np.asarray(one[..., SEQ:]).any()


@pytest.mark.parametrize("name", [GPT2, BERT])
def test_one_compiled_step_serves_every_token(name):
    """Under `jax.jit`, the old cache's memory donated to the new one."""
    model, traces = drawn(name, **SETTINGS[name]), []

    def step(model, token, cache):
        traces.append(1)
        outputs = model(token, past_key_values=cache)
        return outputs.logits, outputs.past_key_values

    compiled = jax.jit(step, donate_argnums=2)
    cache, found = model.init_cache(3, SEQ), []
    for index in range(SEQ):
        logits, after = compiled(model, IDS[:, index : index + 1], cache)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(cache))
        assert jax.tree.structure(after) == jax.tree.structure(cache)
        cache = after
        found.append(logits)
    assert len(traces) == 1
    assert np.abs(np.concatenate(found, axis=1) - np.asarray(model(IDS).logits)).max() <= FLOAT64


@pytest.mark.slow
@pytest.mark.parametrize("name", [GPT2, BERT])
@pytest.mark.parametrize("sizes", [(SEQ, 1), (8, 4), (12,), (1,) * 12], ids=str)
def test_overflow(sizes, name):
    """By value where the index is known; under a trace as NaN, and never as another token."""
    model, ids = drawn(name, **SETTINGS[name]), DRAW.integers(0, 97, (2, sum(sizes)))
    cache, start = model.init_cache(2, SEQ), 0
    for size in sizes[:-1]:
        part = {"input_ids": ids[:, start : start + size]}
        (logits, cache), start = call(model, part, cache), start + size
        assert np.isfinite(logits).all()
    with pytest.raises(InputError, match=f"capacity 11, of which {start} are used"):
        model(ids[:, start:], past_key_values=cache)
    if sizes[-1] > SEQ:
        return  # too long for the cache's shape, too
    logits, cache = call(model, {"input_ids": ids[:, start:]}, cache)
    assert np.isnan(logits).all()
    assert np.isnan(call(model, {"input_ids": ids[:, :1]}, cache)[0]).all()


def test_positions_end_where_the_table_ends():
    model = drawn(GPT2, n_layer=1)
    cache = model.init_cache(2, 60)
    ids = DRAW.integers(0, 97, (2, 41))
    _, cache = call(model, {"input_ids": ids[:, :40]}, cache)
    with pytest.raises(
        InputError,
        match=r"expected at most 40 tokens in all \(n_positions\), found 40 in the cache and 1 new",
    ):
        model(ids[:, 40:], past_key_values=cache)
    last = {"input_ids": ids[:, 40:]}
    assert np.isnan(call(model, last, cache)[0]).all()
    given = call(model, last | {"position_ids": np.array([[7]])}, cache)
    assert np.isfinite(given[0]).all()


@pytest.mark.slow
@pytest.mark.parametrize("crossed", [False, True])
def test_rows(crossed):
    """Rows selected from a cache continue unchanged."""
    model, mask = drawn(GPT2, add_cross_attention=crossed), MASKS["left"]
    encoder = {"encoder_hidden_states": ENCODED, "encoder_attention_mask": ENCODER_MASK}
    first = encoder if crossed else {}
    given = {"input_ids": IDS, "attention_mask": mask, "position_ids": positions(mask)}
    _, cache = decoded(model, parts(given, [6, 5])[0], [6], model.init_cache(3, SEQ), first)
    rest = parts(given, [6, 5])[1]
    expected = np.asarray(call(model, rest, cache)[0])
    for rows in ([2, 0, 0, 1], [1], [0, 1, 2]):
        chosen = {key: array[rows] for key, array in rest.items()}
        taken = cache.rows(jnp.asarray(rows))
        assert (taken.batch, int(taken.index)) == (len(rows), 6)
        found, _ = call(model, chosen, taken)
        assert np.abs(np.asarray(found) - expected[rows]).max() <= FLOAT64


def test_all_padding_is_finite():
    model = drawn(GPT2)
    nothing = np.zeros((3, 4), int)
    cache = model(
        IDS[:, :4], attention_mask=nothing, past_key_values=model.init_cache(3, SEQ)
    ).past_key_values
    outputs = model(IDS[:, 4:], past_key_values=cache, position_ids=np.arange(7)[None])
    assert np.abs(np.asarray(outputs.logits - model(IDS[:, 4:]).logits)).max() <= FLOAT64


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"dtype": jnp.bfloat16}, {"param_dtype": jnp.bfloat16}])
def test_a_cache_is_kept_in_the_dtype_of_the_computation(options):
    config = minibert.GPT2Config.tiny(n_layer=1)
    model = minibert.GPT2LMHeadModel(config, rngs=nnx.Rngs(0), **options).eval()
    cache = model.init_cache(3, SEQ)
    assert {key.dtype for key in cache.keys} == {jnp.dtype(jnp.bfloat16)}
    found, after = decoded(model, {"input_ids": IDS}, [6, 1, 4], cache)
    assert {value.dtype for value in after.values} == {jnp.dtype(jnp.bfloat16)}
    whole = jax.jit(lambda model: model(IDS).logits)(model)
    assert np.abs(found - np.asarray(whole)).max() < 0.02


def test_a_cache_is_a_tree():
    cache = drawn(GPT2, add_cross_attention=True).init_cache(2, 5)
    assert len(jax.tree.leaves(cache)) == 2 * 2 + 2
    doubled = jax.tree.map(lambda array: array, cache)
    assert (doubled.batch, doubled.length) == (2, 5)
    assert jax.eval_shape(lambda: cache).batch == 2
