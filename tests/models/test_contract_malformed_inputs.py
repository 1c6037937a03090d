"""Arguments that are out of range, of the wrong shape or type, or contradictory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import minibert
from families import FACTS
from malformed import load, refused
from minibert import train
from minibert.errors import InputError
from minibert.models.arguments import LABELS
from minibert.models.registry import MODELS

pytestmark = pytest.mark.unoptimised

IDS = np.arange(12).reshape(2, 6)
ONES = np.ones((2, 6), np.int64)
WORDS = np.ones((2, 6, 24), np.float32)


@pytest.fixture(scope="module", params=FACTS.values(), ids=FACTS)
def facts(request):
    return request.param


@pytest.fixture(scope="module")
def model(facts, pristine):
    return load(pristine.folder(facts.base), facts.base)


def fitting(arguments, facts):
    """Arguments as a family takes them: without token types, or with narrower embeddings."""
    found = {k: v for k, v in arguments.items() if facts.types or k != "token_type_ids"}
    words = found.get("inputs_embeds")
    if isinstance(words, np.ndarray) and words.shape[-1:] == (24,):
        found["inputs_embeds"] = words[..., : facts.width]
    return found


def at(array, value, dtype=None):
    """The array with its last number changed."""
    array = np.array(array, dtype)
    array.flat[-1] = value
    return array


def deleted(array):
    """A JAX array whose buffer was given to a compiled function."""
    array = jnp.asarray(array)
    array.delete()
    return array


FLOAT8 = jnp.float8_e4m3fn


class Unreadable:
    def __array__(self, *_args, **_options):
        raise RuntimeError("no\nnumbers here " * 1000)


NO_TYPES = "token_type_ids: not an argument of {}: the model has no token types"
RANGE = "is out of range; expected 0 to"
NUMBERS = "expected an array of numbers"
MASK = "1 to keep and 0 to mask"
ONE = "input_ids, inputs_embeds: pass exactly one of the two"
REFUSED = {
    "nothing": ({}, ONE),
    "both": ({"input_ids": IDS, "inputs_embeds": WORDS}, ONE),
    "mask-only": ({"attention_mask": ONES}, ONE),
    "id-vocab": ({"input_ids": at(IDS, 97)}, f"input_ids: 97 {RANGE} 96 (vocab_size 97)"),
    "id-negative": ({"input_ids": at(IDS, -1)}, f"input_ids: -1 {RANGE} 96"),
    "id-ignored-label": ({"input_ids": at(IDS, -100)}, f"input_ids: -100 {RANGE} 96"),
    "id-list": ({"input_ids": [[1, 97]]}, f"input_ids: 97 {RANGE} 96"),
    "id-jax": ({"input_ids": jnp.array([[1, 97]])}, f"input_ids: 97 {RANGE} 96"),
    "id-int8": ({"input_ids": at(IDS, -1, np.int8)}, f"input_ids: -1 {RANGE} 96"),
    "id-uint8": ({"input_ids": at(IDS, 255, np.uint8)}, f"input_ids: 255 {RANGE} 96"),
    "id-2**32+1": ({"input_ids": at(IDS, 2**32 + 1)}, f"input_ids: 4294967297 {RANGE} 96"),
    "id-2**32+1-list": ({"input_ids": [[2**32 + 1]]}, f"input_ids: 4294967297 {RANGE} 96"),
    "id-minus-2**63": (
        {"input_ids": at(IDS, -(2**63))},
        f"input_ids: -9223372036854775808 {RANGE}",
    ),
    "id-int4": ({"input_ids": jnp.array([[-1]], jnp.int4)}, f"input_ids: -1 {RANGE} 96"),
    "id-uint64": ({"input_ids": at(IDS, 2**64 - 1, np.uint64)}, "input_ids: 18446744073709551615"),
    "id-2**70": ({"input_ids": [[2**70]]}, f"input_ids: {NUMBERS}, found list"),
    "ids-masked": (
        {"input_ids": np.ma.masked_greater(IDS, 5)},
        "input_ids: expected an array without masked elements",
    ),
    "ids-masked-rows": (
        {"input_ids": [np.ma.masked_greater(row, 5) for row in IDS]},
        "input_ids: expected an array without masked elements",
    ),
    "ids-masked-scalar": (
        {"input_ids": [[1, np.ma.masked], [3, 4]]},
        "input_ids: expected an array without masked elements",
    ),
    "mask-masked": (
        {"input_ids": IDS, "attention_mask": np.ma.masked_array(ONES, IDS > 9)},
        "attention_mask: expected an array without masked elements",
    ),
    "ids-float": ({"input_ids": IDS.astype(float)}, "input_ids: expected integers, found float64"),
    "ids-float-list": ({"input_ids": [[1.0]]}, "input_ids: expected integers, found float64"),
    "ids-bfloat16": ({"input_ids": jnp.ones((1, 2), jnp.bfloat16)}, "integers, found bfloat16"),
    "ids-bool": ({"input_ids": IDS > 0}, "input_ids: expected integers, found bool"),
    "ids-complex": ({"input_ids": IDS * 1j}, "input_ids: expected an array of numbers"),
    "ids-keys": ({"input_ids": jax.random.split(jax.random.key(0), (1, 2))}, "input_ids: expected"),
    "ids-durations": ({"input_ids": IDS.astype("timedelta64[s]")}, f"input_ids: {NUMBERS}"),
    "ids-string": ({"input_ids": "hello"}, f"input_ids: {NUMBERS}, found str"),
    "ids-long-string": ({"input_ids": "x\n" * 10**6}, f"input_ids: {NUMBERS}, found str"),
    "ids-strings": ({"input_ids": [["a", "b"]]}, f"input_ids: {NUMBERS}, found list"),
    "ids-string-array": (
        {"input_ids": np.array([["a"]])},
        f"input_ids: {NUMBERS}, found ndarray of <U1",
    ),
    "ids-objects": ({"input_ids": np.array([[1]], object)}, f"input_ids: {NUMBERS}, found ndarray"),
    "ids-bytes": ({"input_ids": b"\1\2"}, f"input_ids: {NUMBERS}, found bytes"),
    "ids-dict": ({"input_ids": {"input_ids": IDS}}, f"input_ids: {NUMBERS}, found dict"),
    "ids-set": ({"input_ids": {1, 2}}, f"input_ids: {NUMBERS}, found set"),
    "ids-none-inside": ({"input_ids": [[1, None]]}, f"input_ids: {NUMBERS}, found list"),
    "ids-deleted": (
        {"input_ids": deleted(IDS)},
        "input_ids: expected an array, found one that was deleted",
    ),
    "words-deleted": ({"inputs_embeds": deleted(WORDS)}, "inputs_embeds: expected an array, found"),
    "ids-float8": ({"input_ids": IDS.astype(FLOAT8)}, "input_ids: expected integers, found float8"),
    "words-float8": (
        {"inputs_embeds": WORDS.astype(FLOAT8)},
        "inputs_embeds: expected floating-point numbers of at least 16 bits, found float8_e4m3fn",
    ),
    "ids-ragged": ({"input_ids": [[1, 2], [3]]}, "input_ids: expected an array, found list"),
    "ids-unreadable": ({"input_ids": Unreadable()}, "input_ids: expected an array, found Unread"),
    "ids-scalar": ({"input_ids": 5}, "input_ids: expected shape (batch, seq), found ()"),
    "ids-1d": ({"input_ids": [1, 2]}, "input_ids: expected shape (batch, seq), found (2,)"),
    "ids-3d": ({"input_ids": IDS[None]}, "expected shape (batch, seq), found (1, 2, 6)"),
    "ids-length-0": ({"input_ids": IDS[:, :0]}, "input_ids: 0 positions; expected 1 to TOKENS"),
    "ids-empty-list": ({"input_ids": [[]]}, "input_ids: expected integers, found float64"),
    "ids-too-long": (
        {"input_ids": np.ones((1, 41), int)},
        "input_ids: 41 positions; expected 1 to TOKENS (LIMIT)",
    ),
    "words-integers": ({"inputs_embeds": WORDS.astype(int)}, "floating-point numbers, found int64"),
    "words-strings": ({"inputs_embeds": [["a"]]}, f"inputs_embeds: {NUMBERS}"),
    "words-ragged": ({"inputs_embeds": [[[1.0], [1.0, 2.0]]]}, "inputs_embeds: expected an array"),
    "words-width": (
        {"inputs_embeds": WORDS[..., :-1]},
        "inputs_embeds: expected shape (batch, seq, WIDTH), found (2, 6, 23)",
    ),
    "words-2d": ({"inputs_embeds": WORDS[0]}, "expected shape (batch, seq, WIDTH), found (6, "),
    "words-length-0": ({"inputs_embeds": WORDS[:, :0]}, "inputs_embeds: 0 positions"),
    "words-too-long": ({"inputs_embeds": np.ones((1, 41, 24))}, "inputs_embeds: 41 positions"),
    "segment-negative": (
        {"input_ids": IDS, "token_type_ids": at(ONES, -1)},
        f"token_type_ids: -1 {RANGE}",
    ),
    "segments-float": ({"input_ids": IDS, "token_type_ids": ONES * 1.0}, "expected integers"),
    "segments-short": (
        {"input_ids": IDS, "token_type_ids": ONES[:, :5]},
        "token_type_ids: expected shape (2, 6) or (1, 6), found (2, 5)",
    ),
    "segments-1d": ({"input_ids": IDS, "token_type_ids": ONES[0]}, "found (6,)"),
    "segments-of-words": ({"inputs_embeds": WORDS, "token_type_ids": at(ONES, 97)}, RANGE),
    "position-40": (
        {"input_ids": IDS, "position_ids": at(IDS, 40)},
        f"position_ids: 40 {RANGE} 39 (POSITIONS 40)",
    ),
    "position-negative": ({"input_ids": IDS, "position_ids": at(IDS, -1)}, f"-1 {RANGE} 39"),
    "positions-float": ({"input_ids": IDS, "position_ids": IDS / 1}, "position_ids: expected int"),
    "positions-batch": (
        {"input_ids": IDS, "position_ids": np.ones((3, 6), int)},
        "position_ids: expected shape (2, 6) or (1, 6), found (3, 6)",
    ),
    "positions-short": ({"input_ids": IDS, "position_ids": [[0]]}, "position_ids: expected shape"),
    "mask-2": (
        {"input_ids": IDS, "attention_mask": at(ONES, 2)},
        "attention_mask: expected only 0 and 1, found 2",
    ),
    "mask-negative": ({"input_ids": IDS, "attention_mask": at(ONES, -1)}, "0 and 1, found -1"),
    "mask-additive": (
        {"input_ids": IDS, "attention_mask": np.zeros((2, 1, 6, 5), np.float32)},
        "attention_mask: expected shape (2 or 1, 3 or 1, 6",
    ),
    "mask-float": ({"input_ids": IDS, "attention_mask": ONES * 1.0}, f"{MASK}; found float64"),
    "mask-strings": ({"input_ids": IDS, "attention_mask": [["1"]]}, f"attention_mask: {NUMBERS}"),
    "mask-ragged": (
        {"input_ids": IDS, "attention_mask": [[1], [1, 1]]},
        "attention_mask: expected",
    ),
    "mask-short": (
        {"input_ids": IDS, "attention_mask": ONES[:, :5]},
        "attention_mask: expected shape (2, 6) or (2, 6, 6), found (2, 5)",
    ),
    "mask-transposed": ({"input_ids": IDS, "attention_mask": ONES.T}, "found (6, 2)"),
    "mask-one-row": ({"input_ids": IDS, "attention_mask": ONES[:1]}, "found (1, 6)"),
    "mask-1d": ({"input_ids": IDS, "attention_mask": ONES[0]}, "found (6,)"),
    "mask-not-square": ({"input_ids": IDS, "attention_mask": np.ones((2, 6, 5), int)}, "(2, 6, 5)"),
    "mask-4d": (
        {"input_ids": IDS, "attention_mask": np.ones((2, 2, 6, 6), int)},
        "found (2, 2, 6, 6)",
    ),
    "mask-of-words": ({"inputs_embeds": WORDS, "attention_mask": ONES[:1]}, "found (1, 6)"),
    "head-mask-strings": ({"input_ids": IDS, "head_mask": ["a"]}, f"head_mask: {NUMBERS}"),
    "head-mask-float8": (
        {"input_ids": IDS, "head_mask": np.ones(3, FLOAT8)},
        "head_mask: expected floating-point numbers of at least 16 bits",
    ),
    "head-mask-heads": (
        {"input_ids": IDS, "head_mask": np.ones(2)},
        "head_mask: expected shape (3,) or (2, 3), found (2,)",
    ),
    "head-mask-layers": ({"input_ids": IDS, "head_mask": np.ones((3, 3))}, "found (3, 3)"),
    "head-mask-transposed": ({"input_ids": IDS, "head_mask": np.ones((3, 2))}, "found (3, 2)"),
    "head-mask-scalar": ({"input_ids": IDS, "head_mask": 1.0}, "head_mask: expected shape (3,)"),
    "head-mask-5d": ({"input_ids": IDS, "head_mask": np.ones((2, 1, 3, 1, 1))}, "(2, 1, 3, 1, 1)"),
}


def case_of(name, facts):
    """What a case passes to a family's model, and what is then said."""
    arguments, said = REFUSED[name]
    if "token_type_ids" in arguments and not facts.types:
        return arguments, NO_TYPES.format(facts.base)
    tokens, limit = facts.tokens
    said = said.replace("TOKENS", str(tokens)).replace("LIMIT", limit)
    said = said.replace("POSITIONS", facts.positions).replace("WIDTH", str(facts.width))
    return fitting(arguments, facts), said


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, facts, model):
    arguments, said = case_of(case, facts)
    refused(InputError, (said,), lambda: model(**arguments))


