"""Random damage to a small model's files, and what must hold of whatever still loads."""

import shutil

import numpy as np
from flax import nnx
from hypothesis import settings
from hypothesis import strategies as st

import minibert
from malformed import load
from minibert.checkpoint.leaves import leaves
from minibert.checkpoint.sources import open_source
from minibert.errors import MinibertError

SMALL = {
    "vocab_size": 7,
    "hidden_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 3,
    "max_position_embeddings": 5,
}


def fuzzed(examples):
    return settings(max_examples=examples, deadline=None, derandomize=True, database=None)


def make(home):
    """A very small model in one file and in shards, each twice: to keep, and to damage."""
    model = minibert.BertModel(minibert.BertConfig(**SMALL), rngs=nnx.Rngs(0))
    model.save_pretrained(home / "whole")
    model.save_pretrained(home / "shards", max_shard_size="400B")
    shutil.copytree(home / "whole", home / "model")
    shutil.copytree(home / "shards", home / "sharded")
    return home


def arrays(model):
    return {leaf.name.removeprefix("bert."): leaf.to_file() for leaf in leaves(model)}


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert (array.dtype, array.shape) == (theirs[name].dtype, theirs[name].shape), name
        np.testing.assert_array_equal(array, theirs[name], name)


def read_by_us(folder, error):
    """The tensors our parser finds; None where it refuses the file, with nothing but `error`."""
    try:
        with open_source(str(folder)) as source:
            return {name: source.read(name) for name in source.tensors}
    except error:
        return None


def loaded(folder):
    try:
        return load(folder)
    except MinibertError:
        return None


# Damage to bytes: a few edits, each near where it hurts.

edits = st.lists(
    st.tuples(
        st.sampled_from(["replace", "insert", "delete", "copy", "cut"]),
        st.integers(0, 10**4),
        st.one_of(
            st.sampled_from(list(b'{}[]",:\\/0123456789-+.eEutrfn \t\n\0\x7f\x80\xff')),
            st.integers(0, 255),
        ),
        st.integers(1, 40),
    ),
    min_size=1,
    max_size=3,
)


def damaged(content, changes):
    for kind, position, byte, length in changes:
        at = position % (len(content) + 1)
        before, after = content[:at], content[at:]
        match kind:
            case "replace":
                content = before + bytes([byte]) + after[1:]
            case "insert":
                content = before + bytes([byte]) + after
            case "delete":
                content = before + after[length:]
            case "copy":
                content = before + after[:length] + after
            case "cut":
                content = before if length == 1 else content
    return content


names = st.sampled_from(
    ["embeddings.LayerNorm.bias", "embeddings.LayerNorm.weight", "pooler.dense.weight",
     "pooler.dense.bias", "encoder.layer.0.attention.self.query.weight",
     "encoder.layer.0.attention.self.key.weight"]
)  # fmt: skip
numbers = st.one_of(
    st.integers(-2, 100), st.sampled_from([2**31, 2**62, 2**64, 10**30, -(2**63), 0.0, 1.5, True])
)
