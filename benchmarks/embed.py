"""Throughput of sentence embeddings, next to sentence-transformers and onnxruntime.

    python -m benchmarks.embed [--repeats 5] [--json PATH] [--check] [--size minilm] [--ragged]

all-MiniLM-L6-v2 in float32, on the default device, with 5,000 texts of natural lengths: words of
LICENSE, with a median of 40 tokens and a tail beyond the model's maximum length. minibert and
sentence-transformers run with default settings; their vectors are compared first. onnxruntime, if
installed, is measured with texts sorted by length, in padded batches of 32, as
sentence-transformers does it; and with minibert's batches, so that only the programs differ. The
contenders take turns, so that a busy machine slows all equally; ratios are computed for each turn.

--ragged adds two methods that matter on accelerators: texts that share rows, and batches of 64
texts in input order, padded to the longest.

The first call compiles a program for each length of batch; its time is not part of the rates and
has its own column.
"""

import functools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks import onnx, reporting
from benchmarks.contenders import installed, minilm
from benchmarks.forward import ceiling, products
from minibert.text.batching import Batch, default_budget, plan

SORTED, ONNX = "onnxruntime, sorted by length", "onnxruntime, minibert's batches"
# of rates, minibert's to theirs
MIN_RATIOS = {"sentence-transformers": 1.5, SORTED: 1.2, ONNX: 1.2}
TOLERANCE = 1e-5  # of vectors of length 1

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SIZES = {"tiny": 60, "small": 400, "minilm": 5000}  # number of texts; a tiny model, or MiniLM
MEDIAN, SPREAD, LONGEST = 31, 1.0, 400  # words of a text; 31 words are 40 tokens

ROWS = 64  # of a padded batch on an accelerator
TOGETHER = 32  # sentence-transformers' default batch size

PACKAGES = ("jax", "flax", "torch", "transformers", "sentence-transformers", "onnxruntime")
Encode = Callable[[Sequence[str]], np.ndarray]
_session = functools.cache(onnx.session)


def corpus(count: int) -> list[str]:
    """Returns texts of words of LICENSE, with the length distribution of natural texts."""
    with open(os.path.join(ROOT, "LICENSE"), encoding="utf-8") as file:
        words = file.read().split()
    draw = np.random.default_rng(0)
    sizes = np.exp(draw.normal(np.log(MEDIAN), SPREAD, count)).clip(1, LONGEST).astype(int)
    starts = draw.integers(0, len(words) - LONGEST, count)
    return [
        " ".join(words[start : start + size]) for start, size in zip(starts, sizes, strict=True)
    ]


def model_folder(folder: str, size: str) -> str:
    """Returns the folder of MiniLM, or of a tiny model created in `folder`."""
    if size != "tiny":
        return minilm()
    from flax import nnx
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    import minibert

    words = sorted({word for text in corpus(SIZES[size]) for word in text.split()})
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["[UNK]", *words])}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token="[UNK]", model_max_length=40
    )
    config = minibert.BertConfig.tiny(vocab_size=len(words) + 1)
    model = minibert.BertModel(config, rngs=nnx.Rngs(0)).eval()
    minibert.SentenceEncoder(model, tokenizer, normalize=True).save_pretrained(folder)
    return folder


def minibert_encode(folder: str) -> Encode:
    """Returns our `encode` with default settings."""
    import minibert

    return minibert.SentenceEncoder.from_pretrained(folder).encode


def packed_encode(folder: str) -> Encode:
    """Returns our `encode` with texts that share rows."""
    import minibert

    return packed(minibert.SentenceEncoder.from_pretrained(folder))


def packed(encoder: Any) -> Encode:
    """Returns an encoder's `encode` with rows of full width that texts share."""
    return lambda texts: encoder.encode(texts, packing=encoder.max_seq_length)


def padded_encode(folder: str) -> Encode:
    """Returns our `encode` with batches of 64 texts in order, padded to the longest."""
    import minibert

    return padded_as_they_come(minibert.SentenceEncoder.from_pretrained(folder))


def padded_as_they_come(encoder: Any) -> Encode:
    """Returns an encoder's `encode` with batches of 64 texts in order, padded to the longest."""
    budget = ROWS * encoder.max_seq_length

    def encode(texts: Sequence[str]) -> np.ndarray:
        starts = range(0, len(texts), ROWS)
        parts = [encoder.encode(texts[at : at + ROWS], token_budget=budget) for at in starts]
        return np.concatenate(parts)

    return encode


def sentence_transformers_encode(folder: str) -> Encode:
    """Returns sentence-transformers' `encode` with default settings."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(folder).encode


def by_length(lengths: Sequence[int], longest: int) -> list[Batch]:
    """Returns batches of texts of similar length, longest first, padded to the longest."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    parts = [order[start : start + TOGETHER] for start in range(0, len(order), TOGETHER)]
    return [Batch(part, len(part), lengths[part[0]]) for part in parts]


def in_our_batches(lengths: Sequence[int], longest: int) -> list[Batch]:
    """Returns the batches that minibert plans by default."""
    return plan(lengths, longest, default_budget())


