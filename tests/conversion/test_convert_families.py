"""The converter on every class of both families, and on what the old Flax classes saved."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import minibert
from conftest import FIXTURES
from converting import needs_torch, run
from folders import contents
from minibert.checkpoint.leaves import leaves
from minibert.cli.convert import DIFFERS
from minibert.conversion.parity import ragged_inputs
from minibert.models.registry import MODELS
from minibert.nn import activations
from slowly import slow_but
from tiny import drawn

pytestmark = pytest.mark.unoptimised

CROSSED = {"add_cross_attention": True}
BY_LAYER = {"scale_attn_by_inverse_layer_idx": True}
CASES = [(name, {}) for name in MODELS if name.startswith("GPT2")]
CASES += [
    ("BertForMultipleChoice", {}),
    ("RobertaForMaskedLM", {}),
    ("RobertaForSequenceClassification", {"type_vocab_size": 1}),
    ("XLMRobertaForMultipleChoice", {}),
    ("CamembertForCausalLM", {"is_decoder": True} | CROSSED),
    ("DistilBertForMaskedLM", {"activation": "prelu"}),
    ("DistilBertForMultipleChoice", {}),
    ("DistilBertForQuestionAnswering", {"sinusoidal_pos_embds": True}),
    ("MPNetForMaskedLM", {}),
    ("MPNetForMultipleChoice", {}),
    ("ElectraForPreTraining", {}),
    ("ElectraForMaskedLM", {}),
    ("ElectraForCausalLM", {"is_decoder": True} | CROSSED),
    ("AlbertForPreTraining", {"num_hidden_layers": 3, "num_hidden_groups": 2}),
    ("AlbertForSequenceClassification", {"inner_group_num": 2}),
    ("BertLMHeadModel", {}),
    ("BertLMHeadModel", {"is_decoder": True} | CROSSED),
    ("GPT2LMHeadModel", CROSSED),
    ("GPT2LMHeadModel", {"tie_word_embeddings": False}),
    ("GPT2LMHeadModel", {"scale_attn_weights": False, "n_inner": 7}),
    ("GPT2LMHeadModel", {"reorder_and_upcast_attn": True} | BY_LAYER),
    ("GPT2DoubleHeadsModel", CROSSED),
    ("GPT2DoubleHeadsModel", {"summary_type": "mean", "summary_use_proj": False}),
    ("GPT2ForSequenceClassification", {"pad_token_id": 5, "num_labels": 3}),
]
QUICK = [("RobertaForMaskedLM", {}), ("BertLMHeadModel", {}), ("GPT2LMHeadModel", CROSSED)]


def save(folder, name, **config):
    """A model with every parameter drawn, saved in float32."""
    with jax.enable_x64(True):
        drawn(name, **config).save_pretrained(folder / "wide")
    minibert.load(folder / "wide", param_dtype="float32").save_pretrained(folder / "in")
    return folder / "in"


@needs_torch
@pytest.mark.parametrize(("name", "config"), slow_but(CASES, *QUICK), ids=str)
def test_every_class_is_verified(name, config, tmp_path):
    source = save(tmp_path, name, **config)
    result = run(source, tmp_path / "out")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert (report["model"], report["passed"]) == (name, True)
    assert report["reference"] == "the source"
    assert all(row["float64"] < 1e-12 * row["scale"] for row in report["outputs"])
    outputs = {row["output"] for row in report["outputs"]}
    assert {"hidden_states[0]", "hidden_states[1]"} < outputs
    assert "past_key_values" not in outputs
    crossed = "add_cross_attention" in config and name != "GPT2DoubleHeadsModel"
    assert ("encoder_hidden_states" in report["inputs"]) == crossed
    assert contents(tmp_path / "out") == contents(source)


@needs_torch
@pytest.mark.parametrize("arguments", [[], ["--verify-only"]], ids=["convert", "verify only"])
@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "GPT2ForSequenceClassification"])
def test_a_planted_mistake_is_refused(name, arguments, tmp_path, monkeypatch):
    source = save(tmp_path, name)
    exact = lambda x: jax.nn.gelu(x, approximate=False)  # noqa: E731
    monkeypatch.setitem(activations.ACTIVATIONS, "gelu_new", exact)
    result = run(*arguments, source, *([] if arguments else [tmp_path / "out"]))
    assert result.exit_code == DIFFERS
    assert "DIFFERS" in result.output
    assert not (tmp_path / "out").exists()


def test_the_hubs_gpt2(tmp_path):
    """No prefix and a buffer a layer in; a prefix and no buffer out, as transformers saves it."""
    source = save(tmp_path, "GPT2LMHeadModel")
    expected = contents(source)
    tensors = load_file(source / "model.safetensors")
    published = {name.removeprefix("transformer."): array for name, array in tensors.items()}
    published |= {
        f"h.{layer}.attn.bias": np.tri(40, dtype=np.float32)[None, None] for layer in (0, 1)
    }
    save_file(published, source / "model.safetensors")
    result = run(source, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "ignored" in result.output
    assert contents(tmp_path / "out") == expected


@pytest.mark.slow
@needs_torch
def test_orbax(tmp_path, monkeypatch):
    pytest.importorskip("orbax.checkpoint")
    source = save(tmp_path, "GPT2DoubleHeadsModel")
    assert run(source, tmp_path / "orbax", "--to", "orbax").exit_code == 0
    monkeypatch.chdir(tmp_path)
    minibert.load("orbax").save_pretrained(tmp_path / "back")
    assert contents(tmp_path / "back") == contents(source)
    assert run("--verify-only", tmp_path / "orbax").exit_code == 0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtype_and_shards(dtype, tmp_path):
    source = save(tmp_path, "GPT2LMHeadModel")
    result = run(source, tmp_path / "out", "--dtype", dtype, "--max-shard-size", "20KB")
    assert result.exit_code == 0, result.output
    assert {str(d) for d, _, _ in contents(tmp_path / "out").values()} == {dtype}
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) == 2


def test_all_heads_of_a_file_come_along(tmp_path):
    """A file of two heads whose config names one of them."""
    source = save(tmp_path, "GPT2DoubleHeadsModel")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"architectures": ["GPT2LMHeadModel"]}))
    assert run(source, tmp_path / "out", "--no-verify").exit_code == 0
    assert contents(tmp_path / "out") == contents(source)


def test_a_bare_file_stays_bare(tmp_path):
    """It could be a language model's, and it says that it is not."""
    source = save(tmp_path, "GPT2Model")
    assert run(source, tmp_path / "out", "--no-verify").exit_code == 0
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["architectures"] == ["GPT2Model"]
    assert contents(tmp_path / "out") == contents(source)


