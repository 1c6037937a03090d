"""Speculative decoding: several tokens are proposed, and one run of the model checks them all.

Each token of a text is chosen as in the decoding loop; a proposed token saves a run of the model if
it is the one chosen. So the texts are those of the decoding loop, sampled ones too. Proposals are
copied from where a text's last tokens occurred before (prompt lookup), or made by an assistant, a
smaller model (Leviathan et al., arXiv:2211.17192). The references are `_assisted_decoding` in
transformers' `generation/utils.py`, and `generation/candidate_generator.py`.

All rows of a batch advance by the same number of tokens: a token is kept if it is the one proposed
in every row. The axes are those of `decoding`, and:

    proposed    tokens that are proposed at a time; −1 where there is none
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Int

from minibert.generation import decoding
from minibert.generation.decoding import Plan, Prompt, Rules, State
from minibert.models.base import PretrainedModel
from minibert.models.compilation import check_evaluation
from minibert.nn.cache import KVCache

Proposal = Int[Array, "rows proposed"]


def run(
    model: PretrainedModel,
    prompt: Prompt,
    rules: Rules,
    assistant: PretrainedModel | None,
    plan: Plan,
) -> State:
    """Generates as `decoding.run` does, with proposals by `assistant` or by prompt lookup."""

    def advance(loop: tuple[State, Any]) -> tuple[State, Any]:
        state, cache = loop
        if assistant is None:
            tokens, usable = lookup(state, plan)
        else:
            tokens, cache = propose(assistant, state, cache, rules, plan)
            usable = (tokens[:, 0] >= 0).all()
        tokens = jnp.where(state.done[:, None], rules.pad, tokens)
        state = lax.cond(
            usable,
            lambda state: check(model, state, tokens, rules, plan),
            lambda state: decoding.advance(model, state, rules, plan),
            state,
        )
        return state, cache if cache is None else _cut(cache, plan, state.step)

    state = decoding.begin(model, prompt, rules, plan)
    cache = None
    if assistant is not None:
        check_evaluation(assistant)
        cache = decoding.prefill(assistant, prompt, plan._replace(records=()))[2]
    state, _ = lax.while_loop(
        lambda loop: decoding.unfinished(loop[0], rules), advance, (state, cache)
    )
    return state._replace(cache=None)


def check(
    model: PretrainedModel, state: State, tokens: Proposal, rules: Rules, plan: Plan
) -> State:
    """Runs the model on the last token and the proposed ones; chooses a token after each.

    The choice stops after the first token that is not the one proposed in every row.
    """
    last = _last(state, plan)
    logits, cache = _read(model, jnp.concatenate([last, tokens], axis=1), state.cache, rules)
    none = jnp.full_like(last, -1)
    expected = jnp.concatenate([tokens, none], axis=1)
    masks = dataclasses.replace(cache, keys=(), values=())  # the keys take no part in the loop

    def choose(loop: tuple[State, Array, Array]) -> tuple[State, Array, Array]:
        state, kept, _ = loop
        state = state._replace(cache=_cut(masks, plan, state.step + 1))
        state = decoding.choose(state, logits[:, kept], rules, plan)
        return state, kept + 1, (_last(state, plan)[:, 0] == expected[:, kept]).all()

    start = state._replace(cache=masks), jnp.zeros((), jnp.int32), jnp.ones((), bool)
    state, _, _ = lax.while_loop(
        lambda loop: loop[2] & decoding.unfinished(loop[0], rules), choose, start
    )
    return state._replace(cache=_cut(cache, plan, state.step))


def lookup(state: State, plan: Plan) -> tuple[Proposal, Bool[Array, ""]]:
    """Returns the tokens that followed the last ones where these occurred first.

    As many of the last tokens as possible, at most `plan.ngram`, are looked up.

    Returns:
        The tokens, and whether all texts that have not ended have some.
    """
    tokens, end = state.tokens, state.tokens.shape[1] - plan.steps + state.step
    slots = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    real = (state.real | (slots == end - 1)) & (slots < end)
    matching, after = real, jnp.zeros((len(tokens), 1), jnp.int32)  # slot 0 follows nothing
    for back in range(1, plan.ngram + 1):
        last = lax.dynamic_index_in_dim(tokens, end - back, axis=1)
        same = (jnp.roll(tokens, back, axis=1) == last) & (slots >= back)
        matching = matching & same & jnp.roll(real, back, axis=1)
        first = jnp.argmax(matching, axis=1, keepdims=True).astype(jnp.int32)
        after = jnp.where(matching.any(axis=1, keepdims=True), first, after)
    there = after + jnp.arange(plan.proposed, dtype=jnp.int32)[None]
    copied = jnp.take_along_axis(tokens, jnp.minimum(there, tokens.shape[1] - 1), axis=1)
    copied = jnp.where((after > 0) & (there < end), copied, -1)
    return copied, ((copied[:, 0] >= 0) | state.done).all()


class _Drafting(NamedTuple):
    """The state of an assistant's loop: `count` tokens are proposed, and `last` is the last one."""

    tokens: Array
    last: Array
    count: Array
    confident: Array
    cache: KVCache


