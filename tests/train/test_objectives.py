"""The loss and all gradients of each objective, in float64, compared with reference libraries."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from conftest import FLOAT64, GRADIENT

pytest.importorskip("torch", reason="the oracle is PyTorch")

import torch
import transformers

import losses
import oracle
from losses import VOCAB, some_ignored
from minibert import train
from references import (
    ALPHA,
    FILLER,
    T,
    continued,
    distilled,
    double_loss,
    hf,
    ranking,
)
from slowly import slow_but

SEQ, ROWS = oracle.SEQ, 3


@dataclasses.dataclass(frozen=True)
class Case:
    """An objective and its reference.

    Attributes:
        cls: the class of both models.
        objective: ours, or a function of our config.
        labels: a function from token ids and a random generator to the rest of the batch.
        config: fields of the config.
        choices: the number of texts per row.
        loss: the reference, a function of a model and a batch of tensors.
    """

    cls: str
    objective: Any
    labels: Callable[[dict[str, np.ndarray], np.random.Generator], dict[str, np.ndarray]]
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    choices: int = 0
    loss: Callable[[Any, dict[str, Any]], Any] = hf

    def batch(self, seed: int = 0, rows: int = ROWS) -> dict[str, np.ndarray]:
        words = losses.words(self.cls, rows, seed, self.choices)
        return words | self.labels(words, np.random.default_rng([seed, 7]))

    def made(self, config: Any) -> Any:
        return self.objective if hasattr(self.objective, "name") else self.objective(config)


def tokens(below: int):
    def labels(words, draw):
        drawn = draw.integers(0, below, words["input_ids"].shape)
        return {"labels": some_ignored(drawn, words["attention_mask"])}

    return labels


def rows(below: int, ignored: bool = False, name: str = "labels"):
    def labels(words, draw):
        drawn = draw.integers(0, below, len(words["input_ids"]))
        if ignored:
            drawn[1] = losses.IGNORED
        return {name: drawn}

    return labels


def own_words(words, draw):
    return {"labels": np.where(words["attention_mask"] == 1, words["input_ids"], losses.IGNORED)}


def shifted(words, draw):
    labels = own_words(words, draw)["labels"]
    last = np.full_like(labels[:, :1], losses.IGNORED)
    return {"shift_labels": np.concatenate([labels[:, 1:], last], axis=1)}


def both(*kinds):
    return lambda words, draw: {k: v for kind in kinds for k, v in kind(words, draw).items()}


def real(shape: tuple[int, ...] = ()):
    return lambda words, draw: {"labels": draw.normal(size=(len(words["input_ids"]), *shape))}


def several(count: int, dtype: Any = np.float64):
    def labels(words, draw):
        return {"labels": draw.integers(0, 2, (len(words["input_ids"]), count)).astype(dtype)}

    return labels


def spans(starts: list[int], ends: list[int]):
    return lambda words, draw: {
        "start_positions": np.array(starts),
        "end_positions": np.array(ends),
    }


def double_labels(words, draw):
    lengths = words["attention_mask"].sum(axis=-1)
    mc_labels = draw.integers(0, 2, len(lengths))
    return own_words(words, draw) | {"mc_labels": mc_labels, "mc_token_ids": lengths - 1}


def window(words, draw):
    return {}


def taught(kind, classes: int, axes: tuple[int, ...] = ()):
    def labels(words, draw):
        given = kind(words, draw)
        shape = (len(words["input_ids"]), *axes, classes)
        return given | {"teacher_logits": draw.normal(size=shape)}

    return labels


def distil(objective):
    return train.distillation(objective, temperature=T, alpha=ALPHA)


SMOOTHING, WEIGHTS = 0.2, (1.5, 0.25, 3.0, 1.0, 0.5)


def weighting(weights=None, shift=False):
    """Returns PyTorch's cross-entropy with smoothed labels and weighted classes."""

    def loss(model, batch):
        labels, logits = batch["labels"], model(**batch).logits
        if shift:
            labels, logits = labels[:, 1:], logits[:, :-1]
        return torch.nn.functional.cross_entropy(
            logits.flatten(0, -2),
            labels.flatten(),
            weight=weights and torch.tensor(weights, dtype=torch.float64),
            label_smoothing=SMOOTHING,
        )

    return loss


def weighed(objective, weights=WEIGHTS):
    return train.weighted(objective, label_smoothing=SMOOTHING, class_weights=weights)


