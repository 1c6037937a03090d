"""XLM-RoBERTa and CamemBERT beyond the contract: SentencePiece vocabularies, text in, answers out.

And tokenizers that are another family's, whose padding is not the id that the config says.
"""

import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch", reason="the oracle is PyTorch")
pytest.importorskip("sentence_transformers", reason="the reference is sentence-transformers")

import sentence_transformers
import tokenizers
import transformers

import minibert
import oracle
from conftest import EMBEDDING, FLOAT64
from minibert.embedding.modules import Pooling, SentenceModel
from minibert.errors import SourceError
from minibert.models.bert.modeling import BertModel
from minibert.nn.tree import parameters
from minibert.pipelines import pipeline
from slowly import slow_but
from speaking import SCORE, SENTENCES, assert_same
from tiny import drawn

TEXTS = [*SENTENCES[:11], " ", "<s> of a text </s> and <pad>", "naïve  café"]
PARIS = "Marie lives in Paris, and Jean lives in Lyon."
NOT_USED = ("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>")
PREFIXES = {"xlm-roberta": "XLMRoberta", "camembert": "Camembert"}
INSTALLED = importlib.util.find_spec("sentencepiece") is not None


@pytest.fixture(scope="module")
def vocabularies():
    """Tokenizers of the families, of the same pieces."""
    made = tokenizers.SentencePieceUnigramTokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    made.train_from_iterator(
        SENTENCES, vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    pieces = [tuple(piece) for piece in json.loads(made.to_str())["model"]["vocab"]]
    kept = [(piece, score) for piece, score in pieces if piece not in special]
    mask = [("<mask>", 0.0)]
    french = [(name, -100.0 if name == "<unk>NOTUSED" else 0.0) for name in NOT_USED]
    return {
        "xlm-roberta": transformers.XLMRobertaTokenizer(
            vocab=[(name, 0.0) for name in special] + kept + mask
        ),
        "camembert": transformers.CamembertTokenizer(vocab=french + kept + mask),
    }


@pytest.fixture
def folder(vocabularies, tmp_path):
    """Saves a model of a class, and a family's tokenizer beside it."""

    def save(name, family, **config):
        tokenizer = vocabularies[family]
        sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 200}
        oracle.saved(name, tmp_path / "model", **sizes | config)
        tokenizer.save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return save


def test_configs():
    xlm, french = minibert.XLMRobertaConfig, minibert.CamembertConfig
    for cls, vocab in ((xlm, 250002), (french, 32005)):
        theirs = transformers.AutoConfig.for_model(cls.model_type)
        ours = cls()
        for name, value in vars(ours).items():
            if name not in ("extra", "generation", "is_causal", "id2label", "label2id"):
                assert getattr(theirs, name) == value, name
        base = cls.base()
        assert (base.vocab_size, base.max_tokens, base.layer_norm_eps) == (vocab, 512, 1e-5)
        assert (cls.large().hidden_size, cls.large().type_vocab_size) == (1024, 1)
    shapes = parameters(minibert.XLMRobertaModel(xlm.base(), rngs=None))
    assert sum(np.prod(leaf.shape) for leaf in shapes.values()) == 278_043_648
    shapes = parameters(minibert.CamembertModel(french.base(), rngs=None))
    assert sum(np.prod(leaf.shape) for leaf in shapes.values()) == 110_621_952


@pytest.mark.slow
@pytest.mark.parametrize("right", [True, False], ids=["right", "positions from 0"])
def test_packing(right, monkeypatch):
    """Texts that share a row have the vectors that they have alone."""
    with jax.enable_x64(True):
        model = SentenceModel(drawn("XLMRobertaModel"), [Pooling("mean", 24)])
        texts = [np.array([5, 6, 1, 7, 8, 9]), np.array([10, 11, 12])]  # a pad id inside
        ids, segments = np.full((1, 24), 1), np.zeros((1, 24), int)
        ids[0, :6], ids[0, 6:9] = texts
        segments[0, :6], segments[0, 6:9] = 1, 2
        alone = [model(text[None], jnp.ones((1, len(text)), bool))[1][0] for text in texts]
        if not right:
            monkeypatch.setattr(minibert.XLMRobertaModel, "positions", BertModel.positions)
        packed = np.asarray(model.packed(ids, jnp.asarray(segments))[0])
        distance = np.abs(packed[:2] - np.asarray(alone)).max()
    assert distance <= FLOAT64 if right else distance > 1000 * FLOAT64


CASES = [
    (family, task, head)
    for family in PREFIXES
    for task, head in (
        ("fill-mask", "MaskedLM"),
        ("text-classification", "SequenceClassification"),
        ("token-classification", "TokenClassification"),
        ("feature-extraction", ""),
    )
]


@pytest.mark.parametrize(
    ("family", "task", "head"),
    slow_but(CASES, ("xlm-roberta", "token-classification", CASES[2][2])),
)
def test_pipelines(family, task, head, folder):
    place = folder(PREFIXES[family] + (f"For{head}" if head else "Model"), family)
    inputs = [f"{text} <mask>" if head == "MaskedLM" else text for text in TEXTS]
    theirs = transformers.pipeline(task, str(place), device="cpu")
    assert_same(pipeline(task, place)(inputs), theirs(inputs))


