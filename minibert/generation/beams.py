"""Beam search, inside one compiled program.

The search is transformers' `_beam_search`: of all continuations of a prompt's beams the likeliest
few are looked at; those that end are kept if they beat what is kept, the best of the others go on.
Scores are log-probabilities divided by a power of the length (Wu et al., arXiv:1609.08144, without
its constant). The axes:

    batch        prompts
    beams        texts being written for each, and texts kept for each
    candidates   continuations looked at for each
    slots        positions of a text: its prompt, padded on the left, then `steps`
"""

import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float32, Int

from minibert.generation.decoding import (
    NOT_FINITE,
    Logits,
    Plan,
    Prompt,
    Records,
    Rules,
    faults,
    prefill,
    read,
    recorded,
    step_keys,
)
from minibert.generation.processors import History
from minibert.generation.sampling import draw_distinct
from minibert.models.base import PretrainedModel

IMPOSSIBLE = -1e9


class Texts(NamedTuple):
    """Some texts for each prompt, the best first.

    Attributes:
        tokens: `(batch, some, slots)`.
        scores: `(batch, some)`.
        came_from: `(batch, some, steps)`, in which row each token was added; −1 where there is
            none.
        log_probs: `(batch, some, steps)`, each token's under the model, before any rule.
    """

    tokens: Array
    scores: Array
    came_from: Array
    log_probs: Array


class Search(NamedTuple):
    """Where a search stands.

    Attributes:
        step: how many tokens have been generated.
        running: the beams, with log-probabilities.
        kept: the best texts that have ended, with scores.
        ended: `(batch, beams)`, False for a kept text that is only a placeholder.
        faults: `(batch,)`, `NOT_FINITE` where the logits of a running beam were not; else 0.
        hopeful: `(batch,)`, whether a beam may still beat a kept text.
        stuck: whether no candidate can go on.
        cache: what the model has seen: all but the beams' last tokens; None at the end.
        records: what is kept of every step.
    """

    step: Array
    running: Texts
    kept: Texts
    ended: Array
    faults: Array
    hopeful: Array
    stuck: Array
    cache: Any
    records: Records

    @property
    def tokens(self) -> Int[Array, "rows slots"]:
        """The beams' tokens, a row for each."""
        return self.running.tokens.reshape(-1, self.running.tokens.shape[2])


def search(model: PretrainedModel, prompt: Prompt, rules: Rules, plan: Plan) -> Search:
    """Searches until no better text is to be expected."""
    logits, tokens, cache, records = prefill(model, prompt, plan)
    batch, beams = len(prompt.ids), plan.copies
    tokens = tokens.at[:, tokens.shape[1] - plan.steps :].set(rules.pad)
    impossible = jnp.full((batch, beams), IMPOSSIBLE, jnp.float32)
    running = Texts(
        tokens=tokens.reshape(batch, beams, -1),
        # all beams are alike at first: only the first is continued
        scores=impossible.at[:, 0].set(0),
        came_from=jnp.full((batch, beams, plan.steps), -1, jnp.int32),
        log_probs=jnp.zeros((batch, beams, plan.steps), jnp.float32),
    )
    start = Search(
        step=jnp.zeros((), jnp.int32),
        running=running,
        kept=running._replace(scores=impossible),
        ended=jnp.zeros((batch, beams), bool),
        faults=jnp.zeros(batch, jnp.int8),
        hopeful=jnp.ones(batch, bool),
        stuck=jnp.zeros((), bool),
        cache=cache,
        records=records,
    )
    return jax.lax.while_loop(
        lambda state: _unfinished(state, plan),
        lambda state: _extend(*read(model, state, plan), rules, plan),
        _extend(start, logits, rules, plan),
    )._replace(cache=None)


def _unfinished(state: Search, plan: Plan) -> Bool[Array, ""]:
    going = state.hopeful.any() & ~state.stuck & ~state.faults.any()
    return going & ~state.ended.all() if plan.early_stopping is True else going


