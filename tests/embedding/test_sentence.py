"""Sentence encoders without PyTorch: arguments, order, batches, programs."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import minibert
import sentences
from conftest import EMBEDDING, NEIGHBOURS
from generating import compilations
from minibert.embedding.encoder import SentenceEncoder
from minibert.errors import InputError
from minibert.text.batching import BUCKETS

FEW = sentences.FEW


@pytest.fixture(scope="module")
def encoder():
    return sentences.encoder(prompts={"query": "it is ", "other": "they said "})


def test_shapes(encoder):
    assert encoder.encode("the").shape == (24,)
    assert encoder.encode(["the"]).shape == (1, 24)
    assert encoder.encode([]).shape == (0, 24)
    assert encoder.encode([], precision="int8").dtype == np.int8
    assert encoder.encode([], precision="ubinary").shape == (0, 3)
    assert encoder.encode([], output_value="token_embeddings") == []
    assert encoder.encode([], output_value=None) == []
    assert encoder.get_sentence_embedding_dimension() == 24
    assert encoder.encode("the", convert_to_tensor=True).shape == (24,)
    assert isinstance(encoder.encode(["the"], convert_to_tensor=True), jax.Array)


@pytest.mark.parametrize("make", [tuple, iter, np.array, lambda texts: (text for text in texts)])
def test_any_iterable(make, encoder):
    assert (encoder.encode(make(FEW)) == encoder.encode(FEW)).all()


@pytest.mark.slow
def test_order_and_batches(encoder):
    """A text's embedding does not depend on batches or order."""
    texts = sentences.texts(70, 60)
    vectors = encoder.encode(texts)
    draw = np.random.default_rng(0).permutation(len(texts))
    again = encoder.encode([texts[place] for place in draw], token_budget=100)
    np.testing.assert_allclose(again, vectors[draw], atol=NEIGHBOURS, rtol=0)


def test_alone_and_together(encoder):
    texts = sentences.texts(60, 60, seed=1)
    alone = np.stack([encoder.encode(text) for text in texts])
    np.testing.assert_allclose(encoder.encode(texts), alone, atol=NEIGHBOURS, rtol=0)


def test_chunks_are_one_encoding(encoder, monkeypatch):
    """Texts are read in chunks; the rest of one is batched with the next."""
    texts = sentences.texts(300, 60, seed=2)
    vectors = encoder.encode(texts, token_budget=200)
    assert encoder.truncated
    cut = encoder.truncated
    monkeypatch.setattr("minibert.embedding.encoding.CHUNK", 16)
    with compilations() as found:
        again = encoder.encode(texts, token_budget=200)
    assert len(found) <= 1
    assert encoder.truncated == cut
    np.testing.assert_allclose(again, vectors, atol=NEIGHBOURS, rtol=0)


@pytest.mark.slow
def test_few_programs():
    """At most one program per length bucket is compiled for 10,000 texts of all lengths."""
    model = sentences.model(max_position_embeddings=512, num_hidden_layers=1)
    tokenizer = sentences.tokenizer(model_max_length=512)
    ours = SentenceEncoder(model, tokenizer, normalize=True)
    texts = sentences.texts(10_000, 600)
    buckets = [size for size in BUCKETS if size <= 512]
    with compilations() as found:
        ours.encode(texts)
    assert 0 < len(found) <= len(buckets) == 24
    with compilations() as found:
        ours.encode(texts[::3], precision="binary", truncate_dim=8, prompt="it is ")
    assert len(found) <= 1  # the last batch, of fewer rows


def test_padding_is_never_seen(encoder):
    """Neither other rows nor padding ids affect an embedding."""
    other = SentenceEncoder(
        encoder.model.transformer, sentences.tokenizer(pad_token="[MASK]", padding_side="left")
    )
    texts = sentences.texts(9, 30)
    np.testing.assert_array_equal(other.encode(texts), encoder.encode(texts))


