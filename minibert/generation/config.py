"""How to generate text: Hugging Face's `generation_config.json`, and the options of a call.

The reference is transformers' `generation/configuration_utils.py` (5.23), and what `generate` of
`generation/utils.py` does with a field. Every field of its GenerationConfig, 4.57 and 5.23
together, is honoured (the class), or refused by name unless it holds what changes nothing, or
leaves the result alone.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np
from flax.core import FrozenDict

from minibert.core.fields import PROBABILITY, SIZE, SWITCH, assign, checked, refuse
from minibert.errors import ConfigError, InputError, UnsupportedConfigError, shown, suggest
from minibert.generation.options import (
    BEAMS_ONLY,
    BIASES,
    COUNT,
    DECAY,
    EARLY_STOPPING,
    FACTOR,
    INERT,
    MODELS_OWN,
    NUMBER,
    PLACED_TOKENS,
    POSITIVE_SHARE,
    REFUSED,
    SAMPLING_ONLY,
    TOKEN,
    TOKEN_OR_TOKENS,
    TOKENS,
    WORDS,
    option,
)
from minibert.generation.processors import Processors, phrases, placed, together
from minibert.generation.sampling import Sampling

DEFAULT_NEW_TOKENS = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """Which tokens are generated, and when it ends. Names and defaults are Hugging Face's.

    Lengths count tokens. A field that is not passed, or is None, is left open: `generate` takes it
    from the checkpoint's own config, and where that leaves it open too, it has its default. The
    attribute of an open field is the default.

    Attributes:
        max_length: of prompt, padding included, and text. Without it, and without
            `max_new_tokens`, 20 tokens are generated.
        max_new_tokens: of the text; counts before `max_length`.
        min_length: of a row's prompt, without padding, and text.
        min_new_tokens: of the text; then `min_length` does not count.
        early_stopping: when beams stop: `True`, as soon as there are enough; `False`, when better
            ones are unlikely; `"never"`, when none can come.
        length_penalty: the power of the length by which a beam's log-probability is divided.
        do_sample: whether tokens are drawn; else the likeliest is taken.
        num_return_sequences: texts for each prompt.
        presence_penalty, frequency_penalty: not in transformers: see `Processors`.
        forced_decoder_ids: pairs of a position in a row's text and the token there; version 4's.
        eos_token_id: the token that ends a text, or several.
        pad_token_id: what follows a text that has ended; the first end where it is None.
        extra: the file's other fields, kept. They take no part in equality.
        unset: the names of the fields that are left open. They take no part in equality.

    `Processors` and `Sampling` describe the rest.

    Raises:
        ConfigError: a field holds an impossible value, or two contradict each other.
    """

    max_length: int | None = option(SIZE)
    max_new_tokens: int | None = option(SIZE)
    min_length: int = option(COUNT, 0)
    min_new_tokens: int | None = option(COUNT)
    early_stopping: bool | str = option(EARLY_STOPPING, False)
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
    repetition_penalty: float = option(FACTOR, 1.0)
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
        if found := self._faults():
            raise ConfigError("; ".join(found))

    @classmethod
    def from_dict(cls, data: object, where: str = "generation_config") -> "GenerationConfig":
        """Builds a config from the contents of a generation_config.json.

        What it says about a way of decoding that is not used is left alone.

        Raises:
            ConfigError: a field holds an impossible value.
            UnsupportedConfigError: a field asks for what is not implemented.
        """
        if not isinstance(data, Mapping):
            raise ConfigError(f"{where}: expected an object of fields, found {type(data).__name__}")
        try:
            refuse({name: _plain(value) for name, value in data.items()}, REFUSED)
            # in a file, `use_cache` is about speed in training; there is always a cache here
            named = OPTIONS - {"use_cache"}
            extra = {name: data[name] for name in data if name not in named}
            given = {name: data[name] for name in data if name in named}
            return cls(**_checked(given), extra=extra)
        except ConfigError as reason:
            raise type(reason)(f"{where}: {reason}") from None

    @classmethod
    def from_model_config(cls, data: object, where: str = "config") -> "GenerationConfig":
        """Builds a config from a config.json, as for a model without a generation_config.json.

        Its special tokens count, and what older versions of transformers kept there.

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
    def of_model(cls, config: Any, without: Collection[str] = ()) -> "GenerationConfig":
        """Returns what a checkpoint says: its generation_config.json, else its config.json.

        Special tokens that the vocabulary has not are left out: Hugging Face writes GPT-2's end,
        50256, for every GPT-2, and a word that is not there cannot end anything.

        Args:
            config: the model's config.
            without: names of fields to leave open, whatever the file says.

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
        """Returns the config of one call of `generate`, by transformers' rule.

        An option of the call comes first, then a field that the call's config sets, then one that
        the checkpoint sets, then the default.

        Args:
            config: the model's config.
            given: the call's `generation_config`, or None.
            options: the call's options. One that names a field which is not implemented, with a
                value that changes nothing, replaces the checkpoint's.

        Raises:
            InputError: the config is none, or options are unknown or contradict each other.
            ConfigError, UnsupportedConfigError: as `from_dict`, of the checkpoint's files.
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
                    f"generation_config: with what the checkpoint sets: {reason}"
                ) from None
            if (found := filled._overruled(fields)) and not given._overruled(fields):
                raise InputError("generation_config: " + "; ".join(found))
        return filled.replace(**options)

    def _set_fields(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in sorted(OPTIONS - self.unset)}

    def _with(
        self, changes: Mapping[str, Any], extra: Mapping[str, Any] | None = None
    ) -> "GenerationConfig":
        """Returns a copy with some fields set; those that are None have their defaults."""
        fields = _checked({**self._set_fields(), **changes})
        changed = type(self)(**fields, extra={**self.extra, **(extra or {})})
        assign(changed, {"unset": self.unset - changes.keys()})
        return changed

    def replace(self, **options: Any) -> "GenerationConfig":
        """Returns a copy with the options of a call, which must not contradict one another.

        None switches off the field's processor; it does not leave the field open.

        Raises:
            InputError: an option is unknown, impossible, or contradicts another.
            UnsupportedConfigError: an option asks for what is not implemented.
        """
        for name in options:
            if name not in OPTIONS | INERT | REFUSED.keys():
                raise InputError(f"{name}: no option of generation{suggest(name, OPTIONS)}")
        refuse({name: _plain(value) for name, value in options.items()}, REFUSED)
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
        if found := config._contradictions(asked):
            raise InputError("; ".join(found)).advising("do_sample=True")
        return config

    def to_dict(self) -> dict[str, Any]:
        """Returns the contents of a generation_config.json: `extra` and the fields that are set."""
        fields = self._set_fields().items()
        given = {name: _listed(value) for name, value in fields if value is not None}
        return FrozenDict(self.extra).unfreeze() | given

    @property
    def ignored_fields(self) -> tuple[str, ...]:
        """The fields of the file that Hugging Face's class does not know."""
        return tuple(sorted(self.extra.keys() - INERT - REFUSED.keys()))

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end a text."""
        return ids(self.eos_token_id)

    @property
    def padding_id(self) -> int | None:
        """What follows a text that has ended, if there is anything that ends one."""
        if self.pad_token_id is not None:
            return self.pad_token_id
        return next(iter(self.end_ids), None)

    def limit(
        self, prompt: int, positions: int | None = None, name: str = "max_position_embeddings"
    ) -> int:
        """How many tokens are generated at most.

        Args:
            prompt: the prompts' slots, padding included.
            positions, name: how many the model has, and where that comes from, for messages; they
                cut the 20 tokens of a config without lengths.

        Raises:
            InputError: there is no room for a token.
        """
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        if self.max_length is not None:
            name, most = "max_length", self.max_length
        else:
            most = int(min(prompt + DEFAULT_NEW_TOKENS, positions or math.inf))
        if most <= prompt:
            raise InputError(f"{name}: {most}, but the prompt has {prompt} tokens already")
        return most - prompt

    def processors(self, vocab_size: int) -> Processors:
        """The processors that act: those that transformers' `_get_logits_processor` adds.

        Raises:
            InputError: an id is not in the vocabulary.
        """
        self._check_ids(vocab_size)

        def mask(tokens: object) -> np.ndarray | None:
            return None if tokens is None else np.isin(np.arange(vocab_size), ids(tokens))

        end = mask(self.eos_token_id)
        least = self.min_length if self.min_new_tokens is None else 0
        bad, decay = self.bad_words_ids, self.exponential_decay_length_penalty
        if bad is not None:
            ends = {(token,) for token in self.end_ids}  # a text must be able to end
            bad = [(word, -math.inf) for word in bad if word not in ends]
        if decay is not None:
            after, factor = decay
            decay = together(np.int32(after), np.float32(math.log(factor)), end)
        return Processors(
            **self._numbers(
                "encoder_repetition_penalty",
                "repetition_penalty",
                "presence_penalty",
                "frequency_penalty",
            ),
            sequence_bias=phrases(self.sequence_bias),
            no_repeat_ngram_size=_count(self.no_repeat_ngram_size),
            encoder_no_repeat_ngram_size=_count(self.encoder_no_repeat_ngram_size),
            bad_words_ids=phrases(bad),
            min_length=together(_count(least), end),
            min_new_tokens=together(_count(self.min_new_tokens), end),
            forced_bos_token_id=mask(self.forced_bos_token_id),
            forced_eos_token_id=mask(self.forced_eos_token_id),
            remove_invalid_values=self.remove_invalid_values,
            exponential_decay_length_penalty=decay,
            suppress_tokens=mask(self.suppress_tokens),
            begin_suppress_tokens=together(
                mask(self.begin_suppress_tokens), np.bool_(self.forced_bos_token_id is not None)
            ),
            forced_decoder_ids=placed(self.forced_decoder_ids),
        )

    def sampling(self) -> Sampling:
        """The filters that act: those of sampling, or only `renormalize_logits` without it."""
        if not self.do_sample:
            return Sampling(renormalize=self.renormalize_logits)
        # With beams, one token more than can end a text: a beam must be able to go on.
        least = 1 + max(len(self.end_ids), 1) if self.num_beams > 1 else 1
        return Sampling(
            **self._numbers("temperature", "top_h", "min_p", "typical_p"),
            top_k=_count(self.top_k),
            top_p_rest=_share(1 - self.top_p),  # in double precision, as transformers does
            epsilon_cutoff=_share(self.epsilon_cutoff % 1),  # 1 cuts nothing off either
            eta_cutoff=_share(self.eta_cutoff % 1),
            min_tokens_to_keep=np.int32(least),
            renormalize=self.renormalize_logits,
        )

    def _numbers(self, *names: str) -> dict[str, Any]:
        """Returns fields as float32, None for those that have their defaults."""
        values = {name: getattr(self, name) for name in names}
        return {n: None if v == DEFAULTS[n] else np.float32(v) for n, v in values.items()}

    def _check_ids(self, vocab_size: int) -> None:
        names = (
            "eos_token_id",
            "pad_token_id",
            "forced_bos_token_id",
            "forced_eos_token_id",
            "suppress_tokens",
            "begin_suppress_tokens",
            "bad_words_ids",
        )
        named: dict[str, Any] = {name: getattr(self, name) for name in names}
        named["sequence_bias"] = [word for word, _ in self.sequence_bias or ()]
        named["forced_decoder_ids"] = [token for _, token in self.forced_decoder_ids or ()]
        for name, tokens in named.items():
            if wrong := [token for token in ids(tokens) if token >= vocab_size]:
                raise InputError(
                    f"{name}: expected ids of the vocabulary, which are below {vocab_size}, "
                    f"found {wrong[0]}"
                )

    def _faults(self) -> list[str]:
        """Returns the contradictions between fields, wherever they come from."""
        found, several, beams = [], self.num_return_sequences, self.num_beams
        if several > beams > 1:
            found.append(f"num_return_sequences: {several}, but there are {beams} num_beams")
        elif several > beams and not self.do_sample:
            found.append(
                f"num_return_sequences: {several}, but greedy decoding has one result: "
                "it needs do_sample=True or num_beams"
            )
        for name in ("forced_bos_token_id", "forced_eos_token_id"):
            forced = getattr(self, name)
            if forced is not None and {*ids(forced)} <= {*ids(self.suppress_tokens)}:
                found.append(f"{name}: {forced}, but suppress_tokens has it too")
        return found

    def _overruled(self, options: Mapping[str, Any]) -> list[str]:
        """Returns which lengths in `options`, which are set here, have no effect."""
        found = []
        for one, other in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
            given, counts = options.get(one), getattr(self, other)
            if given is not None and counts is not None:
                found.append(f"{one}: {given}, but {other} is {counts} and counts before it")
        return found

    def _contradictions(self, options: Mapping[str, Any]) -> list[str]:
        """Returns what options of one call contradict: one another, or the way of decoding.

        Args:
            options: the options that the call gives, and that are not None; they are set here.
        """
        found = self._overruled(options)
        if self.exponential_decay_length_penalty is not None and not self.end_ids:
            found.append("exponential_decay_length_penalty: given, but there is no eos_token_id")
        for least, most in (("min_length", "max_length"), ("min_new_tokens", "max_new_tokens")):
            if options.get(least, 0) > options.get(most, math.inf):
                found.append(
                    f"{least}: {options[least]}, which is more than {most}, {options[most]}"
                )
        for only, active, remedy in (
            (SAMPLING_ONLY, self.do_sample, "do_sample=True"),
            (BEAMS_ONLY, self.num_beams > 1, "num_beams of at least 2"),
        ):
            for name in only.keys() & options.keys():
                if not active and options[name] not in (only[name], DEFAULTS[name]):
                    found.append(f"{name}: {options[name]}, which needs {remedy}")
        for name in ("output_scores", "output_logits"):
            if options.get(name) and not self.return_dict_in_generate:
                found.append(f"{name}: true, which needs return_dict_in_generate=True")
        return sorted(found)


DEFAULTS: Mapping[str, Any] = {
    field.name: field.metadata["default"]
    for field in dataclasses.fields(GenerationConfig)
    if "rule" in field.metadata
}
OPTIONS = frozenset(DEFAULTS)


def _checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields given in their final form, without those that are left open."""
    plain = {name: _plain(value) for name, value in given.items()}
    return checked(GenerationConfig, {n: v for n, v in plain.items() if v is not None})


def _plain(value: Any) -> Any:
    """Arrays and lists as tuples, mappings as tuples of pairs, NumPy's numbers as Python's."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        value = value.items()
    elif not isinstance(value, list | tuple):
        return value
    return tuple(map(_plain, value))


def _listed(value: object) -> Any:
    return list(map(_listed, value)) if isinstance(value, tuple) else value


def ids(tokens: object) -> tuple[int, ...]:
    """All ids of None, an id, or tuples of them at any depth."""
    return tuple(jax.tree.leaves(tokens))


def _count(value: int | None) -> Any:
    return np.int32(value) if value else None


def _share(value: float) -> Any:
    return np.float32(value) if value else None
