"""Evaluates the embedded models and baselines on held-out topics; and trains the models.

    python -m benchmarks.embedded                  the figures of minibert/assets, in seconds
    python -m benchmarks.embedded --train FOLDER   trains both from scratch; some minutes each

Each token of the held-out topics is predicted once: by the BERT with every seventh token masked at
a time; by the GPT-2 from the previous 65 to 128 tokens of its topic, or as many as there are. The
baselines are a unigram model, with the frequencies of tokens in the training topics (plus one, so
that none is 0), and a uniform model. Perplexity is exp(mean −log p).
"""

import argparse
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

import minibert
from benchmarks import reporting
from benchmarks.embedded_card import card
from benchmarks.embedded_text import HELD_OUT_FILE
from minibert import assets
from minibert.train import Trainer, causal_lm, masked_lm
from minibert.train.objectives.base import IGNORED

APART = 7  # distance between masks
ROWS = 32
Arrays = dict[str, np.ndarray]


def masked_rows(topics: list[np.ndarray], tokenizer: Any, length: int) -> Iterator[Arrays]:
    """Yields rows that mask each token once."""
    for topic in topics:
        for start in range(0, len(topic), length - 2):
            window = topic[start : start + length - 2]
            for first in range(min(APART, len(window))):
                row = empty(length, tokenizer.pad_token_id)
                size = len(window) + 2
                row["input_ids"][:size] = [
                    tokenizer.cls_token_id,
                    *window,
                    tokenizer.sep_token_id,
                ]
                row["attention_mask"][:size] = 1
                places = slice(1 + first, size - 1, APART)
                row["labels"][places] = row["input_ids"][places]
                row["input_ids"][places] = tokenizer.mask_token_id
                yield row


def next_rows(topics: list[np.ndarray], tokenizer: Any, length: int) -> Iterator[Arrays]:
    """Yields rows with each token as a target once, including EOS."""
    end = tokenizer.eos_token_id
    for topic in topics:
        text = np.array([end, *topic, end])
        for start in range(0, len(text) - 1, length // 2):
            stop = min(start + length // 2, len(text) - 1)
            begin = max(0, stop - length)
            row = empty(length, 0)
            row["input_ids"][: stop - begin] = text[begin:stop]
            row["attention_mask"][: stop - begin] = 1
            row["shift_labels"] = row.pop("labels")
            row["shift_labels"][start - begin : stop - begin] = text[start + 1 : stop + 1]
            yield row


def empty(length: int, pad: int) -> Arrays:
    """Returns a row without tokens and targets."""
    return {
        "input_ids": np.full(length, pad, np.int32),
        "attention_mask": np.zeros(length, np.int32),
        "labels": np.full(length, IGNORED, np.int32),
    }


def batches(rows: list[Arrays]) -> Iterator[Arrays]:
    """Yields batches of equal size; the last is filled up with rows without targets."""
    label = "labels" if "labels" in rows[0] else "shift_labels"
    spare = rows[0] | {label: np.full_like(rows[0][label], IGNORED)}
    rows = rows + [spare] * (-len(rows) % ROWS)
    for start in range(0, len(rows), ROWS):
        some = rows[start : start + ROWS]
        yield {name: np.stack([row[name] for row in some]) for name in some[0]}


KINDS: dict[str, tuple[Any, Any]] = {
    "bert": (masked_lm, masked_rows),
    "gpt2": (causal_lm, next_rows),
}


def figures(folder: str) -> dict[str, dict[str, float]]:
    """Returns top-1 accuracy and perplexity of the model and both baselines."""
    model = minibert.load(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    objective, rows = KINDS[model.config.model_type]
    held = np.load(pathlib.Path(folder, HELD_OUT_FILE))
    topics = np.split(held["ids"].astype(np.int32), np.cumsum(held["lengths"])[:-1])
    asked = list(rows(topics, tokenizer, model.config.max_position_embeddings))
    with jax.default_matmul_precision("highest"):
        found = Trainer(model, objective, optax.identity()).evaluate(batches(asked))
    targets = np.concatenate([row.get("labels", row.get("shift_labels")) for row in asked])
    targets = targets[targets != IGNORED]
    shares = (held["unigrams"] + 1.0) / (held["unigrams"] + 1.0).sum()
    return {
        "model": {
            "accuracy": found[f"{objective.name}_accuracy"],
            "perplexity": float(np.exp(found["loss"])),
        },
        "unigram": {
            "accuracy": float(np.mean(targets == shares.argmax())),
            "perplexity": float(np.exp(-np.log(shares[targets]).mean())),
        },
        "uniform": {"accuracy": 1 / len(shares), "perplexity": float(len(shares))},
    }


def table(name: str, found: dict[str, dict[str, float]]) -> Table:
    """Returns the figures as a table."""
    printed = Table(title=f"{name}, on held-out topics")
    for column in ("", "top-1 accuracy", "perplexity"):
        printed.add_column(column, justify="right" if column else "left")
    for who, values in found.items():
        printed.add_row(
            name if who == "model" else who,
            f"{values['accuracy']:.2%}",
            f"{values['perplexity']:,.1f}",
        )
    return printed


def train(folder: pathlib.Path, steps: int | None) -> None:
    """Trains both models, and writes their cards."""
    from benchmarks.embedded_recipe import RECIPES, SIZE, make

    for name in RECIPES:
        training = make(name, folder / name, steps)
        found = figures(str(folder / name))
        (folder / name / "README.md").write_text(card(name, SIZE, training, found))


def main() -> None:
    """Prints the figures; with --train, trains the models first."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.embedded", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--train", metavar="FOLDER", type=pathlib.Path, help="folder of the models")
    parser.add_argument("--steps", type=reporting.positive, help="number of steps, for a trial")
    arguments = parser.parse_args()
    home = pathlib.Path(assets.BERT).parent
    if arguments.train:
        home = arguments.train
        if home.exists():
            sys.exit(f"{home}: exists")
        train(home, arguments.steps)
    for folder in (assets.BERT, assets.GPT2):
        name = pathlib.Path(folder).name
        Console().print(table(name, figures(str(home / name))))


if __name__ == "__main__":
    main()
