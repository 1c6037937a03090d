"""Strict one-to-one matching of the tensors of a checkpoint with the leaves of a model.

Every leaf is filled, every tensor is read or reported as left or ignored, and all shapes are equal;
all faults are collected before an error is raised. Differences between models are data on their
classes (see `PretrainedModel`): trunk, heads, tied copies, optional submodules, buffers.
"""

import dataclasses
import functools
import operator
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from minibert.checkpoint.leaves import (
    Leaf,
    leaf_array,
    leaves,
    needs_x64,
    stored_dtypes,
    tensor_faults,
)
from minibert.checkpoint.tensors import TensorInfo, TensorSource, raw_bytes
from minibert.errors import CheckpointMismatchError, MissingHeadError, shown
from minibert.sharding.mesh import Sharding


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadingInfo:
    """A report on how loading treated every tensor and every leaf.

    Attributes:
        model: the name of the model class.
        source: the folder.
        files: the weights files that were read.
        matched: names in the tree of the tensors that filled a leaf.
        tied: tied tensors: copy → original.
        left: tensors left in the file: of heads that this class does not use, and of layers beyond
            the number that the caller passed.
        ignored: buffers that were not read: name → reason.
        new: leaves of a newly initialised head.
        absent: optional submodules that the checkpoint lacks.
        renamed: tensors with a different name in the file: name in the file → name in the tree.
        dtypes: the number of leaves stored in each dtype.
        config_ignored: fields of config.json that Hugging Face ignores, and so does minibert.
        suspicious: legal but unusual facts, one sentence each.
    """

    model: str
    source: str
    files: tuple[str, ...]
    matched: tuple[str, ...]
    tied: Mapping[str, str]
    left: tuple[str, ...]
    ignored: Mapping[str, str]
    new: tuple[str, ...]
    absent: tuple[str, ...]
    renamed: Mapping[str, str]
    dtypes: Mapping[str, int]
    config_ignored: tuple[str, ...]
    suspicious: tuple[str, ...]

    def __str__(self) -> str:
        dtypes = ", ".join(f"{count} {dtype}" for dtype, count in self.dtypes.items())
        lines = [f"{self.model} from {self.source}", f"  matched: {len(self.matched)} ({dtypes})"]
        for title in ("tied", "left", "ignored", "new", "absent", "config_ignored", "suspicious"):
            found = getattr(self, title)
            if isinstance(found, Mapping):
                found = [f"{key} ({value})" for key, value in found.items()]
            if found:
                lines.append(f"  {title.replace('_', ' ')}: {', '.join(found)}")
        if self.renamed:
            old, new = next(iter(self.renamed.items()))
            lines.append(f"  renamed: {len(self.renamed)}, such as {old} to {new}")
        return "\n".join(line if line.isprintable() else shown(line) for line in lines)


# Prefixes of all tensors of a model saved inside another module: by torch.compile, by
# DistributedDataParallel, by a module with the attribute `model`, and by sentence-transformers.
WRAPPERS = ("_orig_mod.", "module.", "model.", "0.auto_model.")
LEGACY_LAYER_NORM = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


