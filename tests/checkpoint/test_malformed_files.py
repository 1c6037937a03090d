"""Damaged, hostile and misnamed safetensors files: refused by name, never read wrongly."""

import json
import os
import struct

import numpy as np
import pytest
import safetensors.numpy

from malformed import (
    WEIGHTS,
    as_folder,
    as_link,
    as_pipe,
    cases,
    edit_header,
    join,
    load,
    refused,
    split,
)
from minibert.checkpoint.sources import open_source
from minibert.errors import CheckpointMismatchError, SourceError, WeightsFileError

pytestmark = pytest.mark.unoptimised

FIRST = "embeddings.LayerNorm.bias"  # the first tensor of the file, 24 numbers
SECOND = "embeddings.LayerNorm.weight"


def entry(**change):
    return lambda header: header[FIRST].update(change)


def text(change):
    """A change of the header's bytes."""

    def apply(folder):
        header, data = split(folder / WEIGHTS)
        join(folder / WEIGHTS, change(json.dumps(header).encode()), data)

    return apply


def whole(content):
    return lambda folder: (folder / WEIGHTS).write_bytes(content)


def tail(change):
    def apply(folder):
        content = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).write_bytes(change(content))

    return apply


def length(number):
    return tail(lambda content: struct.pack("<Q", number) + content[8:])


def grown_header(folder):
    with open(folder / WEIGHTS, "r+b") as file:
        file.write(struct.pack("<Q", 100_000_001))
        file.truncate(200_000_000)


def again(old, new):
    return text(lambda header: header.replace(old, old + new, 1))


def storm(header):
    nothing = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header |= dict.fromkeys(map(str, range(20_000)), nothing)


CONTAINERS = {
    "empty": (whole(b""), "found 0 bytes"),
    "seven-bytes": (whole(b"\x01" + bytes(6)), "found 7 bytes"),
    "no-header": (whole(bytes(8)), "header: not JSON"),
    "text": (whole(b"version https://git-lfs.github.com/spec/v1\noid sha256:0"), "header"),
    "length-one-too-many": (tail(lambda c: struct.pack("<Q", len(c) - 7) + c[8:]), "truncated"),
    "length-2**63": (length(2**63), "9223372036854775808 bytes"),
    "length-2**64-1": (length(2**64 - 1), "18446744073709551615 bytes"),
    "length-over-limit": (grown_header, "100000001 bytes"),
    "data-cut": (tail(lambda c: c[:-1]), "truncated"),
    "data-gone": (tail(lambda c: c[: 8 + int.from_bytes(c[:8], "little")]), "truncated"),
    "trailing-byte": (tail(lambda c: c + b"\0"), "data after the end"),
    "trailing-zip": (tail(lambda c: c + b"PK\x05\x06" + bytes(18)), "data after the end"),
    "header-not-utf-8": (text(lambda h: h.replace(b"LayerNorm", b"LayerN\xffrm", 1)), "UTF-8"),
    "header-bom": (text(lambda h: b"\xef\xbb\xbf" + h), "header"),
    "header-not-json": (text(lambda h: h.replace(b":", b"=", 1)), "header: not JSON"),
    "header-array": (text(lambda h: b"[" + h + b"]"), "header: expected a JSON object"),
    "header-string": (text(lambda h: b'"x"'), "header: expected a JSON object"),
    "header-leading-space": (text(lambda h: b" " + h), "header: expected a JSON object"),
    "header-second-value": (text(lambda h: h + b"{}"), "header: not JSON"),
    "header-trailing-nul": (text(lambda h: h + b"\0"), "header: not JSON"),
    "header-deep": (text(lambda h: b'{"x":' * 10**5), "nested too deeply"),
    "header-deep-closed": (text(lambda h: b'{"x":' * 99 + b"1" + b"}" * 99), "nested too deeply"),
    "header-nan": (text(lambda h: h.replace(b"[0, 96]", b"[NaN, 96]", 1)), "NaN is not a finite"),
    "header-infinite": (text(lambda h: h.replace(b"[0, 96]", b"[0, 1e999]", 1)), "1e999 is not"),
    "header-minus-zero": (text(lambda h: h.replace(b"[0, 96]", b"[-0, 96]", 1)), "-0"),
    "header-long-integer": (text(lambda h: h.replace(b"96", b"9" * 5000, 1)), "header"),
    "header-half-surrogate": (text(lambda h: h.replace(b"embed", rb"\ud800", 1)), "surrogate"),
    "duplicate-tensor-same-place": (
        again(
            b'{"dtype": "F32", "shape": [24], "data_offsets": [0, 96]}',
            b', "%s": {"dtype": "I32", "shape": [24], "data_offsets": [0, 96]}' % FIRST.encode(),
        ),
        f"the key {FIRST!r} appears twice",
    ),
    "duplicate-tensor-by-escape": (
        again(
            b'{"dtype": "F32", "shape": [24], "data_offsets": [0, 96]}',
            b', "\\u0065%s": {"dtype": "F32", "shape": [24], "data_offsets": [0, 96]}'
            % FIRST[1:].encode(),
        ),
        f"the key {FIRST!r} appears twice",
    ),
    "duplicate-field": (again(b'"dtype": "F32"', b', "dtype": "I32"'), "'dtype' appears twice"),
    "duplicate-metadata": (
        again(b'"__metadata__": {"format": "pt"}', b', "__metadata__": {}'),
        "'__metadata__' appears twice",
    ),
}


