"""One row of the table of `benchmarks.scale`: a compiled step and its figures."""

import dataclasses
import math
import re
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies

import minibert
from benchmarks.hlo_costs import Program
from benchmarks.roofline import CHIPS, network_seconds
from benchmarks.scale_step import STACKED, StackedSharding, abstract_model, lowered_step
from minibert.errors import InputError
from minibert.train import causal_lm, masked_lm

MOMENTS = 3  # a parameter and AdamW's two moments
NO_DROPOUT = {
    minibert.GPT2Config: dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    minibert.BertConfig: dict.fromkeys(
        ("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A model and its training batch.

    Attributes:
        preset: returns the config.
        batch: the number of rows of a batch.
        seq: the number of tokens of a row.
        at_once: the number of rows of a chip's microbatch.
    """

    preset: Any
    batch: int
    seq: int
    at_once: int

    def abstract(self) -> tuple[Any, Any]:
        """Returns the model as shapes, and its objective."""
        config = self.preset()
        config = dataclasses.replace(config, **NO_DROPOUT[type(config)])
        if isinstance(config, minibert.GPT2Config):
            return abstract_model(minibert.GPT2LMHeadModel, config), causal_lm
        return abstract_model(minibert.BertForMaskedLM, config), masked_lm


GPT2 = {"batch": 512, "seq": 1024}  # Radford et al. (2019)
BERT = {"batch": 256, "seq": 512}  # Devlin et al. (2018); here every token is a target
MODELS = {
    "gpt2": Model(preset=minibert.GPT2Config.small, at_once=8, **GPT2),
    "gpt2-medium": Model(preset=minibert.GPT2Config.medium, at_once=4, **GPT2),
    "gpt2-large": Model(preset=minibert.GPT2Config.large, at_once=4, **GPT2),
    "gpt2-xl": Model(preset=minibert.GPT2Config.xl, at_once=4, **GPT2),
    "bert-base": Model(preset=minibert.BertConfig.base, at_once=16, **BERT),
    "bert-large": Model(preset=minibert.BertConfig.large, at_once=8, **BERT),
    "gpt2-tiny": Model(preset=minibert.GPT2Config.tiny, at_once=2, batch=16, seq=32),
    "bert-tiny": Model(preset=minibert.BertConfig.tiny, at_once=2, batch=16, seq=32),
}


def mesh_sizes(text: str) -> dict[str, Any]:
    """Parses `data=2,fsdp=64x4,tensor=4` to arguments of `Sharding.of_devices`.

    Raises:
        InputError: if the text has another format.
    """
    sizes: dict[str, Any] = {"data": 1}
    for part in text.split(","):
        found = re.fullmatch(r"(data|tensor)=(\d+)|fsdp=(\d+(?:x\d+)*)", part.strip())
        if not found:
            raise InputError(f"mesh: expected such as data=2,fsdp=64x4,tensor=4, found {text!r}")
        if found[3]:
            sizes["fsdp"] = tuple(map(int, found[3].split("x")))
        else:
            sizes[found[1]] = int(found[2])
    return sizes


def described(topology: str) -> list[Any]:
    """Returns the described, not available devices of a topology such as v5e:4x4.

    Raises:
        InputError: if there is no such topology.
    """
    if topology.split(":")[0] not in CHIPS:
        raise InputError(f"topology: expected {', '.join(CHIPS)} and a shape, found {topology!r}")
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:  # libtpu may raise any
        why = str(error).splitlines()[0]
        raise InputError(f"topology: expected such as v5e:4x4, found {topology!r}: {why}") from None
    return list(found.devices)


def measure(
    name: str,
    topology: str,
    mesh: str,
    *,
    batch: int | None = None,
    at_once: int | None = None,
    scan: bool = True,
) -> dict[str, Any]:
    """Compiles a step and returns its figures.

    Args:
        name: a name of `MODELS`.
        topology: such as v5e:4x4.
        mesh: such as fsdp=16.
        batch, at_once: override the model's.
        scan: whether the blocks run in a loop.

    Raises:
        InputError: if topology, mesh and batch do not fit.
    """
    given, devices = MODELS[name], described(topology)
    model, objective = given.abstract()
    sharding = StackedSharding.of_devices(devices=devices, **mesh_sizes(mesh)).for_model(model)
    rows, shares = batch or given.batch, sharding.size(sharding.rows)
    parts = max(rows // (len(devices) * (at_once or given.at_once)), 1)
    if rows % (parts * shares):
        raise InputError(f"batch: {rows} rows cannot be split over {parts} × {shares}")
    began = time.perf_counter()
    shape = (rows, given.seq)
    lowered, params = lowered_step(model, objective, sharding, shape, parts, scan)
    row: dict[str, Any] = {"model": name, "topology": topology, "mesh": mesh, "chips": len(devices)}
    row |= {"batch": rows, "seq": given.seq, "parts": parts, "scan": scan}
    row |= stored(sharding, params) | {"batch_bytes": 2 * 4 * rows * given.seq // shares}
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        row |= {"fits": False, "peak": requested_bytes(str(error))} | limits(topology)
    else:
        row |= {"fits": True} | _read(compiled, topology, sharding) | limits(topology)
    return row | {"seconds_to_compile": time.perf_counter() - began}


def stored(sharding: Any, params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the expected bytes on a device, and the tensors that are not split evenly."""
    bytes_of = {path: leaf.size * leaf.dtype.itemsize for path, leaf in params.items()}
    partial = [
        {
            "path": part.path.replace(STACKED, ".*."),
            "shape": list(part.shape),
            "parts": part.parts,
            "extra_bytes": MOMENTS * part.extra_bytes,
        }
        for part in sharding.partial(params)
    ]
    one_block = {path: params[path].shape[0] if STACKED in path else 1 for path in params}
    return {
        "parameters": sum(math.prod(leaf.shape) for leaf in params.values()),
        "stored_in": sharding.parts,
        "even_bytes": MOMENTS * sum(bytes_of.values()) / sharding.parts,
        "predicted_bytes": MOMENTS * sharding.device_bytes(params),
        "largest_tensor": max(size // one_block[path] for path, size in bytes_of.items()),
        "partial": partial,
    }


def _read(compiled: Any, topology: str, sharding: Any) -> dict[str, Any]:
    """Returns the figures of a compiled step, and its rooflines."""
    chip, memory = CHIPS[topology.split(":")[0]], compiled.memory_analysis()
    program = Program(compiled.as_text())
    places = np.array([device.coords for device in sharding.mesh.devices.flat])
    collectives: dict[str, dict[str, Any]] = {}
    for each in program.collectives:
        none = {"count": 0, "bytes": 0, "largest": 0, "seconds": 0.0}
        kind = collectives.setdefault(each.kind, none)
        kind["count"] += each.times
        kind["bytes"] += each.times * each.bytes
        kind["largest"] = max(kind["largest"], each.largest)
        kind["seconds"] += network_seconds(chip, places, each)
    least = {
        "compute": program.flops / chip.flops,
        "HBM": program.traffic / chip.bandwidth,
        "ICI": sum(kind["seconds"] for kind in collectives.values()),
    }
    return {
        "peak": memory.peak_memory_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "arguments": memory.argument_size_in_bytes,
        "argument_bytes": program.argument_bytes,
        "flops": program.flops,
        "traffic": program.traffic,
        "collectives": collectives,
        "least_seconds": least,
        "bound": max(least, key=least.__getitem__),
    }


def requested_bytes(message: str) -> float:
    """Returns the memory that a step needs at least, from XLA's out-of-memory message.

    Raises:
        RuntimeError: if it is another message.
    """
    found = re.search(r"Used ([\d.]+)G of [\d.]+G hbm|HLO temporaries \(([\d.]+)G\)", message)
    if not found:
        raise RuntimeError(message)
    return float(found[1] or found[2]) * 2**30


def limits(topology: str) -> dict[str, Any]:
    """Returns a chip's figures and their source."""
    chip = CHIPS[topology.split(":")[0]]
    return {"limit": chip.hbm, "source": chip.source}


def faults(row: Mapping[str, Any]) -> list[str]:
    """Returns the faults of a row, a sentence each."""
    name, found = f"{row['model']} on {row['topology']}, {row['mesh']}", []
    even = row["even_bytes"] + sum(part["extra_bytes"] for part in row["partial"])
    if abs(row["predicted_bytes"] - even) > 1e-6 * even:
        found.append(f"{name}: stores {row['predicted_bytes']} bytes, not {even:.0f}")
    if not row["fits"]:
        return found
    held = row["argument_bytes"] - row["batch_bytes"]
    if held != row["predicted_bytes"]:
        found.append(f"{name}: a device holds {held} bytes, not {row['predicted_bytes']}")
    for kind in ("all-gather", "all-reduce"):  # XLA gathers small arrays with an all-reduce
        size, largest = (
            row["collectives"].get(kind, {"largest": 0})["largest"],
            row["largest_tensor"],
        )
        if size > largest:
            found.append(f"{name}: {kind} of {size} bytes at once; no tensor has over {largest}")
    return found
