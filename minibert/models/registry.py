"""Choice of the model class of a checkpoint: by its config, or else by its tensors."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, Unpack, overload

from minibert.checkpoint.hub import AnyPath
from minibert.checkpoint.loading import load_pretrained
from minibert.checkpoint.matching import LoadingInfo, wrapper
from minibert.checkpoint.tensors import TensorSource
from minibert.errors import ConfigError, SourceError, shown, suggest
from minibert.models import (
    albert,
    bert,
    camembert,
    distilbert,
    electra,
    gpt2,
    mpnet,
    roberta,
    xlm_roberta,
)
from minibert.models.base import LoadingOptions, ModelClass, PretrainedModel
from minibert.models.family import Family

FAMILIES: tuple[Family, ...] = (
    bert.FAMILY,
    gpt2.FAMILY,
    roberta.FAMILY,
    xlm_roberta.FAMILY,
    camembert.FAMILY,
    distilbert.FAMILY,
    mpnet.FAMILY,
    electra.FAMILY,
    albert.FAMILY,
)
MODELS: dict[str, ModelClass] = {cls.__name__: cls for family in FAMILIES for cls in family.models}
# The Flax classes of transformers 4 wrote their names without the prefix into config.json.
FLAX_NAMES = {name: cls for family in FAMILIES for name, cls in family.flax_names.items()}
BY_TYPE = {family.model_type: family for family in FAMILIES}
LOADING_OPTIONS = frozenset(LoadingOptions.__annotations__)


def task_classes(task: str) -> tuple[ModelClass, ...]:
    """Returns the classes for a task, one of each family that supports it."""
    if task == "feature-extraction":
        return tuple(family.base for family in FAMILIES)
    return tuple(family.tasks[task] for family in FAMILIES if task in family.tasks)


def model_class(data: dict[str, Any], source: TensorSource, where: str) -> ModelClass:
    """Returns the model class for a checkpoint.

    Args:
        data: the contents of config.json.
        source: the tensors.
        where: the folder, for messages.

    Raises:
        ConfigError: `architectures` or `model_type` is not one that minibert has.
        SourceError: neither the config nor the tensors determine the class.
    """
    if named := data.get("architectures"):
        name = named[0] if isinstance(named, list) else named
        known = MODELS | FLAX_NAMES
        found = known.get(name.removeprefix("Flax")) if isinstance(name, str) else None
        if found is None:
            raise ConfigError(
                f"{where}: architectures: expected one of minibert's {len(MODELS)} classes, found "
                f"{shown(name)}{suggest(str(name), MODELS, count=3)}"
            )
        return found
    cls = class_by_tensors(data, source.tensors)
    if cls is not None:
        return cls
    if "model_type" in data and data["model_type"] not in tuple(BY_TYPE):
        known, found = " or ".join(map(repr, BY_TYPE)), shown(data["model_type"])
        raise ConfigError(f"{where}: model_type: expected {known}, found {found}")
    raise SourceError(
        f"{where}: config.json has no architectures, and the tensors do not determine a class; "
        "call from_pretrained of a class, such as minibert.BertForMaskedLM"
    )


def class_by_tensors(data: dict[str, Any], names: Collection[str]) -> ModelClass | None:
    """Returns the class whose heads are exactly those among the tensors; None if there is none.

    The family is given by the config's `model_type`; without one it is the first one of those whose
    bare model has submodules for most of the tensors.
    """
    family = _family(data, names)
    if family is None:
        return None
    base = family.base
    outer = wrapper(names, f"{base.trunk}.")
    inner = [name.removeprefix(outer) for name in names]
    full = [
        f"{base.trunk}.{name}" if name.split(".")[0] in base.submodules else name for name in inner
    ]
    heads = tuple(head for head in base.heads if any(name.startswith(f"{head}.") for name in full))
    cls = family.by_heads.get(heads)
    return family.causal.get(cls, cls) if cls and data.get("is_decoder") is True else cls


def _family(data: dict[str, Any], names: Collection[str]) -> Family | None:
    if "model_type" in data:
        kind = data["model_type"]
        return BY_TYPE.get(kind) if isinstance(kind, str) else None
    return max(FAMILIES, key=lambda family: _own_names(family, names))


def _own_names(family: Family, names: Collection[str]) -> int:
    """Returns how many tensors belong to a submodule of a family's bare model, by their names."""
    trunk = f"{family.base.trunk}."
    outer = wrapper(names, trunk)
    inner = (name.removeprefix(outer).removeprefix(trunk) for name in names)
    return sum(name.split(".")[0] in family.base.submodules for name in inner)


