"""LoRA's settings: the fields of PEFT's `LoraConfig`, and the modules that they select."""

import dataclasses
import re
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
    or_null,
)
from minibert.errors import InputError, UnsupportedConfigError, shown

DRAWN = (True, False, "gaussian")  # other initialisations need data or change frozen kernels

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
    return list(value) if isinstance(value, list | tuple | set | frozenset) else [value]


def _is_expression(value: Any) -> bool:
    try:
        re.compile(value)
    except (re.error, TypeError):
        return False
    return isinstance(value, str) and value != ""


def _tuple(value: object) -> tuple[Any, ...] | None:
    return tuple(dict.fromkeys(_several(value))) or None


def _are_names(value: object) -> bool:
    return all(isinstance(name, str) and name for name in _several(value))


def _by_module(rule: Rule) -> Rule:
    return Rule(
        f"module → {rule.expected}",
        lambda v: (
            isinstance(v, Mapping)
            and all(map(_is_expression, v))
            and all(map(rule.allows, v.values()))
        ),
        lambda v: FrozenDict({name: rule.convert(one) for name, one in v.items()}),
    )


ALPHA = dataclasses.replace(  # an integer stays an integer
    POSITIVE, convert=lambda value: np.asarray(value).item()
)
NAMES = Rule("names or null", _are_names, _tuple)
MODULES = Rule(
    "names, a regular expression or null",
    lambda v: _is_expression(v) if isinstance(v, str) else _are_names(v),
    lambda v: v if isinstance(v, str) else _tuple(v),
)
LAYERS = Rule(
    "the index of a layer, several or null",
    lambda v: all(type(n) is int and n >= 0 for n in _several(v)),
    _tuple,
)
EXPRESSIONS = Rule(
    "regular expressions or null", lambda v: all(map(_is_expression, _several(v))), _tuple
)
DRAWING = Rule("true, false or a name", lambda v: isinstance(v, bool | str))
TASK = Rule(
    f"{', '.join(TASK_HEADS)} or null",
    lambda v: isinstance(v, str) and v in TASK_HEADS,
    lambda v: next(task for task in TASK_HEADS if task == v),  # PEFT's may be an enum
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRA:
    """The settings of LoRA adapters.

    Attributes:
        r: the rank.
        lora_alpha: the product of `lora_A` and `lora_B` is multiplied by `lora_alpha / r`.
        use_rslora: whether to multiply by `lora_alpha / √r` instead (Kalajdzievski,
            arXiv:2312.03732).
        target_modules: names of linear layers: whole paths, or ends of paths after a dot; or a
            regular expression for whole paths; or `all-linear`. None for the family's defaults
            (BERT's queries and values, GPT-2's joint projection).
        exclude_modules: names, or a regular expression, of targets to exclude.
        layers_to_transform: the indices of the layers to adapt; None for all.
        layers_pattern: the name of the list of layers, for paths with several indices.
        rank_pattern: other values of `r` by module: regular expressions for the ends of paths.
        alpha_pattern: other values of `lora_alpha`, in the same way.
        modules_to_save: ends of the paths of modules that are trained whole, such as `classifier`.
            `task_type` adds to them.
        bias: `none`.
        fan_in_fan_out: whether checkpoints store the targets' kernels as (in, out), as GPT-2's do;
            it must agree with the model. None to take it from the model.
        lora_dropout: the dropout rate of an adapter's inputs. An adapter with dropout can be used,
            but not trained.
        init_lora_weights: True for a uniform `lora_A` and a zero `lora_B`, which does not change
            the model's outputs; `gaussian` for a normal `lora_A`; False for a uniform `lora_B` too.
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
    target_modules: Any = field(MODULES, None)
    exclude_modules: Any = field(MODULES, None)
    layers_to_transform: Any = field(LAYERS, None)
    layers_pattern: Any = field(EXPRESSIONS, None)
    rank_pattern: Any = field(_by_module(SIZE), default_factory=FrozenDict)
    alpha_pattern: Any = field(_by_module(ALPHA), default_factory=FrozenDict)
    modules_to_save: Any = field(NAMES, None)
    bias: Any = field(or_null(TEXT), "none")
    fan_in_fan_out: Any = field(Rule("true, false or null", SWITCH.allows), None)
    lora_dropout: Any = field(PROBABILITY, 0.0)
    init_lora_weights: Any = field(DRAWING, True)
    base_model_name_or_path: Any = field(or_null(TEXT), None)
    task_type: Any = field(TASK, None)

    def __post_init__(self) -> None:
        check(self, InputError)
        if heads := TASK_HEADS.get(self.task_type):
            names = dict.fromkeys([*(self.modules_to_save or ()), *heads])
            assign(self, {"modules_to_save": tuple(names)})
        if self.bias != "none":
            raise UnsupportedConfigError(
                f"bias: {shown(self.bias)} is not implemented (only 'none')"
            )
        if self.init_lora_weights not in DRAWN:
            found = shown(self.init_lora_weights)
            raise UnsupportedConfigError(
                f"init_lora_weights: {found} is not implemented (only true, false and 'gaussian')"
            )
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            raise InputError(
                "layers_to_transform: expected a list of names in target_modules, found "
                f"{shown(self.target_modules)}"
            )
        if self.layers_pattern is not None and self.layers_to_transform is None:
            raise InputError("layers_pattern: expected layers_to_transform too, found None")

    def rank(self, path: str) -> int:
        """Returns the rank of a module's adapter."""
        return _first(self.rank_pattern, path, self.r)

    def scaling(self, path: str) -> float:
        """Returns the factor by which the product of a module's `lora_A` and `lora_B` is scaled."""
        rank = self.rank(path)
        alpha = _first(self.alpha_pattern, path, self.lora_alpha)
        return alpha / (rank**0.5 if self.use_rslora else rank)

    def saves(self, path: str) -> bool:
        """Returns whether a module is trained whole."""
        return path.endswith(self.modules_to_save or ())

    def saves_within(self, path: str) -> bool:
        """Returns whether a module is, or is part of, one that is trained whole."""
        return any(f".{module}." in f".{path}." for module in self.modules_to_save or ())

    def selects(self, path: str, targets: str | tuple[str, ...]) -> bool:
        """Returns whether a module gets an adapter, for some target names."""
        excluded = _named(path, self.exclude_modules or ()) or self.saves_within(path)
        if excluded or not _named(path, targets):
            return False
        return isinstance(targets, str) or path in targets or self._in_layers(path)

    def _in_layers(self, path: str) -> bool:
        if self.layers_to_transform is None:
            return True
        parts = path.split(".")
        for pattern in self.layers_pattern or (r".*\..*",):  # by default, any list in a module
            for position, part in enumerate(parts[:-1]):
                if part.isdecimal() and _ends(pattern, ".".join(parts[:position])):
                    return int(part) in self.layers_to_transform
        return False


def _named(path: str, names: str | tuple[str, ...]) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, path) is not None
    return path in names or path.endswith(tuple(f".{name}" for name in names))


def _ends(pattern: str, path: str) -> bool:
    return re.fullmatch(rf"(?:.*\.)?(?:{pattern})", path) is not None


def _first(patterns: Mapping[str, Any], path: str, default: object) -> Any:
    return next((value for pattern, value in patterns.items() if _ends(pattern, path)), default)
