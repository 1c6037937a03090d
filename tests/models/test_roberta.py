"""RoBERTa beyond the contract: packing, generation, text in and answers out and adapters."""

import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch", reason="the oracle is PyTorch")

import tokenizers
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file, save_file

import minibert
import oracle
from conftest import FLOAT64
from converting import run
from folders import contents
from minibert import train
from minibert.conversion.api import read
from minibert.embedding.modules import Pooling, SentenceModel
from minibert.errors import ConfigError, WeightsFileError
from minibert.models.bert.modeling import BertModel
from minibert.models.roberta import RobertaModel
from minibert.pipelines import pipeline
from minibert.train.job.settings import read_settings
from minibert.train.job.tasks import dataset_of, tokenizer_of
from speaking import SCORE, SENTENCES, assert_same
from tiny import drawn

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
TEXTS = SENTENCES[:12]


@pytest.fixture(scope="module")
def tokenizer():
    """A byte-level tokenizer with RoBERTa's special tokens."""
    made = tokenizers.ByteLevelBPETokenizer()
    made.train_from_iterator(SENTENCES, vocab_size=400, special_tokens=SPECIAL)
    model = json.loads(made.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return transformers.RobertaTokenizer(vocab=model["vocab"], merges=merges)


@pytest.fixture
def folder(tokenizer, tmp_path):
    """Saves a model of a class, and the tokenizer beside it."""

    def save(name, **config):
        sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 200}
        oracle.saved(name, tmp_path / "model", **sizes | config)
        tokenizer.save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return save


def test_config():
    config = minibert.RobertaConfig.base()
    assert (config.max_tokens, config.vocab_size, config.layer_norm_eps) == (512, 50265, 1e-5)
    assert minibert.RobertaConfig().layer_norm_eps == 1e-12
    assert minibert.RobertaConfig.large().hidden_size == 1024
    with pytest.raises(ConfigError, match="max_position_embeddings: expected at least 7"):
        minibert.RobertaConfig.tiny(pad_token_id=5, max_position_embeddings=6)
    with pytest.raises(ConfigError, match="pad_token_id: expected a whole number of at least 0"):
        minibert.RobertaConfig.from_dict({"pad_token_id": None}, "config.json")


def test_positions():
    model = minibert.RobertaModel(minibert.RobertaConfig.tiny(), rngs=nnx.Rngs(0))
    ids = np.array([[7, 1, 8, 9, 1, 1], [1, 1, 5, 1, 6, 7]])
    assert model.positions(ids).tolist() == [[2, 1, 3, 4, 1, 1], [1, 1, 2, 1, 3, 4]]
    mask = np.array([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]], bool)
    assert model.positions(ids, mask).tolist() == [[2, 1, 3, 1, 1, 1], [1, 1, 1, 1, 2, 3]]
    segments = np.array([[1, 1, 2, 2, 2, 0], [1, 1, 1, 2, 2, 2]])
    assert model.positions(ids, segments=jnp.asarray(segments)).tolist() == [
        [2, 1, 2, 3, 1, 1],
        [1, 1, 2, 1, 2, 3],
    ]
    assert model.positions(ids, past=5).tolist() == [[7, 1, 8, 9, 1, 1], [1, 1, 7, 1, 8, 9]]
    assert model.positions(None, seq=3).tolist() == [[2, 3, 4]]


@pytest.mark.parametrize("right", [True, False], ids=["right", "positions from 0"])
def test_packing(right, monkeypatch):
    """As if alone; counted from 0, as in other libraries, the vectors are far off."""
    with jax.enable_x64(True):
        model = SentenceModel(drawn("RobertaModel"), [Pooling("mean", 24)])
        texts = [np.array([5, 1, 6, 7, 8, 9]), np.array([10, 11, 12])]  # a pad id inside
        ids, segments = np.full((1, 24), 1), np.zeros((1, 24), int)
        ids[0, :6], ids[0, 6:9] = texts
        segments[0, :6], segments[0, 6:9] = 1, 2
        alone = [model(text[None], jnp.ones((1, len(text)), bool))[1][0] for text in texts]
        if not right:
            monkeypatch.setattr(RobertaModel, "positions", BertModel.positions)
        packed = np.asarray(model.packed(ids, jnp.asarray(segments))[0])
        distance = np.abs(packed[:2] - np.asarray(alone)).max()
    assert distance <= FLOAT64 if right else distance > 1000 * FLOAT64


