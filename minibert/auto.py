"""The model a checkpoint asks for: the class its config names, or the one its tensors fit."""

import os
from collections.abc import Iterable
from typing import Any

from minibert.bert import BertModel
from minibert.bert_heads import (
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
)
from minibert.errors import ConfigError, SourceError, shown
from minibert.pretrained import PretrainedModel, load_pretrained

MODELS: dict[str, type[PretrainedModel]] = {
    cls.__name__: cls
    for cls in (
        BertModel,
        BertForPreTraining,
        BertForMaskedLM,
        BertForNextSentencePrediction,
        BertForSequenceClassification,
        BertForMultipleChoice,
        BertForTokenClassification,
        BertForQuestionAnswering,
    )
}

# Which class a file without `architectures` holds, by the heads among its tensors.
BY_HEADS: dict[frozenset[str], type[PretrainedModel]] = {
    frozenset(): BertModel,
    frozenset({"bert.pooler"}): BertModel,
    frozenset({"cls.predictions", "cls.seq_relationship", "bert.pooler"}): BertForPreTraining,
    frozenset({"cls.predictions"}): BertForMaskedLM,
    frozenset({"cls.predictions", "bert.pooler"}): BertForMaskedLM,
    frozenset({"cls.seq_relationship", "bert.pooler"}): BertForNextSentencePrediction,
    frozenset({"qa_outputs"}): BertForQuestionAnswering,
    frozenset({"qa_outputs", "bert.pooler"}): BertForQuestionAnswering,
    frozenset({"classifier"}): BertForTokenClassification,
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
            known = ", ".join(MODELS)
            raise ConfigError(f"{where}: architectures: {shown(name)} is not one of {known}")
        return MODELS[name]
    kind = data.get("model_type", "bert")
    if kind != BertModel.config_class.model_type:
        raise ConfigError(f"{where}: model_type: expected 'bert', found {shown(kind)}")
    cls = class_by_tensors(names)
    if cls is None:
        raise SourceError(
            f"{where}: config.json has no architectures, and its tensors fit several classes or "
            "none; name one: minibert.BertFor….from_pretrained"
        )
    return cls


def class_by_tensors(names: Iterable[str]) -> type[PretrainedModel] | None:
    """The one class whose heads are those among the tensors; None if there is no such class."""
    heads = set()
    for name in names:
        full = f".bert.{name}" if name.startswith("pooler.") else f".{name}"
        heads |= {head for head in BertModel.heads if f".{head}." in full}
    return BY_HEADS.get(frozenset(heads))


def load(
    source: str | os.PathLike[str], *, output_loading_info: bool = False, **options: Any
) -> Any:
    """Loads a checkpoint into the class named by its `architectures`, else by its tensors.

    Takes what `PretrainedModel.from_pretrained` takes, and returns and raises what it does.
    """
    model, info = load_pretrained(model_class, source, **options)
    return (model, info) if output_loading_info else model
