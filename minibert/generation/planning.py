"""The inputs of a call's program: prompts, its plan, the active processors and filters.

What is passed to `generate` is validated here and padded to few shapes.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from minibert.checkpoint.generation_config import DEFAULTS, GenerationConfig, ids
from minibert.core.checks import (
    as_array,
    checked_indices,
    checked_zeros_and_ones,
    floats,
    shaped,
)
from minibert.core.types import ArrayLike
from minibert.errors import InputError, shown
from minibert.generation.decoding import Plan, Prompt, Rules
from minibert.generation.memory import check_memory
from minibert.generation.processors import Phrases, Processors
from minibert.generation.sampling import Sampling, checked_key
from minibert.models.base import PretrainedModel
from minibert.models.inputs import encoder_inputs, index_limits
from minibert.text.batching import power_of_two

SHORTEST = 16


class Inputs(NamedTuple):
    """The arrays that `generate` and `stream` take, as they were passed."""

    input_ids: ArrayLike | None
    attention_mask: ArrayLike | None
    inputs_embeds: ArrayLike | None
    token_type_ids: ArrayLike | None
    encoder_hidden_states: ArrayLike | None
    encoder_attention_mask: ArrayLike | None
    negative_prompt_ids: ArrayLike | None
    negative_prompt_attention_mask: ArrayLike | None


def rounded_up(length: int) -> int:
    """Returns the smallest of 16, 24, 32, 48, 64, 96, … that is at least `length`."""
    size = SHORTEST
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


def given_prompts(model: PretrainedModel, inputs: Inputs, config: GenerationConfig) -> Prompt:
    """Returns the prompts as they were passed, and the encoder's states, after validation.

    Raises:
        InputError: if the prompts are not token ids or embeddings, empty, all padding or padded on
            the right, or other arrays are invalid.
    """
    tokens, embeds = inputs.input_ids, inputs.inputs_embeds
    encoder: tuple[Any, Any] = inputs.encoder_hidden_states, inputs.encoder_attention_mask
    if embeds is not None:
        if tokens is not None:
            raise InputError("input_ids, inputs_embeds: expected one of the two, found both")
        embeds, width = floats("inputs_embeds", embeds), model.config.embedding_size
        if embeds.ndim != 3 or not embeds.size or embeds.shape[2] != width:
            raise InputError(
                f"inputs_embeds: expected shape (batch, seq, {width}), found {embeds.shape}"
            )
        ids, real = np.full(embeds.shape[:2], -1), _mask(inputs.attention_mask, embeds.shape[:2])
    else:
        if tokens is None:
            if (begin := config.bos_token_id) is None:
                raise InputError("input_ids: expected prompts, or a bos_token_id to begin with")
            tokens = np.full((1 if encoder[0] is None else len(encoder[0]), 1), begin)
        ids, real = _ids_and_mask(model, config, tokens, inputs.attention_mask)
    if any(part is not None for part in encoder):
        encoder = encoder_inputs(model.config, *encoder, len(ids))
    types = inputs.token_type_ids
    if types is not None:
        name = index_limits(model)["token_type_ids"]
        types = checked_indices("token_type_ids", types, getattr(model.config, name), name)
        types = jax.device_get(shaped("token_type_ids", types, [ids.shape]))
    return Prompt(ids, real, *encoder, jax.device_get(embeds), types)


def negative_prompts(
    model: PretrainedModel, inputs: Inputs, prompts: Prompt, config: GenerationConfig
) -> Prompt | None:
    """Returns the negative prompts of guidance, a row for each prompt; None without guidance."""
    given, prefix, batch = inputs.negative_prompt_ids, "negative_prompt_", len(prompts.ids)
    if config.guidance_scale == DEFAULTS["guidance_scale"]:
        if given is not None or inputs.negative_prompt_attention_mask is not None:
            raise InputError("negative_prompt_ids: needs a guidance_scale other than 1")
        return None
    for name in ("inputs_embeds", "token_type_ids", "encoder_hidden_states"):
        if getattr(inputs, name) is not None:
            raise InputError(f"{name}: not supported with guidance_scale; expected None")
    if given is None:
        given = prompts.ids[:, -1:]
    mask = inputs.negative_prompt_attention_mask
    ids, real = _ids_and_mask(model, config, given, mask, prefix)
    if len(ids) not in (1, batch):
        expected = "1 row" if batch == 1 else f"1 or {batch} rows"
        raise InputError(f"{prefix}ids: expected {expected}, found {len(ids)}")
    return Prompt(*(np.broadcast_to(array, (batch, ids.shape[1])) for array in (ids, real)))


def check_assistant(
    model: PretrainedModel, assistant: object, inputs: Inputs, config: GenerationConfig
) -> None:
    """Raises an `InputError` if a model cannot propose tokens for a call."""
    name = "assistant_model"
    if not isinstance(assistant, PretrainedModel) or not assistant.generates:
        raise InputError(f"{name}: expected a model that generates, found {shown(assistant)}")
    if not assistant.config.is_decoder:
        raise InputError(f"{name}: expected a decoder, found config.is_decoder=False")
    vocab, found = model.config.vocab_size, assistant.config.vocab_size
    if found != vocab:
        raise InputError(f"{name}: expected the model's vocab_size, {vocab}, found {found}")
    own, other_one = (jax.tree.leaves(one)[0] for one in (model, assistant))
    if own.committed and other_one.committed and own.devices() != other_one.devices():
        raise InputError(
            f"{name}: expected a model on {own.devices()}, as the model is, found one on "
            f"{other_one.devices()}; move it with jax.device_put"
        )
    for other in ("inputs_embeds", "token_type_ids", "encoder_hidden_states"):
        if getattr(inputs, other) is not None:
            raise InputError(f"{other}: not supported with {name}; expected None")
    for other in ("num_beams", "guidance_scale", "prompt_lookup_num_tokens"):
        if (found := getattr(config, other)) != DEFAULTS[other]:
            raise InputError(f"{other}: expected {DEFAULTS[other]} with {name}, found {found}")


def _ids_and_mask(
    model: PretrainedModel,
    config: GenerationConfig,
    given: Any,
    mask: ArrayLike | None,
    prefix: str = "",
) -> tuple[np.ndarray, np.ndarray]:
    """Returns token ids and their mask, `(batch, seq)` each, after validation.

    Args:
        model: the model.
        config: the config of the call.
        given: an array, or a list of lists of different lengths.
        mask: the mask that was passed.
        prefix: the beginning of the names of the two arguments, for messages.
    """
    name = f"{prefix}ids" if prefix else "input_ids"
    ragged = isinstance(given, list | tuple) and all(
        isinstance(row, Sequence | np.ndarray) for row in given
    )
    ragged = ragged and len(set(map(len, given))) > 1
    if ragged and mask is not None:
        raise InputError(
            f"{prefix}attention_mask: expected None, as {name} has rows of different lengths, "
            "which are padded automatically"
        )
    real = None
    if ragged:
        given, real = _padded_on_the_left(given, name)
    tokens = as_array(name, given)
    if tokens.ndim != 2 or not tokens.size:
        raise InputError(f"{name}: expected shape (batch, seq), found {tokens.shape}")
    ids = jax.device_get(checked_indices(name, tokens, model.config.vocab_size, "vocab_size"))
    if real is not None:
        ids = np.where(real, ids, config.padding_id or 0)
    pad = config.pad_token_id
    if mask is None and pad is not None and pad not in config.end_ids:
        real = (True if real is None else real) & (ids != pad)
    return ids, _mask(mask if real is None else real, ids.shape, prefix, name)


def _mask(
    given: Any, shape: tuple[int, ...], prefix: str = "", of: str = "input_ids"
) -> np.ndarray:
    """Returns a mask of prompts padded on the left, after validation; all True if there is none."""
    if given is None:
        return np.ones(shape, bool)
    name = f"{prefix}attention_mask"
    mask = shaped(name, checked_zeros_and_ones(name, given), [shape])
    real = jax.device_get(mask).astype(bool)
    for number, row in enumerate(real):
        if not row.any():
            raise InputError(f"{of}: row {number} is all padding; expected a prompt")
        if not row[-1]:
            raise InputError(f"{name}: row {number} ends in padding; pad on the left")
    return real


def _padded_on_the_left(rows: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    arrays = jax.device_get([as_array(name, row) for row in rows])
    for number, row in enumerate(arrays):
        if row.ndim != 1 or not row.size:
            raise InputError(
                f"{name}: row {number}: expected token ids, found {shown(rows[number])}"
            )
        if not np.issubdtype(row.dtype, np.integer):
            raise InputError(f"{name}: expected integers, found {row.dtype}")
    lengths = np.array([[len(row)] for row in arrays])
    mask = np.arange(lengths.max()) >= lengths.max() - lengths
    ids = np.zeros(mask.shape, np.int64)
    ids[mask] = np.concatenate(arrays)
    return ids, mask


def prepare(
    model: PretrainedModel,
    given: Prompt,
    config: GenerationConfig,
    key: Array | None,
    negative: Prompt | None = None,
    assistant: PretrainedModel | None = None,
) -> tuple[Plan, Rules, Prompt]:
    """Returns the static part of the program, its inputs and the padded prompts.

    Args:
        model: the model.
        given: the prompts.
        config: the config of the call.
        key: the random key, or None.
        negative: the negative prompts of guidance, or None.
        assistant: a model that proposes tokens, or None.

    Raises:
        InputError: if a model has too few positions, or an option or the key is invalid.
    """
    vocab, beamed = model.config.vocab_size, config.num_beams > 1
    positions, name = model.config.max_tokens, model.config.max_tokens_name
    seq, types = given.ids.shape[1], given.token_type_ids
    limit = config.limit(seq, positions, name)
    if assistant is not None and assistant.config.max_tokens < positions:
        positions = assistant.config.max_tokens
        name = f"assistant_model's {assistant.config.max_tokens_name}"
    for prompts in (given, negative):
        longest = 0 if prompts is None else int(prompts.mask.sum(axis=1).max())
        if longest + limit > positions:
            raise InputError(
                f"{'input_ids' if prompts is given else 'negative_prompt_ids'}: a prompt of "
                f"{longest} tokens and {limit} new ones make {longest + limit}; "
                f"expected at most {positions} ({name})"
            )
    steps = rounded_up(limit)
    copies = config.num_beams if beamed else config.num_return_sequences
    proposed = config.prompt_lookup_num_tokens or 0
    if assistant is not None:
        proposed = config.num_assistant_tokens
    rules = Rules(
        processors=processors(config, vocab, seq),
        sampling=sampling(config),
        ends=np.isin(np.arange(vocab), config.end_ids),
        pad=np.int32(config.padding_id or 0),
        limit=np.int32(limit),
        key=checked_key(key) if config.do_sample else None,
        powers=_powers(steps, config.length_penalty) if beamed else None,
        guidance=None if negative is None else np.float32(config.guidance_scale),
        token_types=None if types is None else np.repeat(types[:, -1:], copies, axis=0),
        confidence=np.float32(config.assistant_confidence_threshold) if assistant else None,
    )
    padded = _padded(given if negative is None else _joined(given, negative), positions)
    plan = Plan(
        steps=steps,
        copies=copies,
        sampled=config.do_sample,
        records=tuple(n for n in ("scores", "logits") if getattr(config, f"output_{n}")),
        candidates=_candidates(config, vocab) if beamed else 0,
        early_stopping=config.early_stopping if beamed else False,
        guided=negative is not None,
        proposed=min(proposed, steps - 1),
        ngram=config.max_matching_ngram_size if proposed and assistant is None else 0,
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

    def padded(array: Any, fill: int = 0) -> Any:
        further = (*before, *((0, 0) for _ in array.shape[2:]))
        return np.pad(array[:, used], further, constant_values=fill)

    embeds, types = given.inputs_embeds, given.token_type_ids
    ids = padded(given.ids.astype(np.int32), 0 if embeds is None else -1)
    mask = padded(given.mask)
    embeds = None if embeds is None else padded(embeds)
    types = None if types is None else padded(types.astype(np.int32))
    states, seen = given.encoder_hidden_states, given.encoder_attention_mask
    if states is not None:
        states, seen = jax.device_get((states, seen))
        batch, seq, _ = states.shape
        seen = np.ones((batch, seq), bool) if seen is None else seen[:, 0, 0]
        after = ((0, 0), (0, rounded_up(seq) - seq))
        states, seen = np.pad(states, (*after, (0, 0))), np.pad(seen, after)
    return Prompt(ids, mask, states, seen, embeds, types)


def _joined(given: Prompt, negative: Prompt) -> Prompt:
    """Returns one batch of prompts and, after them, negative prompts, padded to one length."""
    both, width = (given, negative), max(given.ids.shape[1], negative.ids.shape[1])

    def joined(*arrays: np.ndarray) -> np.ndarray:
        lengths = (width - array.shape[1] for array in arrays)
        before = (((0, 0), (length, 0)) for length in lengths)
        return np.concatenate([np.pad(*pair) for pair in zip(arrays, before, strict=True)])

    return Prompt(joined(*(p.ids for p in both)), joined(*(p.mask for p in both)))


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


def processors(config: GenerationConfig, vocab_size: int, seq: int = 0) -> Processors:
    """Returns the active processors: those that transformers' `_get_logits_processor` adds.

    Args:
        config: the config of the call.
        vocab_size: the size of the vocabulary.
        seq: the length of the prompts, padding included.

    Raises:
        InputError: if a token id is not in the vocabulary.
    """
    _check_ids(config, vocab_size)

    def mask(tokens: object) -> np.ndarray | None:
        return None if tokens is None else np.isin(np.arange(vocab_size), ids(tokens))

    end = mask(config.eos_token_id)
    least = config.min_length if config.min_new_tokens is None else 0
    repetition, ignored = _numbers(config, "repetition_penalty")["repetition_penalty"], None
    if config.prompt_ignore_length is not None:
        ignored = np.int32(config.prompt_ignore_length - seq)
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
            "presence_penalty",
            "frequency_penalty",
        ),
        sequence_bias=phrases(config.sequence_bias),
        repetition_penalty=None if repetition is None else (repetition, ignored),
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
