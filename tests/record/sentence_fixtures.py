"""Records a tiny sentence encoder as sentence-transformers saves it, and what it computes.

Run from the repository's root, with sentence-transformers 6.2 installed:

    PYTHONPATH=.:tests:tests/support python tests/record/sentence_fixtures.py

Writes `tests/fixtures/sentence`: the folder as `save` left it (a Pooling of two modes that leaves
prompts out, a Dense, a Normalize, prompts), and `outputs.safetensors`.
"""

import shutil
import tempfile

import numpy as np
from safetensors.numpy import save_file
from sentence_transformers import SentenceTransformer

import sentences


def main() -> None:
    """Makes the encoder, lets sentence-transformers load and save it, and runs it there."""
    encoder = sentences.encoder(
        pooling=("cls", "mean"),
        include_prompt=False,
        dense=sentences.dense(48, 7),
        normalize=True,
        prompts={"query": "find: ", "document": "it is "},
        default_prompt_name="document",
        max_seq_length=21,
    )
    shutil.rmtree(sentences.FIXTURE, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        encoder.save_pretrained(folder)
        model = SentenceTransformer(folder, device="cpu")
        model.save(str(sentences.FIXTURE), create_model_card=False)
    model = SentenceTransformer(str(sentences.FIXTURE), device="cpu")
    texts = sentences.FEW
    vectors = model.encode(texts)
    outputs = {
        "encode": vectors,
        "encode_query": model.encode_query(texts),
        "encode_document": model.encode_document(texts),
        "truncated": model.encode(texts, truncate_dim=4, normalize_embeddings=True),
        "binary": model.encode(texts, precision="binary"),
        "similarity": model.similarity(vectors, vectors[:2]).numpy(),
    }
    # safetensors writes an array that is not contiguous in the wrong order, silently
    arrays = {name: np.ascontiguousarray(array) for name, array in outputs.items()}
    save_file(arrays, sentences.FIXTURE / "outputs.safetensors")


if __name__ == "__main__":
    main()
