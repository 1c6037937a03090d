"""Reading `flax_model.msgpack`, the weights of the Flax classes that transformers 5 removed.

Their tree has the names of ours, and kernels as Flax keeps them.
"""

import os

from flax.serialization import msgpack_restore

from minibert.checkpoint.sources import FLAX
from minibert.checkpoint.tensors import ArraySource, TensorSource, flat_arrays
from minibert.errors import WeightsFileError, reading


def open_flax(folder: str) -> TensorSource:
    """Opens the `flax_model.msgpack` of a folder.

    Raises:
        WeightsFileError: the file is not a tree of named arrays.
    """
    path = os.path.join(folder, FLAX)
    with reading(path, WeightsFileError), open(path, "rb") as file:
        data = file.read()
    try:
        tree = msgpack_restore(data)
    except Exception as reason:  # msgpack and flax raise many types for a damaged file
        raise WeightsFileError(f"{path}: not a Flax msgpack file ({str(reason)[:200]})") from None
    return ArraySource(flat_arrays(tree, path), path, layout="flax")
