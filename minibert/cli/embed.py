"""The commands on sentence embeddings: `minibert embed` and `minibert similar`."""

import contextlib
import functools
import hashlib
import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Annotated, Any, Literal

import jax
import numpy as np
import typer

import minibert
from minibert.cli.shared import (
    AsJson,
    Compute,
    Device,
    Model,
    TopK,
    output,
    print_json,
    print_rows,
    problems,
    settings,
    visible,
)
from minibert.core.progress import progress_bar
from minibert.data.files import TextFile, open_texts
from minibert.embedding.job import check_output, embed_file
from minibert.embedding.job_parts import has_parts
from minibert.embedding.quantization import quantize_embeddings
from minibert.errors import (
    InputError,
    NotFiniteError,
    SourceError,
    TextError,
    TextNotFiniteError,
)

if TYPE_CHECKING:
    from minibert.embedding.encoder import SentenceEncoder

Pooling = Annotated[
    str | None,
    typer.Option(help="cls, mean, max, …: for a model folder that is not sentence-transformers'."),
]
Column = Annotated[
    str | None, typer.Option(help="Of jsonl, csv and parquet: where the texts are; else `text`.")
]


def embed(
    source: Annotated[
        str,
        typer.Argument(metavar="INPUT", help="Texts: .txt (a line each), .jsonl, .csv, .parquet."),
    ],
    target: Annotated[
        str,
        typer.Option("--output", "-o", metavar="OUTPUT", help="What to write: .npy or .parquet."),
    ],
    model: Annotated[
        str, typer.Option("--model", "-m", help="A sentence-transformers folder, or a repository.")
    ],
    column: Column = None,
    prompt_name: Annotated[str | None, typer.Option(help="One of the model's prompts.")] = None,
    normalize: Annotated[bool, typer.Option("--normalize", help="Vectors of length 1.")] = False,
    truncate_dim: Annotated[
        int | None, typer.Option(min=1, help="The first numbers of each vector only.")
    ] = None,
    precision: Annotated[
        Literal["float32", "int8", "uint8", "binary", "ubinary"],
        typer.Option(help="What to store numbers in."),
    ] = "float32",
    pooling: Pooling = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUTPUT if it exists.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Throw away what a killed job has left.")
    ] = False,
    device: Device = None,
    dtype: Compute = None,
    as_json: AsJson = False,
) -> None:
    """Embeds a file of any size: a row for each text, in the file's order.

    It works in parts, which lie in OUTPUT.parts until all are there. A job that was killed goes on
    where it was when the same command is given again, and gives the same bytes.
    """
    asked = {
        "prompt_name": prompt_name,
        "normalize_embeddings": normalize,
        "truncate_dim": truncate_dim,
    }
    with settings(device), open_texts(source, column) as texts:
        check_output(target, overwrite, source)
        encoder = _encoder(model, pooling, dtype)
        made_by = {
            **asked,
            **_fingerprint(encoder),
            "column": column,
            "precision": precision,
            "dtype": dtype or "as stored",
            "device": str(jax.devices(device and device.lower())[0]),
        }
        with _kept(target), _in_file(texts), _progress(texts) as progress:
            done = embed_file(
                texts,
                functools.partial(encoder.encode, **asked),
                target,
                made_by=made_by,
                finish=lambda some, ranges: quantize_embeddings(some, precision, ranges),
                cut=lambda: encoder.truncated,
                least_rows=2 if precision in ("int8", "uint8") else 1,
                overwrite=overwrite,
                restart=restart,
                progress=progress,
                warn=_warn,
            )
        if as_json:
            longest = encoder.max_seq_length
            print_json({"output": target, **done._asdict(), "max_seq_length": longest})
            return
        found = f" ({done.rows - done.computed:,} found done)" if done.computed < done.rows else ""
        also = f"; {done.cut:,} cut at {encoder.max_seq_length} tokens" if done.cut else ""
        output.print(visible(f"Wrote {done.rows:,} rows{found} to {target}{also}"))