@pytest.mark.parametrize(("spoil", "said"), cases(CONTAINERS))
def test_container(spoil, said, folder):
    spoil(folder)
    refused(WeightsFileError, (str(folder / WEIGHTS), said), lambda: load(folder))


ENTRIES = {
    "no-shape": (lambda h: h[FIRST].pop("shape"), "expected dtype, shape and data_offsets"),
    "unknown-field": (entry(checksum="x"), "expected dtype, shape and data_offsets"),
    "not-an-object": (lambda h: h.update({FIRST: [0, 96]}), "found [0, 96]"),
    "null": (lambda h: h.update({FIRST: None}), "found None"),
    "dtype-unknown": (entry(dtype="F31"), "dtype 'F31'"),
    "dtype-unsupported": (entry(dtype="F4"), "dtype 'F4'"),
    "dtype-number": (entry(dtype=32), "'dtype': 32"),
    "shape-number": (entry(shape=24), "'shape': 24"),
    "shape-float": (entry(shape=[24.0]), "[24.0]"),
    "shape-bool": (entry(shape=[24, True]), "[24, True]"),
    "shape-negative": (entry(shape=[-24]), "[-24]"),
    "shape-two-negatives": (entry(shape=[-4, -6]), "[-4, -6]"),
    "shape-string": (entry(shape=["24"]), "['24']"),
    "shape-nested": (entry(shape=[[24]]), "[[24]]"),
    "shape-too-large": (entry(shape=[25]), "(25,) takes 100 bytes, found 96"),
    "shape-overflow": (entry(shape=[2**62, 8]), "(4611686018427387904, 8) (2 axes)"),
    "shape-overflow-to-96": (entry(shape=[2**63, 2, 24]), "(9223372036854775808, 2, 24)"),
    "shape-empty-and-vast": (
        entry(shape=[0, 2**62], data_offsets=[0, 0]),
        "(0, 4611686018427387904)",
    ),
    "shape-of-65-axes": (entry(shape=[24] + [1] * 64), "65 axes"),
    "offsets-three": (entry(data_offsets=[0, 48, 96]), "[0, 48, 96]"),
    "offsets-string": (entry(data_offsets=["0", "96"]), "['0', '96']"),
    "offsets-reversed": (entry(data_offsets=[96, 0]), "takes 96 bytes, found -96"),
    "offsets-negative": (entry(data_offsets=[-96, 0]), "[-96, 0]"),
    "offsets-hole": (entry(data_offsets=[4, 100]), "expected its data at 0, found it at 4"),
    "offsets-out-of-bounds": (entry(data_offsets=[2**40, 2**40 + 96]), "expected its data at"),
    "offsets-overlap": (
        lambda h: h[SECOND].update(data_offsets=[92, 188]),
        f"{SECOND!r}: expected its data at 96, found it at 92",
    ),
    "offsets-shared": (
        lambda h: h[SECOND].update(data_offsets=[0, 96]),
        "expected its data at 96, found it at 0",
    ),
    "metadata-not-strings": (lambda h: h.update(__metadata__={"a": 1}), "__metadata__"),
    "metadata-not-an-object": (lambda h: h.update(__metadata__=["pt"]), "__metadata__"),
    "metadata-null": (lambda h: h.update(__metadata__=None), "__metadata__"),
}


@pytest.mark.parametrize(("change", "said"), cases(ENTRIES))
def test_entry(change, said, folder):
    edit_header(folder, change)
    refused(WeightsFileError, (str(folder / WEIGHTS), said), lambda: load(folder))


def renamed(name):
    return lambda header: header.update({name: header.pop(FIRST)})


LONG = "n" * 10**6
NAMES = {
    "long-dtype": (entry(dtype=LONG), WeightsFileError),
    "long-entry": (entry(shape=list(range(10**5))), WeightsFileError),
    "long-name": (lambda h: h.update({LONG: None}), WeightsFileError),
    "newline-and-nul": (lambda h: h.update({"a\n\0\x1b[2J\u2028": None}), WeightsFileError),
    "long-name-of-a-spare-tensor": (renamed(LONG), CheckpointMismatchError),
    "newline-in-a-spare-tensor": (renamed("a\n\0b"), CheckpointMismatchError),
    "path-like": (renamed("../../x"), CheckpointMismatchError),
    "shape-of-64-axes": (entry(shape=[24] + [1] * 63), CheckpointMismatchError),
    "zero-size-storm": (storm, CheckpointMismatchError),
}