class Matching:
    """The correspondence between a tree of shapes and the tensors of a source.

    Args:
        model: a model built with `rngs=None`, with every leaf its class can have.
        source: the tensors.
        new_head: whether a missing head is newly initialised.
        relabelled: whether the caller overrides the labels of the file, so that a head of another
            shape counts as missing and is left in the file.
        fewer_layers: whether the file may have more layers, which are left in it.
    """

    model: Any
    source: TensorSource
    new_head: bool
    relabelled: bool
    fewer_layers: bool

    def __init__(
        self,
        model: Any,
        source: TensorSource,
        *,
        new_head: bool,
        relabelled: bool,
        fewer_layers: bool = False,
    ):
        self.model, self.source = model, source
        self.new_head, self.relabelled, self.fewer_layers = new_head, relabelled, fewer_layers
        self.faults: list[str] = []
        self.missing_heads: list[str] = []
        self.tied: dict[str, str] = {}
        self.absent: list[str] = []
        self.fresh: list[Leaf] = []
        self.suspicious: list[str] = []
        self.renamed: dict[str, str] = {}
        self.found: dict[str, str] = self._canonical_names()
        self._remove_absent_submodules()
        self._resolve_tied_copies()
        self.expected: dict[str, Leaf] = {leaf.name: leaf for leaf in leaves(model)}
        self._resolve_heads()
        self._compare()

    def _canonical_names(self) -> dict[str, str]:
        """Maps each tensor's name in the tree, trunk prefix included, to its name in the file."""
        raws = list(self.source.tensors)
        trunk, submodules = f"{self.model.trunk}.", self.model.submodules
        outer = wrapper(raws, trunk)
        names = {raw: raw.removeprefix(outer) for raw in raws}
        prefixed = any(name.startswith(trunk) for name in names.values())
        layout = self.source.layout
        canonical = {leaf.name_in(layout): leaf.name for leaf in leaves(self.model)}
        found: dict[str, str] = {}
        for raw, name in names.items():
            if not prefixed and name.split(".")[0] in submodules:
                name = trunk + name
            for old, new in LEGACY_LAYER_NORM.items():
                if name.endswith(f".{old}"):
                    name = name.removesuffix(old) + new
            if name != raw:
                self.renamed[raw] = name
            name = canonical.get(name, name)
            if name in found:
                self.faults.append(f"{shown(raw)} and {shown(found[name])} are both {shown(name)}")
            found[name] = raw
        return found

    def _remove_absent_submodules(self) -> None:
        for path in self.model.optional:
            if not any(name.startswith(f"{path}.") for name in self.found):
                *parents, last = path.removeprefix(self.model.tensor_prefix).split(".")
                setattr(functools.reduce(getattr, parents, self.model), last, nnx.data(None))
                self.absent.append(path)

    def _resolve_tied_copies(self) -> None:
        model, found = self.model, self.found
        copies = {leaf.name: leaf for leaf in leaves(model) if leaf.name in model.tied}
        for copy, leaf in copies.items():
            original = model.tied[copy]
            same_head = self._head(copy) == self._head(original)
            if copy in found and original not in found and same_head:
                found[original] = found.pop(copy)
                self.tied[copy] = original
            elif copy in found:
                if not model.config.tie_word_embeddings or not self._equal(copy, original):
                    continue
                del found[copy]
                self.tied[copy] = original
            elif not model.config.tie_word_embeddings and not same_head:
                continue
            setattr(leaf.owner, leaf.attribute, nnx.data(None))

    def _equal(self, copy: str, original: str) -> bool:
        if original not in self.found:
            return False
        one, other = self._stored(copy), self._stored(original)
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            return False
        first, second = (self.source.read(self.found[name]) for name in (copy, original))
        return np.array_equal(raw_bytes(first), raw_bytes(second))

    def _resolve_heads(self) -> None:
        ours: dict[str, list[Leaf]] = {}
        for leaf in self.expected.values():
            if head := self._head(leaf.name):
                ours.setdefault(head, []).append(leaf)
        started = {self._head(name) for name in (*(self.expected.keys() & self.found), *self.tied)}
        joint = self.model.parts
        for head, parts in ours.items():
            here = [leaf for leaf in parts if leaf.name in self.found]
            reshaped = self.relabelled and any(map(self._differs_in_labels, here))
            whole = joint if head in joint else (head,)
            if started.intersection(whole) and not reshaped:
                continue  # if it is incomplete, `_compare` reports the rest as missing
            if self.new_head:
                self.fresh += parts
            else:
                self.missing_heads.append(head)
            for leaf in parts:
                del self.expected[leaf.name]

    def _differs_in_labels(self, leaf: Leaf) -> bool:
        """Returns whether the shape of a tensor differs in the number of labels, and only in it."""
        found = self._stored(leaf.name).shape
        shape = leaf.shape_in(self.source.layout)
        if self.source.layout != "torch":  # the labels are the last axis of a kernel
            found, shape = found[::-1], shape[::-1]
        labels = (self.model.config.num_labels,)
        return shape[:1] == labels != found[:1] and found[1:] == shape[1:]

    def _compare(self) -> None:
        found, expected, faults = self.found, self.expected, self.faults
        for name in expected.keys() - found.keys():
            head = self._head(name)
            half = f" (the head {head!r} is incomplete)" if head else ""
            shape = expected[name].shape_in("torch")
            faults.append(f"{name!r}: expected {shape}, found no such tensor{half}")
        ours = {self._head(name) for name in expected}
        layers = range(self.model.config.stored_layers)
        buffers = {
            name.replace("#", str(layer)): why
            for layer in layers
            for name, why in self.model.buffers.items()
        }
        self.ignored: dict[str, str] = {}
        self.left: list[str] = []
        for name in found.keys() - expected.keys():
            head = self._head(name)
            if name in buffers:
                self.ignored[name] = buffers[name]
            elif (head and head not in ours) or (self.fewer_layers and self._is_further(name)):
                self.left.append(name)
            else:
                info = self._stored(name)
                faults.append(
                    f"{shown(found[name])}: {info.dtype} of shape {shown(info.shape)} in the "
                    f"file, but no leaf of {type(self.model).__name__} has that name"
                )
        self.matched: list[str] = [name for name in expected if name in found]
        for name in self.matched:
            shape = expected[name].shape_in(self.source.layout)
            faults += tensor_faults(name, self._stored(name), shape)

    def _is_further(self, name: str) -> bool:
        """Returns whether a tensor belongs to a layer that the model does not have."""
        blocks = f"{self.model.trunk}.{self.model.blocks}."
        number = name.removeprefix(blocks).partition(".")[0]
        count = len(operator.attrgetter(self.model.blocks_path)(self.model))
        return name.startswith(blocks) and number.isdecimal() and int(number) >= count

    def _stored(self, name: str) -> TensorInfo:
        return self.source.tensors[self.found[name]]

    def _head(self, name: str) -> str | None:
        return head_of(self.model, name)

    def info(self, where: str) -> LoadingInfo:
        """Returns the report on a finished load, with names in the model's own tree."""
        model = self.model
        prefix = model.tensor_prefix

        def own(name: str) -> str:
            return name.removeprefix(prefix)

        return LoadingInfo(
            model=type(model).__name__,
            source=where,
            files=tuple(sorted({info.file for info in self.source.tensors.values()})),
            matched=tuple(map(own, self.matched)),
            tied={own(copy): own(original) for copy, original in self.tied.items()},
            left=tuple(map(own, sorted(self.left))),
            ignored={own(name): why for name, why in self.ignored.items()},
            new=tuple(own(leaf.name) for leaf in self.fresh),
            absent=tuple(map(own, self.absent)),
            renamed={old: own(new) for old, new in self.renamed.items() if old != own(new)},
            dtypes=stored_dtypes(model),
            config_ignored=model.config.ignored_fields,
            suspicious=tuple(sorted(self.suspicious)),
        )

    def check(self, where: str) -> None:
        """Raises an error if faults were found or a head is missing.

        Raises:
            CheckpointMismatchError: tensors and leaves do not correspond.
            MissingHeadError: only a head is missing.
        """
        heads = [
            f"the head {head!r} is not in the file, or has a different shape"
            for head in self.missing_heads
        ]
        hint = "; pass new_head=True, rngs=nnx.Rngs(0) to initialise a new one" if heads else ""
        if self.faults:
            raise CheckpointMismatchError(where, sorted(self.faults) + heads, hint)
        if heads:
            raise MissingHeadError(where, heads, hint)

    def fill(
        self, where: str, param_dtype: DTypeLike | None, sharding: Sharding | None = None
    ) -> None:
        """Reads every matched tensor into its leaf: several at a time; with a sharding, one by one.

        Raises:
            CheckpointMismatchError: a tensor contains NaN or infinity, or overflows `param_dtype`.
        """
        layout = self.source.layout

        def read(name: str) -> np.ndarray | str:
            leaf, raw = self.expected[name], self.found[name]
            dtype = np.dtype(param_dtype or self._stored(name).dtype)
            array = leaf_array(self.source, raw, dtype, transpose=leaf.transposed == layout)
            norm = isinstance(leaf.owner, nnx.LayerNorm) and leaf.attribute == "scale"
            if norm and isinstance(array, np.ndarray) and not array.any():
                self.suspicious.append(f"all values of {raw} are zero")
            return array

        faults: list[str] = []
        with ThreadPoolExecutor() as pool:
            arrays = (pool.map if sharding is None else map)(read, self.matched)
            # JAX's settings (such as the default device) are thread-local: `fill` runs in this one
            for name, array in zip(self.matched, arrays, strict=True):
                if isinstance(array, str):
                    faults.append(f"{self.found[name]!r}: {array}")
                elif needed := needs_x64(array.dtype, "; or pass param_dtype=jnp.float32"):
                    faults.append(f"{self.found[name]!r}: {needed}")
                else:
                    self.expected[name].fill(array, sharding)
                del array  # before the next is read
        if faults:
            raise CheckpointMismatchError(where, sorted(faults))


def wrapper(names: Collection[str], trunk: str) -> str:
    """Returns the prefixes of wrappers that all names share, such as `module._orig_mod.`; or "".

    Args:
        names: the names of the tensors of a checkpoint.
        trunk: the prefix of the bare model, which is not a wrapper's.
    """
    found = ""
    while names:
        for one in WRAPPERS:
            if one != trunk and all(name.startswith(found + one) for name in names):
                found += one
                break
        else:
            break
    return found


def head_of(model: Any, name: str) -> str | None:
    """Returns the head that a tensor belongs to, by its name in the tree; None for the trunk."""
    return next((head for head in model.heads if name.startswith(f"{head}.")), None)
