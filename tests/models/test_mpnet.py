"""MPNet beyond the contract: distances, packing, text in and answers out, sentences, adapters."""

import json
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the oracle is PyTorch")

import tokenizers  # noqa: E402
import transformers  # noqa: E402
from flax import nnx  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402

import minibert  # noqa: E402
import oracle  # noqa: E402
from conftest import EMBEDDING, FLOAT64  # noqa: E402
from minibert import train  # noqa: E402
from minibert.embedding.modules import Pooling, SentenceModel  # noqa: E402
from minibert.errors import ConfigError, InputError, UnsupportedConfigError  # noqa: E402
from minibert.models.bert.modeling import BertModel  # noqa: E402
from minibert.models.mpnet import modeling  # noqa: E402
from minibert.pipelines import pipeline  # noqa: E402
from planting import swapped  # noqa: E402
from speaking import LONG, SENTENCES, assert_same  # noqa: E402
from tiny import drawn  # noqa: E402

SPECIAL = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]
TEXTS = SENTENCES[:12]
TOKENS = 150


@pytest.fixture(scope="module")
def tokenizer():
    """A WordPiece tokenizer with MPNet's special tokens."""
    made = tokenizers.BertWordPieceTokenizer(unk_token="[UNK]")
    made.train_from_iterator(SENTENCES, vocab_size=400, special_tokens=SPECIAL, show_progress=False)
    vocabulary = json.loads(made.to_str())["model"]["vocab"]
    return transformers.MPNetTokenizer(vocab=vocabulary, model_max_length=198)


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
    config = minibert.MPNetConfig.base()
    assert (config.max_tokens, config.vocab_size, config.layer_norm_eps) == (512, 30527, 1e-5)
    assert minibert.MPNetConfig().layer_norm_eps == 1e-12
    with pytest.raises(ConfigError, match="relative_attention_num_buckets: expected a whole numb"):
        minibert.MPNetConfig.tiny(relative_attention_num_buckets=31)
    with pytest.raises(ConfigError, match="max_position_embeddings: expected a whole number from"):
        minibert.MPNetConfig.tiny(max_position_embeddings=2)
    for field in ("is_decoder", "is_causal"):
        with pytest.raises(UnsupportedConfigError, match=f"{field}: True is not implemented"):
            minibert.MPNetConfig.from_dict({field: True})
    model = minibert.MPNetModel(minibert.MPNetConfig.tiny(), rngs=None)
    with pytest.raises(InputError, match="token_type_ids: not an argument of MPNetModel: the mod"):
        model([[5]], token_type_ids=[[0]])


def test_positions():
    """They depend on the id 1, whatever `pad_token_id` is."""
    config = minibert.MPNetConfig.tiny(pad_token_id=0, num_hidden_layers=1)
    model = minibert.MPNetModel(config, rngs=nnx.Rngs(0)).eval()
    ids = np.array([[7, 1, 8, 9, 1, 1], [1, 1, 5, 1, 6, 7]])
    assert model.positions(ids).tolist() == [[2, 1, 3, 4, 1, 1], [1, 1, 2, 1, 3, 4]]
    segments = jnp.array([[1, 1, 2, 2, 2, 0], [1, 1, 1, 2, 2, 2]])
    assert model.positions(ids, segments=segments).tolist() == [
        [2, 1, 2, 3, 1, 1],
        [1, 1, 2, 1, 2, 3],
    ]
    first = model(ids, output_hidden_states=True).hidden_states[0]
    np.testing.assert_array_equal(model.embeddings(ids), first)
    words = model.embeddings.word_embeddings(ids)
    states = model(inputs_embeds=words, output_hidden_states=True).hidden_states
    np.testing.assert_array_equal(model.embeddings(inputs_embeds=words), states[0])


def by_formula(furthest=128, half=16, exact=8):
    """The buckets of distances, by a formula with other constants."""

    def bucket(distance):
        size = np.abs(np.asarray(distance))
        large = np.log(np.maximum(size, 1) / exact) / math.log(furthest / exact) * (half - exact)
        large = np.minimum(exact + large.astype(int), half - 1)
        return jnp.asarray(np.where(size < exact, size, large) + 16 * np.asarray(distance > 0))

    return bucket


