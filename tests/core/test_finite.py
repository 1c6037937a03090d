"""NaN or infinite outputs raise errors wherever a model is applied to texts."""

import json
import pickle

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

pytest.importorskip("transformers", reason="the tokenizers are transformers'")

import minibert
import sentences
from commands import run
from minibert.embedding.job import embed_file
from minibert.errors import InputError, NotFiniteError, TextNotFiniteError
from minibert.inspection.analysis import embed_by_layer, nearest_words
from minibert.nn.numerics import is_finite, scores_defined

pytestmark = pytest.mark.unoptimised

TEXTS = ["the of and", "to in a", "b", "it is that they said", "c"]
LAYER = "transformer.encoder.layer.0.output.dense.kernel"
HALF = "float16 overflows above 65504"
TASKS = {
    "fill-mask": ("BertForMaskedLM", ["the [MASK] of", "a [MASK]"]),
    "text-classification": ("BertForSequenceClassification", TEXTS[:2]),
    "ner": ("BertForTokenClassification", TEXTS[:2]),
    "feature-extraction": ("BertModel", TEXTS[:2]),
    "next-sentence-prediction": ("BertForNextSentencePrediction", [("the of", "and"), ("a", "b")]),
    "question-answering": (
        "BertForQuestionAnswering",
        [{"question": "the of", "context": text} for text in TEXTS[:2]],
    ),
}


def model(name: str, scale: float = 1.0) -> nnx.Module:
    """A tiny model; with a scale of 1e7, its block overflows float16, and nothing else."""
    cls = getattr(minibert, name)
    config = cls.config_class.tiny(vocab_size=len(sentences.VOCABULARY), num_hidden_layers=1)
    made = cls(config, rngs=nnx.Rngs(0)).eval()
    kernel = made.base_model.encoder.layer[0].output.dense.kernel
    kernel[...] = kernel[...] * scale
    return made


def folder(path, name: str, scale: float = 1e7) -> str:
    model(name, scale).save_pretrained(path)
    sentences.tokenizer().save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory):
    """The folder of an encoder that is finite in float32 and overflows in float16."""
    path = tmp_path_factory.mktemp("overflowing") / "encoder"
    encoder = minibert.SentenceEncoder(model("BertModel", 1e7), sentences.tokenizer())
    encoder.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def spoilt():
    """An encoder with one parameter that is NaN."""
    made = model("BertModel")
    kernel = made.encoder.layer[0].output.dense.kernel
    kernel[...] = kernel[...].at[0, 0].set(jnp.nan)
    return minibert.SentenceEncoder(made, sentences.tokenizer())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"precision": "int8"},
        {"precision": "binary"},
        {"normalize_embeddings": True},
        {"packing": 40},
        {"output_value": "token_embeddings"},
        {"output_value": None},
    ],
    ids=str,
)
def test_encode(options, spoilt):
    with pytest.raises(TextNotFiniteError) as caught:
        spoilt.encode(TEXTS, **options)
    assert caught.value.numbers == (0, 1, 2, 3, 4)
    assert str(caught.value) == (
        "sentence 0 (and 4 more: 1, 2, 3, …): the vector of 'the of and' is NaN or infinite: "
        f"the parameter {LAYER} is not finite; reload the model"
    )
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.numbers) == (str(caught.value), caught.value.numbers)


def test_one_text_alone():
    """A token whose embedding is infinite spoils its own text and no other."""
    made = model("BertModel")
    words = made.embeddings.word_embeddings.embedding
    words[...] = words[...].at[sentences.VOCABULARY.index("they")].set(jnp.inf)
    encoder = minibert.SentenceEncoder(made, sentences.tokenizer())
    with pytest.raises(TextNotFiniteError, match=r"^sentence 3: .*'it is that they said'") as one:
        encoder.encode(TEXTS)
    assert one.value.numbers == (3,)
    assert np.isfinite(encoder.encode(TEXTS[:3])).all()


def test_half_precision(overflowing):
    assert np.isfinite(minibert.SentenceEncoder.from_pretrained(overflowing).encode(TEXTS)).all()
    encoder = minibert.SentenceEncoder.from_pretrained(overflowing, dtype="float16")
    with pytest.raises(NotFiniteError, match=HALF):
        encoder.encode(TEXTS)


def test_overflow_of_finite_parameters():
    made = model("BertModel")
    made.encoder.layer[0].output.LayerNorm.scale[...] = jnp.full(24, 3e38)
    encoder = minibert.SentenceEncoder(made, sentences.tokenizer())
    with pytest.raises(NotFiniteError, match="every parameter is finite, but"):
        encoder.encode("the")


