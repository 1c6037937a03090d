"""What a model folder holds, for comparing two of them."""

from minibert.checkpoint.sources import open_source


def contents(folder: object) -> dict[str, tuple]:
    """Every tensor of a folder: its dtype, shape and bytes, by name."""
    with open_source(str(folder)) as source:
        return {
            name: (info.dtype, info.shape, source.read(name).tobytes())
            for name, info in source.tensors.items()
        }
