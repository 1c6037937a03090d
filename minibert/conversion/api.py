"""Conversion and verification of checkpoints, compared with PyTorch."""

import dataclasses
import math
import os
import tempfile
from typing import Any, Literal

from jax.typing import DTypeLike

from minibert.checkpoint.files import encoder_paths, refuse_adapter, unchanged
from minibert.checkpoint.hub import AnyPath
from minibert.checkpoint.loading import load_pretrained, shapes_only
from minibert.checkpoint.matching import LoadingInfo, Matching
from minibert.checkpoint.saving import check_saved, parse_size, write_config, write_model
from minibert.checkpoint.sources import PICKLE, SAFETENSORS, has_flax, open_source
from minibert.checkpoint.tensors import ArraySource, TensorSource
from minibert.conversion.flax_msgpack import open_flax
from minibert.conversion.folders import check_links, copy_companions, locate, refuse_nested
from minibert.conversion.orbax_folder import write_orbax
from minibert.conversion.parity import Progress
from minibert.conversion.verification import (
    ParityError,
    Verification,
    torch_installed,
    verified,
    write_report,
)
from minibert.core.atomic import atomic_folder
from minibert.core.paths import path_text
from minibert.errors import MinibertError, SourceError, WeightsFileError, writing
from minibert.models.base import ModelClass, PretrainedModel
from minibert.models.registry import FAMILIES, class_by_tensors, model_class


@dataclasses.dataclass(frozen=True)
class Conversion:
    """The result of a conversion.

    Attributes:
        info: how every tensor was handled.
        copied: the paths of the other files that were copied.
        verification: the comparison with PyTorch; None if there was none.
    """

    info: LoadingInfo
    copied: list[str]
    verification: Verification | None


def convert(
    source: str,
    target: str,
    *,
    to: Literal["hf", "orbax"] = "hf",
    dtype: DTypeLike | None = None,
    max_shard_size: str = "5GB",
    revision: str | None = None,
    allow_pickle: bool = False,
    overwrite: bool = False,
    verifies: bool = True,
    progress: Progress = lambda step: None,
) -> Conversion:
    """Converts a checkpoint into a folder, which is written complete and verified, or not at all.

    Args:
        source: a folder or a repository of the Hub.
        target: the folder to write.
        to: Hugging Face's format, or an Orbax checkpoint with its config.json.
        dtype: the dtype to store the parameters in; None to keep that of each.
        max_shard_size: larger models are split (Hugging Face's format only).
        revision: a branch, tag or commit of the repository.
        allow_pickle: whether a `pytorch_model.bin` may be opened.
        overwrite: whether to replace files of a model, tokenizer or encoder in the target; all
            others stay.
        verifies: whether to compare with PyTorch, if it is installed.
        progress: called with the name of each step.

    Raises:
        MinibertError: a source, config, tensor or target is not right; nothing was written.
        ParityError: the result's outputs differ from PyTorch's; nothing was written.
    """
    target, limit = path_text("target", target), parse_size(max_shard_size)
    folder = locate(source, revision=revision, allow_pickle=allow_pickle)
    refuse_nested(folder, target)
    check_links(folder)
    found = None
    with (
        atomic_folder(target, owned=encoder_paths, overwrite=overwrite) as new,
        unchanged(folder),
    ):
        progress("reading")
        model, info = read(folder, param_dtype=dtype, allow_pickle=allow_pickle)
        progress("writing")
        copied = copy_companions(folder, new)
        with writing(target):
            if to == "hf":
                write_model(model, new, limit)
                check_saved(model, new)
            else:
                write_config(model, new)
                write_orbax(model, new)
        if verifies and torch_installed():
            instead = "the parameters were cast" if dtype else _unreadable_by_torch(folder)
            found = verified(
                model,
                lambda wide: type(model).from_pretrained(new, param_dtype=wide),
                folder,
                instead=instead,
                progress=progress,
            )
            if not found.passed:
                raise ParityError(f"{source}: differs from PyTorch; nothing was written", found)
            with writing(target):
                write_report(found, new)
        progress("flushing")
    return Conversion(info, copied, found)


