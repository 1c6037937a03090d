"""Text generation: ids in, ids out. It knows nothing of tokenizers.

A call picks a compiled program, by the model's architecture and the sizes of prompt and room, both
rounded up, and runs it once: the loop is inside. The reference is `generate` of transformers'
`generation/utils.py`; a row's tokens never depend on its padding or on its neighbours.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import Array

from minibert.core.checks import as_array, checked_indices, checked_zeros_and_ones, shaped
from minibert.core.types import AnyArray, ArrayLike
from minibert.errors import InputError, NotFiniteError, shown
from minibert.generation import beams, decoding
from minibert.generation.config import DEFAULTS, GenerationConfig
from minibert.generation.decoding import Plan, Prompt, Rules
from minibert.models.base import PretrainedModel
from minibert.models.compilation import program
from minibert.models.inputs import encoder_inputs
from minibert.models.outputs import GenerateOutput
from minibert.text.batching import power_of_two

SHORTEST = 16


def rounded_up(length: int) -> int:
    """The next of 16, 24, 32, 48, 64, 96, …: at most a third is wasted."""
    size = SHORTEST
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


# Options that can leave a text without a next token.
BANS = (
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
    "sequence_bias",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "min_length",
    "min_new_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "forced_decoder_ids",
)


def generate(
    model: PretrainedModel,
    input_ids: ArrayLike,
    attention_mask: ArrayLike | None = None,
    *,
    generation_config: GenerationConfig | None = None,
    key: Array | None = None,
    encoder_hidden_states: ArrayLike | None = None,
    encoder_attention_mask: ArrayLike | None = None,
    **options: Any,
) -> np.ndarray | GenerateOutput:
    """Continues prompts.

    Args:
        model: a `GPT2LMHeadModel`, or a `BertLMHeadModel` that is a decoder, in evaluation mode.
        input_ids: `(batch, seq)` words, shorter prompts padded on the left; or a list of lists of
            different lengths.
        attention_mask: `(batch, seq)`, 1 for a word and 0 for padding. By default the words that
            are the pad token are padding, if that is not also an end token.
        generation_config: a `GenerationConfig`; what it leaves open is taken from the checkpoint's
            own generation_config.json.
        key: a random key (`jax.random.key(0)`), needed when tokens are drawn. Row `i` draws from
            `fold_in(key, i)`, whatever the other rows.
        encoder_hidden_states: `(batch, encoder_seq, hidden)` for cross-attention.
        encoder_attention_mask: `(batch, encoder_seq)`, 0 at the encoder's padding.
        options: fields of `GenerationConfig`, in place of the config's: `max_new_tokens=64`,
            `do_sample=True, temperature=0.7`, `num_beams=4`, …

    Returns:
        `(batch × num_return_sequences, seq + generated)` ids, prompts included, each text followed
        by the pad token up to the longest; with `return_dict_in_generate=True` a `GenerateOutput`.

    Raises:
        InputError: the prompts are empty, all padding, out of range or too long, or options are
            unknown or contradict each other, or arguments are traced (the call is inside
            `jax.jit`); before anything is computed. Or the options ban every token that could
            follow a text.
        NotFiniteError: logits are NaN or infinite, and `remove_invalid_values` is off.
    """
    config = _config_of_call(model, generation_config, options)
    encoder = encoder_hidden_states, encoder_attention_mask
    call = _checked_call(model, input_ids, attention_mask, encoder, key, config)
    if config.num_beams > 1:
        output = _best(call.program(beams.search)(*call.arguments), call.prompts, config)
    else:
        output = _written(call.program(decoding.run)(*call.arguments), call.prompts, config)
    return output if config.return_dict_in_generate else output.sequences


def stream(
    model: PretrainedModel,
    input_ids: ArrayLike,
    attention_mask: ArrayLike | None = None,
    *,
    generation_config: GenerationConfig | None = None,
    key: Array | None = None,
    encoder_hidden_states: ArrayLike | None = None,
    encoder_attention_mask: ArrayLike | None = None,
    **options: Any,
) -> Iterator[np.ndarray]:
    """Continues prompts, and yields every token as soon as it is there.

    Takes `generate`'s arguments, but no beams, and yields `(batch × num_return_sequences,)` ids at
    each step: the columns that `generate` would return behind the prompts, one by one. Arguments
    are checked when it is called, not at the first token.

    Raises:
        InputError: as `generate` does; or there are beams, or records are asked for.
        NotFiniteError: as `generate` does, at the step at which it happens.
    """
    config = _config_of_call(model, generation_config, options)
    for name in ("num_beams", "output_scores", "output_logits"):
        if getattr(config, name) != DEFAULTS[name]:
            expected = f"expected {DEFAULTS[name]!r}, or use generate"
            raise InputError(f"{name}: a stream has none; {expected}")
    encoder = encoder_hidden_states, encoder_attention_mask
    call = _checked_call(model, input_ids, attention_mask, encoder, key, config)
    begin, advance = call.program(_begin), call.program(_advance, donate=(1,))
    return _tokens(begin, advance, call.arguments, config)


def _tokens(
    begin: Callable[..., Any],
    advance: Callable[..., Any],
    given: Any,
    config: GenerationConfig,
) -> Iterator[np.ndarray]:
    leaves, prompt, rules = given
    state, token, faults, more = begin(*given)
    while True:
        _check_rows(faults, len(prompt.ids), config)
        yield np.asarray(token)
        if not more:
            return
        state, token, faults, more = advance(leaves, state, rules)


def _check_rows(faults: AnyArray, batch: int, config: GenerationConfig) -> None:
    """Raises an error if a row has no next token; there are as many rows for each prompt."""
    faults = np.asarray(faults)
    if not faults.any():
        return
    row = int(np.flatnonzero(faults)[0])
    prompt = row * batch // len(faults)
    if faults[row] == decoding.NOT_FINITE:
        raise NotFiniteError(
            f"model: its logits for row {prompt} of input_ids are not finite; a weight is NaN or "
            "infinite, or a number became too large for the dtype in which the model computes"
        )
    raise InputError(
        f"input_ids: row {prompt}: no token is left to follow its text, as the options ban all of "
        f"them ({_bans(config)}); ban fewer, or generate fewer tokens"
    )


def _bans(config: GenerationConfig) -> str:
    return ", ".join(name for name in BANS if getattr(config, name) != DEFAULTS[name])


def _begin(model: PretrainedModel, prompt: Prompt, rules: Rules, plan: Plan) -> tuple[Any, ...]:
    return _streamed(decoding.begin(model, prompt, rules, plan), rules, plan)


def _advance(
    model: PretrainedModel, state: decoding.State, rules: Rules, plan: Plan
) -> tuple[Any, ...]:
    return _streamed(decoding.advance(model, state, rules, plan), rules, plan)


def _streamed(state: decoding.State, rules: Rules, plan: Plan) -> tuple[Any, ...]:
    token = state.tokens[:, state.tokens.shape[1] - plan.steps + state.step - 1]
    return state, token, state.faults, decoding.unfinished(state, rules)


class _Call(NamedTuple):
    """A call of generation, checked.

    Attributes:
        prompts: as they were given.
        plan: what the program is, beside the model's structure, `treedef`.
        arguments: what the program is run with: the model's leaves, prompts and rules.
    """

    prompts: Prompt
    plan: Plan
    treedef: Any
    arguments: tuple[list[Any], Prompt, Rules]

    def program(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """Returns a function of the model, compiled for the call's plan."""
        return program(function, self.treedef, self.plan, **options)


