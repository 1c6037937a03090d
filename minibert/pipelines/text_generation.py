"""Text generation; the reference is transformers' `pipelines/text_generation.py`."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from jax import Array

from minibert.core.checks import check_text, text_list
from minibert.errors import InputError, shown
from minibert.generation.api import generate, stream
from minibert.generation.config import GenerationConfig
from minibert.models.base import ModelClass, Names
from minibert.models.outputs import GenerateOutput
from minibert.models.registry import task_classes
from minibert.pipelines.base import Pipeline, Shares
from minibert.pipelines.batches import Arrays, length
from minibert.pipelines.streaming import Pieces, collected, stopped
from minibert.text.batching import Batch, padded, plan

NEW_TOKENS = 256  # transformers' defaults where neither call nor checkpoint sets a value
TEMPERATURE = 0.7


class TextGenerationPipeline(Pipeline):
    """Generates texts that continue a prompt.

    An answer is a list of dicts, one for each of `num_return_sequences`: `generated_text`, the
    prompt and its continuation, or with `return_full_text=False` only the continuation; or, with
    `return_tensors=True`, `generated_token_ids`.

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

    def __call__(self, inputs: object, **options: Any) -> Any:
        """Continues a text, each of a list of texts, or those of an iterable."""
        given = self._shares(options)["forward"]
        callback = given.get("callback")
        if callback is not None:
            if not callable(callback):
                found = shown(callback)
                raise InputError(f"callback: expected a function of a text, found {found}")
            if not isinstance(inputs, str):
                raise InputError(f"callback: expected a single text, found {shown(inputs)}")
        _stops(given.get("stop_strings"), given.get("stop_sequence"))  # validates them early
        return super().__call__(inputs, **options)

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
    ) -> dict[str, Any]:
        """Returns a prompt's tokens as arrays `(1, seq)`, and the prompt as `prompt_text`.

        An empty prompt becomes the BOS token.
        """
        if handle_long_generation not in (None, "hole"):
            found = shown(handle_long_generation)
            raise InputError(f'handle_long_generation: expected None or "hole", found {found}')
        check_text(inputs)
        check_text(prefix)
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
        **options: Any,
    ) -> dict[str, Any]:
        """Generates continuations of a batch of prompts, padded on the left.

        Returns:
            The inputs; `new_tokens` `(rows, num_return_sequences, new)`, padded on the right; and
            their lengths, `new_lengths` `(rows, num_return_sequences)`.
        """
        given = {"max_new_tokens": max_new_tokens, "max_length": max_length, **options}
        settings = self._settings(generation_config, key, **given)
        ids, mask = jax.device_get((inputs["input_ids"], inputs["attention_mask"]))
        new = _new_tokens(settings, int(mask.sum(axis=1).max()))
        settings = settings.replace(max_new_tokens=new)
        shape = len(ids), settings.num_return_sequences
        rows, stops = math.prod(shape), _stops(stop_strings, stop_sequence)
        if stops or callback is not None:
            if settings.num_beams > 1:
                raise InputError("num_beams: expected 1 with a callback or stop_strings")
            if callback is not None and rows > 1:
                raise InputError(f"callback: expected a single text, found {rows}")
            steps = stream(self.model, ids, mask, generation_config=settings, key=key)
            decode = self._decoder(skip_special_tokens, clean_up_tokenization_spaces)
            by_bytes = self._by_bytes and not clean_up_tokenization_spaces
            pieces = None if callback is None else Pieces(decode, callback, by_bytes)
            texts = collected(steps, rows, settings.end_ids, stops, decode, pieces)
        else:
            found = generate(self.model, ids, mask, generation_config=settings, key=key)
            sequences = found.sequences if isinstance(found, GenerateOutput) else found
            texts = [_ended(text, settings.end_ids) for text in sequences[:, ids.shape[1] :]]
        lengths = np.array([len(text) for text in texts])
        tokens = padded(texts, Batch(np.arange(rows), rows, int(lengths.max())))
        return {
            **inputs,
            "new_tokens": tokens.reshape(*shape, -1),
            "new_lengths": lengths.reshape(shape),
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
    ) -> list[dict[str, Any]]:
        """Returns a prompt's texts, given `new_tokens` and `new_lengths`."""
        stops = _stops(stop_strings, stop_sequence)
        decode = self._decoder(skip_special_tokens, clean_up_tokenization_spaces)
        prompt = np.asarray(outputs["input_ids"])[0].tolist()
        before = outputs["prompt_text"] if return_full_text else ""
        answers: list[dict[str, Any]] = []
        for tokens, count in zip(outputs["new_tokens"][0], outputs["new_lengths"][0], strict=True):
            new = tokens[:count].tolist()
            if return_tensors:
                answers.append({"generated_token_ids": prompt + new})
            else:
                text = decode(new)
                answers.append({"generated_text": before + text[: stopped(text, stops)]})
        return answers

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
        known = ("key", "generation_config", "max_new_tokens", "max_length", "do_sample")
        given = shares["forward"]
        settings = self._settings(**{name: given[name] for name in known if name in given})
        lengths = [length(row) for row in rows]
        by_length = settings.max_new_tokens is None and settings.max_length is not None
        if settings.do_sample or by_length:
            return [Batch(np.array([row]), 1, size) for row, size in enumerate(lengths)]
        new = _new_tokens(settings, max(lengths))
        whole = [min(size + new, self.positions) for size in lengths]
        batches = plan(whole, self.positions, self._budget)
        return [batch._replace(length=max(lengths[i] for i in batch.indices)) for batch in batches]

    def _through(
        self, arrays: dict[str, Any], numbers: Sequence[int], options: Mapping[str, Any]
    ) -> Arrays:
        options = dict(options)
        if isinstance(key := options.get("key"), jax.Array):
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


def _new_tokens(settings: GenerationConfig, prompt: int) -> int:
    """Returns the maximum number of new tokens after a prompt of `prompt` tokens."""
    if settings.max_new_tokens is None and settings.max_length is None:
        return NEW_TOKENS
    return settings.limit(prompt)


def _ended(text: np.ndarray, ends: Sequence[int]) -> np.ndarray:
    """Returns a text up to and including its first EOS token."""
    found = np.flatnonzero(np.isin(text, ends))
    return text[: found[0] + 1] if found.size else text


def _stops(stop_strings: str | Sequence[str] | None, stop_sequence: str | None) -> list[str]:
    if stop_strings is not None and stop_sequence is not None:
        raise InputError("stop_sequence: an alias of stop_strings; expected only one of them")
    given = stop_strings if stop_sequence is None else stop_sequence
    stops = [] if given is None else text_list("stop_strings", given, ordered=False)
    if "" in stops:
        raise InputError("stop_strings: expected non-empty texts, found an empty one")
    return stops
