"""Logits processors: they change the scores of the next token, given the text so far.

They follow Hugging Face's `generation/logits_process.py`, in its order, and ignore padding.
Presence and frequency penalties are OpenAI's; `forced_decoder_ids` is from transformers 4.

Which processors are active is static (a field that is None is inactive); every number in them is
traced, and shapes depend on the number of tokens in a list only through the next power of two, so
that new numbers rarely compile a new program. The axes:

    rows     texts being continued: a batch, times its beams
    slots    positions of a row: its prompt, padded on the left, then the generated tokens
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float32, Int

# A leaf: an array, or the object that JAX puts in its place in a tree; None where inactive.
TreeLeaf = Any
Scores = Float32[Array, "rows vocab"]
Slots = Bool[Array, "rows slots"]


class History(NamedTuple):
    """The texts so far.

    Attributes:
        tokens: `(rows, slots)` ids: prompts, padded on the left, and generated tokens. Slots that
            are not yet written may hold anything.
        real: `(rows, slots)`, True where a slot holds a token, neither padding nor unwritten.
        start: length of the prompts, padding included. Static.
        step: number of tokens generated so far; the next goes to slot `start + step`.
        limit: maximum number of tokens to generate.
    """

    tokens: Int[Array, "rows slots"]
    real: Slots
    start: int
    step: Int[Array, ""]
    limit: Int[Array, ""]

    def lengths(self) -> Int[Array, " rows"]:
        """Returns the number of tokens of each text, its prompt included."""
        return self.real.sum(axis=1, dtype=jnp.int32)

    def prompt(self) -> Slots:
        """Returns a mask of the prompts' tokens."""
        return self.real & (jnp.arange(self.real.shape[1])[None] < self.start)

    def generated(self) -> Slots:
        """Returns a mask of the generated tokens."""
        return self.real & ~self.prompt()


class Phrases(NamedTuple):
    """Sequences of tokens, each with a bias for the score of its last token.

    Attributes:
        tokens: `(n, longest)` ids, right-aligned.
        lengths: `(n,)`, the number of tokens of each sequence.
        bias: `(n,)`, added where the text ends with all tokens but the last.
    """

    tokens: TreeLeaf
    lengths: TreeLeaf
    bias: TreeLeaf


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Processors:
    """The logits processors, in the order of their application; an inactive one is None.

    Numbers are scalar arrays, masks `(vocab,)` booleans; `end` is the mask of EOS tokens.

    Attributes:
        sequence_bias: `Phrases`.
        encoder_repetition_penalty: a number above 1 favours the prompt's tokens.
        repetition_penalty: a number above 1 penalises tokens of prompt and text: positive scores
            are divided by it, negative ones multiplied (Keskar et al., arXiv:1909.05858). And the
            first slot whose token counts, relative to the first generated one; None for all.
        presence_penalty: subtracted from the score of every token generated before.
        frequency_penalty: subtracted from a token's score once for each time it was generated.
        no_repeat_ngram_size: n-grams of this size occur once (Paulus et al., arXiv:1705.04304).
        encoder_no_repeat_ngram_size: the prompt's n-grams of this size do not occur again.
        bad_words_ids: `Phrases` with a bias of −inf.
        min_length: minimum number of tokens, prompt included, before EOS; and `end`.
        min_new_tokens: minimum number of generated tokens before EOS; and `end`.
        allowed_tokens: `(rows, vocab)`, the mask of the tokens that may follow each text.
        forced_bos_token_id: the mask of the token that follows a text of one token.
        forced_eos_token_id: the mask of the tokens of which one is generated last.
        remove_invalid_values: whether to replace NaN by 0 and infinities by the largest finite
            numbers. Static.
        exponential_decay_length_penalty: the number of generated tokens after which EOS is
            favoured, the logarithm of the factor for each further token, and `end`.
        suppress_tokens: the mask of tokens that are never generated.
        begin_suppress_tokens: the mask of tokens that are not generated first, and whether a
            forced token precedes the first one after a prompt of one token.
        forced_decoder_ids: positions `(n,)` of a text and the tokens `(n,)` forced there.
    """

    sequence_bias: TreeLeaf = None
    encoder_repetition_penalty: TreeLeaf = None
    repetition_penalty: TreeLeaf = None
    presence_penalty: TreeLeaf = None
    frequency_penalty: TreeLeaf = None
    no_repeat_ngram_size: TreeLeaf = None
    encoder_no_repeat_ngram_size: TreeLeaf = None
    bad_words_ids: TreeLeaf = None
    min_length: TreeLeaf = None
    min_new_tokens: TreeLeaf = None
    allowed_tokens: TreeLeaf = None
    forced_bos_token_id: TreeLeaf = None
    forced_eos_token_id: TreeLeaf = None
    remove_invalid_values: bool = dataclasses.field(default=False, metadata={"static": True})
    exponential_decay_length_penalty: TreeLeaf = None
    suppress_tokens: TreeLeaf = None
    begin_suppress_tokens: TreeLeaf = None
    forced_decoder_ids: TreeLeaf = None

    def __call__(self, scores: Scores, history: History) -> Scores:
        """Processes the scores of each row's next token: logits, or beams' log-probabilities."""
        for name, process in PROCESSORS.items():
            numbers = getattr(self, name)
            if numbers is not None and numbers is not False:
                scores = process(numbers, scores, history)
        return scores


