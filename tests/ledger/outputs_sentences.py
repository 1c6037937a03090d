"""Vectors of texts: every option of `encode`, poolings and layers, searches, bytes, folders."""

import pathlib
from typing import Any

import numpy as np

from .models import drawn
from .outputs_models import written
from .outputs_texts import TEXT, small, tokenizer
from .surface import assets, minibert, pooling, quantization, similarity

TEXTS = [
    "The exception is raised again.",
    "Tuples are immutable sequences.",
    "",
    TEXT,
    "A break statement ends the loop.",
]
PROMPTS = {"query": "find: ", "passage": "text: "}


def encoder(**options: Any) -> Any:
    return minibert.SentenceEncoder.from_pretrained(assets.BERT, **options)


def encoding(folder: pathlib.Path) -> Any:
    run = encoder()
    kinds: dict[str, dict[str, Any]] = {
        "plain": {},
        "packed": {"packing": 64},
        "cut": {"truncate_dim": 10, "normalize_embeddings": True},
        "tokens": {"output_value": "token_embeddings"},
        "everything": {"output_value": None},
        "budget": {"token_budget": 32},
        "prompt": {"prompt": "The "},
        **{name: {"precision": name} for name in quantization.PRECISIONS},
    }
    found = {name: run.encode(TEXTS, **options) for name, options in kinds.items()}
    found |= {"one": run.encode(TEXT), "jax": run.encode(TEXTS[:1], convert_to_tensor=True)}
    found |= {"tokenized": run.tokenize(TEXTS), "text": repr(run).splitlines()}
    found |= {"settings": repr(run.settings), "width": run.get_sentence_embedding_dimension()}
    run.max_seq_length = 5
    return found | {"short": run.encode(TEXTS), "truncated": run.truncated}


def prompts(folder: pathlib.Path) -> Any:
    run = encoder(prompts=PROMPTS, default_prompt_name="passage")
    found = {"default": run.encode(TEXTS), "query": run.encode_query(TEXTS)}
    found |= {"named": run.encode(TEXTS, prompt_name="query")}
    run.prompts = PROMPTS
    found |= {"document": run.encode_document(TEXTS), "prompts": dict(run.prompts)}
    left = minibert.SentenceEncoder(
        small("BertModel"), tokenizer(), include_prompt=False, prompts=PROMPTS
    )
    return found | {"left out": left.encode_query(TEXTS)}


def kinds(folder: pathlib.Path) -> Any:
    """All poolings, all layers, both families."""
    model, words = small("BertModel", num_hidden_layers=4), tokenizer()
    every = {"pooling": list(pooling.POOLINGS), "normalize": True, "do_lower_case": True}
    found: dict[str, Any] = {}
    found["poolings"] = minibert.SentenceEncoder(model, words, **every).encode(TEXTS)
    for name in pooling.LAYERS:
        found[name] = minibert.SentenceEncoder(model, words, layers=name).encode(TEXTS)
    other = minibert.SentenceEncoder(
        small("GPT2Model"), tokenizer(assets.GPT2), pooling="lasttoken"
    )
    whole = TEXTS[:2] + TEXTS[3:]
    return found | {"gpt2": other.encode(whole), "packed": other.encode(whole, packing=48)}


def likeness(folder: pathlib.Path) -> Any:
    run = encoder()
    vectors = run.encode(TEXTS)
    found: dict[str, Any] = {"name": run.similarity_fn_name}
    for name in similarity.SIMILARITIES:
        run = encoder(similarity_fn_name=name)
        found[name] = {
            "all": run.similarity(vectors, vectors[:2]),
            "wide": run.similarity(vectors.astype(np.float64), vectors),
            "pairs": run.similarity_pairwise(vectors[:2], vectors[1:3]),
            "found": run.semantic_search(vectors[:2], vectors, top_k=3, corpus_chunk_size=2),
        }
    return found


def bytes_(folder: pathlib.Path) -> Any:
    vectors = np.random.default_rng(0).standard_normal((6, 16)).astype(np.float32)
    ranges = np.stack([np.full(16, -2.0), np.full(16, 2.5)])
    quantize = quantization.quantize_embeddings
    found = {name: quantize(vectors, name) for name in quantization.PRECISIONS}
    found["ranges"] = quantize(vectors[0], "uint8", ranges=ranges)
    found["calibrated"] = quantize(vectors[:1], "int8", calibration_embeddings=vectors)
    return found


def folders(folder: pathlib.Path) -> Any:
    """What is saved, but for the tokenizer's files, which are transformers'."""
    before = minibert.SentenceEncoder(
        drawn("BertModel", vocab_size=2048),
        tokenizer(),
        pooling=("cls", "mean"),
        normalize=True,
        prompts=PROMPTS,
        truncate_dim=12,
        similarity_fn_name="dot",
    )
    before.save_pretrained(folder / "encoder")
    after = minibert.SentenceEncoder.from_pretrained(folder / "encoder")
    files = written(folder / "encoder")
    ours = {name: files[name] for name in files if "token" not in name and name != "README.md"}
    return {"files": sorted(files), **ours, "vectors": after.encode(TEXTS)}


CASES = (encoding, prompts, kinds, likeness, bytes_, folders)
