"""Hugging Face folder → tree → Hugging Face folder: the same bytes, and the same outputs."""

import copy
import json

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the other side is PyTorch")

import transformers  # noqa: E402
from flax import nnx  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

import minibert  # noqa: E402
import oracle  # noqa: E402
from folders import contents  # noqa: E402
from oracle import CLASSES, arguments  # noqa: E402


@pytest.mark.parametrize("shard", ["5GB", "20KB"], ids=["single", "sharded"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", CLASSES)
def test_bytes_and_outputs(name, dtype, shard, tmp_path):
    theirs = oracle.torch_model(name, **CLASSES[name]).to(getattr(torch, dtype))
    theirs.save_pretrained(tmp_path / "in", max_shard_size=shard)
    model = minibert.load(tmp_path / "in")
    assert type(model).__name__ == name
    model.save_pretrained(tmp_path / "out", max_shard_size=shard)
    assert contents(tmp_path / "out") == contents(tmp_path / "in")
    shards = len(list((tmp_path / "out").glob("*.safetensors")))
    assert (shards > 1) == (shard == "20KB")
    back, info = getattr(transformers, name).from_pretrained(
        tmp_path / "out", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info.values()), info
    assert back.dtype == theirs.dtype
    for one, other in zip(theirs.parameters(), back.parameters(), strict=True):
        assert torch.equal(one, other)
    # copies, for PyTorch's last bits depend on where in memory a tensor lies
    given, pair = arguments(name), (copy.deepcopy(theirs), copy.deepcopy(back).eval())
    before, after = (oracle.run_torch(model, given) for model in pair)
    for key in before.keys() - set(oracle.CACHES):
        assert torch.equal(before[key], after[key]), key


def test_auto_classes_load_it(tmp_path):
    oracle.saved("BertForMaskedLM", tmp_path / "in")
    minibert.load(tmp_path / "in").save_pretrained(tmp_path / "out")
    for auto in ("AutoModel", "AutoModelForMaskedLM"):
        getattr(transformers, auto).from_pretrained(tmp_path / "out")


def test_config_survives(tmp_path):
    junk = {
        "directionality": "bidi",
        "pooler_type": "first_token_transform",
        "auto_map": {"a": "b"},
    }
    oracle.saved("BertForSequenceClassification", tmp_path / "in", num_labels=3, **junk)
    path = tmp_path / "in" / "config.json"
    model, info = minibert.BertForSequenceClassification.from_pretrained(
        tmp_path / "in", output_loading_info=True
    )
    assert info.config_ignored == ("auto_map", "directionality", "pooler_type")
    model.save_pretrained(tmp_path / "out")
    before = json.loads(path.read_text())
    after = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {key: after[key] for key in before} == before


def legacy_pretraining(folder, theirs) -> None:
    """The file of the hub's bert-base-uncased: gamma and beta, buffers, both heads."""
    theirs.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in tensors.items()
    }
    renamed["bert.embeddings.position_ids"] = torch.arange(40)[None]
    renamed["cls.predictions.decoder.weight"] = renamed[
        "bert.embeddings.word_embeddings.weight"
    ].clone()
    save_file(renamed, folder / "model.safetensors")  # without {"format": "pt"}


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("BertForPreTraining", set()),
        ("BertForMaskedLM", {"cls.seq_relationship", "bert.pooler"}),
        ("BertForNextSentencePrediction", {"cls.predictions"}),
        ("BertModel", {"cls.seq_relationship", "cls.predictions"}),
        ("BertForSequenceClassification", {"cls.seq_relationship", "cls.predictions"}),
        ("BertForMultipleChoice", {"cls.seq_relationship", "cls.predictions"}),
        ("BertForTokenClassification", {"cls.seq_relationship", "cls.predictions", "bert.pooler"}),
        ("BertForQuestionAnswering", {"cls.seq_relationship", "cls.predictions", "bert.pooler"}),
    ],
)
def test_every_class_from_one_legacy_file(name, left, tmp_path):
    theirs = oracle.torch_model("BertForPreTraining")
    legacy_pretraining(tmp_path, theirs)
    model, info = getattr(minibert, name).from_pretrained(
        tmp_path, output_loading_info=True, new_head=True, rngs=nnx.Rngs(0)
    )
    found = {head for head in model.heads if any(n.startswith(f"{head}.") for n in info.left)}
    assert found == left
    has_new = name in (
        "BertForSequenceClassification",
        "BertForMultipleChoice",
        "BertForTokenClassification",
        "BertForQuestionAnswering",
    )
    assert bool(info.new) == has_new
    assert list(info.ignored) == [
        ("" if name == "BertModel" else "bert.") + "embeddings.position_ids"
    ]
    ours, given = getattr(model, "bert", model), oracle.inputs()
    reference = oracle.run_torch(theirs.bert, given, output_hidden_states=True)
    errors = oracle.errors(
        ours(**given, output_hidden_states=True), reference, given["attention_mask"]
    )
    assert max(errors.values()) < 2e-5
    if not has_new and name != "BertModel":
        expected = getattr(transformers, name).from_pretrained(
            tmp_path, attn_implementation="eager", ignore_mismatched_sizes=False
        )
        key = "prediction_logits" if name == "BertForPreTraining" else "logits"
        error = oracle.run_torch(expected.eval(), given)[key].numpy() - np.asarray(
            model(**given)[key]
        )
        assert np.abs(error).max() < 5e-5


