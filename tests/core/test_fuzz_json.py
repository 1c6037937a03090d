"""Random damage to shard indices and to config.json: refused, or read as by any parser."""

import json
import shutil
import string

import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from fuzzing import SMALL, arrays, damaged, edits, fuzzed, loaded, names, numbers, read_by_us, same
from malformed import INDEX, WEIGHTS
from minibert.errors import ShardIndexError, WeightsFileError


@fuzzed(80)
@given(changes=edits)
def test_index_bytes(changes, sound):
    folder = sound / "sharded"
    text = (sound / "shards" / INDEX).read_bytes()
    (folder / INDEX).write_bytes(damaged(text, changes))
    model = loaded(folder)
    if model is not None:
        same(arrays(model), safetensors.numpy.load_file(sound / "whole" / WEIGHTS))


shard_names = st.one_of(
    st.sampled_from(["model-00001-of-00003.safetensors", "../model/model.safetensors", "", "/x"]),
    st.text(string.ascii_letters + "./\\:\0-", max_size=8).map(lambda text: f"{text}.safetensors"),
    st.none(),
    numbers,
)
index_changes = st.lists(
    st.one_of(
        st.tuples(st.just("weight_map"), st.one_of(names, st.text(max_size=5)), shard_names),
        st.tuples(st.just("metadata"), st.just("total_size"), st.one_of(numbers, st.none())),
        st.tuples(st.just("metadata"), st.text(max_size=5), numbers),
        st.tuples(st.just("drop"), names, st.none()),
    ),
    min_size=1,
    max_size=3,
)


@fuzzed(50)
@given(changes=index_changes)
def test_index_structure(changes, sound):
    folder = sound / "sharded"
    index = json.loads((sound / "shards" / INDEX).read_text())
    for kind, name, value in changes:
        if kind == "drop":
            index["weight_map"].pop(name, None)
        else:
            index[kind][name] = value
    (folder / INDEX).write_text(json.dumps(index))
    read_by_us(folder, (ShardIndexError, WeightsFileError))
    model = loaded(folder)
    if model is not None:
        found, theirs = arrays(model), safetensors.numpy.load_file(sound / "whole" / WEIGHTS)
        same(found, {name: theirs[name] for name in found})
        assert theirs.keys() - found.keys() in (set(), {"pooler.dense.weight", "pooler.dense.bias"})


LABELS = {"num_labels", "id2label", "label2id"}


def check_config(folder, original):
    """A model that loads has the file's weights, and every field as Python's parser reads it."""
    model = loaded(folder)
    if model is None:
        return
    same(arrays(model), safetensors.numpy.load_file(original / WEIGHTS))
    written = model.config.to_dict()
    for name, value in json.loads((folder / "config.json").read_bytes()).items():
        if name not in LABELS:
            assert written[name] == value, name
            assert isinstance(written[name], bool) == isinstance(value, bool), name


@fuzzed(80)
@given(changes=edits)
def test_config_bytes(changes, sound):
    shutil.copy(sound / "whole" / WEIGHTS, sound / "model" / WEIGHTS)
    text = (sound / "whole" / "config.json").read_bytes()
    (sound / "model" / "config.json").write_bytes(damaged(text, changes))
    check_config(sound / "model", sound / "whole")
    shutil.copy(sound / "whole" / "config.json", sound / "model")


fields = st.sampled_from(
    [*SMALL, "type_vocab_size", "hidden_act", "layer_norm_eps", "hidden_dropout_prob", "num_labels",
     "classifier_dropout", "pad_token_id", "tie_word_embeddings", "initializer_range", "id2label",
     "label2id", "problem_type", "output_attentions", "position_embedding_type", "is_decoder",
     "pruned_heads", "quantization_config", "model_type", "architectures", "auto_map", "extra"]
)  # fmt: skip
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-8, 8),
    st.sampled_from([2**31 - 1, 2**31, 10**9, 10**400, -(10**9)]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["gelu", "relu", "bert", "absolute", "regression", "0", "1", ""]),
    st.text(max_size=5),
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=3) | st.sampled_from(["0", "1", "00"]), inner, max_size=3
        )
    ),
    max_leaves=5,
)


@fuzzed(80)
@given(changes=st.dictionaries(fields | st.text(max_size=5), values, min_size=1, max_size=2))
def test_config_structure(changes, sound):
    shutil.copy(sound / "whole" / WEIGHTS, sound / "model" / WEIGHTS)
    config = json.loads((sound / "whole" / "config.json").read_text())
    (sound / "model" / "config.json").write_text(json.dumps(config | changes))
    check_config(sound / "model", sound / "whole")
    shutil.copy(sound / "whole" / "config.json", sound / "model")
