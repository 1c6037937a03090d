"""AdamW and learning-rate schedules, built from optax."""

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from minibert.core.checks import check_choice, whole
from minibert.core.fields import BELOW_1, NON_NEGATIVE, POSITIVE
from minibert.errors import InputError, shown
from minibert.models.arguments import refusing
from minibert.train.arguments import ADAMW
from minibert.train.fingerprint import description

KINDS = ("linear", "cosine", "constant")
MOST = 2**31 - 1  # steps, which are counted in 32 bits
# Names of what `update` takes besides gradients, state and parameters. An optimiser gets the first
# group that it accepts: Sophia needs the first, and line searches accept only the second, which
# optax documents; `optax.contrib.sam` accepts only the third.
EXTRA_ARGUMENTS = (
    ("value", "grad", "value_fn", "grad_fn", "obj_fn"),
    ("value", "grad", "value_fn"),
    ("grad_fn",),
    (),
)
# from gradients, state, parameters, the loss, and the loss as a function of parameters, to updates
# and the next state
Update = Callable[[Any, Any, Any, Any, Callable[[Any], Any]], tuple[Any, Any]]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A learning-rate schedule that keeps its arguments.

    Attributes:
        rate: the learning rate as a function of the step.
        arguments: the arguments that the rate depends on, by name.
    """

    rate: optax.Schedule
    arguments: Mapping[str, Any]

    def __call__(self, step: ArrayLike) -> Any:
        """Returns the learning rate at a step, an int32 that is converted to a float."""
        # JAX computes quotients of an int32 in float32, in 64-bit mode too
        return self.rate(jnp.asarray(step, float))


class ConfiguredOptimizer(optax.GradientTransformationExtraArgs):
    """An optimiser that keeps its arguments.

    Attributes:
        arguments: the arguments by name, as JSON can represent them; a schedule of the caller is
            represented by its name.
        averages: whether it keeps an average of the parameters (see `averaged`).
    """

    arguments: Mapping[str, Any]
    averages: bool = False


def schedule(peak: float, steps: int, *, warmup: int = 0, kind: str = "linear") -> optax.Schedule:
    """Returns a learning-rate schedule: a linear warm-up from 0 to `peak`, then a decay to 0.

    The rates are those of `transformers.get_scheduler` at every step from 0 to `steps`; after that
    a decayed rate stays 0.

    Args:
        peak: the max learning rate.
        steps: the number of training steps, at which the decay ends.
        warmup: the number of steps of the warm-up, at most `steps`.
        kind: the decay: `linear`, `cosine`, or `constant` for none (transformers'
            `constant_with_warmup`).

    Raises:
        InputError: an argument is wrong.
    """
    peak, steps = NON_NEGATIVE.check("peak", peak, InputError), whole("steps", steps, 1, MOST)
    warmup = whole("warmup", warmup, 0, steps)
    check_choice("kind", kind, KINDS)
    rest = steps - warmup
    match kind:
        case "linear" if rest:
            down = optax.linear_schedule(peak, 0.0, rest)
        case "linear":  # transformers' line ends at 0 where a cosine of no length starts at 1
            down = optax.constant_schedule(0.0)
        case "cosine":
            down = optax.cosine_decay_schedule(peak, max(rest, 1))
        case _:
            down = optax.constant_schedule(peak)
    up = optax.linear_schedule(0.0, peak, max(warmup, 1))
    rate = optax.join_schedules([up, down], [warmup]) if warmup else down
    arguments = {"kind": kind, "peak": peak, "warmup": warmup}
    return Schedule(rate, arguments if kind == "constant" else {**arguments, "steps": steps})


@refusing(ADAMW)
def adamw(
    learning_rate: float | Callable[[Any], Any],
    *,
    weight_decay: float = 0.01,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    max_grad_norm: float | None = 1.0,
) -> optax.GradientTransformation:
    """Returns AdamW (Loshchilov and Hutter, arXiv:1711.05101) with clipping by the global norm.

    As is usual for BERT and GPT-2, weight decay applies to kernels and embeddings, not to biases
    and normalisations. The optimiser's state holds the learning rate, which the function
    `learning_rate` returns.

    Args:
        learning_rate: a number, or a schedule by step.
        weight_decay: the decay of weights per step, as a factor of the learning rate.
        b1, b2, eps: the decay rates of Adam's moments, and its epsilon.
        max_grad_norm: the max global norm of the gradients; None not to clip them.

    Raises:
        InputError: an argument is negative, not finite or not a number.
    """
    if not callable(learning_rate):
        learning_rate = NON_NEGATIVE.check("learning_rate", learning_rate, InputError)
    numbers = {"weight_decay": weight_decay, "b1": b1, "b2": b2, "eps": eps}
    for name, value in numbers.items():
        rule = BELOW_1 if name in ("b1", "b2") else NON_NEGATIVE
        rule.check(name, value, InputError)
    if max_grad_norm is not None:
        max_grad_norm = POSITIVE.check("max_grad_norm", max_grad_norm, InputError)
    rate = optax.inject_hyperparams(optax.scale_by_learning_rate)
    optimizer = optax.chain(
        optax.identity() if max_grad_norm is None else optax.clip_by_global_norm(max_grad_norm),
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        optax.add_decayed_weights(weight_decay, mask=decaying),
        rate(learning_rate=learning_rate),
    )
    found = ConfiguredOptimizer(*optimizer)
    found.arguments = {
        "learning_rate": getattr(learning_rate, "arguments", None) or description(learning_rate),
        **numbers,
        "max_grad_norm": max_grad_norm,
    }
    return found


@contextlib.contextmanager
def promoting() -> Generator[None]:
    """Allows JAX's promotions of dtypes and ranks, on which optax relies."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def decaying(params: Mapping[str, Any]) -> dict[str, bool]:
    """Returns by path whether weight decay applies to a parameter: to kernels and embeddings.

    As in transformers, it does not apply to MPNet's table `relative_attention_bias`.
    """
    return {path: "bias" not in path and not path.endswith("scale") for path in params}


