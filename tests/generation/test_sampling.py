"""Filters compared with transformers', and draws compared with their probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minibert.checkpoint.generation_config import GenerationConfig
from minibert.generation import planning
from minibert.generation.sampling import Sampling, draw, draw_distinct, kth_largest, row_keys
from slowly import slow_but

VOCAB = 150
apply = jax.jit(lambda sampling, scores: sampling(scores))


def distributions(seed: int, vocab: int = VOCAB) -> np.ndarray:
    """Rows of every kind: flat, peaked, banned tokens, one token, and in-between."""
    random = np.random.default_rng(seed)
    scores = random.normal(0, 1, (12, vocab)) * np.geomspace(0.05, 20, 12)[:, None]
    scores[3, ::2] = -np.inf
    scores[4, :-2] = -np.inf
    scores[5, 1:] = -np.inf
    scores[6] -= 100  # as GPT-2's are
    return scores.astype(np.float32)


def ties(seed: int) -> np.ndarray:
    """Rows of few different scores."""
    random = np.random.default_rng(seed)
    return random.integers(-3, 3, (12, VOCAB)).astype(np.float32)


def theirs(options: dict, scores: np.ndarray) -> np.ndarray:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.GenerationConfig(do_sample=True, **{"top_k": 0, **options})
    ends = options.get("eos_token_id")
    config._eos_token_tensor = None if ends is None else torch.tensor(ends).reshape(-1)
    model = type("Model", (transformers.GenerationMixin,), {"config": transformers.GPT2Config()})
    chain = model()._get_logits_processor(config, input_ids_seq_length=1)
    ids = torch.zeros((len(scores), 1), dtype=torch.long)
    return chain(ids, torch.as_tensor(scores)).numpy()


def ours(options: dict, scores: np.ndarray) -> np.ndarray:
    config = GenerationConfig.from_dict({"do_sample": True, "top_k": 0, **options})
    return np.asarray(apply(planning.sampling(config), jnp.asarray(scores)))


BEAMS = {"num_beams": 3, "eos_token_id": [7, 8]}  # at least three tokens are kept
SETTINGS = [
    *({"temperature": t} for t in (1e-6, 0.3, 1.0, 2.5, 100.0)),
    *({"top_k": k} for k in (1, 2, 50, VOCAB - 1, VOCAB, 2**31 - 1)),
    *({"top_p": p} for p in (0.0, 1e-6, 0.1, 0.5, 0.9, 0.99, 0.999999, 1.0)),
    *({"min_p": p} for p in (0.0, 0.01, 0.1, 0.5, 1.0)),
    *({"top_h": h} for h in (0.01, 0.2, 0.5, 0.8, 0.95)),
    *({"typical_p": p} for p in (1e-6, 0.2, 0.5, 0.9, 0.999, 1.0)),
    *({"epsilon_cutoff": e} for e in (0.0, 3e-4, 0.01, 0.3, 0.999)),
    *({"eta_cutoff": e} for e in (0.0, 3e-4, 0.01, 0.3, 0.999)),
    {"temperature": 0.7, "top_k": 40, "top_p": 0.9},
    {"temperature": 1.4, "top_k": 20, "min_p": 0.05, "renormalize_logits": True},
    {"top_h": 0.9, "typical_p": 0.8, "eta_cutoff": 0.02, "epsilon_cutoff": 0.01},
    *(
        {name: value, **BEAMS}
        for name, value in (
            *(("top_k", 1), ("top_k", 9), ("top_p", 0.0), ("top_p", 0.6), ("min_p", 0.9)),
            *(("typical_p", 1e-6), ("epsilon_cutoff", 0.9), ("eta_cutoff", 0.9)),
        )
    ),
    {"top_p": 0.1, "num_beams": 2},
]


def name(options: dict) -> str:
    return "-".join(f"{k}={v}" for k, v in options.items())


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(np.float64(scores) - scores.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("options", slow_but(SETTINGS, *SETTINGS[::3]), ids=name)
def test_the_tokens_that_transformers_keeps(options):
    for seed in range(15):
        scores = distributions(seed, vocab=VOCAB if seed % 2 else 40)
        expected, found = theirs(options, scores), ours(options, scores)
        np.testing.assert_array_equal(np.isneginf(found), np.isneginf(expected))
        np.testing.assert_allclose(softmax(found), softmax(expected), atol=1e-6)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("options", SETTINGS, ids=name)
def test_of_equal_tokens_as_many_as_transformers_keeps(options):
    """PyTorch's sort does not determine which of several equal scores are kept."""
    if "min_p" in options and "num_beams" in options:
        pytest.skip("ours keeps all that are as likely as the last token that must be kept")
    for seed in range(15):
        scores = ties(seed)
        expected, found = theirs(options, scores), ours(options, scores)
        np.testing.assert_allclose(np.sort(found), np.sort(expected), rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 10, 64, 100])
