"""The decoding loop: one token after the other, inside one compiled program.

Everything here is traced. A `Plan` is what is static about a program; `Rules` are the numbers that
may change from call to call. The axes:

    batch    prompts
    rows     texts being written: several for each prompt, neighbours in the batch
    slots    positions of a row: its prompt, padded on the left, then room for what is generated
    steps    the room for what is generated
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float32, Int, Int8

from minibert.generation.processors import History, Processors
from minibert.generation.sampling import Sampling, draw, row_keys
from minibert.models.base import PretrainedModel
from minibert.models.compilation import check_evaluation
from minibert.nn.cache import KVCache

Logits = Float32[Array, "rows vocab"]
NOT_FINITE, NO_TOKEN = 1, 2  # why a row cannot go on


class Plan(NamedTuple):
    """What is static about a program.

    Attributes:
        steps: the room for generated tokens.
        copies: texts written for each prompt (the beams, if it is a beam search).
        sampled: whether tokens are drawn.
        records: what is returned of every step: "scores", when they are processed, and "logits".
        candidates: of a beam search: how many continuations of a prompt's beams are looked at;
            0 if it is not one.
        early_stopping: of a beam search: True, False or "never".
    """

    steps: int
    copies: int = 1
    sampled: bool = False
    records: tuple[str, ...] = ()
    candidates: int = 0
    early_stopping: bool | str = False


class Prompt(NamedTuple):
    """What is continued.

    Attributes:
        ids: `(batch, start)` words, padded on the left.
        mask: `(batch, start)`, True at words and False at padding.
        encoder_hidden_states: `(batch, encoder_seq, hidden)`, or None.
        encoder_attention_mask: `(batch, encoder_seq)`, or None.
    """

    ids: Any
    mask: Any
    encoder_hidden_states: Any = None
    encoder_attention_mask: Any = None


class Rules(NamedTuple):
    """The numbers a program is run with.

    Attributes:
        processors, sampling: see there.
        ends: `(vocab,)`, True for the words that end a text.
        pad: what is written after the end.
        limit: how many tokens to generate at most.
        key: the random key that is drawn from; nothing, if none is.
        powers: of a beam search: `(steps + 1,)`, lengths to the power of the length penalty; else
            nothing.
    """

    processors: Processors
    sampling: Sampling
    ends: Any
    pad: Any
    limit: Any
    key: Any = None
    powers: Any = None


Records = dict[str, Array]  # what is kept of every step, `(rows, steps, vocab)` each


def recorded(records: Records, step: Array, scores: Array, logits: Array) -> Records:
    """The records with one more step."""
    new = {"scores": scores, "logits": logits}
    return {name: room.at[:, step].set(new[name]) for name, room in records.items()}


class State(NamedTuple):
    """Where the loop stands.

    Attributes:
        step: how many tokens have been generated.
        tokens: `(rows, slots)` prompts and texts.
        done: `(rows,)`, True for the texts that have ended.
        faults: `(rows,)`, 0, or why the last token is none: `NOT_FINITE` or `NO_TOKEN`.
        log_probs: `(rows, steps)`, each token's under the model, before any rule.
        cache: what the model has seen: all but the last token; None at the end.
        records: what is kept of every step.
    """

    step: Array
    tokens: Array
    done: Array
    faults: Array
    log_probs: Array
    cache: Any
    records: Records

    @property
    def real(self) -> Bool[Array, "rows slots"]:
        """True at the prompts' words and at every generated slot that the model has seen."""
        return self.cache.mask


def prefill(
    model: PretrainedModel, prompt: Prompt, plan: Plan
) -> tuple[Logits, Int[Array, "rows slots"], KVCache, Records]:
    """Reads the prompts, and makes `plan.copies` rows of each, with room for what is generated.

    Returns:
        Logits, prompts, cache, and empty records.
    """
    check_evaluation(model)
    batch, start = prompt.ids.shape
    outputs = model(
        input_ids=prompt.ids,
        attention_mask=prompt.mask,
        position_ids=model.base_model.positions(prompt.ids, prompt.mask),
        past_key_values=model.init_cache(batch, start + plan.steps),
        encoder_hidden_states=prompt.encoder_hidden_states,
        encoder_attention_mask=prompt.encoder_attention_mask,
        logits_to_keep=1,
    )
    logits, cache = outputs.logits[:, -1].astype(jnp.float32), outputs.past_key_values
    tokens = jnp.pad(prompt.ids, ((0, 0), (0, plan.steps)))
    if plan.copies > 1:
        rows = jnp.repeat(jnp.arange(batch), plan.copies)
        logits, tokens, cache = logits[rows], tokens[rows], cache.rows(rows)
    rows, vocab = logits.shape
    room = jnp.zeros((rows, plan.steps, vocab), logits.dtype)
    return logits, tokens, cache, dict.fromkeys(plan.records, room)


