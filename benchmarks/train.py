"""Time of a training step, next to PyTorch.

    python -m benchmarks.train [--model gpt2] [--repeats 5] [--json PATH] [--check]

Both have the same random weights, batch, AdamW and precision, without dropout, so that losses of
the first steps can be compared: they must agree before timing. The contenders take turns in one
process, each step synchronised. An idle contender does not use the cores: PyTorch's threads spin
for 10 ms after a call, JAX's do not. Both use `keep_memory`, as `minibert train` does: without it
each would pay for pages that the other's step returned to the system.

On a GPU it also measures bfloat16 and torch.compile. MFU is the step's FLOPs (6 × kernels × tokens,
and attention's, as in `minibert train`) divided by the peak of the device.
"""

import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks import reporting
from minibert.nn.tree import parameters
from minibert.train import keep_memory
from minibert.train.metrics import PEAKS, operations

MAX_RATIO = 1.0  # of median times in float32 on a CPU, ours to PyTorch's
OURS = "minibert"
AGREE = 2e-4  # relative difference of the first losses in float32
FIRST = 3
RATE, DECAY = 1e-4, 0.01

NO_DROPOUT = {
    "bert": dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0),
    "gpt2": dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0),
}
TINY = {
    "bert": {"vocab_size": 97, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3},
    "gpt2": {"vocab_size": 97, "n_embd": 24, "n_layer": 2, "n_head": 3},
}
Step = Callable[[dict[str, np.ndarray]], Any]  # returns the loss, possibly not yet computed


