"""Arguments of sentence-transformers' encoder: the same behaviour, or an error with the reason."""

import inspect
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

import sentences
from checkout import PYTHONPATH
from conftest import NEIGHBOURS
from minibert.embedding import encoding
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
        ({"batch_size": 0}, "batch_size: expected a whole number of at least 1, found 0"),
        ({"batch_size": "8"}, "batch_size: expected a whole number of at least 1, found '8'"),
        ({"inputs": ["of"]}, "sentences: an alias of inputs; expected only one of them"),
        (
            {"sentences": [("a", "b")]},
            "sentence 0: expected a text, .*; a pair has no vector: join",
        ),
        ({"sentences": [["a", "b"]]}, "sentence 0: expected a text, .*; a pair has no vector"),
        ({"prompt_name": 32}, "prompt_name: expected one of query, document; found 32"),
        ({"ranges": np.zeros((2, 24))}, "ranges: expected None unless precision is 'int8' or"),
        (
            {"ranges": np.zeros((2, 23)), "precision": "int8"},
            r"ranges: expected shape \(2, 24\), found \(2, 23\)",
        ),
        ({"device": "cuda"}, "device: expected a device of JAX or its name, .*; found 'cuda'"),
        ({"device": "cpu:64"}, "device: expected a device of JAX or its name, .* found 'cpu:64'"),
        ({"device": "cpu:-1"}, "device: expected .*; found 'cpu:-1'"),
        ({"device": ["cpu", "cpu"]}, "device: expected a device of JAX or its name"),
        ({"pool": None}, "pool: not an argument of encode"),
        ({"chunk_size": 5}, "chunk_size: .*token_budget"),
        ({"normalise": True}, "normalise: not an argument of encode"),
        ({"truncate_dim": 25}, "truncate_dim: expected a whole number from 1 to 24, found 25"),
        ({"truncate_dim": True}, "truncate_dim: .*found True"),
        ({"normalize_embeddings": True, "output_value": "token_embeddings"}, "normalize_embedd"),
        ({"normalize_embeddings": True, "output_value": None}, "normalize_embeddings: .*None"),
        ({"sentences": np.array("x")}, "inputs: expected a text or texts"),
        ({"sentences": 5}, "inputs: expected a text or texts, found 5"),
    ],
)
def test_what_encode_refuses(options, message, encoder):
    with pytest.raises(InputError, match=message):
        encoder.encode(**{"sentences": ["the"], **options})


def test_texts_under_both_names(encoder):
    expected = encoder.encode(["the", "of and"])
    for name in ("inputs", "sentences"):
        np.testing.assert_array_equal(encoder.encode(**{name: ["the", "of and"]}), expected)
        np.testing.assert_array_equal(encoder.encode_query(**{name: ["the", "of and"]}), expected)
    for call in (encoder.encode, encoder.encode_document):
        with pytest.raises(InputError, match="inputs: expected a text or texts, found None"):
            call()


@pytest.mark.slow
def test_the_order_of_arguments_is_that_of_sentence_transformers():
    theirs = pytest.importorskip("sentence_transformers").SentenceTransformer.encode
    names = [name for name in inspect.signature(theirs).parameters if name != "self"]
    ours = [
        name
        for name, one in inspect.signature(SentenceEncoder.encode).parameters.items()
        if one.kind is one.POSITIONAL_OR_KEYWORD and name != "self"
    ]
    assert len(ours) == 12
    assert names[: len(ours)] == ours


def test_arguments_by_position(capsys):
    made = sentences.encoder(prompts={"query": "the ", "mine": "of "})
    texts = ["a", "to be"]
    by_name = {"prompt_name": "mine", "batch_size": 1, "precision": "ubinary"}
    expected = made.encode(texts, **by_name)
    given = ("mine", None, 1, True, "sentence_embedding", "ubinary", True, False, None, False, None)
    for call in (made.encode, made.encode_query, made.encode_document):
        np.testing.assert_array_equal(call(texts, *given), expected)
    assert "2/2" in capsys.readouterr().err
    query = made.encode(texts, prompt_name="query")
    np.testing.assert_array_equal(made.encode_query(texts), query)
    np.testing.assert_array_equal(made.encode_query(texts, None), query)
    np.testing.assert_array_equal(made.encode_query(texts, None, None, 8), query)
    np.testing.assert_array_equal(made.encode_query(texts, None, "of "), made.encode(texts, "mine"))
    np.testing.assert_array_equal(
        made.encode_query(texts, prompt="of "), made.encode(texts, "mine")
    )


