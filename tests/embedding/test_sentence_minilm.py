"""The trained all-MiniLM-L6-v2 has sentence-transformers' embeddings for any text and batch."""

import numpy as np
import pytest

import sentences
from conftest import EMBEDDING, NEIGHBOURS
from minibert.embedding.encoder import SentenceEncoder

ODD = [
    "",
    " \n\t ",
    "🎉🔥 emoji 👩‍👩‍👧‍👦 of several parts",
    "שלום עולם, זה טקסט מימין לשמאל",
    "النص العربي من اليمين إلى اليسار",
    "漢字とひらがな、カタカナ",
    "e\u0301 and é, ﬁ and fi, \u200b zero width \ufeff",
    "[CLS] [SEP] [MASK] ##ing",
    "a" * 5000,
    "the quick brown fox " * 2500,
]


@pytest.fixture(scope="module")
def encoder(minilm):
    return SentenceEncoder.from_pretrained(minilm)


def test_its_folder(encoder):
    assert encoder.max_seq_length == 256
    assert encoder.get_sentence_embedding_dimension() == 384
    assert [repr(module) for module in encoder.model.chain] == ["Pooling(mean)", "Normalize()"]


@pytest.mark.slow
def test_five_hundred_texts(encoder, minilm):
    """Texts of 1 to 600 words, short ones more frequent, and odd ones."""
    reference = pytest.importorskip("sentence_transformers", reason="it is the reference")
    texts = [*ODD, *sentences.texts(490 - 1, 600), " ".join(sentences.WORDS * 10)]
    theirs = reference.SentenceTransformer(minilm, device="cpu").encode(texts)
    ours = encoder.encode(texts)
    assert encoder.truncated > 10
    assert ours.shape == theirs.shape == (500, 384)
    np.testing.assert_allclose(ours, theirs, atol=EMBEDDING, rtol=0)


@pytest.mark.slow
def test_alone_and_together(encoder):
    """300 texts, each alone and all in one call."""
    texts = [*ODD[:8], *sentences.texts(292, 60)]
    together = encoder.encode(texts)
    alone = np.stack([encoder.encode(text) for text in texts])
    np.testing.assert_allclose(alone, together, atol=NEIGHBOURS, rtol=0)


def test_bfloat16_says_the_same(encoder, minilm):
    """README's figure: half the memory, vectors of the same direction."""
    texts = [*ODD[:8], *sentences.texts(24, 200)]
    narrow = SentenceEncoder.from_pretrained(minilm, dtype="bfloat16", param_dtype="bfloat16")
    wide, short = encoder.encode(texts), narrow.encode(texts)
    cosines = (wide * short).sum(axis=1) / np.linalg.norm(short, axis=1)  # whose length is rounded
    assert cosines.min() > 0.9998


def test_meaning(encoder):
    """A question is nearest to the answer."""
    answers = ["It is in Paris.", "Dough needs an hour to rise.", "The dog is asleep."]
    hits = encoder.semantic_search(
        encoder.encode_query(["How long does bread take?", "Where is the Eiffel Tower?"]),
        encoder.encode_document(answers),
        top_k=1,
    )
    assert [one[0]["corpus_id"] for one in hits] == [1, 0]
