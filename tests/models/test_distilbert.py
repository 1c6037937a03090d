"""DistilBERT beyond the contract: no token types, text in and answers out, files, new positions."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch", reason="the oracle is PyTorch")
pytest.importorskip("sentence_transformers", reason="the reference is sentence-transformers")

import sentence_transformers
import transformers
from flax import nnx
from safetensors.numpy import load_file, save_file

import minibert
import oracle
import sentences
from conftest import EMBEDDING, FLOAT64
from minibert import train
from minibert.embedding.modules import Pooling, SentenceModel
from minibert.errors import CheckpointMismatchError, ConfigError, InputError, MissingHeadError
from minibert.inspection import analysis
from minibert.models.distilbert import modeling
from minibert.nn.tree import parameters
from minibert.pipelines import pipeline
from minibert.train.job.settings import read_settings
from minibert.train.job.tasks import dataset_of, tokenizer_of
from slowly import slow_but
from speaking import SENTENCES, add_bert_tokenizer, assert_same
from tiny import drawn

TEXTS = [*SENTENCES[:11], "a b", "[CLS] of a text [SEP]"]
IDS = np.array([[5, 6, 7, 0, 8, 9], [9, 8, 7, 6, 5, 4]])


@pytest.fixture
def folder(minilm, tmp_path):
    """Saves a model of a class with BERT's vocabulary, and a tokenizer that makes token types."""

    def save(name, **config):
        oracle.saved(name, tmp_path / "model", **{"max_position_embeddings": 200} | config)
        add_bert_tokenizer(tmp_path / "model")
        return tmp_path / "model"

    return lambda name, **config: save(name, vocab_size=30522, **config)


def test_config():
    config = minibert.DistilBertConfig.base()
    theirs = transformers.DistilBertConfig()
    for name, value in vars(config).items():
        if name not in ("extra", "generation", "is_causal", "id2label", "label2id"):
            assert getattr(theirs, name) == value, name
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (
        768,
        6,
        12,
    )
    shapes = parameters(minibert.DistilBertModel(config, rngs=None))
    assert sum(np.prod(leaf.shape) for leaf in shapes.values()) == 66_362_880
    aliases = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = minibert.DistilBertConfig.from_dict({"model_type": "distilbert", **aliases})
    assert (config.dim, config.n_layers, config.n_heads) == (48, 3, 4)
    assert minibert.DistilBertConfig.tiny(**aliases).dim == 48
    with pytest.raises(ConfigError, match=r"n_heads: expected a divisor of dim \(24\), found 5"):
        minibert.DistilBertConfig.tiny(n_heads=5)
    with pytest.raises(ConfigError, match="dim: found 24, but its alias hidden_size is 48"):
        minibert.DistilBertConfig.from_dict({"dim": 24, "hidden_size": 48})
    with pytest.raises(ConfigError, match="pad_token_id: expected an index into the vocabulary"):
        minibert.DistilBertConfig.tiny(pad_token_id=97)
    with pytest.raises(ConfigError, match="num_labels: expected 2 for question answering"):
        minibert.DistilBertForQuestionAnswering(
            minibert.DistilBertConfig.tiny(num_labels=3), rngs=nnx.Rngs(0)
        )


def test_new_positions_are_sines():
    """The embedding matrix of a new model is transformers', and is trained as there."""
    sizes = {"sinusoidal_pos_embds": True, "dim": 24, "max_position_embeddings": 40, "n_heads": 3}
    theirs = transformers.DistilBertModel(transformers.DistilBertConfig(n_layers=1, **sizes))
    expected = theirs.embeddings.position_embeddings.weight
    config = minibert.DistilBertConfig.tiny(sinusoidal_pos_embds=True)
    found = minibert.DistilBertModel(config, rngs=nnx.Rngs(0))
    matrix = found.embeddings.position_embeddings.embedding[...]
    np.testing.assert_array_equal(matrix, expected.detach())
    assert expected.requires_grad
    found.resize_position_embeddings(30)
    found.resize_position_embeddings(40)  # the rows that are added are sines too, without keys
    found.resize_position_embeddings(50)
    longer = found.embeddings.position_embeddings.embedding[...]
    np.testing.assert_array_equal(longer[:40], matrix)
    assert np.abs(longer[40:] - modeling.sinusoidal(50, 24)[40:]).max() == 0
    plain = minibert.DistilBertModel(minibert.DistilBertConfig.tiny(), rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match=r"rngs: expected nnx.Rngs\(0\) for new rows"):
        plain.resize_position_embeddings(50)