@pytest.mark.parametrize(
    "words", [{"input_ids": IDS}, {"inputs_embeds": WORDS}], ids=["ids", "embeds"]
)
def test_token_type_that_does_not_exist(words, facts, model):
    words, types = fitting(words, facts), facts.types
    said = f"token_type_ids: {types} {RANGE} {types - 1} ({facts.types_field} {types})"
    said = said if types else NO_TYPES.format(facts.base)
    refused(InputError, (said,), lambda: model(**words, token_type_ids=at(ONES, types)))


@pytest.mark.parametrize("more", [1, 2])
def test_a_text_that_is_too_long(more, facts, model):
    tokens, limit = facts.tokens
    said = f"input_ids: {tokens + more} positions; expected 1 to {tokens} ({limit})"
    refused(InputError, (said,), lambda: model(np.full((1, tokens + more), 7)))


# What is refused for its shape or type, and not for its values, which a trace does not know.
UNDER_JIT = [
    name
    for name, (arguments, said) in REFUSED.items()
    if any(sign in said for sign in ("found (", "found float", " positions"))
    and all(isinstance(value, np.ndarray) for value in arguments.values())
]


@pytest.mark.parametrize("name", UNDER_JIT)
def test_shapes_and_types_are_refused_under_jit(name, facts, model):
    arguments, said = case_of(name, facts)
    arguments = {key: jnp.asarray(value) for key, value in arguments.items()}
    said = said.replace("float64", "float32").replace("int64", "int32")
    refused(InputError, (said,), lambda: jax.jit(lambda kw: model(**kw))(arguments))