def test_buckets():
    """At every distance, also where the formula's logarithm is a whole number."""
    distances = np.arange(-700, 700)
    module = transformers.models.mpnet.modeling_mpnet.MPNetEncoder
    expected = module.relative_position_bucket(torch.tensor(distances)).numpy()
    for found in (modeling.bucket(jnp.asarray(distances)), by_formula()(distances)):
        np.testing.assert_array_equal(found, expected)


BUCKET = modeling.bucket


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """A model, a long text and PyTorch's states of it."""
    folder = tmp_path_factory.mktemp("long")
    theirs = oracle.saved("MPNetModel", folder, max_position_embeddings=TOKENS + 2)
    ids = np.random.default_rng(0).integers(2, 97, (1, TOKENS))
    expected = oracle.run_torch(theirs.double(), {"input_ids": ids}).last_hidden_state.numpy()
    with oracle.float64():
        return oracle.ours("MPNetModel", folder, param_dtype=jnp.float64), ids, expected


@pytest.mark.parametrize(
    ("mistake", "bucket"),
    [
        (False, BUCKET),
        (True, by_formula(furthest=64)),
        (True, by_formula(furthest=256)),
        (True, lambda distance: BUCKET(jnp.clip(distance, -90, 90))),
        (True, lambda distance: BUCKET(jnp.sign(distance) * (jnp.abs(distance) + 1))),
    ],
    ids=["none", "furthest 64", "furthest 256", "capped at 90", "one on"],
)
def test_mistakes_of_long_distances(mistake, bucket, long):
    model, ids, expected = long
    with oracle.float64(), swapped(modeling, "bucket", bucket):
        error = np.abs(np.asarray(model(ids).last_hidden_state) - expected).max()
    assert error > 1000 * FLOAT64 if mistake else error <= FLOAT64


def test_packing_and_the_mistake_of_positions_from_0(monkeypatch):
    """As if alone; counted from 0, as in other libraries, the vectors are far off."""
    with jax.enable_x64(True):
        model = SentenceModel(drawn("MPNetModel", num_hidden_layers=1), [Pooling("mean", 24)])
        texts, mask = np.array([[5, 1, 6, 7, 8, 9], [10, 11, 12, 1, 1, 1]]), np.ones((2, 6), bool)
        mask[1, 3:] = False  # but not the id of padding inside the first text
        alone = np.asarray(model(texts, jnp.asarray(mask))[1])
        ids, segments = np.full((1, 24), 1), np.zeros((1, 24), int)
        ids[0, :6], ids[0, 6:9] = texts[0], texts[1, :3]
        segments[0, :6], segments[0, 6:9] = 1, 2
        packed = np.asarray(model.packed(ids, jnp.asarray(segments))[0])
        assert np.abs(packed[:2] - alone).max() <= FLOAT64
        monkeypatch.setattr(modeling.MPNetModel, "positions", BertModel.positions)
        packed = np.asarray(model.packed(ids, jnp.asarray(segments))[0])
        assert np.abs(packed[:2] - alone).max() > 1000 * FLOAT64


QUESTION = {"question": "Who wrote a letter?", "context": SENTENCES[26]}
TAGGER = "MPNetForTokenClassification"
MASKED = [f"{text}{mask}" for text in TEXTS[:6] for mask in (" <mask>", "<mask>", "  <mask> ?")]
CLASSIFIED = [*TEXTS, LONG, {"text": TEXTS[1], "text_pair": TEXTS[2]}]
SPLIT = [text.split() for text in TEXTS[:5]]


@pytest.mark.parametrize(
    ("task", "name", "inputs", "options"),
    [
        ("fill-mask", "MPNetForMaskedLM", MASKED, {}),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (
                    "text-classification",
                    "MPNetForSequenceClassification",
                    CLASSIFIED,
                    {"truncation": True},
                ),
                ("token-classification", TAGGER, list(TEXTS), {}),
                ("token-classification", TAGGER, SPLIT, {"is_split_into_words": True}),
                ("question-answering", "MPNetForQuestionAnswering", QUESTION, {}),
            )
        ),
    ],
)
def test_pipelines(task, name, inputs, options, folder):
    place = folder(name)
    ours = pipeline(task, place)(inputs, **options)
    if task == "question-answering":  # which transformers 5 does not have
        assert ours["answer"] in QUESTION["context"]
        return
    theirs = transformers.pipeline(task, str(place), device="cpu")
    assert_same(ours, theirs(inputs, **options))


