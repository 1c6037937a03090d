"""Training objectives: pure functions of a model's outputs and a batch.

An objective has one or more terms. For each term it defines the targets of a batch (`targets`: a
weight per target, 0 where there is none) and the loss at each target (`losses`, in float32 or
wider). The loss is the sum over terms of weight × Σ losses / Σ targets, which for one batch equals
the loss of `transformers`' models. Because the targets of the whole batch are counted first, it is
the same whether a batch is processed whole, in parts or on several devices.

This module has the objectives of language models; those of other heads are in `heads.py`.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

from minibert.core.types import AnyArray
from minibert.errors import InputError
from minibert.models.base import PretrainedModel
from minibert.models.inputs import known_inputs
from minibert.models.outputs import ModelOutput
from minibert.nn.numerics import widen
from minibert.train.lora.layers import with_keys
from minibert.train.objectives.labels import (
    IGNORED,
    Batch,
    Check,
    of_rows,
    of_tokens,
    of_windows,
    token_shape,
)

MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")
TOKENS = ("input_ids", "inputs_embeds")

Terms = dict[str, Any]  # arrays by term; on the host, numbers


def model_arguments(model: PretrainedModel, batch: Batch) -> dict[str, Any]:
    """Returns the arguments with which a model is called for a batch.

    As in transformers' `Trainer`, training never uses a cache; without one, models that support it
    treat position ids that restart as the start of another text.
    """
    given = known_inputs(model, {name: batch[name] for name in MODEL_INPUTS if name in batch})
    restarting = "position_ids" in given and hasattr(model.config, "use_cache")
    return {**given, "use_cache": False} if restarting else given


def call_model(model: PretrainedModel, batch: Batch, rngs: nnx.Rngs | None, **more: Any) -> Any:
    """Returns a model's outputs for a batch; `more` are further arguments of the model."""
    model = with_keys(model, rngs)
    return model(**model_arguments(model, batch), **more, rngs=rngs)


def tokens(batch: Batch) -> Array:
    """Returns 1 for every token, 0 for padding, `(batch, seq)`."""
    mask = batch.get("attention_mask")
    return jnp.ones(token_shape(batch)) if mask is None else jnp.asarray(mask, jnp.float32)