@pytest.mark.parametrize("share", [0.1, 0.25, 0.3, 0.5, 0.7, 0.75, 0.9])
def test_the_edge_of_top_p_in_flat_distributions(count, share):
    """Where the mass of some tokens is p exactly, rounding decides, and does as PyTorch's."""
    scores = np.zeros((1, count), np.float32)
    expected, found = theirs({"top_p": share}, scores), ours({"top_p": share}, scores)
    assert np.isfinite(found).sum() == np.isfinite(expected).sum()


@pytest.mark.parametrize("options", [{"top_p": 0.4}, {"typical_p": 0.4}, {"top_h": 0.5}], ids=name)
def test_equal_tokens_at_the_edge_are_kept_from_the_lowest_id(options):
    kept = np.isfinite(ours(options, np.zeros((1, 10), np.float32)))[0]
    if "typical_p" not in options:  # which keeps all that are as near as the last
        assert 1 < kept.sum() < 10
    assert (np.diff(kept.astype(int)) <= 0).all()


def test_the_kth_largest_of_any_floats():
    random = np.random.default_rng(0)
    scores = np.float32(random.normal(0, 1, (6, 60)) * 10.0 ** random.integers(-38, 38, (6, 60)))
    scores[0, :9] = [0.0, -0.0, np.inf, -np.inf, 1e-45, -1e-45, 3.4e38, -3.4e38, 0.0]
    for k in (1, 2, 3, 30, 59, 60):
        found = np.asarray(kth_largest(jnp.asarray(scores), jnp.int32(k)))[:, 0]
        np.testing.assert_array_equal(found, np.sort(scores)[:, -k])


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("name", ["top_p", "typical_p"])
def test_a_part_of_the_vocabulary_is_sorted_first(monkeypatch, name, share):
    """Only rows with many probable tokens need a full sort; rows do not affect each other."""
    scores = distributions(0)
    sampling = planning.sampling(GenerationConfig(do_sample=True, top_k=0, **{name: share}))
    expected = theirs({name: share}, scores)
    monkeypatch.setattr("minibert.generation.sampling.RANKED_FIRST", 8)
    partly = jax.jit(lambda scores: sampling(scores))
    np.testing.assert_array_equal(partly(scores), expected)
    alone = [np.asarray(partly(scores[row : row + 1])) for row in range(len(scores))]
    np.testing.assert_array_equal(np.concatenate(alone), expected)
    kept = np.isfinite(expected).sum(axis=1)
    assert kept.min() < 8 < kept.max() or share == 0.05


def test_large_vocabularies():
    """The running sum must not drift over 50,257 tokens."""
    scores = np.float32(np.random.default_rng(0).normal(0, 2, (2, 50257)))
    options = {"top_p": 0.95}
    kept, expected = np.isfinite(ours(options, scores)), np.isfinite(theirs(options, scores))
    probabilities = np.sort(softmax(scores))
    exact = (np.cumsum(probabilities, axis=1) > 1 - 0.95).sum(axis=1)
    assert np.abs(kept.sum(axis=1) - exact).max() <= 1
    assert np.abs(kept.sum(axis=1) - expected.sum(axis=1)).max() <= 2


def test_other_numbers_compile_nothing():
    scores = jnp.asarray(distributions(0))
    filters = jax.jit(lambda sampling, scores: sampling(scores))
    one = GenerationConfig(
        do_sample=True, temperature=0.7, top_k=5, top_p=0.9, min_p=0.1, typical_p=0.9, top_h=0.5
    )
    other = one.replace(
        temperature=2.0, top_k=70, top_p=0.1, min_p=0.2, typical_p=0.4, top_h=0.9, num_beams=4
    )
    results = [filters(planning.sampling(config), scores) for config in (one, other)]
    assert filters._cache_size() == 1
    assert (np.asarray(results[0]) != np.asarray(results[1])).any()