def test_no_token_types():
    """Refused where they are passed, and left out where a tokenizer made them."""
    model = minibert.DistilBertForMaskedLM(minibert.DistilBertConfig.tiny(), rngs=nnx.Rngs(0))
    said = "token_type_ids: not an argument of DistilBertForMaskedLM: the model has no token types"
    for call in (model.eval(), minibert.compiled(model)):
        with pytest.raises(InputError, match=said):
            call(IDS, token_type_ids=IDS)
    batch = {"input_ids": IDS, "labels": IDS, "token_type_ids": np.ones_like(IDS)}
    found = train.masked_lm.apply(model, batch, None)
    np.testing.assert_array_equal(found.logits, model(IDS).logits)


CASES = [
    ("fill-mask", "MaskedLM"),
    ("text-classification", "SequenceClassification"),
    ("token-classification", "TokenClassification"),
    ("feature-extraction", ""),
]


@pytest.mark.parametrize(("task", "head"), slow_but(CASES, CASES[1]))
def test_pipelines(task, head, folder):
    place = folder(f"DistilBertFor{head}" if head else "DistilBertModel")
    inputs = [f"{text} [MASK]" if head == "MaskedLM" else text for text in TEXTS]
    if head == "SequenceClassification":
        inputs = [{"text": text, "text_pair": TEXTS[0]} for text in TEXTS]  # with token types
    theirs = transformers.pipeline(task, str(place), device="cpu")
    assert_same(pipeline(task, place)(inputs), theirs(inputs))


@pytest.mark.slow
def test_sentences(folder, tmp_path):
    """Vectors beside sentence-transformers', alone and sharing rows, before and after a save."""
    encoder = minibert.SentenceEncoder.from_pretrained(folder("DistilBertModel"), pooling="mean")
    encoder.save_pretrained(tmp_path / "saved")
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    expected = theirs.encode(TEXTS)
    again = minibert.SentenceEncoder.from_pretrained(tmp_path / "saved")
    for found in (encoder.encode(TEXTS), encoder.encode(TEXTS, packing=64), again.encode(TEXTS)):
        np.testing.assert_allclose(found, expected, rtol=0, atol=EMBEDDING)


@pytest.mark.slow
def test_packing():
    """Texts that share a row have the vectors that they have alone."""
    with jax.enable_x64(True):
        model = SentenceModel(drawn("DistilBertModel"), [Pooling("mean", 24)])
        texts = [np.array([5, 6, 0, 7, 8, 9]), np.array([10, 11, 12])]
        ids, segments = np.full((1, 24), 1), np.zeros((1, 24), int)
        ids[0, :6], ids[0, 6:9] = texts
        segments[0, :6], segments[0, 6:9] = 1, 2
        alone = [model(text[None], jnp.ones((1, len(text)), bool))[1][0] for text in texts]
        packed = np.asarray(model.packed(ids, jnp.asarray(segments))[0])
    assert np.abs(packed[:2] - np.asarray(alone)).max() <= FLOAT64


@pytest.mark.parametrize("wrapper", slow_but(["", "module.", "0.auto_model."], ""))
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("DistilBertModel", {}),
        ("DistilBertForMaskedLM", {}),
        ("DistilBertForMaskedLM", {"activation": "prelu"}),
        ("DistilBertForSequenceClassification", {}),
        ("DistilBertForTokenClassification", {}),
        ("DistilBertForQuestionAnswering", {}),
    ],
)
def test_a_file_without_a_family(name, config, wrapper, tmp_path):
    """Neither BERT, whose embeddings have these names, nor GPT-2, whose trunk is `transformer`."""
    cls = getattr(minibert, name)
    cls(cls.config_class.tiny(**config), rngs=nnx.Rngs(0)).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({wrapper + key: a for key, a in tensors.items()}, tmp_path / "model.safetensors")
    written = json.loads((tmp_path / "config.json").read_text())
    del written["architectures"], written["model_type"]
    (tmp_path / "config.json").write_text(json.dumps(written))
    assert type(minibert.load(tmp_path)) is cls


