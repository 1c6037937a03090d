"""Fields of config.json: honoured or refused by name, kept, never resolved, never allocated for."""

import dataclasses
import json
import os
import resource
import time

import numpy as np
import pytest
from flax import nnx

import minibert
from malformed import cases, edit_json, load, refused
from minibert.checkpoint.config import INERT_FIELDS, REFUSED_DECODER_FIELDS
from minibert.errors import (
    CheckpointMismatchError,
    ConfigError,
    InputError,
    UnsupportedConfigError,
)

pytestmark = pytest.mark.unoptimised

CONFIG = "config.json"
LONG = "n\n" * 10**5
UNSUPPORTED = {
    "relative-positions": ({"position_embedding_type": "relative_key"}, "'relative_key'"),
    "relative-positions-query": ({"position_embedding_type": "relative_key_query"}, "_query'"),
    "positions-junk": ({"position_embedding_type": ["absolute"]}, "['absolute']"),
    "positions-long": ({"position_embedding_type": LONG}, "'n\\nn"),
    "causal-null": ({"is_causal": None}, "None"),
}
# What transformers reads of a decoder's config alone, for its cache.
DECODERS_ONLY = {
    "window": ({"sliding_window": 4}, "4"),
    "chunks": ({"attention_chunk_size": 4}, "4"),
    "layer-types": ({"layer_types": ["full_attention", "linear_attention"]}, "['full_attention'"),
    "shared-caches": ({"kv_sharing_modes": [None, "reuse"]}, "[None, 'reuse']"),
}


@pytest.mark.parametrize(("change", "found"), cases(UNSUPPORTED))
def test_unsupported(change, found, folder):
    edit_json(folder / CONFIG, lambda config: config.update(change))
    said = (str(folder / CONFIG), f"{next(iter(change))}: ", found, "is not implemented")
    refused(UnsupportedConfigError, said, lambda: load(folder))


@pytest.mark.parametrize(("change", "found"), cases(DECODERS_ONLY))
def test_unsupported_in_a_decoder(change, found, folder):
    edit_json(folder / CONFIG, lambda config: config.update(change))
    _, info = load(folder, output_loading_info=True)
    assert info.config_ignored == tuple(change)
    edit_json(folder / CONFIG, lambda config: config.update(is_decoder=True))
    said = (str(folder / CONFIG), f"{next(iter(change))}: ", found, "is not implemented")
    refused(UnsupportedConfigError, said, lambda: load(folder))


@pytest.mark.parametrize(
    ("change", "found"),
    [*cases(DECODERS_ONLY), pytest.param({"tie_last_hidden_states": False}, "False", id="states")],
)
def test_unsupported_in_gpt2(change, found):
    said = f"{next(iter(change))}: "
    with pytest.raises(UnsupportedConfigError, match=said + ".* is not implemented"):
        minibert.GPT2Config.from_dict(change)
    neutral = dict.fromkeys([*change, "per_layer_config"])
    assert minibert.GPT2Config.from_dict(neutral).ignored_fields == ()


def test_whether_attention_is_causal(folder, tmp_path):
    config = minibert.BertConfig.tiny(is_decoder=True)
    assert (config.causal, config.replace(is_causal=False).causal) == (True, False)
    assert not minibert.BertConfig.tiny(is_causal=False).causal
    assert minibert.GPT2Config.tiny(is_causal=True).causal
    assert "is_causal" not in config.to_dict()
    assert minibert.BertConfig.from_dict(config.replace(is_causal=False).to_dict()).causal is False
    assert config != config.replace(is_causal=False)
    edit_json(folder / CONFIG, lambda config: config.update(is_causal=True))
    said = (str(folder / CONFIG), "is_causal: expected false or no value, as is_decoder is false")
    refused(UnsupportedConfigError, said, lambda: load(folder))
    edit_json(folder / CONFIG, lambda config: config.update(is_decoder=True))
    load(folder).save_pretrained(tmp_path / "out")
    assert json.loads((tmp_path / "out" / CONFIG).read_text())["is_causal"] is True