ALLOWED = {
    "all-padding": {"input_ids": IDS, "attention_mask": ONES * [[1], [0]]},
    "all-padding-everywhere": {"input_ids": IDS, "attention_mask": ONES * 0},
    "query-that-sees-nothing": {"input_ids": IDS, "attention_mask": np.zeros((2, 6, 6), bool)},
    "bool-mask": {"input_ids": IDS, "attention_mask": ONES == 1},
    "lists": {"input_ids": IDS.tolist(), "attention_mask": ONES.tolist()},
    "uint8": {"input_ids": IDS.astype(np.uint8), "token_type_ids": ONES.astype(np.uint8)},
    "not-contiguous": {
        "input_ids": IDS.T.copy().T,
        "attention_mask": np.ones((2, 12), int)[:, ::2],
    },
    "read-only": {"input_ids": np.broadcast_to(IDS[:1], (2, 6))},
    "one-row-for-all": {"input_ids": IDS, "token_type_ids": ONES[:1], "position_ids": IDS[:1]},
    "one-token": {"input_ids": [[96]]},
    "no-heads": {"input_ids": IDS, "head_mask": np.zeros(3)},
    "float64-words": {"inputs_embeds": WORDS.astype(float)},
}


@pytest.mark.parametrize("arguments", [pytest.param(v, id=k) for k, v in ALLOWED.items()])
def test_allowed_and_finite(arguments, facts, model):
    outputs = model(**fitting(arguments, facts))
    for name in outputs.keys() - {"past_key_values"}:
        assert np.isfinite(outputs[name]).all(), name


