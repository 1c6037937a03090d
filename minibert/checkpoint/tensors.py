"""Reading weights files tensor by tensor, and tensors by blocks of rows.

safetensors files are parsed here and not memory-mapped: `pread` into new memory keeps no part of
the file resident and is safe if the file is replaced or truncated while it is read, and the parser
refuses the duplicate keys that the reference implementation accepts. Format:
https://huggingface.co/docs/safetensors (8 bytes of header length, a JSON header, the data).
"""

import math
import os
import stat
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from minibert.core.strict_json import MAX_DEPTH, parse_json
from minibert.errors import WeightsFileError, reading, shown

MAX_HEADER_BYTES = 100_000_000  # the reference implementation's limit
MAX_AXES = 64  # numpy's limit
BLOCK_BYTES = 1 << 19  # read at a time: a block stays in a core's L2 cache until it is used

Arrays = dict[str, np.ndarray]
Blocks = Iterator[tuple[int, np.ndarray]]  # each with the index of its first row

KINDS: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
DTYPES = {name: np.dtype(kind) for name, kind in KINDS.items()}


class TensorInfo(NamedTuple):
    """The file, dtype, shape and offset in bytes of a tensor."""

    file: str
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int = 0

    @property
    def nbytes(self) -> int:
        """The size of the tensor in bytes."""
        return self.dtype.itemsize * math.prod(self.shape)


class TensorSource:
    """Named tensors of a checkpoint.

    Attributes:
        layout: "torch" if names and kernels are PyTorch's, "tree" if they are the paths and
            kernels of the module tree, "flax" if they are those of the old Flax classes (like
            "tree", but the kernels of `Conv1D` are transposed).
        tensors: the tensors by name.
    """

    layout = "torch"
    tensors: Mapping[str, TensorInfo]

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor."""
        raise KeyError(name)

    def blocks(self, name: str) -> Blocks:
        """Reads one tensor by blocks of whole rows that fit in the processor's cache.

        Yields:
            The index of the first row of a block, and the block, valid until the next one.
        """
        array = np.atleast_1d(self.read(name))
        rows = _rows_in_block(self.tensors[name])
        for start in range(0, len(array), rows):
            yield start, array[start : start + rows]

    def close(self) -> None:
        """Closes the files, if there are any."""

    def __enter__(self) -> "TensorSource":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ArraySource(TensorSource):
    """Tensors that are already in memory, such as those of a pickle.

    `blocks` releases a tensor after reading it, so that the model is never in memory twice.
    """

    def __init__(self, arrays: Arrays, file: str, layout: str = "torch"):
        self.layout = layout
        self.arrays: dict[str, np.ndarray] = dict(arrays)
        self.tensors = {
            name: TensorInfo(file, array.dtype, array.shape) for name, array in arrays.items()
        }

    def read(self, name: str) -> np.ndarray:
        """Returns the array itself."""
        return self.arrays[name]

    def blocks(self, name: str) -> Blocks:
        """Yields a tensor by blocks of whole rows, then releases it."""
        yield from super().blocks(name)
        del self.arrays[name]


def joined(
    tensors: Mapping[str, TensorInfo], more: Mapping[str, TensorInfo]
) -> dict[str, TensorInfo]:
    """Merges the tensors of some files with those of another.

    Raises:
        WeightsFileError: a tensor is in both.
    """
    for name, info in more.items():
        if name in tensors:
            other = tensors[name].file
            raise WeightsFileError(f"{info.file}: the tensor {shown(name)} is also in {other}")
    return {**tensors, **more}


def raw_bytes(array: np.ndarray) -> np.ndarray:
    """Returns the bytes of an array: a view if the array is contiguous, else a copy."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def flat_arrays(node: object, where: str, prefix: str = "") -> Arrays:
    """Returns the arrays of a tree of dictionaries, by their dotted paths.

    Raises:
        WeightsFileError: a node is neither a dictionary nor an array, or is nested too deeply; or a
            key is not a non-empty string without dots.
    """
    if not isinstance(node, dict):
        if not isinstance(node, np.ndarray):
            raise WeightsFileError(
                f"{where}: {shown(prefix)}: expected an array, found {type(node).__name__}"
            )
        return {prefix: node}
    if prefix.count(".") >= MAX_DEPTH:
        raise WeightsFileError(f"{where}: {shown(prefix)}: nested too deeply")
    arrays: Arrays = {}
    for key, value in node.items():
        if not isinstance(key, str) or not key or "." in key:
            raise WeightsFileError(f"{where}: {shown(key)}: expected a name without dots")
        arrays |= flat_arrays(value, where, f"{prefix}.{key}" if prefix else key)
    return arrays


