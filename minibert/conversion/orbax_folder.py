"""Writing a model as an Orbax checkpoint, which `minibert.load` and plain Orbax both read."""

import os
import shutil
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict

from minibert.checkpoint.files import ORBAX
from minibert.checkpoint.hub import first_line
from minibert.checkpoint.saving import check_saved
from minibert.checkpoint.sources import CHECKSUMS, array_sums, uninterrupted
from minibert.errors import TargetError
from minibert.nn.tree import parameters


def write_orbax(model: Any, folder: str) -> None:
    """Writes the model's tree into `orbax/` of an existing folder, and compares what was written.

    The tree is nested dictionaries with the names of the modules; a list's indices are text.
    Checksums of the arrays are in the checkpoint's custom metadata, and compared when it is read.

    Raises:
        TargetError: orbax-checkpoint is not installed, the checkpoint cannot be written, or what
            was written is not the model.
    """
    try:
        import orbax.checkpoint as ocp
    except ImportError:
        raise TargetError(
            "--to orbax needs orbax-checkpoint: pip install 'minibert-jax[train]'"
        ) from None
    arrays = parameters(model)
    sums = array_sums({path: np.asarray(array) for path, array in arrays.items()})
    path = os.path.abspath(os.path.join(folder, ORBAX))
    # Orbax's threads print tracebacks for each array when the disk is full
    needed, disk = sum(array.nbytes for array in arrays.values()), shutil.disk_usage(folder)
    if disk.total and disk.free < needed:
        raise TargetError(
            f"{path}: cannot be written ({needed:,} bytes are needed, {disk.free:,} are free)"
        )

    def save() -> None:
        with ocp.StandardCheckpointer() as checkpointer:
            tree = unflatten_dict(arrays, sep=".")
            checkpointer.save(path, tree, custom_metadata={CHECKSUMS: sums})

    try:
        uninterrupted(save)
    except Exception as reason:  # Orbax, TensorStore and zarr each raise their own types
        raise TargetError(f"{path}: cannot be written ({first_line(reason)})") from None
    check_saved(model, folder)
