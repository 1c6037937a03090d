"""Ragged texts through a `SentenceEncoder` shaped as MiniLM, from strings to host vectors.

Texts are those of `benchmarks.embed`, weights are random. The methods are batches of texts of
similar length, the default; texts that share rows; batches of 64 texts in order, padded to the
longest; and sentence-transformers. Each is measured in turn with the first of its dtype.
"""

import contextlib
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks import embed
from benchmarks.contenders import PACKAGE
from benchmarks.gpu import models
from benchmarks.gpu.job import Job, SkippedError, cached_folder
from benchmarks.gpu.timing import BF16, Run, alternate

TEXTS, FEWER, TINY = 8192, 2048, 8
TIME = 60  # seconds that all texts need; with less time fewer texts are used
LONGEST = 256  # maximum tokens of a text, as in all-MiniLM-L6-v2
ROUNDS = 3
COSINE = {BF16: 0.99, "float32": 0.9999}  # minimum cosine of a text's two vectors


class Way(NamedTuple):
    """A method to compute vectors of texts."""

    kind: str
    dtype: str
    precision: str | None = None  # of float32 products in JAX


CELLS = {
    "bfloat16": Way("minibert", BF16),
    "bfloat16, rows shared": Way("packed", BF16),
    "bfloat16, padded as they come": Way("padded", BF16),
    "bfloat16, sentence-transformers": Way("sentence-transformers", BF16),
    "float32": Way("minibert", "float32", "highest"),
    "float32, rows shared": Way("packed", "float32", "highest"),
    "float32, padded as they come": Way("padded", "float32", "highest"),
    "float32, sentence-transformers": Way("sentence-transformers", "float32"),
    "float32, JAX's default precision": Way("minibert", "float32", "default"),
}
TINY_CELLS = [name for name in CELLS if name.startswith("bfloat16")]
Encode = Callable[[Any], Any]


class Compilations:
    """Counts the programs that JAX compiles."""

    def __init__(self) -> None:
        import jax

        self.count, self.seconds = 0, 0.0
        jax.monitoring.register_event_duration_secs_listener(self._seen)

    def _seen(self, event: str, seconds: float, **_: Any) -> None:
        if event.endswith("backend_compile_duration"):
            self.count, self.seconds = self.count + 1, self.seconds + seconds


def measure(job: Job) -> None:
    """Measures every method, in turn with the first one of its dtype."""
    job.need_card()
    if not job.installed("transformers"):
        raise SkippedError("transformers is not installed, and the tokenizer is its")
    theirs = job.has("sentence-transformers", "torch", "sentence_transformers")
    cells = {
        name: CELLS[name]
        for name in (TINY_CELLS if job.dry_run else CELLS)
        if theirs or CELLS[name].kind != "sentence-transformers"
    }
    count = TEXTS if job.left() > TIME else FEWER  # more texts have more batch shapes
    texts = embed.corpus(TINY if job.dry_run else count)
    folder = cached_folder(job, "encoder", functools.partial(_make_folder, job))
    compilations, encoders = Compilations(), functools.cache(functools.partial(_encoder, folder))
    reader = _reader(encoders(BF16))
    start = time.perf_counter()
    tokens = sum(map(len, reader.ids(texts)[0]))
    seconds = time.perf_counter() - start
    job.note(texts=len(texts), tokens=tokens)
    job.row("tokenizing alone", {"texts/s": len(texts) / seconds, "tokens/s": tokens / seconds})
    ways: dict[str, Encode] = {}
    vectors: dict[str, np.ndarray] = {}

    def cell(name: str, way: Way) -> None:
        ways[name] = _encode(encoders, way, folder)
        before = compilations.count, compilations.seconds
        start = time.perf_counter()
        vectors[name] = np.asarray(ways[name](texts), np.float32)
        first = time.perf_counter() - start
        compiled = compilations.count - before[0], compilations.seconds - before[1]
        pair = {each: ways[each] for each in dict.fromkeys((way.dtype, name)) if each in ways}
        runs = {each: Run(functools.partial(ways[each], texts), lambda _: None) for each in pair}
        timed = alternate(runs, job.dry_run, required=name, burst=False, rounds=ROUNDS)
        seconds = timed.median(name)
        figures = {"texts/s": len(texts) / seconds, "tokens/s": tokens / seconds}
        if way.dtype in timed.seconds:
            figures["times as fast as minibert's own"] = timed.ratio(way.dtype, name)
        figures |= {"first, s": first, "programs": compiled[0], "to compile, s": compiled[1]}
        errors = {}
        if way.dtype in vectors:
            cosine = float(_cosines(vectors[name], vectors[way.dtype]).min())
            if not cosine >= COSINE[way.dtype]:
                errors[name] = f"a vector has the cosine {cosine:.4f} with minibert's own"
        job.row(name, figures, rounds=timed.seconds, errors=errors)

    job.each(cells, cell)


def _cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return (one * other).sum(axis=1) / lengths


def _make_folder(job: Job, path: str) -> None:
    """Writes an encoder with the tokenizer of all-MiniLM-L6-v2, or of the embedded model."""
    from transformers import AutoTokenizer

    import minibert

    source = minibert.assets.BERT
    if job.has("the tokenizer of all-MiniLM-L6-v2", PACKAGE):
        from benchmarks.contenders import minilm

        source = minilm()
    tokenizer = AutoTokenizer.from_pretrained(source, model_max_length=LONGEST)
    config = models.bert_config(job, "minilm", vocab_size=len(tokenizer))
    model = models.random_model(minibert.BertModel, config)
    encoder = minibert.SentenceEncoder(model, tokenizer, normalize=True, max_seq_length=LONGEST)
    encoder.save_pretrained(path)


def _encoder(folder: str, dtype: str) -> Any:
    import minibert

    return minibert.SentenceEncoder.from_pretrained(folder, dtype=dtype, param_dtype=dtype)


def _reader(encoder: Any) -> Any:
    from minibert.text.tokenizer import TokenReader

    return TokenReader(encoder.tokenizer, encoder.max_seq_length)


def _encode(encoders: Callable[[str], Any], way: Way, folder: str) -> Encode:
    if way.kind == "sentence-transformers":
        import torch
        from sentence_transformers import SentenceTransformer

        options: dict[str, Any] = {"model_kwargs": {"dtype": getattr(torch, way.dtype)}}
        return SentenceTransformer(folder, **options).encode
    encoder = encoders(way.dtype)
    makers = {
        "minibert": lambda: encoder.encode,
        "packed": lambda: embed.packed(encoder),
        "padded": lambda: embed.padded_as_they_come(encoder),
    }
    encode = makers[way.kind]()

    def precise(texts: Any) -> np.ndarray:
        import jax

        precision = way.precision
        with jax.default_matmul_precision(precision) if precision else contextlib.nullcontext():
            return encode(texts)

    return precise