def test_rows_know_no_neighbours():
    options = {"temperature": 0.9, "top_k": 30, "top_p": 0.9, "typical_p": 0.9, "eta_cutoff": 1e-3}
    scores = distributions(1)
    together = ours(options, scores)
    for row in range(len(scores)):
        np.testing.assert_array_equal(ours(options, scores[row : row + 1])[0], together[row])


def test_greedy_decoding_filters_nothing():
    config = GenerationConfig(temperature=0.5, top_p=0.1, min_p=0.3)  # as in a file: inert
    assert planning.sampling(config) == Sampling()
    scores = jnp.asarray(distributions(0))
    assert "sort" not in str(jax.make_jaxpr(planning.sampling(config))(scores))
    np.testing.assert_array_equal(planning.sampling(config)(scores), scores)


def test_what_is_neutral_does_not_act():
    sampling = planning.sampling(GenerationConfig(do_sample=True, top_k=0))
    assert jax.tree.leaves(sampling) == [1]  # the tokens that are kept at least


DRAWS = 20_000


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """Returns the probability of counts at least as far from the expected ones."""
    expected = probabilities * counts.sum()
    likely = expected >= 5
    statistic = ((counts - expected)[likely] ** 2 / expected[likely]).sum()
    return float(jax.scipy.stats.chi2.sf(statistic, likely.sum() - 1))


def test_tokens_are_drawn_with_their_probabilities():
    scores = jnp.asarray(np.random.default_rng(0).normal(0, 1, 30), jnp.float32)
    scores = scores.at[::7].set(-jnp.inf)
    rows = jnp.broadcast_to(scores, (DRAWS, 30))
    drawn = np.asarray(draw(rows, row_keys(jax.random.key(1), DRAWS)))
    counts = np.bincount(drawn, minlength=30)
    assert (counts[::7] == 0).all()
    assert chi_square(counts, softmax(np.asarray(scores)[None])[0]) > 1e-4


def test_distinct_tokens_are_drawn_one_after_the_other():
    scores = jnp.asarray([0.3, -1.0, 1.2, 0.0, -jnp.inf, 0.7], jnp.float32)
    rows = jnp.broadcast_to(scores, (DRAWS, 6))
    drawn = np.asarray(draw_distinct(rows, row_keys(jax.random.key(2), DRAWS), 2))
    likely = softmax(np.asarray(scores)[None])[0]
    pairs = likely[:, None] * likely / (1 - likely[:, None])  # the second of what the first left
    np.fill_diagonal(pairs, 0)
    counts = np.bincount(drawn[:, 0] * 6 + drawn[:, 1], minlength=36)
    assert (counts[pairs.ravel() == 0] == 0).all()
    assert chi_square(counts, pairs.ravel()) > 1e-4


def test_as_many_distinct_tokens_as_there_are():
    scores = jnp.asarray(distributions(0))
    drawn = np.asarray(draw_distinct(scores, row_keys(jax.random.key(0), 12), VOCAB))
    np.testing.assert_array_equal(np.sort(drawn), np.broadcast_to(np.arange(VOCAB), drawn.shape))
    finite = np.take_along_axis(np.isfinite(np.asarray(scores)), drawn, axis=1)
    assert (np.diff(finite.astype(int)) <= 0).all()  # impossible ones come last


@pytest.mark.parametrize("key", [jax.random.key(3), jax.random.PRNGKey(3)], ids=["typed", "raw"])
def test_a_rows_draw_depends_on_its_number_alone(key):
    scores = jnp.asarray(distributions(2))
    many, few = row_keys(key, 12), row_keys(key, 5)
    np.testing.assert_array_equal(draw(scores, many)[:5], draw(scores[:5], few))
    np.testing.assert_array_equal(
        draw_distinct(scores, many, 3)[:5], draw_distinct(scores[:5], few, 3)
    )
    same = jnp.zeros((12, 1000), jnp.float32)
    assert len(set(np.asarray(draw(same, many)).tolist())) > 8  # and differs between rows
