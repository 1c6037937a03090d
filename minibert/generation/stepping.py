"""Generation a step at a time: one program for the prompts, and one for each further token."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import numpy as np

from minibert.errors import InputError, shown
from minibert.generation import beams, decoding
from minibert.generation.decoding import Plan, Prompt, Rules, State
from minibert.generation.stopping import Decisions, with_stopped
from minibert.models.base import PretrainedModel


class Streamer(Protocol):
    """An object that receives tokens as they are generated, such as transformers' `TextStreamer`.

    `put` is called with the prompts, `(batch, seq)`, and with the next token of each text,
    `(rows,)`; and `end` once, after the last token.
    """

    def put(self, value: np.ndarray) -> Any:
        """Receives the prompts, or the next token of each text."""

    def end(self) -> Any:
        """Is called after the last token."""


def check_streamer(streamer: object) -> None:
    """Raises an `InputError` unless a value is a `Streamer` or None."""
    methods = ("put", "end")
    if streamer is not None and not all(callable(getattr(streamer, n, None)) for n in methods):
        raise InputError(
            f"streamer: expected an object with the methods put and end, found {shown(streamer)}"
        )


def _begin(model: PretrainedModel, prompt: Prompt, rules: Rules, plan: Plan) -> tuple[Any, ...]:
    return _streamed(decoding.begin(model, prompt, rules, plan), rules, plan)


def _advance(
    model: PretrainedModel, state: decoding.State, rules: Rules, plan: Plan
) -> tuple[Any, ...]:
    return _streamed(decoding.advance(model, state, rules, plan), rules, plan)


def _streamed(state: decoding.State, rules: Rules, plan: Plan) -> tuple[Any, ...]:
    token = state.tokens[:, state.tokens.shape[1] - plan.steps + state.step - 1]
    return state, token, state.faults, decoding.unfinished(state, rules)


def steps(
    program: Callable[..., Callable[..., Any]],
    arguments: tuple[list[Any], Prompt, Rules],
    prompts: np.ndarray,
    copies: int,
    decisions: Decisions | None,
    check: Callable[[Any], None],
) -> Iterator[tuple[np.ndarray, State]]:
    """Yields the tokens `(rows,)` of each step, and the state, which the next step invalidates.

    Args:
        program: compiles a function of this module for a call.
        arguments: the model's leaves, the padded prompts and the rules.
        prompts: `(batch, seq)`, the prompts as they were passed.
        copies: the number of texts for each prompt.
        decisions: the decisions between steps, or None.
        check: raises an error if one of the faults `(rows,)` is not 0.
    """
    begin, advance = program(_begin), program(_advance, donate=(1,))
    leaves, prompt, rules = arguments
    texts = np.repeat(prompts, copies, axis=0)
    done = np.zeros(len(texts), bool)
    now = rules if decisions is None else decisions.rules(rules, texts, done, copies)
    state, *found = begin(leaves, prompt, now)
    while True:
        tokens, faults, more = jax.device_get(found)
        check(faults)
        if decisions is not None:
            texts = np.concatenate([texts, tokens[:, None]], axis=1)
            stopped = decisions.stopped(texts, state)
            state = with_stopped(state, stopped) if stopped.any() else state
            done = jax.device_get(state.done)
            more = more and not done.all()
        yield tokens, state
        if not more:
            return
        now = rules if decisions is None else decisions.rules(rules, texts, done, copies)
        state, *found = advance(leaves, state, now)


def _begin_search(
    model: PretrainedModel, prompt: Prompt, rules: Rules, plan: Plan
) -> tuple[Any, ...]:
    return _searched(beams.begin(model, prompt, rules, plan), plan)


def _advance_search(
    model: PretrainedModel, state: beams.Search, rules: Rules, plan: Plan
) -> tuple[Any, ...]:
    return _searched(beams.advance(model, state, rules, plan), plan)


def _searched(state: beams.Search, plan: Plan) -> tuple[Any, ...]:
    impossible = ~beams.possible(state.running.scores).reshape(-1)
    return state, state.tokens[:, -plan.steps :], impossible, beams.unfinished(state, plan)


def search(
    program: Callable[..., Callable[..., Any]],
    arguments: tuple[list[Any], Prompt, Rules],
    prompts: np.ndarray,
    copies: int,
    decisions: Decisions,
) -> beams.Search:
    """Runs beam search a step at a time; the arguments are those of `steps`.

    Beams that are placeholders, because no other text is possible, are not decided on.
    """
    begin, advance = program(_begin_search), program(_advance_search, donate=(1,))
    leaves, prompt, rules = arguments
    before = np.repeat(prompts, copies, axis=0)
    now = decisions.rules(rules, before, np.zeros(len(before), bool), copies)
    state, *found = begin(leaves, prompt, now)
    while True:
        step, (added, impossible, more) = jax.device_get((state.step, found))
        if not more:
            return state
        texts = np.concatenate([before, added[:, :step]], axis=1)
        now = decisions.rules(rules, texts, impossible, copies)
        state, *found = advance(leaves, state, now)


def put_steps(
    streamer: Streamer | None, prompts: np.ndarray, made: Iterator[tuple[np.ndarray, State]]
) -> Any:
    """Passes the prompts and the tokens of each step to a streamer; returns the last state."""
    last = None
    if streamer is not None:
        streamer.put(prompts)
    for tokens, state in made:
        last = state
        if streamer is not None:
            streamer.put(tokens)
    if streamer is not None:
        streamer.end()
    return last
