"""Compiled programs of models, and a model as a fast callable, with next to no cost a call.

`nnx.jit` walks the module tree on every call, 10 ms and more of a twelve-layer model. Here the tree
is flattened once: its definition is closed over, its leaves are passed as arguments (a captured
weight would become a constant of the program).
"""

import functools
import inspect
from collections.abc import Callable, Hashable, Sequence
from types import FunctionType
from typing import Any, Generic, ParamSpec, TypeVar

import jax
import jax.export
import numpy as np
from flax import nnx

from minibert.core.checks import as_array, checked_indices, checked_zeros_and_ones, flag, whole
from minibert.errors import InputError, shown
from minibert.models.base import PretrainedModel
from minibert.models.inputs import index_limits
from minibert.models.stack import with_execution
from minibert.nn.cache import KVCache
from minibert.nn.tree import parameters

EXPORTED = {"input_ids", "attention_mask", "token_type_ids", "position_ids"}
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
OPERATORS = {"floordiv", "max", "min", "mod"}  # not names in a shape of jax.export
PROGRAMS = 256  # functions kept for models to come, each with a program a shape
FLAGS = {"output_attentions", "output_hidden_states", "use_cache"}
POSITIONAL = inspect.Parameter.POSITIONAL_OR_KEYWORD
VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)

P = ParamSpec("P")
R = TypeVar("R")
Static = tuple[tuple[str, type, Any], ...]  # options by name, with their types


@functools.lru_cache(maxsize=PROGRAMS)
def program(
    function: FunctionType,
    treedef: jax.tree_util.PyTreeDef,
    *static: Hashable,
    donate: tuple[int, ...] = (),
) -> Callable[..., Any]:
    """Returns the compiled `function(model, *arguments, *static)`, called `(leaves, *arguments)`.

    Models of one architecture share it; parameters are no constants of it.

    Args:
        function: of a model and arrays; it must not be made anew for each call.
        treedef: the model's definition: `leaves, treedef = jax.tree.flatten(model)`.
        static: its last arguments, hashable.
        donate: the numbers of arguments whose memory the results may take; the leaves are 0.
    """

    def call(leaves: list[Any], *arguments: Any) -> Any:
        return function(jax.tree.unflatten(treedef, leaves), *arguments, *static)

    call.__name__ = function.__name__
    return jax.jit(call, donate_argnums=donate)


