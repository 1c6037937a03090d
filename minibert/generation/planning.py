"""The inputs of a call's program: its plan, the active processors and filters, padded prompts."""

import math
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jax import Array

from minibert.checkpoint.generation_config import DEFAULTS, GenerationConfig, ids
from minibert.errors import InputError
from minibert.generation.decoding import Plan, Prompt, Rules
from minibert.generation.memory import check_memory
from minibert.generation.processors import Phrases, Processors
from minibert.generation.sampling import Sampling, checked_key
from minibert.models.base import PretrainedModel
from minibert.text.batching import power_of_two

SHORTEST = 16


def rounded_up(length: int) -> int:
    """Returns the smallest of 16, 24, 32, 48, 64, 96, … that is at least `length`."""
    size = SHORTEST
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


def prepare(
    model: PretrainedModel, given: Prompt, config: GenerationConfig, key: Array | None
) -> tuple[Plan, Rules, Prompt]:
    """Returns the static part of the program, its inputs and the padded prompts.

    Raises:
        InputError: if the model has too few positions, or an option or the key is invalid.
    """
    vocab, beamed = model.config.vocab_size, config.num_beams > 1
    positions, name = model.config.max_tokens, model.config.max_tokens_name
    limit = config.limit(given.ids.shape[1], positions, name)
    longest = int(given.mask.sum(axis=1).max())
    if longest + limit > positions:
        raise InputError(
            f"input_ids: a prompt of {longest} tokens and {limit} new ones make {longest + limit}; "
            f"expected at most {positions} ({name})"
        )
    steps = rounded_up(limit)
    rules = Rules(
        processors=processors(config, vocab),
        sampling=sampling(config),
        ends=np.isin(np.arange(vocab), config.end_ids),
        pad=np.int32(config.padding_id or 0),
        limit=np.int32(limit),
        key=checked_key(key) if config.do_sample else None,
        powers=_powers(steps, config.length_penalty) if beamed else None,
    )
    padded = _padded(given, positions)
    plan = Plan(
        steps=steps,
        copies=config.num_beams if beamed else config.num_return_sequences,
        sampled=config.do_sample,
        records=tuple(n for n in ("scores", "logits") if getattr(config, f"output_{n}")),
        candidates=_candidates(config, vocab) if beamed else 0,
        early_stopping=config.early_stopping if beamed else False,
    )
    if plan.copies > 1:
        check_memory(
            model, plan, padded.ids.shape, "num_beams" if beamed else "num_return_sequences"
        )
    return plan, rules, padded


def _padded(given: Prompt, positions: int) -> Prompt:
    """Returns prompts and encoder states padded to bucket lengths, so that few programs compile.

    Args:
        given: the prompts; the mask of encoder states is `(batch, 1, 1, encoder_seq)` or None.
        positions: the model's number of positions.
    """
    used = given.mask.any(axis=0)
    seq = int(used.sum())
    before = ((0, 0), (max(min(rounded_up(seq), positions) - seq, 0), 0))
    ids = np.pad(given.ids[:, used].astype(np.int32), before)
    mask = np.pad(given.mask[:, used], before)
    states, seen = given.encoder_hidden_states, given.encoder_attention_mask
    if states is not None:
        states, seen = jax.device_get((states, seen))
        batch, seq, _ = states.shape
        seen = np.ones((batch, seq), bool) if seen is None else seen[:, 0, 0]
        after = ((0, 0), (0, rounded_up(seq) - seq))
        states, seen = np.pad(states, (*after, (0, 0))), np.pad(seen, after)
    return Prompt(ids, mask, states, seen)


def _candidates(config: GenerationConfig, vocab: int) -> int:
    """Returns how many continuations of a prompt to rank: enough even if the best of them end."""
    ways = max(2, 1 + len(config.end_ids))
    if not config.do_sample:  # more do not change the result, and few sizes make few programs
        ways = power_of_two(ways)
    return config.num_beams * min(ways, vocab)


def _powers(steps: int, penalty: float) -> np.ndarray:
    lengths = np.maximum(np.arange(steps + 1.0), 1)
    finite = np.finfo(np.float32)
    with np.errstate(over="ignore"):
        return np.clip(lengths**penalty, finite.tiny, finite.max).astype(np.float32)


