"""Beam search, inside one compiled program.

The search follows transformers' `_beam_search`. Each step ranks the most probable continuations of
a prompt's beams, keeps those that end if they score higher than texts kept before, and continues
with the best of the others. Scores are log-probabilities divided by a power of the length (Wu et
al., arXiv:1609.08144, without its constant). The axes:

    batch        prompts
    beams        texts being generated for each prompt, and texts kept for each prompt
    candidates   continuations ranked for each prompt
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
    """Several texts for each prompt, the best first.

    Attributes:
        tokens: `(batch, some, slots)`.
        scores: `(batch, some)`.
        came_from: `(batch, some, steps)`, the row to which each token was added; −1 where there is
            no token.
        log_probs: `(batch, some, steps)`, each token's under the model, before processing.
    """

    tokens: Array
    scores: Array
    came_from: Array
    log_probs: Array


class Search(NamedTuple):
    """Loop state of beam search.

    Attributes:
        step: number of tokens generated so far.
        running: the beams; their scores are log-probabilities.
        kept: the best texts that have ended, with their final scores.
        ended: `(batch, beams)`, False where `kept` holds only a placeholder.
        faults: `(batch,)`, `NOT_FINITE` where the logits of a running beam were not finite; else 0.
        hopeful: `(batch,)`, whether a beam may still score higher than a kept text.
        stuck: whether no candidate can be continued.
        cache: keys and values of all tokens but the beams' last; None in the result.
        records: the recorded outputs of every step.
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
    """Runs beam search until it stops as `plan.early_stopping` specifies, or a beam has a fault."""
    return jax.lax.while_loop(
        lambda state: unfinished(state, plan),
        lambda state: advance(model, state, rules, plan),
        begin(model, prompt, rules, plan),
    )._replace(cache=None)


def begin(model: PretrainedModel, prompt: Prompt, rules: Rules, plan: Plan) -> Search:
    """Runs the model on the prompts and adds the first token to every beam."""
    logits, tokens, cache, records = prefill(model, prompt, plan)
    batch, beams = len(prompt.ids), plan.copies
    tokens = tokens.at[:, tokens.shape[1] - plan.steps :].set(rules.pad)
    impossible = jnp.full((batch, beams), IMPOSSIBLE, jnp.float32)
    running = Texts(
        tokens=tokens.reshape(batch, beams, -1),
        # all beams are equal at the start: only the first is continued
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
    return _extend(start, logits, rules, plan)


def advance(model: PretrainedModel, state: Search, rules: Rules, plan: Plan) -> Search:
    """Runs the model on the last token of every beam and adds the next."""
    return _extend(*read(model, state, rules, plan), rules, plan)


def unfinished(state: Search, plan: Plan) -> Bool[Array, ""]:
    """Returns whether to extend the beams again."""
    going = state.hopeful.any() & ~state.stuck & ~state.faults.any()
    return going & ~state.ended.all() if plan.early_stopping is True else going


def _extend(state: Search, logits: Logits, rules: Rules, plan: Plan) -> Search:
    """Ranks continuations, keeps the best that end and continues with the best others."""
    batch, beams = state.running.scores.shape
    start = state.tokens.shape[1] - plan.steps
    history = History(state.tokens, state.cache.mask, start, state.step, rules.limit)
    likely = jax.nn.log_softmax(logits)
    scores = rules.sampling(rules.processors(likely, history))
    broken = faults(logits, scores, rules).reshape(batch, beams) == NOT_FINITE
    broken = broken & possible(state.running.scores) & state.hopeful[:, None]
    candidates, added = _candidates(state, scores, likely, rules, plan)
    stops = rules.ends[added] | (state.step + 1 >= rules.limit)
    among = jax.lax.top_k(_lowered(candidates.scores, stops), beams)[1]
    running, stopped = _taken((candidates, stops), among)
    running = running._replace(scores=_lowered(running.scores, stopped))
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
    """Returns the most probable continuations and the token that each of them adds."""
    batch, beams = state.running.scores.shape
    vocab = scores.shape[1]
    totals = scores.reshape(batch, beams, vocab) + state.running.scores[..., None]
    totals = totals.reshape(batch, beams * vocab)
    if plan.sampled:
        found = draw_distinct(totals, step_keys(rules, state.step, batch), plan.candidates)
    else:
        found = jax.lax.top_k(totals, plan.candidates)[1]
    beam, added = found // vocab, found % vocab
    texts = _taken(state.running, beam)
    slot = texts.tokens.shape[2] - plan.steps + state.step
    rows = beam + jnp.arange(batch, dtype=beam.dtype)[:, None] * beams
    return (
        Texts(
            tokens=texts.tokens.at[..., slot].set(added.astype(texts.tokens.dtype)),
            scores=_taken(totals, found),
            came_from=texts.came_from.at[..., state.step].set(rows.astype(jnp.int32)),
            log_probs=texts.log_probs.at[..., state.step].set(likely[rows, added]),
        ),
        added,
    )


def _keep(
    state: Search,
    candidates: Texts,
    stops: Bool[Array, "batch candidates"],
    rules: Rules,
    plan: Plan,
) -> tuple[Texts, Bool[Array, "batch beams"]]:
    """Returns the best of the kept texts and the candidates that end."""
    beams = state.ended.shape[1]
    # only the first `beams` candidates may end; the others ensure that enough can be continued
    ends = stops & (jnp.arange(stops.shape[1])[None] < beams) & possible(candidates.scores)
    closed = ~state.hopeful
    if plan.early_stopping is True:
        closed = closed | state.ended.all(axis=1)
    scores = candidates.scores / rules.powers[state.step + 1]
    scores = _lowered(_lowered(scores, closed[:, None]), ~ends)
    kept, ended = jax.tree.map(
        lambda *pair: jnp.concatenate(pair, axis=1),
        (state.kept, state.ended),
        (candidates._replace(scores=scores), ends),
    )
    return _taken((kept, ended), jax.lax.top_k(kept.scores, beams)[1])


def _lowered(
    scores: Float32[Array, "batch some"], where: Bool[Array, "batch #some"]
) -> Float32[Array, "batch some"]:
    """Returns scores, lowered below those of all possible texts where the mask is True."""
    return jnp.where(where, scores + IMPOSSIBLE, scores)


def possible(scores: Float32[Array, "batch some"]) -> Bool[Array, "batch some"]:
    """Returns which scores belong to texts, not to placeholders or banned tokens."""
    return scores > IMPOSSIBLE / 2


def _taken(tree: Any, indices: Int[Array, "batch some"]) -> Any:
    """Returns each prompt's entries at `indices`, in that order, for all arrays of a tree."""
    return jax.tree.map(lambda array: jax.vmap(operator.getitem)(array, indices), tree)
