"""LoRA's settings: the fields of PEFT's `LoraConfig`, and which modules they select."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from flax.core import FrozenDict

from minibert.errors import InputError, UnsupportedConfigError, shown

DRAWN = (True, False, "gaussian")  # the others need data, or change the frozen kernels

# PEFT's task types, each with the heads that its models train whole whatever they adapt.
TASK_HEADS: dict[str, tuple[str, ...]] = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
    "CAUSAL_LM": (),
    "SEQ_2_SEQ_LM": (),
    "FEATURE_EXTRACTION": (),
}

Rule = tuple[
    str, Callable[[Any], bool], Callable[[Any], Any]
]  # what it says, whether, in which form


def _several(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple | set | frozenset) else [value]


def _is_expression(value: Any) -> bool:
    try:
        re.compile(value)
    except (re.error, TypeError):
        return False
    return isinstance(value, str) and value != ""


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < float("inf")


def _is_rank(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**31


def _tuple(value: Any) -> tuple[Any, ...] | None:
    return None if value is None else tuple(dict.fromkeys(_several(value))) or None


def _same(value: Any) -> Any:
    return value


def _by_module(what: str, rule: Callable[[Any], bool]) -> Rule:
    return (
        f"module → {what}",
        lambda v: (
            isinstance(v, Mapping) and all(map(_is_expression, v)) and all(map(rule, v.values()))
        ),
        FrozenDict,
    )


_SWITCH: Rule = ("true or false", lambda v: type(v) is bool, _same)
_NOTE: Rule = ("a text or null", lambda v: v is None or isinstance(v, str), _same)
_NAMES: Rule = (
    "names or null",
    lambda v: v is None or all(isinstance(name, str) and name for name in _several(v)),
    _tuple,
)
_MODULES: Rule = (
    "names, a regular expression or null",
    lambda v: _is_expression(v) if isinstance(v, str) else _NAMES[1](v),
    lambda v: v if isinstance(v, str) else _tuple(v),
)
_RULES: dict[str, Rule] = {
    "r": ("a whole number of at least 1", _is_rank, _same),
    "lora_alpha": ("a number above 0", _is_number, _same),
    "use_rslora": _SWITCH,
    "target_modules": _MODULES,
    "exclude_modules": _MODULES,
    "layers_to_transform": (
        "a layer's number, several or null",
        lambda v: v is None or all(type(n) is int and n >= 0 for n in _several(v)),
        _tuple,
    ),
    "layers_pattern": (
        "regular expressions or null",
        lambda v: v is None or all(map(_is_expression, _several(v))),
        _tuple,
    ),
    "rank_pattern": _by_module("a whole number of at least 1", _is_rank),
    "alpha_pattern": _by_module("a number above 0", _is_number),
    "modules_to_save": _NAMES,
    "bias": _NOTE,
    "fan_in_fan_out": ("true, false or null", lambda v: v is None or type(v) is bool, _same),
    "lora_dropout": (
        "a number from 0 to 1",
        lambda v: type(v) in (int, float) and 0 <= v <= 1,
        float,
    ),
    "init_lora_weights": ("true, false or a name", lambda v: type(v) in (bool, str), _same),
    "base_model_name_or_path": _NOTE,
    "task_type": (
        f"{', '.join(TASK_HEADS)} or null",
        lambda v: v is None or (isinstance(v, str) and v in TASK_HEADS),
        lambda v: next((task for task in TASK_HEADS if task == v), None),  # PEFT's may be an enum
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRA:
    """Which kernels get an adapter, and of which rank.

    Attributes:
        r: the rank.
        lora_alpha: the product of both factors counts `lora_alpha / r`.
        use_rslora: whether it counts `lora_alpha / √r` (Kalajdzievski, arXiv:2312.03732).
        target_modules: names of linear layers: whole paths, or ends of paths after a dot; or a
            regular expression for whole paths; or `all-linear`. None for the family's usual ones
            (BERT's queries and values, GPT-2's joint projection).
        exclude_modules: names, or an expression: what to leave alone all the same.
        layers_to_transform: a number or numbers of layers: the others are left alone.
        layers_pattern: how the list of layers is called, for paths with several numbers in them.
        rank_pattern: another `r` by module: an expression for the end of its path.
        alpha_pattern: another `lora_alpha`, likewise.
        modules_to_save: ends of the paths of modules that are trained whole, such as `classifier`.
            `task_type` adds to them.
        bias: `none`.
        fan_in_fan_out: whether the targets' checkpoints keep kernels as (in, out), as GPT-2's do.
            None to go by the model; it must be right where it is given.
        lora_dropout: of an adapter's inputs. An adapter that has it can be used, but not trained.
        init_lora_weights: True to draw `lora_A` from a uniform distribution, and begin with the
            model as it is; `gaussian` from a normal one; False to draw `lora_B` too.
        base_model_name_or_path: a note for PEFT.
        task_type: one of PEFT's. As in PEFT, `SEQ_CLS` and `TOKEN_CLS` add `classifier` and
            `score` to `modules_to_save`, and `QUESTION_ANS` adds `qa_outputs`, so that the head is
            trained whole and gets no adapter.

    Raises:
        InputError: a field holds an impossible value.
        UnsupportedConfigError: a field asks for what is not implemented.
    """

    r: Any = 8
    lora_alpha: Any = 8
    use_rslora: Any = False
    target_modules: Any = None
    exclude_modules: Any = None
    layers_to_transform: Any = None
    layers_pattern: Any = None
    rank_pattern: Any = dataclasses.field(default_factory=FrozenDict)
    alpha_pattern: Any = dataclasses.field(default_factory=FrozenDict)
    modules_to_save: Any = None
    bias: Any = "none"
    fan_in_fan_out: Any = None
    lora_dropout: Any = 0.0
    init_lora_weights: Any = True
    base_model_name_or_path: Any = None
    task_type: Any = None

    def __post_init__(self):
        for name, (expected, allowed, converted) in _RULES.items():
            value = getattr(self, name)
            if not allowed(value):
                raise InputError(f"{name}: expected {expected}, found {shown(value)}")
            object.__setattr__(self, name, converted(value))
        heads = TASK_HEADS.get(self.task_type, ())
        if heads:
            names = dict.fromkeys([*(self.modules_to_save or ()), *heads])
            object.__setattr__(self, "modules_to_save", tuple(names))
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
            raise InputError("layers_to_transform: expected names in target_modules with it")
        if self.layers_pattern is not None and self.layers_to_transform is None:
            raise InputError("layers_pattern: expected layers_to_transform with it")

    def rank(self, path: str) -> int:
        """The rank of a module's adapter."""
        return _first(self.rank_pattern, path, self.r)

    def scaling(self, path: str) -> float:
        """What the product of a module's two factors counts."""
        rank = self.rank(path)
        alpha = _first(self.alpha_pattern, path, self.lora_alpha)
        return alpha / (rank**0.5 if self.use_rslora else rank)

    def saves(self, path: str) -> bool:
        """Whether a module is trained whole."""
        return path.endswith(self.modules_to_save or ())

    def saves_within(self, path: str) -> bool:
        """Whether a module is, or is part of, one that is trained whole."""
        return any(f".{module}." in f".{path}." for module in self.modules_to_save or ())

    def selects(self, path: str, targets: str | tuple[str, ...]) -> bool:
        """Whether a module gets an adapter, if those are the targets."""
        if self.exclude_modules and _named(path, self.exclude_modules):
            return False
        if self.saves_within(path):
            return False
        if isinstance(targets, str) or path in targets:
            return _named(path, targets)
        return _named(path, targets) and self._in_layers(path)

    def _in_layers(self, path: str) -> bool:
        if self.layers_to_transform is None:
            return True
        parts = path.split(".")
        for pattern in self.layers_pattern or (r".*\..*",):  # by default, any list in a module
            for place, part in enumerate(parts[:-1]):
                if part.isdecimal() and _ends(pattern, ".".join(parts[:place])):
                    return int(part) in self.layers_to_transform
        return False


def _named(path: str, names: str | tuple[str, ...]) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, path) is not None
    return path in names or path.endswith(tuple(f".{name}" for name in names))


def _ends(pattern: str, path: str) -> bool:
    return re.fullmatch(rf"(?:.*\.)?(?:{pattern})", path) is not None


def _first(patterns: Mapping[str, Any], path: str, default: Any) -> Any:
    return next((value for pattern, value in patterns.items() if _ends(pattern, path)), default)
