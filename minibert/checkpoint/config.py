"""Reading `config.json`: every field is honoured, or refused by name.

A config is a frozen dataclass with Hugging Face's field names. A field of the file belongs to one
of four groups: a field of our class (validated and honoured); a field of Hugging Face's class that
would change results but is not implemented (refused unless it has the value that changes nothing);
a field of Hugging Face's class that does not affect a forward pass (kept); a field that Hugging
Face's class does not define and therefore ignores (kept, and listed in the loading info).
`save_pretrained` writes the fields kept back to the file.
"""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, TypeVar, Unpack

from flax.core import FrozenDict, freeze, unfreeze

from minibert.checkpoint.files import GENERATION, unchanged
from minibert.checkpoint.hub import AnyPath, HubOptions, model_folder
from minibert.core.atomic import atomic_folder
from minibert.core.fields import (
    SWITCH,
    Rule,
    assign,
    check,
    checked,
    field,
    one_of,
    or_null,
    refuse,
    whole,
)
from minibert.core.strict_json import read_json, read_object_if_there, write_json
from minibert.errors import ConfigError, InputError, shown, suggest

MAX_LABELS = 1 << 20

LABELS = ("num_labels", "id2label", "label2id")
# Arguments of `from_pretrained` in transformers that are not supported, and what replaces them.
ELSEWHERE = {
    "_do_init": "leave it out; nnx.split(model) separates the parameters from the model",
    "attn_implementation": "leave it out; the attention is chosen by device",
    "device_map": "pass sharding",
    "force_download": "remove the repository from the Hub's cache",
    "from_flax": "convert flax_model.msgpack once: minibert convert SOURCE OUT",
    "from_pt": "leave it out; PyTorch's layout is the format",
    "from_tf": "convert the weights to safetensors with transformers 4",
    "gradient_checkpointing": "call model.gradient_checkpointing_enable()",
    "ignore_mismatched_sizes": "pass new_head=True, rngs=nnx.Rngs(0) for a new head",
    "input_shape": "leave it out; the config determines all shapes",
    "low_cpu_mem_usage": "leave it out; a model is never in memory twice",
    "seed": "pass rngs=nnx.Rngs(seed), which only a new head needs",
    "torch_dtype": "pass dtype for the computation, or param_dtype for the parameters",
    "trust_remote_code": "leave it out; code of a repository is never run",
    "use_auth_token": "pass token",
    "use_safetensors": "leave it out, or pass allow_pickle=True",
}
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")

# Fields of transformers' PreTrainedConfig, of 4.57 or 5.23, that do not affect a forward pass.
INERT_FIELDS = frozenset(
    """
    _attn_implementation_internal _commit_hash _configuration_file _experts_implementation_internal
    _from_auto _from_pipeline _name_or_path _output_attentions _post_init_done architectures
    attn_implementation bad_words_ids begin_suppress_tokens bos_token_id cache_dir
    chunk_size_feed_forward commit_message cross_attention_hidden_size decoder_start_token_id
    diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size eos_token_id
    experts_implementation exponential_decay_length_penalty finetuning_task force_download
    forced_bos_token_id forced_eos_token_id gradient_checkpointing is_encoder_decoder
    length_penalty local_files_only max_length min_length model_type name_or_path
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_scores prefix proxies
    remove_invalid_values repetition_penalty repo_id resume_download return_dict
    return_dict_in_generate return_unused_kwargs revision sep_token_id subfolder suppress_tokens
    task_specific_params temperature tf_legacy_loss tie_encoder_decoder token tokenizer_class top_k
    top_p torch_dtype torchscript transformers_version trust_remote_code typical_p use_auth_token
    use_bfloat16 use_cache
    """.split()
)

Neutral = Mapping[str, tuple[Any, ...]]  # fields, each with the values that change nothing
# Fields that transformers 5 reads from the config of any model, and that change its results.
REFUSED_FIELDS: Neutral = {
    "is_causal": (True, False),  # null is False for its masks, and True for some of its attentions
    "per_layer_config": (None, {}),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
    "transformers_weights": (None,),  # the file that it reads the weights from
}
# Fields that it reads when it makes the cache of a decoder (cache_utils.py).
REFUSED_DECODER_FIELDS: Neutral = {
    "attention_chunk_size": (None,),
    "kv_sharing_modes": (None,),
    "layer_types": (None,),
    "sliding_window": (None,),
}

INDEX = whole()


