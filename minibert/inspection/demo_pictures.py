"""The pictures of `minibert demo`."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from transformers import AutoTokenizer

import minibert
from minibert import assets, plots


def draw(report: dict[str, Any], bert: Any, bound: float, paths: Sequence[str]) -> None:
    """Draws what a demo found.

    Args:
        report: the demo's.
        bert: its BERT, on the CPU.
        bound: of the hidden states' errors.
        paths: of the pictures: parity, words, attention, similarity.
    """
    for path, figure in zip(paths, pictures(report, bert, bound), strict=True):
        figure.savefig(path, dpi=120, bbox_inches="tight")


def pictures(report: dict[str, Any], bert: Any, bound: float) -> tuple[Any, Any, Any, Any]:
    """Parity, words, attention and similarity, as figures of matplotlib."""
    return (
        plots.parity(report["parity"], bound),
        plots.words(report["words"], title="The likeliest words behind each [MASK]"),
        attention(bert, report["words"][0]["text"]),
        similarity(report["similarity"]),
    )


def attention(bert: Any, text: str) -> Any:
    """What each head of the last layer looks at."""
    tokenizer: Any = AutoTokenizer.from_pretrained(assets.BERT)
    ids = tokenizer(text).input_ids
    with jax.default_device(jax.devices("cpu")[0]):
        outputs = minibert.compiled(bert)(np.array([ids]), output_attentions=True)
    heads = np.asarray(outputs.attentions[-1])[0]
    tokens = tokenizer.convert_ids_to_tokens(ids)
    return plots.attention_maps(heads, tokens, title="BERT's last layer: where each head looks")


def similarity(found: dict[str, Any]) -> Any:
    """How alike the sentences are."""
    sentences = [f"{text} {number}" for number, text in enumerate(found["sentences"], start=1)]
    return plots.matrix(
        np.array(found["cosines"]),
        sentences,
        [str(number) for number in range(1, len(sentences) + 1)],
        title="How alike sentences are",
        label="cosine",
        row_name="sentence",
        column_name="sentence",
        numbers=True,
    )
