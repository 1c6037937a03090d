"""Text generation: ids in, ids out. It knows nothing of tokenizers.

A call picks a compiled program, by the model's architecture and the sizes of prompt and room, both
rounded up, and runs it once: the loop is inside. The reference is `generate` of transformers'
`generation/utils.py`; a row's tokens never depend on its padding or on its neighbours.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import Array

from minibert.core.checks import as_array, checked_indices, checked_zeros_and_ones, shaped
from minibert.errors import InputError, NotFiniteError, shown
from minibert.generation import beams, decoding
from minibert.generation.config import GenerationConfig
from minibert.generation.decoding import Plan, Prompt, Rules
from minibert.models.compilation import program
from minibert.models.inputs import encoder_inputs
from minibert.models.outputs import GenerateOutput

SHORTEST = 16


class Prompts(NamedTuple):
    """Prompts and what is asked of them.

    Attributes:
        ids: `(batch, seq)` words, padded on the left.
        mask: `(batch, seq)`, True at words and False at padding.
        limit: how many tokens to generate.
        encoder: an encoder's states `(batch, encoder_seq, hidden)` and their padding mask
            `(batch, 1, 1, encoder_seq)`; None for what is not given.
    """

    ids: np.ndarray
    mask: np.ndarray
    limit: int = 0
    encoder: tuple[Any, Any] = (None, None)

    def padded(self, positions: int) -> Prompt:
        """The prompts, and an encoder's states, in one of few lengths, so that programs are few.

        Args:
            positions: how many the model has.
        """
        words = self.mask.any(axis=0)
        ids, mask = self.ids[:, words].astype(np.int32), self.mask[:, words]
        seq = ids.shape[1]
        more = ((0, 0), (max(min(rounded_up(seq), positions), seq) - seq, 0))
        return Prompt(np.pad(ids, more), np.pad(mask, more), *self._padded_encoder())

    def _padded_encoder(self) -> tuple[Any, Any]:
        if self.encoder[0] is None:
            return None, None
        states, mask = np.asarray(self.encoder[0]), self.encoder[1]
        batch, seq, _ = states.shape
        mask = np.ones((batch, seq), bool) if mask is None else np.asarray(mask)[:, 0, 0]
        more = rounded_up(seq) - seq
        return np.pad(states, ((0, 0), (0, more), (0, 0))), np.pad(mask, ((0, 0), (0, more)))

    def continued(self, texts: np.ndarray) -> np.ndarray:
        """The prompts as they were given, with texts behind them; several for each prompt."""
        copies = len(texts) // len(self.ids)
        return np.concatenate([np.repeat(self.ids, copies, axis=0), texts], axis=1, dtype=np.int32)


def rounded_up(length: int) -> int:
    """The next of 16, 24, 32, 48, 64, 96, …: at most a third is wasted."""
    size = SHORTEST
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


def prompts(
    input_ids: Any, attention_mask: Any, config: GenerationConfig, vocab_size: int
) -> Prompts:
    """Checks prompts.

    Raises:
        InputError: they are no words, empty, all padding, or padded on the right.
    """
    ragged = _ragged(input_ids)
    if ragged and attention_mask is not None:
        raise InputError(
            "attention_mask: expected none, as input_ids has rows of different lengths, which are "
            "padded for you"
        )
    if ragged:
        input_ids, room = _padded_on_the_left(input_ids)
    words = as_array("input_ids", input_ids)
    if words.ndim != 2 or not words.size:
        raise InputError(f"input_ids: expected shape (batch, seq), found {words.shape}")
    ids = np.asarray(checked_indices("input_ids", words, vocab_size, "vocab_size"))
    if ragged:
        ids = np.where(room, ids, config.padding_id or 0)
    if attention_mask is None:
        mask = room if ragged else np.ones(ids.shape, bool)
        if config.pad_token_id is not None and config.pad_token_id not in config.end_ids:
            mask = mask & (ids != config.pad_token_id)
    else:
        given = checked_zeros_and_ones("attention_mask", attention_mask)
        mask = np.asarray(shaped("attention_mask", given, [ids.shape])).astype(bool)
    for row, real in enumerate(mask):
        if not real.any():
            raise InputError(f"input_ids: row {row} is all padding; expected a prompt")
        if not real[-1]:
            raise InputError(f"attention_mask: row {row} ends in padding; pad on the left")
    return Prompts(ids, mask)


def _ragged(input_ids: Any) -> bool:
    rows = isinstance(input_ids, list | tuple) and len(input_ids) > 0
    if not rows or not all(isinstance(row, Sequence | np.ndarray) for row in input_ids):
        return False
    return len({len(row) for row in input_ids}) > 1


def _padded_on_the_left(rows: Any) -> tuple[np.ndarray, np.ndarray]:
    arrays = [as_array("input_ids", row) for row in rows]
    width = max(map(len, arrays))
    for number, row in enumerate(arrays):
        if row.ndim != 1 or not row.size:
            raise InputError(
                f"input_ids: row {number}: expected words, found {shown(rows[number])}"
            )
        if not np.issubdtype(row.dtype, np.integer):
            raise InputError(f"input_ids: expected integers, found {row.dtype}")
    ids = np.zeros((len(arrays), width), np.int64)
    mask = np.zeros((len(arrays), width), bool)
    for number, row in enumerate(arrays):
        ids[number, width - len(row) :], mask[number, width - len(row) :] = row, True
    return ids, mask


# Options that can leave a text without a next token.
BANS = (
    *("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "sequence_bias"),
    *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens"),
    *("forced_bos_token_id", "forced_eos_token_id", "forced_decoder_ids"),
)


def generate(
    model: Any,
    input_ids: Any,
    attention_mask: Any = None,
    *,
    generation_config: Any = None,
    key: Any = None,
    encoder_hidden_states: Any = None,
    encoder_attention_mask: Any = None,
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
    config = _config(model, generation_config, options)
    encoder = (encoder_hidden_states, encoder_attention_mask)
    leaves, treedef = jax.tree.flatten(model)
    _refuse_traced(leaves, input_ids, attention_mask, key, encoder)
    given = _given(model, input_ids, attention_mask, config, encoder)
    plan, rules, prompt = _prepare(model, given, config, key)
    if config.num_beams > 1:
        found = program(beams.search, treedef, plan)(leaves, prompt, rules)
        output = _best(found, given, config)
    else:
        output = _written(
            program(decoding.run, treedef, plan)(leaves, prompt, rules), given, config
        )
    return output if config.return_dict_in_generate else output.sequences


def stream(
    model: Any,
    input_ids: Any,
    attention_mask: Any = None,
    *,
    generation_config: Any = None,
    key: Any = None,
    encoder_hidden_states: Any = None,
    encoder_attention_mask: Any = None,
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
    config = _config(model, generation_config, options)
    for name, plain in (("num_beams", 1), ("output_scores", False), ("output_logits", False)):
        if getattr(config, name) != plain:
            raise InputError(f"{name}: a stream has none; expected {plain!r}, or use generate")
    encoder = (encoder_hidden_states, encoder_attention_mask)
    leaves, treedef = jax.tree.flatten(model)
    _refuse_traced(leaves, input_ids, attention_mask, key, encoder)
    given = _given(model, input_ids, attention_mask, config, encoder)
    plan, rules, prompt = _prepare(model, given, config, key)
    begin, advance = program(_begin, treedef, plan), program(_advance, treedef, plan, donate=(1,))
    return _tokens(begin, advance, (leaves, prompt, rules), config)


def _tokens(
    begin: Callable[..., Any],
    advance: Callable[..., Any],
    given: tuple[list[Any], Any, Any],
    config: GenerationConfig,
) -> Iterator[np.ndarray]:
    leaves, _, rules = given
    state, token, faults, more = begin(*given)
    _check_rows(faults, config)
    yield np.asarray(token)
    while more:
        state, token, faults, more = advance(leaves, state, rules)
        _check_rows(faults, config)
        yield np.asarray(token)


def _check_rows(faults: Any, config: GenerationConfig) -> None:
    """Raises an error if a row has no next token, `(batch × num_return_sequences,)`."""
    faults = np.asarray(faults)
    if not faults.any():
        return
    row = int(np.flatnonzero(faults)[0])
    prompt = row // config.num_return_sequences
    if faults[row] == decoding.NOT_FINITE:
        _raise_not_finite(prompt)
    raise InputError(
        f"input_ids: row {prompt}: no token is left to follow its text, as the options ban all of "
        f"them ({_bans(config)}); ban fewer, or generate fewer tokens"
    )


def _raise_not_finite(prompt: int) -> NoReturn:
    raise NotFiniteError(
        f"model: its logits for row {prompt} of input_ids are not finite; a weight is NaN or "
        "infinite, or a number became too large for the dtype in which the model computes"
    )


def _bans(config: GenerationConfig) -> str:
    default = GenerationConfig()
    return ", ".join(n for n in BANS if getattr(config, n) != getattr(default, n))


def _begin(model: Any, prompt: Prompt, rules: Rules, plan: Plan) -> tuple[Any, ...]:
    return _streamed(decoding.begin(model, prompt, rules, plan), rules, plan)


def _advance(model: Any, state: decoding.State, rules: Rules, plan: Plan) -> tuple[Any, ...]:
    return _streamed(decoding.advance(model, state, rules, plan), rules, plan)


def _streamed(state: decoding.State, rules: Rules, plan: Plan) -> tuple[Any, ...]:
    token = state.tokens[:, state.tokens.shape[1] - plan.steps + state.step - 1]
    return state, token, state.faults, decoding.unfinished(state, rules)


def _config(model: Any, given: Any, options: dict[str, Any]) -> GenerationConfig:
    """Returns the config of a call; see `GenerationConfig.of_call`."""
    if not getattr(model, "generates", False):
        raise InputError(f"model: {type(model).__name__} has no scores for next words to go by")
    if not model.config.is_decoder:
        raise InputError("model: only a decoder generates, and config.is_decoder is off")
    return GenerationConfig.of_call(model.config, given, options)


def _refuse_traced(*arguments: Any) -> None:
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(arguments)):
        raise InputError(
            "generate, stream: they compile programs of their own and answer in NumPy's arrays; "
            "expected a call outside jax.jit, found traced arguments"
        )


def _given(
    model: Any, input_ids: Any, mask: Any, config: GenerationConfig, encoder: tuple[Any, Any]
) -> Prompts:
    """The prompts, and how many tokens to generate: no more than the model has positions for."""
    given = prompts(input_ids, mask, config, model.config.vocab_size)
    if any(part is not None for part in encoder):
        encoder = encoder_inputs(model.config, *encoder, len(given.ids))
    positions = model.config.max_tokens
    limit = config.limit(given.ids.shape[1], positions, model.config.max_tokens_name)
    longest = int(given.mask.sum(axis=1).max())
    if longest + limit > positions:
        raise InputError(
            f"input_ids: a prompt of {longest} tokens and {limit} new ones are {longest + limit}; "
            f"expected at most {positions} ({model.config.max_tokens_name})"
        )
    return given._replace(limit=limit, encoder=encoder)


def _prepare(
    model: Any, given: Prompts, config: GenerationConfig, key: Any
) -> tuple[Plan, Rules, Prompt]:
    """What the program is, what it is run with, and what it continues."""
    vocab, beamed = model.config.vocab_size, config.num_beams > 1
    processors = config.processors(vocab)
    plan = Plan(
        steps=rounded_up(given.limit),
        copies=config.num_beams if beamed else config.num_return_sequences,
        sampled=config.do_sample,
        scores=config.output_scores,
        logits=config.output_logits,
        candidates=_candidates(config, vocab) if beamed else 0,
        early_stopping=config.early_stopping if beamed else False,
    )
    rules = Rules(
        processors=processors,
        sampling=config.sampling(),
        ends=np.isin(np.arange(vocab), config.end_ids),
        pad=np.int32(config.padding_id or 0),
        limit=np.int32(given.limit),
        key=_key(key) if config.do_sample else None,
        powers=_powers(plan.steps, config.length_penalty) if beamed else None,
    )
    return plan, rules, given.padded(model.config.max_tokens)


def _candidates(config: GenerationConfig, vocab: int) -> int:
    """How many continuations to look at, so that enough can go on if the best of them end."""
    ways = max(2, 1 + len(config.end_ids))
    if not config.do_sample:  # more of them change nothing then, and few numbers make few programs
        ways = 1 << (ways - 1).bit_length()
    return config.num_beams * min(ways, vocab)


def _powers(steps: int, penalty: float) -> np.ndarray:
    lengths = np.maximum(np.arange(steps + 1.0), 1)
    finite = np.finfo(np.float32)
    with np.errstate(over="ignore"):
        return np.clip(lengths**penalty, finite.tiny, finite.max).astype(np.float32)


def _key(key: Any) -> Any:
    typed = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    raw = isinstance(key, jax.Array | np.ndarray) and key.dtype == np.uint32
    if not ((typed and key.ndim == 0) or (raw and key.ndim == 1)):
        found = "nothing" if key is None else shown(type(key).__name__)
        raise InputError(
            f"key: tokens are drawn: expected a random key, key=jax.random.key(0), found {found}"
        ).advising("key=jax.random.key(0)")
    return key


def _written(done: decoding.Written, given: Prompts, config: GenerationConfig) -> GenerateOutput:
    _check_rows(done.faults, config)
    steps, start = int(done.step), done.tokens.shape[1] - done.log_probs.shape[1]
    log_probs = np.array(done.log_probs)[:, :steps]
    return GenerateOutput(
        sequences=given.continued(np.asarray(done.tokens)[:, start : start + steps]),
        log_probs=log_probs,
        **_records(done.records, steps),
    )


def _best(found: beams.Found, given: Prompts, config: GenerationConfig) -> GenerateOutput:
    def best(texts: Array) -> np.ndarray:
        return np.array(texts)[:, : config.num_return_sequences].reshape(-1, *texts.shape[2:])

    if (broken := np.flatnonzero(found.faults)).size:
        _raise_not_finite(int(broken[0]))
    whole = np.asarray(found.ended)[:, : config.num_return_sequences]
    for row in np.flatnonzero(~whole.all(axis=1)):
        raise InputError(
            f"input_ids: row {row}: {whole[row].sum()} texts follow it, expected "
            f"{config.num_return_sequences}: the options ban all other tokens ({_bans(config)}); "
            "ban fewer, or ask for fewer texts or tokens"
        )
    tokens, came_from = best(found.kept.tokens), best(found.kept.came_from)
    steps, start = int((came_from >= 0).sum(axis=1).max()), tokens.shape[1] - came_from.shape[1]
    log_probs = best(found.kept.log_probs)[:, :steps]
    return GenerateOutput(
        sequences=given.continued(tokens[:, start : start + steps]),
        log_probs=log_probs,
        sequences_scores=best(found.kept.scores),
        beam_indices=came_from[:, :steps],
        **_records(found.records, int(found.step)),
    )


def _records(records: decoding.Records, steps: int) -> dict[str, tuple[np.ndarray, ...] | None]:
    def by_step(room: Any) -> tuple[np.ndarray, ...] | None:
        return None if room is None else tuple(np.asarray(room).swapaxes(0, 1)[:steps])

    return {"scores": by_step(records.scores), "logits": by_step(records.logits)}
