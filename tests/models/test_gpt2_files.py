"""GPT-2's files as they are found: with no prefix, with buffers, tied or not, wrapped, pickled."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the other side is PyTorch")

import transformers  # noqa: E402
from flax import nnx  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

import minibert  # noqa: E402
import oracle  # noqa: E402
from folders import contents  # noqa: E402
from minibert.errors import CheckpointMismatchError, MissingHeadError  # noqa: E402
from oracle import arguments  # noqa: E402

pytestmark = pytest.mark.unoptimised

LM, BARE, WEIGHTS = "GPT2LMHeadModel", "GPT2Model", "model.safetensors"
NEW = {"new_head": True, "rngs": nnx.Rngs(0)}
HEADS = {
    BARE: set(),
    LM: set(),
    "GPT2DoubleHeadsModel": {"multiple_choice_head"},
    "GPT2ForSequenceClassification": {"score"},
    "GPT2ForTokenClassification": {"classifier"},
    "GPT2ForQuestionAnswering": {"qa_outputs"},
}


def logits_error(ours, theirs, given):
    expected = oracle.run_torch(theirs, given).logits.numpy()
    return np.abs(np.asarray(ours(**given).logits) - expected).max()


def edit(folder, change):
    tensors = load_file(folder / WEIGHTS)
    save_file(change(tensors), folder / WEIGHTS)  # without {"format": "pt"}


def as_published(tensors):
    """The hub's gpt2: no prefix, and every layer's causal mask."""
    found = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    mask = torch.tril(torch.ones(40, 40))[None, None]
    return found | {f"h.{layer}.attn.bias": mask.clone() for layer in range(2)}


def as_saved_by_old_versions(tensors):
    """The prefix, both buffers, the mask as bytes, and the tied head stored again."""
    mask = torch.tril(torch.ones(40, 40, dtype=torch.uint8))[None, None]
    found = dict(tensors) | {"lm_head.weight": tensors["transformer.wte.weight"].clone()}
    for layer in range(2):
        found[f"transformer.h.{layer}.attn.bias"] = mask.clone()
        found[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("layout", [as_published, as_saved_by_old_versions])
@pytest.mark.parametrize("name", HEADS)
def test_every_class_from_one_file(name, layout, tmp_path):
    theirs = oracle.saved(LM, tmp_path, pad_token_id=0)
    edit(tmp_path, layout)
    if HEADS[name]:
        with pytest.raises(MissingHeadError, match="new_head=True"):
            oracle.ours(name, tmp_path)
    model, info = oracle.ours(name, tmp_path, output_loading_info=True, **NEW)
    assert {path.split(".")[0] for path in info.new} == HEADS[name]
    prefix = "" if name == BARE else "transformer."
    assert f"{prefix}h.1.attn.bias" in info.ignored
    assert "mask" in info.ignored[f"{prefix}h.1.attn.bias"]
    assert len(info.ignored) == (2 if layout is as_published else 4)
    with_lm_head = name in (LM, "GPT2DoubleHeadsModel")
    stored_again = layout is as_saved_by_old_versions
    assert bool(info.tied) == (stored_again and with_lm_head)
    assert bool(info.left) == (stored_again and not with_lm_head)
    given = arguments(BARE)
    trunk = getattr(model, "transformer", model)
    flags = {"output_hidden_states": True}
    expected = oracle.run_torch(theirs.transformer, given, **flags)
    errors = oracle.errors(trunk(**given, **flags), expected, given["attention_mask"])
    assert max(errors.values()) < 2e-5
    if with_lm_head:
        assert logits_error(model, theirs, given) < 5e-5


@pytest.mark.parametrize("layout", [as_published, as_saved_by_old_versions])
def test_load_chooses_by_the_config(layout, tmp_path):
    oracle.saved(LM, tmp_path)
    edit(tmp_path, layout)
    assert type(minibert.load(tmp_path)) is minibert.GPT2LMHeadModel


STRAYS = {
    "of a layer that does not exist": "transformer.h.2.attn.bias",
    "of a layer with zeros before its number": "transformer.h.01.attn.bias",
    "of no layer": "transformer.h.attn.bias",
    "of the MLP": "transformer.h.0.mlp.bias",
    "of another name": "transformer.h.0.attn.mask",
    "inside a layer's layer": "transformer.h.0.attn.attn.bias",
    "of the last norm": "transformer.ln_f.masked_bias",
}


@pytest.mark.parametrize("stray", STRAYS.values(), ids=STRAYS)
def test_buffers_are_known_by_their_exact_names(stray, tmp_path):
    oracle.saved(LM, tmp_path)
    edit(tmp_path, lambda tensors: tensors | {stray: torch.ones(1, 1, 40, 40)})
    with pytest.raises(CheckpointMismatchError, match=stray.replace(".", r"\.")):
        minibert.load(tmp_path)


@pytest.mark.parametrize("bias", ["attn.c_attn.bias", "attn.c_proj.bias", "mlp.c_fc.bias"])
def test_a_bias_is_no_buffer(bias, tmp_path):
    oracle.saved(LM, tmp_path)
    name = f"transformer.h.1.{bias}"
    edit(tmp_path, lambda tensors: {key: t for key, t in tensors.items() if key != name})
    with pytest.raises(CheckpointMismatchError, match="found no such tensor"):
        minibert.load(tmp_path)


def test_buffers_of_cross_attention(tmp_path):
    theirs = oracle.saved(LM, tmp_path, add_cross_attention=True)
    extra = {
        f"transformer.h.{layer}.crossattention.{name}": torch.ones(1, 1, 40, 40)
        for layer in range(2)
        for name in ("bias", "masked_bias")
    }
    edit(tmp_path, lambda tensors: tensors | extra)
    model, info = oracle.ours(LM, tmp_path, output_loading_info=True)
    assert info.ignored.keys() == extra.keys()
    given = arguments(LM) | {"encoder_hidden_states": np.ones((3, 5, 24), np.float32)}
    assert logits_error(model, theirs, given) < 5e-5


@pytest.mark.parametrize("tied", [True, False], ids=["tied in the config", "untied in the config"])
@pytest.mark.parametrize("stored", ["nothing", "a copy", "another matrix"])
@pytest.mark.parametrize("name", [LM, "GPT2DoubleHeadsModel"])
def test_lm_head(name, stored, tied, tmp_path):
    """Tied unless the file holds another matrix: as transformers has it, there and back."""
    oracle.saved(name, tmp_path, tie_word_embeddings=tied)
    draw = torch.Generator().manual_seed(5)

    def change(tensors):
        tensors.pop("lm_head.weight", None)
        if stored == "a copy":
            tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
        elif stored == "another matrix":
            tensors["lm_head.weight"] = torch.randn(97, 24, generator=draw)
        return tensors

    edit(tmp_path, change)
    if stored == "nothing" and not tied:
        with pytest.raises(MissingHeadError, match="'lm_head' is not in the file"):
            oracle.ours(name, tmp_path)
        return
    cls = getattr(transformers, name)
    expected = cls.from_pretrained(tmp_path, attn_implementation="eager").eval()
    model, info = oracle.ours(name, tmp_path, output_loading_info=True)
    given = arguments(name)
    assert logits_error(model, expected, given) < 5e-5
    assert bool(info.tied) == (tied and stored == "a copy")
    model.save_pretrained(tmp_path / "out")
    back, report = cls.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()), report
    for key, value in expected.state_dict().items():
        assert torch.equal(back.state_dict()[key], value), key


@pytest.mark.parametrize("wrapper", ["model.", "module.", "0.auto_model.", "_orig_mod.module."])
@pytest.mark.parametrize("layout", [as_published, as_saved_by_old_versions])
def test_wrappers(layout, wrapper, tmp_path):
    oracle.saved(LM, tmp_path)
    plain = oracle.named_arrays(oracle.ours(LM, tmp_path))
    edit(tmp_path, lambda tensors: {wrapper + key: t for key, t in layout(tensors).items()})
    wrapped = oracle.named_arrays(oracle.ours(LM, tmp_path))
    assert wrapped.keys() == plain.keys()
    for key, array in plain.items():
        np.testing.assert_array_equal(wrapped[key], array)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", [as_published, as_saved_by_old_versions])
def test_half_precision_and_pickles(layout, dtype, tmp_path):
    """A `.bin` with buffers of other dtypes: parameters stay as stored, buffers are ignored."""
    theirs = oracle.torch_model(LM).to(dtype)
    theirs.save_pretrained(tmp_path / "in")
    expected = contents(tmp_path / "in")
    state = layout({k: v for k, v in theirs.state_dict().items() if k != "lm_head.weight"})
    torch.save(state, tmp_path / "in" / "pytorch_model.bin")
    (tmp_path / "in" / WEIGHTS).unlink()
    model, info = minibert.load(tmp_path / "in", allow_pickle=True, output_loading_info=True)
    assert set(info.dtypes) == {str(dtype).removeprefix("torch.")}
    model.save_pretrained(tmp_path / "out")
    assert contents(tmp_path / "out") == expected


@pytest.mark.parametrize("name", HEADS)
def test_without_architectures_or_model_type(name, tmp_path):
    """The family is known by its submodules, the class by its heads."""
    oracle.saved(name, tmp_path, num_labels=3)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for field in ("architectures", "model_type"):
        del config[field]
        path.write_text(json.dumps(config))
        # a tied head is not stored: a bare file is a language model's, as the hub's gpt2
        expected = LM if name == BARE else name
        assert type(minibert.load(tmp_path)).__name__ == expected


def test_wrapped_files_without_model_type(tmp_path):
    oracle.saved(LM, tmp_path)
    edit(tmp_path, lambda tensors: {f"module.{key}": t for key, t in as_published(tensors).items()})
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    del config["architectures"], config["model_type"]
    path.write_text(json.dumps(config))
    assert type(minibert.load(tmp_path)) is minibert.GPT2LMHeadModel


@pytest.mark.parametrize("decoder", [True, False])
def test_decoder_files_of_bert(decoder, tmp_path):
    """They have the names of a masked language model's: the config tells."""
    oracle.saved("BertLMHeadModel", tmp_path, is_decoder=decoder)
    assert type(minibert.load(tmp_path)) is minibert.BertLMHeadModel
    assert minibert.BertForMaskedLM.from_pretrained(tmp_path).config.is_decoder == decoder
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    del config["architectures"]
    path.write_text(json.dumps(config))
    expected = minibert.BertLMHeadModel if decoder else minibert.BertForMaskedLM
    assert type(minibert.load(tmp_path)) is expected
