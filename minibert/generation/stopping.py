"""Decisions between the steps of generation, on the host: whether texts stop, what may follow.

The reference is transformers' `generation/stopping_criteria.py`, and its processor for
`prefix_allowed_tokens_fn`. Texts are NumPy arrays of token ids, `(rows, length)`, prompts included.
"""

import dataclasses
import functools
import re
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from minibert.checkpoint.generation_config import GenerationConfig
from minibert.core.checks import as_array
from minibert.errors import InputError, shown
from minibert.generation.decoding import Rules, State

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Called with the texts `(rows, length)` and the scores of all steps, `(rows, vocab)` each, if
# `output_scores` is set, else None; returns whether each text stops, or all do.
StoppingCriterion = Callable[[np.ndarray, Any], Any]
# Called with the number of the prompt and a text `(length,)`; returns the ids that may follow.
AllowedTokens = Callable[[int, np.ndarray], Sequence[int]]
PREFIX = "abcdef"  # precedes a token when it is converted to text, as in transformers


@dataclasses.dataclass(frozen=True)
class Decisions:
    """The decisions of one call.

    Attributes:
        criteria: functions that stop texts.
        allowed: a function that restricts the next tokens, or None.
        scores: whether `criteria` receive scores.
    """

    criteria: tuple[StoppingCriterion, ...] = ()
    allowed: AllowedTokens | None = None
    scores: bool = False

    @classmethod
    def of_call(
        cls,
        config: GenerationConfig,
        tokenizer: "PreTrainedTokenizerBase | None",
        stopping_criteria: StoppingCriterion | Sequence[StoppingCriterion] | None,
        prefix_allowed_tokens_fn: AllowedTokens | None,
    ) -> "Decisions | None":
        """Returns the decisions that a call of `generate` requests; None if there are none.

        Raises:
            InputError: if an argument is invalid, or the config has stop strings and there is no
                tokenizer.
        """
        criteria: list[StoppingCriterion] = []
        if config.max_time is not None:
            criteria.append(_after(config.max_time))
        if config.stop_strings is not None:
            if tokenizer is None:
                raise InputError(
                    "stop_strings: needs the model's tokenizer; expected tokenizer=…, found None"
                )
            criteria.append(StopStrings(config.stop_strings, tokenizer))
        given = [] if stopping_criteria is None else stopping_criteria
        for criterion in given if isinstance(given, list | tuple) else [given]:
            if not callable(criterion):
                raise InputError(
                    "stopping_criteria: expected functions of token ids and scores, found "
                    f"{shown(criterion)}"
                )
            criteria.append(criterion)
        if prefix_allowed_tokens_fn is not None and not callable(prefix_allowed_tokens_fn):
            raise InputError(
                "prefix_allowed_tokens_fn: expected a function of the number of a prompt and of "
                f"token ids, found {shown(prefix_allowed_tokens_fn)}"
            )
        if not criteria and prefix_allowed_tokens_fn is None:
            return None
        return cls(tuple(criteria), prefix_allowed_tokens_fn, config.output_scores)

    def rules(self, rules: Rules, texts: np.ndarray, done: np.ndarray, copies: int) -> Rules:
        """Returns the rules of the next step.

        Args:
            rules: the rules of the call.
            texts: `(rows, length)` ids.
            done: `(rows,)`, which texts have ended; any token may follow these.
            copies: the number of texts for each prompt.

        Raises:
            InputError: if no token, or one outside the vocabulary, may follow a text.
        """
        if self.allowed is None:
            return rules
        vocab = len(rules.ends)
        mask = np.ones((len(texts), vocab), bool)
        for row in np.flatnonzero(~done).tolist():
            prompt = row // copies
            found = self.allowed(prompt, texts[row])
            ids = np.asarray(as_array("prefix_allowed_tokens_fn", found))
            if ids.ndim != 1 or not ids.size or not np.issubdtype(ids.dtype, np.integer):
                raise InputError(
                    "prefix_allowed_tokens_fn: expected a non-empty list of token ids for row "
                    f"{prompt}, found {shown(found)}"
                )
            if ids.min() < 0 or ids.max() >= vocab:
                raise InputError(
                    f"prefix_allowed_tokens_fn: expected token ids from 0 to {vocab - 1} "
                    f"(vocab_size {vocab}), found {ids.min() if ids.min() < 0 else ids.max()}"
                )
            mask[row] = False
            mask[row, ids] = True
        processors = dataclasses.replace(rules.processors, allowed_tokens=mask)
        return rules._replace(processors=processors)

    def stopped(self, texts: np.ndarray, state: State) -> np.ndarray:
        """Returns which texts stop, `(rows,)`, after a token was added to each.

        Raises:
            InputError: if a criterion returns anything but booleans, one or one for each text.
        """
        scores = None
        if self.scores and self.criteria:
            steps = np.array(state.records["scores"])[:, : int(state.step)]
            scores = tuple(steps.swapaxes(0, 1))
        stopped = np.zeros(len(texts), bool)
        for criterion in self.criteria:
            found = np.asarray(criterion(texts, scores))
            if found.dtype != bool or found.shape not in ((), (1,), stopped.shape):
                raise InputError(
                    f"stopping_criteria: expected True or False, or {len(texts)} of them, found "
                    f"{shown(found)}"
                )
            stopped |= found
        return stopped


