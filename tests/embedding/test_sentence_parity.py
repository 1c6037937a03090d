"""Sentence encoders compared with sentence-transformers on tiny models, in both directions."""

import itertools
import json

import numpy as np
import pytest

pytest.importorskip("sentence_transformers", reason="the reference is sentence-transformers")

import sentence_transformers.util
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling

import oracle  # noqa: F401  # silences transformers
import sentences
from conftest import EMBEDDING
from minibert.embedding.encoder import SentenceEncoder
from minibert.embedding.similarity import SIMILARITIES, semantic_search
from minibert.errors import InputError
from minibert.nn.pooling import POOLINGS

FAMILIES = ("BertModel", "GPT2Model")
TEXTS = sentences.FEW[1:]  # GPT-2's tokenizer makes nothing of an empty text
# The modes one by one are in test_pooling.py.
COMBINED = [
    ("BertModel", ("mean",)),
    ("BertModel", ("cls",)),
    ("BertModel", tuple(POOLINGS)),
    ("BertModel", ("lasttoken", "cls")),  # an order that only the newer schema has
    ("GPT2Model", ("lasttoken",)),
    ("GPT2Model", ("max", "weightedmean")),
]


def reference(folder: object, **options: object) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu", **options)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Returns an encoder of ours, and the same one in sentence-transformers."""
    folder = tmp_path_factory.mktemp("pair")
    ours = sentences.encoder()
    ours.save_pretrained(folder / "ours")
    return ours, reference(folder / "ours")


def close(ours: object, theirs: object) -> None:
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    np.testing.assert_allclose(ours, theirs, atol=EMBEDDING, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "modes"), COMBINED)
def test_poolings_there_and_back(family, modes, tmp_path):
    ours = sentences.encoder(family, pooling=modes)
    vectors = ours.encode(TEXTS)
    ours.save_pretrained(tmp_path / "ours")
    theirs = reference(tmp_path / "ours")
    close(vectors, theirs.encode(TEXTS))
    theirs.save(str(tmp_path / "theirs"))
    newer = json.loads((tmp_path / "theirs" / "1_Pooling" / "config.json").read_text())
    assert "embedding_dimension" in newer
    close(SentenceEncoder.from_pretrained(tmp_path / "theirs").encode(TEXTS), vectors)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_on_the_left(family, tmp_path):
    """Beside sentence-transformers' vectors of each text alone: there padding moves positions."""
    ours = sentences.encoder(family, side="left", pooling=list(POOLINGS))
    ours.save_pretrained(tmp_path / "ours")
    theirs = reference(tmp_path / "ours")
    assert theirs.tokenizer.padding_side == "left"
    close(ours.encode(TEXTS), theirs.encode(TEXTS, batch_size=1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("activation", "bias"), [("Tanh", True), ("Identity", False), ("GELU", True)]
)
def test_dense_there_and_back(activation, bias, tmp_path):
    sentences.encoder(pooling=("cls", "max")).save_pretrained(tmp_path / "plain")
    plain = reference(tmp_path / "plain")
    dense = Dense(48, 10, bias, getattr(torch.nn, activation)())
    theirs = SentenceTransformer(modules=[plain[0], plain[1], dense, Normalize()], device="cpu")
    theirs.save(str(tmp_path / "theirs"))
    ours = SentenceEncoder.from_pretrained(tmp_path / "theirs")
    vectors = ours.encode(TEXTS)
    close(vectors, theirs.encode(TEXTS))
    assert ours.get_sentence_embedding_dimension() == 10
    ours.save_pretrained(tmp_path / "ours")
    close(reference(tmp_path / "ours").encode(TEXTS), vectors)


@pytest.mark.slow
def test_modules_in_any_order_theirs_can_have(tmp_path):
    sentences.encoder().save_pretrained(tmp_path / "plain")
    plain = reference(tmp_path / "plain")
    modules = [plain[0], Pooling(24, "mean"), Normalize(), Dense(24, 9), Dense(9, 5)]
    theirs = SentenceTransformer(modules=modules, device="cpu")
    theirs.save(str(tmp_path / "theirs"))
    ours = SentenceEncoder.from_pretrained(tmp_path / "theirs")
    close(ours.encode(TEXTS), theirs.encode(TEXTS))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "include"), [("BertModel", True), ("BertModel", False), ("GPT2Model", False)]
)
def test_prompts(family, include, tmp_path):
    ours = sentences.encoder(
        family,
        pooling=list(POOLINGS),
        include_prompt=include,
        prompts={"query": "find this: ", "document": "it is: ", "other": "they said "},
        default_prompt_name="other",
    )
    ours.save_pretrained(tmp_path / "ours")
    theirs = reference(tmp_path / "ours")
    assert theirs[1].include_prompt is include
    close(ours.encode(TEXTS), theirs.encode(TEXTS))
    close(ours.encode_query(TEXTS), theirs.encode_query(TEXTS))
    close(ours.encode_document(TEXTS), theirs.encode_document(TEXTS))
    close(ours.encode(TEXTS, prompt_name="query"), theirs.encode(TEXTS, prompt_name="query"))
    close(ours.encode(TEXTS, prompt="this "), theirs.encode(TEXTS, prompt="this "))
    close(ours.encode(TEXTS, prompt=""), theirs.encode(TEXTS, prompt=""))
    close(ours.encode_query("the"), theirs.encode_query("the"))