def _config_of_call(
    model: PretrainedModel, config: GenerationConfig | None, options: dict[str, Any]
) -> GenerationConfig:
    if not getattr(model, "generates", False):
        raise InputError(f"model: {type(model).__name__} has no scores for next words to go by")
    if not model.config.is_decoder:
        raise InputError("model: only a decoder generates, and config.is_decoder is off")
    return GenerationConfig.of_call(model.config, config, options)


def _checked_call(
    model: PretrainedModel,
    input_ids: ArrayLike,
    attention_mask: ArrayLike | None,
    encoder: tuple[Any, Any],
    key: Array | None,
    config: GenerationConfig,
) -> _Call:
    leaves, treedef = jax.tree.flatten(model)
    arrays = jax.tree.leaves((leaves, input_ids, attention_mask, encoder, key))
    if any(isinstance(array, jax.core.Tracer) for array in arrays):
        raise InputError(
            "generate, stream: they compile programs of their own and answer in NumPy's arrays; "
            "expected a call outside jax.jit, found traced arguments"
        )
    prompts = _given(model, input_ids, attention_mask, config, encoder)
    plan, rules, prompt = _prepare(model, prompts, config, key)
    return _Call(prompts, plan, treedef, (leaves, prompt, rules))


def _given(
    model: PretrainedModel,
    input_ids: Any,
    mask: ArrayLike | None,
    config: GenerationConfig,
    encoder: tuple[Any, Any],
) -> Prompt:
    """The prompts as they are given, and an encoder's states, checked.

    Raises:
        InputError: the prompts are no words, empty, all padding, or padded on the right; or the
            states are wrong.
    """
    ragged = isinstance(input_ids, list | tuple) and all(
        isinstance(row, Sequence | np.ndarray) for row in input_ids
    )
    ragged = ragged and len(set(map(len, input_ids))) > 1
    if ragged and mask is not None:
        raise InputError(
            "attention_mask: expected none, as input_ids has rows of different lengths, which are "
            "padded for you"
        )
    if ragged:
        input_ids, real = _padded_on_the_left(input_ids)
    words = as_array("input_ids", input_ids)
    if words.ndim != 2 or not words.size:
        raise InputError(f"input_ids: expected shape (batch, seq), found {words.shape}")
    ids = np.asarray(checked_indices("input_ids", words, model.config.vocab_size, "vocab_size"))
    if ragged:
        ids = np.where(real, ids, config.padding_id or 0)
    elif mask is None:
        real = np.ones(ids.shape, bool)
    else:
        zeros_and_ones = checked_zeros_and_ones("attention_mask", mask)
        real = np.asarray(shaped("attention_mask", zeros_and_ones, [ids.shape])).astype(bool)
    pad = config.pad_token_id
    if mask is None and pad is not None and pad not in config.end_ids:
        real = real & (ids != pad)
    for number, row in enumerate(real):
        if not row.any():
            raise InputError(f"input_ids: row {number} is all padding; expected a prompt")
        if not row[-1]:
            raise InputError(f"attention_mask: row {number} ends in padding; pad on the left")
    if any(part is not None for part in encoder):
        encoder = encoder_inputs(model.config, *encoder, len(ids))
    return Prompt(ids, real, *encoder)


