"""Generation settings: Hugging Face's `generation_config.json` and the options of a call.

The reference is transformers' `generation/configuration_utils.py` (5.23), and the use that
`generate` in `generation/utils.py` makes of a field. Every field of GenerationConfig in
transformers 4.57 and 5.23 is either implemented (see the class), or refused by name unless its
value has no effect, or does not influence the result.
"""

import dataclasses
import math
import os
from collections.abc import Collection, Mapping
from typing import Any

import jax
from flax.core import FrozenDict

from minibert.checkpoint.config import new_files, read_config
from minibert.checkpoint.files import GENERATION
from minibert.checkpoint.generation_options import (
    BEAMS_ONLY,
    BIASES,
    COUNT,
    DECAY,
    EARLY_STOPPING,
    ELSEWHERE,
    FACTOR,
    INERT,
    MODELS_OWN,
    NUMBER,
    PLACED_TOKENS,
    POSITIVE_SHARE,
    REFUSED,
    SAMPLING_ONLY,
    SECONDS,
    STRINGS,
    TOKEN,
    TOKEN_OR_TOKENS,
    TOKENS,
    WORDS,
    option,
)
from minibert.checkpoint.hub import AnyPath
from minibert.core.fields import PROBABILITY, SIZE, SWITCH, assign, checked, refuse
from minibert.core.strict_json import write_json
from minibert.errors import ConfigError, InputError, UnsupportedConfigError, shown, suggest