@pytest.mark.parametrize("task", TASKS)
def test_pipelines(task):
    name, inputs = TASKS[task]
    made = model(name)
    bias = made.base_model.encoder.layer[-1].output.LayerNorm.bias
    bias[...] = bias[...].at[0].set(jnp.nan)
    ask = minibert.pipeline(task, made, tokenizer=sentences.tokenizer())
    said = r"logits|last_hidden_state: .*output\.LayerNorm\.bias is not finite"
    with pytest.raises(NotFiniteError, match=said) as caught:
        ask(inputs[0])
    assert "input" not in str(caught.value)
    with pytest.raises(NotFiniteError, match=r"^input 0 \(.*the"):
        list(ask(iter(inputs)))


@pytest.mark.parametrize("function", ["sigmoid", "softmax", "none"])
def test_classification_by_every_function(function):
    made = model("BertForSequenceClassification")
    ask = minibert.pipeline("text-classification", made, tokenizer=sentences.tokenizer())
    made.classifier.bias[...] = jnp.array([0, jnp.inf])
    ask = type(ask)(made, ask.tokenizer, function_to_apply=function)
    with pytest.raises(NotFiniteError, match=r"logits: .*classifier\.bias is not finite"):
        ask("the")


def test_what_is_ruled_out_has_no_probability():
    """A logit of -inf is a probability of 0, and no fault."""
    made = model("BertForMaskedLM")
    bias = made.cls.predictions.bias
    bias[...] = bias[...].at[5:].set(-jnp.inf)
    ask = minibert.pipeline("fill-mask", made, tokenizer=sentences.tokenizer())
    answers = ask("the [MASK]", top_k=7)
    assert [answer["score"] > 0 for answer in answers] == [True] * 5 + [False] * 2
    assert scores_defined(np.array([[-np.inf, 0]], np.float32))
    for wrong in ([np.nan, 0], [np.inf, 0], [-np.inf, -np.inf], [np.nan, -np.inf]):
        assert not scores_defined(np.array([[1, 2], wrong], np.float32))


def test_large_numbers_are_finite():
    for value in (3e38, -3e38, 1e-45):
        assert is_finite(np.full((3, 4), value, np.float32))
    for value in (np.nan, np.inf, -np.inf):
        for place in (0, 5, 11):
            array = np.zeros(12, np.float32)
            array[place] = value
            assert not is_finite(array.reshape(3, 4))
    assert is_finite(np.empty((0, 4), np.float32))


def test_a_job_says_which_text_of_all(tmp_path):
    def encode(some):
        if "f" in some:
            raise TextNotFiniteError([some.index("f")], "why")
        return np.ones((len(some), 2), np.float32)

    with pytest.raises(TextNotFiniteError, match=r"^sentence 5: why") as caught:
        embed_file(list("abcdefgh"), encode, str(tmp_path / "o.npy"), made_by={}, rows_a_part=2)
    assert caught.value.numbers == (5,)


def test_the_commands(tmp_path, overflowing):
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(TEXTS))
    output = tmp_path / "out.npy"
    half = ("--dtype", "float16")
    done = run("embed", texts, "-o", output, "-m", overflowing, *half)
    assert done.exit_code == 1
    assert "texts.txt: line 1: the vector of 'the of and' is NaN or infinite" in done.output
    assert HALF in done.output
    assert "load the model with dtype float32 or bfloat16" in done.output
    assert not output.exists()
    done = run("similar", overflowing, "the of", "--among", texts, *half)
    assert done.exit_code == 1
    assert HALF in done.output
    masked = folder(tmp_path / "masked", "BertForMaskedLM")
    done = run("fill-mask", masked, "the [MASK]", *half)
    assert done.exit_code == 1
    assert HALF in done.output
    done = run("fill-mask", masked, "the [MASK]", "--json")
    assert len(json.loads(done.output)) == 5


def test_analysis():
    made = model("BertModel")
    words = made.embeddings.word_embeddings.embedding
    words[...] = words[...].at[7].set(jnp.nan)
    ids = np.array([[2, 5, 3], [2, 6, 3], [2, 7, 3]])
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    embed_by_layer(made, {name: array[:2] for name, array in inputs.items()}, batch_size=2)
    with pytest.raises(TextNotFiniteError, match=r"^sentence 2: .*word_embeddings.* not finite"):
        embed_by_layer(made, inputs, batch_size=2)
    with pytest.raises(InputError, match=r"embeddings: .*row 7 holds NaN"):
        nearest_words(words[...], np.ones(words.shape[1]), sentences.tokenizer())
