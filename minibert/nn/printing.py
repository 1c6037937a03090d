"""Modules as text, in the manner of PyTorch's."""

from typing import Any

from flax import nnx


def tree(module: nnx.Module) -> str:
    """The module tree as text, one line a leaf module, equal neighbours in a list once."""
    return "\n".join(_tree_lines(module))


def children(module: Any) -> list[tuple[str, Any]]:
    """The modules and variables a module holds, by name, in the order they were made."""
    items = enumerate(module) if isinstance(module, nnx.List) else vars(module).items()
    return [(str(k), v) for k, v in items if isinstance(v, nnx.Module | nnx.Variable)]


def _tree_lines(module: Any) -> list[str]:
    name = type(module).__name__
    match module:
        case nnx.Linear():
            return [f"{name}({module.in_features}, {module.out_features})"]
        case nnx.Embed():
            return [f"{name}({module.num_embeddings}, {module.features})"]
        case nnx.LayerNorm():
            return [f"{name}({module.num_features}, epsilon={module.epsilon:g})"]
        case nnx.Module(printed=str(arguments)):
            return [f"{name}({arguments})"]
        case nnx.Variable():
            return [f"{name}{module.shape}"]
    parts = [(key, _tree_lines(child)) for key, child in children(module)]
    if isinstance(module, nnx.List):
        parts = _grouped([lines for _, lines in parts])
    lines = [f"{name}("]
    for key, child in parts:
        lines += [f"  ({key}): {child[0]}", *(f"  {line}" for line in child[1:])]
    return [*lines, ")"]


def _grouped(blocks: list[list[str]]) -> list[tuple[str, list[str]]]:
    groups: list[tuple[int, list[str]]] = []
    for index, block in enumerate(blocks):
        if not groups or blocks[index - 1] != block:
            groups.append((index, block))
    ends = [start for start, _ in groups[1:]] + [len(blocks)]
    return [
        (str(start), block)
        if end - start == 1
        else (f"{start}-{end - 1}", [f"{end - start} x {block[0]}", *block[1:]])
        for (start, block), end in zip(groups, ends, strict=True)
    ]
