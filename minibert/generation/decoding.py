"""The decoding loop: generates one token after another inside one compiled program.

Everything here is traced. `Plan` is the static part of a program; `Rules` are the arrays that may
change between calls. The axes:

    batch    prompts
    rows     texts being generated: one or several for each prompt, adjacent in the batch
    read     rows of the cache: with guidance, a negative prompt's follow all `rows`; else `rows`
    slots    positions of a row: its prompt, padded on the left, then the generated tokens
    steps    capacity for generated tokens
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
ReadLogits = Float32[Array, "read vocab"]
NOT_FINITE, NO_TOKEN = 1, 2  # why a row has no next token


class Plan(NamedTuple):
    """The static part of a program.

    Attributes:
        steps: capacity for generated tokens.
        copies: number of texts for each prompt (the beams, in beam search).
        sampled: whether tokens are sampled.
        records: what to return for every step: "scores" (processed logits) and "logits".
        candidates: number of continuations ranked for each prompt in beam search, else 0.
        early_stopping: in beam search: True, False or "never".
        guided: whether negative prompts follow the prompts, and guidance compares their logits.
        proposed: number of tokens that are proposed at a time; 0 without speculative decoding.
        ngram: longest n-gram that is looked up to propose tokens; 0 if an assistant proposes them.
    """

    steps: int
    copies: int = 1
    sampled: bool = False
    records: tuple[str, ...] = ()
    candidates: int = 0
    early_stopping: bool | str = False
    guided: bool = False
    proposed: int = 0
    ngram: int = 0


class Prompt(NamedTuple):
    """The prompts of a call.

    Attributes:
        ids: `(batch, start)` token ids, padded on the left; −1 if there are only embeddings.
        mask: `(batch, start)`, True at tokens and False at padding.
        encoder_hidden_states: `(batch, encoder_seq, hidden)`, or None.
        encoder_attention_mask: `(batch, encoder_seq)`, or None.
        inputs_embeds: `(batch, start, embedding_size)` embeddings of the prompts, or None.
        token_type_ids: `(batch, start)`, or None.
    """

    ids: Any
    mask: Any
    encoder_hidden_states: Any = None
    encoder_attention_mask: Any = None
    inputs_embeds: Any = None
    token_type_ids: Any = None


class Rules(NamedTuple):
    """The traced inputs of a program besides the model and the prompts.

    Attributes:
        processors: the active logits processors.
        sampling: the active sampling filters.
        ends: `(vocab,)`, True for EOS tokens.
        pad: the token that fills a row after EOS.
        limit: maximum number of tokens to generate.
        key: the random key for sampling, else None.
        powers: in beam search, `(steps + 1,)`, lengths to the power of the length penalty; else
            None.
        guidance: the scale of classifier-free guidance, or None.
        token_types: `(rows, 1)`, the token types of generated tokens, or None.
        confidence: the probability below which an assistant proposes no token, or None.
    """

    processors: Processors
    sampling: Sampling
    ends: Any
    pad: Any
    limit: Any
    key: Any = None
    powers: Any = None
    guidance: Any = None
    token_types: Any = None
    confidence: Any = None


Records = dict[str, Array]  # buffers for the outputs of every step, `(rows, steps, vocab)` each


def recorded(records: Records, step: Array, scores: Array, logits: Array) -> Records:
    """Returns the records with one more step."""
    new = {"scores": scores, "logits": logits}
    return {name: array.at[:, step].set(new[name]) for name, array in records.items()}


class State(NamedTuple):
    """State of the decoding loop.

    Attributes:
        step: number of tokens generated so far.
        tokens: `(rows, slots)` prompts and generated texts.
        done: `(rows,)`, True for texts that have ended.
        faults: `(rows,)`, 0, or why the last token is invalid: `NOT_FINITE` or `NO_TOKEN`.
        log_probs: `(rows, steps)`, each token's under the model, before processing.
        cache: keys and values of all tokens but the last; None in the result.
        records: the recorded outputs of every step.
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
        """True at the prompts' tokens and at generated tokens that are in the cache."""
        rows, slots = self.tokens.shape
        return self.cache.mask[:rows, :slots]


