"""Records of `generate` compared with transformers': scores, logits, beams, log-probabilities."""

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the oracle is PyTorch")

import minibert  # noqa: E402
import oracle  # noqa: E402
from generating import PAD  # noqa: E402
from slowly import slow_but  # noqa: E402

TOLERANCE = 2e-5  # both sides round their float64 logits to float32 before anything else
ENDS = [11, 23, 60]
RECORDS = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
WAYS = {
    "greedy": {},
    "greedy with penalties": {"repetition_penalty": 1.4, "no_repeat_ngram_size": 3},
    "beams": {"num_beams": 3, "num_return_sequences": 3},
    "beams, never, with penalties": {
        **{"num_beams": 4, "num_return_sequences": 2, "early_stopping": "never"},
        **{"length_penalty": -0.5, "repetition_penalty": 1.4},
    },
}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt2")
    theirs = oracle.saved("GPT2LMHeadModel", folder)
    with oracle.float64():
        yield oracle.ours("GPT2LMHeadModel", folder, param_dtype=jnp.float64), theirs.double()


@pytest.mark.parametrize(
    "way", slow_but(WAYS, "greedy with penalties", "beams, never, with penalties")
)
@pytest.mark.parametrize("seed", range(3))
def test_the_records_are_transformers(both, way, seed):
    model, theirs = both
    options = WAYS[way] | RECORDS | {"eos_token_id": ENDS, "pad_token_id": PAD}
    ids = np.random.default_rng(seed).integers(0, 90, (2, 6))
    asked = {"input_ids": torch.as_tensor(ids), "attention_mask": torch.ones(ids.shape)}
    with torch.no_grad():
        expected = theirs.generate(**asked, do_sample=False, max_new_tokens=14, **options)
    with oracle.float64():
        found = minibert.generate(model, ids, max_new_tokens=14, **options)
    np.testing.assert_array_equal(found.sequences, expected.sequences.numpy())
    for name in ("scores", "logits"):
        ours, others = getattr(found, name), getattr(expected, name)
        assert len(ours) == len(others)
        for one, other in zip(ours, others, strict=True):
            np.testing.assert_allclose(one, other.numpy(), rtol=TOLERANCE, atol=TOLERANCE)
    if "num_beams" in options:
        np.testing.assert_array_equal(found.beam_indices, expected.beam_indices.numpy())
        np.testing.assert_allclose(
            found.sequences_scores, expected.sequences_scores.numpy(), rtol=TOLERANCE
        )
    else:
        assert found.beam_indices is None
        assert found.sequences_scores is None


@pytest.mark.parametrize(
    "way", slow_but(WAYS, "greedy with penalties", "beams, never, with penalties")
)
def test_log_probs_are_the_models_own(both, way):
    """They are those of the logits before processors; transformers uses the scores it is passed."""
    model, theirs = both
    options = WAYS[way] | RECORDS | {"eos_token_id": ENDS, "pad_token_id": PAD}
    ids = np.random.default_rng(5).integers(0, 90, (2, 6))
    with oracle.float64():
        found = minibert.generate(model, ids, max_new_tokens=14, **options)
    beams = found.beam_indices
    transitions = theirs.compute_transition_scores(
        torch.as_tensor(found.sequences).long(),
        tuple(torch.tensor(logits.copy()) for logits in found.logits),
        None if beams is None else torch.as_tensor(beams).long(),
        normalize_logits=True,
    ).numpy()
    ended = np.cumsum(np.isin(found.sequences[:, 6:], ENDS), axis=1) > 0
    behind = np.pad(ended, ((0, 0), (1, 0)))[:, :-1]
    assert found.log_probs.shape == transitions.shape == behind.shape
    np.testing.assert_array_equal(found.log_probs[behind], 0)
    np.testing.assert_allclose(found.log_probs[~behind], transitions[~behind], atol=TOLERANCE)
    if beams is not None:
        np.testing.assert_array_equal(beams[behind], -1)
    if way == "beams":  # no rule has changed the scores: they are sums of these over the length
        lengths = (~behind).sum(axis=1)
        np.testing.assert_allclose(
            found.sequences_scores, found.log_probs.sum(axis=1) / lengths, atol=TOLERANCE
        )


@pytest.mark.slow
def test_beams_are_padded_with_the_pad_token_even_if_it_is_0(both):
    """transformers writes the first end token there instead, where the pad token is 0."""
    model, theirs = both
    ids = np.random.default_rng(0).integers(1, 90, (3, 6))
    options = {"num_beams": 3, "eos_token_id": list(range(30, 60)), "max_new_tokens": 14}
    with torch.no_grad():
        expected = theirs.generate(torch.as_tensor(ids), pad_token_id=0, **options).numpy()
    with oracle.float64():
        found = minibert.generate(model, ids, pad_token_id=0, **options)
    different = found != expected
    assert different.any()
    assert (found[different] == 0).all()
    assert (expected[different] == 30).all()