def verify(
    model_or_source: PretrainedModel | AnyPath,
    *,
    revision: str | None = None,
    allow_pickle: bool = False,
    progress: Progress = lambda step: None,
) -> Verification:
    """Compares a model, or a checkpoint as minibert reads it, with PyTorch; writes nothing.

    A checkpoint is read by both libraries. A model in memory is written to a temporary folder,
    from which both read it.

    Args:
        model_or_source: a model, a folder, or a repository of the Hub.
        revision: a branch, tag or commit of the repository; ignored for a model in memory.
        allow_pickle: whether a `pytorch_model.bin` may be opened; ignored for a model in memory.
        progress: called with the name of each step.

    Returns:
        The certificate: the errors of every output, whether they are within the tolerances
        (`passed`), and what was compared.

    Raises:
        MinibertError: the checkpoint cannot be read, or torch is not installed.
    """
    if not isinstance(model_or_source, PretrainedModel):
        source = model_or_source
        return verify_checkpoint(source, revision, allow_pickle, progress)[1]
    _check_torch()
    model = model_or_source
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return verified(
            model,
            lambda wide: type(model).from_pretrained(folder, param_dtype=wide),
            folder,
            instead="the model is in memory",
            progress=progress,
        )


def verify_checkpoint(
    source: AnyPath, revision: str | None, allow_pickle: bool, progress: Progress
) -> tuple[LoadingInfo, Verification]:
    """Verifies a checkpoint as `verify` does; also returns the loading report."""
    _check_torch()
    folder = locate(source, revision=revision, allow_pickle=allow_pickle)
    with unchanged(folder):
        progress("reading")
        model, info = read(folder, allow_pickle=allow_pickle)
        verification = verified(
            model,
            lambda wide: read(folder, param_dtype=wide, allow_pickle=allow_pickle)[0],
            folder,
            instead=_unreadable_by_torch(folder),
            progress=progress,
        )
    return info, verification


def _check_torch() -> None:
    if not torch_installed():
        raise SourceError(
            "torch is not installed: nothing can be verified; "
            "pip install torch (a CPU build is enough)"
        )


def read(
    folder: str, *, param_dtype: DTypeLike | None = None, allow_pickle: bool = False
) -> tuple[PretrainedModel, LoadingInfo]:
    """Reads a folder into the class that holds most of it.

    That is the class named by `architectures`, unless its tensors fit another that leaves fewer
    of them behind: the hub's bert-base-uncased calls itself a masked language model, and is a
    whole pre-training checkpoint.

    Raises:
        MinibertError: see `PretrainedModel.from_pretrained`.
    """
    return load_pretrained(
        _widest, folder, opened=_open, param_dtype=param_dtype, allow_pickle=allow_pickle
    )


def _widest(data: dict[str, Any], tensors: TensorSource, folder: str) -> ModelClass:
    cls = model_class(data, tensors, folder)
    kind = {"model_type": cls.config_class.model_type}
    wider = class_by_tensors(data | kind, tensors.tensors)
    if wider is not None and _left(wider, data, tensors) < _left(cls, data, tensors):
        return wider
    return cls


def _left(cls: ModelClass, data: Any, tensors: TensorSource) -> int | float:
    """Returns how many tensors a class would leave unread; infinity if it does not fit them."""
    try:
        model = shapes_only(cls, cls.config_class.from_dict(data), tensors, "")
    except MinibertError:
        return math.inf
    matching = Matching(model, tensors, new_head=False, relabelled=False)
    return math.inf if matching.faults or matching.missing_heads else len(matching.left)


def _open(folder: str, *, allow_pickle: bool) -> TensorSource:
    if _unreadable_by_torch(folder) and has_flax(folder):
        refuse_adapter(folder)
        return open_flax(folder)
    source = open_source(folder, allow_pickle=allow_pickle)
    return _renamed(source, folder) if isinstance(source, ArraySource) else source


def _renamed(source: ArraySource, folder: str) -> TensorSource:
    """Returns the tensors of another library's checkpoint under the names of transformers."""
    path = os.path.join(folder, PICKLE)
    try:
        for family in FAMILIES:
            if family.foreign and (found := family.foreign(source.arrays)) is not None:
                return ArraySource(found, path)
    except WeightsFileError as reason:
        raise WeightsFileError(f"{path}: {reason}") from None
    return source


def _unreadable_by_torch(folder: str) -> str:
    names = [name + ending for name in (SAFETENSORS, PICKLE) for ending in ("", ".index.json")]
    if any(os.path.lexists(os.path.join(folder, name)) for name in names):
        return ""
    return "transformers reads neither Flax msgpack nor Orbax"
