"""The commands for sentence embeddings: `minibert embed` and `minibert similar`."""

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
)
from minibert.core.progress import progress_bar
from minibert.core.terminal import visible
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
    typer.Option(help="cls, mean, max, …, for a model that is not sentence-transformers'."),
]
Column = Annotated[
    str | None,
    typer.Option(help="Column of the texts in jsonl, csv and parquet; `text` by default."),
]


def embed(
    source: Annotated[
        str,
        typer.Argument(metavar="INPUT", help="Texts: .txt (one per line), .jsonl, .csv, .parquet."),
    ],
    target: Annotated[
        str,
        typer.Option("--output", "-o", metavar="OUTPUT", help="The file to write: .npy, .parquet."),
    ],
    model: Annotated[
        str, typer.Option("--model", "-m", help="A sentence-transformers folder or repository.")
    ],
    column: Column = None,
    prompt_name: Annotated[str | None, typer.Option(help="One of the model's prompts.")] = None,
    normalize: Annotated[
        bool, typer.Option("--normalize", help="Scale vectors to length 1.")
    ] = False,
    truncate_dim: Annotated[
        int | None, typer.Option(min=1, help="Number of dimensions to keep.")
    ] = None,
    precision: Annotated[
        Literal["float32", "int8", "uint8", "binary", "ubinary"],
        typer.Option(help="The type in which to store vectors."),
    ] = "float32",
    pooling: Pooling = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUTPUT if it exists.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Discard the parts of a job that was killed.")
    ] = False,
    device: Device = None,
    dtype: Compute = None,
    as_json: AsJson = False,
) -> None:
    """Embeds a file of any size: one row for each text, in the order of the file.

    Parts of the result are stored in OUTPUT.parts until all are complete. A job that was killed is
    resumed by the same command, and writes the same bytes as one that was not.
    """
    options = {
        "prompt_name": prompt_name,
        "normalize_embeddings": normalize,
        "truncate_dim": truncate_dim,
    }
    with settings(device), open_texts(source, column) as texts:
        check_output(target, overwrite, source)
        encoder = _encoder(model, pooling, dtype)
        made_by = {
            **options,
            **_fingerprint(encoder),
            "column": column,
            "precision": precision,
            "dtype": dtype or "as stored",
            "device": str(jax.devices(device and device.lower())[0]),
        }
        with _kept(target), _in_file(texts), _progress(texts) as progress:
            done = embed_file(
                texts,
                functools.partial(encoder.encode, **options),
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
        found = f" ({done.rows - done.computed:,} resumed)" if done.computed < done.rows else ""
        also = f"; {done.cut:,} truncated to {encoder.max_seq_length} tokens" if done.cut else ""
        output.print(visible(f"Wrote {done.rows:,} rows{found} to {target}{also}"))


def similar(
    model: Model,
    query: Annotated[list[str], typer.Argument(help="One or more queries.")],
    among: Annotated[
        str, typer.Option(metavar="FILE", help="The texts to search: .txt, .jsonl, .csv, …")
    ],
    column: Column = None,
    top_k: TopK = 5,
    pooling: Pooling = None,
    device: Device = None,
    dtype: Compute = None,
    as_json: AsJson = False,
) -> None:
    """Finds the texts of a file that are most similar to a query."""
    with settings(device):
        with open_texts(among, column) as file:
            texts = list(file)
        if not texts:
            raise SourceError(f"{among}: expected texts to search, found none")
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
    """Returns digests of everything that determines an encoder's vectors."""
    weights = hashlib.sha256(repr(encoder).encode())
    for leaf in jax.tree.leaves(encoder.model):
        weights.update(f"{leaf.dtype} {leaf.shape}".encode())
        weights.update(np.ascontiguousarray(leaf).data)
    tokenizer = encoder.tokenizer
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    state = [
        tokenizer.backend_tokenizer.to_str(),
        special,
        tokenizer.all_special_ids,
        tokenizer.truncation_side,
        tokenizer.model_input_names,
    ]
    return {
        "model": weights.hexdigest(),
        "tokenizer": hashlib.sha256(repr(state).encode()).hexdigest(),
        "minibert": minibert.__version__,
        "jax": jax.__version__,
    }


@contextlib.contextmanager
def _in_file(texts: TextFile) -> Generator[None]:
    """Adds the location in the file to errors about a text."""
    try:
        yield
    except TextError as reason:
        raise InputError(f"{texts.place(reason.number)}: {reason.why}") from None
    except TextNotFiniteError as reason:
        raise NotFiniteError(f"{texts.place(reason.numbers[0])}: {reason.why}") from None


@contextlib.contextmanager
def _kept(target: str) -> Generator[None]:
    """Adds to an error, or prints on an interrupt, how the job can be resumed."""
    kept = f"completed parts are kept in {target}.parts; the same command resumes the job"
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

    with tqdm.external_write_mode():  # keeps the message apart from the progress bar
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
