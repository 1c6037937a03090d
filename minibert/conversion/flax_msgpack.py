"""Reading `flax_model.msgpack`, the weights of the Flax classes that transformers 5 removed.

Their tree has the names of ours, and kernels as Flax keeps them.
"""

import os

from flax.serialization import msgpack_restore

from minibert.checkpoint.sources import FLAX, open_shards, read_files
from minibert.checkpoint.tensors import Arrays, TensorSource, flat_arrays
from minibert.core.paths import read_file
from minibert.errors import WeightsFileError, shown


def open_flax(folder: str) -> TensorSource:
    """Opens the `flax_model.msgpack` of a folder, or its shards.

    Raises:
        ShardIndexError: the shard index is invalid or disagrees with the shards.
        WeightsFileError: a file is not a tree of named arrays.
    """
    path = os.path.join(folder, FLAX)
    return _read([path]) if os.path.lexists(path) else open_shards(folder, FLAX, _read)


def _read(paths: list[str]) -> TensorSource:
    return read_files(paths, _arrays, layout="flax")


def _arrays(path: str) -> Arrays:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    data = read_file(path, memory, WeightsFileError)
    try:
        tree = msgpack_restore(data)
    except Exception as reason:  # msgpack and flax raise many types for a damaged file
        raise WeightsFileError(f"{path}: not a Flax msgpack file ({shown(str(reason))})") from None
    return flat_arrays(tree, path)
