"""BERT's files as they are found: with both heads, old names and buffers, tied or not."""

import numpy as np
import pytest

from slowly import slow_but

torch = pytest.importorskip("torch", reason="the other side is PyTorch")

import transformers  # noqa: E402
from flax import nnx  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

import minibert  # noqa: E402
import oracle  # noqa: E402

pytestmark = pytest.mark.unoptimised


def test_auto_classes_load_it(tmp_path):
    oracle.saved("BertForMaskedLM", tmp_path / "in")
    minibert.load(tmp_path / "in").save_pretrained(tmp_path / "out")
    for auto in ("AutoModel", "AutoModelForMaskedLM"):
        getattr(transformers, auto).from_pretrained(tmp_path / "out")


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


TASKS_LEFT = {"cls.seq_relationship", "cls.predictions"}
LEFT = {
    "BertForPreTraining": set(),
    "BertForMaskedLM": {"cls.seq_relationship", "bert.pooler"},
    "BertForNextSentencePrediction": {"cls.predictions"},
    "BertModel": TASKS_LEFT,
    "BertForSequenceClassification": TASKS_LEFT,
    "BertForMultipleChoice": TASKS_LEFT,
    "BertForTokenClassification": TASKS_LEFT | {"bert.pooler"},
    "BertForQuestionAnswering": TASKS_LEFT | {"bert.pooler"},
}


@pytest.mark.parametrize("name", slow_but(LEFT, "BertForPreTraining", "BertForMaskedLM"))
def test_every_class_from_one_legacy_file(name, tmp_path):
    theirs = oracle.torch_model("BertForPreTraining")
    legacy_pretraining(tmp_path, theirs)
    model, info = getattr(minibert, name).from_pretrained(
        tmp_path, output_loading_info=True, new_head=True, rngs=nnx.Rngs(0)
    )
    found = {head for head in model.heads if any(n.startswith(f"{head}.") for n in info.left)}
    assert found == LEFT[name]
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
