"""Random damage to safetensors headers: refused with our own errors, or read rightly.

Whatever loads must hold what safetensors finds in the same file; and a file our parser accepts
must be one the reference implementation accepts.
"""

import copy
import json
import math

import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from fuzzing import arrays, damaged, edits, fuzzed, loaded, names, numbers, read_by_us, same
from malformed import WEIGHTS, join, split
from minibert.errors import WeightsFileError


@fuzzed(150)
@given(changes=edits, adjusted=st.booleans())
def test_header_bytes(changes, adjusted, sound):
    """The length before the header is adjusted to the damage, or not."""
    original = (sound / "whole" / WEIGHTS).read_bytes()
    _, data = split(sound / "whole" / WEIGHTS)
    text = original[8 : len(original) - len(data)]
    weights = sound / "model" / WEIGHTS
    join(weights, damaged(text, changes), data)
    if not adjusted:
        weights.write_bytes(original[:8] + weights.read_bytes()[8:])
    ours = read_by_us(sound / "model", WeightsFileError)
    if ours is not None:
        same(ours, safetensors.numpy.load_file(weights))
    model = loaded(sound / "model")
    if model is not None:
        same(arrays(model), safetensors.numpy.load_file(sound / "whole" / WEIGHTS))


# Damage to structure: the header stays JSON, and often stays plausible.

entry_changes = st.one_of(
    st.tuples(st.just("dtype"), st.sampled_from(["F32", "I32", "U32", "F16", "F64", "X", "", 1])),
    st.tuples(st.just("shape"), st.lists(numbers, max_size=4)),
    st.tuples(st.just("data_offsets"), st.lists(numbers, max_size=3)),
    st.tuples(st.just("more"), numbers),
)
header_changes = st.lists(
    st.one_of(
        st.tuples(st.just("entry"), names, entry_changes),
        st.tuples(st.just("rename"), names, st.one_of(names, st.text(max_size=8))),
        st.tuples(st.just("swap"), names, names),
        st.tuples(st.just("reversed"), names, st.none()),
        st.tuples(st.just("drop"), names, st.none()),
        st.tuples(st.just("empty"), st.text(max_size=8), st.lists(st.integers(0, 3), max_size=3)),
        st.tuples(st.just("metadata"), st.text(max_size=8), st.one_of(st.text(), numbers)),
    ),
    min_size=1,
    max_size=3,
)


def changed(header, changes):
    end = max(entry["data_offsets"][1] for entry in header.values() if "shape" in entry)
    for kind, name, value in changes:
        if kind in ("entry", "rename", "swap", "reversed", "drop") and name not in header:
            continue
        match kind:
            case "entry":
                header[name] = header[name] | dict([value])
            case "rename":
                header[value] = header.pop(name)
            case "swap" if value in header:
                one, other = header[name]["data_offsets"], header[value]["data_offsets"]
                header[name]["data_offsets"], header[value]["data_offsets"] = other, one
            case "reversed" if isinstance(header[name]["shape"], list):
                header[name]["shape"] = header[name]["shape"][::-1]
            case "drop":
                del header[name]
            case "empty":
                header[name] = {"dtype": "F32", "shape": [0, *value], "data_offsets": [end, end]}
            case "metadata":
                header["__metadata__"] = {name: value}
    return header


@fuzzed(80)
@given(changes=header_changes)
def test_header_structure(changes, sound):
    """A header that swaps two tensors of one size is a sound header of other weights."""
    header, data = split(sound / "whole" / WEIGHTS)
    weights = sound / "model" / WEIGHTS
    join(weights, changed(copy.deepcopy(header), changes), data)
    ours = read_by_us(sound / "model", WeightsFileError)
    if ours is None:
        assert loaded(sound / "model") is None
        return
    theirs = safetensors.numpy.load_file(weights)
    same(ours, theirs)
    model = loaded(sound / "model")
    if model is not None:
        found = arrays(model)
        same(found, {name: theirs[name] for name in found})
        assert theirs.keys() - found.keys() <= {"embeddings.position_ids"}


characters = st.sampled_from("ab\u00e9\u2028\U0001f600\ud800\udfff\0\n\x7f\ufeff\\/\"'")
zeros = st.sampled_from(
    ["0", "0", "0", "-0", "0.0", "0e0", "-0.0", "00", "+0", "0 ", "\t0", "\u0660"]
)
shapes = st.lists(st.integers(0, 3), max_size=3)


@fuzzed(250)
@given(
    tensors=st.dictionaries(st.text(characters, max_size=4), shapes, max_size=3),
    metadata=st.none()
    | st.dictionaries(st.text("ab", max_size=2), st.text(characters, max_size=3)),
    ascii_only=st.booleans(),
    indent=st.sampled_from([None, 1, "\t", " \n\r"]),
    padding=st.text(" \n\0", max_size=3),
    zero=zeros,
    changes=st.one_of(st.just([]), edits),
)
def test_what_we_accept_the_reference_accepts(
    tensors, metadata, ascii_only, indent, padding, zero, changes, sound
):
    """Any small file, as any writer might have spelt it."""
    header, end = {} if metadata is None else {"__metadata__": metadata}, 0
    for name, shape in tensors.items():
        size = 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header, ensure_ascii=ascii_only, indent=indent).replace("0", zero, 1)
    text = padding[2:] + text + padding[:2]
    weights = sound / "model" / WEIGHTS
    join(weights, damaged(text.encode("utf-8", "surrogatepass"), changes), bytes(range(256))[:end])
    ours = read_by_us(sound / "model", WeightsFileError)
    if ours is not None:
        same(ours, safetensors.numpy.load(weights.read_bytes()))


@fuzzed(100)
@given(content=st.binary(max_size=64), brace=st.booleans())
def test_any_bytes(content, brace, sound):
    content = content[:8] + b"{" + content[8:] if brace else content
    (sound / "model" / WEIGHTS).write_bytes(content)
    ours = read_by_us(sound / "model", WeightsFileError)
    if ours is not None:
        same(ours, safetensors.numpy.load(content))
