"""How to generate text: Hugging Face's `generation_config.json`, and the options of a call.

The reference is transformers' `generation/configuration_utils.py` (5.23), and what `generate` of
`generation/utils.py` does with a field.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from flax.core import FrozenDict, freeze, unfreeze

from minibert.errors import ConfigError, InputError, UnsupportedConfigError, shown, suggest
from minibert.generation import arrays, rules
from minibert.generation.processors import Processors
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

    max_length: int | None = rules.count(None, 1)
    max_new_tokens: int | None = rules.count(None, 1)
    min_length: int = rules.count(0)
    min_new_tokens: int | None = rules.count(None)
    early_stopping: bool | str = rules.early_stopping()
    do_sample: bool = rules.switch(False)
    num_beams: int = rules.count(1, 1)
    use_cache: bool = rules.switch(True)
    temperature: float = rules.factor(1.0)
    top_k: int = rules.count(50)
    top_p: float = rules.share(1.0)
    min_p: float | None = rules.share(None)
    top_h: float | None = rules.share(None, positive=True)
    typical_p: float = rules.share(1.0, positive=True)
    epsilon_cutoff: float = rules.share(0.0)
    eta_cutoff: float = rules.share(0.0)
    repetition_penalty: float = rules.factor(1.0)
    encoder_repetition_penalty: float = rules.factor(1.0)
    presence_penalty: float = rules.number(0.0)
    frequency_penalty: float = rules.number(0.0)
    length_penalty: float = rules.number(1.0)
    no_repeat_ngram_size: int = rules.count(0)
    encoder_no_repeat_ngram_size: int = rules.count(0)
    bad_words_ids: tuple[tuple[int, ...], ...] | None = rules.words()
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] | None = rules.biases()
    renormalize_logits: bool = rules.switch(False)
    remove_invalid_values: bool = rules.switch(False)
    forced_bos_token_id: int | None = rules.token()
    forced_eos_token_id: int | tuple[int, ...] | None = rules.token_or_tokens()
    forced_decoder_ids: tuple[tuple[int, int], ...] | None = rules.placed_tokens()
    exponential_decay_length_penalty: tuple[int, float] | None = rules.decay()
    suppress_tokens: tuple[int, ...] | None = rules.tokens()
    begin_suppress_tokens: tuple[int, ...] | None = rules.tokens()
    num_return_sequences: int = rules.count(1, 1)
    output_scores: bool = rules.switch(False)
    output_logits: bool = rules.switch(False)
    return_dict_in_generate: bool = rules.switch(False)
    pad_token_id: int | None = rules.token()
    bos_token_id: int | None = rules.token()
    eos_token_id: int | tuple[int, ...] | None = rules.token_or_tokens()
    extra: Mapping[str, Any] = dataclasses.field(
        default_factory=FrozenDict, compare=False, repr=False
    )
    unset: frozenset[str] = dataclasses.field(init=False, compare=False, repr=False)

    def __post_init__(self):
        given = dict(vars(self))
        unset = frozenset(name for name in OPTIONS if given[name] is None)
        for name, value in (_checked(given) | {"unset": unset}).items():
            object.__setattr__(self, name, value)
        if not self.use_cache:
            raise UnsupportedConfigError("use_cache: False is not implemented (only True)")
        if found := rules.faults(self):
            raise ConfigError("; ".join(found))

    @classmethod
    def from_dict(cls, data: Any, where: str = "generation_config") -> "GenerationConfig":
        """Builds a config from the contents of a generation_config.json.

        What it says about a way of decoding that is not used is left alone.

        Raises:
            ConfigError: a field holds an impossible value.
            UnsupportedConfigError: a field asks for what is not implemented.
        """
        if not isinstance(data, Mapping):
            raise ConfigError(f"{where}: expected an object of fields, found {type(data).__name__}")
        try:
            _refuse(data)
            # in a file, `use_cache` is about speed in training; there is always a cache here
            named = OPTIONS - {"use_cache"}
            extra = {name: value for name, value in data.items() if name not in named}
            given = {name: value for name, value in data.items() if name in named}
            return cls(**_checked(_set(given)), extra=extra)
        except ConfigError as reason:
            raise type(reason)(f"{where}: {reason}") from None

    @classmethod
    def from_model_config(cls, data: Any, where: str = "config") -> "GenerationConfig":
        """Builds a config from a config.json, as for a model without a generation_config.json.

        Its special tokens count, and what older versions of transformers kept there.

        Raises:
            ConfigError, UnsupportedConfigError: as `from_dict`.
        """
        if not isinstance(data, Mapping):
            raise ConfigError(f"{where}: expected an object of fields, found {type(data).__name__}")
        known = (OPTIONS | rules.REFUSED.keys()) - rules.MODELS_OWN
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
        own = config.generation is not None
        data = config.generation if own else config.to_dict()
        data = {name: value for name, value in data.items() if name not in without}
        if own:
            found = cls.from_dict(data, "generation_config.json")
        else:
            found = cls.from_model_config(data, "config.json")
        vocab = config.vocab_size
        known = {
            name: tuple(token for token in arrays.ids(getattr(found, name)) if token < vocab)
            for name in ("eos_token_id", "pad_token_id", "bos_token_id")
        }
        changed = {n: v for n, v in known.items() if v != arrays.ids(getattr(found, n))}
        return found._with({n: v or None for n, v in changed.items()})

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
            found = shown(given)
            raise InputError(f"generation_config: expected a GenerationConfig, found {found}")
        filled = cls.of_model(config, rules.REFUSED.keys() & options.keys())
        if given is not None:
            fields = {name: getattr(given, name) for name in OPTIONS - given.unset}
            try:
                filled = filled._with(fields | {"extra": {**filled.extra, **given.extra}})
            except ConfigError as reason:
                raise InputError(
                    f"generation_config: with what the checkpoint sets: {reason}"
                ) from None
            if (found := rules.lengths(fields, filled)) and not rules.lengths(fields, given):
                raise InputError("generation_config: " + "; ".join(found))
        return filled.replace(**options)

    def _with(self, changes: Mapping[str, Any]) -> "GenerationConfig":
        """Returns a copy with some fields set; those that are None have their defaults."""
        fields = {name: getattr(self, name) for name in OPTIONS - self.unset}
        fields |= {"extra": self.extra, **changes}
        changed = type(self)(**_checked(_set(fields)))
        object.__setattr__(changed, "unset", self.unset - changes.keys())
        return changed

    def replace(self, **options: Any) -> "GenerationConfig":
        """Returns a copy with the options of a call, which must not contradict one another.

        None switches off the field's processor; it does not leave the field open.

        Raises:
            InputError: an option is unknown, impossible, or contradicts another.
            UnsupportedConfigError: an option asks for what is not implemented.
        """
        for name in options:
            if name not in OPTIONS | rules.INERT | rules.REFUSED.keys():
                raise InputError(f"{name}: no option of generation{suggest(name, OPTIONS)}")
        _refuse(options)
        given = {name: options[name] for name in OPTIONS & options.keys()}
        if "top_k" in given and given["top_k"] is None:
            given["top_k"] = 0  # in a file, null is the default
        try:
            config = self._with(given)
        except UnsupportedConfigError:
            raise
        except ConfigError as reason:
            raise InputError(f"{reason}") from None
        asked = {name: getattr(config, name) for name in given if given[name] is not None}
        if found := rules.contradictions(asked, config):
            raise InputError("; ".join(found))
        return config

    def to_dict(self) -> dict[str, Any]:
        """Returns the contents of a generation_config.json: `extra` and the fields that are set."""
        fields = {name: _listed(getattr(self, name)) for name in sorted(OPTIONS - self.unset)}
        return {
            **unfreeze(freeze(dict(self.extra))),
            **{name: value for name, value in fields.items() if value is not None},
        }

    @property
    def ignored_fields(self) -> tuple[str, ...]:
        """The fields of the file that Hugging Face's class does not know."""
        return tuple(sorted(self.extra.keys() - rules.INERT - rules.REFUSED.keys()))

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end a text."""
        return arrays.ids(self.eos_token_id)

    @property
    def padding_id(self) -> int | None:
        """What follows a text that has ended, if there is anything that ends one."""
        return (
            self.pad_token_id if self.pad_token_id is not None else next(iter(self.end_ids), None)
        )

    def limit(self, prompt: int, positions: int | None = None) -> int:
        """How many tokens are generated at most.

        Args:
            prompt: the prompts' slots, padding included.
            positions: how many the model has; they cut the 20 tokens of a config without lengths.

        Raises:
            InputError: there is no room for a token.
        """
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        if self.max_length is not None:
            name, most = "max_length", self.max_length
        else:
            most = prompt + DEFAULT_NEW_TOKENS
            name, most = "max_position_embeddings", min(most, positions or most)
        if most <= prompt:
            raise InputError(f"{name}: {most}, but the prompt has {prompt} tokens already")
        return most - prompt

    def processors(self, vocab_size: int) -> Processors:
        """The processors that act.

        Raises:
            InputError: an id is not in the vocabulary.
        """
        return arrays.processors(self, vocab_size)

    def sampling(self) -> Sampling:
        """The filters that act: those of sampling, or only `renormalize_logits` without it."""
        return arrays.sampling(self)


FIELDS = tuple(f for f in dataclasses.fields(GenerationConfig) if "rule" in f.metadata)
OPTIONS = frozenset(field.name for field in FIELDS)


def _set(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields that are not left open."""
    return {name: value for name, value in given.items() if value is not None}


def _checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields given in their final form."""
    values = {"extra": freeze(dict(given["extra"]))} if "extra" in given else {}
    for field in FIELDS:
        if field.name not in given:
            continue
        value = rules.plain(given[field.name])
        if value is None:
            value = field.metadata["default"]
        if not field.metadata["rule"](value):
            expected = field.metadata["expected"]
            raise ConfigError(f"{field.name}: expected {expected}, found {shown(value)}")
        values[field.name] = field.metadata["convert"](value)
    return values


def _refuse(given: Mapping[str, Any]) -> None:
    for name, neutral in rules.REFUSED.items():
        if name in given and rules.plain(given[name]) not in neutral:
            raise UnsupportedConfigError(
                f"{name}: {shown(given[name])} is not implemented "
                f"(only {neutral[0]!r}, which changes nothing)"
            )


def _listed(value: Any) -> Any:
    return [_listed(part) for part in value] if isinstance(value, tuple) else value
