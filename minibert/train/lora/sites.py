"""The parameters that LoRA trains: the modules that get adapters, and parts of the model itself."""

import dataclasses
from typing import Any

from flax import nnx

from minibert.checkpoint.leaves import Leaf
from minibert.checkpoint.saving import file_leaves
from minibert.errors import InputError, shown
from minibert.models.base import PretrainedModel
from minibert.nn.layers import Conv1D, TiedLinear
from minibert.nn.tree import submodules
from minibert.train.lora.config import ALL_LINEAR, LoRA
from minibert.train.lora.layers import MAGNITUDES

TOKENS = "trainable_tokens_delta"


@dataclasses.dataclass(frozen=True)
class Site:
    """A linear layer, or an embedding matrix, that gets an adapter.

    Attributes:
        path: the path of the module.
        shape: the shape of its kernel, `(in, out)`, or of the matrix.
        rank: the rank of the adapter.
        scaling: the factor by which the product of `lora_A` and `lora_B` is multiplied.
        fan_in_fan_out: whether checkpoints store the kernel as (in, out).
        embedding: whether it is an embedding matrix.
        vectors: the names of further arrays of the adapter, `(out,)` each.
    """

    path: str
    shape: tuple[int, int]
    rank: int
    scaling: float
    fan_in_fan_out: bool
    embedding: bool = False
    vectors: tuple[str, ...] = ()

    @property
    def kernel(self) -> str:
        """The path of the array that is adapted."""
        return f"{self.path}.{'embedding' if self.embedding else 'kernel'}"

    @property
    def factors(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the adapter's arrays by path: `lora_A`, `lora_B`, and the vectors."""
        inputs, outputs = self.shape
        kind = "lora_embedding" if self.embedding else "lora"
        return {
            f"{self.path}.{kind}_A": (inputs, self.rank),
            f"{self.path}.{kind}_B": (self.rank, outputs),
            **{f"{self.path}.{name}": (outputs,) for name in self.vectors},
        }

    def taken(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """Removes the adapter's arrays from others, and returns them by name."""
        return {path.removeprefix(f"{self.path}."): arrays.pop(path) for path in self.factors}


def sites(model: PretrainedModel, lora: LoRA) -> tuple[Site, ...]:
    """Returns the modules that get an adapter.

    Raises:
        InputError: no module is adapted; or a target is neither a linear layer nor an embedding
            matrix, has no kernel, or has no bias where `lora_bias` needs one.
    """
    targets = target_names(model, lora)
    chosen = {path: m for path, m in submodules(model) if lora.selects(path, targets)}
    if not chosen:
        raise InputError(f"target_modules: {shown(targets)}: no module to adapt has such a name")
    return tuple(_site(path, module, lora) for path, module in chosen.items())


def _site(path: str, module: Any, lora: LoRA) -> Site:
    vectors = (MAGNITUDES,) if lora.use_dora else ("lora_bias",) if lora.lora_bias else ()
    rank, scaling = lora.rank(path), lora.scaling(path)
    if isinstance(module, nnx.Embed):
        if lora.lora_bias:
            raise InputError(f"lora_bias: expected linear layers only, found {path}, an embedding")
        return Site(path, module.embedding.shape, rank, scaling, False, True, vectors)
    if not isinstance(module, nnx.Linear) or module.kernel is None:
        tied = " without a kernel of its own" if isinstance(module, nnx.Linear) else ""
        raise InputError(
            f"target_modules: {path}: expected a linear layer or an embedding matrix, found "
            f"{type(module).__name__}{tied}"
        )
    if lora.lora_bias and module.bias is None:
        raise InputError(f"lora_bias: expected layers with a bias to add to, found {path}")
    return Site(
        path, module.kernel.shape, rank, scaling, isinstance(module, Conv1D), False, vectors
    )


def target_names(model: PretrainedModel, lora: LoRA) -> str | tuple[str, ...]:
    """Returns `target_modules`: the family's for None, and the layers' paths for `all-linear`."""
    if lora.target_modules is None:
        return model.lora_targets
    if lora.target_modules != ALL_LINEAR:
        return lora.target_modules
    return tuple(
        path
        for path, module in submodules(model)
        if isinstance(module, nnx.Linear)
        and not isinstance(module, TiedLinear)
        and not lora.saves_within(path)  # PEFT fails where a task's head is also named as a target
    )


def whole_leaves(model: PretrainedModel, lora: LoRA) -> dict[str, Leaf]:
    """Returns the model's own parameters that are trained: `modules_to_save`, and biases.

    A name that matches nothing is ignored if another one matches, because PEFT lists all possible
    names of a head.

    Raises:
        InputError: no name matches; or a parameter of `modules_to_save` is tied to another one.
    """
    prefix = model.tensor_prefix
    whole = tuple(f"{path}." for path, _ in submodules(model) if lora.saves(path))
    leaves = {leaf.path.removeprefix(prefix): leaf for leaf in file_leaves(model).values()}
    found = {path: leaf for path, leaf in leaves.items() if path.startswith(whole)}
    if lora.modules_to_save and not found:
        names = shown(lora.modules_to_save)
        raise InputError(f"modules_to_save: {names}: no module with parameters has such a name")
    for path, copy in tied_copies(model).items():
        if path in found:
            raise InputError(
                f"modules_to_save: {path}: expected no matrix to which {copy} is tied; name it in "
                "target_modules, or its tokens in trainable_token_indices"
            )
    if lora.bias == "all":
        found |= {path: leaf for path, leaf in leaves.items() if path.endswith("bias")}
    elif lora.bias == "lora_only":
        biases = [f"{site.path}.bias" for site in sites(model, lora)]
        found |= {path: leaves[path] for path in biases if path in leaves}
    return found


def tied_copies(model: PretrainedModel) -> dict[str, str]:
    """Returns the parameters of which a file has a tied copy: their paths → the copies' names."""
    prefix, leaves = model.tensor_prefix, file_leaves(model).values()
    paths = {leaf.name: leaf.path.removeprefix(prefix) for leaf in leaves}
    return {
        paths[original]: copy
        for copy, original in model.tied.items()
        if original in paths and copy not in paths
    }


def tied_sites(model: PretrainedModel, lora: LoRA) -> dict[str, str]:
    """Returns the adapted embedding matrices that are also output matrices, with the copies."""
    tied = tied_copies(model)
    found = [site for site in sites(model, lora) if site.kernel in tied]
    return {site.path: tied[site.kernel] for site in found}


def token_rows(model: PretrainedModel, lora: LoRA) -> dict[str, tuple[int, ...]]:
    """Returns the tokens whose embeddings are trained, by the path of their embedding matrix.

    Raises:
        InputError: a name is not that of an embedding matrix, or is needed; or a token has no row
            in it; or the matrix is adapted or trained whole, too.
    """
    field, chosen = "trainable_token_indices", lora.trainable_token_indices
    if chosen is None:
        return {}
    if isinstance(chosen, tuple):
        matrices = {path: m for path, m in submodules(model) if isinstance(m, nnx.Embed)}
        tokens = [p for p, m in matrices.items() if m.num_embeddings == model.config.vocab_size]
        if len(tokens) != 1:
            raise InputError(f"{field}: expected one of {', '.join(matrices)} with the tokens")
        chosen = {tokens[0]: chosen}
    others = [*whole_leaves(model, lora), *(site.kernel for site in sites(model, lora))]
    found = {}
    for name, rows in chosen.items():
        named = {path: module for path, module in submodules(model) if path.endswith(name)}
        for path, module in named.items():
            if not isinstance(module, nnx.Embed):
                kind = type(module).__name__
                raise InputError(f"{field}: {path}: expected an embedding matrix, found a {kind}")
            if max(rows) >= module.num_embeddings:
                raise InputError(
                    f"{field}: {path}: expected tokens below {module.num_embeddings}, found "
                    f"{max(rows)}"
                )
            if f"{path}.embedding" in others:
                raise InputError(
                    f"{field}: {path}: expected a matrix that is not trained otherwise"
                )
            found[path] = rows
        if not named:
            raise InputError(f"{field}: {shown(name)}: no embedding matrix has such a name")
    return found


def shapes(model: PretrainedModel, lora: LoRA) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of an adapter's arrays, by path.

    Raises:
        InputError: the settings do not fit the model.
    """
    found = {path: leaf.variable.shape for path, leaf in whole_leaves(model, lora).items()}
    modules = dict(submodules(model))
    for path, rows in token_rows(model, lora).items():
        found[f"{path}.{TOKENS}"] = len(rows), modules[path].features
    for site in sites(model, lora):
        found |= site.factors
    return found