def sides(*prefixes: str, negatives: int = 0):
    """Texts for every side of a pair; hard negatives, if any, have an axis of their own."""

    def labels(words, draw):
        found = {}
        for number, prefix in enumerate(prefixes):
            several = negatives if prefix == "negative_" else 0
            side = losses.words("BertModel", len(words["input_ids"]), number + 3, several)
            found |= {prefix + name: array for name, array in side.items()}
        return found

    return labels


BERT_CLASSIFIER, GPT2_CLASSIFIER = "BertForSequenceClassification", "GPT2ForSequenceClassification"
PAD = {"pad_token_id": 0}
REGRESSION = {"problem_type": "regression"}
PAIR = sides("anchor_", "positive_")
TRIPLE = sides("anchor_", "positive_", "negative_")
MANY = sides("anchor_", "positive_", "negative_", negatives=2)
CASES = {
    "causal": Case("GPT2LMHeadModel", train.causal_lm, own_words),
    "causal, some": Case("GPT2LMHeadModel", train.causal_lm, tokens(VOCAB)),
    "causal, shifted": Case(
        "GPT2LMHeadModel",
        train.causal_lm,
        shifted,
        loss=lambda m, b: hf(m, b | {"labels": b["shift_labels"]}),
    ),
    "causal BERT": Case("BertLMHeadModel", train.causal_lm, own_words, {"is_decoder": True}),
    "masked": Case("BertForMaskedLM", train.masked_lm, tokens(VOCAB)),
    "pretraining": Case(
        "BertForPreTraining",
        train.pretraining,
        both(tokens(VOCAB), rows(2, True, "next_sentence_label")),
    ),
    "sentence order": Case(
        "AlbertForPreTraining",
        train.sentence_order_pretraining,
        both(tokens(VOCAB), rows(2, True, "sentence_order_label")),
    ),
    "next sentence": Case("BertForNextSentencePrediction", train.next_sentence, rows(2)),
    "next sentence, some": Case(
        "BertForNextSentencePrediction", train.next_sentence, rows(2, True)
    ),
    "continuation": Case("BertForMaskedLM", train.continuation(FILLER), window, loss=continued),
    "continuation GPT-2": Case(
        "GPT2LMHeadModel", train.continuation(FILLER), window, loss=continued
    ),
    "one label": Case(BERT_CLASSIFIER, train.classification, rows(5, True), {"num_labels": 5}),
    "one label, named": Case(
        BERT_CLASSIFIER,
        train.classification,
        rows(2),
        {"num_labels": 2, "problem_type": "single_label_classification"},
    ),
    "several labels": Case(BERT_CLASSIFIER, train.classification, several(5), {"num_labels": 5}),
    "several labels, named": Case(
        BERT_CLASSIFIER,
        train.classification,
        several(3),
        {"num_labels": 3, "problem_type": "multi_label_classification"},
    ),
    "regression": Case(BERT_CLASSIFIER, train.classification, real(), {"num_labels": 1}),
    "regression, an axis": Case(
        BERT_CLASSIFIER, train.classification, real((1,)), {"num_labels": 1}
    ),
    "regression of three": Case(
        BERT_CLASSIFIER, train.classification, real((3,)), {"num_labels": 3, **REGRESSION}
    ),
    "one label GPT-2": Case(
        GPT2_CLASSIFIER, train.classification, rows(5), {"num_labels": 5, **PAD}
    ),
    "several labels GPT-2": Case(
        GPT2_CLASSIFIER, train.classification, several(5), {"num_labels": 5, **PAD}
    ),
    "regression GPT-2": Case(
        GPT2_CLASSIFIER, train.classification, real(), {"num_labels": 1, **PAD}
    ),
    "tokens": Case(
        "BertForTokenClassification", train.token_classification, tokens(5), {"num_labels": 5}
    ),
    "tokens GPT-2": Case(
        "GPT2ForTokenClassification", train.token_classification, tokens(5), {"num_labels": 5}
    ),
    "weighted labels": Case(
        BERT_CLASSIFIER,
        lambda config: weighed(train.classification(config)),
        rows(5, True),
        {"num_labels": 5},
        loss=weighting(WEIGHTS),
    ),
    "weighted tokens": Case(
        "BertForTokenClassification",
        weighed(train.token_classification),
        tokens(5),
        {"num_labels": 5},
        loss=weighting(WEIGHTS),
    ),
    "smoothed masked": Case(
        "BertForMaskedLM", weighed(train.masked_lm, None), tokens(VOCAB), loss=weighting()
    ),
    "smoothed causal": Case(
        "GPT2LMHeadModel",
        weighed(train.causal_lm, None),
        own_words,
        loss=weighting(shift=True),
    ),
    "choices": Case("BertForMultipleChoice", train.multiple_choice, rows(4, True), choices=4),
    "double": Case(
        "GPT2DoubleHeadsModel", train.double_heads, double_labels, choices=2, loss=double_loss
    ),
    "spans": Case(
        "BertForQuestionAnswering", train.question_answering, spans([0, 3, 10], [1, 3, 10])
    ),
    "spans outside": Case(
        "BertForQuestionAnswering", train.question_answering, spans([-4, 3, 99], [11, 3, 2])
    ),
    "spans GPT-2": Case(
        "GPT2ForQuestionAnswering", train.question_answering, spans([0, 3, 11], [1, 3, 10])
    ),
    "pairs": Case("BertModel", train.contrastive(), PAIR, loss=ranking()),
    "triples": Case("BertModel", train.contrastive(scale=7.0), TRIPLE, loss=ranking(7.0)),
    "two negatives": Case("BertModel", train.contrastive(), MANY, loss=ranking()),
    "pairs GPT-2": Case("GPT2Model", train.contrastive(), PAIR, loss=ranking()),
    "taught label": Case(
        BERT_CLASSIFIER,
        lambda c: distil(train.classification(c)),
        taught(rows(5), 5),
        {"num_labels": 5},
        loss=distilled,
    ),
    "taught words": Case(
        "BertForMaskedLM",
        distil(train.masked_lm),
        taught(tokens(VOCAB), VOCAB, (SEQ,)),
        loss=distilled,
    ),
    "taught next words": Case(
        "GPT2LMHeadModel", distil(train.causal_lm), taught(own_words, VOCAB, (SEQ,)), loss=distilled
    ),
}
QUICK = ("causal", "masked", "one label", "pairs")


