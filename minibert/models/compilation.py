"""Compiled programs of models, and `compiled`, a model as a callable with little overhead.

`nnx.jit` traverses the module tree on every call, which takes 10 ms and more for twelve layers.
Here the tree is flattened once: its definition is closed over, and its leaves are passed as
arguments (a captured weight would become a constant of the program).
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

from minibert.core.checks import (
    as_array,
    checked_indices,
    checked_mask,
    checked_zeros_and_ones,
    flag,
    whole,
)
from minibert.errors import InputError, shown
from minibert.models.arguments import refuse_unknown
from minibert.models.base import PretrainedModel
from minibert.models.inputs import index_limits
from minibert.models.stack import with_execution
from minibert.nn.cache import KVCache
from minibert.nn.tree import parameters
from minibert.sharding.placement import beside

EXPORTED = {"input_ids", "attention_mask", "token_type_ids", "position_ids"}
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
OPERATORS = {"floordiv", "max", "min", "mod"}  # reserved words in shapes of jax.export
PROGRAMS = 512  # most compiled programs that are kept; the least recently used are dropped
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
    shapes: Hashable = (),
) -> Callable[..., Any]:
    """Returns the compiled `function(model, *arguments, *static)`, called `(leaves, *arguments)`.

    Models of one architecture share it: parameters are arguments, not constants. JAX keeps the
    programs of all shapes as long as the function that it compiled; one for each combination of
    shapes can be dropped.

    Args:
        function: a function of a model and arrays; it must be the same object in every call.
        treedef: the model's definition: `leaves, treedef = jax.tree.flatten(model)`.
        static: hashable last arguments of `function`.
        donate: indices of the arguments whose buffers are donated; index 0 is the leaves.
        shapes: the shapes for which the function is compiled.
    """

    def call(leaves: list[Any], *arguments: Any) -> Any:
        return function(jax.tree.unflatten(treedef, leaves), *arguments, *static)

    call.__name__ = function.__name__
    return jax.jit(call, donate_argnums=donate)


@functools.lru_cache(maxsize=PROGRAMS)
def shared(treedef: jax.tree_util.PyTreeDef) -> jax.tree_util.PyTreeDef:
    """Returns the same object for equal definitions, which take long to compare."""
    return treedef


class Programs:
    """The compiled functions of a model with its current weights; they can be pickled.

    Attributes:
        leaves, treedef: the model.
    """

    def __init__(self, model: nnx.Module):
        self.leaves: list[Any]
        self.leaves, treedef = jax.tree.flatten(model)
        self.treedef: jax.tree_util.PyTreeDef = shared(treedef)

    def __call__(self, function: FunctionType, *static: Hashable) -> Callable[..., Any]:
        """Returns the compiled `function(model, *arguments, *static)`, called `(*arguments)`."""

        def call(*arguments: Any) -> Any:
            given = beside(self.leaves[0], arguments)
            shapes = tuple(map(jax.typeof, jax.tree.leaves(given)))
            compiled = program(function, self.treedef, *static, shapes=shapes)
            return compiled(self.leaves, *given)

        return call


class Compiled(Generic[P, R]):
    """A compiled model; returned by `compiled`.

    Attributes:
        model: the model.
        config: the config of the model.
        parameters: the arrays of the model at the time it was compiled, by path.
        programs: the compiled programs.
    """

    def __init__(self, model: Callable[P, R]):
        self.model: Any = model
        self.config: Any = self.model.config
        self.programs: Programs = Programs(with_execution(model, row_groups=True))
        self.parameters: dict[str, Any] = parameters(self.model)
        self._kinds = _parameters(model)
        self._names = [name for name, kind in self._kinds.items() if kind is POSITIONAL]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Takes the arguments of the model's call and returns its output.

        Raises:
            InputError: an argument is invalid, as in the model's call; or `rngs` is passed: a
                compiled model is in evaluation mode.
        """
        if len(args) > len(self._names):
            raise InputError(
                f"expected at most {len(self._names)} positional arguments, found {len(args)}"
            )
        given = dict(zip(self._names, args, strict=False))
        if twice := given.keys() & kwargs.keys():
            raise InputError(f"{sorted(twice)[0]}: passed both by position and by name")
        refuse_unknown(self.model, kwargs, self._kinds)
        given = _plain({n: v for n, v in (given | kwargs).items() if v is not None})
        if "rngs" in given:
            raise InputError("rngs: a compiled model has no dropout; call the model itself")
        arrays = {n: v for n, v in given.items() if not isinstance(v, bool | int | str)}
        # with their types: True and 1 are one key, but not one option
        static = tuple(sorted((n, type(v), v) for n, v in given.items() if n not in arrays))
        return self.programs(_forward, static)(_checked(self.model, arrays))

    def warm_up(self, *shapes: Sequence[int], **options: object) -> "Compiled[P, R]":
        """Compiles the programs for batches of some shapes by executing each once.

        Args:
            shapes: shapes of `input_ids`: `(batch, seq)`, for multiple choice
                `(batch, choices, seq)`; an `attention_mask` of ones is passed too.
            options: non-array arguments of the model as later calls will pass them;
                `attention_mask=None` if they will pass no mask.

        Returns:
            The object itself.

        Raises:
            InputError: a shape does not consist of positive integers, or the model rejects it.
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
        """Exports the program for processes that have neither minibert nor Flax.

        `export().serialize()` returns bytes for a file; JAX needs flatbuffers to write and to read
        them. The object that `jax.export.deserialize` makes of them has a `call` that takes arrays
        by path, as in `parameters`, and int32 inputs by name; it returns the outputs by name. It
        does not check values: a token id outside the vocabulary yields NaN. The precision of matrix
        products is the one that is in effect during the export.

        Args:
            shape: the shape of the inputs; a name in place of a number leaves that size open.
            inputs: names of array arguments; `token_type_ids` and `position_ids` are possible too.
            platforms: target platforms, such as `["cpu", "cuda", "tpu"]`; by default this one.
            options: non-array arguments of the model, fixed in the program.

        Raises:
            InputError: an argument is invalid.
        """
        _check_some("inputs", inputs, [name for name in self._names if name in EXPORTED])
        if platforms is not None:
            _check_some("platforms", platforms, PLATFORMS)
        options = _plain(options)
        for name, value in options.items():
            if name not in self._kinds:
                raise InputError(f"{name}: not an argument of {type(self.model).__name__}")
            if name in EXPORTED:
                raise InputError(f"{name}: an array argument; name it in inputs")
            if name == "rngs":
                raise InputError("rngs: an exported program has no dropout")
            if not isinstance(value, bool | int | str):
                raise InputError(
                    f"{name}: expected a bool, an int or a string, found {shown(value)}"
                )
        if options.get("use_cache"):
            raise InputError("use_cache: an exported program has no cache; found True")
        sizes = _open_shape(shape, self.config.max_tokens)

        def call(arrays: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
            leaves = [arrays[path] for path in self.parameters]
            return dict(jax.tree.unflatten(self.programs.treedef, leaves)(**given, **options))

        shapes = jax.eval_shape(lambda: self.parameters)
        given = {name: jax.ShapeDtypeStruct(sizes, np.int32) for name in inputs}
        return jax.export.export(jax.jit(call), platforms=platforms)(shapes, given)

    def __repr__(self) -> str:
        return f"compiled({type(self.model).__name__})"


def compiled(model: Callable[P, R]) -> Compiled[P, R]:
    """Returns a fast callable with the signature and outputs of a model in evaluation mode.

    It keeps the current weights of the model. The values of its inputs are checked before every
    call. Models of one architecture share their programs.

    Raises:
        InputError: `model` is not a model, or is in training mode.
    """
    if not isinstance(model, nnx.Module) or not hasattr(model, "config"):
        raise InputError(f"model: expected a model, found {shown(type(model).__name__)}")
    check_evaluation(model)
    return Compiled(model)


def check_evaluation(model: nnx.Module) -> None:
    """Raises an `InputError` if dropout is on, which a program without random keys cannot apply."""
    for _, module in nnx.iter_modules(model):
        if getattr(module, "deterministic", True) is False and getattr(module, "rate", 0):
            raise InputError(
                "model: expected evaluation mode, found training mode; call model.eval()"
            )


def _check_some(name: str, given: object, known: Sequence[str]) -> None:
    """Raises an `InputError` if an argument is not a non-empty list of known names."""
    if not isinstance(given, list | tuple) or not given or any(one not in known for one in given):
        raise InputError(f"{name}: expected some of {', '.join(known)}; found {shown(given)}")


def _open_shape(shape: object, longest: int) -> tuple[Any, ...]:
    """Returns the symbolic shape for an export; a symbolic last size is at most `longest`."""
    good = isinstance(shape, tuple | list) and len(shape) >= 2
    if not good or not all(
        size.isidentifier() and size not in OPERATORS
        if isinstance(size, str)
        else type(size) is int and size > 0
        for size in shape
    ):
        raise InputError(
            f'shape: expected sizes or names, such as ("batch", 128), found {shown(shape)}'
        )
    bound = [f"{shape[-1]} <= {longest}"] if isinstance(shape[-1], str) else []
    return tuple(jax.export.symbolic_shape(", ".join(map(str, shape)), constraints=bound))


def _forward(model: Callable[..., Any], arrays: dict[str, Any], static: Static) -> Any:
    return model(**arrays, **{name: value for name, _, value in static})


def _plain(given: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments with NumPy scalars as Python's, after checking flags."""
    plain = {
        name: value.item() if isinstance(value, np.bool_ | np.integer) else value
        for name, value in given.items()
    }
    return plain | {name: flag(name, plain[name]) for name in FLAGS & plain.keys()}


def _checked(model: PretrainedModel, arrays: dict[str, Any]) -> dict[str, Any]:
    """Returns the arrays after checking their values; shapes and dtypes are checked by tracing."""
    limits, checked = index_limits(model), {}
    for name, value in arrays.items():
        if isinstance(value, KVCache):
            checked[name] = value
        elif name in limits:
            limit = limits[name]
            array = checked_indices(name, value, getattr(model.config, limit), limit)
            if isinstance(array, np.ndarray):
                array = array.astype(np.int32)  # one program for all integer dtypes
            checked[name] = array
        elif name == "attention_mask":
            checked[name] = checked_mask(name, value)
        elif name == "encoder_attention_mask":
            # one program for all dtypes of masks
            checked[name] = checked_zeros_and_ones(name, value).astype(bool)
        else:
            checked[name] = as_array(name, value)
            if not np.ndim(checked[name]):
                raise InputError(f"{name}: expected an option or an array, found {shown(value)}")
    return checked


def _parameters(model: Any) -> dict[str, Any]:
    """Returns the kinds of a model's arguments by name, with those it passes on to its trunk."""
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
