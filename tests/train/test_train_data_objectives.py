"""The batches of every task fit its objective."""

import numpy as np
import pytest

import minibert
from minibert import train
from minibert.errors import InputError
from minibert.train import data
from minibert.train.batches import checked_batch

pytest.importorskip("grain", reason="training data are read by grain")

BERT = minibert.BertConfig.tiny(vocab_size=30522, num_labels=2)
DOCUMENTS = [["the lamp burns", "the keeper sleeps", "it is night"], ["one", "two", "three four"]]
LABELLED = [{"text": "the lamp", "label": n} for n in (0, 1, 1)]
SEVERAL = [{"text": "the lamp", "label": ids} for ids in ([0], [0, 1], [])]
REAL = [{"text": "the lamp", "label": n} for n in (0.5, 1.5)]
WORDS = [{"tokens": ["the", "lamp"], "labels": [0, 1]}]
CONTEXT = "the lamp burns"
ASKED = [
    {
        "question": "what burns?",
        "context": CONTEXT,
        "answers": {"text": ["lamp"], "answer_start": [4]},
    }
]
LIKE = [{"anchor": "a lamp", "positive": "the lamp"}, {"anchor": "one", "positive": "two"}]


def several(source, tokenizer, **options):
    return data.classification(
        source, tokenizer, problem_type="multi_label_classification", **options
    )


def real(source, tokenizer, **options):
    return data.classification(source, tokenizer, problem_type="regression", **options)


@pytest.mark.parametrize(
    ("dataset", "source", "objective", "changes"),
    [
        (data.masked_lm, ["the lamp burns"], train.masked_lm, {}),
        (data.pretraining, DOCUMENTS, train.pretraining, {}),
        (data.classification, LABELLED, train.classification, {}),
        (several, SEVERAL, train.classification, {}),
        (real, REAL, train.classification, {"num_labels": 1}),
        (data.token_classification, WORDS, train.token_classification, {}),
        (data.question_answering, ASKED, train.question_answering, {}),
        (data.contrastive, LIKE, train.contrastive, {}),
    ],
)
def test_batches_are_what_objectives_take(tokenizer, dataset, source, objective, changes):
    config = BERT.replace(**changes)
    if objective is train.classification:
        objective = objective(config)
    elif objective is train.contrastive:
        objective = objective()
    options = {"doc_stride": 2} if dataset is data.question_answering else {}
    batch = next(iter(dataset(source, tokenizer, max_length=16, batch_size=8, **options)))
    used = checked_batch(config, objective, batch, 1)
    assert batch.keys() - used.keys() == {"example"}
    assert all(isinstance(array, np.ndarray) for array in batch.values())
    with pytest.raises(InputError):
        checked_batch(config.replace(vocab_size=50), objective, batch, 1)


def test_windows_are_what_causal_models_take():
    batch = next(iter(data.windows(np.arange(90), max_length=8, batch_size=4)))
    used = checked_batch(minibert.GPT2Config.tiny(), train.causal_lm, batch, 1)
    assert batch.keys() - used.keys() == {"example"}