def make_folder(folder: str, family: str, size: str) -> None:
    """Writes a BERT-base for masked LM or a GPT-2 124M, with random float32 weights."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    sizes = TINY[family] if size == "tiny" else {}
    configs = {"bert": transformers.BertConfig, "gpt2": transformers.GPT2Config}
    models = {"bert": transformers.BertForMaskedLM, "gpt2": transformers.GPT2LMHeadModel}
    config = configs[family](**sizes, **NO_DROPOUT[family])
    models[family](config).save_pretrained(folder)


def make_batch(family: str, vocabulary: int, rows: int, length: int) -> dict[str, np.ndarray]:
    """Returns random tokens; for BERT 15 % are targets."""
    rng = np.random.default_rng(0)
    ids = rng.integers(5, vocabulary, (rows, length))
    labels = ids if family == "gpt2" else np.where(rng.random(ids.shape) < 0.15, ids, -100)
    return {"input_ids": ids, "labels": labels}


def minibert_step(folder: str, family: str, dtype: str) -> dict[str, Step]:
    """Returns the step of a `Trainer`."""
    import jax.numpy as jnp

    import minibert
    from minibert import train

    options = {"dtype": jnp.dtype(dtype), "param_dtype": jnp.float32}
    model = minibert.load(folder, **options)
    objective = train.causal_lm if family == "gpt2" else train.masked_lm
    optimizer = train.adamw(RATE, weight_decay=DECAY, max_grad_norm=None)
    trainer = train.Trainer(model, objective, optimizer)
    return {OURS: lambda batch: trainer.step(batch)["loss"]}


def torch_steps(folder: str, family: str, dtype: str) -> dict[str, Step]:
    """Returns the same step in PyTorch; on a GPU also compiled."""
    import torch
    import transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    models = {"bert": transformers.BertForMaskedLM, "gpt2": transformers.GPT2LMHeadModel}

    def stepper(compile_it: bool) -> Step:
        model = models[family].from_pretrained(folder).to(device).train()
        groups: dict[bool, list[Any]] = {True: [], False: []}
        for name, parameter in model.named_parameters():
            groups[name.endswith("bias") or "LayerNorm" in name or "ln_" in name].append(parameter)
        optimizer = torch.optim.AdamW(
            [
                {"params": groups[False], "weight_decay": DECAY},
                {"params": groups[True], "weight_decay": 0.0},
            ],
            lr=RATE,
            fused=device == "cuda",
        )
        run = torch.compile(model) if compile_it else model
        narrow = torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")

        def step(batch: dict[str, np.ndarray]) -> float:
            given = {name: torch.as_tensor(array, device=device) for name, array in batch.items()}
            with narrow:
                loss = run(**given).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss.detach()

        return step

    steps = {"PyTorch": stepper(False)}
    if device == "cuda":
        steps["PyTorch, torch.compile"] = stepper(True)
    return steps


def measure(steps: dict[str, Step], batch: dict[str, np.ndarray], repeats: int, dtype: str) -> dict:
    """Takes steps in turn; returns first losses, and seconds of the first and later steps."""
    losses: dict[str, list[float]] = {}
    first: dict[str, float] = {}
    for name, step in steps.items():
        start = time.perf_counter()
        losses[name] = [float(step(batch))]
        first[name] = time.perf_counter() - start
        losses[name] += [float(step(batch)) for _ in range(FIRST - 1)]
    bound = AGREE if dtype == "float32" else 0.02
    for name, found in losses.items():
        if not np.allclose(found, losses[OURS], rtol=bound, atol=0):
            sys.exit(f"{name}'s losses are {found}, {OURS}'s {losses[OURS]}")
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            start = time.perf_counter()
            float(step(batch))
            seconds[name].append(time.perf_counter() - start)
    return {
        name: {
            "losses": losses[name],
            "first": first[name],
            "median": statistics.median(seconds[name]),
            "minimum": min(seconds[name]),
        }
        for name in steps
    }


def compare(family: str, size: str, rows: int, length: int, repeats: int) -> dict[str, Any]:
    """Creates a model and a batch, and trains with all contenders in turn."""
    reporting.device()
    import jax

    import minibert

    device = jax.devices()[0]
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        make_folder(folder, family, size)
        model = minibert.load(folder)
        count = sum(leaf.size for leaf in jax.tree.leaves(model))
        batch = make_batch(family, model.config.vocab_size, rows, length)
        linear, square = operations(parameters(model), model.config, over_vocabulary=True)
        flops = (linear + square * length) * rows * length
        for dtype in ["float32"] if device.platform == "cpu" else ["float32", "bfloat16"]:
            steps = minibert_step(folder, family, dtype) | torch_steps(folder, family, dtype)
            results = measure(steps, batch, repeats, dtype)
            ours = results[OURS]["median"]
            ratios = {name: ours / it["median"] for name, it in results.items() if name != OURS}
            runs.append({"dtype": dtype, "results": results, "ratios": ratios})
    return {
        "model": f"{family} {size}, {count:,} parameters",
        "device": device.platform,
        "batch": [rows, length],
        "repeats": repeats,
        "flops": flops,
        "peak": PEAKS.get(device.device_kind, math.nan),
        "runs": runs,
        **reporting.taken_on("jax", "flax", "optax", "torch", "transformers"),
    }


def table(report: dict[str, Any]) -> Table:
    """Returns the report as a table."""
    rows, length = report["batch"]
    title = f"A training step of {report['model']}, {rows} × {length} tokens, {report['device']}"
    known = not math.isnan(report["peak"])
    columns = ("median", "first step", "tokens/s", "TFLOP/s", "minibert / it")
    made = reporting.table(report, title, *columns)
    if known:
        made.add_column("MFU", justify="right", no_wrap=True)
    for run in report["runs"]:
        made.add_section()
        made.add_row(run["dtype"], style="bold")
        for name, result in run["results"].items():
            speed = report["flops"] / result["median"]
            share = [f"{speed / report['peak']:.0%}"] if known and run["dtype"] != "float32" else []
            made.add_row(
                name,
                f"{1000 * result['median']:,.0f} ms",
                f"{result['first']:.1f} s",
                f"{rows * length / result['median']:,.0f}",
                f"{speed / 1e12:.2f}",
                f"{run['ratios'][name]:.2f} ×" if name in run["ratios"] else "",
                *share,
            )
    return made


def faults(report: dict[str, Any]) -> list[str]:
    """Returns the bounds that the report breaks, a sentence each."""
    found = []
    for run in report["runs"]:
        ratio = run["ratios"]["PyTorch"]
        if (report["device"], run["dtype"]) == ("cpu", "float32") and ratio > MAX_RATIO:
            found.append(f"{report['model']}: {ratio:.2f} × PyTorch's time, over {MAX_RATIO} ×")
    return found


def main() -> None:
    """Measures and prints; checks the bounds with --check."""
    options = reporting.parser("train", __doc__)
    options.add_argument("--model", choices=["bert", "gpt2"], default="gpt2", help="base, 124M")
    options.add_argument("--size", choices=["full", "tiny"], default="full", help="model size")
    options.add_argument("--batch", type=reporting.positive, default=8, help="rows")
    options.add_argument("--length", type=reporting.positive, default=128, help="tokens of a row")
    options.add_argument(
        "--repeats", type=reporting.positive, default=5, help="timed steps of each contender"
    )
    given = options.parse_args()
    keep_memory()
    report = compare(given.model, given.size, given.batch, given.length, given.repeats)
    reporting.finish(report, table(report), given, faults)


if __name__ == "__main__":
    main()