def learning_rate(opt_state: object) -> Any:
    """Returns the learning rate of the last step; None unless the state holds exactly one."""
    found = optax.tree_utils.tree_get_all_with_path(
        opt_state, "learning_rate", lambda path, value: isinstance(value, Array)
    )
    return found[0][1] if len(found) == 1 else None


def initial_state(optimizer: optax.GradientTransformation, params: Mapping[str, Any]) -> Any:
    """Returns the state of an optimiser before the first step.

    Raises:
        InputError: the optimiser does not accept a dictionary of arrays.
    """
    try:
        with promoting():
            return optimizer.init(params)
    except (jax.errors.JaxRuntimeError, MemoryError):
        raise
    except Exception as reason:  # may be anything
        raise _unusable("init", reason) from reason


def checked_update(
    optimizer: optax.GradientTransformation, params: Mapping[str, Any], opt_state: object
) -> Update:
    """Returns an optimiser's `update`, to which the loss is passed in the form that it accepts.

    Args:
        optimizer: the optimiser.
        params: the parameters, or their shapes.
        opt_state: its state, or the shapes of its arrays.

    Raises:
        InputError: `update` accepts neither dictionaries of arrays alone nor one of
            `EXTRA_ARGUMENTS` in addition, or its updates are not for the same arrays.
    """
    loss = jax.ShapeDtypeStruct((), jnp.float32)
    failure: Exception = TypeError()
    for names in EXTRA_ARGUMENTS:
        update = _passing(optimizer, names)
        try:
            updates, _ = jax.eval_shape(
                lambda params, state, loss, update=update: update(
                    params, state, params, loss, sum_of_squares
                ),
                params,
                opt_state,
                loss,
            )
        except TypeError as reason:  # also if an argument is not known, or missing
            failure = reason
        except Exception as reason:
            raise _unusable("update", reason) from reason
        else:
            if _shapes(updates) != _shapes(params):
                raise InputError(
                    "optimizer: expected updates of the trained parameters, by path and in their "
                    "shapes; found others"
                )
            return update
    raise _unusable("update", failure) from failure


def sum_of_squares(params: object) -> Array:
    """Returns a scalar that stands for a loss where only the operations of an optimiser matter."""
    return sum((jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(params)), start=jnp.zeros(()))


def _passing(optimizer: optax.GradientTransformation, names: tuple[str, ...]) -> Update:
    update: Any = optax.with_extra_args_support(optimizer).update

    def passing(
        gradients: object,
        state: object,
        params: object,
        loss: object,
        loss_of: Callable[[Any], Any],
    ) -> Any:
        known = {
            "value": loss,
            "grad": gradients,
            "value_fn": loss_of,
            "grad_fn": lambda params, _: jax.grad(loss_of)(params),
            "obj_fn": loss_of,
        }
        with promoting():
            return update(gradients, state, params, **{name: known[name] for name in names})

    return passing


def _shapes(arrays: object) -> Any:
    return jax.tree.map(lambda leaf: leaf.shape, arrays)


def _unusable(function: str, reason: Exception) -> InputError:
    return InputError(
        f"optimizer: cannot train a dictionary of arrays by path: its {function} raised "
        f"{type(reason).__name__} ({shown(str(reason))})"
    )