def test_generation(tmp_path):
    """Each token is the one PyTorch's forward pass finds most probable, whatever the padding."""
    theirs = oracle.saved("RobertaForCausalLM", tmp_path, is_decoder=True)
    ours = minibert.load(tmp_path)
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12]]
    found = minibert.generate(ours, prompts, max_new_tokens=6, eos_token_id=None)
    for row, prompt in zip(found, prompts, strict=True):
        text = list(prompt)
        for _ in range(6):
            with torch.no_grad():
                text.append(int(theirs(torch.tensor([text])).logits[0, -1].argmax()))
        assert row[-len(text) :].tolist() == text


@pytest.mark.parametrize(
    ("task", "name", "inputs"),
    [
        ("fill-mask", "RobertaForMaskedLM", [f"{text} <mask>" for text in TEXTS]),
        ("text-classification", "RobertaForSequenceClassification", list(TEXTS)),
        ("token-classification", "RobertaForTokenClassification", list(TEXTS)),
    ],
)
def test_pipelines(task, name, inputs, folder):
    place = folder(name)
    theirs = transformers.pipeline(task, str(place), device="cpu")
    assert_same(pipeline(task, place)(inputs), theirs(inputs))


def test_sentences(folder, tmp_path):
    """Vectors of texts, alone, together and sharing rows, beside PyTorch's mean of states."""
    place = folder("RobertaModel")
    encoder = minibert.SentenceEncoder.from_pretrained(place, pooling="mean")
    assert encoder.max_seq_length == 198
    vectors = encoder.encode(TEXTS)
    model = transformers.RobertaModel.from_pretrained(place).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(place)
    for text, vector in zip(TEXTS, vectors, strict=True):
        with torch.no_grad():
            states = model(**tokens(text, return_tensors="pt")).last_hidden_state
        np.testing.assert_allclose(vector, states[0].mean(axis=0), atol=SCORE)
    np.testing.assert_allclose(encoder.encode(TEXTS, packing=64), vectors, atol=SCORE)
    encoder.save_pretrained(tmp_path / "saved")
    again = minibert.SentenceEncoder.from_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(again.encode(TEXTS), vectors)


def test_embeddings_alone():
    """Called by themselves they count as the model does."""
    model = minibert.RobertaModel(minibert.RobertaConfig.tiny(), rngs=nnx.Rngs(0)).eval()
    ids = np.array([[7, 1, 8, 9, 1, 1]])
    first = model(ids, output_hidden_states=True).hidden_states[0]
    np.testing.assert_array_equal(model.embeddings(ids), first)
    words = model.embeddings.word_embeddings(ids)
    states = model(inputs_embeds=words, output_hidden_states=True).hidden_states
    np.testing.assert_array_equal(model.embeddings(inputs_embeds=words), states[0])