def prefill(
    model: PretrainedModel, prompt: Prompt, plan: Plan
) -> tuple[ReadLogits, Int[Array, "rows slots"], KVCache, Records]:
    """Runs the model on the prompts and makes `plan.copies` rows of each.

    Returns:
        Next-token logits, prompts padded with `steps` slots, cache, and empty records. With
        guidance, the rows of the negative prompts follow the others in the logits and the cache.
    """
    check_evaluation(model)
    batch, start = prompt.mask.shape
    ids = prompt.ids if prompt.inputs_embeds is None else None
    outputs = model(
        input_ids=ids,
        inputs_embeds=prompt.inputs_embeds,
        attention_mask=prompt.mask,
        token_type_ids=prompt.token_type_ids,
        position_ids=model.base_model.positions(ids, prompt.mask),
        past_key_values=model.init_cache(batch, start + plan.steps + plan.proposed),
        encoder_hidden_states=prompt.encoder_hidden_states,
        encoder_attention_mask=prompt.encoder_attention_mask,
        logits_to_keep=1,
    )
    logits, cache = outputs.logits[:, -1].astype(jnp.float32), outputs.past_key_values
    tokens = jnp.pad(prompt.ids, ((0, 0), (0, plan.steps)))
    if plan.copies > 1:
        rows = jnp.repeat(jnp.arange(batch), plan.copies)
        logits, tokens, cache = logits[rows], tokens[rows], cache.rows(rows)
    if plan.guided:
        tokens = tokens[: len(tokens) // 2]
    vocab = logits.shape[1]
    empty = jnp.zeros((len(tokens), plan.steps, vocab), logits.dtype)
    return logits, tokens, cache, dict.fromkeys(plan.records, empty)


def read(model: PretrainedModel, state: Any, rules: Rules, plan: Plan) -> tuple[Any, ReadLogits]:
    """Runs the model on the last token of each row, at the position after the row's other tokens.

    Args:
        model: the model.
        state: a `State`, or the `Search` of beam search.
        rules: the rules.
        plan: the static part of the program.

    Returns:
        The state with the updated cache, and next-token logits.
    """
    last = state.tokens[:, state.tokens.shape[1] - plan.steps + state.step - 1, None]
    if plan.guided:
        last = jnp.concatenate([last, last])
    past = state.cache.mask.sum(axis=1, keepdims=True, dtype=jnp.int32)
    outputs = model(
        input_ids=last,
        token_type_ids=rules.token_types,
        position_ids=model.base_model.positions(last, past=past),
        past_key_values=state.cache,
        logits_to_keep=1,
    )
    logits = outputs.logits[:, -1].astype(jnp.float32)
    return state._replace(cache=outputs.past_key_values), logits


def guided(logits: ReadLogits, scale: Array) -> Logits:
    """Returns scores that move away from the logits of the negative prompts.

    Classifier-free guidance (Sanchez et al., arXiv:2306.17806).

    Args:
        logits: those of all rows, and those of the negative prompts' rows after them.
        scale: 1 for the scores of the rows themselves; a larger number moves further away.
    """
    likely, other = jnp.split(jax.nn.log_softmax(logits), 2)
    return scale * (likely - other) + other


def step_keys(rules: Rules, step: Array, rows: int) -> Array:
    """Returns the key of each row (in beam search, each prompt) at a step."""
    return jax.vmap(jax.random.fold_in, (0, None))(row_keys(rules.key, rows), step)


def begin(model: PretrainedModel, prompt: Prompt, rules: Rules, plan: Plan) -> State:
    """Runs the model on the prompts and generates the first token of every row."""
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
    return choose(state, logits, rules, plan)


def advance(model: PretrainedModel, state: State, rules: Rules, plan: Plan) -> State:
    """Runs the model on the last token of every row and generates the next."""
    return choose(*read(model, state, rules, plan), rules, plan)


def unfinished(state: State, rules: Rules) -> Bool[Array, ""]:
    """Returns whether to generate another token: some row has not ended and no row has a fault."""
    return (state.step < rules.limit) & ~state.done.all() & ~state.faults.any()


def run(model: PretrainedModel, prompt: Prompt, rules: Rules, plan: Plan) -> State:
    """Generates until every row has ended, the limit is reached or a row has a fault."""
    return jax.lax.while_loop(
        lambda state: unfinished(state, rules),
        lambda state: advance(model, state, rules, plan),
        begin(model, prompt, rules, plan),
    )._replace(cache=None)


def faults(logits: ReadLogits, scores: Logits, rules: Rules) -> Int8[Array, " rows"]:
    """Returns why each row has no next token; 0 where it has one.

    Args:
        logits: the model's logits; with guidance, also those of the negative prompts' rows.
        scores: the processed logits.
        rules: the rules, which may accept logits that are not finite.
    """
    finite = jnp.isfinite(logits).all(axis=1).reshape(-1, len(scores)).all(axis=0)
    finite = finite | rules.processors.remove_invalid_values
    possible = (scores > -jnp.inf).any(axis=1)  # NaN is not
    return jnp.where(finite, jnp.where(possible, 0, NO_TOKEN), NOT_FINITE).astype(jnp.int8)


def choose(state: State, logits: ReadLogits, rules: Rules, plan: Plan) -> State:
    """Chooses the next token of every row and returns the state with it."""
    start = state.tokens.shape[1] - plan.steps
    history = History(state.tokens, state.real, start, state.step, rules.limit)
    scores = logits if rules.guidance is None else guided(logits, rules.guidance)
    scores = rules.sampling(rules.processors(scores, history))
    found, logits = faults(logits, scores, rules), logits[: len(scores)]
    if plan.sampled:
        chosen = draw(scores, step_keys(rules, state.step, len(scores)))
    else:
        chosen = jnp.argmax(scores, axis=-1)
    chosen = jnp.where(state.done, rules.pad, chosen.astype(state.tokens.dtype))
    likely = jax.nn.log_softmax(logits)
    log_probs = jnp.take_along_axis(likely, chosen[:, None], axis=1)[:, 0]
    log_probs = jnp.where(state.done, 0, log_probs)
    return State(
        step=state.step + 1,
        tokens=state.tokens.at[:, start + state.step].set(chosen),
        done=state.done | rules.ends[chosen],
        faults=jnp.where(state.done, 0, found),
        log_probs=state.log_probs.at[:, state.step].set(log_probs),
        cache=state.cache,
        records=recorded(state.records, state.step, scores, logits),
    )
