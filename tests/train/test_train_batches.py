"""An invalid batch is refused before anything is computed; the error names the entry."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import minibert
from minibert import train
from minibert.errors import InputError
from minibert.models.outputs import BaseModelOutputWithPastAndCrossAttentions, MaskedLMOutput
from minibert.train.batches import checked_batch

CONFIG = minibert.BertConfig.tiny(num_labels=4)
ROWS, SEQ = 4, 6
IDS = np.ones((ROWS, SEQ), int)
WORDS = {"input_ids": IDS, "attention_mask": IDS}
CHOICES = {"input_ids": np.ones((ROWS, 3, SEQ), int)}
CLASSES = np.zeros(ROWS, int)
SPANS = {"start_positions": CLASSES, "end_positions": CLASSES}
PAIRS = {"anchor_input_ids": IDS, "positive_input_ids": IDS}
DOUBLE = CHOICES | {"labels": CHOICES["input_ids"], "mc_labels": CLASSES}
LABELS = WORDS | {"labels": IDS}
ONE = train.classification(CONFIG)
SEVERAL = train.classification(
    dataclasses.replace(CONFIG, problem_type="multi_label_classification")
)
REGRESSION = train.classification(dataclasses.replace(CONFIG, problem_type="regression"))
TAUGHT = train.distillation(train.masked_lm)

RIGHT = {
    "masked_lm": (train.masked_lm, LABELS),
    "embeddings": (
        train.masked_lm,
        {"inputs_embeds": np.ones((ROWS, SEQ, 24), np.float32), "labels": IDS},
    ),
    "causal_lm": (train.causal_lm, LABELS),
    "shift_labels": (train.causal_lm, WORDS | {"shift_labels": IDS}),
    "pretraining": (train.pretraining, LABELS | {"next_sentence_label": CLASSES}),
    "replaced_tokens": (train.replaced_tokens, WORDS | {"labels": IDS % 2}),
    "sentence_order_pretraining": (
        train.sentence_order_pretraining,
        LABELS | {"sentence_order_label": CLASSES},
    ),
    "next_sentence": (train.next_sentence, WORDS | {"labels": CLASSES}),
    "continuation": (train.continuation(5), WORDS),
    "filler": (train.continuation(96), WORDS | {"attention_mask": np.ones((ROWS, SEQ), int)}),
    "one label": (ONE, WORDS | {"labels": CLASSES}),
    "several labels": (SEVERAL, WORDS | {"labels": np.ones((ROWS, 4))}),
    "regression": (REGRESSION, WORDS | {"labels": np.full((ROWS, 4), -3.5)}),
    "token_classification": (train.token_classification, WORDS | {"labels": IDS}),
    "multiple_choice": (train.multiple_choice, CHOICES | {"labels": CLASSES}),
    "double_heads": (train.double_heads, DOUBLE | {"mc_token_ids": np.zeros((ROWS, 3), int)}),
    "question_answering": (train.question_answering, WORDS | SPANS),
    "contrastive": (train.contrastive(), PAIRS | {"negative_input_ids": CHOICES["input_ids"]}),
    "distillation": (TAUGHT, LABELS | {"teacher_logits": np.ones((ROWS, SEQ, 97), np.float32)}),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_batch_goes_through_and_the_rest_is_left_out(name):
    objective, batch = RIGHT[name]
    found = checked_batch(CONFIG, objective, batch | {"example": CLASSES, "text": "?"}, parts=2)
    assert found.keys() == batch.keys()
    assert all((found[key] == batch[key]).all() for key in batch)


def at(array, value):
    changed = np.array(array)
    changed.flat[3] = value
    return changed


NONE = np.full((ROWS, SEQ), -100)
WRONG = {
    "nothing": ("masked_lm", {"labels": None}, "batch: masked_lm needs labels; found"),
    "no words": ("masked_lm", {"input_ids": None}, "needs input_ids or inputs_embeds"),
    "neither": ("causal_lm", {"labels": None}, "needs labels or shift_labels"),
    "half a pair": ("contrastive", {"positive_input_ids": None}, "needs positive_input_ids"),
    "no teacher": ("distillation", {"teacher_logits": None}, "needs teacher_logits"),
    "rows": ("masked_lm", {"labels": IDS[:2]}, "the same number of rows"),
    "empty": ("masked_lm", {"input_ids": IDS[:0], "labels": IDS[:0]}, "the same number of rows"),
    "a number": ("masked_lm", {"labels": 3}, "the same number of rows"),
    "ragged": ("masked_lm", {"labels": [[1], [2, 3], [4], [5]]}, "labels: expected an array"),
    "id": ("masked_lm", {"input_ids": at(IDS, 97)}, "input_ids: 97 is out of range"),
    "mask": ("masked_lm", {"attention_mask": at(IDS, 2)}, "attention_mask: expected only 0 and 1"),
    "label": ("masked_lm", {"labels": at(IDS, 97)}, "labels: 97 is out of range"),
    "negative label": ("masked_lm", {"labels": at(IDS, -1)}, "labels: -1 is out of range"),
    "float labels": ("masked_lm", {"labels": IDS * 1.0}, "labels: expected integers"),
    "short labels": ("masked_lm", {"labels": IDS[:, :5]}, r"labels: expected shape \(4, 6\)"),
    "no target": ("masked_lm", {"labels": NONE}, "labels: no target"),
    "only the first": (
        "causal_lm",
        {"labels": np.where(np.arange(SEQ) == 0, IDS, -100)},
        "labels: no target",
    ),
    "NaN inputs": (
        "masked_lm",
        {"input_ids": None, "inputs_embeds": np.full((ROWS, SEQ, 24), np.nan)},
        "inputs_embeds: expected finite numbers",
    ),
    "window": ("continuation", {"input_ids": at(IDS, 97)}, "input_ids: 97 is out of range"),
    "mask of pairs": (
        "filler",
        {"attention_mask": np.ones((ROWS, SEQ, SEQ), int)},
        r"attention_mask: expected shape \(4, 6\)",
    ),
    "all padding": (
        "filler",
        {"attention_mask": np.zeros((ROWS, SEQ), int)},
        "attention_mask: no target: every position is padding",
    ),
    "no pair": ("pretraining", {"next_sentence_label": CLASSES + 2}, "next_sentence_label: 2 is"),
    "class": ("one label", {"labels": at(CLASSES, 4)}, "labels: 4 is out of range.*num_labels 4"),
    "shape": ("one label", {"labels": CLASSES[:, None]}, r"labels: expected shape \(4,\)"),
    "not a share": ("several labels", {"labels": np.full((ROWS, 4), 1.5)}, "numbers from 0 to 1"),
    "NaN": ("regression", {"labels": np.full((ROWS, 4), np.nan)}, "expected finite numbers"),
    "too few": ("regression", {"labels": np.ones((ROWS, 3))}, r"expected shape \(4, 4\)"),
    "choice": ("multiple_choice", {"labels": at(CLASSES, 3)}, "3 is out of range.*choices 3"),
    "no choices": ("multiple_choice", {"input_ids": IDS}, r"\(batch, choices, seq\)"),
    "past the end": ("double_heads", {"mc_token_ids": np.full((ROWS, 3), SEQ)}, "mc_token_ids: 6"),
    "all past": ("question_answering", {"end_positions": CLASSES + SEQ}, "every position is past"),
    "half a place": ("question_answering", {"end_positions": CLASSES + 0.5}, "expected integers"),
    "anchor": ("contrastive", {"anchor_input_ids": at(IDS, -1)}, "anchor_input_ids: -1 is out"),
    "teacher's shape": (
        "distillation",
        {"teacher_logits": np.ones((ROWS, 97))},
        r"teacher_logits: expected shape \(4, 6, 'classes'\)",
    ),
    "teacher's NaN": (
        "distillation",
        {"teacher_logits": np.full((ROWS, SEQ, 97), np.nan)},
        "teacher_logits: expected finite numbers",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_batch_is_refused(name):
    kind, changes, message = WRONG[name]
    objective, batch = RIGHT[kind]
    batch = {key: value for key, value in (batch | changes).items() if value is not None}
    with pytest.raises(InputError, match=message):
        checked_batch(CONFIG, objective, batch, 1)


def test_a_part_of_a_batch_may_lack_targets():
    """The batch may be one process's part, or one of several in an evaluation."""
    batch = RIGHT["masked_lm"][1] | {"labels": NONE}
    used = checked_batch(CONFIG, train.masked_lm, batch, 1, targets=False)
    assert used["labels"].shape == NONE.shape
    wrong = batch | {"labels": at(IDS, 97)}
    with pytest.raises(InputError, match="labels: 97 is out of range"):
        checked_batch(CONFIG, train.masked_lm, wrong, 1, targets=False)