def as_published(place):
    """A folder as that of all-mpnet-base-v2: no prefix, another class, a buffer, three modules.

    And with the names of norms that old files have.
    """
    config = json.loads((place / "config.json").read_text())
    config["architectures"] = ["MPNetForMaskedLM"]
    (place / "config.json").write_text(json.dumps(config))
    tensors = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): t
        for name, t in load_file(place / "model.safetensors").items()
    }
    tensors["embeddings.position_ids"] = np.arange(200)[None]
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds.items())
    ]
    (place / "modules.json").write_text(json.dumps(modules))
    settings = {"max_seq_length": 64, "do_lower_case": False}
    (place / "sentence_bert_config.json").write_text(json.dumps(settings))
    (place / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 24, "pooling_mode_mean_tokens": True}
    (place / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


@pytest.mark.slow
def test_sentences(folder, tmp_path):
    """Vectors of texts, alone, together and sharing rows, beside sentence-transformers'."""
    library = pytest.importorskip("sentence_transformers")
    place = folder("MPNetModel")
    as_published(place)
    encoder = minibert.SentenceEncoder.from_pretrained(place)
    assert encoder.max_seq_length == 64
    texts = [*SENTENCES, LONG]
    expected = library.SentenceTransformer(str(place), device="cpu").encode(texts)
    np.testing.assert_allclose(encoder.encode(texts), expected, rtol=0, atol=EMBEDDING)
    np.testing.assert_allclose(encoder.encode(texts, packing=64), expected, rtol=0, atol=EMBEDDING)
    encoder.save_pretrained(tmp_path / "saved")
    again = library.SentenceTransformer(str(tmp_path / "saved"), device="cpu").encode(texts)
    np.testing.assert_allclose(again, expected, rtol=0, atol=EMBEDDING)
    with pytest.raises(ValueError, match="'lm_head' is not in the file"):
        minibert.load(place)


@pytest.mark.slow
def test_looking_inside():
    """Of attention the projected context, and of the bias a row for each pair of positions."""
    model = minibert.MPNetForMaskedLM(minibert.MPNetConfig.tiny(), rngs=nnx.Rngs(0)).eval()
    ids = np.array([[5, 6, 7, 8]])
    paths = ["mpnet.encoder.relative_attention_bias", "mpnet.encoder.layer.*.attention.attn"]
    inner = minibert.captured(model, paths, ids, output_attentions=True)
    bias, first, second = inner.values()
    assert (bias.shape, first.shape, second.shape) == ((4, 4, 3), (1, 4, 24), (1, 4, 24))
    without = {paths[0]: lambda bias: 0 * bias}
    changed = minibert.captured(model, paths[1], ids, replace=without)
    assert np.abs(changed.outputs.logits - inner.outputs.logits).max() > 1e-6
    statistics = minibert.analysis.attention_statistics(inner.outputs.attentions, ids > 0)
    assert statistics["entropy"].shape == (2, 3)
    assert minibert.analysis.logit_lens(model, ids).shape == (3, 1, 4, 97)


@pytest.mark.slow
def test_an_adapter(tmp_path):
    """PEFT, which has no default for MPNet, reads the targets that are written."""
    peft = pytest.importorskip("peft")
    theirs = oracle.saved("MPNetForSequenceClassification", tmp_path / "base").double()
    with oracle.float64():
        name = "MPNetForSequenceClassification"
        model = oracle.ours(name, tmp_path / "base", param_dtype=jnp.float64)
        lora = train.LoRA(r=2, lora_alpha=4, task_type="SEQ_CLS", init_lora_weights=False)
        adapter = train.init_adapter(model, lora, seed=1)
        train.save_adapter(model, adapter, tmp_path / "adapter")
        given = oracle.arguments(name)
        merged = train.merge(model, adapter)(**given)
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert sorted(written["target_modules"]) == ["q", "v"]
    with warnings.catch_warnings(action="ignore"):  # of transformers, at names that PEFT uses
        adapted = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval().double()
    expected = oracle.run_torch(adapted, given)
    assert max(oracle.errors(merged, expected, given["attention_mask"]).values()) <= FLOAT64
