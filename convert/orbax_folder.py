"""Writing a model as an Orbax checkpoint, which `minibert.load` and plain Orbax both read."""

import os
from typing import Any

import numpy as np

from minibert.checkpoint.files import ORBAX
from minibert.checkpoint.leaves import leaves
from minibert.checkpoint.sources import CHECKSUMS, array_sums, open_source
from minibert.errors import TargetError


def write_orbax(model: Any, folder: str) -> None:
    """Writes the model's tree into `orbax/` of an existing folder, and compares what was written.

    The tree is nested dictionaries with the names of the modules; a list's indices are text.
    Checksums of the arrays are in the checkpoint's custom metadata, and compared when it is read.

    Raises:
        TargetError: orbax-checkpoint is not installed, or what was written is not the model.
    """
    try:
        import orbax.checkpoint as ocp
    except ImportError:
        raise TargetError(
            "--to orbax needs orbax-checkpoint: pip install 'minibert-jax[train]'"
        ) from None
    arrays = {
        leaf.path.removeprefix(model.tensor_prefix): leaf.variable[...] for leaf in leaves(model)
    }
    tree: dict[str, Any] = {}
    for path, array in arrays.items():
        *rooms, last = path.split(".")
        node = tree
        for room in rooms:
            node = node.setdefault(room, {})
        node[last] = array
    sums = array_sums({path: np.asarray(array) for path, array in arrays.items()})
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(
            os.path.abspath(os.path.join(folder, ORBAX)), tree, custom_metadata={CHECKSUMS: sums}
        )
    with open_source(folder) as written:
        if written.tensors.keys() != arrays.keys():
            raise TargetError(f"{folder}: the arrays written are not those of the model")
        for path, array in arrays.items():
            read = written.read(path)
            if read.dtype != array.dtype or read.tobytes() != np.asarray(array).tobytes():
                raise TargetError(f"{folder}: {path!r} was not written as it is in memory")