@pytest.mark.parametrize(("change", "error"), cases(NAMES))
def test_names_do_not_flood_the_message(change, error, folder):
    edit_header(folder, change)
    refused(error, (), lambda: load(folder))


def test_cut_anywhere_in_the_header(folder):
    weights = folder / WEIGHTS
    safetensors.numpy.save_file({"a": np.ones(2), "b": np.ones((1, 3))}, weights)
    header = 8 + int.from_bytes(weights.read_bytes()[:8], "little")
    for end in reversed(range(header)):
        os.truncate(weights, end)
        refused(WeightsFileError, (str(weights),), lambda: open_source(str(folder)))


def test_cut_anywhere_in_the_data(folder):
    weights = folder / WEIGHTS
    content = weights.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    for end in np.random.default_rng(0).integers(start, len(content), 100):
        weights.write_bytes(content[:end])
        refused(WeightsFileError, (str(weights), "truncated"), lambda: load(folder))


@pytest.mark.parametrize("low_byte", [0x80, 0x00, 0x28, 0x50])
def test_a_valid_header_of_any_length_is_read(low_byte, folder):
    """0x80 is how a pickle begins, and how one header in 32 begins too."""
    weights = folder / WEIGHTS
    expected = load(folder).pooler.dense.bias[...]
    header, data = split(weights)
    line = json.dumps(header).encode()
    join(weights, line + b" " * ((low_byte - len(line)) % 256), data)
    assert weights.read_bytes()[0] == low_byte
    assert safetensors.numpy.load_file(weights)
    np.testing.assert_array_equal(load(folder).pooler.dense.bias[...], expected)
    os.truncate(weights, 1000)
    refused(WeightsFileError, (str(weights), "truncated"), lambda: load(folder))


def as_link_to_pipe(path):
    path.rename(path.with_name("pipe"))
    as_pipe(path.with_name("pipe"))
    path.symlink_to("pipe")


FILES = {
    "directory": (as_folder, WeightsFileError, "expected a regular file"),
    "fifo": (as_pipe, WeightsFileError, "expected a regular file"),
    "link-to-fifo": (as_link_to_pipe, WeightsFileError, "expected a regular file"),
    "link-to-dev-zero": (as_link("/dev/zero"), WeightsFileError, "expected a regular file"),
    "link-to-nothing": (as_link("nowhere"), WeightsFileError, "cannot be opened"),
    "link-to-itself": (as_link(WEIGHTS), WeightsFileError, "cannot be opened"),
    "link-to-own-memory": (as_link("/proc/self/mem"), WeightsFileError, "cannot be read"),
    "link-to-growing-file": (as_link("/proc/self/maps"), WeightsFileError, "found 0 bytes"),
    "absent": (os.unlink, SourceError, "no model.safetensors"),
}


@pytest.mark.parametrize(("make", "error", "said"), cases(FILES))
def test_not_a_file(make, error, said, folder):
    make(folder / WEIGHTS)
    refused(error, (str(folder), WEIGHTS, said), lambda: load(folder))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_unreadable(folder):
    (folder / WEIGHTS).chmod(0)
    refused(WeightsFileError, (WEIGHTS, "Permission denied"), lambda: load(folder))


def test_cut_short_after_it_was_opened(folder):
    with open_source(str(folder)) as source:
        os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size - 4)
        last = max(source.tensors, key=lambda name: source.tensors[name].offset)
        said = (str(folder / WEIGHTS), repr(last), "truncated")
        refused(WeightsFileError, said, lambda: source.read(last))


@pytest.mark.parametrize("swap", [os.unlink, lambda path: os.replace(path.with_name("new"), path)])
def test_swapped_after_it_was_opened(swap, folder):
    weights = folder / WEIGHTS
    expected = safetensors.numpy.load_file(weights)
    weights.with_name("new").write_bytes(bytes(weights.stat().st_size))
    with open_source(str(folder)) as source:
        swap(weights)
        for name, array in expected.items():
            np.testing.assert_array_equal(source.read(name), array)


def test_no_file_stays_open(folder):
    def descriptors():
        return len(os.listdir("/proc/self/fd"))

    content = (folder / WEIGHTS).read_bytes()
    before = descriptors()
    for name in ("data-cut", "header-not-json", "duplicate-field"):
        CONTAINERS[name][0](folder)
        refused(WeightsFileError, (), lambda: load(folder))
        (folder / WEIGHTS).write_bytes(content)
    edit_header(folder, lambda header: header.update(spare=header.pop(FIRST)))
    refused(CheckpointMismatchError, (), lambda: load(folder))
    assert descriptors() == before