def add_phrase_bias(phrases: Phrases, scores: Scores, history: History) -> Scores:
    """Adds each phrase's bias to its last token where the text ends with its other tokens."""
    before = phrases.tokens.shape[1] - 1
    slots = history.start + history.step - before + jnp.arange(before, dtype=jnp.int32)
    tail = jnp.take(history.tokens, slots, axis=1, mode="clip")
    real = jnp.take(history.real, slots, axis=1, mode="clip") & (slots >= 0)[None]
    same = (tail[:, None] == phrases.tokens[None, :, :-1]) & real[:, None]
    unused = jnp.arange(before, dtype=jnp.int32)[None] < before + 1 - phrases.lengths[:, None]
    matching = jnp.all(same | unused[None], axis=-1)
    bias = jnp.zeros_like(scores).at[:, phrases.tokens[:, -1]]
    return scores + bias.add(jnp.where(matching, phrases.bias[None], 0))


def penalize(penalty: Array, scores: Scores, tokens: Bool[Array, "rows vocab"]) -> Scores:
    """Lowers the scores of `tokens` with a penalty above 1 and raises them with one below."""
    penalized = jnp.where(scores < 0, scores * penalty, scores / penalty)
    return jnp.where(tokens, penalized, scores)


def penalize_prompt(penalty: Array, scores: Scores, history: History) -> Scores:
    """Favours the tokens of the prompt."""
    return penalize(1 / penalty, scores, _counts(scores, history, history.prompt()) > 0)


def penalize_text(numbers: tuple[Array, Array | None], scores: Scores, history: History) -> Scores:
    """Penalises the tokens of the text, or of its end."""
    (penalty, first), counted = numbers, history.real
    if first is not None:
        counted = counted & (jnp.arange(counted.shape[1])[None] >= history.start + first)
    return penalize(penalty, scores, _counts(scores, history, counted) > 0)


def penalize_presence(penalty: Array, scores: Scores, history: History) -> Scores:
    """Subtracts `penalty` from the score of every token that was generated before."""
    return jnp.where(_counts(scores, history, history.generated()) > 0, scores - penalty, scores)


def penalize_frequency(penalty: Array, scores: Scores, history: History) -> Scores:
    """Subtracts `penalty` from a token's score once for each time it was generated."""
    return scores - penalty * _counts(scores, history, history.generated())


def ban_ngrams(size: Array, scores: Scores, history: History) -> Scores:
    """Bans the tokens that would complete an n-gram of the text a second time."""
    return _ban_completions(size, scores, history, history.real)


def ban_prompt_ngrams(size: Array, scores: Scores, history: History) -> Scores:
    """Bans the tokens that would complete an n-gram of the prompt."""
    return _ban_completions(size, scores, history, history.prompt())


def ban_end_before_length(numbers: Array, scores: Scores, history: History) -> Scores:
    """Bans EOS in texts that are too short, prompt included."""
    least, end = numbers
    return _ban(scores, end[None] & (history.lengths() < least)[:, None])


def ban_end_before_step(numbers: Array, scores: Scores, history: History) -> Scores:
    """Bans EOS before enough tokens are generated."""
    least, end = numbers
    return _ban(scores, end & (history.step < least))


def allow(mask: Array, scores: Scores, history: History) -> Scores:
    """Bans the tokens outside each row's mask."""
    return _ban(scores, ~mask)


def force_second(mask: Array, scores: Scores, history: History) -> Scores:
    """Forces the token that follows a text of one token."""
    return _force(scores, mask, (history.lengths() == 1)[:, None])


def force_last(mask: Array, scores: Scores, history: History) -> Scores:
    """Forces the token at the length limit."""
    return _force(scores, mask, history.step == history.limit - 1)