BIG = {
    "ids": ({"input_ids": IDS}, ">i8"),
    "words": ({"inputs_embeds": WORDS}, ">f4"),
    "words-float64": ({"inputs_embeds": WORDS}, ">f8"),
    "mask": ({"input_ids": IDS, "attention_mask": at(ONES, 0)}, ">i4"),
    "heads": ({"input_ids": IDS, "head_mask": np.array([1.0, 0.0, 0.5])}, ">f4"),
}


@pytest.mark.parametrize("name", BIG)
def test_the_order_of_bytes_does_not_matter(name, facts, model):
    arguments, dtype = BIG[name]
    *_, last = arguments = fitting(arguments, facts)
    other = arguments | {last: arguments[last].astype(dtype)}
    expected = model(**arguments).last_hidden_state
    np.testing.assert_array_equal(model(**other).last_hidden_state, expected)


def test_a_head_mask_of_integers_or_booleans(model):
    expected = model(IDS, head_mask=np.array([1.0, 0.0, 1.0])).last_hidden_state
    for mask in ([1, 0, 1], [True, False, True], jnp.array([1, 0, 1], jnp.int8)):
        np.testing.assert_array_equal(model(IDS, head_mask=mask).last_hidden_state, expected)
        found = minibert.compiled(model)(IDS, head_mask=np.asarray(mask)).last_hidden_state
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_no_rows(facts, model):
    words = WORDS[:0, :, : facts.width]
    assert model(IDS[:0]).last_hidden_state.shape == (0, 6, 24)
    assert model(IDS[:0], attention_mask=ONES[:0]).last_hidden_state.shape == (0, 6, 24)
    assert model(inputs_embeds=words).last_hidden_state.shape == (0, 6, 24)
    assert minibert.compiled(model)(IDS[:0]).last_hidden_state.shape == (0, 6, 24)


