"""A row's text depends only on its tokens, ends where it should, and has the right distribution."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import minibert
from generating import PAD, VOCAB, prompts, tiny
from slowly import slow_but

pytestmark = pytest.mark.unoptimised

ENDS = (3, 31, 47, 50, 77, 80)
OPTIONS = {"max_new_tokens": 13, "eos_token_id": ENDS, "pad_token_id": PAD}
WAYS = {
    "greedy": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_length": 9},
    "sampled": {"do_sample": True, "temperature": 1.5, "top_p": 0.9},
    "beams": {"num_beams": 3, "repetition_penalty": 1.3, "early_stopping": True},
    "sampled beams": {"num_beams": 3, "do_sample": True, "top_k": 20, "early_stopping": "never"},
}
LENGTHS = [9, 1, 4]
FILTERS = [{"temperature": 0.7, "top_k": 12}, {"min_p": 0.02, "top_k": 0}]


@pytest.fixture(scope="module")
def model():
    with jax.enable_x64(True):
        yield tiny(n_layer=2)


@pytest.fixture
def random():
    return np.random.default_rng(1)


def texts(model, ids, mask, **options):
    """Returns the tokens generated after each prompt, without padding."""
    if options.get("do_sample"):
        options = {"key": jax.random.key(7)} | options
    found = minibert.generate(model, ids, mask, **OPTIONS | options)[:, np.shape(ids)[1] :]
    return [row[row != PAD].tolist() for row in found]


@pytest.mark.parametrize("way", slow_but(WAYS, "greedy", "sampled beams"))
def test_a_row_is_the_same_alone_and_in_company(model, random, way):
    ids, mask = prompts(random, LENGTHS)
    together = texts(model, ids, mask, **WAYS[way])
    # the key of a drawn row is that of its number
    rows = range(1) if "sampled" in way else range(len(LENGTHS))
    for row in rows:
        alone = ids[[row], -LENGTHS[row] :]
        assert texts(model, alone, np.ones_like(alone), **WAYS[way]) == [together[row]]
    others, _ = prompts(np.random.default_rng(2), LENGTHS)
    others[1] = ids[1]
    changed = texts(model, others, mask, **WAYS[way])
    assert changed[1] == together[1]
    assert changed[0] != together[0]


@pytest.mark.parametrize("way", slow_but(WAYS, "greedy", "sampled beams"))
def test_padding_does_not_matter(model, random, way):
    ids, mask = prompts(random, LENGTHS)
    expected = texts(model, ids, mask, **WAYS[way])
    for more in (1, 5, 14, 40):  # also across a bucket's edge, and wider than the positions
        padding = ((0, 0), (more, 0))
        wide = np.pad(ids, padding, constant_values=int(random.integers(0, VOCAB)))
        assert texts(model, wide, np.pad(mask, padding), **WAYS[way]) == expected
    assert texts(model, ids, None, **WAYS[way]) == expected  # the pad token says what is padding


def test_a_ragged_list_is_padded(model, random):
    ids, mask = prompts(random, LENGTHS)
    rows = [row[real == 1].tolist() for row, real in zip(ids, mask, strict=True)]
    expected = minibert.generate(model, ids, mask, **OPTIONS)
    for ragged in (rows, tuple(rows), [np.array(row) for row in rows]):
        np.testing.assert_array_equal(minibert.generate(model, ragged, **OPTIONS), expected)
    # words that are the pad token are padding, whether or not the rows have one length
    with_pad = minibert.generate(model, [[5, PAD, 7, 8], [9]], **OPTIONS)
    other = minibert.generate(model, [[5, PAD, 7, 8], [9, 9, 9, 9]], **OPTIONS)
    assert with_pad[0, :9].tolist() == other[0, :9].tolist()


def test_every_token_is_the_full_forwards_argmax(model, random):
    ids, mask = prompts(random, LENGTHS)
    options = {"max_new_tokens": 14, "eos_token_id": None, "return_dict_in_generate": True}
    found = minibert.generate(model, ids, mask, **options)
    whole = np.concatenate([mask, np.ones((3, 14), int)], axis=1)
    positions = np.maximum(np.cumsum(whole, axis=1) - 1, 0)
    logits = model(found.sequences, attention_mask=whole, position_ids=positions).logits
    likely = jax.nn.log_softmax(logits[:, ids.shape[1] - 1 : -1].astype(jnp.float32))
    np.testing.assert_array_equal(np.argmax(likely, axis=-1), found.sequences[:, ids.shape[1] :])
    np.testing.assert_allclose(likely.max(axis=-1), found.log_probs, atol=1e-6)


def test_it_stops_when_the_longest_row_ends(model, random):
    ids, mask = prompts(random, [4, 4, 4])
    options = {"max_new_tokens": 15, "no_repeat_ngram_size": 1}  # so that no row is one word
    free = minibert.generate(model, ids, mask, eos_token_id=None, **options)[:, 4:]
    assert free.shape == (3, 15)
    for ends in itertools.combinations(np.unique(free).tolist(), 3):
        isin = np.isin(free, ends)
        firsts = isin.argmax(axis=1).tolist()
        if isin.any(axis=1).all() and len(set(firsts)) == 3 and max(firsts) < 12:
            break
    assert len(set(firsts)) == 3
    options |= {"eos_token_id": ends, "pad_token_id": PAD}
    found = minibert.generate(model, ids, mask, **options)
    assert found.shape == (3, 4 + max(firsts) + 1)
    for row, text, first in zip(found[:, 4:], free, firsts, strict=True):
        assert row[: first + 1].tolist() == text[: first + 1].tolist()
        assert (row[first + 1 :] == PAD).all()
    del options["pad_token_id"]  # then the first end stands behind the others
    found = minibert.generate(model, ids, mask, **options)
    first = int(np.argmin(firsts))
    assert (found[first, 4 + firsts[first] + 1 :] == ends[0]).all()


@pytest.mark.parametrize(
    ("options", "generated"),
    [
        ({}, 20),
        ({"max_new_tokens": 1}, 1),
        ({"max_new_tokens": 17}, 17),
        ({"max_length": 12}, 7),
        ({"max_length": 40}, 35),
    ],
)
def test_lengths(model, options, generated):
    ids = np.arange(10).reshape(2, 5)
    found = minibert.generate(model, ids, eos_token_id=None, **options)
    assert found.shape == (2, 5 + generated)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found[:, :5], ids)


@pytest.mark.parametrize(("length", "generated"), slow_but([(33, 7), (39, 1), (25, 15)], (33, 7)))
def test_all_positions_can_be_used(model, random, length, generated):
    """The padded lengths of prompt and text may exceed the positions."""
    ids = random.integers(0, VOCAB, (1, length))
    found = minibert.generate(model, ids, eos_token_id=None, max_new_tokens=generated)
    logits = model(found).logits[0, length - 1 : -1]
    np.testing.assert_array_equal(np.argmax(logits, axis=-1), found[0, length:])
    # 20 tokens by default, or as many as there are positions
    assert minibert.generate(model, ids, eos_token_id=None).shape == (1, min(length + 20, 40))


def test_several_sequences_stand_by_their_prompt(model, random):
    ids, mask = prompts(random, LENGTHS)
    options = {"do_sample": True, "num_return_sequences": 4, "key": jax.random.key(0)}
    found = minibert.generate(model, ids, mask, **OPTIONS | options)
    assert found.shape[0] == 12
    np.testing.assert_array_equal(found[:, :9], np.repeat(ids, 4, axis=0))
    assert len(np.unique(found, axis=0)) > 8  # they are drawn apart
    other = minibert.generate(model, ids, mask, **OPTIONS | options | {"key": jax.random.key(1)})
    assert found.shape != other.shape or (found != other).any()


@pytest.mark.parametrize("filters", slow_but(FILTERS, FILTERS[0]))
def test_tokens_are_drawn_as_often_as_they_are_likely(model, random, filters):
    rows = 5000
    options = {"do_sample": True, "num_return_sequences": rows, "max_new_tokens": 1, **filters}
    ids = random.integers(0, VOCAB, (1, 6))
    found = minibert.generate(model, ids, key=jax.random.key(3), **options)[:, -1]
    logits = np.asarray(model(ids).logits)[0, -1] / filters.get("temperature", 1)
    likely = np.exp(logits - logits.max())
    least = filters.get("min_p") or np.sort(likely)[-filters["top_k"]]
    kept = likely >= least
    expected = rows * likely[kept] / likely[kept].sum()
    counts = np.bincount(found, minlength=VOCAB)
    assert counts[~kept].sum() == 0
    common = expected >= 5
    assert common.sum() >= 3
    assert ((counts[kept] - expected)[common] ** 2 / expected[common]).sum() < 3 * common.sum() + 9