def test_a_published_file(tmp_path):
    """A buffer, the projector's matrix beside the embeddings', and a trunk out of it."""
    oracle.saved("DistilBertForMaskedLM", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert "vocab_projector.weight" not in tensors
    words = tensors["distilbert.embeddings.word_embeddings.weight"]
    tensors |= {"vocab_projector.weight": words}
    tensors |= {"distilbert.embeddings.position_ids": np.arange(40)[None]}
    save_file(tensors, tmp_path / "model.safetensors")
    model, info = minibert.load(tmp_path, output_loading_info=True)
    assert info.ignored.keys() == {"distilbert.embeddings.position_ids"}
    assert info.tied.keys() == {"vocab_projector.weight"}
    assert model.vocab_projector.kernel is None
    bare, info = minibert.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(bare) is minibert.DistilBertModel
    assert {name.partition(".")[0] for name in info.left} == {
        "vocab_transform", "vocab_layer_norm", "vocab_projector",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("DistilBertForMaskedLM", "vocab_layer_norm."),
        ("DistilBertForMaskedLM", "vocab_projector."),
        ("ElectraForMaskedLM", "generator_lm_head."),
    ],
)
def test_part_of_a_head(name, part, tmp_path):
    """It is not completed by new parameters, although its parts are beside each other."""
    cls = getattr(minibert, name)
    cls(cls.config_class.tiny(), rngs=nnx.Rngs(0)).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    kept = {key: array for key, array in tensors.items() if not key.startswith(part)}
    save_file(kept, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointMismatchError, match="incomplete") as caught:
        minibert.load(tmp_path, new_head=True, rngs=nnx.Rngs(0))
    assert not isinstance(caught.value, MissingHeadError)


@pytest.mark.slow
def test_looking_inside():
    """Submodules by path, and the statistics of attention."""
    model, masked = (sentences.model(name) for name in ("DistilBertModel", "DistilBertForMaskedLM"))
    found = minibert.captured(model, "transformer.layer.*.attention", IDS, output_attentions=True)
    assert list(found) == [f"transformer.layer.{number}.attention" for number in (0, 1)]
    assert model.block_paths == ["transformer.layer.0", "transformer.layer.1"]
    np.testing.assert_array_equal(analysis.logit_lens(masked, IDS)[-1], masked(IDS).logits)
    figures = analysis.attention_statistics(found.outputs.attentions, np.ones_like(IDS))
    assert np.shape(figures["entropy"]) == (2, 3)
    states, pooled = analysis.embed_by_layer(
        model,
        {"input_ids": IDS, "token_type_ids": IDS, "attention_mask": np.ones_like(IDS)},
    )
    assert (states.shape, pooled) == ((3, 2, 24), None)


@pytest.mark.slow
def test_training_from_files(folder, tmp_path):
    """Examples of a tokenizer that makes token types."""
    place = folder("DistilBertForSequenceClassification", num_labels=2)
    rows = [{"text": text, "label": f"LABEL_{n % 2}"} for n, text in enumerate(TEXTS[:4])]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"task": "classification", "model": str(place), "data": str(data), "steps": 1}
    sizes = {"output": str(tmp_path / "run"), "batch_size": 2, "max_length": 16}
    given = read_settings(None, {**options, **sizes})
    labels = {"LABEL_0": 0, "LABEL_1": 1}
    batch = next(iter(dataset_of(given, given.data, tokenizer_of(given), labels)))
    assert "token_type_ids" in batch
    model = minibert.load(place)
    trainer = train.Trainer(model, train.classification(model.config), train.adamw(1e-3))
    assert np.isfinite(trainer.step(batch)["loss"])


def test_an_adapter(tmp_path):
    """The default targets are those of BERT, under their names here."""
    model = minibert.DistilBertForSequenceClassification(
        minibert.DistilBertConfig.tiny(num_labels=3), rngs=nnx.Rngs(0)
    )
    lora = train.LoRA(r=2, lora_alpha=4, task_type="SEQ_CLS", init_lora_weights=False)
    adapter = train.init_adapter(model, lora, seed=1)
    targets = {path.rpartition(".lora")[0] for path in adapter.params if ".lora" in path}
    assert {path.rpartition(".")[2] for path in targets} == {"q_lin", "v_lin"}
    whole = {path.partition(".")[0] for path in adapter.params if ".lora" not in path}
    assert whole == {"pre_classifier", "classifier"}  # as by PEFT: both names end so


def test_an_encoder_of_a_tokenizer_of_its_own():
    """A tokenizer without token types."""
    encoder = minibert.SentenceEncoder(
        sentences.model("DistilBertModel"), sentences.tokenizer("distilbert"), pooling="cls"
    )
    assert np.isfinite(encoder.encode(["the of", "a"])).all()
