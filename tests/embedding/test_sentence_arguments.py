"""Arguments of sentence-transformers' encoder: the same behaviour, or an error with the reason."""

import json

import jax
import numpy as np
import pytest

import sentences
from minibert.embedding.encoder import SentenceEncoder
from minibert.embedding.similarity import semantic_search
from minibert.errors import InputError, UnsupportedConfigError

pytestmark = pytest.mark.unoptimised


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    return sentences.encoder()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 8}, "batch_size: not an argument of encode: .*token_budget"),
        ({"device": "cuda"}, "device: not an argument of encode: .*JAX's default device"),
        ({"pool": None}, "pool: not an argument of encode"),
        ({"chunk_size": 5}, "chunk_size: .*token_budget"),
        ({"normalise": True}, "normalise: not an argument of encode"),
        ({"truncate_dim": 25}, "truncate_dim: expected a whole number from 1 to 24, found 25"),
        ({"truncate_dim": True}, "truncate_dim: .*found True"),
        ({"normalize_embeddings": True, "output_value": "token_embeddings"}, "normalize_embedd"),
        ({"normalize_embeddings": True, "output_value": None}, "normalize_embeddings: .*None"),
        ({"sentences": np.array("x")}, "sentences: expected a text or texts"),
        ({"sentences": 5}, "sentences: expected a text or texts, found 5"),
    ],
)
def test_what_encode_refuses(options, message, encoder):
    with pytest.raises(InputError, match=message):
        encoder.encode(**{"sentences": ["the"], **options})


def test_truncate_dim_of_the_settings():
    with pytest.raises(InputError, match="truncate_dim: expected at most 24, the vectors' width"):
        sentences.encoder(truncate_dim=25)


@pytest.mark.parametrize("texts", ["the", ["the", "of and"]])
def test_what_vectors_are(texts, encoder):
    expected = encoder.encode(texts)
    assert isinstance(expected, np.ndarray)
    tensor = encoder.encode(texts, convert_to_tensor=True, convert_to_numpy=False)
    assert isinstance(tensor, jax.Array)
    listed = encoder.encode(texts, convert_to_numpy=False, show_progress_bar=False)
    assert isinstance(listed, jax.Array if isinstance(texts, str) else list)
    for found in (tensor, listed):
        np.testing.assert_array_equal(np.asarray(found), expected)


def test_progress_by_its_other_name(encoder, capsys):
    encoder.encode(["the"] * 3, show_progress_bar=True)
    assert "3/3" in capsys.readouterr().err


def test_numpys_whole_numbers(encoder):
    one = np.int64(3)
    vectors = encoder.encode(["the"] * 4, truncate_dim=one, token_budget=np.int32(64))
    assert vectors.shape == (4, 3)
    assert len(semantic_search(vectors, vectors, top_k=one, corpus_chunk_size=one)[0]) == 3
    assert sentences.encoder(max_seq_length=np.int64(7), truncate_dim=one).max_seq_length == 7


@pytest.mark.parametrize("kind", ["my_code.Pooling", "Pooling", "sentence_transformers_x.Pooling"])
def test_a_module_of_somebody_else(kind, encoder, tmp_path):
    encoder.save_pretrained(tmp_path / "encoder")
    path = tmp_path / "encoder" / "modules.json"
    data = json.loads(path.read_text())
    data[1]["type"] = "sentence_transformers.any.nesting.Pooling"
    path.write_text(json.dumps(data))
    SentenceEncoder.from_pretrained(tmp_path / "encoder")
    data[1]["type"] = kind
    path.write_text(json.dumps(data))
    with pytest.raises(UnsupportedConfigError, match=f"module 1: type: '{kind}' is not impl"):
        SentenceEncoder.from_pretrained(tmp_path / "encoder")


@pytest.mark.parametrize("chunk", [1, 3, 7, 50, 1 << 14])
@pytest.mark.parametrize("top_k", [1, 4, 60])
@pytest.mark.parametrize("name", ["cosine", "dot", "manhattan"])
def test_the_best_of_equals_is_the_first(name, top_k, chunk):
    """Chunked search returns the same as a stable sort of all scores."""
    draw = np.random.default_rng(0)
    corpus = draw.integers(0, 2, (50, 3)).astype(np.float32)
    queries = draw.integers(0, 2, (5, 3)).astype(np.float32)
    found = semantic_search(
        queries, corpus, top_k=top_k, score_function=name, corpus_chunk_size=chunk
    )
    from minibert.embedding.similarity import similarity

    for hits, scores in zip(found, similarity(queries, corpus, name), strict=True):
        expected = np.argsort(-scores, kind="stable")[:top_k].tolist()
        assert [hit["corpus_id"] for hit in hits] == expected
        np.testing.assert_allclose([hit["score"] for hit in hits], scores[expected])


def test_a_search_takes_little_memory():
    import tracemalloc

    corpus = np.ones((200_000, 8), np.float32)
    queries = np.ones((50, 8), np.float32)
    tracemalloc.start()
    try:
        semantic_search(queries, corpus, top_k=3)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20  # all scores are 40 MB


def test_a_prompt_of_none_is_empty():
    """Assigned too, and what is assigned is a copy."""
    made = sentences.encoder()
    given = {"query": None, "mine": "the "}
    made.prompts = given
    given["mine"] = "of "
    assert made.prompts == {"query": "", "mine": "the "}
    np.testing.assert_array_equal(made.encode_query("to"), made.encode("to"))
    np.testing.assert_array_equal(made.encode("to", prompt_name="mine"), made.encode("the to"))