DEFAULT_NEW_TOKENS = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """Settings of text generation, with Hugging Face's field names and defaults.

    Lengths are in tokens. A field that is not passed, or is None, is unset: `generate` takes it
    from the checkpoint's own config, or else uses its default. The attribute of an unset field
    holds the default.

    Attributes:
        max_length: maximum length of the prompt, padding included, and the generated text. If
            neither this nor `max_new_tokens` is set, 20 tokens are generated.
        max_new_tokens: maximum number of generated tokens; takes precedence over `max_length`.
        min_length: minimum length of a row's prompt, without padding, and its generated text.
        min_new_tokens: minimum number of generated tokens; takes precedence over `min_length`.
        early_stopping: when beam search stops: `True`, as soon as enough beams have ended; `False`,
            when better ones are unlikely; `"never"`, when none are possible.
        length_penalty: the power of the length by which a beam's log-probability is divided.
        stop_strings: texts, one or more, of which each ends a row with the token that completes it;
            `generate` then needs the tokenizer.
        max_time: seconds after which generation ends, with the token under way. The compilation of
            a program counts.
        do_sample: whether to sample tokens; otherwise the most probable token is chosen.
        guidance_scale: the scale of classifier-free guidance, above 1 to move the texts away from
            the negative prompts; 1 for none.
        num_return_sequences: number of texts for each prompt.
        prompt_lookup_num_tokens: number of tokens that are copied from where a text's last tokens
            occurred before, and checked in one run of the model: fewer runs, the same texts.
        max_matching_ngram_size: how many last tokens are looked up.
        num_assistant_tokens: number of tokens that an `assistant_model` proposes at a time.
        assistant_confidence_threshold: the probability of a token below which it proposes no more.
        presence_penalty, frequency_penalty: not in transformers: see `Processors`.
        forced_decoder_ids: pairs of a position in a row and the token there (transformers 4).
        eos_token_id: the EOS token, or several of them.
        pad_token_id: the token that fills a row after EOS; the first EOS token if None.
        extra: the file's other fields, unchanged. They are ignored in comparisons.
        unset: the names of the unset fields. They are ignored in comparisons.

    `Processors` and `Sampling` describe the other fields.

    Raises:
        ConfigError: if a field has an invalid value, or two fields contradict each other.
    """

    max_length: int | None = option(SIZE)
    max_new_tokens: int | None = option(SIZE)
    min_length: int = option(COUNT, 0)
    min_new_tokens: int | None = option(COUNT)
    early_stopping: bool | str = option(EARLY_STOPPING, False)
    stop_strings: tuple[str, ...] | str | None = option(STRINGS)
    max_time: float | None = option(SECONDS)
    do_sample: bool = option(SWITCH, False)
    num_beams: int = option(SIZE, 1)
    use_cache: bool = option(SWITCH, True)
    temperature: float = option(FACTOR, 1.0)
    top_k: int = option(COUNT, 50)
    top_p: float = option(PROBABILITY, 1.0)
    min_p: float | None = option(PROBABILITY)
    top_h: float | None = option(POSITIVE_SHARE)
    typical_p: float = option(POSITIVE_SHARE, 1.0)
    epsilon_cutoff: float = option(PROBABILITY, 0.0)
    eta_cutoff: float = option(PROBABILITY, 0.0)
    guidance_scale: float = option(NUMBER, 1.0)
    repetition_penalty: float = option(FACTOR, 1.0)
    prompt_ignore_length: int | None = option(COUNT)
    encoder_repetition_penalty: float = option(FACTOR, 1.0)
    presence_penalty: float = option(NUMBER, 0.0)
    frequency_penalty: float = option(NUMBER, 0.0)
    length_penalty: float = option(NUMBER, 1.0)
    no_repeat_ngram_size: int = option(COUNT, 0)
    encoder_no_repeat_ngram_size: int = option(COUNT, 0)
    bad_words_ids: tuple[tuple[int, ...], ...] | None = option(WORDS)
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] | None = option(BIASES)
    renormalize_logits: bool = option(SWITCH, False)
    remove_invalid_values: bool = option(SWITCH, False)
    forced_bos_token_id: int | None = option(TOKEN)
    forced_eos_token_id: int | tuple[int, ...] | None = option(TOKEN_OR_TOKENS)
    forced_decoder_ids: tuple[tuple[int, int], ...] | None = option(PLACED_TOKENS)
    exponential_decay_length_penalty: tuple[int, float] | None = option(DECAY)
    suppress_tokens: tuple[int, ...] | None = option(TOKENS)
    begin_suppress_tokens: tuple[int, ...] | None = option(TOKENS)
    num_return_sequences: int = option(SIZE, 1)
    prompt_lookup_num_tokens: int | None = option(SIZE)
    max_matching_ngram_size: int = option(SIZE, 2)
    num_assistant_tokens: int = option(SIZE, 20)
    assistant_confidence_threshold: float = option(PROBABILITY, 0.4)
    output_scores: bool = option(SWITCH, False)
    output_logits: bool = option(SWITCH, False)
    return_dict_in_generate: bool = option(SWITCH, False)
    pad_token_id: int | None = option(TOKEN)
    bos_token_id: int | None = option(TOKEN)
    eos_token_id: int | tuple[int, ...] | None = option(TOKEN_OR_TOKENS)
    extra: Mapping[str, Any] = dataclasses.field(
        default_factory=FrozenDict, compare=False, repr=False
    )
    unset: frozenset[str] = dataclasses.field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        given = _checked({name: getattr(self, name) for name in OPTIONS})
        kept = {"unset": OPTIONS - given.keys(), "extra": FrozenDict(self.extra)}
        assign(self, {**DEFAULTS, **given, **kept})
        if not self.use_cache:
            raise UnsupportedConfigError("use_cache: False is not implemented (only True)")
        if found := faults(self):
            raise ConfigError("; ".join(found))

    @classmethod
    def from_dict(cls, data: object, where: str = "generation_config") -> "GenerationConfig":
        """Builds a config from the contents of a generation_config.json.

        Fields of a decoding method that is not used are ignored.

        Raises:
            ConfigError: if a field has an invalid value.
            UnsupportedConfigError: if a field requests a feature that is not implemented.
        """
        if not isinstance(data, Mapping):
            raise ConfigError(f"{where}: expected an object of fields, found {type(data).__name__}")
        try:
            refuse({name: plain(value) for name, value in data.items()}, REFUSED)
            # in a file, `use_cache` concerns training; generation always uses a cache
            named = OPTIONS - {"use_cache"}
            extra = {name: data[name] for name in data if name not in named}
            given = {name: data[name] for name in data if name in named}
            return cls(**_checked(given), extra=extra)
        except ConfigError as reason:
            raise type(reason)(f"{where}: {reason}") from None

    @classmethod
    def from_model_config(cls, data: object, where: str = "config") -> "GenerationConfig":
        """Builds a config from a config.json, for a model without a generation_config.json.

        Uses its special tokens and the generation fields that older versions of transformers
        stored there.

        Raises:
            ConfigError, UnsupportedConfigError: as `from_dict`.
        """
        if not isinstance(data, Mapping):
            return cls.from_dict(data, where)  # which refuses it
        known = (OPTIONS | REFUSED.keys()) - MODELS_OWN
        given = {name: data[name] for name in known & data.keys() if data[name] is not None}
        if data.get("force_bos_token_to_be_generated"):
            given["forced_bos_token_id"] = data.get("bos_token_id")
        if given.get("output_scores") or given.get("output_logits"):
            given["return_dict_in_generate"] = True
        return cls.from_dict(given, where)

    @classmethod
    def from_pretrained(
        cls,
        source: AnyPath,
        *,
        revision: str | None = None,
        subfolder: str = "",
        cache_dir: AnyPath | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        **options: Any,
    ) -> "GenerationConfig":
        """Reads a checkpoint's generation_config.json, or else the fields of its config.json.

        Args:
            source: a folder with a config.json, or a repository of the Hub.
            revision: a branch, tag or commit of the repository.
            subfolder: the path of the model in the folder or repository.
            cache_dir: a folder to use instead of the Hub's default cache.
            token: access token for private repositories.
            local_files_only: whether to use only the Hub's cache.
            options: fields that override the checkpoint's.

        Raises:
            SourceError: if there is no such config.
            ConfigError, UnsupportedConfigError: as `from_dict`.
            InputError: as `replace`.
        """
        data, path, generation = read_config(
            source,
            revision=revision,
            subfolder=subfolder,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
        )
        if generation is None:
            config = cls.from_model_config(data, path)
        else:
            config = cls.from_dict(generation, os.path.join(os.path.dirname(path), GENERATION))
        return config.replace(**options) if options else config

    def save_pretrained(self, folder: AnyPath, *, overwrite: bool = False) -> None:
        """Writes generation_config.json into a folder, whose other files are left alone.

        Args:
            folder: the target folder.
            overwrite: whether to replace such a file.

        Raises:
            TargetError: if the folder contains such a file, or cannot be written.
        """
        with new_files(folder, overwrite) as new:
            write_json(self.to_dict(), os.path.join(new, GENERATION))

    @classmethod
    def of_model(cls, config: Any, without: Collection[str] = ()) -> "GenerationConfig":
        """Returns a checkpoint's config, from generation_config.json or else from config.json.

        Special tokens outside the vocabulary are ignored: Hugging Face writes GPT-2's EOS, 50256,
        for every GPT-2, even one with a smaller vocabulary.

        Args:
            config: the model's config.
            without: names of fields to leave unset, whatever the file contains.

        Raises:
            ConfigError, UnsupportedConfigError: as `from_dict`.
        """
        if config.generation is None:
            read, data, where = cls.from_model_config, config.to_dict(), "config.json"
        else:
            read, data, where = cls.from_dict, config.generation, "generation_config.json"
        found = read({name: data[name] for name in data if name not in without}, where)
        for name in ("eos_token_id", "pad_token_id", "bos_token_id"):
            tokens = ids(getattr(found, name))
            known = tuple(token for token in tokens if token < config.vocab_size)
            if known != tokens:
                found = found._with({name: known or None})
        return found

    @classmethod
    def of_call(cls, config: Any, given: Any, options: Mapping[str, Any]) -> "GenerationConfig":
        """Returns the config of one call of `generate`, with transformers' precedence.

        Options of the call take precedence over fields set by the call's config, those over
        fields set by the checkpoint, and those over the defaults.

        Args:
            config: the model's config.
            given: the call's `generation_config`, or None.
            options: the call's options. An unimplemented field, passed with a value that has no
                effect, overrides the checkpoint's.

        Raises:
            InputError: if `given` is not a `GenerationConfig`, or options are unknown or
                contradict each other.
            ConfigError, UnsupportedConfigError: as `from_dict`, for the checkpoint's files.
        """
        if given is not None and not isinstance(given, GenerationConfig):
            raise InputError(
                f"generation_config: expected a GenerationConfig, found {shown(given)}"
            )
        filled = cls.of_model(config, REFUSED.keys() & options.keys())
        if given is not None:
            fields = given._set_fields()
            try:
                filled = filled._with(fields, given.extra)
            except ConfigError as reason:
                raise InputError(
                    f"generation_config: combined with the checkpoint's fields: {reason}"
                ) from None
            if (found := overruled(filled, fields)) and not overruled(given, fields):
                raise InputError("generation_config: " + "; ".join(found))
        return filled.replace(**options)

    def _set_fields(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in sorted(OPTIONS - self.unset)}

    def _with(
        self, changes: Mapping[str, Any], extra: Mapping[str, Any] | None = None
    ) -> "GenerationConfig":
        """Returns a copy with some fields set; None sets a field to its default."""
        fields = _checked({**self._set_fields(), **changes})
        changed = type(self)(**fields, extra={**self.extra, **(extra or {})})
        assign(changed, {"unset": self.unset - changes.keys()})
        return changed

    def replace(self, **options: Any) -> "GenerationConfig":
        """Returns a copy with the options of a call, which must not contradict one another.

        Passing None disables the corresponding logits processor; it does not leave the field
        unset.

        Raises:
            InputError: if an option is unknown, invalid, or contradicts another.
            UnsupportedConfigError: if an option requests a feature that is not implemented.
        """
        for name in options:
            if name in ELSEWHERE:
                raise InputError(f"{name}: not a generation option: {ELSEWHERE[name]}")
            if name not in OPTIONS | INERT | REFUSED.keys():
                raise InputError(f"{name}: not a generation option{suggest(name, OPTIONS)}")
        refuse({name: plain(value) for name, value in options.items()}, REFUSED)
        given = {name: options[name] for name in OPTIONS & options.keys()}
        if given.get("top_k", 0) is None:
            given["top_k"] = 0  # in a file, null is the default
        try:
            config = self._with(given)
        except UnsupportedConfigError:
            raise
        except ConfigError as reason:
            raise InputError(f"{reason}") from None
        asked = {name: getattr(config, name) for name in given if given[name] is not None}
        if found := contradictions(config, asked):
            raise InputError("; ".join(found)).advising("do_sample=True")
        return config

    def to_dict(self) -> dict[str, Any]:
        """Returns the contents of a generation_config.json: `extra` and the fields that are set."""
        fields = self._set_fields().items()
        given = {name: listed(value) for name, value in fields if value is not None}
        return FrozenDict(self.extra).unfreeze() | given

    @property
    def ignored_fields(self) -> tuple[str, ...]:
        """The file's fields that are not in Hugging Face's GenerationConfig."""
        return tuple(sorted(self.extra.keys() - INERT - REFUSED.keys()))

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The EOS tokens."""
        return ids(self.eos_token_id)

    @property
    def padding_id(self) -> int | None:
        """The token that fills a row after EOS; None if there is neither a pad nor an EOS token."""
        if self.pad_token_id is not None:
            return self.pad_token_id
        return next(iter(self.end_ids), None)

    def limit(
        self, prompt: int, positions: int | None = None, name: str = "max_position_embeddings"
    ) -> int:
        """Returns the maximum number of generated tokens.

        Args:
            prompt: the length of the prompts, padding included.
            positions, name: the model's number of positions, which limits the default of 20 tokens,
                and the config field that holds it, for messages.

        Raises:
            InputError: if the prompts leave no position for a new token.
        """
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        if self.max_length is not None:
            name, most = "max_length", self.max_length
        else:
            most = int(min(prompt + DEFAULT_NEW_TOKENS, positions or math.inf))
        if most <= prompt:
            raise InputError(f"{name}: {most}, but the prompt already has {prompt} tokens")
        return most - prompt


DEFAULTS: Mapping[str, Any] = {
    field.name: field.metadata["default"]
    for field in dataclasses.fields(GenerationConfig)
    if "rule" in field.metadata
}
OPTIONS = frozenset(DEFAULTS)


def _checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the validated, normalised fields, without those that are None."""
    found = {name: plain(value) for name, value in given.items()}
    return checked(GenerationConfig, {n: v for n, v in found.items() if v is not None})