def test_a_batch_is_a_mapping_of_equal_parts():
    with pytest.raises(InputError, match="batch: expected arrays by name, found"):
        checked_batch(CONFIG, train.masked_lm, [IDS], 1)
    with pytest.raises(InputError, match="4 rows cannot be split into 3 equal parts"):
        checked_batch(CONFIG, train.masked_lm, LABELS, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: train.contrastive(pooling="middle"),
            "pooling: expected one or more of cls, .*found 'middle'",
        ),
        (lambda: train.contrastive(scale=0), "scale: expected a positive number, found 0"),
        (lambda: train.distillation(train.masked_lm, temperature=0), "temperature: expected"),
        (lambda: train.distillation(train.masked_lm, alpha=1.5), "alpha: expected a number from"),
        (
            lambda: train.distillation(train.pretraining).targets(RIGHT["pretraining"][1]),
            "expected a single term pretraining; found masked_lm, next_sentence",
        ),
    ],
)
def test_an_objectives_own_arguments_are_checked(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_a_model_without_the_scores_is_refused():
    trunk = BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=jnp.ones((ROWS, SEQ, 24)))
    with pytest.raises(InputError, match="expected one that returns logits"):
        train.masked_lm(trunk, LABELS)
    few = MaskedLMOutput(logits=jnp.ones((ROWS, 97)))
    with pytest.raises(InputError, match=r"expected shape \(4,\), for logits of shape \(4, 97\)"):
        train.masked_lm(few, LABELS)
    other = MaskedLMOutput(logits=jnp.ones((ROWS, SEQ, 50)))
    with pytest.raises(InputError, match=r"expected the shape of the model's logits, \(4, 6, 50\)"):
        TAUGHT(other, RIGHT["distillation"][1])


def test_a_filler_out_of_range():
    with pytest.raises(InputError, match="filler: 97 is out of range"):
        checked_batch(CONFIG, train.continuation(97), WORDS, parts=1)
