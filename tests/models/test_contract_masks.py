"""Masks with a row for each query, by head, or of numbers that are added; positions to keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the other side is PyTorch")

import minibert  # noqa: E402
import oracle  # noqa: E402
from families import CLASSES, FACTS, WITH_CODE  # noqa: E402
from minibert.errors import InputError  # noqa: E402
from minibert.models.registry import FAMILIES, MODELS  # noqa: E402
from slowly import slow_but  # noqa: E402

DRAW = np.random.default_rng(5)
IDS = DRAW.integers(3, 90, (2, 6))
HEADS = 3
ALLOWED = (DRAW.random((2, HEADS, 6, 6)) < 0.7) | np.eye(6, dtype=bool)
LOWEST = np.finfo(np.float32).min
ROWS = np.array([[1, 5, 1], [0, 2, 4]])  # positions of each row
NAMES = [  # a decoder of each family, if it has one
    next((name for name in facts.classes if MODELS[name].generates), facts.words)
    for facts in WITH_CODE
]
DECODERS = [name for name in NAMES if MODELS[name].generates]
QUICK = ("BertLMHeadModel", "GPT2LMHeadModel")
MASKED = [
    family.tasks["fill-mask"].__name__
    for family in FAMILIES
    if "fill-mask" in family.tasks and FACTS[family.model_type] in WITH_CODE
]


@pytest.fixture(params=slow_but(NAMES, *QUICK))
def pair(request, tmp_path):
    name = request.param
    theirs = oracle.saved(name, tmp_path, **CLASSES[name])
    return theirs, oracle.ours(name, tmp_path)


def logits(theirs, mask):
    with torch.no_grad():
        return theirs(torch.tensor(IDS), attention_mask=torch.tensor(mask)).logits.numpy()


def near(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("heads", [1, HEADS])
def test_by_head(pair, heads):
    theirs, model = pair
    allowed = ALLOWED[:, :heads]
    added = np.where(allowed, 0, LOWEST).astype(np.float32)
    expected = logits(theirs, added)
    compiled = minibert.compiled(model)
    excluded = np.where(allowed, 0, -np.inf)
    for mask in (allowed, allowed.astype(np.int32), added, excluded, jnp.asarray(excluded)):
        near(model(IDS, attention_mask=mask).logits, expected)
        near(compiled(IDS, attention_mask=mask).logits, expected)
    if heads == 1:
        near(model(IDS, attention_mask=allowed[:, 0]).logits, expected)
    assert np.abs(expected - logits(theirs, np.where(ALLOWED[:, 1:2], 0, LOWEST))).max() > 0.01


def test_numbers_are_added(pair):
    theirs, model = pair
    added = (ALLOWED * DRAW.normal(size=ALLOWED.shape)).astype(np.float32)
    near(model(IDS, attention_mask=added).logits, logits(theirs, added))
    near(model(IDS, attention_mask=added[:1]).logits, logits(theirs, np.repeat(added[:1], 2, 0)))

    def loss(added):
        return model(jnp.asarray(IDS), attention_mask=added).logits.sum()

    given = torch.tensor(added, requires_grad=True)
    theirs(torch.tensor(IDS), attention_mask=given).logits.sum().backward()
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(added), given.grad, rtol=0, atol=1e-4)


@pytest.mark.parametrize("added", [False, True], ids=["allowed", "added"])
@pytest.mark.parametrize("pair", slow_but(DECODERS, *QUICK), indirect=True)
def test_beside_a_cache(pair, added):
    """Read in two parts, with a mask for each query, as read at once."""
    _, model = pair
    mask = ALLOWED & np.tril(np.ones((6, 6), bool))
    mask = np.where(mask, 0.5, LOWEST) if added else mask
    expected = model(IDS, attention_mask=mask).logits
    for length in (6, 9):
        cache = model.init_cache(2, length)
        first = model(IDS[:, :4], past_key_values=cache, attention_mask=mask[:, :, :4, :4])
        near(first.logits, expected[:, :4])
        rest, known = mask[:, :, 4:], first.past_key_values
        second = model(IDS[:, 4:], past_key_values=known, attention_mask=rest)
        near(second.logits, expected[:, 4:])
        assert second.past_key_values.mask[:, :6].all()
        slots = ((0, 0), (0, 0), (0, 0), (0, length - 6))
        whole = np.pad(rest, slots, constant_values=LOWEST if added else False)
        step = jax.jit(
            lambda cache, mask: model(IDS[:, 4:], past_key_values=cache, attention_mask=mask).logits
        )
        near(step(known, whole), expected[:, 4:])
    new = model(IDS, attention_mask=mask, use_cache=True)
    near(new.logits, expected)


@pytest.mark.parametrize("pair", slow_but(DECODERS, *QUICK), indirect=True)
def test_positions_to_keep(pair):
    theirs, model = pair
    every = model(IDS).logits
    with torch.no_grad():
        rows = theirs(torch.tensor(IDS), logits_to_keep=torch.tensor(ROWS)).logits.numpy()
    near(model(IDS, logits_to_keep=ROWS).logits, rows)
    near(minibert.compiled(model)(IDS, logits_to_keep=ROWS).logits, rows)
    for kept in ([0, 4], np.array([5, 0, 0]), jnp.array([3]), torch.tensor([1, 2])):
        expected, plain = every[:, np.asarray(kept)], np.asarray(kept)
        near(model(IDS, logits_to_keep=kept).logits, expected)
        near(minibert.compiled(model)(IDS, logits_to_keep=plain).logits, expected)
    with pytest.raises(InputError, match=r"logits_to_keep: .*out of range|logits_to_keep: 6"):
        model(IDS, logits_to_keep=[6])
    with pytest.raises(InputError, match="logits_to_keep: expected a number or shape"):
        model(IDS, logits_to_keep=[[0]])


@pytest.mark.parametrize("name", MASKED)
def test_positions_of_masks(name, tmp_path):
    """Equal to the full logits at these positions, which alone are decoded."""
    oracle.saved(name, tmp_path)
    model = oracle.ours(name, tmp_path)
    every = model(IDS).logits
    each = np.arange(2)[:, None]
    for kept, expected in (
        (2, every[:, -2:]),
        ([0, 4], every[:, [0, 4]]),
        (ROWS, every[each, ROWS]),
    ):
        near(model(IDS, logits_to_keep=kept).logits, expected)
    near(minibert.compiled(model)(IDS, logits_to_keep=ROWS).logits, every[each, ROWS])
    program = str(jax.make_jaxpr(lambda ids: model(ids, logits_to_keep=ROWS).logits)(IDS))
    assert "[2,3,97]" in program
    assert "[2,6,97]" not in program
    with pytest.raises(InputError, match=r"logits_to_keep: .* or \(2, positions\), found \(3, 1\)"):
        model(IDS, logits_to_keep=[[0], [1], [2]])


@pytest.mark.parametrize(
    ("mask", "why"),
    [
        (ALLOWED[:, :2], r"attention_mask: expected shape .2 or 1, 3 or 1, 6( or 1)?, 6."),
        (ALLOWED[..., :5], r"attention_mask: expected shape .2 or 1, 3 or 1, 6( or 1)?, 6."),
        (np.where(ALLOWED, 0, np.nan), "attention_mask: expected finite numbers or -inf to add"),
        (np.where(ALLOWED, 0, np.inf), "attention_mask: expected finite numbers or -inf to add"),
        (ALLOWED[:, 0] * 1.0, "attention_mask: expected integers or booleans"),
        (ALLOWED + 1, "attention_mask: expected only 0 and 1, found 2"),
        (ALLOWED[None], r"attention_mask: expected shape .2, 6. or .2, 6, 6., found .1, 2, 3"),
    ],
)
def test_refused(pair, mask, why):
    with pytest.raises(InputError, match=why):
        pair[1](IDS, attention_mask=mask)