@pytest.mark.parametrize("name", slow_but(CASES, *QUICK))
def test_loss_and_gradients(name, tmp_path):
    case = CASES[name]
    batch = case.batch()
    with oracle.float64():
        theirs, ours = losses.pair(case.cls, tmp_path, **case.config)
        objective = case.made(ours.config)
        with losses.wide_losses():
            loss = case.loss(theirs, losses.tensors(batch))
        expected = losses.torch_gradients(theirs, loss)
        value, found = losses.value_and_gradients(ours, objective, batch)
    assert loss.item() > 0.01
    assert abs(value - loss.item()) <= FLOAT64
    assert losses.distance(found, expected) <= GRADIENT


@pytest.mark.slow
def test_texts_that_share_a_row(tmp_path):
    """A batch without padding, as transformers' collator makes it and its `Trainer` computes it."""
    lengths, draw = (4, 1, 6), np.random.default_rng(3)
    texts = [draw.integers(0, VOCAB, length) for length in lengths]
    collator = transformers.DataCollatorWithFlattening(return_tensors="np")
    batch = collator([{"input_ids": text.tolist()} for text in texts])
    assert batch["position_ids"].max() == 5
    assert "attention_mask" not in batch
    with oracle.float64():
        theirs, ours = losses.pair("GPT2LMHeadModel", tmp_path)
        theirs.config.use_cache = False  # as `Trainer` sets it
        with losses.wide_losses():
            loss = theirs(**losses.tensors(batch)).loss
            alone = [theirs(torch.tensor(text[None])).logits[0] for text in texts]
        expected = losses.torch_gradients(theirs, loss)
        value, found = losses.value_and_gradients(ours, train.causal_lm, batch)
        (taught,) = train.with_teacher(ours, [batch])
        evaluated = train.Trainer(ours, train.causal_lm, train.adamw(1e-3)).evaluate([batch])
    assert abs(value - loss.item()) <= FLOAT64
    assert abs(float(evaluated["loss"]) - loss.item()) <= FLOAT64
    assert losses.distance(found, expected) <= GRADIENT
    scores = torch.cat(alone).detach().numpy()
    assert np.abs(taught["teacher_logits"][0] - scores).max() <= FLOAT64


@pytest.mark.slow
def test_a_teacher_adds_its_scores(tmp_path):
    """The divergence of a model from itself is 0."""
    batch = losses.words("BertForMaskedLM") | {
        "labels": losses.words("BertForMaskedLM")["input_ids"]
    }
    with oracle.float64():
        _, teacher = losses.pair("BertForMaskedLM", tmp_path)
        (found,) = train.with_teacher(teacher, [batch])
        outputs = train.masked_lm.apply(teacher, batch, None)
        assert found.keys() == batch.keys() | {"teacher_logits"}
        assert np.abs(found["teacher_logits"] - np.asarray(outputs.logits)).max() <= FLOAT64
        assert abs(float(train.distillation(train.masked_lm, alpha=1.0)(outputs, found))) <= FLOAT64
