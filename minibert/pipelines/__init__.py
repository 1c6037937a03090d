"""Pipelines from texts to answers: the function `pipeline`, and a class for each task.

The reference is transformers' `pipelines`: tasks, names, options, keys and order are the same.
"""

import os
from typing import TYPE_CHECKING, Any, Literal, TypeGuard, TypeVar, overload

from minibert.checkpoint.files import one_state
from minibert.checkpoint.tokenizer import HUB_OPTIONS, load_tokenizer
from minibert.core.types import Path
from minibert.errors import InputError, shown
from minibert.models.base import PretrainedModel
from minibert.models.registry import LOADING_OPTIONS, load, load_model
from minibert.pipelines.base import Pipeline
from minibert.pipelines.feature_extraction import FeatureExtractionPipeline
from minibert.pipelines.fill_mask import FillMaskPipeline
from minibert.pipelines.options import BATCHING, routed, unknown
from minibert.pipelines.question_answering import QuestionAnsweringPipeline
from minibert.pipelines.text_classification import (
    NextSentencePredictionPipeline,
    TextClassificationPipeline,
)
from minibert.pipelines.text_generation import TextGenerationPipeline
from minibert.pipelines.token_classification import TokenClassificationPipeline
from minibert.pipelines.zero_shot import ZeroShotClassificationPipeline

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "FeatureExtractionPipeline",
    "FillMaskPipeline",
    "NextSentencePredictionPipeline",
    "Pipeline",
    "QuestionAnsweringPipeline",
    "TextClassificationPipeline",
    "TextGenerationPipeline",
    "TokenClassificationPipeline",
    "ZeroShotClassificationPipeline",
    "pipeline",
]

TASKS: dict[str, type[Pipeline]] = {
    cls.task: cls
    for cls in (
        FillMaskPipeline,
        TextClassificationPipeline,
        ZeroShotClassificationPipeline,
        TokenClassificationPipeline,
        QuestionAnsweringPipeline,
        FeatureExtractionPipeline,
        TextGenerationPipeline,
        NextSentencePredictionPipeline,
    )
}
ALIASES = {"ner": "token-classification", "sentiment-analysis": "text-classification"}


Own = TypeVar("Own", bound=Pipeline)
ModelOrPath = Path | PretrainedModel


@overload
def pipeline(
    task: str, model: ModelOrPath, *, pipeline_class: type[Own], **options: object
) -> Own: ...


@overload
def pipeline(
    task: Literal["fill-mask"], model: ModelOrPath, **options: object
) -> FillMaskPipeline: ...


@overload
def pipeline(
    task: Literal["text-classification", "sentiment-analysis"],
    model: ModelOrPath,
    **options: object,
) -> TextClassificationPipeline: ...


@overload
def pipeline(
    task: Literal["zero-shot-classification"], model: ModelOrPath, **options: object
) -> ZeroShotClassificationPipeline: ...


@overload
def pipeline(
    task: Literal["token-classification", "ner"], model: ModelOrPath, **options: object
) -> TokenClassificationPipeline: ...


@overload
def pipeline(
    task: Literal["question-answering"], model: ModelOrPath, **options: object
) -> QuestionAnsweringPipeline: ...


@overload
def pipeline(
    task: Literal["feature-extraction"], model: ModelOrPath, **options: object
) -> FeatureExtractionPipeline: ...


@overload
def pipeline(
    task: Literal["text-generation"], model: ModelOrPath, **options: object
) -> TextGenerationPipeline: ...


@overload
def pipeline(
    task: Literal["next-sentence-prediction"], model: ModelOrPath, **options: object
) -> NextSentencePredictionPipeline: ...


@overload
def pipeline(task: str, model: ModelOrPath, **options: object) -> Pipeline: ...


@overload
def pipeline(task: None = None, *, model: ModelOrPath, **options: object) -> Pipeline: ...


def pipeline(
    task: str | None = None,
    model: ModelOrPath | None = None,
    *,
    tokenizer: "Path | PreTrainedTokenizerBase | None" = None,
    pipeline_class: type[Pipeline] | None = None,
    **options: Any,
) -> Pipeline:
    """Returns the pipeline of a task.

    Args:
        task: fill-mask, text-classification (sentiment-analysis), zero-shot-classification,
            token-classification (ner), question-answering, feature-extraction, text-generation or
            next-sentence-prediction. By default the task of the model's class, or of the class that
            the checkpoint names.
        model: a folder or a repository of the Hub, from which the task's class is loaded, whatever
            class the checkpoint names; or a model.
        tokenizer: a tokenizer of transformers, or its folder or repository; by default that of the
            model.
        pipeline_class: a subclass of `Pipeline` to use in place of the task's class.
        options: arguments of `from_pretrained`, and defaults of the task's options.

    Raises:
        InputError: if the task or an option is unknown, or model and task do not fit.
        SourceError: if there is no such model, or no tokenizer.
        MissingHeadError: if the checkpoint lacks the task's head.

    Loading raises all other errors of `from_pretrained`.
    """
    name = ALIASES.get(task, task) if isinstance(task, str) else task
    if name is not None and (not isinstance(name, str) or name not in TASKS):
        raise InputError(unknown(shown(task), {*TASKS, *ALIASES}, "task"))
    if model is None:
        raise InputError("model: expected a folder, a repository of the Hub or a model, found None")
    given = {n: options.pop(n) for n in sorted(options.keys() & LOADING_OPTIONS)}
    with one_state(model, given):
        loaded = None if _is_place(model) else model
        if name is None:
            loaded = load(model, **given) if _is_place(model) else model
            name = _task_of(loaded)
        cls: Any = TASKS[name] if pipeline_class is None else pipeline_class
        if not (isinstance(cls, type) and issubclass(cls, Pipeline)):
            raise InputError(f"pipeline_class: expected a subclass of Pipeline, found {shown(cls)}")
        # detects unknown options before a model is loaded
        routed(cls, {n: v for n, v in options.items() if n not in BATCHING})
        if not _is_place(model):
            if given:
                raise InputError(f"{min(given)}: only for loading, but the model is already loaded")
            if tokenizer is None:
                raise InputError("tokenizer: required when the model is not a folder or repository")
        elif loaded is None:
            loaded = load_model(name, cls.models, model, decoder=cls.decoder, **given)
        source = model if tokenizer is None else tokenizer
        if _is_place(source):
            place = {n: given[n] for n in HUB_OPTIONS if n in given and tokenizer is None}
            source = load_tokenizer(source, **place)
    return cls(model=loaded, tokenizer=source, **options)


def _task_of(model: object) -> str:
    """Returns the first task whose pipeline takes a model."""
    for name, cls in TASKS.items():
        if type(model) in cls.models:
            return name
    found = type(model).__name__
    known = ", ".join(TASKS)
    raise InputError(f"task: not determined by a model of class {found}; expected one of {known}")


def _is_place(value: object) -> TypeGuard[Path]:
    return isinstance(value, str | os.PathLike)
