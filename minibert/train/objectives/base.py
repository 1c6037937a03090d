"""What is minimised: pure functions of a model's outputs and a batch.

An objective has one or more terms. Of each it says which targets a batch holds (`targets`: a weight
for each, 0 where there is none) and what the model loses at each (`losses`, in float32 or wider).
The loss is the sum over the terms of weight × Σ losses / Σ targets: with one batch, the losses of
`transformers`' models; and the same whether a batch is taken whole, in parts or over many devices,
for the targets are counted first.

Here are the objectives of language models; those of other heads are in `heads.py`.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

from minibert.checkpoint.config import Config
from minibert.errors import InputError
from minibert.models.base import PretrainedModel
from minibert.models.outputs import ModelOutput
from minibert.nn.numerics import widen
from minibert.train.objectives.labels import IGNORED, Batch, Check, of_rows, of_tokens, of_windows

MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")
WORDS = ("input_ids", "inputs_embeds")

Terms = dict[str, Any]  # of arrays; on the host, of numbers


def model_arguments(config: Config, batch: Batch) -> dict[str, Any]:
    """Returns the arguments with which a model is called for a batch.

    No call in training uses a cache, as in transformers' `Trainer`; so position ids that restart
    separate texts, for a model that reads them so.
    """
    given = {name: batch[name] for name in MODEL_INPUTS if name in batch}
    restarting = "position_ids" in given and hasattr(config, "use_cache")
    return {**given, "use_cache": False} if restarting else given


def call_model(model: PretrainedModel, batch: Batch, rngs: nnx.Rngs | None, **more: Any) -> Any:
    """Returns a model's outputs for a batch; `more` are other arguments."""
    return model(**model_arguments(model.config, batch), **more, rngs=rngs)


