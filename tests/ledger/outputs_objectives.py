"""Objectives: the loss, its gradient and the hits, in double precision."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .models import drawn, inputs, joined
from .surface import train

IGNORED = -100


def batch(name: str, **labels: Any) -> dict[str, Any]:
    return inputs(name) | {key: np.asarray(value) for key, value in labels.items()}


def words(name: str) -> np.ndarray:
    """The tokens as labels, every third and the padding left out."""
    given = inputs(name)
    ids = given["input_ids"]
    kept = (given["attention_mask"] > 0) & (np.arange(ids.shape[-1]) % 3 > 0)
    return np.where(kept, ids, IGNORED)


def pairs() -> dict[str, Any]:
    draw, found = np.random.default_rng(8), {}
    for prefix in ("anchor", "positive", "negative"):
        found[f"{prefix}_input_ids"] = draw.integers(1, 97, (3, 6))
        found[f"{prefix}_attention_mask"] = np.array([[1] * 6, [1] * 4 + [0] * 2, [1] * 6])
    return found


def cases() -> dict[str, tuple[Any, str, dict[str, Any]]]:
    """By name: objective, model's class, batch."""
    lm, masked, sequence = "GPT2LMHeadModel", "BertForMaskedLM", "BertForSequenceClassification"
    config = drawn(sequence).config
    several = config.replace(problem_type="multi_label_classification")
    numbers = config.replace(problem_type="regression")
    soft = np.random.default_rng(9).standard_normal((2, 7, 97))
    windows = batch(lm, shift_labels=np.roll(inputs(lm)["input_ids"], -1, axis=1))
    answers = {"start_positions": [1, 9], "end_positions": [3, 2]}
    choices, both = "BertForMultipleChoice", "GPT2DoubleHeadsModel"
    one_label = train.classification(config)
    taught = train.distillation(train.causal_lm, temperature=3.0, alpha=0.25)
    return {
        "causal_lm": (train.causal_lm, lm, batch(lm, labels=words(lm))),
        "windows": (train.causal_lm, lm, windows),
        "continuation": (train.continuation(96), lm, batch(lm)),
        "masked_lm": (train.masked_lm, masked, batch(masked, labels=words(masked))),
        "pretraining": (
            train.pretraining,
            "BertForPreTraining",
            batch("BertForPreTraining", labels=words(masked), next_sentence_label=[0, 1]),
        ),
        "next_sentence": (
            train.next_sentence,
            "BertForNextSentencePrediction",
            batch("BertForNextSentencePrediction", labels=[1, 0]),
        ),
        "one label": (one_label, sequence, batch(sequence, labels=[2, 0])),
        "several labels": (
            train.classification(several),
            sequence,
            batch(sequence, labels=[[1.0, 0, 1], [0, 0, 1]]),
        ),
        "numbers": (
            train.classification(numbers),
            sequence,
            batch(sequence, labels=[[0.5, -1, 2], [0, 1, 1.5]]),
        ),
        "tags": (
            train.token_classification,
            "BertForTokenClassification",
            batch("BertForTokenClassification", labels=words(masked) % 5),
        ),
        "answers": (
            train.question_answering,
            "BertForQuestionAnswering",
            batch("BertForQuestionAnswering", **answers),
        ),
        "choices": (train.multiple_choice, choices, batch(choices, labels=[2, 0])),
        "double_heads": (
            train.double_heads,
            both,
            batch(both, labels=words(both), mc_labels=[1, 2]),
        ),
        "contrastive": (train.contrastive(scale=10.0), "BertModel", pairs()),
        "poolings": (train.contrastive(pooling=("cls", "max")), "BertModel", pairs()),
        "distillation": (taught, lm, batch(lm, labels=words(lm), teacher_logits=soft)),
    }


def losses(folder: pathlib.Path) -> Any:
    found = {}
    with jax.enable_x64(True):
        for name, (objective, cls, given) in cases().items():
            assert isinstance(objective, train.Objective)
            assert not objective.missing(given)
            model = drawn(cls, dtype="float64", num_hidden_layers=1)
            leaves, treedef = jax.tree.flatten(model)

            def run(
                leaves: Any, given: Any, objective: Any = objective, treedef: Any = treedef
            ) -> Any:
                outputs = objective.apply(jax.tree.unflatten(treedef, leaves), given, None)
                parts = (objective.counts(given), objective.sums(outputs, given))
                return objective(outputs, given), (*parts, objective.correct(outputs, given))

            arrays = {key: jnp.asarray(value) for key, value in given.items()}
            gradient = jax.jit(jax.value_and_grad(run, has_aux=True))
            (loss, parts), gradients = gradient(leaves, arrays)
            flat = joined(gradients)
            found[name] = {
                "loss": loss,
                "gradient": flat,
                "norm": jnp.linalg.norm(flat),
                "parts": parts,
                "takes": objective.entries,
                "settings": [f"{key}: {value}" for key, value in objective.settings.items()],
            }
    return found


def teachers(folder: pathlib.Path) -> Any:
    given = [batch("GPT2LMHeadModel", labels=words("GPT2LMHeadModel"))] * 2
    taught = train.with_teacher(drawn("GPT2LMHeadModel"), given)
    return [one["teacher_logits"] for one in taught]


CASES = (losses, teachers)