def _padded_on_the_left(rows: Any) -> tuple[np.ndarray, np.ndarray]:
    arrays = [as_array("input_ids", row) for row in rows]
    for number, row in enumerate(arrays):
        if row.ndim != 1 or not row.size:
            raise InputError(
                f"input_ids: row {number}: expected words, found {shown(rows[number])}"
            )
        if not np.issubdtype(row.dtype, np.integer):
            raise InputError(f"input_ids: expected integers, found {row.dtype}")
    lengths = np.array([[len(row)] for row in arrays])
    mask = np.arange(lengths.max()) >= lengths.max() - lengths
    ids = np.zeros(mask.shape, np.int64)
    ids[mask] = np.concatenate(arrays)
    return ids, mask


def _prepare(
    model: PretrainedModel, given: Prompt, config: GenerationConfig, key: Array | None
) -> tuple[Plan, Rules, Prompt]:
    """What the program is, what it is run with, and what it continues.

    Raises:
        InputError: the model has too few positions; or an option is wrong for it, or the key.
    """
    vocab, beamed = model.config.vocab_size, config.num_beams > 1
    positions, name = model.config.max_tokens, model.config.max_tokens_name
    limit = config.limit(given.ids.shape[1], positions, name)
    longest = int(given.mask.sum(axis=1).max())
    if longest + limit > positions:
        raise InputError(
            f"input_ids: a prompt of {longest} tokens and {limit} new ones are {longest + limit}; "
            f"expected at most {positions} ({name})"
        )
    steps = rounded_up(limit)
    rules = Rules(
        processors=config.processors(vocab),
        sampling=config.sampling(),
        ends=np.isin(np.arange(vocab), config.end_ids),
        pad=np.int32(config.padding_id or 0),
        limit=np.int32(limit),
        key=_key(key) if config.do_sample else None,
        powers=_powers(steps, config.length_penalty) if beamed else None,
    )
    plan = Plan(
        steps=steps,
        copies=config.num_beams if beamed else config.num_return_sequences,
        sampled=config.do_sample,
        records=tuple(n for n in ("scores", "logits") if getattr(config, f"output_{n}")),
        candidates=_candidates(config, vocab) if beamed else 0,
        early_stopping=config.early_stopping if beamed else False,
    )
    return plan, rules, _padded(given, positions)