ELSEWHERE = {
    "params": "params: not an argument of {}: the model holds its parameters",
    "train": "train: not an argument of {}: call model.train() or model.eval()",
    "dropout_rng": "dropout_rng: not an argument of {}: pass rngs=nnx.Rngs(dropout=key)",
    "return_dict": "return_dict: not an argument of {}: outputs have names and indices",
    "cache": "cache: not an argument of {}: pass it as past_key_values",
    "adapter_names": "adapter_names: not an argument of {}: call the model of each adapter",
    "labels": "labels: not an argument of {}: models compute no loss",
    "inputs_embed": "inputs_embed: not an argument of {} (did you mean inputs_embeds?)",
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_arguments_of_other_libraries(name, model):
    said = ELSEWHERE[name].format(type(model).__name__)
    for call in (model, minibert.compiled(model)):
        refused(InputError, (said,), lambda call=call: call(IDS, **{name: True}))


@pytest.mark.parametrize("cls", MODELS.values(), ids=MODELS)
def test_labels_name_the_objective(cls):
    model = cls(cls.config_class.tiny(), rngs=None)
    with pytest.raises(InputError) as caught:
        model(IDS, labels=ONES)
    said = f"labels: not an argument of {cls.__name__}: models compute no loss"
    if cls.is_trunk:
        assert cls.objective is None
        assert str(caught.value) == said
        return
    assert str(caught.value).startswith(f"{said}; train with minibert.train.{cls.objective}")
    objective = getattr(train, cls.objective)
    if not isinstance(objective, train.Objective):
        objective = objective(model.config)
    assert objective.name == cls.objective
    assert set(objective.labels) & {*LABELS}


def test_the_longest_text_is_finite(facts, model):
    assert np.isfinite(model(np.full((1, facts.tokens[0]), 7)).last_hidden_state).all()


def test_padding_does_not_depend_on_its_ids(model):
    mask = ONES * [1, 1, 1, 1, 0, 0]
    one = model(IDS, attention_mask=mask).last_hidden_state[:, :4]
    other = model(np.where(mask, IDS, 96), attention_mask=mask).last_hidden_state[:, :4]
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


GOOD = {"input_ids": IDS, "token_type_ids": ONES, "position_ids": IDS % 6}
BAD = {
    "id-vocab": {"input_ids": at(IDS, 97)},
    "id-negative": {"input_ids": at(IDS, -1)},
    "id-minus-vocab": {"input_ids": at(IDS, -97)},
    "id-2**31-1": {"input_ids": at(IDS, 2**31 - 1)},
    "id-minus-2**31": {"input_ids": at(IDS, -(2**31))},
    "segment-97": {"token_type_ids": at(ONES, 97)},
    "segment-negative": {"token_type_ids": at(ONES, -1)},
    "position-40": {"position_ids": at(IDS % 6, 40)},
    "position-negative": {"position_ids": at(IDS % 6, -1)},
}
BAD_64 = {
    "id-2**32+1": {"input_ids": at(IDS, 2**32 + 1)},
    "id-2**32": {"input_ids": at(IDS, 2**32)},
    "id-minus-2**32+1": {"input_ids": at(IDS, 1 - 2**32)},
    "id-2**63-1": {"input_ids": at(IDS, 2**63 - 1)},
    "segment-2**32": {"token_type_ids": at(ONES, 2**32)},
    "position-2**32": {"position_ids": at(IDS, 2**32)},
}


@pytest.fixture(scope="module")
def jitted(model):
    return jax.jit(lambda arguments: model(**arguments).last_hidden_state)


def check_nan(facts, jitted, change):
    """The last row is nothing but NaN, and the other is what it is without the change."""
    good, change = fitting(GOOD, facts), fitting(change, facts)
    found = np.asarray(jitted(good | change))
    expected = np.asarray(jitted(good))
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(found[0], expected[0])
    assert np.isnan(found).all(axis=(1, 2)).tolist() == [False, bool(change)]


def test_nan_of_the_first_token_type_that_does_not_exist(facts, jitted):
    if not facts.types:
        return
    change = {"token_type_ids": at(ONES, facts.types)}
    check_nan(facts, jitted, {k: v.astype(np.int32) for k, v in change.items()})
    with jax.enable_x64(True):
        check_nan(facts, jitted, change)


@pytest.mark.parametrize("change", [pytest.param(v, id=k) for k, v in BAD.items()])
def test_nan_under_jit(change, facts, jitted):
    check_nan(facts, jitted, {name: array.astype(np.int32) for name, array in change.items()})


@pytest.mark.parametrize("change", [pytest.param(v, id=k) for k, v in (BAD | BAD_64).items()])
def test_nan_under_jit_with_64_bits(change, facts, jitted):
    with jax.enable_x64(True):
        check_nan(facts, jitted, change)