@pytest.mark.parametrize("pad", [None, 0, 7, -1, 97, 5000])
def test_inputs_are_in_range(pad, tmp_path):
    config = minibert.GPT2Config.tiny(pad_token_id=pad)
    inputs = ragged_inputs(config, str(tmp_path))
    assert inputs.keys() == {"input_ids", "attention_mask"}
    assert 0 <= inputs["input_ids"].min() <= inputs["input_ids"].max() < 97
    padding = inputs["input_ids"][inputs["attention_mask"] == 0]
    assert set(padding) == {7 if pad == 7 else 0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("flax_bert_base", "BertModel"),
        ("flax_bert_pretraining", "BertForPreTraining"),
        ("flax_bert_classification", "BertForSequenceClassification"),
        ("flax_gpt2_base", "GPT2Model"),
        ("flax_gpt2_lm", "GPT2LMHeadModel"),
        ("flax_albert_pretraining", "AlbertForPreTraining"),
    ],
)
def test_flax_msgpack(folder, name, tmp_path):
    """What the old Flax classes saved computes what they computed."""
    result = run(FIXTURES / folder, tmp_path / "out")
    assert result.exit_code == 0, result.output
    recorded = load_file(FIXTURES / folder / "outputs.safetensors")
    names = ("input_ids", "attention_mask", "token_type_ids")
    given = {name: recorded[name] for name in names if name in recorded}
    model = minibert.load(tmp_path / "out")
    assert type(model).__name__ == name
    found = model(**given, output_hidden_states=True)
    mask, compared = given["attention_mask"] == 1, 0
    for key, expected in recorded.items():
        if key in given:
            continue
        state, _, index = key.partition(".")
        ours = found[state][int(index)] if index else found[key]
        ours = np.asarray(ours)
        if ours.ndim == 3:
            ours, expected = ours[mask], expected[mask]
        assert np.abs(ours - expected).max() < 2e-5, key
        compared += 1
    assert compared >= 4


FLAX_ARRAYS = json.loads((FIXTURES / "flax_arrays.json").read_text())


@pytest.mark.parametrize("name", FLAX_ARRAYS)
def test_arrays_of_a_flax_class(name):
    """Those of the class that it is converted into have the same names and shapes."""
    cls = MODELS[name.removeprefix("Flax")]
    found = leaves(cls(cls.config_class.tiny(num_hidden_layers=1), rngs=None))
    shapes = {
        leaf.name_in("flax"): list(leaf.shape_in("flax"))
        for leaf in found
        if leaf.name not in cls.tied
    }
    assert shapes == FLAX_ARRAYS[name]
