"""Time of text generation with GPT-2, next to transformers in PyTorch.

    python -m benchmarks.generate [--size small] [--repeats 5] [--json PATH] [--check]

Both have the same random weights, prompts of 32 tokens, 64 new tokens by greedy decoding, and no
EOS. The contenders take turns in one process, so that a busy machine slows all equally; the first
call of each, in which ours compiles, is timed separately. An idle contender does not use the cores:
PyTorch's threads spin for 10 ms after a call, JAX's do not. In float32 on a CPU all must generate
the same tokens before timing; elsewhere rounding decides between tokens with similar scores.

On a GPU it also measures bfloat16, and transformers' static cache.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks import reporting

MAX_RATIOS = {1: 0.6, 8: 0.7}  # of median times in float32 on a CPU, ours to theirs, by batch
OURS = "minibert"
Contender = Callable[[np.ndarray], np.ndarray]

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"vocab_size": 97, "n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 128},
    "small": {},
}
PROMPT, NEW = 32, 64


def make_folder(folder: str, size: str) -> None:
    """Writes a GPT-2 with random float32 weights."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    # the scale of trained weights: otherwise the most probable token is always the last one
    GPT2LMHeadModel(GPT2Config(**SIZES[size], initializer_range=0.1)).save_pretrained(folder)


def minibert_contenders(folder: str, dtype: str) -> dict[str, Contender]:
    """Returns `minibert.generate` as a contender."""
    import jax.numpy as jnp

    import minibert

    model = minibert.GPT2LMHeadModel.from_pretrained(folder, param_dtype=jnp.dtype(dtype))
    options = {"max_new_tokens": NEW, "eos_token_id": None}
    return {OURS: lambda ids: minibert.generate(model, ids, **options)}


def transformers_contenders(folder: str, dtype: str) -> dict[str, Contender]:
    """Returns transformers' `generate`; on a GPU also with its static cache."""
    import torch
    from transformers import GPT2LMHeadModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = getattr(torch, dtype)
    model = GPT2LMHeadModel.from_pretrained(folder, dtype=kind).eval().to(device)
    model.generation_config.eos_token_id = None

    def contender(**options: Any) -> Contender:
        def generate(ids: np.ndarray) -> np.ndarray:
            words = torch.as_tensor(ids, device=device)
            given = {"attention_mask": torch.ones_like(words), "pad_token_id": 0} | options
            with torch.inference_mode():
                return model.generate(words, max_new_tokens=NEW, do_sample=False, **given).cpu()

        return generate

    contenders = {"transformers": contender()}
    if device == "cuda":
        contenders["transformers, static cache"] = contender(cache_implementation="static")
    return contenders


def measure(contenders: dict[str, Contender], ids: np.ndarray, repeats: int, same: bool) -> dict:
    """Generates with all in turn; returns seconds of the first call and of later ones."""
    first: dict[str, float] = {}
    written = {}
    for name, generate in contenders.items():
        start = time.perf_counter()
        written[name] = np.asarray(generate(ids))
        first[name] = time.perf_counter() - start
    for name, words in written.items():
        if words.shape != (len(ids), PROMPT + NEW):
            sys.exit(f"{name} wrote {words.shape}, not {(len(ids), PROMPT + NEW)}")
        if same and (words != written[OURS]).any():
            sys.exit(f"{name} wrote other tokens than {OURS}, batch {len(ids)}")
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, generate in contenders.items():
            start = time.perf_counter()
            generate(ids)
            seconds[name].append(time.perf_counter() - start)
    return {
        name: {
            "first": first[name],
            "median": statistics.median(seconds[name]),
            "minimum": min(seconds[name]),
            "seconds": seconds[name],
        }
        for name in contenders
    }


def compare(size: str, repeats: int) -> dict[str, Any]:
    """Creates a model and generates with all contenders in turn, for each batch and dtype."""
    device = reporting.device()
    plans = [("float32", batch) for batch in MAX_RATIOS]
    if device == "gpu":
        plans += [("bfloat16", batch) for batch in (1, 8, 64)]
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        make_folder(folder, size)
        for dtype in dict.fromkeys(dtype for dtype, _ in plans):
            contenders = minibert_contenders(folder, dtype)
            contenders |= transformers_contenders(folder, dtype)
            for batch in [batch for other, batch in plans if other == dtype]:
                vocabulary = SIZES[size].get("vocab_size", 50257)
                ids = np.random.default_rng(batch).integers(0, vocabulary, (batch, PROMPT))
                same = dtype == "float32" and device == "cpu"
                results = measure(contenders, ids, repeats, same)
                ours = results[OURS]
                ratios = {
                    name: {key: ours[key] / result[key] for key in ("median", "minimum")}
                    for name, result in results.items()
                    if name != OURS
                }
                run = {"dtype": dtype, "batch": batch, "results": results, "ratios": ratios}
                runs.append(run)
    return {
        "size": size,
        "repeats": repeats,
        "device": device,
        "runs": runs,
        **reporting.taken_on("jax", "flax", "torch", "transformers"),
    }


def table(report: dict[str, Any]) -> Table:
    """Returns the report as a table."""
    title = (
        f"GPT-2 {report['size']} on {report['device']}: time a word, {NEW} words after {PROMPT}, "
        f"{report['repeats']} times each"
    )
    columns = ("median", "minimum", "first call", "minibert / it")
    printed = reporting.table(report, title, *columns)
    for run in report["runs"]:
        printed.add_section()
        printed.add_row(f"{run['dtype']}, batch {run['batch']}", style="bold")
        for name, result in run["results"].items():
            ratio = run["ratios"].get(name)
            printed.add_row(
                name,
                *(f"{1000 * result[key] / NEW:.2f} ms" for key in ("median", "minimum")),
                f"{result['first']:.1f} s",
                f"{ratio['median']:.2f}, {ratio['minimum']:.2f} ×" if ratio else "",
            )
    return printed


def faults(report: dict[str, Any]) -> list[str]:
    """Returns the bounds that the report breaks, a sentence each."""
    found = []
    for run in report["runs"]:
        if (report["device"], run["dtype"]) != ("cpu", "float32"):
            continue
        ratio, bound = run["ratios"]["transformers"]["median"], MAX_RATIOS[run["batch"]]
        if ratio > bound:
            found.append(f"batch {run['batch']}: {ratio:.2f} × transformers' time, over {bound} ×")
    return found


def main() -> None:
    """Measures and prints; checks the bounds with --check."""
    parser = reporting.parser("generate", __doc__)
    parser.add_argument("--size", choices=SIZES, default="small", help="size of the model")
    parser.add_argument(
        "--repeats", type=reporting.positive, default=5, help="calls of each contender"
    )
    arguments = parser.parse_args()
    report = compare(arguments.size, arguments.repeats)
    reporting.finish(report, table(report), arguments, faults)


if __name__ == "__main__":
    main()