def test_question_answering(folder):
    """The most probable span of the second text, by PyTorch's scores."""
    place = folder("XLMRobertaForQuestionAnswering", "xlm-roberta")
    question = "Where does Marie live?"
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    rows = tokenizer(question, PARIS, return_tensors="pt", return_offsets_mapping=True)
    offsets = rows.pop("offset_mapping")[0].tolist()
    model = transformers.XLMRobertaForQuestionAnswering.from_pretrained(place).eval()
    outputs = oracle.run_torch(model, rows)
    inside = np.array([index == 1 for index in rows.sequence_ids()])
    assert tokenizer.sep_token_id == rows["input_ids"][0, inside.argmax() - 1]
    allowed = inside | (np.arange(len(inside)) == 0)  # `<s>` stands for no answer
    start, end = (
        np.where(allowed, np.exp(scores[0].numpy()), 0)
        for scores in (outputs.start_logits, outputs.end_logits)
    )
    both = np.triu(np.outer(start / start.sum(), end / end.sum())) * np.outer(inside, inside)
    both *= np.tril(np.ones_like(both), 14)
    first, last = np.unravel_index(both.argmax(), both.shape)
    found = pipeline("question-answering", place, align_to_words=False)(
        question=question, context=PARIS
    )
    assert (found["start"], found["end"]) == (offsets[first][0], offsets[last][1])
    assert found["answer"] == PARIS[found["start"] : found["end"]]
    assert abs(found["score"] - both.max()) <= SCORE


def check_vectors(place, saved):
    """Vectors beside sentence-transformers', alone and sharing rows, before and after a save."""
    encoder = minibert.SentenceEncoder.from_pretrained(place, pooling="mean")
    encoder.save_pretrained(saved)
    theirs = sentence_transformers.SentenceTransformer(str(saved), device="cpu").encode(TEXTS)
    for found in (
        encoder.encode(TEXTS),
        encoder.encode(TEXTS, packing=64),
        minibert.SentenceEncoder.from_pretrained(saved).encode(TEXTS),
    ):
        np.testing.assert_allclose(found, theirs, rtol=0, atol=EMBEDDING)


@pytest.mark.slow
@pytest.mark.parametrize("family", PREFIXES)
def test_sentences(family, folder, tmp_path):
    check_vectors(folder(f"{PREFIXES[family]}Model", family), tmp_path / "saved")


@pytest.mark.slow
def test_sentences_of_a_bert_with_this_tokenizer(folder, tmp_path):
    """The config's padding is the tokenizer's first token, which is in every text."""
    place = folder("BertModel", "xlm-roberta")
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    config = minibert.AutoConfig.from_pretrained(place)
    assert (config.pad_token_id, tokenizer.pad_token_id, tokenizer.cls_token_id) == (0, 1, 0)
    check_vectors(place, tmp_path / "saved")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "head"), [("fill-mask", "MaskedLM"), ("text-classification", "SequenceClassification")]
)
def test_pipelines_of_a_bert_with_this_tokenizer(task, head, folder):
    place = folder(f"BertFor{head}", "xlm-roberta")
    inputs = [f"{text} <mask>" if head == "MaskedLM" else text for text in TEXTS]
    theirs = transformers.pipeline(task, str(place), device="cpu")
    assert_same(pipeline(task, place)(inputs), theirs(inputs))


@pytest.fixture
def only_sentencepiece(folder):
    """A folder whose tokenizer is a SentencePiece model alone."""
    pytest.importorskip("google.protobuf")
    from transformers.convert_slow_tokenizer import import_protobuf

    place = folder("XLMRobertaModel", "xlm-roberta")
    for path in place.glob("*token*"):
        path.unlink()
    model = import_protobuf().ModelProto()
    model.trainer_spec.model_type, model.trainer_spec.unk_id = 1, 0
    pieces = [("<unk>", 0, 2), ("<s>", 0, 3), ("</s>", 0, 3), ("▁the", -1, 1), ("▁", -2, 1)]
    for name, score, kind in pieces + [(letter, -3, 1) for letter in "abcdefghijklmnopqrst"]:
        model.pieces.add(piece=name, score=score, type=kind)
    (place / "sentencepiece.bpe.model").write_bytes(model.SerializeToString())
    return place


@pytest.mark.skipif(INSTALLED, reason="sentencepiece and protobuf are installed")
def test_what_a_sentencepiece_model_needs(only_sentencepiece):
    with pytest.raises(SourceError, match=r"pip install 'minibert-jax\[sentencepiece\]'"):
        minibert.SentenceEncoder.from_pretrained(only_sentencepiece, pooling="mean")


@pytest.mark.skipif(not INSTALLED, reason="needs sentencepiece and protobuf")
def test_a_damaged_sentencepiece_model(only_sentencepiece):
    """It is not said to be another library's, which transformers takes it for."""
    path = only_sentencepiece / "sentencepiece.bpe.model"
    path.write_bytes(b"\x0a\x0d" + path.read_bytes()[:20])
    with pytest.raises(SourceError, match="loaded \\(its SentencePiece model is damaged\\)"):
        minibert.SentenceEncoder.from_pretrained(only_sentencepiece, pooling="mean")


@pytest.mark.skipif(not INSTALLED, reason="needs sentencepiece and protobuf")
def test_a_sentencepiece_model(only_sentencepiece):
    encoder = minibert.SentenceEncoder.from_pretrained(only_sentencepiece, pooling="mean")
    assert encoder.tokenizer("the a").input_ids == [0, 4, 5, 6, 2]
    assert encoder.encode("the a").shape == (24,)