def _no_hits(outputs: ModelOutput, batch: Batch) -> Terms:
    return {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """What is minimised.

    Attributes:
        name: what it is called in messages and logs.
        needs: the entries that a batch must have: one of each group.
        labels: the entries that are no plain inputs of a model, each with its check.
        targets: from a batch to a weight for each target, by term.
        losses: from outputs and a batch to the loss at each target, in the targets' shape, by term.
        hits: from outputs and a batch to whether the model is right at each target, by term, for
            terms that can be right.
        weights: what a term counts; 1 unless it is here.
        inputs: the entries that are inputs of a model, maybe with something before their names.
        apply: from model, batch and random keys to the outputs.
        separable: whether a batch may be taken in parts (in-batch negatives may not).
        settings: the numbers and names it was made with, as JSON can hold them; runs that resume
            must have the same.
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

    @property
    def entries(self) -> list[str]:
        """What it may take from a batch."""
        return [*self.inputs, *self.labels]

    def missing(self, names: Collection[str]) -> str:
        """What a batch with these entries lacks, in words."""
        lacking = [group for group in self.needs if not set(group) & set(names)]
        return ", ".join(" or ".join(group) for group in lacking)

    def counts(self, batch: Batch) -> Terms:
        """How many targets a batch has, by term."""
        return {term: weights.sum() for term, weights in self.targets(batch).items()}

    def sums(self, outputs: ModelOutput, batch: Batch) -> Terms:
        """The summed losses, by term."""
        return _summed(self.losses(outputs, batch), self.targets(batch))

    def correct(self, outputs: ModelOutput, batch: Batch) -> Terms:
        """How many targets the model is right about, by term."""
        return _summed(self.hits(outputs, batch), self.targets(batch))

    def total(self, sums: Terms, counts: Terms) -> Any:
        """The loss: the weighted sum of the terms' means; 0 for a term without a target."""
        first, *others = (
            self.weights.get(term, 1.0) * (total / (counts[term] + (counts[term] == 0)))
            for term, total in sums.items()
        )
        return sum(others, start=first)

    def __call__(self, outputs: ModelOutput, batch: Batch) -> Array:
        """The loss of a batch: a number."""
        return self.total(self.sums(outputs, batch), self.counts(batch))


def _summed(values: Terms, targets: Terms) -> Terms:
    # `where`, for what is computed where there is no target may be infinite
    return {
        term: jnp.sum(jnp.where(targets[term] > 0, value * targets[term], 0))
        for term, value in values.items()
    }


def output(outputs: ModelOutput, name: str) -> Array:
    """One of a model's outputs.

    Raises:
        InputError: the model has none of that name.
    """
    if (found := getattr(outputs, name, None)) is None:
        raise InputError(f"model: its {type(outputs).__name__} has no {name}; give one that has")
    return found


def cross_entropy(logits: Array, labels: Array) -> Array:
    """−log p(label), `(…)`, of logits `(…, classes)`; NaN where there is no such label.

    Raises:
        InputError: the shapes do not agree.
    """
    if logits.shape[:-1] != labels.shape:
        raise InputError(f"labels: {labels.shape} of them; the model's scores are {logits.shape}")
    inside = (labels >= 0) & (labels < logits.shape[-1])
    labels = jnp.where(inside, labels, 0)
    losses = optax.softmax_cross_entropy_with_integer_labels(widen(logits), labels)
    return jnp.where(inside, losses, jnp.nan)


class Choice:
    """A term in which the model chooses one of some classes: cross-entropy, −100 left out.

    Args:
        logits: from outputs to scores `(…, classes)`.
        labels: from a batch to the right classes `(…)`.
    """

    def __init__(self, logits: str | Callable[[Any], Array], labels: str | Callable[[Batch], Any]):
        self.logits = (lambda o: output(o, logits)) if isinstance(logits, str) else logits
        self.labels = (lambda b: jnp.asarray(b[labels])) if isinstance(labels, str) else labels

    def targets(self, batch: Batch) -> Array:
        """Where there is a label."""
        return (self.labels(batch) != IGNORED).astype(jnp.float32)

    def losses(self, outputs: ModelOutput, batch: Batch) -> Array:
        """The cross-entropy at each."""
        return cross_entropy(self.logits(outputs), self.labels(batch))

    def hits(self, outputs: ModelOutput, batch: Batch) -> Array:
        """Where the highest score is the label's."""
        return (self.logits(outputs).argmax(axis=-1) == self.labels(batch)).astype(jnp.float32)


def choosing(name: str, terms: Mapping[str, Choice], **rest: Any) -> Objective:
    """An objective all of whose terms are choices; `rest` as for `Objective`."""
    return Objective(
        name=name,
        targets=lambda batch: {term: t.targets(batch) for term, t in terms.items()},
        losses=lambda outputs, batch: {term: t.losses(outputs, batch) for term, t in terms.items()},
        hits=lambda outputs, batch: {term: t.hits(outputs, batch) for term, t in terms.items()},
        **rest,
    )


def next_tokens(batch: Batch) -> Array:
    """What should follow each token, `(…, seq)`: `shift_labels`, or `labels` moved by one."""
    if "shift_labels" in batch:
        return jnp.asarray(batch["shift_labels"])
    labels = jnp.asarray(batch["labels"])
    last = jnp.full_like(labels[..., :1], IGNORED)
    return jnp.concatenate([labels[..., 1:], last], axis=-1)


def labelled(name: str, check: Check) -> Objective:
    """An objective whose one term chooses `labels` by `logits`."""
    term = {name: Choice("logits", "labels")}
    return choosing(name, term, needs=(WORDS, ("labels",)), labels={"labels": check})


causal_lm: Objective = choosing(
    "causal_lm",
    {"causal_lm": Choice("logits", next_tokens)},
    needs=(WORDS, ("labels", "shift_labels")),
    labels={"labels": of_tokens("vocab_size", first=1), "shift_labels": of_tokens("vocab_size")},
)

masked_lm: Objective = labelled("masked_lm", of_tokens("vocab_size"))

# BERT's own: masked words, and whether the second sentence follows the first (0: it does).
pretraining: Objective = choosing(
    "pretraining",
    {
        "masked_lm": Choice("prediction_logits", "labels"),
        "next_sentence": Choice("seq_relationship_logits", "next_sentence_label"),
    },
    needs=(WORDS, ("labels",), ("next_sentence_label",)),
    labels={"labels": of_tokens("vocab_size"), "next_sentence_label": of_rows(2)},
)


def continuation(filler: int) -> Objective:
    """Half a context window goes in, and the full window is compared with what comes out.

    The second half of `input_ids` (the longer one, of an odd number) is replaced by a filler; the
    scores at every position, in one pass, are compared with the window's own token there, not the
    next one. So a model, of whichever family, learns to give back what it was given (the term
    `given`) and to write what follows all at once (the term `continued`). Each counts half: with
    an even window without padding, the loss is the mean over its positions. Padding, as
    `attention_mask` has it, is no target.

    Args:
        filler: the id of the token that stands for what is to be written: BERT's mask token, or
            one that no text has.
    """

    def given(ids: Any) -> Array:
        return jnp.arange(ids.shape[1]) < ids.shape[1] // 2

    def targets(batch: Batch, of_given: bool) -> Array:
        ids = jnp.asarray(batch["input_ids"])
        text = jnp.asarray(batch.get("attention_mask", jnp.ones_like(ids))) > 0
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
