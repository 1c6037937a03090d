"""Reading `flax_model.msgpack`, the weights of the Flax classes that transformers 5 removed.

Their tree has the names of ours, and kernels as Flax keeps them.
"""

import os

import numpy as np
from flax.serialization import msgpack_restore

from minibert.errors import WeightsFileError
from minibert.sources import FLAX
from minibert.tensor_files import ArraySource, TensorSource


def open_flax(folder: str) -> TensorSource:
    """Opens the `flax_model.msgpack` of a folder.

    Raises:
        WeightsFileError: it is not a tree of named arrays.
    """
    path = os.path.join(folder, FLAX)
    try:
        with open(path, "rb") as file:
            tree = msgpack_restore(file.read())
    except OSError as reason:
        raise WeightsFileError(f"{path}: cannot be read ({reason.strerror})") from None
    except Exception as reason:  # msgpack and flax raise many types for a damaged file
        raise WeightsFileError(f"{path}: not a Flax msgpack file ({str(reason)[:200]})") from None
    return ArraySource(_flat(tree, path, ""), path, layout="flax")


def _flat(node: object, path: str, prefix: str) -> dict[str, np.ndarray]:
    if isinstance(node, np.ndarray):
        return {prefix: node}
    if not isinstance(node, dict) or not all(isinstance(key, str) for key in node):
        found = type(node).__name__
        raise WeightsFileError(f"{path}: {prefix!r}: expected an array or a tree, found {found}")
    arrays: dict[str, np.ndarray] = {}
    for key, value in node.items():
        arrays |= _flat(value, path, f"{prefix}.{key}" if prefix else key)
    return arrays
