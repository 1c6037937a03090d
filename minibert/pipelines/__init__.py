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
from minibert.models.registry import LOADING_OPTIONS, load_model
from minibert.pipelines.base import Pipeline
from minibert.pipelines.feature_extraction import FeatureExtractionPipeline
from minibert.pipelines.fill_mask import FillMaskPipeline
from minibert.pipelines.options import routed, unknown
from minibert.pipelines.question_answering import QuestionAnsweringPipeline
from minibert.pipelines.text_classification import (
    NextSentencePredictionPipeline,
    TextClassificationPipeline,
)
from minibert.pipelines.text_generation import TextGenerationPipeline
from minibert.pipelines.token_classification import TokenClassificationPipeline

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
    "pipeline",
]

TASKS: dict[str, type[Pipeline]] = {
    cls.task: cls
    for cls in (
        FillMaskPipeline,
        TextClassificationPipeline,
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


def pipeline(
    task: str,
    model: ModelOrPath,
    *,
    tokenizer: "Path | PreTrainedTokenizerBase | None" = None,
    pipeline_class: type[Pipeline] | None = None,
    **options: Any,
) -> Pipeline:
    """Returns the pipeline of a task.

    Args:
        task: fill-mask, text-classification (sentiment-analysis), token-classification (ner),
            question-answering, feature-extraction, text-generation or next-sentence-prediction.
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
    if not isinstance(name, str) or name not in TASKS:
        raise InputError(unknown(shown(task), {*TASKS, *ALIASES}, "task"))
    cls: Any = TASKS[name] if pipeline_class is None else pipeline_class
    if not (isinstance(cls, type) and issubclass(cls, Pipeline)):
        raise InputError(f"pipeline_class: expected a subclass of Pipeline, found {shown(cls)}")
    given = {n: options.pop(n) for n in sorted(options.keys() & LOADING_OPTIONS)}
    own = {n: v for n, v in options.items() if n not in ("token_budget", "show_progress")}
    routed(cls, own)  # detects unknown options before a model is loaded
    with one_state(model, given):
        source = model if tokenizer is None else tokenizer
        if _is_place(model):
            model = load_model(name, cls.models, model, **given)
        elif given:
            raise InputError(f"{min(given)}: only for loading, but the model is already loaded")
        elif tokenizer is None:
            raise InputError("tokenizer: required when the model is not a folder or repository")
        if _is_place(source):
            place = {n: given[n] for n in HUB_OPTIONS if n in given and tokenizer is None}
            source = load_tokenizer(source, **place)
    return cls(model=model, tokenizer=source, **options)


def _is_place(value: object) -> TypeGuard[Path]:
    return isinstance(value, str | os.PathLike)
