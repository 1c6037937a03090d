"""Knowledge distillation from a teacher's logits: Hinton et al., arXiv:1503.02531."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from minibert.checkpoint.config import Config
from minibert.core.fields import POSITIVE, PROBABILITY
from minibert.errors import InputError, shown
from minibert.models.base import PretrainedModel
from minibert.models.compilation import Compiled, compiled
from minibert.models.outputs import ModelOutput
from minibert.nn.numerics import common_dtype, wide_dtype, widen
from minibert.train.checkpoint_state import checksums
from minibert.train.fingerprint import digest
from minibert.train.objectives.base import Batch, Objective, Terms, model_arguments, output
from minibert.train.objectives.labels import check_finite


def distillation(
    objective: Objective, *, temperature: float = 2.0, alpha: float = 0.5
) -> Objective:
    """Returns α × T² × KL(teacher ‖ student) + (1 − α) × an objective with labels.

    The divergence is computed wherever the objective has a target. A batch must have
    `teacher_logits`, in the shape of the model's logits (`with_teacher` adds them).

    Args:
        objective: an objective with a single classification term, such as `causal_lm`.
        temperature: T, by which the logits of both models are divided.
        alpha: α, the weight of the divergence, from 0 to 1.

    Raises:
        InputError: an argument is wrong.
    """
    if not isinstance(objective, Objective):
        raise InputError(
            f"objective: expected an objective of minibert.train, found {shown(objective)}"
        )
    POSITIVE.check("temperature", temperature, InputError)
    PROBABILITY.check("alpha", alpha, InputError)

    def targets(batch: Batch) -> Terms:
        hard = objective.targets(batch)
        return {**hard, "distillation": _only(objective, hard)}

    def losses(outputs: ModelOutput, batch: Batch) -> Terms:
        student = output(outputs, "logits")
        soft = divergence(jnp.asarray(batch["teacher_logits"]), student, temperature)
        return {**objective.losses(outputs, batch), "distillation": soft}

    def check(config: Config, name: str, array: np.ndarray, batch: Batch) -> None:
        hard = jax.eval_shape(objective.targets, {key: np.asarray(batch[key]) for key in batch})
        expected = _only(objective, hard).shape
        if array.ndim < 2 or array.shape[:-1] != expected or array.shape[-1] < 2:
            raise InputError(
                f"{name}: expected shape {(*expected, 'classes')}, found {array.shape}"
            )
        check_finite(name, array)

    return dataclasses.replace(
        objective,
        name=f"distillation of {objective.name}",
        needs=(*objective.needs, ("teacher_logits",)),
        labels={**objective.labels, "teacher_logits": check},
        targets=targets,
        losses=losses,
        weights={objective.name: 1 - alpha, "distillation": alpha},
        settings={**objective.settings, "temperature": temperature, "alpha": alpha},
        weigh=None,
    )


def _only(objective: Objective, targets: Mapping[str, Any]) -> Any:
    """Returns the targets of an objective's only term, which has the objective's name."""
    if list(targets) != [objective.name]:
        raise InputError(
            f"objective: expected a single term {objective.name}; found {', '.join(targets)}"
        )
    return targets[objective.name]


def divergence(teacher: Array, student: Array, temperature: float | int) -> Array:
    """Returns T² × KL(teacher ‖ student), `(…)`, of logits `(…, classes)` divided by T.

    Raises:
        InputError: the shapes differ.
    """
    if teacher.shape != student.shape:
        raise InputError(
            f"teacher_logits: expected the shape of the model's logits, {student.shape}; found "
            f"{teacher.shape}"
        )
    dtype = wide_dtype(common_dtype(teacher.dtype, student.dtype))
    theirs = jax.nn.log_softmax(widen(teacher) / temperature).astype(dtype)
    ours = jax.nn.log_softmax(widen(student) / temperature).astype(dtype)
    return temperature**2 * jnp.sum(jnp.exp(theirs) * (theirs - ours), axis=-1)


def with_teacher(teacher: PretrainedModel, batches: Iterable[Batch]) -> Any:
    """Returns batches with the entry `teacher_logits`, a model's logits for each batch.

    The logits are computed by one compiled program per shape. The result can be iterated over
    repeatedly and resumed if `batches` can (as Grain's).

    Args:
        teacher: a model that returns `logits`, in evaluation mode.
        batches: the student's batches.

    Raises:
        InputError: the teacher does not return logits, or does not accept a batch.
    """
    fast = compiled(teacher)
    if iter(batches) is batches:
        return TeacherIterator(fast, batches)
    return TeacherBatches(fast, batches)


class TeacherBatches:
    """Iterable batches with a teacher's logits; see `with_teacher`."""

    def __init__(self, teacher: Compiled[..., Any], batches: Any):
        self._teacher, self._batches = teacher, batches

    @property
    def identity(self) -> Callable[[], dict[str, Any]]:
        """The method of the batches, which adds the teacher's checksum; missing if they lack it."""
        of_batches = self._batches.identity
        return lambda: {**of_batches(), "teacher": digest(checksums(self._teacher.parameters))}

    def __iter__(self) -> "TeacherIterator":
        return TeacherIterator(self._teacher, iter(self._batches))


@dataclasses.dataclass(frozen=True, eq=False)
class TeacherIterator:
    """Adds a teacher's logits to batches; has `get_state` and `set_state` if their iterator has."""

    teacher: Compiled[..., Any]
    batches: Iterator[Batch]

    def __iter__(self) -> "TeacherIterator":
        return self

    def __next__(self) -> dict[str, Any]:
        batch = next(self.batches)
        given = model_arguments(self.teacher.model, batch)
        return {**batch, "teacher_logits": jax.device_get(output(self.teacher(**given), "logits"))}

    def __getattr__(self, name: str) -> Any:
        if name in ("get_state", "set_state"):
            return getattr(self.batches, name)
        raise AttributeError(name)