def _extend(state: Search, logits: Logits, rules: Rules, plan: Plan) -> Search:
    """Looks at the likeliest continuations, keeps those that end, goes on with others."""
    batch, beams = state.running.scores.shape
    start = state.tokens.shape[1] - plan.steps
    history = History(state.tokens, state.cache.mask, start, state.step, rules.limit)
    likely = jax.nn.log_softmax(logits)
    scores = rules.sampling(rules.processors(likely, history))
    broken = faults(logits, scores, rules).reshape(batch, beams) == NOT_FINITE
    broken = broken & _possible(state.running.scores) & state.hopeful[:, None]
    candidates, words = _candidates(state, scores, likely, rules, plan)
    stops = rules.ends[words] | (state.step + 1 >= rules.limit)
    among = jax.lax.top_k(candidates.scores + stops * IMPOSSIBLE, beams)[1]
    running, stopped = _taken((candidates, stops), among)
    running = running._replace(scores=running.scores + stopped * IMPOSSIBLE)
    kept, ended = _keep(state, candidates, stops, rules, plan)
    rows = running.came_from[..., state.step].reshape(-1)
    step = longest = state.step + 1
    if plan.early_stopping == "never":
        growing = rules.powers[1] < rules.powers[2]  # the length penalty is positive
        longest = jnp.where(growing, rules.limit, step)
    best = running.scores[:, :1] / rules.powers[longest]
    worst = jnp.where(ended, kept.scores.min(axis=1, keepdims=True), IMPOSSIBLE)
    return Search(
        step=step,
        running=running,
        kept=kept,
        ended=ended,
        faults=jnp.where(broken.any(axis=1), NOT_FINITE, 0).astype(jnp.int8),
        hopeful=state.hopeful & (best > worst).any(axis=1),
        stuck=stops.all(),
        cache=state.cache.rows(rows),
        records=recorded(state.records, state.step, scores, logits),
    )


def _candidates(
    state: Search, scores: Logits, likely: Logits, rules: Rules, plan: Plan
) -> tuple[Texts, Int[Array, "batch candidates"]]:
    """The continuations to look at, with log-probabilities, and the word each of them adds."""
    batch, beams = state.running.scores.shape
    vocab = scores.shape[1]
    totals = scores.reshape(batch, beams, vocab) + state.running.scores[..., None]
    totals = totals.reshape(batch, beams * vocab)
    if plan.sampled:
        found = draw_distinct(totals, step_keys(rules, state.step, batch), plan.candidates)
    else:
        found = jax.lax.top_k(totals, plan.candidates)[1]
    beam, words = found // vocab, found % vocab
    texts = _taken(state.running, beam)
    slot = texts.tokens.shape[2] - plan.steps + state.step
    rows = beam + jnp.arange(batch)[:, None] * beams
    return (
        Texts(
            tokens=texts.tokens.at[..., slot].set(words.astype(texts.tokens.dtype)),
            scores=_taken(totals, found),
            came_from=texts.came_from.at[..., state.step].set(rows.astype(jnp.int32)),
            log_probs=texts.log_probs.at[..., state.step].set(likely[rows, words]),
        ),
        words,
    )


def _keep(
    state: Search,
    candidates: Texts,
    stops: Bool[Array, "batch candidates"],
    rules: Rules,
    plan: Plan,
) -> tuple[Texts, Bool[Array, "batch beams"]]:
    """The best of what was kept and of the candidates that end."""
    beams = state.ended.shape[1]
    # the other candidates only make sure that enough are left to go on
    ends = stops & (jnp.arange(stops.shape[1]) < beams) & _possible(candidates.scores)
    closed = ~state.hopeful
    if plan.early_stopping is True:
        closed = closed | state.ended.all(axis=1)
    scores = candidates.scores / rules.powers[state.step + 1]
    scores = scores + closed[:, None] * IMPOSSIBLE + ~ends * IMPOSSIBLE
    kept, ended = jax.tree.map(
        lambda *pair: jnp.concatenate(pair, axis=1),
        (state.kept, state.ended),
        (candidates._replace(scores=scores), ends),
    )
    return _taken((kept, ended), jax.lax.top_k(kept.scores, beams)[1])


def _possible(scores: Float32[Array, "batch some"]) -> Bool[Array, "batch some"]:
    """Returns which log-probabilities are those of texts, not of placeholders or banned tokens."""
    return scores > IMPOSSIBLE / 2


def _taken(tree: Any, indices: Int[Array, "batch some"]) -> Any:
    """What each prompt has at those places, in that order, in all arrays of a tree."""
    return jax.tree.map(lambda array: jax.vmap(operator.getitem)(array, indices), tree)
