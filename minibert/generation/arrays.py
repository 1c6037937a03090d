"""From the fields of a `GenerationConfig` to the arrays of `Processors` and `Sampling`.

What is left None is what transformers' `_get_logits_processor` (`generation/utils.py`) does not
add. Numbers of phrases and of positions are rounded up to powers of two, so that one more seldom
makes another shape.
"""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from minibert.errors import InputError
from minibert.generation.processors import Phrases, Processors
from minibert.generation.sampling import Sampling


def processors(config: Any, vocab_size: int) -> Processors:
    """The processors a config asks for; see `GenerationConfig.processors`."""
    _check(config, vocab_size)

    def mask(tokens: int | tuple[int, ...] | None) -> np.ndarray | None:
        return None if tokens is None else np.isin(np.arange(vocab_size), ids(tokens))

    end = mask(config.eos_token_id)
    forced = np.asarray(config.forced_bos_token_id is not None)
    least = config.min_length if config.min_new_tokens is None else 0
    return Processors(
        sequence_bias=_phrases(config.sequence_bias),
        encoder_repetition_penalty=_number(config.encoder_repetition_penalty, neutral=1.0),
        repetition_penalty=_number(config.repetition_penalty, neutral=1.0),
        presence_penalty=_number(config.presence_penalty, neutral=0.0),
        frequency_penalty=_number(config.frequency_penalty, neutral=0.0),
        no_repeat_ngram_size=_count(config.no_repeat_ngram_size),
        encoder_no_repeat_ngram_size=_count(config.encoder_no_repeat_ngram_size),
        bad_words_ids=_phrases(_bad_words(config)),
        min_length=_together(_count(least), end),
        min_new_tokens=_together(_count(config.min_new_tokens), end),
        forced_bos_token_id=mask(config.forced_bos_token_id),
        forced_eos_token_id=mask(config.forced_eos_token_id),
        remove_invalid_values=config.remove_invalid_values,
        exponential_decay_length_penalty=_decay(config.exponential_decay_length_penalty, end),
        suppress_tokens=mask(config.suppress_tokens),
        begin_suppress_tokens=_together(mask(config.begin_suppress_tokens), forced),
        forced_decoder_ids=_placed(config.forced_decoder_ids),
    )


def sampling(config: Any) -> Sampling:
    """The filters a config asks for; see `GenerationConfig.sampling`."""
    if not config.do_sample:
        return Sampling(renormalize=config.renormalize_logits)
    # With beams, one token more than can end a text: a beam must be able to go on.
    beams = 1 + max(len(config.end_ids), 1)
    rest = 1 - config.top_p  # in double precision, as transformers does
    epsilon, eta = config.epsilon_cutoff % 1, config.eta_cutoff % 1  # 1 cuts nothing off either
    return Sampling(
        temperature=_number(config.temperature, neutral=1.0),
        top_h=_number(config.top_h),
        top_k=_count(config.top_k),
        top_p_rest=_number(rest, neutral=0.0),
        min_p=_number(config.min_p),
        typical_p=_number(config.typical_p, neutral=1.0),
        epsilon_cutoff=_number(epsilon, neutral=0.0),
        eta_cutoff=_number(eta, neutral=0.0),
        min_tokens_to_keep=np.asarray(beams if config.num_beams > 1 else 1, np.int32),
        renormalize=config.renormalize_logits,
    )


def ids(tokens: int | tuple[int, ...] | None) -> tuple[int, ...]:
    """None, one or several ids as several."""
    if tokens is None:
        return ()
    return tokens if isinstance(tokens, tuple) else (tokens,)


def _check(config: Any, vocab_size: int) -> None:
    named: dict[str, Iterable[int]] = {
        name: ids(getattr(config, name))
        for name in (
            *("eos_token_id", "pad_token_id", "forced_bos_token_id", "forced_eos_token_id"),
            *("suppress_tokens", "begin_suppress_tokens"),
        )
    }
    named["bad_words_ids"] = [i for word in config.bad_words_ids or () for i in word]
    named["sequence_bias"] = [i for word, _ in config.sequence_bias or () for i in word]
    named["forced_decoder_ids"] = [i for _, i in config.forced_decoder_ids or ()]
    for name, tokens in named.items():
        if wrong := [token for token in tokens if token >= vocab_size]:
            raise InputError(
                f"{name}: expected ids of the vocabulary, which are below {vocab_size}, "
                f"found {wrong[0]}"
            )


def _number(value: float | None, neutral: float | None = None) -> np.ndarray | None:
    return None if value is None or value == neutral else np.asarray(value, np.float32)


def _count(value: int | None) -> np.ndarray | None:
    return np.asarray(value, np.int32) if value else None


def _together(*parts: np.ndarray | None) -> tuple[np.ndarray | None, ...] | None:
    return None if any(part is None for part in parts) else parts


def _decay(decay: tuple[int, float] | None, end: np.ndarray | None) -> tuple[Any, ...] | None:
    if decay is None:
        return None
    after, factor = decay
    return _together(np.asarray(after, np.int32), _number(math.log(factor)), end)


def _bad_words(config: Any) -> list[tuple[tuple[int, ...], float]] | None:
    if config.bad_words_ids is None:
        return None
    ends = [(token,) for token in config.end_ids]  # a text must be able to end
    return [(word, -math.inf) for word in config.bad_words_ids if word not in ends]


def _phrases(pairs: Iterable[tuple[tuple[int, ...], float]] | None) -> Phrases | None:
    if pairs is None:
        return None
    biases = dict(pairs)
    count = _power_of_two(len(biases))
    tokens = np.zeros((count, _power_of_two(max(map(len, biases), default=1))), np.int32)
    lengths, bias = np.ones(count, np.int32), np.zeros(count, np.float32)
    for row, (phrase, value) in enumerate(biases.items()):
        tokens[row, -len(phrase) :] = phrase
        lengths[row], bias[row] = len(phrase), value
    return Phrases(tokens=tokens, lengths=lengths, bias=bias)


def _placed(pairs: Iterable[tuple[int, int]] | None) -> tuple[np.ndarray, np.ndarray] | None:
    if pairs is None:
        return None
    places = dict(pairs)
    positions = np.full(_power_of_two(len(places)), -1, np.int32)  # no text has that length
    tokens = np.zeros_like(positions)
    positions[: len(places)], tokens[: len(places)] = list(places), list(places.values())
    return positions, tokens


def _power_of_two(least: int) -> int:
    return 1 << max(least - 1, 0).bit_length()
