"""A tiny training run: a model, a trainer and Grain batches, for tests in this or other processes.

`python tests/support/training.py FOLDER` trains in FOLDER, resuming a run that is there, and prints
a digest.
"""

import json
import os
import pathlib
import sys
import time

import jax
import numpy as np
from flax import nnx

import minibert
from minibert.train import (
    Checkpoints,
    Evaluation,
    LoRA,
    Trainer,
    adamw,
    causal_lm,
    data,
    fit,
    schedule,
)

STEPS = 40


def trainer(steps=STEPS, seed=0, trainable=None, objective=causal_lm, **options):
    """Returns a trainer of a tiny GPT-2 with dropout."""
    config = minibert.GPT2Config.tiny(vocab_size=61, n_layer=1)
    model = minibert.GPT2LMHeadModel(config, rngs=nnx.Rngs(0))
    rate = schedule(3e-3, steps, warmup=4)
    return Trainer(model, objective, adamw(rate), seed=seed, trainable=trainable, **options)


class Rows:
    """Rows of numbers, with their index as `example`."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        ids = np.random.default_rng(number).integers(0, 61, 9).astype(np.int32)
        ids[1::2] = ids[:-1:2]  # something to learn
        return {"input_ids": ids, "labels": ids, "example": np.int64(number)}


def batches(rows=37, epochs=None, workers=0):
    """Returns batches of rows, in another order each epoch."""
    return data.batches(
        Rows(rows), batch_size=4, shuffle=True, drop_last=True, epochs=epochs, workers=workers
    )


def digest(trainer) -> str:
    """Returns a digest of all bits of a state."""
    import hashlib

    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(trainer.state):
        found.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
    return found.hexdigest()


def run(folder, workers=0, wait=0.0, **options):
    """Trains with dropout, an evaluation and checkpoints in `folder`; may be resumed."""
    folder, trained = pathlib.Path(folder), trainer(**options)
    step = trained.step

    def watched(batch):
        with open(folder / "seen", "a") as file:  # which records, in which order
            print(int(trained.state.step) + 1, batch["example"].tolist(), file=file)
        return step(batch)

    trained.step = watched
    fit(
        trained,
        batches(workers=workers),
        steps=STEPS,
        evaluation=Evaluation(batches=list(batches(epochs=1))[:2], every=9),
        checkpoints=Checkpoints(folder=folder / "checkpoints", every=3, keep=2, resume=True),
        log=folder / "log.jsonl",
        callbacks=[lambda step, metrics: time.sleep(wait)],
    )
    return trained


def resident() -> float:
    """Returns the memory of this process, in MiB."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def grow(folder, steps):
    """Trains with a log, and prints the memory after half of the steps and after all."""
    found = {}

    def measure(step, metrics):
        if step in (steps // 2, steps):
            found[step] = resident()

    log = pathlib.Path(folder) / "log.jsonl"
    fit(trainer(steps), batches(), steps=steps, log=log, callbacks=[measure])
    sys.stdout.write(json.dumps([found[steps // 2], found[steps]]))


def main(folder, workers=0, adapter=False):
    """Runs the training with a pause after each step, and prints a digest."""
    options = {"lora": LoRA(r=2), "accumulate": 2} if adapter else {}
    done = run(folder, workers=workers, wait=0.03, **options)
    sys.stdout.write(json.dumps({"digest": digest(done)}))


if __name__ == "__main__":
    main(sys.argv[1])