def _is_label(entry: tuple[Any, Any]) -> bool:
    index, name = entry
    try:
        int(index)
    except (TypeError, ValueError):
        return False
    return isinstance(name, str) or INDEX.allows(name)


def _by_index(labels: Mapping[Any, Any]) -> FrozenDict[int, str]:
    found = {int(index): str(name) for index, name in labels.items()}
    if not found or len(found) != len(labels):
        raise ConfigError(f"id2label: expected distinct indices, found {shown(labels)}")
    return FrozenDict(found)


ID2LABEL = Rule(
    "index → name",
    lambda v: isinstance(v, Mapping) and all(map(_is_label, v.items())),
    _by_index,
)
LABEL2ID = Rule(
    "name → index",
    lambda v: isinstance(v, Mapping) and all(map(INDEX.allows, v.values())),
    lambda v: FrozenDict({name: int(index) for name, index in v.items()}),
)

AnyConfig = TypeVar("AnyConfig", bound="Config")


def aliased(cls: type[AnyConfig]) -> type[AnyConfig]:
    """Makes a config class accept its `aliases` as arguments and as attributes."""
    build = cls.__init__

    @functools.wraps(build)
    def init(self: Any, **given: Any) -> None:
        build(self, **cls._canonical(given))

    setattr(cls, "__init__", init)  # noqa: B010
    return cls


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Base class of configs: the fields that all models share, and reading and writing.

    Attributes:
        num_labels: the width of a classification head; the length of `id2label`.
        id2label: class index → name; by default `LABEL_0`, `LABEL_1`, ….
        label2id: class name → index; by default the inverse of `id2label`.
        problem_type: one of `PROBLEM_TYPES`, or None.
        output_hidden_states: whether a call returns hidden states by default.
        output_attentions: whether a call returns attention weights by default.
        is_causal: False for a decoder whose tokens also attend to later ones of the same call;
            None, the default, means True for a decoder.
        extra: the other fields of the file, kept for `save_pretrained`. They are not compared by
            `==`, so that two checkpoints of one architecture have equal tree definitions.
        generation: the contents of generation_config.json, or None; not compared either.
        aliases: alternative names of fields, accepted as arguments and attributes.
    """

    model_type: ClassVar[str]
    refused_fields: ClassVar[Neutral]
    aliases: ClassVar[Mapping[str, str]] = {}
    # what a family that can be a decoder declares as fields
    is_decoder = False
    add_cross_attention = False

    num_labels: int = field(whole(1, MAX_LABELS), None)
    id2label: Mapping[int, str] = field(ID2LABEL, None)
    label2id: Mapping[str, int] = field(LABEL2ID, None)
    problem_type: str | None = field(or_null(one_of(PROBLEM_TYPES)), None)
    output_hidden_states: bool = field(SWITCH, False)
    output_attentions: bool = field(SWITCH, False)
    is_causal: bool | None = field(SWITCH, None)
    extra: Mapping[str, Any] = dataclasses.field(
        default_factory=FrozenDict, compare=False, repr=False
    )
    generation: Mapping[str, Any] | None = dataclasses.field(
        default=None, compare=False, repr=False
    )

    @property
    def max_tokens(self) -> int:
        """The maximum number of tokens in a text."""
        return vars(self)[self.name_of("max_position_embeddings")]

    @property
    def max_tokens_name(self) -> str:
        """The field that `max_tokens` comes from, for messages."""
        return self.name_of("max_position_embeddings")

    @property
    def causal(self) -> bool:
        """Whether a token attends only to itself and to those before it."""
        return False

    @property
    def embedding_size(self) -> int:
        """The width of token embeddings and of `inputs_embeds`."""
        return vars(self)[self.name_of("hidden_size")]

    @property
    def stored_layers(self) -> int:
        """The number of layers that have parameters of their own."""
        return vars(self)[self.name_of("num_hidden_layers")]

    @property
    def stored_layers_name(self) -> str:
        """The formula of `stored_layers`, for messages."""
        return "num_hidden_layers"

    @property
    def layer_paths(self) -> Sequence[str]:
        """The paths, in the list of blocks, of the blocks that are executed, in order."""
        return [str(number) for number in range(self.stored_layers)]

    def with_layers(self: AnyConfig, layers: int, blocks: int) -> AnyConfig:
        """Returns a copy with another number of layers, which consist of some number of blocks."""
        return self.replace(num_hidden_layers=layers)

    def __post_init__(self) -> None:
        check(self)
        id2label = self.id2label or FrozenDict(_default_labels(self.num_labels or 2))
        if self.num_labels not in (None, len(id2label)):
            raise ConfigError(
                f"num_labels: expected {len(id2label)}, the number of entries of id2label, found "
                f"{self.num_labels}"
            )
        derived = {
            "num_labels": len(id2label),
            "id2label": id2label,
            "extra": freeze(dict(self.extra)),
        }
        if self.label2id is None:
            derived["label2id"] = FrozenDict(_inverse(id2label))
        if self.generation is not None:
            derived["generation"] = freeze(dict(self.generation))
        assign(self, derived)

    def _check_heads(self) -> None:
        """Raises a `ConfigError` if the number of heads does not divide the hidden size."""
        heads, hidden = map(self.name_of, ("num_attention_heads", "hidden_size"))
        size, count = getattr(self, hidden), getattr(self, heads)
        if size % count:
            raise ConfigError(f"{heads}: expected a divisor of {hidden} ({size}), found {count}")

    def _check_padding(self) -> None:
        """Raises a `ConfigError` if `pad_token_id` is neither None nor an index of a token."""
        pad, vocab = (getattr(self, name) for name in ("pad_token_id", "vocab_size"))
        if pad is not None and not -vocab <= pad < vocab:
            raise ConfigError(
                f"pad_token_id: expected an index into the vocabulary of {vocab}, found {pad}"
            )

    @classmethod
    def name_of(cls, field: str) -> str:
        """Returns the field that `field` is an alias of, or else `field` itself."""
        return cls.aliases.get(field, field)

    @classmethod
    def _canonical(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Returns fields with aliases replaced by the names of the fields."""
        found = {name: value for name, value in given.items() if name not in cls.aliases}
        for alias in cls.aliases.keys() & given.keys():
            name = cls.aliases[alias]
            if name in found and found[name] != given[alias]:
                one, other = shown(found[name]), shown(given[alias])
                raise ConfigError(f"{name}: found {one}, but its alias {alias} is {other}")
            found[name] = given[alias]
        return found

    def replace(self: AnyConfig, **changes: object) -> AnyConfig:
        """Returns a copy with some fields changed; new labels replace `id2label` and `label2id`."""
        fields = dict(vars(self))
        if "id2label" in changes or "num_labels" in changes:
            for name in LABELS:
                del fields[name]
        return type(self)(**fields | self._canonical(changes))

    def overridden(self: AnyConfig, changes: Mapping[str, object]) -> AnyConfig:
        """Returns a copy with the fields that a caller of `from_pretrained` passed.

        Raises:
            InputError: a name is not a field, or a value is invalid.
        """
        known = {one.name for one in dataclasses.fields(self)} | self.aliases.keys()
        known -= {"extra", "generation"}
        for name in changes:
            if name not in known:
                hint = f"; {ELSEWHERE[name]}" if name in ELSEWHERE else suggest(name, known)
                raise InputError(
                    f"{name}: not an argument of from_pretrained, nor a field of "
                    f"{type(self).__name__}{hint}"
                )
        try:
            return self.replace(**changes)
        except ConfigError as reason:
            raise InputError(f"{reason}") from None

    @classmethod
    def _sized(cls: type[AnyConfig], changes: Mapping[str, Any], **sizes: Any) -> AnyConfig:
        """Returns a config of some sizes, of which `changes` may override any."""
        return cls(**sizes | cls._canonical(changes))

    @classmethod
    def from_dict(
        cls: type[AnyConfig],
        data: object,
        where: str = "config",
        generation: Mapping[str, object] | None = None,
    ) -> AnyConfig:
        """Builds a config from the contents of a config.json (and of a generation_config.json).

        Raises:
            ConfigError: a field has an invalid value.
            UnsupportedConfigError: a field requests something that is not implemented.
        """
        if not isinstance(data, dict):
            raise ConfigError(f"{where}: expected an object of fields, found {type(data).__name__}")
        if data.get("model_type", cls.model_type) != cls.model_type:
            found = shown(data["model_type"])
            raise ConfigError(f"{where}: model_type: expected {cls.model_type!r}, found {found}")
        refuse(data, cls._refused(data), where=f"{where}: ")
        ours = {field.name for field in dataclasses.fields(cls)} - {"extra", "generation"}
        try:
            data = cls._canonical(data)
            extra = {name: value for name, value in data.items() if name not in ours}
            given = {name: data[name] for name in ours & data.keys()}
            for name in LABELS:
                if given.get(name, 0) is None:
                    del given[name]  # null: derived from the other fields of labels
            return cls(**checked(cls, given), extra=extra, generation=generation)
        except ConfigError as reason:
            raise type(reason)(f"{where}: {reason}") from None

    @classmethod
    def _refused(cls, data: Mapping[str, Any]) -> Neutral:
        """Returns the fields that are not implemented, with the values that change nothing."""
        return cls.refused_fields

    @classmethod
    def from_json(cls: type[AnyConfig], path: str) -> AnyConfig:
        """Reads a config.json file; see `from_dict`."""
        return cls.from_dict(read_json(path), path)

    @classmethod
    def from_pretrained(
        cls: type[AnyConfig],
        source: AnyPath,
        *,
        revision: str | None = None,
        subfolder: str = "",
        cache_dir: AnyPath | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        **fields: object,
    ) -> AnyConfig:
        """Reads the config of a checkpoint, without its weights, from a folder or the Hub.

        Args:
            source: a folder with a config.json, or a repository of the Hub.
            revision: a branch, tag or commit of the repository.
            subfolder: the path of the model in the folder or repository.
            cache_dir: a folder to use instead of the Hub's default cache.
            token: access token for private repositories.
            local_files_only: whether to use only the Hub's cache.
            fields: fields that override the checkpoint's.

        Raises:
            SourceError: there is no such config.
            ConfigError: a field has an invalid value.
            UnsupportedConfigError: a field requests something that is not implemented.
            InputError: a name in `fields` is not a field, or its value is invalid.
        """
        data, path, generation = read_config(
            source,
            revision=revision,
            subfolder=subfolder,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
        )
        config = cls.from_dict(data, path, generation)
        return config.overridden(fields) if fields else config

    def save_pretrained(self, folder: AnyPath, *, overwrite: bool = False) -> None:
        """Writes config.json, and generation_config.json if there was one, into a folder.

        All other files of the folder are left alone.

        Args:
            folder: the target folder.
            overwrite: whether to replace such files.

        Raises:
            TargetError: the folder contains such a file, or cannot be written.
        """
        with new_files(folder, overwrite) as new:
            write_config_files(self.to_dict(), self.generation, new)

    @property
    def ignored_fields(self) -> tuple[str, ...]:
        """The fields of the file that Hugging Face's class does not define and thus ignores."""
        refused = self._refused(vars(self)).keys()
        return tuple(sorted(self.extra.keys() - INERT_FIELDS - refused))

    def to_dict(self) -> dict[str, Any]:
        """Returns the contents of a config.json, with `extra` and without default labels."""
        fields = dict(vars(self))
        del fields["generation"], fields["num_labels"]
        data = {**unfreeze(fields.pop("extra")), **fields, "model_type": self.model_type}
        if self.is_causal is None:
            del data["is_causal"]  # to transformers null is not the default
        data["id2label"] = {str(index): name for index, name in self.id2label.items()}
        data["label2id"] = dict(self.label2id)
        plain = _default_labels(2)
        if self.id2label == plain:
            del data["id2label"]
            if self.label2id == _inverse(plain):
                del data["label2id"]
        return data