def with_stopped(state: State, stopped: np.ndarray) -> State:
    """Returns the state of the decoding loop with more texts marked as ended."""
    done = np.asarray(state.done) | stopped
    return state._replace(done=jax.device_put(done, state.done.sharding))


def _after(seconds: float) -> StoppingCriterion:
    start = time.monotonic()
    return lambda texts, scores: time.monotonic() - start > seconds


class StopStrings:
    """Stops a text with the token that completes a stop string, as `StopStringCriteria` does.

    A stop string may begin in the prompt, and need not begin or end with a token. What a token adds
    to a text is found by decoding it after other text; in tokenizers of bytes, bytes are compared.

    Args:
        strings: the stop strings.
        tokenizer: the model's tokenizer.
    """

    def __init__(self, strings: Sequence[str], tokenizer: "PreTrainedTokenizerBase"):
        if not callable(getattr(tokenizer, "get_vocab", None)):
            raise InputError(f"tokenizer: expected a tokenizer, found {shown(tokenizer)}")
        self._strings = [string.encode() for string in strings]
        self._longest = max(map(len, self._strings))
        self._tokenizer: Any = tokenizer
        self._known = {index: token for token, index in tokenizer.get_vocab().items()}
        base = tokenizer(PREFIX, add_special_tokens=False)["input_ids"]
        self._base: list[str] = list(tokenizer.convert_ids_to_tokens(base))
        self._kind = _decoder_kind(getattr(tokenizer, "backend_tokenizer", None))
        self._pieces: dict[int, bytes | None] = {}

    def __call__(self, texts: np.ndarray, scores: object = None) -> np.ndarray:
        """Returns which texts `(rows, length)` end in a token that completes a stop string."""
        # no more tokens than bytes can belong to a stop string
        return np.array([self._completed(tail) for tail in texts[:, -self._longest :].tolist()])

    def _completed(self, tail: Sequence[int]) -> bool:
        pieces: list[bytes] = []
        for token in reversed(tail):
            if token not in self._pieces:
                self._pieces[token] = self._piece(token)
            if (piece := self._pieces[token]) is None:
                break
            pieces.append(piece)
        text = b"".join(reversed(pieces))
        before = len(text) - len(pieces[0]) if pieces else 0  # where the last token begins
        return any(text.find(one, max(before - len(one) + 1, 0)) >= 0 for one in self._strings)

    def _piece(self, token: int) -> bytes | None:
        """Returns what a token adds to a text; None if the tokenizer does not have it."""
        name = self._known.get(token)
        if name is None:
            return None
        if self._kind == "ByteLevel":
            of_character = _bytes_of_characters()
            if all(one in of_character for one in name):
                return bytes(of_character[one] for one in name)
        if self._kind == "ByteFallback" and (byte := re.fullmatch("<0x([0-9a-fA-F]{2})>", name)):
            return bytes.fromhex(byte[1])
        text = self._tokenizer.convert_tokens_to_string([*self._base, name])
        return text[text.index(PREFIX) + len(PREFIX) :].encode()


def _decoder_kind(backend: object) -> str | None:
    """Returns ByteFallback or ByteLevel if a tokenizer's decoder is, or contains, one of these."""
    decoder = getattr(backend, "decoder", None)
    kinds = (
        set(re.findall('"type": *"([A-Za-z]+)"', bytes(decoder.__getstate__()).decode()))
        if decoder is not None
        else set()
    )
    return next((kind for kind in ("ByteFallback", "ByteLevel") if kind in kinds), None)


@functools.cache
def _bytes_of_characters() -> dict[str, int]:
    """Returns the byte for which each character stands in the tokens of a tokenizer of bytes."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {character: byte for byte, character in bytes_to_unicode().items()}