def onnxruntime_encode(batches: Callable[[Sequence[int], int], list[Batch]], folder: str) -> Encode:
    """Returns an encoder with PyTorch's export in onnxruntime, mean pooling and normalisation."""
    import minibert
    from minibert.text.batching import padded
    from minibert.text.tokenizer import TokenReader

    encoder = minibert.SentenceEncoder.from_pretrained(folder)
    reader = TokenReader(encoder.tokenizer, encoder.max_seq_length)
    session = _session(folder)

    def encode(texts: Sequence[str]) -> np.ndarray:
        ids, _ = reader.ids(texts)
        ones = [np.ones_like(row) for row in ids]
        vectors = np.empty((len(texts), encoder.model.out_features), np.float32)
        for batch in batches([len(row) for row in ids], reader.longest):
            words = padded(ids, batch, reader.pad).astype(np.int64)
            mask = padded(ones, batch).astype(np.int64)
            (tokens,) = session.run(None, {"input_ids": words, "attention_mask": mask})
            summed = np.einsum("bs,bsh->bh", mask.astype(np.float32), tokens)
            lengths = np.linalg.norm(summed, axis=1, keepdims=True)
            rows = summed / np.maximum(lengths, 1e-12)  # normalisation cancels the count
            vectors[batch.indices] = rows[: len(batch.indices)]
        return vectors

    return encode


CONTENDERS: dict[str, Callable[[str], Encode]] = {
    "minibert": minibert_encode,
    "sentence-transformers": sentence_transformers_encode,
    SORTED: functools.partial(onnxruntime_encode, by_length),
    ONNX: functools.partial(onnxruntime_encode, in_our_batches),
}
RAGGED = {"minibert, shared rows": packed_encode, "minibert, padded": padded_encode}
OPTIONAL = dict.fromkeys((SORTED, ONNX), ("onnxruntime", "onnxscript"))


def operations(folder: str, texts: Sequence[str]) -> int:
    """Returns the FLOPs of matrix products in minibert's batches, padding included."""
    from transformers import AutoConfig

    import minibert
    from minibert.text.tokenizer import TokenReader

    encoder, config = (
        minibert.SentenceEncoder.from_pretrained(folder),
        AutoConfig.from_pretrained(folder),
    )
    reader = TokenReader(encoder.tokenizer, encoder.max_seq_length)
    lengths = [len(row) for row in reader.ids(texts)[0]]
    batches = in_our_batches(lengths, reader.longest)
    return sum(products(config, (batch.rows, batch.length)) for batch in batches)


def timed(encode: Encode, texts: Sequence[str]) -> tuple[float, np.ndarray]:
    """Returns the seconds of an encoding, and its vectors."""
    start = time.perf_counter()
    vectors = encode(texts)
    return time.perf_counter() - start, vectors


def compare(size: str, repeats: int, ragged: bool = False) -> dict[str, Any]:
    """Encodes the texts with all contenders in turn, `repeats` times."""
    reporting.device()
    texts, made = corpus(SIZES[size]), CONTENDERS | (RAGGED if ragged else {})
    measure, most = ceiling("float32"), 0.0
    with tempfile.TemporaryDirectory() as scratch:
        folder = model_folder(scratch, size)
        encoders, work = installed(made, OPTIONAL, folder), operations(folder, texts)
        first = {name: timed(encode, texts) for name, encode in encoders.items()}
        for name, (_, vectors) in first.items():
            apart = np.abs(vectors - first["minibert"][1]).max()
            if not apart <= TOLERANCE:
                sys.exit(f"{name}: its vectors differ from minibert's by {apart:.1e}")
        rounds = []
        for _ in range(repeats):
            rounds.append({name: timed(encode, texts)[0] for name, encode in encoders.items()})
            most = max(most, *(measure() for _ in range(5)))
    results = {
        name: {
            "first": first[name][0],
            "seconds": [each[name] for each in rounds],
            "rate": statistics.median(len(texts) / each[name] for each in rounds),
            "ratio": statistics.median(each[name] / each["minibert"] for each in rounds),
        }
        for name in encoders
    }
    return {
        "size": size,
        "texts": len(texts),
        "repeats": repeats,
        "results": results,
        "operations": work / min(results["minibert"]["seconds"]),  # per second
        "ceiling": most,
        **reporting.taken_on(*PACKAGES),
    }


def table(report: dict[str, Any]) -> Table:
    """Returns the report as a table."""
    title = f"{report['texts']:,} texts to vectors, {report['repeats']} times each"
    printed = reporting.table(report, title, "texts/s", "minibert is", "first call")
    printed.caption = (
        f"minibert: {report['operations'] / 1e9:,.0f} GFLOP/s of products, of "
        f"{report['ceiling'] / 1e9:,.0f} that the machine does alone; {printed.caption}"
    )
    for name, result in report["results"].items():
        ratio = "" if name == "minibert" else f"{result['ratio']:.2f} × as fast"
        printed.add_row(name, f"{result['rate']:.0f}", ratio, f"{result['first']:.1f} s")
    return printed


def faults(report: dict[str, Any]) -> list[str]:
    """Returns the bounds that the report breaks, a sentence each."""
    ratios = {name: result["ratio"] for name, result in report["results"].items()}
    missing = [f"rate: {name} was not measured" for name in MIN_RATIOS if name not in ratios]
    return missing + [
        f"rate: {ratios[name]:.2f} × that of {name}, under {least} ×"
        for name, least in MIN_RATIOS.items()
        if name in ratios and ratios[name] < least
    ]


def main() -> None:
    """Measures and prints; checks the bounds with --check."""
    parser = reporting.parser("embed", __doc__)
    parser.add_argument("--size", choices=SIZES, default="minilm", help="size of model and texts")
    parser.add_argument(
        "--repeats", type=reporting.positive, default=5, help="turns of each contender"
    )
    parser.add_argument("--ragged", action="store_true", help="add shared rows, padded batches")
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    report = compare(arguments.size, arguments.repeats, arguments.ragged)
    reporting.finish(report, table(report), arguments, faults)


if __name__ == "__main__":
    main()
