"""Text generation from token ids to token ids, independent of any tokenizer.

A call selects a compiled program by the model's architecture and the prompt and output lengths,
both padded to a few bucket sizes, and runs it once: the decoding loop is part of the program. The
reference is `generate` in transformers' `generation/utils.py`. The tokens of a row never depend on
its padding or on the other rows.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.core
import numpy as np
from jax import Array

from minibert.checkpoint.generation_config import DEFAULTS, GenerationConfig
from minibert.core.types import ArrayLike
from minibert.errors import InputError, NotFiniteError
from minibert.generation import beams, decoding, speculation
from minibert.generation.decoding import Plan, Prompt, Rules
from minibert.generation.planning import (
    Inputs,
    check_assistant,
    given_prompts,
    negative_prompts,
    prepare,
)
from minibert.generation.stepping import Streamer, check_streamer, put_steps, search, steps
from minibert.generation.stopping import AllowedTokens, Decisions, StoppingCriterion
from minibert.models.base import PretrainedModel
from minibert.models.compilation import program, shared
from minibert.models.outputs import GenerateOutput
from minibert.sharding.placement import committed_device

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Options that can ban every next token of a text.
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
    input_ids: ArrayLike | None = None,
    attention_mask: ArrayLike | None = None,
    *,
    generation_config: GenerationConfig | None = None,
    key: Array | None = None,
    inputs_embeds: ArrayLike | None = None,
    token_type_ids: ArrayLike | None = None,
    encoder_hidden_states: ArrayLike | None = None,
    encoder_attention_mask: ArrayLike | None = None,
    negative_prompt_ids: ArrayLike | None = None,
    negative_prompt_attention_mask: ArrayLike | None = None,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    stopping_criteria: StoppingCriterion | Sequence[StoppingCriterion] | None = None,
    prefix_allowed_tokens_fn: AllowedTokens | None = None,
    streamer: Streamer | None = None,
    assistant_model: PretrainedModel | None = None,
    **options: Any,
) -> np.ndarray | GenerateOutput:
    """Generates continuations of prompts.

    Args:
        model: a `GPT2LMHeadModel`, or a `BertLMHeadModel` that is a decoder, in evaluation mode.
        input_ids: `(batch, seq)` token ids, shorter prompts padded on the left; or a list of lists
            of different lengths. Without it and `inputs_embeds`, texts begin with `bos_token_id`.
        attention_mask: `(batch, seq)`, 1 for a token and 0 for padding. By default pad tokens are
            treated as padding, unless the pad token is also an end token.
        generation_config: a `GenerationConfig`. Fields that it leaves unset are taken from the
            checkpoint's generation_config.json.
        key: a random key (`jax.random.key(0)`), required for sampling. Row `i` samples with
            `fold_in(key, i)`, independently of the other rows.
        inputs_embeds: `(batch, seq, embedding_size)` embeddings of the prompts, instead of
            `input_ids`. The texts returned are then the generated tokens alone.
        token_type_ids: `(batch, seq)`; generated tokens have the type of a prompt's last token.
        encoder_hidden_states: `(batch, encoder_seq, hidden)` for cross-attention.
        encoder_attention_mask: `(batch, encoder_seq)`, 0 at the encoder's padding.
        negative_prompt_ids: `(batch, seq)` or `(1, seq)` prompts from which the option
            `guidance_scale` moves the texts away, in the forms of `input_ids`; by default the last
            token of each prompt.
        negative_prompt_attention_mask: `(batch, seq)`, 0 at their padding.
        tokenizer: the model's tokenizer, required for `stop_strings`.
        stopping_criteria: a function or a list of them, called after each step with the texts,
            `(rows, length)` ids, and the processed scores of all steps if `output_scores` is set,
            else None. They return whether each text stops, or all do.
        prefix_allowed_tokens_fn: a function that is called before each step with the number of the
            prompt and a text, `(length,)` ids, and returns the ids that may follow.
        streamer: an object whose `put` receives the prompts and then the tokens of each step, and
            whose `end` is called after the last one.
        assistant_model: a smaller model with the same vocabulary, which proposes
            `num_assistant_tokens` at a time, so that `model` runs less often. The texts are those
            that `model` generates without it.
        options: fields of `GenerationConfig` that override the config's: `max_new_tokens=64`,
            `do_sample=True, temperature=0.7`, `num_beams=4`, …

    With `stopping_criteria`, `prefix_allowed_tokens_fn`, `streamer`, or the options `stop_strings`
    or `max_time`, a program is called for each token, as in `stream`. Of these, beams can be
    combined only with `prefix_allowed_tokens_fn`; `assistant_model` and the option
    `prompt_lookup_num_tokens` with none.

    Returns:
        `(batch × num_return_sequences, seq + generated)` ids, prompts included; shorter texts are
        padded with the pad token on the right. With `return_dict_in_generate=True`, a
        `GenerateOutput`.

    Raises:
        InputError: before any computation, if prompts are empty, all padding, out of range or too
            long, options are unknown or contradict each other, or arguments are traced (the call
            is inside `jax.jit`). During generation, if the options ban every next token of a text.
        NotFiniteError: if logits are NaN or infinite and `remove_invalid_values` is off.
    """
    config = _config_of_call(model, generation_config, options)
    decided = (stopping_criteria, prefix_allowed_tokens_fn, config.stop_strings, config.max_time)
    decisions = None
    if any(one is not None for one in decided):
        decisions = Decisions.of_call(
            config, tokenizer, stopping_criteria, prefix_allowed_tokens_fn
        )
    if streamer is not None:
        check_streamer(streamer)
    if config.num_beams > 1 and (streamer is not None or (decisions and decisions.criteria)):
        raise InputError(
            "num_beams: expected 1 with stop_strings, max_time, stopping_criteria or streamer, "
            f"found {config.num_beams}"
        )
    inputs = Inputs(
        input_ids,
        attention_mask,
        inputs_embeds,
        token_type_ids,
        encoder_hidden_states,
        encoder_attention_mask,
        negative_prompt_ids,
        negative_prompt_attention_mask,
    )
    call = _checked_call(model, inputs, key, config, assistant_model)
    texts = _texts(call.prompts)
    if call.plan.proposed and (decisions or streamer is not None):
        raise InputError(
            "assistant_model, prompt_lookup_num_tokens: expected None with stop_strings, max_time, "
            "stopping_criteria, prefix_allowed_tokens_fn or streamer, which decide on every token"
        )
    if config.num_beams > 1 and decisions:
        found = search(call.program, call.arguments, texts, call.plan.copies, decisions)
        output = _best(found, call.prompts, config, decisions)
    elif config.num_beams > 1:
        output = _best(call.program(beams.search)(*call.arguments), call.prompts, config)
    elif decisions or streamer is not None:
        state = put_steps(streamer, texts, _steps_of(call, config, decisions))
        output = _written(state, call.prompts, config)
    elif call.plan.proposed:
        state = call.program(speculation.run)(*call.arguments, assistant_model)
        output = _written(state, call.prompts, config)
    else:
        output = _written(call.program(decoding.run)(*call.arguments), call.prompts, config)
    return output if config.return_dict_in_generate else output.sequences


def stream(
    model: PretrainedModel,
    input_ids: ArrayLike | None = None,
    attention_mask: ArrayLike | None = None,
    *,
    generation_config: GenerationConfig | None = None,
    key: Array | None = None,
    inputs_embeds: ArrayLike | None = None,
    token_type_ids: ArrayLike | None = None,
    encoder_hidden_states: ArrayLike | None = None,
    encoder_attention_mask: ArrayLike | None = None,
    negative_prompt_ids: ArrayLike | None = None,
    negative_prompt_attention_mask: ArrayLike | None = None,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    stopping_criteria: StoppingCriterion | Sequence[StoppingCriterion] | None = None,
    prefix_allowed_tokens_fn: AllowedTokens | None = None,
    **options: Any,
) -> Iterator[np.ndarray]:
    """Generates continuations of prompts and yields each token as soon as it is generated.

    Takes the arguments of `generate`, except beams, `streamer` and `assistant_model`, and yields
    `(batch × num_return_sequences,)` ids at each step: one by one, the columns that `generate`
    would return after the prompts. Arguments are checked when the function is called, not at the
    first token.

    Raises:
        InputError: as `generate`; or if `num_beams`, `output_scores`, `output_logits` or
            `prompt_lookup_num_tokens` is set.
        NotFiniteError: as `generate`, at the step at which the logits are not finite.
    """
    config = _config_of_call(model, generation_config, options)
    for name in ("num_beams", "output_scores", "output_logits", "prompt_lookup_num_tokens"):
        if getattr(config, name) != DEFAULTS[name]:
            expected = f"expected {DEFAULTS[name]!r}; use generate instead"
            raise InputError(f"{name}: not supported by stream; {expected}")
    decisions = Decisions.of_call(config, tokenizer, stopping_criteria, prefix_allowed_tokens_fn)
    inputs = Inputs(
        input_ids,
        attention_mask,
        inputs_embeds,
        token_type_ids,
        encoder_hidden_states,
        encoder_attention_mask,
        negative_prompt_ids,
        negative_prompt_attention_mask,
    )
    call = _checked_call(model, inputs, key, config)
    return (tokens for tokens, _ in _steps_of(call, config, decisions))


def _steps_of(
    call: "_Call", config: GenerationConfig, decisions: Decisions | None
) -> Iterator[tuple[np.ndarray, decoding.State]]:
    def check(faults: np.ndarray) -> None:
        _check_rows(faults, len(call.prompts.ids), config, decisions)

    texts = _texts(call.prompts)
    return steps(call.program, call.arguments, texts, call.plan.copies, decisions, check)


def _check_rows(
    faults: np.ndarray, batch: int, config: GenerationConfig, decisions: Decisions | None = None
) -> None:
    """Raises an error if a row has no next token. Every prompt has the same number of rows."""
    if not faults.any():
        return
    row = int(np.flatnonzero(faults)[0])
    prompt = row * batch // len(faults)
    if faults[row] == decoding.NOT_FINITE:
        raise NotFiniteError(
            f"model: its logits for row {prompt} of input_ids are not finite; a weight is NaN or "
            "infinite, or a value overflowed the dtype in which the model computes"
        )
    raise InputError(
        f"input_ids: row {prompt}: the options ban every next token of its text "
        f"({_bans(config, decisions)}); ban fewer tokens, or generate fewer"
    )


def _bans(config: GenerationConfig, decisions: Decisions | None = None) -> str:
    names = [name for name in BANS if getattr(config, name) != DEFAULTS[name]]
    if decisions is not None and decisions.allowed is not None:
        names.append("prefix_allowed_tokens_fn")
    return ", ".join(names)


class _Call(NamedTuple):
    """The validated arguments of a call of `generate` or `stream`.

    Attributes:
        prompts: the prompts as they were passed.
        plan: the static part of the program, together with the model's structure, `treedef`.
        arguments: the inputs of the program: the model's leaves, the padded prompts and the rules.
    """

    prompts: Prompt
    plan: Plan
    treedef: Any
    arguments: tuple[list[Any], Prompt, Rules]

    def program(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """Returns `function` compiled for the model and the call's plan."""
        shapes = tuple(map(jax.typeof, jax.tree.leaves(self.arguments[1:])))
        return program(function, self.treedef, self.plan, shapes=shapes, **options)