@pytest.mark.parametrize("packing", [None, 16])
def test_rows_of_a_batch(encoder, packing, monkeypatch):
    texts = sentences.texts(30, 10)
    expected, rows = encoder.encode(texts), []
    dispatch = encoding.Run._dispatch
    monkeypatch.setattr(
        encoding.Run,
        "_dispatch",
        lambda run, batch, ids: rows.append(batch.rows) or dispatch(run, batch, ids),
    )
    found = encoder.encode(texts, batch_size=2, packing=packing)
    assert max(rows) == 2
    np.testing.assert_allclose(found, expected, rtol=0, atol=NEIGHBOURS)


def test_the_encoder_is_moved_to_a_device():
    made, device = sentences.encoder(), jax.devices()[0]
    expected, before = made.encode("the"), made.model
    for given in (device, "cpu", "cpu:0"):
        found = made.encode("the", device=given)
        np.testing.assert_allclose(found, expected, rtol=0, atol=NEIGHBOURS)
        moved = made.model
        assert all(leaf.committed for leaf in jax.tree.leaves(moved))
        np.testing.assert_array_equal(made.encode_query("the", device=given), found)
        assert made.model is moved  # it is there already
    assert before is not moved


@pytest.mark.slow
def test_the_encoder_is_moved_to_another_device():
    code = (
        "import jax, sentences; made = sentences.encoder(); expected = made.encode('the')\n"
        "for device in ('cpu:1', jax.devices()[0], jax.devices()[1]):\n"
        "    found = made.encode('the', device=device, convert_to_tensor=True)\n"
        "    (leaf, *_) = jax.tree.leaves(made.model)\n"
        "    print((found == expected).all(), found.device.id, leaf.device.id)"
    )
    env = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "PYTHONPATH": PYTHONPATH}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env=os.environ | env, stdout=subprocess.PIPE, text=True, check=True
    )
    assert done.stdout.splitlines() == ["True 1 1", "True 0 0", "True 1 1"]


def test_no_precision_is_float32(encoder):
    np.testing.assert_array_equal(encoder.encode("the", precision=None), encoder.encode("the"))


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_given_ranges(encoder, precision):
    texts = ["the", "of and", "to be or not"]
    vectors = encoder.encode(texts)
    ranges = np.stack([vectors.min(axis=0), vectors.max(axis=0)])
    found = encoder.encode(texts, precision=precision, ranges=ranges)
    np.testing.assert_array_equal(found, encoder.encode(texts, precision=precision))
    one = encoder.encode_query("of and", precision=precision, ranges=ranges)
    assert one.shape == (24,)
    assert np.abs(one.astype(int) - found[1]).max() <= 1  # vectors differ in their last digits
    tokens = {"output_value": "token_embeddings", "precision": precision, "ranges": ranges}
    assert [one.dtype for one in encoder.encode(texts, **tokens)] == [precision] * 3


def test_settings_that_can_be_assigned():
    made = sentences.encoder(prompts={"mine": "of "})
    whole = made.encode("the")
    made.truncate_dim = 5
    np.testing.assert_array_equal(made.encode("the"), whole[:5])
    assert made.get_sentence_embedding_dimension() == made.truncate_dim == 5
    made.truncate_dim = None
    np.testing.assert_array_equal(made.encode("the"), whole)
    made.similarity_fn_name = "dot"
    assert made.similarity(whole, whole) == pytest.approx(whole @ whole, rel=1e-5)
    made.similarity_fn_name = None
    assert made.similarity_fn_name == "cosine"
    made.default_prompt_name = "mine"
    np.testing.assert_array_equal(made.encode("the"), made.encode("the", prompt="of "))
    assert made.settings.default_prompt_name == made.default_prompt_name == "mine"
    wrong = {
        "truncate_dim": (25, "truncate_dim: expected at most 24, the vectors' width; found 25"),
        "similarity_fn_name": ("near", "similarity_fn_name: expected one of .*, found 'near'"),
        "default_prompt_name": ("other", "default_prompt_name: expected one of .*; found 'other'"),
        "prompts": ({"query": 5}, "prompts: expected name → text"),
        "max_seq_length": (41, "max_seq_length: expected at most 40"),
    }
    before = made.settings
    for name, (value, message) in wrong.items():
        with pytest.raises(InputError, match=message):
            setattr(made, name, value)
        assert made.settings == before


def test_the_prompts_tokens_can_be_left_out():
    made, expected = sentences.encoder(), sentences.encoder(include_prompt=False)
    made.set_pooling_include_prompt(False)
    whole = made.encode("the", prompt="of and to ")
    np.testing.assert_array_equal(whole, expected.encode("the", prompt="of and to "))
    made.set_pooling_include_prompt(True)
    assert np.abs(made.encode("the", prompt="of and to ") - whole).max() > 0.01
    assert made.get_embedding_dimension() == made.get_sentence_embedding_dimension() == 24
    with pytest.raises(InputError, match="include_prompt: expected True or False, found 0"):
        made.set_pooling_include_prompt(0)


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