def read(model: PretrainedModel, state: Any, plan: Plan) -> tuple[Any, Logits]:
    """Reads the last token of each row; its position is the number of words before it.

    Args:
        model: the model.
        state: a `State`, or a `Search` of beams; it is returned with the cache that follows.
        plan: what is static.
    """
    last = state.tokens[:, state.tokens.shape[1] - plan.steps + state.step - 1, None]
    outputs = model(
        input_ids=last,
        position_ids=model.base_model.positions(last, past=state.cache.mask.sum(axis=1)[:, None]),
        past_key_values=state.cache,
        logits_to_keep=1,
    )
    logits = outputs.logits[:, -1].astype(jnp.float32)
    return state._replace(cache=outputs.past_key_values), logits


def step_keys(rules: Rules, step: Array, rows: int) -> Array:
    """What each row (of a beam search, each prompt) draws with at a step, whatever the others."""
    return jax.vmap(jax.random.fold_in, (0, None))(row_keys(rules.key, rows), step)


def begin(model: PretrainedModel, prompt: Prompt, rules: Rules, plan: Plan) -> State:
    """Reads the prompts and generates the first token of every row."""
    logits, tokens, cache, records = prefill(model, prompt, plan)
    rows = len(tokens)
    state = State(
        step=jnp.zeros((), jnp.int32),
        tokens=tokens,
        done=jnp.zeros(rows, bool),
        faults=jnp.zeros(rows, jnp.int8),
        log_probs=jnp.zeros((rows, plan.steps), jnp.float32),
        cache=cache,
        records=records,
    )
    return _write(state, logits, rules, plan)


def advance(model: PretrainedModel, state: State, rules: Rules, plan: Plan) -> State:
    """Reads the last token of every row and generates the next."""
    return _write(*read(model, state, plan), rules, plan)


def unfinished(state: State, rules: Rules) -> Bool[Array, ""]:
    """Returns whether another token is generated: some row goes on, and every row can."""
    return (state.step < rules.limit) & ~state.done.all() & ~state.faults.any()


def run(model: PretrainedModel, prompt: Prompt, rules: Rules, plan: Plan) -> State:
    """Generates until every row has ended or there is no more to generate."""
    return jax.lax.while_loop(
        lambda state: unfinished(state, rules),
        lambda state: advance(model, state, rules, plan),
        begin(model, prompt, rules, plan),
    )._replace(cache=None)


def faults(logits: Logits, scores: Logits, rules: Rules) -> Int8[Array, " rows"]:
    """Returns why each row cannot go on; 0 where it can.

    Args:
        logits: the model's.
        scores: what the rules make of them.
        rules: the rules, which may accept logits that are not finite.
    """
    finite = jnp.isfinite(logits).all(axis=1) | rules.processors.remove_invalid_values
    possible = (scores > -jnp.inf).any(axis=1)  # NaN is not
    return jnp.where(finite, jnp.where(possible, 0, NO_TOKEN), NOT_FINITE).astype(jnp.int8)


def _write(state: State, logits: Logits, rules: Rules, plan: Plan) -> State:
    """Chooses the next token of every row, and writes it down."""
    start = state.tokens.shape[1] - plan.steps
    history = History(state.tokens, state.real, start, state.step, rules.limit)
    scores = rules.sampling(rules.processors(logits, history))
    if plan.sampled:
        chosen = draw(scores, step_keys(rules, state.step, len(scores)))
    else:
        chosen = jnp.argmax(scores, axis=-1)
    chosen = jnp.where(state.done, rules.pad, chosen).astype(state.tokens.dtype)
    likely = jax.nn.log_softmax(logits)
    log_probs = jnp.take_along_axis(likely, chosen[:, None], axis=1)[:, 0]
    log_probs = jnp.where(state.done, 0, log_probs)
    return State(
        step=state.step + 1,
        tokens=state.tokens.at[:, start + state.step].set(chosen),
        done=state.done | rules.ends[chosen],
        faults=jnp.where(state.done, 0, faults(logits, scores, rules)),
        log_probs=state.log_probs.at[:, state.step].set(log_probs),
        cache=state.cache,
        records=recorded(state.records, state.step, scores, logits),
    )