def _config_of_call(
    model: PretrainedModel, config: GenerationConfig | None, options: dict[str, Any]
) -> GenerationConfig:
    if not getattr(model, "generates", False):
        name = type(model).__name__
        raise InputError(f"model: {name} cannot generate: it returns no next-token logits")
    if not model.config.is_decoder:
        raise InputError("model: expected a decoder, found config.is_decoder=False")
    return GenerationConfig.of_call(model.config, config, options)


def _checked_call(
    model: PretrainedModel,
    inputs: Inputs,
    key: Array | None,
    config: GenerationConfig,
    assistant: PretrainedModel | None = None,
) -> _Call:
    leaves, treedef = jax.tree.flatten(model)
    treedef = shared(treedef)
    arrays = jax.tree.leaves((leaves, inputs, key))
    if any(isinstance(array, jax.core.Tracer) for array in arrays):
        raise InputError(
            "generate, stream: cannot be called inside jax.jit: they compile their own programs "
            "and return NumPy arrays; expected a call outside jax.jit, found traced arguments"
        )
    prompts = given_prompts(model, inputs, config)
    negative = negative_prompts(model, inputs, prompts, config)
    if assistant is not None:
        check_assistant(model, assistant, inputs, config)
    plan, rules, prompt = prepare(model, prompts, config, key, negative, assistant)
    committed = getattr(leaves[0], "committed", False)  # else to JAX's default device
    device = committed_device(leaves[0]) if committed else None
    return _Call(prompts, plan, treedef, (leaves, *jax.device_put((prompt, rules), device)))