class Compiled(Generic[P, R]):
    """A model's call, compiled; made by `compiled`.

    Attributes:
        model: the model, as it was when it was compiled.
        config: its config.
        parameters: its arrays, by path.
    """

    def __init__(self, model: Callable[P, R]):
        self.model: Any = model
        self.config: Any = self.model.config
        self._leaves, self._treedef = jax.tree.flatten(with_execution(model, row_groups=True))
        self.parameters: dict[str, Any] = parameters(self.model)
        self._kinds = _parameters(model)
        self._names = [name for name, kind in self._kinds.items() if kind is POSITIONAL]
        self._programs: dict[Static, Callable[..., Any]] = {}

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Takes the model's own arguments and returns its own output.

        Raises:
            InputError: an argument is wrong, as for the model; or `rngs` are given, which a
                compiled model does not take: dropout is for training.
        """
        if len(args) > len(self._names):
            raise InputError(f"{len(args)} arguments; expected at most {len(self._names)}")
        given = dict(zip(self._names, args, strict=False))
        if twice := given.keys() & kwargs.keys():
            raise InputError(f"{sorted(twice)[0]}: given twice")
        given = _plain({n: v for n, v in (given | kwargs).items() if v is not None})
        if "rngs" in given:
            raise InputError("rngs: a compiled model has no dropout; call the model itself")
        arrays = {n: v for n, v in given.items() if not isinstance(v, bool | int | str)}
        # with their types: True and 1 are one key, but not one option
        static = tuple(sorted((n, type(v), v) for n, v in given.items() if n not in arrays))
        if static not in self._programs:
            self._programs[static] = program(_forward, self._treedef, static)
        return self._programs[static](self._leaves, _checked(self.model, arrays))

    def warm_up(self, *shapes: Sequence[int], **options: object) -> "Compiled[P, R]":
        """Compiles the programs of batches to come, by running each once.

        Args:
            shapes: of `input_ids`, each `(batch, seq)`, of multiple choice `(batch, choices, seq)`;
                an `attention_mask` of ones is passed too.
            options: the model's arguments that are no arrays, as they will be given;
                `attention_mask=None` if there will be none.

        Returns:
            Itself.

        Raises:
            InputError: a shape is none of positive whole numbers, or not one the model takes.
        """
        call: Any = self
        for shape in shapes:
            if not isinstance(shape, Sequence) or len(shape) < 2:
                raise InputError(f"shapes: expected (batch, seq), found {shown(shape)}")
            ones = np.ones([whole("shapes", size, 1) for size in shape], np.int32)
            given = {"input_ids": np.zeros_like(ones), "attention_mask": ones} | options
            jax.block_until_ready(call(**given))
        return self

    def export(
        self,
        shape: Sequence[int | str] = ("batch", "seq"),
        *,
        inputs: Sequence[str] = ("input_ids", "attention_mask"),
        platforms: Sequence[str] | None = None,
        **options: object,
    ) -> jax.export.Exported:
        """The program alone, for processes that have neither minibert nor Flax.

        `export().serialize()` is bytes for a file; JAX writes and reads them with flatbuffers. What
        `jax.export.deserialize` makes of them has a `call` that takes arrays by path, as in
        `parameters`, and int32 inputs by name; it returns the outputs by name. It does not check
        values: a word that the model does not know is NaN. The precision of its products is the
        one that holds while it is exported.

        Args:
            shape: of the inputs; a name in place of a number leaves that size open.
            inputs: which of the model's arguments: `token_type_ids` and `position_ids` too.
            platforms: those that it is for, such as `["cpu", "cuda", "tpu"]`; by default this one.
            options: the model's arguments that are no arrays, fixed in the program.

        Raises:
            InputError: an argument is wrong.
        """
        _check_some("inputs", inputs, [name for name in self._names if name in EXPORTED])
        if platforms is not None:
            _check_some("platforms", platforms, PLATFORMS)
        options = _plain(options)
        for name, value in options.items():
            if name not in self._kinds:
                raise InputError(f"{name}: is no argument of {type(self.model).__name__}")
            if name in EXPORTED:
                raise InputError(f"{name}: is an array; name it in inputs")
            if name == "rngs":
                raise InputError("rngs: an exported program has no dropout")
            if not isinstance(value, bool | int | str):
                raise InputError(f"{name}: expected an option, no array; found {shown(value)}")
        if options.get("use_cache"):
            raise InputError("use_cache: an exported program has no cache; found True")
        sizes = _open_shape(shape, self.config.max_tokens)

        def call(arrays: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
            leaves = [arrays[path] for path in self.parameters]
            return dict(jax.tree.unflatten(self._treedef, leaves)(**given, **options))

        shapes = jax.eval_shape(lambda: self.parameters)
        given = {name: jax.ShapeDtypeStruct(sizes, np.int32) for name in inputs}
        return jax.export.export(jax.jit(call), platforms=platforms)(shapes, given)

    def __repr__(self) -> str:
        return f"compiled({type(self.model).__name__})"


def compiled(model: Callable[P, R]) -> Compiled[P, R]:
    """A model in evaluation mode as a fast callable, with its own signature and outputs.

    It keeps the weights the model has now. Inputs are checked by value before every call. Models
    of one architecture share their programs.

    Raises:
        InputError: it is no model, or in training mode.
    """
    if not isinstance(model, nnx.Module) or not hasattr(model, "config"):
        raise InputError(f"model: expected a model, found {shown(type(model).__name__)}")
    check_evaluation(model)
    return Compiled(model)


def check_evaluation(model: nnx.Module) -> None:
    """Raises an `InputError` if dropout is on: a program without keys could not drop anything."""
    for _, module in nnx.iter_modules(model):
        if getattr(module, "deterministic", True) is False and getattr(module, "rate", 0):
            raise InputError("model: is in training mode; switch dropout off with model.eval()")


def _check_some(name: str, given: object, known: Sequence[str]) -> None:
    """Raises an `InputError` if an argument is no list of known names, with one at least."""
    if not isinstance(given, list | tuple) or not given or any(one not in known for one in given):
        raise InputError(f"{name}: expected some of {', '.join(known)}; found {shown(given)}")


def _open_shape(shape: object, longest: int) -> tuple[Any, ...]:
    """A shape for an export; what is open in its last size is at most what the model takes."""
    good = isinstance(shape, tuple | list) and len(shape) >= 2
    if not good or not all(
        size.isidentifier() and size not in OPERATORS
        if isinstance(size, str)
        else type(size) is int and size > 0
        for size in shape
    ):
        raise InputError(f'shape: expected such as ("batch", 128), found {shown(shape)}')
    bound = [f"{shape[-1]} <= {longest}"] if isinstance(shape[-1], str) else []
    return tuple(jax.export.symbolic_shape(", ".join(map(str, shape)), constraints=bound))


def _forward(model: Callable[..., Any], arrays: dict[str, Any], static: Static) -> Any:
    return model(**arrays, **{name: value for name, _, value in static})


def _plain(given: dict[str, Any]) -> dict[str, Any]:
    """The arguments, with numpy's scalars as Python's; flags are checked."""
    plain = {
        name: value.item() if isinstance(value, np.bool_ | np.integer) else value
        for name, value in given.items()
    }
    return plain | {name: flag(name, plain[name]) for name in FLAGS & plain.keys()}


def _checked(model: PretrainedModel, arrays: dict[str, Any]) -> dict[str, Any]:
    """The arguments, their values checked: shapes and dtypes are checked as they are traced."""
    limits, checked = index_limits(model), {}
    for name, value in arrays.items():
        if isinstance(value, KVCache):
            checked[name] = value
        elif name in limits:
            limit = limits[name]
            array = checked_indices(name, value, getattr(model.config, limit), limit)
            if isinstance(array, np.ndarray):
                array = array.astype(np.int32)  # one program for all
            checked[name] = array
        elif name in ("attention_mask", "encoder_attention_mask"):
            checked[name] = checked_zeros_and_ones(name, value).astype(bool)  # one program for all
        else:
            checked[name] = as_array(name, value)
            if not np.ndim(checked[name]):
                raise InputError(f"{name}: expected an option or an array, found {shown(value)}")
    return checked


def _parameters(model: Any) -> dict[str, Any]:
    """The kinds of a model's arguments by name; its trunk's too, if it passes arguments on."""
    own = {name: one.kind for name, one in inspect.signature(model).parameters.items()}
    kinds = set(own.values())
    named = {name: kind for name, kind in own.items() if kind not in VARIABLE}
    base = getattr(model, "base_model", None)
    if base is None or kinds.isdisjoint(VARIABLE):
        return named
    inherited = _parameters(base)
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return inherited | named  # positional arguments are the trunk's, in its order
    return named | dict.fromkeys(inherited.keys() - named, inspect.Parameter.KEYWORD_ONLY)