class SafetensorsSource(TensorSource):
    """The tensors of one or several safetensors files.

    Raises:
        WeightsFileError: a file cannot be read or is malformed.
    """

    def __init__(self, paths: list[str]):
        self.files: dict[str, int] = {}
        self.tensors = {}
        try:
            for path in paths:
                self.files[path] = _open(path)
                self.tensors = joined(self.tensors, read_header(self.files[path], path))
        except BaseException:
            self.close()
            raise

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor into newly allocated memory."""
        info = self.tensors[name]
        array = np.empty(info.shape, info.dtype)
        self._read_into(array, name, 0)
        return array

    def blocks(self, name: str) -> Blocks:
        """Reads one tensor by blocks of whole rows, each of which overwrites its predecessor."""
        info = self.tensors[name]
        count, *row = info.shape or (1,)
        rows = _rows_in_block(info)
        buffer = np.empty((min(count, rows), *row), info.dtype)
        for start in range(0, count, rows):
            block = buffer[: count - start]
            self._read_into(block, name, start * buffer[0].nbytes)
            yield start, block

    def _read_into(self, array: np.ndarray, name: str, start: int) -> None:
        """Fills an array with the bytes of a tensor, beginning at byte `start`."""
        info, memory, done = self.tensors[name], array.reshape(-1).view(np.uint8).data, 0
        while done < memory.nbytes:
            try:
                position = info.offset + start + done
                got = os.preadv(self.files[info.file], [memory[done:]], position)
            except OSError as reason:
                raise WeightsFileError(f"{info.file}: {shown(name)}: {reason.strerror}") from None
            if not got:
                raise WeightsFileError(
                    f"{info.file}: {shown(name)}: expected {start + memory.nbytes} bytes, found "
                    f"{start + done}; the file was truncated while it was read"
                )
            done += got

    def close(self) -> None:
        """Closes the files."""
        while self.files:
            os.close(self.files.popitem()[1])


def _rows_in_block(info: TensorInfo) -> int:
    row = info.dtype.itemsize * math.prod(info.shape[1:])
    return max(1, BLOCK_BYTES // max(1, row))


def _open(path: str) -> int:
    try:
        # O_NONBLOCK: opening a FIFO must not block
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError as reason:
        raise WeightsFileError(f"{path}: cannot be opened ({reason.strerror})") from None
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise WeightsFileError(f"{path}: expected a regular file")
    return file


def read_header(file: int, path: str) -> dict[str, TensorInfo]:
    """Parses and checks the header of an open safetensors file.

    Every byte of the data must belong to exactly one tensor, and the size of each tensor must match
    its dtype and shape.

    Raises:
        WeightsFileError: the file is malformed.
    """
    length = os.fstat(file).st_size
    text = _header_text(file, path, length)
    header = parse_json(text, f"{path}: header", WeightsFileError)
    if not isinstance(header, dict) or text[:1] != b"{":
        raise WeightsFileError(f"{path}: header: expected a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise WeightsFileError(f"{path}: __metadata__: expected an object of strings")
    found = {name: _info(entry, path, name) for name, entry in header.items()}
    end = 0
    for name, info in sorted(found.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if info.offset != end:
            raise WeightsFileError(
                f"{path}: {shown(name)}: expected its data at {end}, found it at "
                f"{shown(info.offset)} (tensors overlap, or leave a gap)"
            )
        end += info.nbytes
    data = 8 + len(text)
    if end != length - data:
        raise WeightsFileError(
            f"{path}: expected {end} bytes of data, as the header says, found {length - data}: "
            "the file is truncated, or has data after the end"
        )
    return {name: info._replace(offset=data + info.offset) for name, info in found.items()}


def _header_text(file: int, path: str, length: int) -> bytes:
    with reading(path, WeightsFileError):
        start = os.pread(file, 9, 0)
        header_length = int.from_bytes(start[:8], "little")
        if len(start) >= 8 and header_length <= min(length - 8, MAX_HEADER_BYTES):
            return os.pread(file, header_length, 8)
    # one header in 32 begins with the first byte of a pickle, but all have a brace at offset 8
    if start[8:] != b"{" and (start[:4] == b"PK\x03\x04" or start[:1] == b"\x80"):
        raise WeightsFileError(f"{path}: expected a safetensors file, found a pickle")
    if length < 8:
        raise WeightsFileError(f"{path}: expected a safetensors file, found {length} bytes")
    raise WeightsFileError(
        f"{path}: expected a header of {header_length} bytes, found a file of {length}; truncated, "
        "or not a safetensors file"
    )


def _info(entry: Any, path: str, tensor: str) -> TensorInfo:
    """Returns the info of an entry of a header, with an offset from the end of the header."""
    where = f"{path}: {shown(tensor)}"
    match entry:
        case {"dtype": str(name), "shape": list(shape), "data_offsets": [begin, end]} if len(
            entry
        ) == 3 and all(type(n) is int and n >= 0 for n in [*shape, begin, end]):
            pass
        case _:
            raise WeightsFileError(
                f"{where}: expected dtype, shape and data_offsets (whole numbers), "
                f"found {shown(entry)}"
            )
    if name not in DTYPES:
        raise WeightsFileError(f"{where}: unknown or unsupported dtype {shown(name)}")
    if len(shape) > MAX_AXES or math.prod(filter(None, shape)) >= 2**60:
        raise WeightsFileError(
            f"{where}: expected a shape that fits in memory, found {shown(tuple(shape))} "
            f"({len(shape)} axes)"
        )
    info = TensorInfo(path, DTYPES[name], tuple(shape), begin)
    if end - begin != info.nbytes:
        raise WeightsFileError(
            f"{where}: {name} of shape {shown(info.shape)} takes {info.nbytes} bytes, found "
            f"{shown(end - begin)}"
        )
    return info
