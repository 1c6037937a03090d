"""The model a checkpoint asks for: the class its config names, or the one its tensors fit."""

import difflib
import inspect
import os
from collections.abc import Iterable
from typing import Any

from minibert.errors import ConfigError, SourceError, shown
from minibert.models.base import PretrainedModel, load_pretrained
from minibert.models.bert.heads import (
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertLMHeadModel,
)
from minibert.models.bert.modeling import BertModel
from minibert.models.gpt2.heads import (
    GPT2DoubleHeadsModel,
    GPT2ForQuestionAnswering,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    GPT2LMHeadModel,
)
from minibert.models.gpt2.modeling import GPT2Model

MODELS: dict[str, type[PretrainedModel]] = {
    cls.__name__: cls
    for cls in (
        BertModel,
        BertForPreTraining,
        BertForMaskedLM,
        BertLMHeadModel,
        BertForNextSentencePrediction,
        BertForSequenceClassification,
        BertForMultipleChoice,
        BertForTokenClassification,
        BertForQuestionAnswering,
        GPT2Model,
        GPT2LMHeadModel,
        GPT2DoubleHeadsModel,
        GPT2ForSequenceClassification,
        GPT2ForTokenClassification,
        GPT2ForQuestionAnswering,
    )
}
FAMILIES = {cls.config_class.model_type: cls for cls in MODELS.values() if cls.is_trunk}
LOADING_OPTIONS = frozenset(inspect.signature(PretrainedModel.from_pretrained).parameters) - {
    "source",
    "output_loading_info",
}

# Which class a file without `architectures` holds, by the heads among its tensors.
BY_HEADS: dict[str, dict[frozenset[str], type[PretrainedModel]]] = {
    "bert": {
        frozenset(): BertModel,
        frozenset({"bert.pooler"}): BertModel,
        frozenset({"cls.predictions", "cls.seq_relationship", "bert.pooler"}): BertForPreTraining,
        frozenset({"cls.predictions"}): BertForMaskedLM,
        frozenset({"cls.predictions", "bert.pooler"}): BertForMaskedLM,
        frozenset({"cls.seq_relationship", "bert.pooler"}): BertForNextSentencePrediction,
        frozenset({"qa_outputs"}): BertForQuestionAnswering,
        frozenset({"qa_outputs", "bert.pooler"}): BertForQuestionAnswering,
        frozenset({"classifier"}): BertForTokenClassification,
    },
    "gpt2": {
        frozenset(): GPT2LMHeadModel,
        frozenset({"lm_head"}): GPT2LMHeadModel,
        frozenset({"lm_head", "multiple_choice_head"}): GPT2DoubleHeadsModel,
        frozenset({"multiple_choice_head"}): GPT2DoubleHeadsModel,
        frozenset({"score"}): GPT2ForSequenceClassification,
        frozenset({"classifier"}): GPT2ForTokenClassification,
        frozenset({"qa_outputs"}): GPT2ForQuestionAnswering,
    },
}


def model_class(config: Any, names: Iterable[str], where: str) -> type[PretrainedModel]:
    """Chooses the class for a checkpoint.

    Args:
        config: the contents of config.json.
        names: the names of the tensors.
        where: the folder, for messages.

    Raises:
        ConfigError: `architectures` or `model_type` names nothing that minibert has.
        SourceError: neither the config nor the tensors decide.
    """
    data = config if isinstance(config, dict) else {}
    named = data.get("architectures")
    if named:
        name = named[0] if isinstance(named, list) else named
        if not isinstance(name, str) or name not in MODELS:
            near = difflib.get_close_matches(str(name)[:100], MODELS, n=3, cutoff=0)
            raise ConfigError(
                f"{where}: architectures: {shown(name)} is none of the {len(MODELS)} classes that "
                f"minibert has; the nearest are {', '.join(near)}"
            )
        return MODELS[name]
    cls = class_by_tensors(data, names)
    if cls is None and "model_type" in data and data["model_type"] not in tuple(FAMILIES):
        known, found = " or ".join(map(repr, FAMILIES)), shown(data["model_type"])
        raise ConfigError(f"{where}: model_type: expected {known}, found {found}")
    if cls is None:
        raise SourceError(
            f"{where}: config.json has no architectures, and its tensors fit several classes or "
            "none; name one: minibert.BertFor….from_pretrained"
        )
    return cls


def class_by_tensors(config: Any, names: Iterable[str]) -> type[PretrainedModel] | None:
    """The one class whose heads are those among the tensors; None if there is no such class.

    The family is that of the config's `model_type`; without one, the first whose rooms are there.
    """
    names = list(names)
    data = config if isinstance(config, dict) else {}
    kind = data.get("model_type", _family(names))
    if kind not in tuple(FAMILIES):
        return None
    trunk, heads = FAMILIES[kind], set()
    for name in names:
        first = name.split(".")[0]
        full = f".{trunk.trunk}.{name}" if first in trunk.rooms else f".{name}"
        heads |= {head for head in trunk.heads if f".{head}." in full}
    cls = BY_HEADS[kind].get(frozenset(heads))
    return BertLMHeadModel if cls is BertForMaskedLM and data.get("is_decoder") is True else cls


def _family(names: Iterable[str]) -> str:
    parts = [name.split(".") for name in names]
    for kind, trunk in FAMILIES.items():
        if any(part in trunk.rooms for name in parts for part in name[:-1]):
            return kind
    return "bert"


def load(
    source: str | os.PathLike[str], *, output_loading_info: bool = False, **options: Any
) -> Any:
    """Loads a checkpoint into the class named by its `architectures`, else by its tensors.

    Takes what `PretrainedModel.from_pretrained` takes, and returns and raises what it does.
    """
    model, info = load_pretrained(model_class, source, **options)
    return (model, info) if output_loading_info else model


def load_model(
    task: str, classes: tuple[type[PretrainedModel], ...], source: Any, **options: Any
) -> PretrainedModel:
    """Loads a checkpoint, whatever class it names, into the task's class of its family.

    Raises:
        ConfigError: the task has no class of that family.
        MissingHeadError: the checkpoint lacks the head.

    What else is raised is as in `PretrainedModel.from_pretrained`.
    """

    def choose(data: Any, names: Iterable[str], where: str) -> type[PretrainedModel]:
        kind = data.get("model_type") if isinstance(data, dict) else None
        found = FAMILIES.get(kind) if kind is not None else class_by_tensors(data, names)
        for cls in classes:
            if found is not None and cls.config_class is found.config_class:
                return cls
        known = " or ".join(repr(cls.config_class.model_type) for cls in classes)
        raise ConfigError(f"{where}: model_type: {task} is for {known}, found {shown(kind)}")

    return load_pretrained(choose, source, **options)[0]