def read_config(
    source: AnyPath, **where: Unpack[HubOptions]
) -> tuple[Any, str, dict[str, Any] | None]:
    """Returns the contents of config.json, its path, and the contents of generation_config.json.

    Args:
        source: a folder, or a repository of the Hub.
        where: other arguments of `hub.model_folder`.
    """
    folder = model_folder(source, weights=False, **where)
    with unchanged(folder):
        path = os.path.join(folder, "config.json")
        return read_json(path), path, read_object_if_there(os.path.join(folder, GENERATION))


def new_files(folder: AnyPath, overwrite: bool) -> AbstractContextManager[str]:
    """Returns the context of a staging folder, whose files are moved to `folder`; others stay."""
    return atomic_folder(folder, owned=lambda folder: [], overwrite=overwrite)


def write_config_files(
    data: Mapping[str, Any], generation: Mapping[str, Any] | None, folder: str
) -> None:
    """Writes config.json, and generation_config.json unless `generation` is None."""
    write_json(data, os.path.join(folder, "config.json"))
    if generation is not None:
        write_json(unfreeze(dict(generation)), os.path.join(folder, GENERATION))


def _default_labels(count: int) -> dict[int, str]:
    return {index: f"LABEL_{index}" for index in range(count)}


def _inverse(labels: Mapping[int, str]) -> dict[str, int]:
    return {name: index for index, name in labels.items()}