@pytest.mark.parametrize("wrapper", ["model.", "module.", "0.auto_model."])
@pytest.mark.parametrize("name", ["BertModel", "BertForMaskedLM"])
def test_wrappers(name, wrapper, tmp_path):
    oracle.saved(name, tmp_path / "in")
    plain = oracle.ours(name, tmp_path / "in")
    file = tmp_path / "in" / "model.safetensors"
    tensors = load_file(file)
    save_file({wrapper + key: tensor for key, tensor in tensors.items()}, file)
    wrapped = oracle.ours(name, tmp_path / "in")
    for key, array in oracle.named_arrays(plain).items():
        np.testing.assert_array_equal(oracle.named_arrays(wrapped)[key], array)


def test_base_file_into_a_head_class(tmp_path):
    oracle.saved("BertModel", tmp_path)
    with pytest.raises(minibert.errors.MissingHeadError, match="new_head=True"):
        minibert.BertForSequenceClassification.from_pretrained(tmp_path)
    model, info = minibert.BertForSequenceClassification.from_pretrained(
        tmp_path, new_head=True, rngs=nnx.Rngs(0), num_labels=4, output_loading_info=True
    )
    assert set(info.new) == {"classifier.weight", "classifier.bias"}
    assert model.config.id2label[3] == "LABEL_3"
    kernel = np.asarray(model.classifier.kernel[...])
    assert kernel.shape == (24, 4)
    assert 0.01 < kernel.std() < 0.03
    assert not np.asarray(model.classifier.bias[...]).any()
    again = minibert.BertForSequenceClassification.from_pretrained(
        tmp_path, new_head=True, rngs=nnx.Rngs(1), num_labels=4
    )
    assert (np.asarray(again.classifier.kernel[...]) != kernel).all()


def test_relabelled_head_is_new_and_the_old_one_is_left(tmp_path):
    oracle.saved("BertForSequenceClassification", tmp_path, num_labels=3)
    cls = minibert.BertForSequenceClassification
    with pytest.raises(minibert.errors.MissingHeadError):
        cls.from_pretrained(tmp_path, num_labels=5)
    model, info = cls.from_pretrained(
        tmp_path, num_labels=5, new_head=True, rngs=nnx.Rngs(0), output_loading_info=True
    )
    assert set(info.left) == set(info.new) == {"classifier.weight", "classifier.bias"}
    assert model(**oracle.inputs()).logits.shape == (3, 5)


@pytest.mark.parametrize(
    "kind", ["tied copy", "another matrix", "another bias", "decoder bias only"]
)
def test_decoder(kind, tmp_path):
    """Tied, untied by the file, and the bias that acts: as transformers has them."""
    theirs = oracle.saved("BertForMaskedLM", tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    draw = torch.Generator().manual_seed(5)
    if kind == "tied copy":
        tensors["cls.predictions.decoder.weight"] = (
            theirs.cls.predictions.decoder.weight.detach().clone()
        )
        tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].clone()
    elif kind == "another matrix":
        tensors["cls.predictions.decoder.weight"] = torch.randn(97, 24, generator=draw)
    elif kind == "another bias":
        tensors["cls.predictions.decoder.bias"] = torch.randn(97, generator=draw)
    else:
        tensors["cls.predictions.decoder.bias"] = tensors.pop("cls.predictions.bias")
    save_file(tensors, file, metadata={"format": "pt"})
    expected = transformers.BertForMaskedLM.from_pretrained(tmp_path, attn_implementation="eager")
    model, info = minibert.BertForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    given = oracle.inputs()
    errors = oracle.errors(
        model(**given), oracle.run_torch(expected.eval(), given), given["attention_mask"]
    )
    assert max(errors.values()) < 5e-5
    assert bool(info.tied) == (kind in ("tied copy", "decoder bias only"))
    model.save_pretrained(tmp_path / "out")
    back = transformers.BertForMaskedLM.from_pretrained(
        tmp_path / "out", attn_implementation="eager"
    )
    for key, value in expected.state_dict().items():
        assert torch.equal(back.state_dict()[key], value), key


def test_pickle(tmp_path):
    theirs = oracle.torch_model("BertForMaskedLM").bfloat16()
    theirs.save_pretrained(tmp_path / "in")
    state = {k: v for k, v in theirs.state_dict().items() if "decoder" not in k}
    torch.save(state, tmp_path / "in" / "pytorch_model.bin")
    expected = contents(tmp_path / "in")
    (tmp_path / "in" / "model.safetensors").unlink()
    with pytest.raises(minibert.errors.PickleRefusedError, match="allow_pickle=True"):
        minibert.load(tmp_path / "in")
    minibert.load(tmp_path / "in", allow_pickle=True).save_pretrained(tmp_path / "out")
    assert contents(tmp_path / "out") == expected


def test_dtypes(tmp_path):
    """As stored; or cast, and the config says so; a mixed file stays mixed."""
    oracle.saved("BertModel", tmp_path / "in")
    half = oracle.ours("BertModel", tmp_path / "in", param_dtype=jnp.float16)
    half.save_pretrained(tmp_path / "half")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "float16"
    file = tmp_path / "in" / "model.safetensors"
    tensors = load_file(file)
    mixed = {k: v if "LayerNorm" in k else v.bfloat16() for k, v in tensors.items()}
    save_file(mixed, file)
    model, info = minibert.BertModel.from_pretrained(tmp_path / "in", output_loading_info=True)
    assert info.dtypes == {"bfloat16": 29, "float32": 10}
    model.save_pretrained(tmp_path / "mixed")
    assert contents(tmp_path / "mixed") == contents(tmp_path / "in")


def test_double_precision_is_never_halved(tmp_path):
    oracle.torch_model("BertModel").double().save_pretrained(tmp_path)
    with pytest.raises(minibert.errors.CheckpointMismatchError, match="enable_x64"):
        minibert.load(tmp_path)
    assert minibert.load(tmp_path, param_dtype=jnp.float32) is not None
