"""Loading of a base model together with its adapter."""

import os
from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx

from minibert.checkpoint.files import ADAPTER_CONFIG, unchanged
from minibert.checkpoint.hub import AnyPath, adapter_folder
from minibert.core.types import Dtype
from minibert.errors import ConfigError, MissingHeadError, SourceError, shown
from minibert.models.base import ModelClass, load_pretrained
from minibert.models.registry import MODELS, class_for_task, model_class, task_classes
from minibert.train.lora.adapter import merge
from minibert.train.lora.files import PREFIX, adapter_fields, load_adapter, tensors

# The pipelines of PEFT's task types, whose classes the models of such adapters have.
TASKS = {
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
    "CAUSAL_LM": "text-generation",
    "FEATURE_EXTRACTION": "feature-extraction",
}


def load_merged(
    folder: AnyPath,
    cls: ModelClass | None = None,
    *,
    base: AnyPath | None = None,
    revision: str | None = None,
    subfolder: str = "",
    cache_dir: AnyPath | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    allow_pickle: bool = False,
    dtype: Dtype = None,
    param_dtype: Dtype = None,
    num_labels: int | None = None,
    id2label: Mapping[int, str] | None = None,
) -> Any:
    """Loads the base model that an adapter names, and merges the adapter into it.

    Args:
        folder: the adapter's folder, or a repository of the Hub, `user/name`.
        cls: the class of the model, such as `BertForSequenceClassification`; None for the class
            that the adapter's `task_type` or `auto_mapping` names, or else the base model's own.
        base: the base model's folder or repository; None for `base_model_name_or_path`.
        revision: a branch, tag or commit of the adapter's repository.
        subfolder: the path of the adapter in the folder or repository.
        cache_dir: a folder to use instead of the Hub's default cache.
        token: access token for private repositories.
        local_files_only: whether to use only the Hub's cache.
        allow_pickle: whether pickles may be opened, the base model's and the adapter's.
        dtype: the dtype of computations; None for the dtype of the parameters.
        param_dtype: the dtype of the parameters; None for that of each tensor in the base model.
        num_labels: the number of labels; overrides the base model's config.
        id2label: the names of the labels; overrides the base model's config.

    Returns:
        The model in evaluation mode. A head that the base model lacks is the adapter's.

    Raises:
        ConfigError: the adapter names no base model.
        SourceError: there is no such adapter or base model.
        MissingHeadError: neither the base model nor the adapter has the class's head.

    Other errors are those of `PretrainedModel.from_pretrained`, `load_adapter` and `merge`.
    """
    where: dict[str, Any] = {
        "cache_dir": cache_dir,
        "token": token,
        "local_files_only": local_files_only,
        "allow_pickle": allow_pickle,
    }
    folder = adapter_folder(folder, revision=revision, subfolder=subfolder, **where)
    with unchanged(folder):
        fields, path = adapter_fields(folder), os.path.join(folder, ADAPTER_CONFIG)
        named = fields.get("base_model_name_or_path")
        if base is None and not (isinstance(named, str) and named):
            raise ConfigError(
                f"{path}: base_model_name_or_path: expected the base model's folder or repository, "
                f"found {shown(named)}; pass base="
            )
        source: Any = named if base is None else base
        try:
            model, info = load_pretrained(
                _chosen(cls, fields),
                source,
                revision=fields.get("revision") if base is None else None,
                dtype=dtype,
                param_dtype=param_dtype,
                num_labels=num_labels,
                id2label=id2label,
                new_head=True,
                rngs=nnx.Rngs(0),
                **where,
            )
        except SourceError as reason:
            if base is not None:
                raise
            raise SourceError(
                f"{path}: base_model_name_or_path: {reason}; pass base= if the base model is "
                "elsewhere"
            ) from None
        adapter = load_adapter(model, folder, allow_pickle=allow_pickle)
    theirs = tensors(model, adapter.config)
    if lacking := [name for name in info.new if f"{PREFIX}{name}" not in theirs]:
        faults = [f"{name!r}: neither in the base model nor in the adapter" for name in lacking]
        raise MissingHeadError(folder, faults)
    return merge(model, adapter)


def _chosen(cls: ModelClass | None, fields: Mapping[str, Any]) -> Callable[..., ModelClass]:
    mapping, task = fields.get("auto_mapping"), fields.get("task_type")
    if cls is None and isinstance(mapping, Mapping):
        cls = MODELS.get(str(mapping.get("base_model_class")))
    if cls is not None:
        return lambda data, source, where: cls
    if isinstance(task, str) and task in TASKS:
        return class_for_task(TASKS[task], task_classes(TASKS[task]))
    return model_class
