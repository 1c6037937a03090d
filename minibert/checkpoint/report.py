"""What a load did: the report that `output_loading_info=True` returns."""

import dataclasses
from collections.abc import Mapping

from minibert.errors import shown


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadingInfo:
    """What a load did with every tensor and every leaf.

    Attributes:
        model: the class.
        source: the folder.
        files: the weights files read.
        matched: tensors that filled a leaf, as the tree names them.
        tied: tensors found equal to the one they are tied to: copy → original.
        left: head tensors this class has no use for, left in the file.
        ignored: buffers not read: name → reason.
        new: leaves of a fresh head.
        absent: optional rooms the checkpoint does not have.
        renamed: tensors found under another name: name in the file → name in the tree.
        dtypes: how many leaves are stored in each dtype.
        config_ignored: fields of config.json that Hugging Face ignores, and so does minibert.
        suspicious: what is legal and yet worth a look, one sentence each.
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