def remove_invalid(_: Array, scores: Scores, history: History) -> Scores:
    """Replaces NaN by 0, and infinities by the largest finite numbers."""
    return jnp.nan_to_num(scores, nan=0)


def favour_end(numbers: Array, scores: Scores, history: History) -> Scores:
    """Raises the score of EOS with every token after a given number of them."""
    after, logarithm, end = numbers
    past = jnp.asarray(history.step - after, scores.dtype)
    largest = jnp.finfo(scores.dtype).max  # with infinities, 0 or softmax would become NaN
    growth = jnp.minimum(jnp.expm1(past * logarithm), largest)
    favoured = jnp.minimum(scores + jnp.abs(scores) * growth, largest)
    return jnp.where((end & (past > 0))[None] & jnp.isfinite(scores), favoured, scores)


def suppress(mask: Array, scores: Scores, history: History) -> Scores:
    """Bans tokens."""
    return _ban(scores, mask)


def suppress_first(numbers: Array, scores: Scores, history: History) -> Scores:
    """Bans tokens as the first generated token, or as the second after a forced one."""
    mask, forced = numbers
    first = jnp.where(forced & (history.prompt().sum(axis=1) <= 1), 1, 0)
    return _ban(scores, mask[None] & (history.step == first)[:, None])


def force_positions(numbers: Array, scores: Scores, history: History) -> Scores:
    """Forces tokens at given positions of a text."""
    positions, tokens = numbers
    here = positions[None] == history.lengths()[:, None]
    token = jnp.sum(jnp.where(here, tokens[None], 0), axis=1, keepdims=True)
    mask = jnp.arange(scores.shape[1])[None] == token
    return _force(scores, mask, here.any(axis=1, keepdims=True))


PROCESSORS: Mapping[str, Callable[[Any, Array, History], Array]] = {
    "sequence_bias": add_phrase_bias,
    "encoder_repetition_penalty": penalize_prompt,
    "repetition_penalty": penalize_text,
    "presence_penalty": penalize_presence,
    "frequency_penalty": penalize_frequency,
    "no_repeat_ngram_size": ban_ngrams,
    "encoder_no_repeat_ngram_size": ban_prompt_ngrams,
    "bad_words_ids": add_phrase_bias,
    "min_length": ban_end_before_length,
    "min_new_tokens": ban_end_before_step,
    "allowed_tokens": allow,
    "forced_bos_token_id": force_second,
    "forced_eos_token_id": force_last,
    "remove_invalid_values": remove_invalid,
    "exponential_decay_length_penalty": favour_end,
    "suppress_tokens": suppress,
    "begin_suppress_tokens": suppress_first,
    "forced_decoder_ids": force_positions,
}


def _counts(scores: Scores, history: History, where: Slots) -> Scores:
    """Returns how often each token occurs in each row at the slots `where`, `(rows, vocab)`."""
    vocabulary = scores.shape[1]
    known = where & (history.tokens >= 0) & (history.tokens < vocabulary)
    rows = jnp.arange(scores.shape[0])[:, None]
    columns = jnp.where(known, history.tokens, vocabulary)  # out of bounds: dropped
    return jnp.zeros_like(scores).at[rows, columns].add(1, mode="drop")


def _ban_completions(size: Array, scores: Scores, history: History, among: Slots) -> Scores:
    """Bans tokens at slots of `among` that follow the `size - 1` tokens that end the text."""
    end = history.start + history.step
    slots = jnp.arange(history.tokens.shape[1], dtype=jnp.int32)

    def narrow(back: Array, matching: Array) -> Array:
        last = lax.dynamic_index_in_dim(history.tokens, end - back, axis=1)
        real = lax.dynamic_index_in_dim(history.real, end - back, axis=1)
        same = (jnp.roll(history.tokens, back, axis=1) == last) & (slots >= back)[None]
        return matching & same & real & jnp.roll(history.real, back, axis=1)

    completing = lax.fori_loop(1, jnp.minimum(size, end + 1), narrow, among)
    return _ban(scores, _counts(scores, history, completing) > 0)


def _ban(scores: Scores, tokens: Array) -> Scores:
    return jnp.where(lax.broadcast_to_rank(tokens, 2), -jnp.inf, scores)


def _force(scores: Scores, tokens: Array, where: Array) -> Scores:
    forced = jnp.where(lax.broadcast_to_rank(tokens, 2), 0, -jnp.inf)
    return jnp.where(where, forced, scores)
