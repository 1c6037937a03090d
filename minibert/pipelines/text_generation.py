"""Text generation; the reference is transformers' `pipelines/text_generation.py`."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from jax import Array

from minibert.checkpoint.generation_config import GenerationConfig
from minibert.core.checks import check_text, text_list
from minibert.errors import InputError, shown
from minibert.generation.api import generate, stream
from minibert.generation.sampling import checked_key
from minibert.generation.stepping import Streamer, check_streamer
from minibert.generation.stopping import AllowedTokens, Decisions, StoppingCriterion, StopStrings
from minibert.models.base import ModelClass, Names
from minibert.models.outputs import GenerateOutput
from minibert.models.registry import task_classes
from minibert.pipelines.base import TOKENIZING, Pipeline, Shares
from minibert.pipelines.batches import Arrays, length
from minibert.pipelines.chats import answered, check_chat, continues, is_message
from minibert.pipelines.options import accepted
from minibert.pipelines.streaming import Pieces, collected, stopped
from minibert.text.batching import Batch, padded
from minibert.text.tokenizer import panics_as_errors

# options of `forward` that determine the config of a call
SETTINGS = ("key", "generation_config", "max_new_tokens", "max_length")
HOST = {"prefix_allowed_tokens_fn", "stopping_criteria", "streamer"}  # functions of one text

NEW_TOKENS = 256  # transformers' defaults where neither call nor checkpoint sets a value
TEMPERATURE = 0.7


class TextGenerationPipeline(Pipeline):
    """Generates texts that continue a prompt, or a chat.

    An answer is a list of dicts, one for each of `num_return_sequences`: `generated_text`, the
    prompt and its continuation, or with `return_full_text=False` only the continuation; or, with
    `return_tensors=True`, `generated_token_ids`. With `return_dict_in_generate=True` it also has
    the fields of a `GenerateOutput` that were requested and concern one text, as lists.

    A chat is a list of messages, `{"role": "user", "content": "…"}`, which the tokenizer's template
    converts to a prompt. Its `generated_text` is the chat with the answer as one more message. If
    the last message is the assistant's, it is continued (or as `continue_final_message` says).
    `tools` and `documents` are passed to the template.

    All options of `minibert.generate` are options here: `max_new_tokens` (256 by default, if the
    checkpoint's generation_config.json does not set it), `num_beams`, …. With a `key`
    (`jax.random.key(0)`) tokens are sampled, by default at a temperature of 0.7; without one the
    most probable is chosen. Text number `i` of a list is sampled with `fold_in(key, i)`.

    More options: `stop_strings` (or `stop_sequence`), one or more texts, of which the first to be
    complete ends a continuation; `callback`, a function that is called with each new piece of
    text, for a single input; `prefix`, a text before the prompt that the answer does not include;
    `truncation=True` (or `handle_long_generation="hole"`), to truncate long prompts on the left;
    `add_special_tokens`, `skip_special_tokens`, `clean_up_tokenization_spaces`.
    """

    task = "text-generation"
    models: ClassVar[tuple[ModelClass, ...]] = task_classes("text-generation")
    open_stage: ClassVar[str | None] = "forward"
    by_token: ClassVar[Names] = ()
    decoder: ClassVar[bool] = True

    def __call__(self, inputs: object, **options: Any) -> Any:
        """Continues a text or a chat, each of a list of these, or those of an iterable."""
        if isinstance(inputs, list) and inputs and is_message(inputs[0]):
            inputs = tuple(inputs)  # one chat, not a list of inputs
        given = self._shares(options)["forward"]
        callback = given.get("callback")
        if callback is not None:
            if not callable(callback):
                found = shown(callback)
                raise InputError(f"callback: expected a function of a text, found {found}")
            if not isinstance(inputs, str | tuple):
                raise InputError(f"callback: expected a single text, found {shown(inputs)}")
        self._check(given)
        return super().__call__(inputs, **options)

    def _check(self, given: Mapping[str, Any]) -> None:
        """Checks the options of `forward` before prompts are read, which may be too long."""
        own = accepted(type(self), "forward") - {*SETTINGS}
        settings = self._settings(**{name: given[name] for name in given if name not in own})
        stops = _stops(given.get("stop_strings"), given.get("stop_sequence"))
        callback, streamer = given.get("callback"), given.get("streamer")
        check_streamer(streamer)
        if stops or callback is not None:
            _check_alone(settings, settings.num_return_sequences, callback, streamer)
        criteria, allowed = given.get("stopping_criteria"), given.get("prefix_allowed_tokens_fn")
        Decisions.of_call(settings.replace(stop_strings=None), None, criteria, allowed)
        if settings.do_sample:
            checked_key(given.get("key"))

    def preprocess(
        self,
        inputs: Any,
        *,
        prefix: str = "",
        add_special_tokens: bool = True,
        truncation: bool = False,
        handle_long_generation: str | None = None,
        generation_config: GenerationConfig | None = None,
        max_new_tokens: int | None = None,
        max_length: int | None = None,
        continue_final_message: bool | None = None,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Mapping[str, str]] | None = None,
    ) -> dict[str, Any]:
        """Returns a prompt's tokens as arrays `(1, seq)`, and the prompt as `prompt_text`.

        An empty prompt becomes the BOS token.
        """
        if handle_long_generation not in (None, "hole"):
            found = shown(handle_long_generation)
            raise InputError(f'handle_long_generation: expected None or "hole", found {found}')
        check_text(prefix)
        if isinstance(inputs, list | tuple):
            check_chat(inputs)
            encoded = self._chat(
                inputs,
                continue_final_message=continues(inputs, continue_final_message),
                tools=tools,
                documents=documents,
            )
        else:
            check_text(inputs)
            encoded = self.encoded(prefix + inputs, add_special_tokens=add_special_tokens)
        arrays = {name: encoded[name] for name in ("input_ids", "attention_mask")}
        settings = self._settings(
            generation_config, max_new_tokens=max_new_tokens, max_length=max_length
        )
        if not encoded["input_ids"].size:
            if (begin := settings.bos_token_id) is None:
                raise InputError("expected a prompt or a bos_token_id, found neither")
            arrays = {"input_ids": np.array([[begin]]), "attention_mask": np.array([[1]])}
        if truncation or handle_long_generation:
            new, positions = _new_tokens(settings, 0), self.longest_cut
            if (kept := positions - new) < 1:
                found = f"{new} new tokens leave no position for a prompt"
                raise InputError(f"{found}; there are {positions} positions")
            arrays = {name: array[:, -kept:] for name, array in arrays.items()}
        prompt = length(arrays)
        new = _new_tokens(settings, prompt)
        if prompt + new > self.positions:
            name = self.model.config.max_tokens_name
            raise InputError(
                f"{prompt} tokens and {new} new ones; expected at most {self.positions} ({name}); "
                "request fewer with max_new_tokens, or truncate the prompt with truncation=True"
            ).advising("max_new_tokens", "truncation=True")
        return {**arrays, "prompt_text": inputs}

    def forward(
        self,
        inputs: Arrays,
        *,
        key: Array | None = None,
        callback: Callable[..., None] | None = None,
        stop_strings: str | Sequence[str] | None = None,
        stop_sequence: str | None = None,
        generation_config: GenerationConfig | None = None,
        max_new_tokens: int | None = None,
        max_length: int | None = None,
        skip_special_tokens: bool = True,
        clean_up_tokenization_spaces: bool | None = None,
        stopping_criteria: StoppingCriterion | Sequence[StoppingCriterion] | None = None,
        prefix_allowed_tokens_fn: AllowedTokens | None = None,
        streamer: Streamer | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Generates continuations of a batch of prompts, padded on the left.

        Returns:
            The inputs; `new_tokens` `(rows, num_return_sequences, new)`, padded on the right; their
            lengths, `new_lengths` `(rows, num_return_sequences)`; and, in `recorded`, the requested
            fields of a `GenerateOutput`, `(rows, num_return_sequences, …)`.
        """
        given = {"max_new_tokens": max_new_tokens, "max_length": max_length, **options}
        settings = self._settings(generation_config, key, **given)
        ids, mask = jax.device_get((inputs["input_ids"], inputs["attention_mask"]))
        new = _new_tokens(settings, int(mask.sum(axis=1).max()))
        settings = settings.replace(max_new_tokens=new)
        shape = len(ids), settings.num_return_sequences
        rows, stops = math.prod(shape), _stops(stop_strings, stop_sequence)
        host: dict[str, Any] = {"prefix_allowed_tokens_fn": prefix_allowed_tokens_fn}
        host["stopping_criteria"] = stopping_criteria
        if settings.stop_strings is not None:  # the checkpoint's
            if not stops:
                host["stopping_criteria"] = self._with_stops(settings, stopping_criteria)
            settings = settings.replace(stop_strings=None)
        recorded: dict[str, Any] = {}
        if stops or callback is not None:
            _check_alone(settings, rows, callback, streamer)
            steps = stream(self.model, ids, mask, generation_config=settings, key=key, **host)
            decode = self._decoder(skip_special_tokens, clean_up_tokenization_spaces)
            by_bytes = self._by_bytes and not clean_up_tokenization_spaces
            pieces = None if callback is None else Pieces(decode, callback, by_bytes)
            texts = collected(steps, rows, settings.end_ids, stops, decode, pieces)
        else:
            host["streamer"] = streamer
            found = generate(self.model, ids, mask, generation_config=settings, key=key, **host)
            if isinstance(found, GenerateOutput):
                recorded, found = _recorded(found, shape), found.sequences
            texts = [_ended(text, settings.end_ids) for text in found[:, ids.shape[1] :]]
        lengths = np.array([len(text) for text in texts])
        tokens = padded(texts, Batch(np.arange(rows), rows, int(lengths.max())))
        return {
            **inputs,
            "new_tokens": tokens.reshape(*shape, -1),
            "new_lengths": lengths.reshape(shape),
            "recorded": recorded,
        }

    def postprocess(
        self,
        outputs: Arrays,
        *,
        return_full_text: bool = True,
        return_tensors: bool = False,
        skip_special_tokens: bool = True,
        clean_up_tokenization_spaces: bool | None = None,
        stop_strings: str | Sequence[str] | None = None,
        stop_sequence: str | None = None,
        continue_final_message: bool | None = None,
    ) -> list[dict[str, Any]]:
        """Returns a prompt's texts, given `new_tokens`, `new_lengths` and `recorded`."""
        stops = _stops(stop_strings, stop_sequence)
        decode = self._decoder(skip_special_tokens, clean_up_tokenization_spaces)
        prompt = np.asarray(outputs["input_ids"])[0].tolist()
        before = outputs["prompt_text"]
        answers: list[dict[str, Any]] = []
        lengths = outputs["new_lengths"][0].tolist()
        for number, tokens in enumerate(outputs["new_tokens"][0]):
            new = tokens[: lengths[number]].tolist()
            if return_tensors:
                answers.append({"generated_token_ids": prompt + new})
                continue
            text: Any = decode(new)
            text = text[: stopped(text, stops)]
            if return_full_text and isinstance(before, str):
                text = before + text
            elif return_full_text:
                text = answered(before, text, continue_final_message)
            answers.append({"generated_text": text})
            for name, arrays in outputs["recorded"].items():
                array = arrays[0, number]  # a number, or an array of all steps of the batch
                answers[-1][name] = (array[: max(lengths)] if array.ndim else array).tolist()
        return answers

    def _chat(self, messages: Sequence[Any], **options: Any) -> dict[str, np.ndarray]:
        """Returns a chat as the tokenizer's template converts it, as arrays `(1, seq)`."""
        try:
            with TOKENIZING, panics_as_errors():
                encoded: Any = self.tokenizer.apply_chat_template(
                    list(messages),
                    add_generation_prompt=not options["continue_final_message"],
                    return_dict=True,
                    **options,
                )
        except Exception as reason:  # a template can raise any error
            raise InputError(
                f"the tokenizer's template rejects the chat ({shown(str(reason))})"
            ) from None
        return {name: np.asarray(row)[None] for name, row in encoded.items()}

    def _with_stops(
        self,
        settings: GenerationConfig,
        criteria: StoppingCriterion | Sequence[StoppingCriterion] | None,
    ) -> list[Any]:
        with TOKENIZING:
            stop = StopStrings(settings.stop_strings or (), self.tokenizer)
        given = [] if criteria is None else criteria
        return [stop, *(given if isinstance(given, list | tuple) else [given])]

    def _settings(
        self,
        generation_config: GenerationConfig | None = None,
        key: Array | None = None,
        **options: Any,
    ) -> GenerationConfig:
        """Returns the config of a call as `generate` does, with the pipeline's temperature."""
        lengths = ("max_new_tokens", "max_length")
        options = {n: v for n, v in options.items() if v is not None or n not in lengths}
        if key is not None:
            options = {"do_sample": True, **options}
        settings = GenerationConfig.of_call(self.model.config, generation_config, options)
        if settings.do_sample and "temperature" in settings.unset:
            settings = settings.replace(temperature=TEMPERATURE)
        return settings

    def _plan(self, rows: Sequence[Arrays], shares: Shares) -> list[Batch]:
        """Batches prompts by length, or one by one where results would depend on the batch."""
        known = (*SETTINGS, "do_sample", "max_time", "repetition_penalty", "prompt_ignore_length")
        given = shares["forward"]
        settings = self._settings(**{name: given[name] for name in known if name in given})
        lengths = [length(row) for row in rows]
        by_length = settings.max_new_tokens is None and settings.max_length is not None
        by_place = settings.prompt_ignore_length is not None  # which counts padding
        alone = settings.do_sample or by_length or by_place or settings.max_time
        if alone or given.keys() & HOST:
            return [Batch(np.array([row]), 1, size) for row, size in enumerate(lengths)]
        new = _new_tokens(settings, max(lengths))
        whole = [min(size + new, self.positions) for size in lengths]
        batches = self._batches(whole, shares)
        return [batch._replace(length=max(lengths[i] for i in batch.indices)) for batch in batches]

    def _through(
        self, arrays: dict[str, Any], numbers: Sequence[int], options: Mapping[str, Any]
    ) -> Arrays:
        options = dict(options)
        if isinstance(key := options.get("key"), jax.Array):
            checked_key(key)
            options["key"] = jax.random.fold_in(key, jax.device_put(np.uint32(numbers[0])))
        return self.forward(arrays, **options)

    def _decoder(self, skip: bool, clean_up: bool | None) -> Any:
        return functools.partial(
            self.tokenizer.decode, skip_special_tokens=skip, clean_up_tokenization_spaces=clean_up
        )

    @property
    def _left(self) -> bool:
        return True

    @property
    def _by_bytes(self) -> bool:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        return type(getattr(backend, "decoder", None)).__name__ == "ByteLevel"


def _check_alone(
    settings: GenerationConfig,
    rows: int,
    callback: Callable[..., None] | None,
    streamer: Streamer | None,
) -> None:
    """Checks what else is requested with a callback or stop strings."""
    if settings.num_beams > 1:
        raise InputError("num_beams: expected 1 with a callback or stop_strings")
    if callback is not None and rows > 1:
        raise InputError(f"callback: expected a single text, found {rows}")
    if streamer is not None:
        raise InputError("streamer: expected None with a callback or stop_strings")


def _new_tokens(settings: GenerationConfig, prompt: int) -> int:
    """Returns the maximum number of new tokens after a prompt of `prompt` tokens."""
    if settings.max_new_tokens is None and settings.max_length is None:
        return NEW_TOKENS
    return settings.limit(prompt)


def _ended(text: np.ndarray, ends: Sequence[int]) -> np.ndarray:
    """Returns a text up to and including its first EOS token."""
    found = np.flatnonzero(np.isin(text, ends))
    return text[: found[0] + 1] if found.size else text


def _recorded(found: GenerateOutput, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Returns the fields of an output that concern single texts, `(rows, texts, …)` each.

    Scores of beams concern none, and log-probabilities are not a field in transformers.
    """
    arrays: dict[str, Any] = {}
    if found.sequences_scores is None:
        for name in ("scores", "logits"):
            if (steps := getattr(found, name)) is not None:
                arrays[name] = np.stack(steps, axis=1)
    else:
        arrays = {"sequences_scores": found.sequences_scores, "beam_indices": found.beam_indices}
    return {name: np.reshape(array, (*shape, *array.shape[1:])) for name, array in arrays.items()}


def _stops(stop_strings: str | Sequence[str] | None, stop_sequence: str | None) -> list[str]:
    if stop_strings is not None and stop_sequence is not None:
        raise InputError("stop_sequence: an alias of stop_strings; expected only one of them")
    given = stop_strings if stop_sequence is None else stop_sequence
    stops = [] if given is None else text_list("stop_strings", given, ordered=False)
    if "" in stops:
        raise InputError("stop_strings: expected non-empty texts, found an empty one")
    return stops