@overload
def load(
    source: AnyPath,
    *,
    output_loading_info: Literal[False] = False,
    **options: Unpack[LoadingOptions],
) -> PretrainedModel: ...


@overload
def load(
    source: AnyPath, *, output_loading_info: Literal[True], **options: Unpack[LoadingOptions]
) -> tuple[PretrainedModel, LoadingInfo]: ...


@overload
def load(
    source: AnyPath, *, output_loading_info: Literal[False] = False, **options: object
) -> PretrainedModel: ...


def load(
    source: AnyPath, *, output_loading_info: bool = False, **options: object
) -> PretrainedModel | tuple[PretrainedModel, LoadingInfo]:
    """Loads a checkpoint into the class named by its `architectures`, else by its tensors.

    Arguments, results and errors are those of `PretrainedModel.from_pretrained`.
    """
    model, info = load_pretrained(model_class, source, **with_fields(options))
    return (model, info) if output_loading_info else model


def load_model(
    task: str,
    classes: tuple[ModelClass, ...],
    source: AnyPath,
    *,
    decoder: bool = False,
    output_loading_info: bool = False,
    **options: object,
) -> Any:
    """Loads a checkpoint into its family's class for a task, whatever class its config names.

    Args:
        task: the task, for messages.
        classes: its classes, one for each family.
        source: a folder, or a repository of the Hub.
        decoder: whether the config must be that of a decoder.
        output_loading_info: whether to return a `LoadingInfo` too.
        options: other arguments of `PretrainedModel.from_pretrained`.

    Raises:
        ConfigError: the family has no class for the task, or the model is an encoder.
        MissingHeadError: the checkpoint lacks the head.

    Other errors are those of `PretrainedModel.from_pretrained`.
    """
    choose = class_for_task(task, classes, decoder=decoder and not options.get("is_decoder"))
    model, info = load_pretrained(choose, source, **with_fields(options))
    return (model, info) if output_loading_info else model


def class_for_task(
    task: str, classes: tuple[ModelClass, ...], *, decoder: bool = False
) -> Callable[[dict[str, Any], TensorSource, str], ModelClass]:
    """Returns a function that chooses the class of a checkpoint's family, for `load_pretrained`."""

    def choose(data: dict[str, Any], tensors: TensorSource, where: str) -> ModelClass:
        kind = data.get("model_type")
        found = class_by_tensors(data, tensors.tensors) if kind is None else None
        wanted = kind if found is None else found.config_class.model_type
        for cls in classes:
            if cls.config_class.model_type == wanted:
                config: Any = cls.config_class
                if decoder and not config.from_dict(data, where).is_decoder:
                    raise ConfigError(
                        f"{where}: is_decoder: {task} needs a decoder, and this is an encoder; it "
                        "may fill masks (fill-mask)"
                    )
                return cls
        known = " or ".join(repr(cls.config_class.model_type) for cls in classes)
        raise ConfigError(f"{where}: model_type: {task} is for {known}, found {shown(kind)}")

    return choose


def with_fields(options: Mapping[str, object]) -> dict[str, Any]:
    """Returns the options of `load_pretrained`, with all others as fields of the config."""
    named = {name: options[name] for name in options if name in LOADING_OPTIONS}
    fields = {name: options[name] for name in options if name not in LOADING_OPTIONS}
    return {**named, "fields": fields}