def similar(
    model: Model,
    query: Annotated[list[str], typer.Argument(help="What to look for; several may be given.")],
    among: Annotated[
        str, typer.Option(metavar="FILE", help="The texts to look among: .txt, .jsonl, .csv, …")
    ],
    column: Column = None,
    top_k: TopK = 5,
    pooling: Pooling = None,
    device: Device = None,
    dtype: Compute = None,
    as_json: AsJson = False,
) -> None:
    """Finds the texts of a file that mean most nearly the same as a query."""
    with settings(device):
        with open_texts(among, column) as file:
            texts = list(file)
        if not texts:
            raise SourceError(f"{among}: no texts: there is nothing to look among")
        encoder = _encoder(model, pooling, dtype)
        with _in_file(file):
            corpus = encoder.encode_document(texts, show_progress=problems.is_terminal)
        found = encoder.semantic_search(encoder.encode_query(query), corpus, top_k=top_k)
        hits = [
            [
                {
                    "score": hit["score"],
                    "row": hit["corpus_id"],
                    "text": texts[hit["corpus_id"]],
                }
                for hit in some
            ]
            for some in found
        ]
        answers = list(zip(query, hits, strict=True))
        if as_json:
            print_json([{"query": one, "hits": rows} for one, rows in answers])
            return
        for one, rows in answers:
            if len(query) > 1:
                output.print(visible(one), style="bold")
            print_rows(rows)


def _encoder(model: str, pooling: str | None, dtype: str | None) -> Any:
    return minibert.SentenceEncoder.from_pretrained(model, pooling=pooling, dtype=dtype)


def _fingerprint(encoder: "SentenceEncoder") -> dict[str, str]:
    """Of all that makes an encoder's vectors: what a job's parts must have in common."""
    weights = hashlib.sha256(repr(encoder).encode())
    for leaf in jax.tree.leaves(encoder.model):
        weights.update(f"{leaf.dtype} {leaf.shape}".encode())
        weights.update(np.ascontiguousarray(leaf).data)
    tokenizer = encoder.tokenizer
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    said = [
        tokenizer.backend_tokenizer.to_str(),
        special,
        tokenizer.all_special_ids,
        tokenizer.truncation_side,
        tokenizer.model_input_names,
    ]
    return {
        "model": weights.hexdigest(),
        "tokenizer": hashlib.sha256(repr(said).encode()).hexdigest(),
        "minibert": minibert.__version__,
        "jax": jax.__version__,
    }


@contextlib.contextmanager
def _in_file(texts: TextFile) -> Generator[None]:
    """Says of a text that has no vector where in the file it is."""
    try:
        yield
    except TextError as reason:
        raise InputError(f"{texts.place(reason.number)}: {reason.why}") from None
    except TextNotFiniteError as reason:
        raise NotFiniteError(f"{texts.place(reason.numbers[0])}: {reason.why}") from None


@contextlib.contextmanager
def _kept(target: str) -> Generator[None]:
    """Says of a job that stops in the middle where it left what it has done."""
    kept = f"what is done is kept in {target}.parts, and the same command goes on"
    try:
        yield
    except InputError as reason:
        if not has_parts(target):
            raise
        raise InputError(f"{reason} ({kept})") from None
    except KeyboardInterrupt:
        if has_parts(target):
            problems.print(visible(kept))
        raise


def _warn(message: str) -> None:
    from tqdm.auto import tqdm

    with tqdm.external_write_mode():  # not in the line of the bar
        problems.print(visible(message))


@contextlib.contextmanager
def _progress(texts: TextFile) -> Generator[Callable[[int, bool], None]]:
    layout = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
    with progress_bar(None, texts.total, None, bar_format=layout, leave=False) as advance:
        start, rows, computed, done = time.monotonic(), 0, 0, 0

        def progress(some: int, new: bool) -> None:
            nonlocal rows, computed, done
            rows, computed = rows + some, computed + some * new
            rate = computed / max(time.monotonic() - start, 1e-9)
            advance(texts.done - done, f"{rows:,} texts, {rate:,.0f} texts/s")
            done = texts.done

        yield progress
