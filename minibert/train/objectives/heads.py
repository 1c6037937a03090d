"""Objectives of the other heads, with the labels and losses of `transformers`."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from minibert.checkpoint.config import Config
from minibert.core.checks import elements
from minibert.core.fields import BELOW_1, POSITIVE
from minibert.errors import InputError, shown
from minibert.models.base import PretrainedModel
from minibert.models.outputs import ModelOutput
from minibert.nn.numerics import widen
from minibert.train.objectives.base import (
    PLAIN,
    TOKENS,
    Batch,
    Choice,
    ClassWeights,
    Objective,
    Terms,
    call_model,
    choosing,
    labelled,
    next_tokens,
    output,
    tokens,
)
from minibert.train.objectives.labels import (
    IGNORED,
    numbers,
    of_choices,
    of_rows,
    of_tokens,
    positions,
    token_shape,
    tokens_of_choices,
    zeros_and_ones_of_tokens,
)

# Whether the second sentence follows the first: 0 if it does.
next_sentence: Objective = labelled("next_sentence", of_rows(2))

token_classification: Objective = labelled("token_classification", of_tokens("num_labels"))


def _replaced(outputs: ModelOutput, batch: Batch) -> Terms:
    logits = widen(output(outputs, "logits"))
    labels = jnp.asarray(batch["labels"]).astype(logits.dtype)
    return {"replaced_tokens": optax.sigmoid_binary_cross_entropy(logits, labels)}


def _found(outputs: ModelOutput, batch: Batch) -> Terms:
    right = (output(outputs, "logits") > 0) == (jnp.asarray(batch["labels"]) == 1)
    return {"replaced_tokens": right.astype(jnp.float32)}


# ELECTRA's discriminator: whether each token was replaced, 1 if it was; padding is no target.
replaced_tokens: Objective = Objective(
    name="replaced_tokens",
    needs=(TOKENS, ("labels",)),
    labels={"labels": zeros_and_ones_of_tokens},
    targets=lambda batch: {"replaced_tokens": tokens(batch)},
    losses=_replaced,
    hits=_found,
)

# Token ids are `(batch, choices, seq)`; `labels` `(batch,)` are the indices of the right choices.
multiple_choice: Objective = labelled("multiple_choice", of_choices)


def _call_double_heads(model: PretrainedModel, batch: Batch, rngs: nnx.Rngs | None) -> Any:
    return call_model(model, batch, rngs, mc_token_ids=batch.get("mc_token_ids"))


# GPT-2's next tokens and the right choice; `dataclasses.replace(…, weights=…)` sets their weights.
double_heads: Objective = choosing(
    "double_heads",
    {
        "causal_lm": Choice("logits", next_tokens),
        "multiple_choice": Choice("mc_logits", "mc_labels"),
    },
    needs=(TOKENS, ("labels",), ("mc_labels",)),
    labels={
        "labels": of_tokens("vocab_size", first=1),
        "mc_labels": of_choices,
        "mc_token_ids": tokens_of_choices,
    },
    apply=_call_double_heads,
)


def _position(name: str) -> Choice:
    def labels(batch: Batch) -> Array:
        given, seq = jnp.asarray(batch[name]), token_shape(batch)[1]
        return jnp.where(given < seq, jnp.maximum(given, 0), IGNORED)

    return Choice(f"{name.removesuffix('_positions')}_logits", labels)


# As in `transformers`, a negative position means the first, and one past the end is not a target.
question_answering: Objective = choosing(
    "question_answering",
    {"start": _position("start_positions"), "end": _position("end_positions")},
    needs=(TOKENS, ("start_positions",), ("end_positions",)),
    labels={"start_positions": positions, "end_positions": positions},
    weights={"start": 0.5, "end": 0.5},
)


def problem_type(config: Config, dtype: np.dtype) -> str:
    """Returns the problem type of a sequence classifier, by the rules of `transformers`.

    Args:
        config: the model's config, whose `problem_type` is returned unless it is None; otherwise
            `num_labels` (1: regression) and `dtype` decide.
        dtype: the dtype of the labels: integers are one label per row, other numbers one per class.
    """
    if config.problem_type is not None:
        return config.problem_type
    if config.num_labels == 1:
        return "regression"
    whole = jnp.issubdtype(dtype, jnp.integer)
    return "single_label_classification" if whole else "multi_label_classification"


def classification(config: Config) -> Objective:
    """Returns the objective of sequence classification or regression; see `problem_type`.

    Args:
        config: the model's config.
    """
    return _classification(config, Choice("logits", "labels"))


def _classification(config: Config, one: Choice) -> Objective:
    def kind(batch: Batch) -> str:
        found = problem_type(config, batch["labels"].dtype)
        if one.classes != PLAIN and found != "single_label_classification":
            raise InputError(f"label_smoothing, class_weights: not implemented for {found}")
        return found

    def check(_: object, name: str, array: np.ndarray, batch: Batch) -> None:
        found = problem_type(config, array.dtype)
        if found == "single_label_classification":
            of_rows("num_labels")(config, name, array, batch)
        else:
            numbers(config, name, array, batch, most=None if found == "regression" else 1.0)

    def targets(batch: Batch) -> Terms:
        if kind(batch) == "single_label_classification":
            return {"classification": one.targets(batch)}
        return {"classification": jnp.ones(batch["labels"].shape, jnp.float32)}

    def losses(outputs: ModelOutput, batch: Batch) -> Terms:
        if kind(batch) == "single_label_classification":
            return {"classification": one.losses(outputs, batch)}
        logits = widen(output(outputs, "logits")).reshape(batch["labels"].shape)
        labels = jnp.asarray(batch["labels"]).astype(logits.dtype)
        if kind(batch) == "regression":
            return {"classification": (logits - labels) ** 2}
        return {"classification": optax.sigmoid_binary_cross_entropy(logits, labels)}

    def hits(outputs: ModelOutput, batch: Batch) -> Terms:
        match kind(batch):
            case "regression":
                return {}
            case "single_label_classification":
                return {"classification": one.hits(outputs, batch)}
        right = (output(outputs, "logits") > 0) == (jnp.asarray(batch["labels"]) > 0.5)
        return {"classification": right.reshape(batch["labels"].shape).astype(jnp.float32)}

    return Objective(
        name="classification",
        needs=(TOKENS, ("labels",)),
        labels={"labels": check},
        targets=targets,
        losses=losses,
        hits=hits,
        weigh=lambda classes: _classification(config, one.weighted(classes)),
    )


def weighted(
    objective: Objective,
    *,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
) -> Objective:
    """Returns an objective with smoothed labels or weighted classes.

    The loss is that of PyTorch's `CrossEntropyLoss` with the same arguments: with weights, the mean
    is weighted by the weight of each target's class. Accuracies are not weighted.

    Args:
        objective: an objective with one cross-entropy term, such as `classification(config)`,
            `token_classification` or `masked_lm`.
        label_smoothing: ε, from 0 to below 1: each target is replaced by (1 − ε) of itself, plus ε
            spread over all classes equally.
        class_weights: a positive weight for each class, in the order of the labels' ids; None for
            weights of 1.

    Raises:
        InputError: an argument is wrong, or the objective has no such term.
    """
    weigh = getattr(objective, "weigh", None)
    if weigh is None:
        raise InputError(
            "objective: expected an objective of minibert.train with one cross-entropy term, found "
            f"{shown(getattr(objective, 'name', objective))}"
        )
    label_smoothing = BELOW_1.check("label_smoothing", label_smoothing, InputError)
    weights = None
    if class_weights is not None:
        given = elements("class_weights", class_weights, expected="numbers")
        weights = tuple(POSITIVE.check("class_weights", one, InputError) for one in given)
    settings = {"label_smoothing": label_smoothing, "class_weights": weights}
    return dataclasses.replace(
        weigh(ClassWeights(label_smoothing, weights)), settings={**objective.settings, **settings}
    )