def test_encode_query_without_a_prompt_of_that_name_has_none(tmp_path):
    ours = sentences.encoder(prompts={"passage": "it is "}, default_prompt_name="passage")
    ours.save_pretrained(tmp_path / "ours")
    theirs = reference(tmp_path / "ours")
    for name in ("encode", "encode_query", "encode_document"):
        close(getattr(ours, name)(TEXTS), getattr(theirs, name)(TEXTS))


SAID = {"document": "it is ", "passage": "they said ", "corpus": "all of ", "query": "find "}


@pytest.mark.parametrize(
    "names",
    [
        (),
        ("query",),
        ("corpus",),
        ("corpus", "passage"),
        ("corpus", "passage", "document"),
        ("query", "passage"),
    ],
)
def test_which_prompt_queries_and_documents_have(names, pair):
    """Of those that are set, in sentence-transformers' order; passed, some are always there."""
    plain, reference = pair
    texts = TEXTS[:1]
    for default in (None, *names[:1]):
        given = {"prompts": {name: SAID[name] for name in names}, "default_prompt_name": default}
        ours = SentenceEncoder(plain.model.transformer, plain.tokenizer, **given)
        theirs = SentenceTransformer(modules=list(reference), device="cpu", **given)
        assert ours.prompts == theirs.prompts
        for assigned in (False, True):
            if assigned:
                ours.prompts = theirs.prompts = given["prompts"]
            for method in ("encode", "encode_query", "encode_document"):
                close(getattr(ours, method)(texts), getattr(theirs, method)(texts))
            close(ours.encode_document(texts, prompt=""), theirs.encode_document(texts, prompt=""))
    with pytest.raises(InputError, match=r"prompt_name: expected one of .* found 'passages'"):
        ours.encode_document(texts, prompt_name="passages")


def test_prompts_in_place_of_a_folders(tmp_path):
    plain = sentences.encoder(prompts={"query": "find ", "other": "they said "})
    plain.save_pretrained(tmp_path / "ours")
    for prompts in ({"query": None}, {"query": ""}, {"other": "it is "}, {"new": None}):
        ours = SentenceEncoder.from_pretrained(tmp_path / "ours", prompts=prompts)
        assert ours.prompts == reference(tmp_path / "ours", prompts=prompts).prompts


@pytest.mark.parametrize("precision", ["float32", "int8", "uint8", "binary", "ubinary"])
@pytest.mark.parametrize(("truncate_dim", "normalize"), [(None, False), (13, True)])
def test_precisions(pair, precision, truncate_dim, normalize):
    options = {
        "precision": precision,
        "truncate_dim": truncate_dim,
        "normalize_embeddings": normalize,
    }
    texts = sentences.texts(120, 30)
    found, expected = (one.encode(texts, **options) for one in pair)
    if precision == "float32":
        close(found, expected)
        return
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    apart = found.astype(int) - expected.astype(int)
    if "int8" in precision:  # where float32's noise crosses a step's edge, by that one step
        assert np.abs(apart).max() <= 1
    assert (apart != 0).mean() < 1e-3


def test_truncate_dim_of_the_folder(tmp_path):
    ours = sentences.encoder(truncate_dim=7, normalize=True)
    ours.save_pretrained(tmp_path / "ours")
    theirs = reference(tmp_path / "ours")
    assert ours.get_sentence_embedding_dimension() == theirs.get_embedding_dimension() == 7
    close(ours.encode(TEXTS), theirs.encode(TEXTS))
    again = SentenceEncoder.from_pretrained(tmp_path / "ours")
    close(again.encode(TEXTS, truncate_dim=9), theirs.encode(TEXTS, truncate_dim=9))


@pytest.mark.parametrize("prompt", [None, "they said "])
def test_other_outputs(prompt, pair):
    ours, theirs = pair
    options = {"prompt": prompt, "truncate_dim": 5}
    tokens = theirs.encode(TEXTS, output_value="token_embeddings", **options)
    for ours_one, theirs_one in zip(
        ours.encode(TEXTS, output_value="token_embeddings", **options), tokens, strict=True
    ):
        close(ours_one, theirs_one)
    found = ours.encode(TEXTS[1], output_value=None, **options)
    expected = theirs.encode(TEXTS[1], output_value=None, **options)
    assert found.keys() == expected.keys() - {"modality"}
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], atol=EMBEDDING, rtol=0)
    several = ours.encode(TEXTS, output_value=None, **options)
    assert [len(one["input_ids"]) for one in several] == [len(one) for one in tokens]


def test_precisions_of_tokens(pair):
    ours, theirs = pair
    options = {"output_value": "token_embeddings", "precision": "uint8"}
    expected = theirs.encode(TEXTS, **options)
    for found, one in zip(ours.encode(TEXTS, **options), expected, strict=True):
        assert np.abs(found.astype(int) - np.asarray(one, int)).max() <= 1