def test_prompts(encoder):
    spoken = encoder.encode([f"they said {text}" for text in FEW])
    np.testing.assert_array_equal(encoder.encode(FEW, prompt_name="other"), spoken)
    np.testing.assert_array_equal(encoder.encode(FEW, prompt="they said "), spoken)
    asked = encoder.encode([f"it is {text}" for text in FEW])
    np.testing.assert_array_equal(encoder.encode_query(FEW), asked)
    np.testing.assert_array_equal(encoder.encode_query(FEW, prompt_name="other"), spoken)
    np.testing.assert_array_equal(encoder.encode_document(FEW), encoder.encode(FEW))
    assert encoder.prompts["document"] == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"sentences": "the", "normalize_embeddings": "no"},
            "normalize_embeddings: expected True or False",
        ),
        ({"sentences": 3}, "inputs: expected a text or texts, found 3"),
        ({"sentences": b"the"}, "inputs: expected a text or texts, found b'the'"),
        ({"sentences": {"the": 1}}, "inputs: expected a text or texts"),
        ({"sentences": ["the", 3]}, "sentence 1: expected a text, found 3"),
        ({"sentences": ["the", None]}, "sentence 1: expected a text, found None"),
        ({"sentences": ["the", ["of", "and"]]}, "sentence 1: expected a text"),
        ({"sentences": ["the longest", "\ud800"]}, "sentence 1: half a surrogate pair"),
        (
            {"sentences": "the", "prompt_name": "none"},
            "prompt_name: expected one of .* found 'none'",
        ),
        (
            {"sentences": "the", "prompt_name": "other", "prompt": "a"},
            "prompt, prompt_name: expected only one",
        ),
        ({"sentences": "the", "prompt": "\ud800"}, "prompt: half a surrogate pair"),
        ({"sentences": "the", "precision": "int4"}, "precision: expected one of float32"),
        (
            {"sentences": "the", "precision": "int8"},
            "precision: int8 needs at least two embeddings",
        ),
        ({"sentences": "the", "output_value": "logits"}, "output_value: expected one of"),
        (
            {"sentences": "the", "output_value": None, "precision": "int8"},
            "precision: expected 'float32' with output_value=None",
        ),
        ({"sentences": "the", "truncate_dim": 0}, "truncate_dim: expected a whole number from 1"),
        (
            {"sentences": "the", "token_budget": 0},
            "token_budget: expected a whole number",
        ),
    ],
)
def test_wrong_arguments(arguments, message, encoder):
    with pytest.raises(InputError, match=message):
        encoder.encode(**arguments)


def test_a_text_without_tokens():
    ours = sentences.encoder("GPT2Model")
    with pytest.raises(InputError, match="sentence 2: expected at least 1 token, found none in ''"):
        ours.encode(["the", "of and", ""])


def test_what_is_cut_is_counted(encoder):
    """A text of 10,000 words is its first 40 tokens."""
    texts = ["the " * 38, "the " * 39, "the " * 10_000]
    vectors = encoder.encode(texts)
    assert encoder.truncated == 2
    np.testing.assert_allclose(vectors[1:], vectors[[0, 0]], atol=NEIGHBOURS, rtol=0)
    short = sentences.encoder()
    short.max_seq_length = 5
    assert short.max_seq_length == 5
    short.encode(texts)
    assert short.truncated == 3
    with pytest.raises(InputError, match="max_seq_length: expected at most 40"):
        short.max_seq_length = 41
    with pytest.raises(InputError, match="max_seq_length: expected a whole number of at least 2"):
        short.max_seq_length = 1


@pytest.mark.parametrize("side", ["right", "left"])
def test_tokenize(side):
    ours = sentences.encoder(side=side)
    expected = ours.tokenizer(FEW, padding=True, return_tensors="np")
    found = ours.tokenize(FEW)
    assert found.keys() == expected.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name])
    assert ours.tokenize([])["input_ids"].shape == (0, 0)


def test_the_tokenizer_is_left_alone():
    tokenizer = sentences.tokenizer()
    before = tokenizer.backend_tokenizer.to_str()
    SentenceEncoder(sentences.model(), tokenizer, max_seq_length=7, do_lower_case=True).encode(FEW)
    assert tokenizer.backend_tokenizer.to_str() == before
    assert tokenizer.model_max_length == 40