def plain(value: Any) -> Any:
    """Converts arrays and lists to tuples, mappings to tuples of pairs, NumPy scalars to Python."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        value = value.items()
    elif not isinstance(value, list | tuple):
        return value
    return tuple(map(plain, value))


def listed(value: object) -> Any:
    """Converts tuples to lists, also those inside."""
    return list(map(listed, value)) if isinstance(value, tuple) else value


def ids(tokens: object) -> tuple[int, ...]:
    """Returns all ids in None, an id, or tuples of ids nested to any depth."""
    return tuple(jax.tree.leaves(tokens))


def faults(config: GenerationConfig) -> list[str]:
    """Returns the contradictions between fields, whatever their source."""
    found, several, beams = [], config.num_return_sequences, config.num_beams
    if several > beams > 1:
        found.append(f"num_return_sequences: {several}, but num_beams is {beams}")
    elif several > beams and not config.do_sample:
        found.append(
            f"num_return_sequences: {several}, but greedy decoding returns one text: "
            "more need do_sample=True or num_beams"
        )
    guided, looked_up = config.guidance_scale, config.prompt_lookup_num_tokens
    for name, value in (("guidance_scale", guided), ("prompt_lookup_num_tokens", looked_up)):
        if beams > 1 and value != DEFAULTS[name]:
            found.append(f"{name}: {value}, which needs num_beams=1, but it is {beams}")
    if looked_up is not None and guided != DEFAULTS["guidance_scale"]:
        found.append(f"prompt_lookup_num_tokens: {looked_up}, but guidance_scale is {guided}")
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        forced = getattr(config, name)
        if forced is not None and {*ids(forced)} <= {*ids(config.suppress_tokens)}:
            found.append(f"{name}: {forced}, but suppress_tokens contains it")
    return found


def overruled(config: GenerationConfig, options: Mapping[str, Any]) -> list[str]:
    """Returns the lengths in `options` that another field of the config overrides."""
    found = []
    for one, other in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
        given, counts = options.get(one), getattr(config, other)
        if given is not None and counts is not None:
            found.append(f"{one}: {given}, but {other} is {counts} and takes precedence")
    return found


def contradictions(config: GenerationConfig, options: Mapping[str, Any]) -> list[str]:
    """Returns the contradictions of a call's options with each other or the decoding method.

    Args:
        config: the config of the call.
        options: the call's options that are not None; the config already contains them.
    """
    found = overruled(config, options)
    if config.exponential_decay_length_penalty is not None and not config.end_ids:
        found.append("exponential_decay_length_penalty: set, but eos_token_id is not")
    for least, most in (("min_length", "max_length"), ("min_new_tokens", "max_new_tokens")):
        if options.get(least, 0) > options.get(most, math.inf):
            found.append(
                f"{least}: {options[least]}, which is greater than {most}, {options[most]}"
            )
    for only, active, remedy in (
        (SAMPLING_ONLY, config.do_sample, "do_sample=True"),
        (BEAMS_ONLY, config.num_beams > 1, "num_beams of at least 2"),
    ):
        for name in only.keys() & options.keys():
            if not active and options[name] not in (only[name], DEFAULTS[name]):
                found.append(f"{name}: {options[name]}, which needs {remedy}")
    ignored = options.get("prompt_ignore_length")
    if ignored is not None and config.repetition_penalty == DEFAULTS["repetition_penalty"]:
        found.append(f"prompt_ignore_length: {ignored}, which needs a repetition_penalty")
    for name in ("output_scores", "output_logits"):
        if options.get(name) and not config.return_dict_in_generate:
            found.append(f"{name}: true, which needs return_dict_in_generate=True")
    return sorted(found)