def _padded(given: Prompt, positions: int) -> Prompt:
    """Prompts, and an encoder's states, in one of few lengths, so that programs are few.

    Args:
        given: the prompts; of the states' padding mask, `(batch, 1, 1, encoder_seq)` or None.
        positions: how many the model has.
    """
    words = given.mask.any(axis=0)
    seq = int(words.sum())
    before = ((0, 0), (max(min(rounded_up(seq), positions) - seq, 0), 0))
    ids = np.pad(given.ids[:, words].astype(np.int32), before)
    mask = np.pad(given.mask[:, words], before)
    states, seen = given.encoder_hidden_states, given.encoder_attention_mask
    if states is not None:
        states = np.asarray(states)
        batch, seq, _ = states.shape
        seen = np.ones((batch, seq), bool) if seen is None else np.asarray(seen)[:, 0, 0]
        behind = ((0, 0), (0, rounded_up(seq) - seq))
        states, seen = np.pad(states, (*behind, (0, 0))), np.pad(seen, behind)
    return Prompt(ids, mask, states, seen)


def _candidates(config: GenerationConfig, vocab: int) -> int:
    """How many continuations to look at, so that enough can go on if the best of them end."""
    ways = max(2, 1 + len(config.end_ids))
    if not config.do_sample:  # more of them change nothing then, and few numbers make few programs
        ways = power_of_two(ways)
    return config.num_beams * min(ways, vocab)


def _powers(steps: int, penalty: float) -> np.ndarray:
    lengths = np.maximum(np.arange(steps + 1.0), 1)
    finite = np.finfo(np.float32)
    with np.errstate(over="ignore"):
        return np.clip(lengths**penalty, finite.tiny, finite.max).astype(np.float32)


def _key(key: Array | None) -> Any:
    known = isinstance(key, jax.Array | np.ndarray)
    typed = known and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 0
    raw = known and key.dtype == np.uint32 and key.ndim == 1
    if not typed and not raw:
        found = "nothing" if key is None else shown(type(key).__name__)
        raise InputError(
            f"key: tokens are drawn: expected a random key, key=jax.random.key(0), found {found}"
        ).advising("key=jax.random.key(0)")
    return key


def _written(done: decoding.State, given: Prompt, config: GenerationConfig) -> GenerateOutput:
    _check_rows(done.faults, len(given.ids), config)
    steps, start = int(done.step), done.tokens.shape[1] - done.log_probs.shape[1]
    return GenerateOutput(
        sequences=_continued(given, np.asarray(done.tokens)[:, start : start + steps]),
        log_probs=np.array(done.log_probs)[:, :steps],
        **_by_step(done.records, steps),
    )


def _best(found: beams.Search, given: Prompt, config: GenerationConfig) -> GenerateOutput:
    several = config.num_return_sequences

    def best(texts: Array) -> np.ndarray:
        return np.array(texts)[:, :several].reshape(-1, *texts.shape[2:])

    _check_rows(found.faults, len(given.ids), config)
    for row, ended in enumerate(np.asarray(found.ended)[:, :several]):
        if not ended.all():
            raise InputError(
                f"input_ids: row {row}: {ended.sum()} texts follow it, expected {several}: the "
                f"options ban all other tokens ({_bans(config)}); ban fewer, or ask for fewer "
                "texts or tokens"
            )
    kept: Any = jax.tree.map(best, found.kept)
    steps = int((kept.came_from >= 0).sum(axis=1).max())
    start = kept.tokens.shape[1] - kept.came_from.shape[1]
    return GenerateOutput(
        sequences=_continued(given, kept.tokens[:, start : start + steps]),
        log_probs=kept.log_probs[:, :steps],
        sequences_scores=kept.scores,
        beam_indices=kept.came_from[:, :steps],
        **_by_step(found.records, int(found.step)),
    )


def _continued(given: Prompt, texts: np.ndarray) -> np.ndarray:
    """The prompts as they were given, with texts behind them; several for each prompt."""
    ids = np.repeat(given.ids, len(texts) // len(given.ids), axis=0)
    return np.concatenate([ids, texts], axis=1, dtype=np.int32)


def _by_step(records: decoding.Records, steps: int) -> dict[str, Any]:
    return {n: tuple(np.asarray(room).swapaxes(0, 1)[:steps]) for n, room in records.items()}
