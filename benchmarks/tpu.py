"""Compiles every compiled entry point for TPU topologies, without a TPU.

    JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 python -m benchmarks.tpu [--chip v5e v6e] [--json PATH]

XLA's TPU compiler is in PyPI's `libtpu`; no TPU is needed, nothing runs, and no weights are
created: models are trees of shapes, in bfloat16. The programs are those of the library: `compiled`,
an encoder with separate and shared rows, the loop of `generate`, and the step of a `Trainer`. The
figures are the compiler's estimates, not measurements; they count the body of a loop once, hence
for generation the prompt and one token.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import SingleDeviceSharding
from rich.table import Table

import minibert
from benchmarks import reporting
from benchmarks.reporting import Report
from benchmarks.scale_rows import described
from benchmarks.scale_step import lowered_step
from minibert.checkpoint.generation_config import GenerationConfig
from minibert.embedding import encoding as sentence_run
from minibert.embedding.modules import Normalize, Pooling, SentenceModel
from minibert.generation import decoding
from minibert.generation.planning import Inputs, given_prompts, prepare
from minibert.models import compilation
from minibert.models.stack import with_execution
from minibert.sharding.mesh import Sharding
from minibert.train import causal_lm

TOPOLOGIES = {"v5e": "v5e:2x2", "v6e": "v6e:2x2"}
ROWS, SEQ = 32, 512
PROMPT, NEW = 32, 64
TRAINED = (8, 1024)  # a training batch

SIZES: dict[str, tuple[dict[str, int], dict[str, int]]] = {
    "tiny": (
        {"hidden_size": 128, "num_attention_heads": 2, "num_hidden_layers": 1},
        {"n_embd": 128, "n_head": 2, "n_layer": 1},
    ),
    "base": ({}, {}),
}


def shapes_of(cls: Any, config: Any) -> Any:
    """Returns a model of shapes, in bfloat16."""
    return cls(config, rngs=None, param_dtype=jnp.bfloat16).eval()


def programs(size: str, devices: list[Any]) -> dict[str, Callable[[], Any]]:
    """Returns the program of each entry point, lowered for the first device."""
    chip = SingleDeviceSharding(devices[0])
    bert_config, gpt2_config = SIZES[size]
    bert = shapes_of(minibert.BertModel, minibert.BertConfig(**bert_config))
    gpt2 = shapes_of(minibert.GPT2LMHeadModel, minibert.GPT2Config(**gpt2_config))
    sentences = SentenceModel(bert, [Pooling("mean", bert.config.hidden_size), Normalize()])
    words = np.zeros((ROWS, SEQ), np.int32)

    def lowered(program: Any, *given: Any) -> Any:
        there = jax.tree.map(lambda array: _placed(array, chip), given)
        return program.trace(*there).lower(lowering_platforms=("tpu",))

    def forward() -> Any:
        leaves, treedef = jax.tree.flatten(with_execution(bert, row_groups=True))
        given = {"input_ids": words, "attention_mask": words.astype(bool)}
        return lowered(compilation.program(compilation._forward, treedef, ()), leaves, given)

    def alone() -> Any:
        leaves, treedef = jax.tree.flatten(sentences)
        program = compilation.program(sentence_run._alone, treedef, False)
        return lowered(program, leaves, words, np.zeros(ROWS, np.int32), np.int32(0))

    def packed() -> Any:
        leaves, treedef = jax.tree.flatten(sentences)
        program = compilation.program(sentence_run._packed, treedef)
        return lowered(program, leaves, words, words, np.int32(0))

    def generate() -> Any:
        leaves, treedef = jax.tree.flatten(gpt2)
        prompt = np.ones((1, PROMPT), np.int32)
        config = GenerationConfig(max_new_tokens=NEW, eos_token_id=None)
        inputs = Inputs(prompt, *[None] * (len(Inputs._fields) - 1))
        plan, rules, padded = prepare(gpt2, given_prompts(gpt2, inputs, config), config, None)
        program = compilation.program(decoding.run, treedef, plan)
        return lowered(program, leaves, padded, rules)

    def train() -> Any:
        config = minibert.GPT2Config(**gpt2_config)
        model = jax.eval_shape(
            lambda: minibert.GPT2LMHeadModel(config, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
        )
        sharding = Sharding.of_devices(devices=devices[:1], data=1).for_model(model)
        return lowered_step(model, causal_lm, sharding, TRAINED, 1, scan=False)[0]

    rows = f"{ROWS} × {SEQ}"
    return {
        f"BERT, forward, {rows}": forward,
        f"BERT, vectors of texts, {rows}": alone,
        f"BERT, vectors of texts that share rows, {rows}": packed,
        f"GPT-2, generation, 1 × {PROMPT} + {NEW}": generate,
        f"GPT-2, training step, {TRAINED[0]} × {TRAINED[1]}": train,
    }


def _placed(array: Any, chip: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(array), jnp.result_type(array), sharding=chip)


def measure(lower: Callable[[], Any]) -> dict[str, Any]:
    """Compiles a program and returns the compiler's figures."""
    start = time.perf_counter()
    compiled = lower().compile()
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    return {
        "flops": cost["flops"],
        "bytes": cost["bytes accessed"],
        "peak": memory.peak_memory_in_bytes,
        "seconds_to_compile": time.perf_counter() - start,
    }


def compare(chips: list[str], size: str) -> Report:
    """Compiles every entry point for every chip."""
    rows = {
        f"{chip}: {name}": measure(lower)
        for chip in chips
        for name, lower in programs(size, described(TOPOLOGIES[chip])).items()
    }
    return {"rows": rows, **reporting.taken_on("jax", "jaxlib", "flax", "libtpu")}


def table(report: Report) -> Table:
    """Returns the report as a table."""
    title = (
        "What XLA's TPU compiler says of each program (one chip, bfloat16, a loop's inside once)"
    )
    made = reporting.table(report, title, "GFLOP", "GB read and written", "peak MB", "compiled in")
    for name, row in report["rows"].items():
        numbers = [f"{row['flops'] / 1e9:,.1f}", f"{row['bytes'] / 1e9:.2f}"]
        peak = f"{row['peak'] / 2**20:,.0f}"
        made.add_row(name, *numbers, peak, f"{row['seconds_to_compile']:.0f} s")
    return made


def main() -> None:
    """Compiles and prints."""
    parser = reporting.parser("tpu", __doc__)
    parser.add_argument("--chip", nargs="+", choices=TOPOLOGIES, default=list(TOPOLOGIES))
    parser.add_argument("--size", choices=SIZES, default="base")
    arguments: argparse.Namespace = parser.parse_args()
    report = compare(arguments.chip, arguments.size)
    reporting.finish(report, table(report), arguments, lambda report: [])


if __name__ == "__main__":
    main()
