"""Families of models: their classes, by tensors and by task."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

from minibert.checkpoint.config import Config
from minibert.checkpoint.tensors import Arrays
from minibert.models.base import ModelClass


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of models, as loading, pipelines, training, conversion and tests need it.

    Attributes:
        models: the classes of the family, the bare model first.
        by_heads: the class of a checkpoint whose config names none, by the heads among its tensors
            in the order of the classes' `heads`.
        causal: the classes that replace some of these if `is_decoder` is true.
        flax_names: other names that `architectures` may have: those that transformers' Flax classes
            wrote, where PyTorch's class has another one.
        tasks: the class of each task: the tasks of `minibert.pipeline`, multiple choice, and
            pretraining and continuation of `minibert train`. Feature extraction uses the bare
            model.
        foreign: a function that returns the tensors of another library's checkpoint under the names
            of transformers; None if they are not of that library.
    """

    models: tuple[ModelClass, ...]
    by_heads: Mapping[tuple[str, ...], ModelClass]
    tasks: Mapping[str, ModelClass]
    causal: Mapping[ModelClass, ModelClass] = dataclasses.field(default_factory=dict)
    flax_names: Mapping[str, ModelClass] = dataclasses.field(default_factory=dict)
    foreign: Callable[[Arrays], Arrays | None] | None = None

    def with_models(self, *models: ModelClass) -> "Family":
        """Returns a family of the same kind, with other classes in place of these, in order."""
        other = dict(zip(self.models, models, strict=True))
        return Family(
            models=models,
            by_heads={heads: other[cls] for heads, cls in self.by_heads.items()},
            tasks={task: other[cls] for task, cls in self.tasks.items()},
            causal={other[cls]: other[causal] for cls, causal in self.causal.items()},
        )

    @functools.cached_property
    def base(self) -> ModelClass:
        """The class of the bare model."""
        return self.models[0]

    @functools.cached_property
    def config(self) -> type[Config]:
        """The class of the config."""
        return self.base.config_class

    @functools.cached_property
    def model_type(self) -> str:
        """The config's `model_type`."""
        return self.config.model_type
