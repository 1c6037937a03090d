"""Settings of a sentence encoder, and the two JSON files that store them.

`sentence_bert_config.json` is stored with the transformer, `config_sentence_transformers.json` at
the top of the folder; both formats are sentence-transformers'. A field that would change vectors
is either implemented or refused by name.
"""

import contextlib
import dataclasses
import os
from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any

from minibert.checkpoint.config import Config
from minibert.checkpoint.files import BODY_CONFIGS, TOP_CONFIG
from minibert.core.checks import check_text
from minibert.core.fields import COUNT, SWITCH, Rule, assign, check, field, one_of, refuse, whole
from minibert.core.strict_json import read_object_if_there
from minibert.embedding.similarity import SIMILARITIES
from minibert.errors import ConfigError, InputError, UnsupportedConfigError, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_PROMPTS = {"query": "", "document": ""}  # of every new encoder
# The prompts of `encode_query` and `encode_document`: of several, the first that exists.
QUERY_PROMPTS = ("query",)
DOCUMENT_PROMPTS = ("document", "passage", "corpus")

# Fields of BODY_CONFIGS that are not implemented, each with the values that have no effect.
REFUSED: Mapping[str, tuple[Any, ...]] = {
    "transformer_task": ("feature-extraction", None),
    "modality_config": (
        {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        None,
    ),
    "module_output_name": ("token_embeddings", None),
    "processing_kwargs": ({}, None),
    "query_length": (None,),
    "document_length": (None,),
    "query_expansion": (None,),
    "tokenizer_name_or_path": (None,),
    **{f"{part}_args": ({}, None) for part in ("model", "tokenizer", "config")},
    **{f"{part}_kwargs": ({}, None) for part in ("model", "processor", "config")},
}
KNOWN = ("max_seq_length", "do_lower_case", "unpad_inputs")  # the last concerns only speed

# Fields of TOP_CONFIG that are settings; all others are kept.
TOP_FIELDS = ("prompts", "default_prompt_name", "similarity_fn_name", "truncate_dim")

PROMPTS = Rule(
    "name → text",
    lambda v: (
        isinstance(v, Mapping)
        and all(isinstance(n, str) and isinstance(text, str | None) for n, text in v.items())
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentenceSettings:
    """Settings of tokenization, prompts and similarity.

    Attributes:
        max_seq_length: the maximum number of tokens of a text.
        do_lower_case: whether to convert texts to lower case first.
        prompts: texts to prepend, by name.
        default_prompt_name: the prompt for calls of `encode` without one; None for no prompt.
        similarity_fn_name: one of `similarity.SIMILARITIES`.
        truncate_dim: the number of dimensions to keep; None for all.
        extra: the other fields of `config_sentence_transformers.json`, kept for saving.
    """

    max_seq_length: int = field(COUNT)
    do_lower_case: bool = field(SWITCH, False)
    prompts: Mapping[str, str] = field(PROMPTS, default_factory=DEFAULT_PROMPTS.copy)
    default_prompt_name: str | None = None
    similarity_fn_name: str = field(one_of(SIMILARITIES), "cosine")
    truncate_dim: int | None = field(COUNT, None)
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        check(self, InputError)
        assign(self, {"prompts": {name: text or "" for name, text in self.prompts.items()}})
        self._check_known("default_prompt_name", self.default_prompt_name)

    def check_fits(self, positions: int, features: int) -> None:
        """Raises an `InputError` if a model has too few positions or features."""
        for name, most, whose in (
            ("max_seq_length", positions, "the model's positions"),
            ("truncate_dim", features, "the vectors' width"),
        ):
            found = getattr(self, name)
            if found is not None and found > most:
                raise InputError(f"{name}: expected at most {most}, {whose}; found {found}")

    def prompt(self, prompt: str | None, name: str | None) -> str:
        """Returns the text to prepend: `prompt`, or the prompt of that name, or the default.

        Raises:
            InputError: if both are passed, or there is no prompt of that name.
        """
        if prompt is not None:
            if name is not None:
                raise InputError("prompt, prompt_name: expected only one of them, found both")
            check_text(prompt, "prompt")
            return prompt
        name = self.default_prompt_name if name is None else name
        self._check_known("prompt_name", name)
        return "" if name is None else self.prompts[name]

    def _check_known(self, argument: str, name: str | None) -> None:
        if name not in (None, *self.prompts):
            known = ", ".join(self.prompts)
            raise InputError(f"{argument}: expected one of {known}; found {shown(name)}")

    def top_config(self) -> dict[str, Any]:
        """Returns the contents of `config_sentence_transformers.json`."""
        own = {name: getattr(self, name) for name in TOP_FIELDS}
        if self.truncate_dim is None:
            del own["truncate_dim"]
        return {**self.extra, **own}

    def body_config(self) -> dict[str, Any]:
        """Returns the contents of `sentence_bert_config.json`."""
        return {"max_seq_length": self.max_seq_length, "do_lower_case": self.do_lower_case}


def read_settings(
    top: str,
    body: str,
    config: Config,
    tokenizer: "PreTrainedTokenizerBase",
    given: Mapping[str, Any],
) -> SentenceSettings:
    """Reads the settings of a folder.

    Args:
        top: the folder.
        body: the transformer's folder, inside the former or the same.
        config: the transformer's config.
        tokenizer: its tokenizer, whose `model_max_length` is used where no file sets a length.
        given: settings that override the folder's; prompts are added.

    Raises:
        ConfigError: if a field of a file is invalid.
        UnsupportedConfigError: if a field requests a feature that is not implemented.
        InputError: if a setting in `given` is invalid.
    """
    fields, where = _read_body(body)
    length = fields.get("max_seq_length")
    if "max_seq_length" in given:
        length = 1  # a placeholder, replaced below
    elif length is None:
        length = longest(config, tokenizer)
    else:
        whole(1, config.max_tokens).check(f"{where}: max_seq_length", length)
    with read_from(where):
        lower = fields.get("do_lower_case", False)
        settings = SentenceSettings(max_seq_length=length, do_lower_case=lower)
    prompts = given.get("prompts", {})
    merged_prompts(prompts)  # validated outside read_from, which would blame the file
    where = os.path.join(top, TOP_CONFIG)
    with read_from(where):
        fields = _read_top(where)
        fields["prompts"] = merged_prompts(fields.get("prompts", {}), prompts)
        settings = dataclasses.replace(settings, **fields)
    return dataclasses.replace(settings, **{**given, "prompts": settings.prompts})


@contextlib.contextmanager
def read_from(path: str) -> Generator[None]:
    """Adds the path of the file to errors about a field."""
    try:
        yield
    except InputError as reason:
        raise ConfigError(f"{path}: {reason}") from None


def checked_given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that are not None.

    Raises:
        InputError: if there is no such setting.
    """
    known = [field.name for field in dataclasses.fields(SentenceSettings)]
    for name in settings:
        if name not in known:
            raise InputError(f"{name}: no such argument; settings are {', '.join(known)}")
    return {name: value for name, value in settings.items() if value is not None}


def new_settings(
    config: Config, tokenizer: "PreTrainedTokenizerBase", given: Mapping[str, Any]
) -> SentenceSettings:
    """Returns the settings of an encoder without a settings file; see `checked_given`."""
    fields: dict[str, Any] = {"max_seq_length": longest(config, tokenizer), **checked_given(given)}
    fields["prompts"] = merged_prompts(fields.get("prompts", {}))
    return SentenceSettings(**fields)


def longest(config: Config, tokenizer: "PreTrainedTokenizerBase") -> int:
    """Returns the maximum number of tokens that both the tokenizer and the model accept."""
    positions = config.max_tokens
    return min(getattr(tokenizer, "model_max_length", positions), positions)


def _read_body(body: str) -> tuple[dict[str, Any], str]:
    paths = [os.path.join(body, name) for name in BODY_CONFIGS]
    for path in paths:
        if (data := read_object_if_there(path)) is None:
            continue
        values = {
            name: {k: v for k, v in value.items() if k != "trust_remote_code"}
            if isinstance(value, dict)
            else value
            for name, value in data.items()
        }
        refuse(values, REFUSED, KNOWN, f"{path}: ")
        return data, path
    return {}, paths[0]


def _read_top(path: str) -> dict[str, Any]:
    data = read_object_if_there(path) or {}
    kind = data.get("model_type", "SentenceTransformer")
    if kind != "SentenceTransformer":
        raise UnsupportedConfigError(
            f"{path}: model_type: expected 'SentenceTransformer', found {shown(kind)}"
        )
    found = {name: data[name] for name in TOP_FIELDS if data.get(name) is not None}
    extra = {name: value for name, value in data.items() if name not in TOP_FIELDS}
    return {**found, "extra": extra}


def merged_prompts(*groups: Mapping[str, str | None] | None) -> dict[str, str]:
    """Returns the default prompts, replaced and extended by those of each group in turn.

    A prompt of None keeps the previous one, or else is empty, as in sentence-transformers.

    Raises:
        InputError: if a group does not map names to texts.
    """
    merged = dict(DEFAULT_PROMPTS)
    for group in groups:
        for name, text in PROMPTS.check("prompts", group, InputError).items():
            merged[name] = merged.get(name, "") if text is None else text
    return merged