def propose(
    assistant: PretrainedModel, state: State, cache: KVCache, rules: Rules, plan: Plan
) -> tuple[Proposal, KVCache]:
    """Returns the tokens that an assistant finds most probable, until it is unsure of one.

    Args:
        assistant: the assistant.
        state: the texts.
        cache: the assistant's, with all tokens of the texts but the last.
        rules: the rules.
        plan: the static part of the program.

    Returns:
        The tokens, and the cache with the last token and the proposed ones.
    """

    def draft(now: _Drafting) -> _Drafting:
        logits, cache = _read(assistant, now.last, now.cache, rules)
        likely = jax.nn.softmax(logits[:, 0])
        best = jnp.argmax(likely, axis=1).astype(now.tokens.dtype)[:, None]
        sure = (likely.max(axis=1) >= rules.confidence) | state.done
        confident = sure.all() & (now.count < plan.proposed)
        written = lax.dynamic_update_slice_in_dim(now.tokens, best, now.count, axis=1)
        tokens = jnp.where(confident, written, now.tokens)
        return _Drafting(tokens, best, now.count + 1, confident, cache)

    none = jnp.full((len(state.tokens), plan.proposed), -1, state.tokens.dtype)
    count, confident = jnp.zeros((), jnp.int32), jnp.ones((), bool)
    start = _Drafting(none, _last(state, plan), count, confident, cache)
    done = lax.while_loop(lambda now: now.confident, draft, start)
    return done.tokens, done.cache


def _last(state: State, plan: Plan) -> Int[Array, "rows 1"]:
    """Returns the last token of each text."""
    return state.tokens[:, state.tokens.shape[1] - plan.steps + state.step - 1, None]


def _read(
    model: PretrainedModel, tokens: Int[Array, "rows seq"], cache: KVCache, rules: Rules
) -> tuple[Array, KVCache]:
    """Returns the logits after each of some tokens, `(rows, seq, vocab)`, and the cache with them.

    Each token has the position that `decoding.read` gives it. Those past the model's last position
    are past the limit of the call, and are not used.
    """
    past = cache.mask.sum(axis=1, keepdims=True, dtype=jnp.int32)
    positions = [
        model.base_model.positions(tokens[:, one, None], past=past + one)
        for one in range(tokens.shape[1])
    ]
    outputs = model(
        input_ids=jnp.maximum(tokens, 0),
        token_type_ids=rules.token_types
        if rules.token_types is None
        else jnp.broadcast_to(rules.token_types, tokens.shape),
        position_ids=jnp.minimum(
            jnp.concatenate(positions, axis=1), model.config.max_position_embeddings - 1
        ),
        past_key_values=cache,
    )
    return outputs.logits.astype(jnp.float32), outputs.past_key_values


def _cut(cache: KVCache, plan: Plan, steps: Array) -> KVCache:
    """Returns a cache with the prompt and the first `steps - 1` generated tokens alone."""
    start = cache.length - plan.steps - plan.proposed
    index = (start + steps - 1).astype(cache.index.dtype)
    mask = cache.mask & (jnp.arange(cache.length)[None] < index)
    return dataclasses.replace(cache, mask=mask, index=index)