def test_a_file_without_architectures(tmp_path):
    """A classifier's file that has a pooler too is still a classifier's."""
    oracle.saved("RobertaForSequenceClassification", tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path) | {
        "roberta.pooler.dense.weight": np.ones((24, 24), np.float32),
        "roberta.pooler.dense.bias": np.ones(24, np.float32),
    }
    save_file(tensors, path, metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    del config["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert type(minibert.load(tmp_path)) is minibert.RobertaForSequenceClassification


def test_token_classification_from_files(folder, tmp_path):
    """`minibert train` puts a space before each word, which a byte-level tokenizer needs."""
    place = folder("RobertaForTokenClassification", num_labels=2)
    rows = [{"tokens": ["the", "fox"], "labels": ["LABEL_0", "LABEL_1"]}] * 4
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"task": "token-classification", "model": str(place), "data": str(data), "steps": 1}
    sizes = {"output": str(tmp_path / "run"), "batch_size": 2, "max_length": 16}
    given = read_settings(None, {**options, **sizes})
    tokenizer = tokenizer_of(given)
    batch = next(iter(dataset_of(given, given.data, tokenizer, {"LABEL_0": 0, "LABEL_1": 1})))
    assert (batch["labels"] != -100).sum() == 2 * 2


def test_an_adapter(tmp_path):
    """LoRA's default targets are PEFT's, and are written as PEFT writes them."""
    config = minibert.RobertaConfig.tiny(num_labels=3)
    model = minibert.RobertaForSequenceClassification(config, rngs=nnx.Rngs(0))
    lora = train.LoRA(r=2, lora_alpha=4, task_type="SEQ_CLS", init_lora_weights=False)
    adapter = train.init_adapter(model, lora, seed=1)
    targets = {path.rpartition(".lora")[0] for path in adapter.params if ".lora" in path}
    assert {path.rpartition(".")[2] for path in targets} == {"query", "value"}
    train.save_adapter(model, adapter, tmp_path / "adapter")
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert sorted(written["target_modules"]) == ["query", "value"]


@pytest.mark.slow
def test_the_position_of_padding_has_no_gradient():
    """As in PyTorch."""
    config = minibert.RobertaConfig.tiny(hidden_dropout_prob=0.0)
    model = minibert.RobertaForMaskedLM(config, rngs=nnx.Rngs(0)).eval()
    ids = np.array([[5, 6, 7, 1, 1]])
    gradient = nnx.grad(lambda model: model(ids).logits[:, :3].sum())(model)
    rows = gradient.roberta.embeddings.position_embeddings.embedding[...]
    assert not np.any(rows[1])
    assert np.any(rows[2])


def fairseq(tensors, fused):
    """A file of transformers as fairseq would have saved it."""
    found = {}
    for name, tensor in tensors.items():
        for ours, theirs in FAIRSEQ.items():
            name = name.replace(ours, theirs)
        found[name if name.startswith("classification") else f"decoder.{name}"] = tensor
    del found["decoder.token_types"]
    found["decoder.lm_head.weight"] = found["decoder.sentence_encoder.embed_tokens.weight"]
    for layer in range(2 * fused):
        head = f"decoder.sentence_encoder.layers.{layer}.self_attn."
        for kind in ("weight", "bias"):
            parts = [found.pop(f"{head}{part}_proj.{kind}") for part in "qkv"]
            found[f"{head}in_proj_{kind}"] = torch.cat(parts)
    return found


FAIRSEQ = {
    "roberta.embeddings.word_embeddings": "sentence_encoder.embed_tokens",
    "roberta.embeddings.position_embeddings": "sentence_encoder.embed_positions",
    "roberta.embeddings.LayerNorm": "sentence_encoder.emb_layer_norm",
    "roberta.embeddings.token_type_embeddings.weight": "token_types",
    "roberta.encoder.layer": "sentence_encoder.layers",
    "attention.output.LayerNorm": "self_attn_layer_norm",
    "attention.output.dense": "self_attn.out_proj",
    "attention.self.query": "self_attn.q_proj",
    "attention.self.key": "self_attn.k_proj",
    "attention.self.value": "self_attn.v_proj",
    "intermediate.dense": "fc1",
    "output.dense": "fc2",
    "output.LayerNorm": "final_layer_norm",
}


@pytest.mark.slow
@pytest.mark.parametrize("fused", [True, False], ids=["one matrix", "three"])
@pytest.mark.parametrize("verifies", [[], ["--no-verify"]], ids=["verified", "not verified"])
def test_a_file_of_fairseq(fused, verifies, tmp_path):
    """A pickle of a training run; what it converts to is what transformers saved."""
    theirs = oracle.torch_model("RobertaForMaskedLM", type_vocab_size=1)
    with torch.no_grad():
        theirs.roberta.embeddings.token_type_embeddings.weight.zero_()
    theirs.save_pretrained(tmp_path / "in")
    expected = contents(tmp_path / "in")
    file = tmp_path / "in" / "model.safetensors"
    tensors = {name: torch.from_numpy(array) for name, array in load_file(file).items()}
    file.unlink()
    run_state = {"args": argparse.Namespace(arch="roberta_base"), "model": fairseq(tensors, fused)}
    torch.save(run_state, tmp_path / "in" / "pytorch_model.bin")
    assert run(tmp_path / "in", tmp_path / "out", *verifies).exit_code != 0  # it is a pickle
    result = run(tmp_path / "in", tmp_path / "out", "--allow-pickle", *verifies)
    assert result.exit_code == 0, result.output
    assert contents(tmp_path / "out") == expected


def test_a_file_of_fairseq_with_two_classification_heads(tmp_path):
    """None of them is dropped unnamed."""
    theirs = oracle.saved("RobertaForSequenceClassification", tmp_path / "in", type_vocab_size=1)
    found = fairseq(dict(theirs.state_dict()), True)
    (tmp_path / "in" / "model.safetensors").unlink()
    heads = {name: a for name, a in found.items() if name.startswith("decoder.classifier.")}
    for name in heads:
        del found[name]
    for head in ("mnli", "rte"):
        found |= {f"classification_heads.{head}.{n.split('.', 2)[2]}": a for n, a in heads.items()}
    file = tmp_path / "in" / "pytorch_model.bin"
    torch.save({"args": argparse.Namespace(), "model": found}, file)
    with pytest.raises(WeightsFileError) as caught:
        read(str(tmp_path / "in"), allow_pickle=True)
    said = f"{file}: 'classification_heads.rte.dense.weight': expected the only tensor that is 'cl"
    assert str(caught.value).startswith(said)
