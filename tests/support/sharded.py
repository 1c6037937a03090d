"""Training over virtual devices of XLA's CPU backend, in one process or in several."""

import json
import math
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from minibert import train
from minibert.errors import InputError
from minibert.models.registry import BY_TYPE
from minibert.nn.tree import parameters
from minibert.sharding.mesh import Sharding
from minibert.sharding.placement import on_host
from minibert.train import Trainer, adamw
from tiny import STILL

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
ROWS, SEQ = 16, 8
# of any family's config
WIDTHS = ("intermediate_size", "hidden_dim", "n_inner")
DROPOUTS = tuple(name for names in STILL.values() for name in names)


def model(family, even=True, dropout=0.0, layers=2):
    """Returns a float64 model with sizes that 2, 4 and 8 divide, or not."""
    hidden, heads, vocab = (32, 4, 64) if even else (30, 3, 61)
    tasks = BY_TYPE[family].tasks
    cls = tasks.get("fill-mask") or tasks["text-generation"]
    config = cls.config_class.tiny(
        vocab_size=vocab, hidden_size=hidden, num_attention_heads=heads, num_hidden_layers=layers
    )
    before_first = config.max_position_embeddings - config.max_tokens
    narrower = {"embedding_size": hidden // 2} if config.embedding_size < hidden else {}
    config = config.replace(
        max_position_embeddings=SEQ + before_first,
        **narrower,
        **{name: 4 * hidden for name in WIDTHS if hasattr(config, name)},
        **{name: dropout for name in DROPOUTS if hasattr(config, name)},
    )
    return cls(config, rngs=nnx.Rngs(0), param_dtype=jnp.float64)


def batches(steps, part=0, parts=1):
    """Returns ragged batches with few targets, the same in every process, which takes its rows."""
    random = np.random.default_rng(0)
    for _ in range(steps):
        ids = random.integers(0, 61, (ROWS, SEQ))
        labels = np.where(random.random(ids.shape) < 0.4, ids, -100)
        mask = (np.arange(SEQ) < random.integers(4, SEQ + 1, (ROWS, 1))).astype(int)
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        rows = slice(part * ROWS // parts, (part + 1) * ROWS // parts)
        yield {name: array[rows] for name, array in batch.items()}


def trainer(family, sizes, even=True, rules=None, dropout=0.0, layers=2, **options):
    sharding = None if sizes is None else Sharding.of_devices(**sizes, rules=rules)
    optimizer = adamw(1e-2)
    start = model(family, even, dropout, layers)
    return Trainer(start, getattr(train, start.objective), optimizer, sharding=sharding, **options)


def share(trained):
    """Returns the index of this process's part of a batch's rows, and the number of parts."""
    return (0, 1) if trained.sharding is None else trained.sharding.share


def windowed(trained):
    """Returns the losses of two steps on windows, and the error if processes pass other rows."""
    from minibert.train import data

    ids = np.random.default_rng(1).integers(0, 61, 40 * SEQ + 1)
    options = {"max_length": SEQ, "batch_size": ROWS, "shuffle": True, "drop_last": True}
    own, said = share(trained), ""
    if jax.process_count() > own[1]:
        part = (jax.process_index() % own[1], own[1])
        try:
            trained.step(next(iter(data.windows(ids, **options, share=part))))
        except InputError as reason:
            said = str(reason)
    rows = data.windows(ids, **options, share=own)
    return {
        "windows": [float(trained.step(batch)["loss"]) for batch in rows],
        "said": said,
        "shares": own[1],
    }


def losses(trained, steps=10):
    """Returns the losses of ten steps, to which this process passes its share of the rows."""
    return [float(trained.step(batch)["loss"]) for batch in batches(steps, *share(trained))]


def device_bytes(tree):
    """Returns how many bytes of some arrays the first local device stores."""
    leaves = jax.tree.leaves(tree)
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)


def program(trained):
    """Returns a compiled step's FLOPs per device, and the sizes of its collectives by kind."""
    given = trained._given(next(batches(1)), 1)
    compiled = trained._step.lower(trained.state, trained.frozen, given).compile()
    text, made = compiled.as_text(), dict.fromkeys(COLLECTIVES, 0)
    largest = 0
    for shapes, kind in re.findall(rf"= (.*?) ({'|'.join(COLLECTIVES)})(?:-start)?\(", text):
        sizes = [
            math.prod(map(int, filter(None, dims.split(",")))) * int(bits) // 8
            for bits, dims in re.findall(r"[fsu](\d+)\[([\d,]*)\]", shapes)
        ]
        made[kind] += sum(sizes)
        largest = max([largest, *sizes])
    analysis = compiled.cost_analysis()
    return {"flops": analysis["flops"], "made": made, "largest": largest}


def report(family, sizes, even=True, windows=False, layers=2, **options):
    """Returns the results that the tests check."""
    trained = trainer(family, sizes, even, layers=layers, **options)
    if windows:
        return windowed(trained)
    found = {"losses": losses(trained), "state_bytes": device_bytes(trained.state)}
    found["evaluation"] = trained.evaluate(batches(1, *share(trained)))["loss"]
    few = [{name: array[:5] for name, array in batch.items()} for batch in batches(1)]
    if jax.process_count() == 1:  # rows that no number of devices divides
        found["few"] = trained.evaluate(few)["loss"]
    if sizes is not None:
        arrays = parameters(model(family, even, layers=layers))
        sharding = trained.sharding
        found["bytes"] = device_bytes(trained.state.params)
        found["said"] = sharding.device_bytes(arrays)
        found["whole"] = sum(array.nbytes for array in arrays.values())
        found["partial"] = sharding.partial(arrays)
        found["largest"] = max(array.nbytes for array in arrays.values())
        if jax.process_count() == 1:
            found["moved"] = program(trained)["largest"]
    after = parameters(on_host(trained.model))
    found["sums"] = {path: float(np.abs(array).sum()) for path, array in after.items()}
    return found


def main(job, *process):
    """Prints the results of some jobs in this process, one of several."""
    if process:
        address, count, number = process
        jax.distributed.initialize(address, int(count), int(number))
    with jax.enable_x64(True):
        found = [report(**options) for options in json.loads(job)]
    sys.stdout.write(f"\n{json.dumps(found)}\n")
    if process:
        jax.distributed.shutdown()  # waits for the others; a forked process runs no exit handlers