def _written(done: decoding.State, given: Prompt, config: GenerationConfig) -> GenerateOutput:
    done = jax.device_get(done)
    _check_rows(done.faults, len(given.ids), config)
    steps, start = int(done.step), done.tokens.shape[1] - done.log_probs.shape[1]
    return GenerateOutput(
        sequences=_continued(given, done.tokens[:, start : start + steps]),
        log_probs=np.array(done.log_probs)[:, :steps],
        **_by_step(done.records, steps),
    )


def _best(
    found: beams.Search, given: Prompt, config: GenerationConfig, decisions: Decisions | None = None
) -> GenerateOutput:
    several = config.num_return_sequences

    def best(texts: np.ndarray) -> np.ndarray:
        return np.array(texts)[:, :several].reshape(-1, *texts.shape[2:])

    found = jax.device_get(found)
    _check_rows(found.faults, len(given.ids), config, decisions)
    for row, ended in enumerate(found.ended[:, :several]):
        if not ended.all():
            raise InputError(
                f"input_ids: row {row}: expected {several} texts, found {ended.sum()}: the "
                f"options ban all other tokens ({_bans(config, decisions)}); ban fewer, or request "
                "fewer texts or tokens"
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


def _texts(given: Prompt) -> np.ndarray:
    """Returns the ids that precede the generated ones, `(batch, seq)`; none after embeddings."""
    return given.ids if given.inputs_embeds is None else given.ids[:, :0]


def _continued(given: Prompt, texts: np.ndarray) -> np.ndarray:
    """Returns the prompts as they were passed, each followed by its one or several texts."""
    ids = np.repeat(_texts(given), len(texts) // len(given.ids), axis=0)
    return np.concatenate([ids, texts], axis=1, dtype=np.int32)


def _by_step(records: dict[str, np.ndarray], steps: int) -> dict[str, Any]:
    return {n: tuple(array.swapaxes(0, 1)[:steps]) for n, array in records.items()}