# What transformers reads from a config besides: its own machinery, and other kinds of models.
NOT_OF_A_MODEL = {
    *("_attn_implementation", "_experts_implementation", "_heterogeneity_spec", "generator"),
    *("base_model_ep_plan", "base_model_fsdp_plan", "base_model_pp_plan", "base_model_tp_plan"),
    *("decoder", "head_dim", "is_heterogeneous", "mtp_layer_types", "output_cross_attentions"),
    *("rope_parameters", "sub_configs", "sub_configs_defaults", "text_config"),
    *("vision_aspect_ratio", "vision_feature_layer", "vision_feature_select_strategy"),
    *("assistant_confidence_threshold", "assistant_lookbehind", "num_assistant_tokens"),
    *("num_assistant_tokens_schedule", "target_lookbehind", "encoder_repetition_penalty"),
    *("epsilon_cutoff", "eta_cutoff"),
}


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("GPT2LMHeadModel", {}),
        ("GPT2DoubleHeadsModel", {}),
        ("BertLMHeadModel", {"is_decoder": True}),
        ("BertForPreTraining", {}),
    ],
)
def test_every_field_that_transformers_reads_is_known(name, more, monkeypatch):
    """Declared or not: a field of which nothing is said here could change the numbers."""
    pytest.importorskip("torch")
    import oracle

    theirs = oracle.torch_model(name, **more)
    kind, read = type(theirs.config), set()
    original = kind.__getattribute__

    def recorded(self, name):
        read.add(name)
        return original(self, name)

    monkeypatch.setattr(kind, "__getattribute__", recorded)
    theirs.train()
    oracle.run_torch(theirs, oracle.arguments(name, padding=None), **oracle.ALL)
    theirs.eval()
    oracle.run_torch(theirs, oracle.arguments(name))
    if hasattr(theirs, "generate") and (more or name.startswith("GPT2LM")):
        theirs.generate(oracle.torch.tensor([[1, 2]]), max_new_tokens=2, pad_token_id=0)
    monkeypatch.undo()
    ours = {"bert": minibert.BertConfig, "gpt2": minibert.GPT2Config}[oracle.family(name)]
    fields = {field.name for field in dataclasses.fields(ours)} | ours.aliases.keys()
    known = fields | INERT_FIELDS | ours._refused(more).keys() | NOT_OF_A_MODEL
    if not more and name.startswith("Bert"):
        known |= REFUSED_DECODER_FIELDS.keys()
    methods = {name for name in read if callable(getattr(theirs.config, name, None))}
    unknown = {name for name in read - known - methods if not name.startswith("__")}
    assert unknown <= {"tie_last_hidden_states"}  # BERT has no norm after its last block
    assert "tie_last_hidden_states" in known or unknown or not name.startswith("GPT2")
    assert read & fields


@pytest.mark.slow
def test_a_decoder_is_honoured(folder):
    assert not load(folder).config.is_decoder
    edit_json(folder / CONFIG, lambda config: config.update(is_decoder=True))
    model = load(folder)
    ids = [[5, 6, 7, 8]]
    changed = model([[5, 6, 7, 9]]).last_hidden_state[0, :3]
    np.testing.assert_array_equal(model(ids).last_hidden_state[0, :3], changed)


DECODERS = {
    "1": ({"is_decoder": 1}, "is_decoder: expected true or false, found 1"),
    "string": ({"is_decoder": "false"}, "is_decoder: expected true or false, found 'false'"),
    "crossed-encoder": ({"add_cross_attention": True}, "add_cross_attention: expected false"),
    "crossed-null": ({"add_cross_attention": None}, "expected true or false, found None"),
}


@pytest.mark.parametrize(("change", "said"), cases(DECODERS))
def test_half_a_decoder(change, said, folder):
    edit_json(folder / CONFIG, lambda config: config.update(change))
    refused(ConfigError, (str(folder / CONFIG), said), lambda: load(folder))


def test_cross_attention_that_the_file_lacks(folder):
    change = {"is_decoder": True, "add_cross_attention": True}
    edit_json(folder / CONFIG, lambda config: config.update(change))
    error = refused(CheckpointMismatchError, (str(folder),), lambda: load(folder))
    assert len(error.faults) == 2 * 10
    assert all("crossattention" in fault for fault in error.faults)


NEUTRAL = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "pruned_heads": {},
    "quantization_config": None,
}


def test_neutral_values_are_kept(folder):
    edit_json(folder / CONFIG, lambda config: config.update(NEUTRAL))
    _, info = load(folder, output_loading_info=True)
    assert info.config_ignored == ()


@pytest.mark.parametrize("size", [10**9, 2**31 - 1])
@pytest.mark.parametrize(
    "name",
    ["vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "type_vocab_size",
     "max_position_embeddings", "num_labels"],
)  # fmt: skip
def test_vast_sizes_are_refused_at_once(name, size, folder):
    change = {name: size, "num_attention_heads": 1}
    edit_json(folder / CONFIG, lambda config: config.update(change))
    start, memory = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((ConfigError, CheckpointMismatchError), match=f"{name}|{size}"):
        load(folder)
    assert time.monotonic() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 200_000  # kilobytes


def test_more_layers_than_the_file_has(folder):
    """Not more than it has tensors, which is refused before anything is built."""
    edit_json(folder / CONFIG, lambda config: config.update(num_hidden_layers=39))
    error = refused(CheckpointMismatchError, (), lambda: load(folder))
    assert len(error.faults) == 37 * 16


