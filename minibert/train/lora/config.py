"""LoRA's settings: the fields of PEFT's `LoraConfig`, and the modules that they select."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.core import FrozenDict

from minibert.core.fields import (
    POSITIVE,
    PROBABILITY,
    SIZE,
    SWITCH,
    TEXT,
    Rule,
    assign,
    check,
    field,
    one_of,
    or_null,
    whole,
)
from minibert.errors import InputError, UnsupportedConfigError, shown
from minibert.models.arguments import refusing
from minibert.train.arguments import LORA
from minibert.train.lora.matching import first, is_expression, layer, named

ALL_LINEAR = "all-linear"
# Fields that are shown only if they have an effect: the checkpoints of earlier versions, which a
# run compares with its own settings, do not name them.
LATER = ("lora_bias", "use_dora", "trainable_token_indices")

DRAWN = (True, False, "gaussian")
READ = ("eva", "orthogonal")  # initialisations of `lora_A` and `lora_B` alone, of trained adapters

# PEFT's task types, each with the names of heads that its models always train whole.
TASK_HEADS: dict[str, tuple[str, ...]] = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
    "CAUSAL_LM": (),
    "SEQ_2_SEQ_LM": (),
    "FEATURE_EXTRACTION": (),
}


def _several(value: object) -> list[Any]:
    if isinstance(value, set | frozenset):  # its order changes from process to process
        return sorted(value, key=str)
    return list(value) if isinstance(value, list | tuple | range) else [value]


def _tuple(value: object) -> tuple[Any, ...] | None:
    return tuple(dict.fromkeys(_several(value))) or None


def _are_names(value: object) -> bool:
    return all(isinstance(name, str) and name for name in _several(value))


def _by_module(name: str, rule: Rule) -> Rule:
    return Rule(
        f"module → {rule.expected}",
        lambda v: (
            isinstance(v, Mapping)
            and all(is_expression(name, pattern) for pattern in v)
            and all(map(rule.allows, v.values()))
        ),
        lambda v: FrozenDict({name: rule.convert(one) for name, one in v.items()}),
    )


ALPHA = dataclasses.replace(  # an integer stays an integer
    POSITIVE, convert=lambda value: np.asarray(value).item()
)
NAMES = Rule("names or null", _are_names, _tuple)


def _modules(name: str, least: int) -> Rule:
    return Rule(
        "names, a regular expression or null",
        lambda v: (
            is_expression(name, v)
            if isinstance(v, str)
            else _are_names(v) and len(_several(v)) >= least
        ),
        lambda v: v if isinstance(v, str) else _tuple(v),
    )


LAYERS = Rule(
    "the index of a layer, several or null",
    lambda v: all(whole(0).allows(n) for n in _several(v)),
    lambda v: _tuple([int(n) for n in _several(v)]),
)
LISTS = Rule(
    "regular expressions or null",
    lambda v: v == "" or all(is_expression("layers_pattern", one) for one in _several(v)),
    lambda v: _tuple(v or ()),
)


def _are_tokens(value: object) -> bool:
    rows = value if isinstance(value, list | tuple | range) else ()
    return all(map(whole(0).allows, rows)) and 0 < len(set(rows)) == len(rows)


def _tokens(value: Any) -> Any:
    if isinstance(value, Mapping):
        return FrozenDict({name: _tokens(rows) for name, rows in value.items()})
    return tuple(map(int, value))


TOKENS = Rule(
    "distinct token ids, module → distinct token ids, or null",
    lambda v: (
        _are_names(list(v)) and all(map(_are_tokens, v.values())) and len(v) > 0
        if isinstance(v, Mapping)
        else _are_tokens(v)
    ),
    _tokens,
)
DRAWING = Rule("true, false or a name", lambda v: isinstance(v, bool | str))
TASK = Rule(
    f"{', '.join(TASK_HEADS)} or null",
    lambda v: isinstance(v, str) and v in TASK_HEADS,
    lambda v: next(task for task in TASK_HEADS if task == v),  # PEFT's may be an enum
)


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class LoRA:
    """The settings of LoRA adapters.

    Attributes:
        r: the rank.
        lora_alpha: the product of `lora_A` and `lora_B` is multiplied by `lora_alpha / r`.
        use_rslora: whether to multiply by `lora_alpha / √r` instead (Kalajdzievski,
            arXiv:2312.03732).
        target_modules: names of layers: whole paths, or ends of paths after a dot; or a
            regular expression for whole paths; or `all-linear`, all layers but those of tokens'
            logits. None for the family's defaults (BERT's queries and values, GPT-2's joint
            projection). Embedding matrices can be named, too.
        exclude_modules: names, or a regular expression, of targets to exclude.
        layers_to_transform: the indices of the layers to adapt; None for all.
        layers_pattern: the name of the list of layers, for paths with several indices.
        rank_pattern: other values of `r` by module: regular expressions for the ends of paths.
        alpha_pattern: other values of `lora_alpha`, in the same way.
        modules_to_save: ends of the paths of modules that are trained whole, such as `classifier`.
            `task_type` adds to them.
        bias: which of the model's own biases are trained: `none`, `all`, or `lora_only` for those
            of the layers that get an adapter.
        lora_bias: whether the outputs of `lora_B` get a bias.
        use_dora: whether the columns of a kernel and its update get a norm that is trained (Liu et
            al., arXiv:2402.09353).
        trainable_token_indices: the ids of tokens whose embeddings are trained; or embedding
            matrices, by the ends of their paths, each with such ids.
        fan_in_fan_out: whether checkpoints store the targets' kernels as (in, out), as GPT-2's do.
            It is ignored, because the model determines it, and written for PEFT.
        lora_dropout: the dropout rate of an adapter's inputs in training.
        init_lora_weights: True for a uniform `lora_A` and a zero `lora_B`, which does not change
            the model's outputs; `gaussian` for a normal `lora_A`; False for a uniform `lora_B` too.
            `eva` and `orthogonal` for adapters that PEFT has initialised.
        base_model_name_or_path: the base model's name; only stored, for PEFT.
        task_type: one of PEFT's task types. As in PEFT, `SEQ_CLS` and `TOKEN_CLS` add `classifier`
            and `score` to `modules_to_save`, and `QUESTION_ANS` adds `qa_outputs`, so that the head
            is trained whole and gets no adapter.

    Raises:
        InputError: a field has an invalid value.
        UnsupportedConfigError: a field requests something that is not implemented.
    """

    r: Any = field(SIZE, 8)
    lora_alpha: Any = field(ALPHA, 8)
    use_rslora: Any = field(SWITCH, False)
    target_modules: Any = field(_modules("target_modules", 1), None)
    exclude_modules: Any = field(_modules("exclude_modules", 0), None)
    layers_to_transform: Any = field(LAYERS, None)
    layers_pattern: Any = field(LISTS, None)
    rank_pattern: Any = field(_by_module("rank_pattern", SIZE), default_factory=FrozenDict)
    alpha_pattern: Any = field(_by_module("alpha_pattern", ALPHA), default_factory=FrozenDict)
    modules_to_save: Any = field(NAMES, None)
    bias: Any = field(one_of(("none", "all", "lora_only")), "none")
    lora_bias: Any = field(SWITCH, False)
    use_dora: Any = field(SWITCH, False)
    trainable_token_indices: Any = field(TOKENS, None)
    fan_in_fan_out: Any = field(Rule("true, false or null", SWITCH.allows), None)
    lora_dropout: Any = field(PROBABILITY, 0.0)
    init_lora_weights: Any = field(DRAWING, True)
    base_model_name_or_path: Any = field(or_null(TEXT), None)
    task_type: Any = field(TASK, None)

    def __post_init__(self) -> None:
        check(self, InputError)
        if isinstance(self.target_modules, str) and self.target_modules.lower() == ALL_LINEAR:
            assign(self, {"target_modules": ALL_LINEAR})
        if heads := TASK_HEADS.get(self.task_type):
            names = dict.fromkeys([*(self.modules_to_save or ()), *heads])
            assign(self, {"modules_to_save": tuple(names)})
        if self.init_lora_weights not in (*DRAWN, *READ):
            raise UnsupportedConfigError(
                f"init_lora_weights: {shown(self.init_lora_weights)} is not implemented (only "
                "true, false and 'gaussian'; others need data, or change the base model)"
            )
        if self.lora_bias and (self.use_dora or self.init_lora_weights == "gaussian"):
            other = "use_dora" if self.use_dora else "init_lora_weights='gaussian'"
            raise InputError(f"lora_bias: expected False with {other}, found True")
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            raise InputError(
                "layers_to_transform: expected a list of names in target_modules, found "
                f"{shown(self.target_modules)}"
            )
        if self.layers_pattern is not None and self.layers_to_transform is None:
            raise InputError("layers_pattern: expected layers_to_transform too, found None")

    def __repr__(self) -> str:
        shown_fields = (
            f"{one.name}={getattr(self, one.name)!r}"
            for one in dataclasses.fields(self)
            if one.name not in LATER or getattr(self, one.name) != one.default
        )
        return f"LoRA({', '.join(shown_fields)})"

    def rank(self, path: str) -> int:
        """Returns the rank of a module's adapter."""
        return first("rank_pattern", self.rank_pattern, path, self.r)

    def scaling(self, path: str) -> float:
        """Returns the factor by which the product of a module's `lora_A` and `lora_B` is scaled."""
        rank = self.rank(path)
        alpha = first("alpha_pattern", self.alpha_pattern, path, self.lora_alpha)
        return alpha / (rank**0.5 if self.use_rslora else rank)

    def saves(self, path: str) -> bool:
        """Returns whether a module is trained whole."""
        return path.endswith(self.modules_to_save or ())

    def saves_within(self, path: str) -> bool:
        """Returns whether a module is, or is part of, one that is trained whole."""
        return any(f".{module}." in f".{path}." for module in self.modules_to_save or ())

    def selects(self, path: str, targets: str | tuple[str, ...]) -> bool:
        """Returns whether a module gets an adapter, for some target names."""
        excluded = named(path, self.exclude_modules or ())
        if excluded or self.saves_within(path) or not named(path, targets):
            return False
        if isinstance(targets, str) or path in targets or self.layers_to_transform is None:
            return True
        return layer(path, self.layers_pattern) in self.layers_to_transform


LoRA.__init__ = refusing(LORA)(LoRA.__init__)  # ty: ignore[invalid-assignment]
