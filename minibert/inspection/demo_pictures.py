"""The figures of `minibert demo`."""

from typing import Any

import jax
import numpy as np
from transformers import AutoTokenizer

import minibert
from minibert import assets, plots
from minibert.models.base import PretrainedModel


def pictures(
    report: dict[str, Any], bert: PretrainedModel, bound: float
) -> tuple[Any, Any, Any, Any]:
    """Returns matplotlib figures of parity, predicted words, attention and similarity.

    Args:
        report: the demo's report.
        bert: its BERT, on the CPU.
        bound: the maximum error of hidden states.
    """
    parity = plots.parity(report["parity"], bound)  # first: raises early without matplotlib
    tokenizer: Any = AutoTokenizer.from_pretrained(assets.BERT)
    ids = tokenizer(report["words"][0]["text"]).input_ids
    with jax.default_device("cpu"):
        outputs = minibert.compiled(bert)(np.array([ids]), output_attentions=True)
    alike = report["similarity"]
    sentences = [f"{text} {number}" for number, text in enumerate(alike["sentences"], start=1)]
    numbers = [str(number) for number in range(1, len(sentences) + 1)]
    return (
        parity,
        plots.words(report["words"], title="The most probable words for each [MASK]"),
        plots.attention_maps(
            outputs.attentions[-1][0],
            tokenizer.convert_ids_to_tokens(ids),
            title="BERT's last layer: attention of each head",
        ),
        plots.matrix(
            alike["cosines"],
            sentences,
            numbers,
            title="Similarity of sentences",
            label="cosine",
            row_name="sentence",
            column_name="sentence",
            numbers=True,
        ),
    )