@pytest.mark.slow
@pytest.mark.parametrize("layers", ["mean_of_last_four", "last_four_concatenated"])
def test_layers(layers):
    """The hidden states that the seeds choose among."""
    model = sentences.model(num_hidden_layers=5)
    ours = SentenceEncoder(model, sentences.tokenizer(), pooling="cls", layers=layers)
    ids = np.array(ours.tokenize("of and to")["input_ids"])
    states = [state[0, 0] for state in model(ids, output_hidden_states=True).hidden_states[-4:]]
    expected = np.mean(states, axis=0) if "mean" in layers else np.concatenate(states)
    np.testing.assert_allclose(ours.encode("of and to"), expected, atol=EMBEDDING, rtol=0)
    with pytest.raises(InputError, match=r"layers: .* cannot be saved"):
        ours.save_pretrained("unused")


@pytest.mark.slow
def test_dense_after_dense():
    layers = [sentences.dense(24, 10, activation="relu"), sentences.dense(10, 5, bias=False)]
    ours = SentenceEncoder(sentences.model(), sentences.tokenizer(), dense=layers)
    vectors = sentences.encoder().encode(FEW)
    for layer in layers:
        vectors = np.asarray(layer(jnp.asarray(vectors)))
    np.testing.assert_allclose(ours.encode(FEW), vectors, atol=EMBEDDING, rtol=0)
    assert ours.get_sentence_embedding_dimension() == 5


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype, tmp_path):
    sentences.encoder().save_pretrained(tmp_path / "ours")
    half = SentenceEncoder.from_pretrained(tmp_path / "ours", dtype=dtype, param_dtype=dtype)
    vectors = half.encode(FEW, normalize_embeddings=True)
    assert vectors.dtype == np.float32
    expected = sentences.encoder().encode(FEW, normalize_embeddings=True)
    assert (vectors * expected).sum(-1).min() > 0.99


def refused(message, *arguments, **options):
    with pytest.raises(InputError, match=message):
        SentenceEncoder(*(arguments or (sentences.model(), sentences.tokenizer())), **options)


def test_refused_parts():
    model, tokenizer = sentences.model(), sentences.tokenizer()
    refused("model: expected a bare model", sentences.model("BertForMaskedLM"), tokenizer)
    refused("model: expected evaluation mode", sentences.model().train(), tokenizer)
    refused("tokenizer: expected a fast tokenizer", model, object(), max_seq_length=9)
    refused("pooling: expected one or more of cls, max", pooling="first")
    refused("pooling: expected one or more of cls, max", pooling=[])
    refused("layers: expected one of last", layers="first")
    refused("Dense: expected in_features=24, found 7", dense=sentences.dense(7, 3))
    refused("max_seq_length: expected at most 40", max_seq_length=41)
    refused("max_seq_length: expected a whole number of at least 1, found 0", max_seq_length=0)
    refused(
        "default_prompt_name: expected one of query, document; found 'x'", default_prompt_name="x"
    )
    refused("prompts: expected name → text, found {'x': 3}", prompts={"x": 3})
    refused("similarity_fn_name: expected one of cosine", similarity_fn_name="maxsim")
    refused("truncate_dim: expected a whole number of at least 1", truncate_dim=0)
    refused("prompt: no such argument; settings are max_seq_length", prompt="x")


def test_search(encoder):
    corpus = encoder.encode(FEW)
    hits = encoder.semantic_search(encoder.encode(FEW[2:4]), corpus, top_k=2)
    assert [one[0]["corpus_id"] for one in hits] == [2, 3]
    assert all(abs(one[0]["score"] - 1) < EMBEDDING for one in hits)
    assert encoder.semantic_search(corpus[0], corpus[:0]) == [[]]
    with pytest.raises(InputError, match="top_k: expected a whole number of at least 1"):
        encoder.semantic_search(corpus, corpus, top_k=0)
    with pytest.raises(InputError, match="embeddings: 24 numbers each, but the others have 5"):
        encoder.similarity(corpus, corpus[:, :5])
    with pytest.raises(InputError, match="embeddings: expected pairs"):
        encoder.similarity_pairwise(corpus, corpus[:2])


def test_progress_is_shown_on_stderr(encoder, capsys):
    encoder.encode(FEW, show_progress=True)
    captured = capsys.readouterr()
    assert not captured.out
    assert f"{len(FEW)}/{len(FEW)}" in captured.err


def test_public():
    assert minibert.SentenceEncoder is SentenceEncoder
    assert set(itertools.chain(minibert.__all__)) >= {"SentenceEncoder", "compiled"}