RESOLVED = {
    "auto_map": {"AutoModel": "modeling_evil.EvilModel", "AutoConfig": "os--system"},
    "_attn_implementation_internal": "modeling_evil.attention",
    "_attn_implementation": "kernels-community/evil",
    "attn_implementation": "evil",
    "custom_pipelines": {"x": {"impl": "evil.Pipeline"}},
    "tokenizer_class": "evil.Tokenizer",
    "trust_remote_code": True,
    "_target_": "os.system",
    "__class__": "evil.Class",
    "__reduce__": ["os.system", "true"],
    "__init__": None,
    "extra": {"extra": 1},
    "self": "x",
    "cls": 1,
    "where": "elsewhere",
}


def test_class_paths_are_kept_and_never_resolved(folder, tmp_path, monkeypatch):
    """Anything that tried to import it would find it, and leave a mark."""
    mark = tmp_path / "ran"
    for home in (folder, tmp_path / "path"):
        home.mkdir(exist_ok=True)
        for name in ("modeling_evil.py", "evil.py"):
            (home / name).write_text(f"open({str(mark)!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path / "path")
    monkeypatch.chdir(folder)
    edit_json(folder / CONFIG, lambda config: config.update(RESOLVED))
    model = load(folder)
    model.save_pretrained(tmp_path / "out")
    written = json.loads((tmp_path / "out" / CONFIG).read_text())
    assert {name: written[name] for name in RESOLVED} == RESOLVED
    assert not mark.exists()
    assert sorted(os.listdir(tmp_path / "out")) == [CONFIG, "model.safetensors"]


ARCHITECTURES = {
    "path": (["os.system"], "'os.system'"),
    "dunder": (["__class__"], "'__class__'"),
    "of-another-family": (["XLNetModel"], "'XLNetModel'"),
    "base-class": (["BertPreTrainedModel"], "'BertPreTrainedModel'"),
    "null": ([None], "None"),
    "number": (5, "5"),
    "object": ([{"a": 1}], "{'a': 1}"),
    "list": ([["BertModel"]], "['BertModel']"),
    "long": ([LONG], "'n\\nn"),
}


@pytest.mark.parametrize(("given", "found"), cases(ARCHITECTURES))
def test_architectures(given, found, folder):
    edit_json(folder / CONFIG, lambda config: config.update(architectures=given))
    refused(ConfigError, ("architectures: ", found), lambda: minibert.load(folder))


JUNK = {
    "pooler_type": "first_token_transform",
    "pooler_fc_size": 768,
    "directionality": "bidi",
    "nested": {"list": [1, 2.5, None, True, "ü\u2028"], "empty": {}},
    "n" * 1000: "long",
    "a\nb\0": "control",
    "": "empty",
}
KNOWN = {"torch_dtype": "float32", "use_cache": True, "_name_or_path": "x", "bos_token_id": None}


def test_junk_is_listed_and_kept(folder, tmp_path):
    edit_json(folder / CONFIG, lambda config: config.update(JUNK | KNOWN))
    model, info = load(folder, output_loading_info=True)
    assert info.config_ignored == tuple(sorted(JUNK))
    model.save_pretrained(tmp_path / "out")
    written = json.loads((tmp_path / "out" / CONFIG).read_text())
    assert {name: written[name] for name in JUNK | KNOWN} == JUNK | KNOWN
    assert load(tmp_path / "out").config == model.config


LABELS = {
    "numbers-for-names": ({"0": 7, "1": "b"}, {0: "7", 1: "b"}),
    "indices-with-a-gap": ({"5": "a", "9": "b"}, {5: "a", 9: "b"}),
    "equal-names": ({"0": "a", "1": "a"}, {0: "a", 1: "a"}),
    "control-characters": ({"0": "a\n\0", "1": ""}, {0: "a\n\0", 1: ""}),
}


@pytest.mark.parametrize(("given", "expected"), cases(LABELS))
def test_odd_labels_survive(given, expected, folder, tmp_path):
    edit_json(folder / CONFIG, lambda config: config.update(id2label=given))
    model = load(folder)
    assert dict(model.config.id2label) == expected
    model.save_pretrained(tmp_path / "out")
    assert load(tmp_path / "out").config == model.config


def unwritable():
    """Values of fields that JSON cannot represent, which only a program can pass."""
    return {"surrogate": "\ud800", "set": {1}, "nan": float("nan"), "bytes": b"x"}


@pytest.mark.parametrize("name", unwritable())
def test_what_json_cannot_hold_is_not_written(name, tmp_path):
    config = minibert.BertConfig.tiny(extra={"x": unwritable()[name]})
    model = minibert.BertModel(config, rngs=nnx.Rngs(0))
    said = ("config.json", "JSON can represent")
    refused(ConfigError, said, lambda: model.save_pretrained(tmp_path / "out"))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("size", ["", "0", "-1", "5XB", "GB", "1e9", "nan", "9" * 400, "1 2"])
def test_shard_size(size, pristine, tmp_path):
    model = load(pristine.folder())
    said = ("max_shard_size: expected a size such as 5GB",)
    refused(InputError, said, lambda: model.save_pretrained(tmp_path / "x", max_shard_size=size))
    assert os.listdir(tmp_path) == []
