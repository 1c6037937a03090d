"""Classes by task: the family is the one that a checkpoint's config names, as in transformers."""

from typing import Any, ClassVar

import jax.numpy as jnp
from jax.typing import DTypeLike

from minibert.checkpoint.config import Config, read_config
from minibert.checkpoint.hub import AnyPath
from minibert.checkpoint.tokenizer import HUB_OPTIONS
from minibert.core.types import Dtype, Rngs
from minibert.errors import ConfigError, InputError, shown
from minibert.models.base import PretrainedModel
from minibert.models.registry import BY_TYPE, FAMILIES, load_model, task_classes


class AutoConfig:
    """The config of any family."""

    def __init__(self) -> None:
        raise TypeError("AutoConfig is not to be instantiated; call from_pretrained")

    @classmethod
    def from_pretrained(cls, source: AnyPath, **options: object) -> Config:
        """Reads the config of a checkpoint; arguments and errors are `Config.from_pretrained`'s."""
        where: Any = {name: options.pop(name) for name in HUB_OPTIONS if name in options}
        data, path, generation = read_config(source, **where)
        kind = data.get("model_type") if isinstance(data, dict) else None
        if not isinstance(kind, str) or kind not in BY_TYPE:
            known = " or ".join(map(repr, BY_TYPE))
            raise ConfigError(f"{path}: model_type: expected {known}, found {shown(kind)}")
        config = BY_TYPE[kind].config.from_dict(data, path, generation)
        return config.overridden(options) if options else config


class AutoModel:
    """The bare model of any family.

    Attributes:
        task: the name of the task, as in `Family.tasks`.
    """

    task: ClassVar[str] = "feature-extraction"

    def __init__(self) -> None:
        name = type(self).__name__
        raise TypeError(f"{name} is not to be instantiated; call from_pretrained or from_config")

    @classmethod
    def from_pretrained(cls, source: AnyPath, **options: Any) -> PretrainedModel:
        """Loads a checkpoint into its family's class for the task, whatever class saved it.

        Arguments and errors are those of `PretrainedModel.from_pretrained`; `minibert.load` loads
        a checkpoint into the class that it was saved from.

        Raises:
            ConfigError: the family has no class for the task.
            MissingHeadError: the checkpoint lacks the head, and `new_head` is off.
        """
        return load_model(cls.__name__, task_classes(cls.task), source, **options)

    @classmethod
    def from_config(
        cls,
        config: Config,
        *,
        rngs: Rngs,
        dtype: Dtype = None,
        param_dtype: DTypeLike = jnp.float32,
    ) -> PretrainedModel:
        """Returns a newly initialised model.

        Args:
            config: the config of a family.
            rngs: random keys; None builds shapes only.
            dtype: the dtype of computations; None for the dtype of the parameters.
            param_dtype: the dtype of the parameters.

        Raises:
            InputError: the family has no class for the task.
        """
        for found in task_classes(cls.task):
            if isinstance(config, Config) and found.config_class is type(config):
                return found(config, rngs=rngs, dtype=dtype, param_dtype=param_dtype)
        known = ", ".join(family.config.__name__ for family in FAMILIES)
        raise InputError(
            f"config: expected one of {known} for {cls.__name__}, found "
            f"{shown(type(config).__name__)}"
        )


class AutoModelForMaskedLM(AutoModel):
    """The masked language model of any family."""

    task = "fill-mask"


class AutoModelForCausalLM(AutoModel):
    """The next-token model of any family."""

    task = "text-generation"


class AutoModelForSequenceClassification(AutoModel):
    """The classifier of texts of any family."""

    task = "text-classification"


class AutoModelForTokenClassification(AutoModel):
    """The classifier of tokens of any family."""

    task = "token-classification"


class AutoModelForQuestionAnswering(AutoModel):
    """The extractive question answering model of any family."""

    task = "question-answering"


class AutoModelForMultipleChoice(AutoModel):
    """The multiple-choice model of any family that has one."""

    task = "multiple-choice"


class AutoModelForNextSentencePrediction(AutoModel):
    """The next-sentence model of any family that has one."""

    task = "next-sentence-prediction"
