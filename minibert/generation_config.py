"""How to generate text: Hugging Face's `generation_config.json`, and the options of a call.

The reference is transformers' `generation/configuration_utils.py` (5.23), and what `generate` of
`generation/utils.py` does with a field.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from flax.core import FrozenDict, freeze, unfreeze

from minibert import generation_arrays as arrays
from minibert import generation_rules as rules
from minibert.config import size, switch
from minibert.errors import ConfigError, InputError, UnsupportedConfigError, shown
from minibert.processors import Processors
from minibert.sampling import Sampling

DEFAULT_NEW_TOKENS = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """Which tokens are generated, and when it ends. Names and defaults are Hugging Face's.

    Lengths count tokens; a field that is None where it has a default takes the default.

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

    `Processors` and `Sampling` describe the rest.

    Raises:
        ConfigError: a field holds an impossible value, or two contradict each other.
    """

    max_length: int | None = rules.count(None, 1)
    max_new_tokens: int | None = rules.count(None, 1)
    min_length: int = rules.count(0)
    min_new_tokens: int | None = rules.count(None)
    early_stopping: bool | str = rules.early_stopping()
    do_sample: bool = switch(False)
    num_beams: int = size(1)
    use_cache: bool = switch(True)
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
    renormalize_logits: bool = switch(False)
    remove_invalid_values: bool = switch(False)
    forced_bos_token_id: int | None = rules.token()
    forced_eos_token_id: int | tuple[int, ...] | None = rules.token_or_tokens()
    forced_decoder_ids: tuple[tuple[int, int], ...] | None = rules.placed_tokens()
    exponential_decay_length_penalty: tuple[int, float] | None = rules.decay()
    suppress_tokens: tuple[int, ...] | None = rules.tokens()
    begin_suppress_tokens: tuple[int, ...] | None = rules.tokens()
    num_return_sequences: int = size(1)
    output_scores: bool = switch(False)
    output_logits: bool = switch(False)
    return_dict_in_generate: bool = switch(False)
    pad_token_id: int | None = rules.token()
    bos_token_id: int | None = rules.token()
    eos_token_id: int | tuple[int, ...] | None = rules.token_or_tokens()
    extra: Mapping[str, Any] = dataclasses.field(
        default_factory=FrozenDict, compare=False, repr=False
    )

    def __post_init__(self):
        for name, value in _checked(vars(self)).items():
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
            return cls(**_checked(given), extra=extra)
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
    def of_model(cls, config: Any) -> "GenerationConfig":
        """What a model's checkpoint says: its generation_config.json, else its config.json.

        Special tokens that the vocabulary has not are left out: Hugging Face writes GPT-2's end,
        50256, for every GPT-2, and a word that is not there cannot end anything.

        Raises:
            ConfigError, UnsupportedConfigError: as `from_dict`.
        """
        if config.generation is not None:
            found = cls.from_dict(config.generation, "generation_config.json")
        else:
            found = cls.from_model_config(config.to_dict(), "config.json")
        vocab = config.vocab_size
        known = {
            name: tuple(token for token in arrays.ids(getattr(found, name)) if token < vocab)
            for name in ("eos_token_id", "pad_token_id", "bos_token_id")
        }
        changed = {n: v for n, v in known.items() if v != arrays.ids(getattr(found, n))}
        return dataclasses.replace(found, **{n: v or None for n, v in changed.items()})

    def replace(self, **options: Any) -> "GenerationConfig":
        """A copy with the options of a call, which must not contradict one another.

        None asks for nothing: it switches off the field's processor.

        Raises:
            InputError: an option is unknown, impossible, or contradicts another.
            UnsupportedConfigError: an option asks for what is not implemented.
        """
        for name in options:
            if name not in OPTIONS | rules.INERT | rules.REFUSED.keys():
                near = difflib.get_close_matches(name, sorted(OPTIONS), 1)
                hint = f" (did you mean {near[0]}?)" if near else ""
                raise InputError(f"{name}: no option of generation{hint}")
        _refuse(options)
        given = {name: options[name] for name in OPTIONS & options.keys()}
        if "top_k" in given and given["top_k"] is None:
            given["top_k"] = 0  # in a file, null is the default
        try:
            config = dataclasses.replace(self, **_checked(given))
        except UnsupportedConfigError:
            raise
        except ConfigError as reason:
            raise InputError(f"{reason}") from None
        asked = {name: getattr(config, name) for name in given if given[name] is not None}
        if found := rules.contradictions(asked, config):
            raise InputError("; ".join(found))
        return config

    def to_dict(self) -> dict[str, Any]:
        """The contents of a generation_config.json, `extra` included; defaults are left out."""
        fields = {field.name: field.default for field in dataclasses.fields(self)}
        changed = {n: v for n in OPTIONS if (v := getattr(self, n)) != fields[n]}
        return {
            **unfreeze(freeze(dict(self.extra))),
            **{name: _listed(changed[name]) for name in sorted(changed)},
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


OPTIONS = frozenset(field.name for field in dataclasses.fields(GenerationConfig)) - {"extra"}


def _checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields given, checked and in their final form."""
    values = {"extra": freeze(dict(given["extra"]))} if "extra" in given else {}
    for field in dataclasses.fields(GenerationConfig):
        if field.name not in given or field.name == "extra":
            continue
        value = rules.plain(given[field.name])
        if value is None:
            value = field.default
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