def _no_hits(outputs: ModelOutput, batch: Batch) -> Terms:
    return {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """A training objective.

    Attributes:
        name: the name in messages and logs.
        needs: groups of entries; a batch must have at least one entry of each group.
        labels: the entries that are not plain inputs of the model, each with its check.
        targets: a function from a batch to the weight of each target, by term.
        losses: a function from outputs and a batch to the loss at each target, in the shape of the
            targets, by term.
        hits: a function from outputs and a batch to whether the prediction at each target is
            correct, by term, for classification terms.
        weights: the weights of the terms; 1 for terms that are not listed.
        inputs: the entries that are inputs of the model, possibly with a prefix.
        apply: a function from model, batch and random keys to the outputs.
        separable: whether a batch may be split into parts (not with in-batch negatives).
        settings: the settings of the objective, as JSON can represent them; a run that resumes
            another must have the same.
        weigh: a function that returns the objective with other weights of classes; None if it has
            no single cross-entropy term (see `weighted`).
    """

    name: str
    needs: tuple[tuple[str, ...], ...]
    labels: Mapping[str, Check]
    targets: Callable[[Batch], Terms]
    losses: Callable[[Any, Batch], Terms]
    hits: Callable[[Any, Batch], Terms] = _no_hits
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    inputs: tuple[str, ...] = MODEL_INPUTS
    apply: Callable[[Any, Batch, nnx.Rngs | None], Any] = call_model
    separable: bool = True
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    weigh: "Callable[[ClassWeights], Objective] | None" = None

    @property
    def entries(self) -> list[str]:
        """The entries of a batch that the objective may use."""
        return [*self.inputs, *self.labels]

    def missing(self, names: Collection[str]) -> str:
        """Returns the required entries that `names` lacks, as text; empty if there are none."""
        lacking = [group for group in self.needs if not set(group) & set(names)]
        return ", ".join(" or ".join(group) for group in lacking)

    def counts(self, batch: Batch) -> Terms:
        """Returns the sum of a batch's target weights, by term."""
        return {term: weights.sum() for term, weights in self.targets(batch).items()}

    def numbers(self, batch: Batch) -> Terms:
        """Returns the number of a batch's targets, by term."""
        return {term: (weights > 0).sum() for term, weights in self.targets(batch).items()}

    def sums(self, outputs: ModelOutput, batch: Batch) -> Terms:
        """Returns the summed losses, by term."""
        return _summed(self.losses(outputs, batch), self.targets(batch))

    def correct(self, outputs: ModelOutput, batch: Batch) -> Terms:
        """Returns the number of correct predictions, by term."""
        targets = self.targets(batch)
        return {
            term: jnp.sum(jnp.where(targets[term] > 0, hits, 0))
            for term, hits in self.hits(outputs, batch).items()
        }

    def total(self, sums: Terms, counts: Terms) -> Any:
        """Returns the weighted sum of the terms' means; the mean of a term without targets is 0."""
        first, *others = (
            self.weights.get(term, 1.0) * mean(total, counts[term]) for term, total in sums.items()
        )
        return sum(others, start=first)

    def __call__(self, outputs: ModelOutput, batch: Batch) -> Array:
        """Returns the loss of a batch, `()`."""
        return self.total(self.sums(outputs, batch), self.counts(batch))


def mean(total: AnyArray, count: AnyArray) -> Any:
    """Returns `total / count`, in the dtype of the total; 0 without targets, whose total is 0."""
    count = count + (count == 0).astype(count.dtype)
    return total / count.astype(total.dtype)


def _summed(values: Terms, targets: Terms) -> Terms:
    # `where`, because values at positions without a target may be infinite
    return {
        term: jnp.sum(jnp.where(targets[term] > 0, value * targets[term].astype(value.dtype), 0))
        for term, value in values.items()
    }


def output(outputs: ModelOutput, name: str) -> Array:
    """Returns one of a model's outputs.

    Raises:
        InputError: the model has no output of that name.
    """
    if (found := getattr(outputs, name, None)) is None:
        raise InputError(
            f"model: expected one that returns {name}, found one that returns "
            f"{type(outputs).__name__} without it"
        )
    return found


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Returns −log p(label), `(…)`, of logits `(…, classes)`; NaN where a label is out of range.

    Raises:
        InputError: the shapes do not agree.
    """
    if logits.shape[:-1] != labels.shape:
        raise InputError(
            f"labels: expected shape {logits.shape[:-1]}, for logits of shape {logits.shape}; "
            f"found {labels.shape}"
        )
    inside = (labels >= 0) & (labels < logits.shape[-1])
    labels = jnp.where(inside, labels, 0)
    losses = optax.softmax_cross_entropy_with_integer_labels(widen(logits), labels)
    return jnp.where(inside, losses, jnp.nan)


@dataclasses.dataclass(frozen=True)
class ClassWeights:
    """How a cross-entropy weighs classes, as PyTorch's `CrossEntropyLoss` does.

    Attributes:
        label_smoothing: the part of each target that is spread over all classes equally.
        class_weights: the weight of each class; None for 1.
    """

    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None

    def targets(self, labels: Array) -> Array:
        """Returns the weight of each target, `(…)`: 0 where the label is −100."""
        there = (labels != IGNORED).astype(jnp.float32)
        if self.class_weights is None:
            return there
        weights = jnp.asarray(self.class_weights)
        return jnp.where(there > 0, weights[jnp.clip(labels, 0, weights.size - 1)], 0)

    def losses(self, logits: Array, labels: Array) -> Array:
        """Returns the loss at each target, `(…)`, still to be multiplied by the target's weight.

        Raises:
            InputError: there are more or fewer weights than classes.
        """
        losses, weights = cross_entropy(logits, labels), self.class_weights
        if weights is not None and len(weights) != logits.shape[-1]:
            raise InputError(
                f"class_weights: expected {logits.shape[-1]} weights, one for each class; found "
                f"{len(weights)}"
            )
        if not self.label_smoothing:
            return losses
        each = -jax.nn.log_softmax(widen(logits))
        if weights is not None:
            own = self.targets(labels).astype(each.dtype)
            each = each * jnp.asarray(weights, each.dtype) / jnp.where(own > 0, own, 1)[..., None]
        rate = self.label_smoothing
        return (1 - rate) * losses + rate * each.mean(axis=-1)


PLAIN = ClassWeights()


class Choice:
    """A classification term: cross-entropy, ignoring labels of −100.

    Args:
        logits: a function from outputs to logits `(…, classes)`, or the name of an output.
        labels: a function from a batch to labels `(…)`, or the name of an entry.
        classes: how classes are weighted.
    """

    def __init__(
        self,
        logits: str | Callable[[Any], Array],
        labels: str | Callable[[Batch], Any],
        classes: ClassWeights = PLAIN,
    ):
        self.classes = classes
        self.logits = (lambda o: output(o, logits)) if isinstance(logits, str) else logits
        self.labels = (lambda b: jnp.asarray(b[labels])) if isinstance(labels, str) else labels

    def targets(self, batch: Batch) -> Array:
        """Returns the weight of each label: 0 where there is none, and 1 or its class's."""
        return self.classes.targets(self.labels(batch))

    def losses(self, outputs: ModelOutput, batch: Batch) -> Array:
        """Returns the cross-entropy at each position."""
        return self.classes.losses(self.logits(outputs), self.labels(batch))

    def weighted(self, classes: ClassWeights) -> "Choice":
        """Returns the term with other weights of classes."""
        return Choice(self.logits, self.labels, classes)

    def hits(self, outputs: ModelOutput, batch: Batch) -> Array:
        """Returns 1 where the label has the largest logit, and 0 elsewhere."""
        predicted = self.logits(outputs).argmax(axis=-1)
        return (predicted == self.labels(batch).astype(predicted.dtype)).astype(jnp.float32)


def choosing(name: str, terms: Mapping[str, Choice], **rest: Any) -> Objective:
    """Returns an objective whose terms are all choices; `rest` are arguments of `Objective`."""

    def weigh(classes: ClassWeights) -> Objective:
        return choosing(name, {term: t.weighted(classes) for term, t in terms.items()}, **rest)

    return Objective(
        name=name,
        weigh=weigh if len(terms) == 1 else None,
        targets=lambda batch: {term: t.targets(batch) for term, t in terms.items()},
        losses=lambda outputs, batch: {term: t.losses(outputs, batch) for term, t in terms.items()},
        hits=lambda outputs, batch: {term: t.hits(outputs, batch) for term, t in terms.items()},
        **rest,
    )


def next_tokens(batch: Batch) -> Array:
    """Returns the label after each token, `(…, seq)`: `shift_labels`, or shifted `labels`."""
    if "shift_labels" in batch:
        return jnp.asarray(batch["shift_labels"])
    labels = jnp.asarray(batch["labels"])
    last = jnp.full_like(labels[..., :1], IGNORED)
    return jnp.concatenate([labels[..., 1:], last], axis=-1)


def labelled(name: str, check: Check) -> Objective:
    """Returns an objective with a single term, `Choice("logits", "labels")`."""
    term = {name: Choice("logits", "labels")}
    return choosing(name, term, needs=(TOKENS, ("labels",)), labels={"labels": check})


causal_lm: Objective = choosing(
    "causal_lm",
    {"causal_lm": Choice("logits", next_tokens)},
    needs=(TOKENS, ("labels", "shift_labels")),
    labels={"labels": of_tokens("vocab_size", first=1), "shift_labels": of_tokens("vocab_size")},
)

masked_lm: Objective = labelled("masked_lm", of_tokens("vocab_size"))

# BERT's pretraining: masked tokens, and whether the second sentence follows the first (0: it does).
pretraining: Objective = choosing(
    "pretraining",
    {
        "masked_lm": Choice("prediction_logits", "labels"),
        "next_sentence": Choice("seq_relationship_logits", "next_sentence_label"),
    },
    needs=(TOKENS, ("labels",), ("next_sentence_label",)),
    labels={"labels": of_tokens("vocab_size"), "next_sentence_label": of_rows(2)},
)

# ALBERT's: masked tokens, and whether the two segments are swapped (0: they are in their order).
sentence_order_pretraining: Objective = choosing(
    "sentence_order_pretraining",
    {
        "masked_lm": Choice("prediction_logits", "labels"),
        "sentence_order": Choice("sop_logits", "sentence_order_label"),
    },
    needs=(TOKENS, ("labels",), ("sentence_order_label",)),
    labels={"labels": of_tokens("vocab_size"), "sentence_order_label": of_rows(2)},
)


def continuation(filler: int) -> Objective:
    """Returns the objective of predicting a whole context window from its first half, in one pass.

    The second half of `input_ids` (the longer one, if their number is odd) is replaced by a filler
    token. The logits at every position are compared with the window's token at the same position,
    not the next one. So a model of any family learns to reproduce the first half (the term `given`)
    and to predict the second half in parallel (the term `continued`). Each term has the weight 0.5:
    for a window of even length without padding, the loss is the mean over its positions. Positions
    that `attention_mask` marks as padding are not targets.

    Args:
        filler: the id of the token that replaces the second half: BERT's mask token, or a token
            that no text contains.
    """

    def given(ids: Any) -> Array:
        return jnp.arange(ids.shape[1])[None] < ids.shape[1] // 2

    def targets(batch: Batch, of_given: bool) -> Array:
        ids = jnp.asarray(batch["input_ids"])
        text = jnp.asarray(batch.get("attention_mask", jnp.ones_like(ids))).astype(bool)
        half = given(ids) if of_given else ~given(ids)
        return jnp.where(text & half, ids, IGNORED)

    def apply(model: PretrainedModel, batch: Batch, rngs: nnx.Rngs | None) -> Any:
        ids = batch["input_ids"]
        return call_model(model, {**batch, "input_ids": jnp.where(given(ids), ids, filler)}, rngs)

    return choosing(
        "continuation",
        {
            "given": Choice("logits", lambda batch: targets(batch, True)),
            "continued": Choice("logits", lambda batch: targets(batch, False)),
        },
        needs=(("input_ids",),),
        labels={"input_ids": of_windows(filler)},
        inputs=tuple(name for name in MODEL_INPUTS if name != "inputs_embeds"),
        weights={"given": 0.5, "continued": 0.5},
        apply=apply,
        settings={"filler": filler},
    )