@pytest.mark.parametrize("name", SIMILARITIES)
def test_similarities(name, tmp_path):
    ours = sentences.encoder(similarity_fn_name=name)
    ours.save_pretrained(tmp_path / "ours")
    theirs = reference(tmp_path / "ours")
    assert theirs.similarity_fn_name == name
    draw = np.random.default_rng(0)
    one, other = draw.standard_normal((2, 40, 24)).astype(np.float32)
    np.testing.assert_allclose(
        ours.similarity(one, other[:30]), theirs.similarity(one, other[:30]), atol=EMBEDDING
    )
    np.testing.assert_allclose(
        ours.similarity_pairwise(one, other), theirs.similarity_pairwise(one, other), atol=EMBEDDING
    )
    np.testing.assert_allclose(
        ours.similarity(one[0], other), theirs.similarity(one[0], other), atol=EMBEDDING
    )


@pytest.mark.parametrize("chunk", [7, 500_000])
@pytest.mark.parametrize("top_k", [1, 5, 100])
def test_search(chunk, top_k):
    draw = np.random.default_rng(0)
    queries, corpus = (draw.standard_normal((n, 12)).astype(np.float32) for n in (9, 50))
    found = semantic_search(
        queries, corpus, top_k=top_k, query_chunk_size=4, corpus_chunk_size=chunk
    )
    expected = sentence_transformers.util.semantic_search(
        torch.tensor(queries), torch.tensor(corpus), top_k=top_k
    )
    assert len(found) == len(expected)
    for ours, theirs in zip(itertools.chain(*found), itertools.chain(*expected), strict=True):
        assert ours["corpus_id"] == theirs["corpus_id"]
        assert abs(ours["score"] - theirs["score"]) <= EMBEDDING


@pytest.mark.slow
@pytest.mark.parametrize("length", [None, 6])
def test_the_length_at_which_texts_are_cut(length, tmp_path):
    """In the tokenizer's file, as newer folders have it, or in the transformer's, as older ones."""
    ours = sentences.encoder(max_seq_length=11)
    ours.save_pretrained(tmp_path / "ours")
    theirs = reference(tmp_path / "ours")
    assert theirs.max_seq_length == 11
    theirs.max_seq_length = 11 if length is None else length
    theirs.save(str(tmp_path / "theirs"))
    assert "max_seq_length" not in (tmp_path / "theirs" / "sentence_bert_config.json").read_text()
    again = SentenceEncoder.from_pretrained(tmp_path / "theirs")
    assert again.max_seq_length == theirs.max_seq_length
    long = [*TEXTS, "the of and " * 30]
    close(again.encode(long), theirs.encode(long))
    ids = [len(ids) for ids in sentences.tokenizer()(long)["input_ids"]]
    assert again.truncated == sum(size > again.max_seq_length for size in ids) > 0
    again.encode("the")
    assert again.truncated == 0


def test_lower_case(tmp_path):
    """A tokenizer that keeps case, in a folder whose settings request lower case."""
    cased = sentences.tokenizer("gpt2")
    ours = SentenceEncoder(sentences.model("GPT2Model"), cased, do_lower_case=True)
    ours.save_pretrained(tmp_path / "ours")
    again = SentenceEncoder.from_pretrained(tmp_path / "ours")
    texts = ["THE OF and", "It Is", "the of and"]
    close(again.encode(texts), reference(tmp_path / "ours").encode(texts))
    assert (again.encode(texts)[0] == again.encode(texts)[2]).all()
    kept = SentenceEncoder(sentences.model("GPT2Model"), cased)
    assert not (kept.encode(texts)[0] == kept.encode(texts)[2]).all()


def test_a_plain_folder(tmp_path):
    """A folder without modules.json, for which sentence-transformers uses mean pooling."""
    sentences.model().save_pretrained(tmp_path / "plain")
    sentences.tokenizer().save_pretrained(tmp_path / "plain")
    with pytest.raises(InputError, match="pooling='mean' is the default of sentence-transformers"):
        SentenceEncoder.from_pretrained(tmp_path / "plain")
    ours = SentenceEncoder.from_pretrained(tmp_path / "plain", pooling="mean")
    close(ours.encode(TEXTS), reference(tmp_path / "plain").encode(TEXTS))


@pytest.mark.slow
@pytest.mark.parametrize("pooling", [True, False], ids=["a pooler", "none"])
def test_a_head_is_left(pooling, tmp_path):
    """The trunk of a masked language model is what both take."""
    import minibert

    name = "BertForPreTraining" if pooling else "BertForMaskedLM"
    full = sentences.model(name)
    assert not getattr(full, "is_trunk", False)
    sentences.encoder().save_pretrained(tmp_path / "ours")
    full.save_pretrained(tmp_path / "full")
    for file in ("config.json", "model.safetensors"):
        (tmp_path / "full" / file).replace(tmp_path / "ours" / file)
    ours = SentenceEncoder.from_pretrained(tmp_path / "ours")
    assert isinstance(ours.model.transformer, minibert.BertModel)
    close(ours.encode(TEXTS), reference(tmp_path / "ours").encode(TEXTS))
