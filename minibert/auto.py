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
from minibert.errors import ConfigError, SourceError
from minibert.hub import model_folder
from minibert.pretrained import PretrainedModel
from minibert.sources import open_source
from minibert.strict_json import read_json

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
    named = config.get("architectures") if isinstance(config, dict) else None
    if named:
        name = named[0] if isinstance(named, list) else named
        if name not in MODELS:
            known = ", ".join(MODELS)
            raise ConfigError(f"{where}: architectures: {name!r} is not one of {known}")
        return MODELS[name]
    kind = config.get("model_type", "bert") if isinstance(config, dict) else None
    if kind != BertModel.config_class.model_type:
        raise ConfigError(f"{where}: model_type: expected 'bert', found {kind!r}")
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
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    subfolder: str = "",
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    allow_pickle: bool = False,
    **options: Any,
) -> Any:
    """Loads a checkpoint into the class named by its `architectures`, else by its tensors.

    Takes what `PretrainedModel.from_pretrained` takes, and returns and raises what it does.
    """
    folder = model_folder(
        source,
        revision=revision,
        subfolder=subfolder,
        cache_dir=cache_dir,
        token=token,
        local_files_only=local_files_only,
        allow_pickle=allow_pickle,
    )
    config = read_json(os.path.join(folder, "config.json"))
    with open_source(folder, allow_pickle=allow_pickle) as tensors:
        names = list(tensors.tensors)
    cls = model_class(config, names, folder)
    return cls.from_pretrained(folder, allow_pickle=allow_pickle, **options)
