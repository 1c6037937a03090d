"""Each known mistake in a loss differs from PyTorch and is detected."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from conftest import FLOAT64

torch = pytest.importorskip("torch", reason="the oracle is PyTorch")

import references  # noqa: E402
from minibert import train  # noqa: E402
from minibert.train.objectives import distillation as teaching  # noqa: E402
from minibert.train.objectives.base import Choice, choosing  # noqa: E402
from planting import swapped  # noqa: E402

F = torch.nn.functional
SEEN = 1000 * FLOAT64
ROWS, SEQ, CLASSES = 4, 6, 7


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def drawn(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def classes(*shape, below=CLASSES, ignored=True):
    labels = np.random.default_rng(shape).integers(0, below, shape)
    if ignored:
        labels[..., ::3] = -100
    return labels


WORDS = {"input_ids": np.ones((ROWS, SEQ), int)}
TOKENS = {"logits": drawn(ROWS, SEQ, CLASSES)}
CAUSAL = (TOKENS, WORDS | {"labels": classes(ROWS, SEQ)})
SPANS = (
    {"start_logits": drawn(ROWS, SEQ), "end_logits": drawn(ROWS, SEQ, seed=1)},
    WORDS | {"start_positions": np.array([0, 9, 2, 5]), "end_positions": np.array([3, 4, -2, 6])},
)
TAUGHT = (
    {"logits": drawn(ROWS, CLASSES)},
    WORDS
    | {"labels": classes(ROWS, ignored=False), "teacher_logits": drawn(ROWS, CLASSES, seed=2)},
)
NUMBERS = ({"logits": drawn(ROWS, 3)}, WORDS | {"labels": drawn(ROWS, 3, seed=3)})
SIGNS = (
    {"logits": drawn(ROWS, 3)},
    WORDS | {"labels": classes(ROWS, 3, below=2, ignored=False).astype(np.float64)},
)
COSINES = (drawn(ROWS, ROWS), {"anchor_input_ids": WORDS["input_ids"]})


def settings(kind):
    return SimpleNamespace(problem_type=kind, num_labels=3)


TAUGHT_LABEL = train.distillation(
    choosing("hard", {"hard": Choice("logits", "labels")}, needs=(), labels={}),
    temperature=references.T,
    alpha=references.ALPHA,
)
WEIGHTS, SMOOTHING = tuple(0.5 + number for number in range(CLASSES)), 0.2
WEIGHTED = train.weighted(train.masked_lm, label_smoothing=SMOOTHING, class_weights=WEIGHTS)
OBJECTIVES = {
    "causal": (train.causal_lm, CAUSAL, references.causal),
    "masked": (train.masked_lm, CAUSAL, references.chosen),
    "weighted": (
        WEIGHTED,
        CAUSAL,
        lambda outputs, batch: F.cross_entropy(
            outputs["logits"].flatten(0, 1),
            batch["labels"].flatten(),
            weight=torch.tensor(WEIGHTS, dtype=torch.float64),
            label_smoothing=SMOOTHING,
        ),
    ),
    "spans": (train.question_answering, SPANS, references.spans),
    "taught": (TAUGHT_LABEL, TAUGHT, references.taught),
    "numbers": (
        train.classification(settings("regression")),
        NUMBERS,
        lambda outputs, batch: F.mse_loss(outputs["logits"], batch["labels"]),
    ),
    "signs": (
        train.classification(settings("multi_label_classification")),
        SIGNS,
        lambda outputs, batch: F.binary_cross_entropy_with_logits(
            outputs["logits"], batch["labels"]
        ),
    ),
    "cosines": (
        train.contrastive(),
        COSINES,
        lambda scores, batch: F.cross_entropy(scores, torch.arange(ROWS)),
    ),
}


def loss_error(objective, kind):
    _, (outputs, batch), reference = OBJECTIVES[kind]
    expected = reference(*jax.tree.map(torch.as_tensor, (outputs, batch)))
    arrays = jax.tree.map(jnp.asarray, (outputs, batch))
    given = SimpleNamespace(**arrays[0]) if isinstance(outputs, dict) else arrays[0]
    return abs(float(objective(given, arrays[1])) - expected.item())


class AllTokens(train.Objective):
    """Means over all tokens instead of targets."""

    def counts(self, batch):
        return {term: jnp.asarray(t.size) for term, t in self.targets(batch).items()}


def all_tokens(objective):
    fields = dataclasses.fields(objective)
    return AllTokens(**{field.name: getattr(objective, field.name) for field in fields})


class TargetsAlike(train.Objective):
    """Means over targets that count alike."""

    def counts(self, batch):
        return self.numbers(batch)


def targets_alike(objective):
    fields = dataclasses.fields(objective)
    return TargetsAlike(**{field.name: getattr(objective, field.name) for field in fields})


def narrow(objective):
    """The loss in bfloat16."""

    def losses(outputs, batch):
        narrowed = SimpleNamespace(logits=outputs.logits.astype(jnp.bfloat16))
        return objective.losses(narrowed, batch)

    return dataclasses.replace(objective, losses=losses)


def zero_is_padding(objective):
    """Reads −100 as class 0 instead of no target."""
    labels = {"masked_lm": Choice("logits", lambda b: jnp.maximum(b["labels"], 0))}
    return choosing("masked_lm", labels, needs=(), labels={})


def weighed(**weights):
    return lambda objective: dataclasses.replace(objective, weights=weights)


def unclamped(objective):
    """Clamps positions past the end to the last instead of ignoring them."""

    def place(name):
        return lambda b: jnp.clip(b[f"{name}_positions"], 0, SEQ - 1)

    terms = {name: Choice(f"{name}_logits", place(name)) for name in ("start", "end")}
    return choosing("spans", terms, needs=(), labels={}, weights={"start": 0.5, "end": 0.5})


def other_losses(change):
    return lambda objective: dataclasses.replace(
        objective, losses=lambda o, b: change(objective.losses(o, b), o, b)
    )


MISTAKES = {
    "labels not shifted": ("causal", lambda o: dataclasses.replace(train.masked_lm, name="causal")),
    "labels shifted twice": (
        "causal",
        lambda o: dataclasses.replace(
            o,
            losses=lambda out, b: o.losses(out, {"labels": jnp.roll(b["labels"], -1, 1)}),
            targets=lambda b: o.targets({"labels": jnp.roll(b["labels"], -1, 1)}),
        ),
    ),
    "mean over all tokens": ("causal", all_tokens),
    "mean over all tokens, masked": ("masked", all_tokens),
    "labels shifted that should not be": ("masked", lambda o: train.causal_lm),
    "-100 is a class": ("masked", zero_is_padding),
    "loss in bfloat16": ("masked", narrow),
    "weights without smoothing": (
        "weighted",
        lambda o: train.weighted(train.masked_lm, class_weights=WEIGHTS),
    ),
    "smoothing without weights": (
        "weighted",
        lambda o: train.weighted(train.masked_lm, label_smoothing=SMOOTHING),
    ),
    "mean over targets instead of weights": ("weighted", targets_alike),
    "spread over classes without their weights": (
        "weighted",
        lambda o: dataclasses.replace(
            o, losses=train.weighted(train.masked_lm, label_smoothing=SMOOTHING).losses
        ),
    ),
    "sum of the two ends": ("spans", weighed()),
    "positions past the end kept": ("spans", unclamped),
    "alpha and 1 - alpha swapped": (
        "taught",
        weighed(hard=references.ALPHA, distillation=1 - references.ALPHA),
    ),
    "half a square": ("numbers", other_losses(lambda x, o, b: jax.tree.map(lambda v: v / 2, x))),
    "an absolute error": ("numbers", other_losses(lambda x, o, b: jax.tree.map(jnp.sqrt, x))),
    "labels read as one class": (
        "signs",
        other_losses(
            lambda x, o, b: {"classification": -b["labels"] * jax.nn.log_softmax(o.logits)}
        ),
    ),
    "rows and columns swapped": (
        "cosines",
        lambda objective: lambda scores, batch: objective(scores.T, batch),
    ),
}


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_without_a_mistake(kind):
    assert loss_error(OBJECTIVES[kind][0], kind) <= FLOAT64


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_seen(mistake):
    kind, plant = MISTAKES[mistake]
    assert loss_error(plant(OBJECTIVES[kind][0]), kind) >= SEEN


def plain(teacher, student, temperature):
    theirs, ours = jax.nn.log_softmax(teacher), jax.nn.log_softmax(student)
    return temperature**2 * jnp.sum(jnp.exp(theirs) * (theirs - ours), axis=-1)


RIGHT = teaching.divergence


@pytest.mark.parametrize(
    "wrong",
    [
        lambda teacher, student, t: RIGHT(teacher, student, t) / t**2,
        lambda teacher, student, t: RIGHT(teacher, student, t) / t,
        lambda teacher, student, t: RIGHT(student, teacher, t),
        plain,
    ],
    ids=["no temperature²", "temperature once", "the other way round", "not softened"],
)
def test_mistakes_in_distillation_are_seen(wrong):
    with swapped(teaching, "divergence", wrong):
        assert loss_error(TAUGHT_LABEL, "taught") >= SEEN