def processors(config: GenerationConfig, vocab_size: int) -> Processors:
    """Returns the active processors: those that transformers' `_get_logits_processor` adds.

    Raises:
        InputError: if a token id is not in the vocabulary.
    """
    _check_ids(config, vocab_size)

    def mask(tokens: object) -> np.ndarray | None:
        return None if tokens is None else np.isin(np.arange(vocab_size), ids(tokens))

    end = mask(config.eos_token_id)
    least = config.min_length if config.min_new_tokens is None else 0
    bad, decay = config.bad_words_ids, config.exponential_decay_length_penalty
    if bad is not None:
        ends = {(token,) for token in config.end_ids}  # EOS must stay possible
        bad = [(word, -math.inf) for word in bad if word not in ends]
    if decay is not None:
        after, factor = decay
        decay = together(np.int32(after), np.float32(math.log(factor)), end)
    return Processors(
        **_numbers(
            config,
            "encoder_repetition_penalty",
            "repetition_penalty",
            "presence_penalty",
            "frequency_penalty",
        ),
        sequence_bias=phrases(config.sequence_bias),
        no_repeat_ngram_size=_count(config.no_repeat_ngram_size),
        encoder_no_repeat_ngram_size=_count(config.encoder_no_repeat_ngram_size),
        bad_words_ids=phrases(bad),
        min_length=together(_count(least), end),
        min_new_tokens=together(_count(config.min_new_tokens), end),
        forced_bos_token_id=mask(config.forced_bos_token_id),
        forced_eos_token_id=mask(config.forced_eos_token_id),
        remove_invalid_values=config.remove_invalid_values,
        exponential_decay_length_penalty=decay,
        suppress_tokens=mask(config.suppress_tokens),
        begin_suppress_tokens=together(
            mask(config.begin_suppress_tokens), np.bool_(config.forced_bos_token_id is not None)
        ),
        forced_decoder_ids=placed(config.forced_decoder_ids),
    )


def sampling(config: GenerationConfig) -> Sampling:
    """Returns the active filters: those of sampling, or only `renormalize_logits` without it."""
    if not config.do_sample:
        return Sampling(renormalize=config.renormalize_logits)
    # With beams, one more token than can end a text, so that a beam can always continue.
    least = 1 + max(len(config.end_ids), 1) if config.num_beams > 1 else 1
    return Sampling(
        **_numbers(config, "temperature", "top_h", "min_p", "typical_p"),
        top_k=_count(config.top_k),
        top_p_rest=_share(1 - config.top_p),  # in double precision, as transformers does
        epsilon_cutoff=_share(config.epsilon_cutoff % 1),  # 1 disables it, as 0 does
        eta_cutoff=_share(config.eta_cutoff % 1),
        min_tokens_to_keep=np.int32(least),
        renormalize=config.renormalize_logits,
    )


def _numbers(config: GenerationConfig, *names: str) -> dict[str, Any]:
    """Returns fields as float32, None for those with their default value."""
    values = {name: getattr(config, name) for name in names}
    return {n: None if v == DEFAULTS[n] else np.float32(v) for n, v in values.items()}


def _check_ids(config: GenerationConfig, vocab_size: int) -> None:
    names = (
        "eos_token_id",
        "pad_token_id",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "suppress_tokens",
        "begin_suppress_tokens",
        "bad_words_ids",
    )
    named: dict[str, Any] = {name: getattr(config, name) for name in names}
    named["sequence_bias"] = [word for word, _ in config.sequence_bias or ()]
    named["forced_decoder_ids"] = [token for _, token in config.forced_decoder_ids or ()]
    for name, tokens in named.items():
        if wrong := [token for token in ids(tokens) if token >= vocab_size]:
            raise InputError(
                f"{name}: expected token ids below {vocab_size} (vocab_size), found {wrong[0]}"
            )


def _count(value: int | None) -> Any:
    return np.int32(value) if value else None


def _share(value: float) -> Any:
    return np.float32(value) if value else None


def together(*parts: Any) -> tuple[Any, ...] | None:
    """Returns the parts as one processor's numbers; None if any of them is None."""
    return None if any(part is None for part in parts) else parts


def phrases(pairs: Iterable[tuple[tuple[int, ...], float]] | None) -> Phrases | None:
    """Returns phrases with their biases, padded to sizes that are powers of two."""
    if pairs is None:
        return None
    biases = dict(pairs)
    rows = power_of_two(len(biases))
    tokens = np.zeros((rows, power_of_two(max(map(len, biases), default=1))), np.int32)
    found = Phrases(tokens, np.ones(rows, np.int32), np.zeros(rows, np.float32))
    for row, (phrase, value) in enumerate(biases.items()):
        tokens[row, -len(phrase) :] = phrase
        found.lengths[row], found.bias[row] = len(phrase), value
    return found


def placed(pairs: Iterable[tuple[int, int]] | None) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns the positions and the tokens of pairs, padded to a power of two."""
    if pairs is None:
        return None
    forced = dict(pairs)
    positions = np.full(power_of_two(len(forced)), -1, np.int32)  # no text has that length
    tokens = np.zeros_like(positions)
    positions[: len(forced)], tokens[: len(forced)] = list(forced), list(forced.values())
    return positions, tokens
