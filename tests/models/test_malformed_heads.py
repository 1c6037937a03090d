"""Heads that are missing, halved or not the class's own; tied copies that are not copies."""

import numpy as np
import pytest
from flax import nnx

from malformed import (
    FINITE,
    FLOATS,
    ONES,
    WEIGHTS,
    add,
    both,
    cases,
    cast,
    drop,
    edit_tensors,
    holding,
    join,
    load,
    put,
    refused,
    split,
)
from minibert.errors import (
    CheckpointMismatchError,
    InputError,
    MissingHeadError,
    WeightsFileError,
)

MASKED = "BertForMaskedLM"
CLASSIFIER = "BertForSequenceClassification"
DECODER = "cls.predictions.decoder.weight"
EMBEDDED = "bert.embeddings.word_embeddings.weight"
DENSE = "cls.predictions.transform.dense.weight"


def decoder(change):
    """A copy of the embeddings in the file, changed."""
    return lambda tensors: tensors.update({DECODER: change(tensors[EMBEDDED])})


def without(prefix):
    return lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith(prefix)]


HEADS = {
    "missing": (MASKED, without("cls."), MissingHeadError, ("'cls.predictions'", "new_head=True")),
    "missing-classifier": (CLASSIFIER, without("classifier."), MissingHeadError, ("'classifier'",)),
    "missing-pooler": (CLASSIFIER, without("bert.pooler."), MissingHeadError, ("'bert.pooler'",)),
    "half": (
        CLASSIFIER,
        drop("classifier.bias"),
        CheckpointMismatchError,
        ("'classifier.bias': expected (2,)", "half of the head 'classifier'"),
    ),
    "half-pooler": (
        CLASSIFIER,
        drop("bert.pooler.dense.weight"),
        CheckpointMismatchError,
        ("'bert.pooler.dense.weight': expected (24, 24)", "half of the head"),
    ),
    "half-of-masked": (MASKED, drop(DENSE), CheckpointMismatchError, (DENSE, "half of the head")),
    "extra-in-it": (
        MASKED,
        add("cls.predictions.spare", ONES),
        CheckpointMismatchError,
        ("'cls.predictions.spare'", "no leaf of BertForMaskedLM"),
    ),
    "more-labels": (
        CLASSIFIER,
        both(
            put("classifier.weight", lambda a: a[[0, 1, 0]]),
            put("classifier.bias", lambda a: a[[0, 1, 0]]),
        ),
        CheckpointMismatchError,
        ("'classifier.weight': expected shape (2, 24), found (3, 24)", "'classifier.bias'"),
    ),
    "missing-and-a-fault": (
        CLASSIFIER,
        both(without("classifier."), add("spare", ONES)),
        CheckpointMismatchError,
        ("2 faults", "'spare'", "the head 'classifier' is not in the file"),
    ),
    "decoder-of-another-shape": (
        MASKED,
        decoder(lambda a: a[:-1]),
        CheckpointMismatchError,
        (f"'{DECODER}': expected shape (97, 24), found (96, 24)",),
    ),
    "decoder-of-integers": (
        MASKED,
        decoder(cast(np.int32)),
        CheckpointMismatchError,
        (DECODER, FLOATS),
    ),
    "decoder-with-nan": (
        MASKED,
        decoder(holding(np.nan)),
        CheckpointMismatchError,
        (DECODER, FINITE),
    ),
    "embeddings-only-as-decoder": (
        MASKED,
        both(decoder(lambda a: a), drop(EMBEDDED)),
        CheckpointMismatchError,
        (f"'{EMBEDDED}'", "found no such tensor"),
    ),
    "nan-in-both-copies": (
        MASKED,
        both(put(EMBEDDED, holding(np.nan)), decoder(lambda a: a)),
        CheckpointMismatchError,
        (EMBEDDED, FINITE),
    ),
}


@pytest.mark.parametrize(("name", "change", "error", "said"), cases(HEADS))
def test_head(name, change, error, said, pristine, tmp_path):
    folder = pristine.copy(tmp_path / "model", name)
    edit_tensors(folder, change)
    refused(error, (str(folder), *said), lambda: load(folder, name))


def vast_copies(folder):
    """Two empty tensors, a tied pair, of a shape that numpy cannot hold."""
    header, data = split(folder / WEIGHTS)
    vast = {"dtype": "F32", "shape": [0, 2**62], "data_offsets": [len(data), len(data)]}
    cut = header[EMBEDDED]["data_offsets"]
    for entry in header.values():
        if "data_offsets" in entry and entry["data_offsets"][0] >= cut[1]:
            entry["data_offsets"] = [o - cut[1] + cut[0] for o in entry["data_offsets"]]
    vast["data_offsets"] = [len(data) - cut[1] + cut[0]] * 2
    header |= {EMBEDDED: vast, DECODER: vast}
    join(folder / WEIGHTS, header, data[: cut[0]] + data[cut[1] :])


def test_tied_copies_of_a_vast_shape(pristine, tmp_path):
    folder = pristine.copy(tmp_path / "model", MASKED)
    vast_copies(folder)
    refused(WeightsFileError, (EMBEDDED, "(0, 4611686018427387904)"), lambda: load(folder, MASKED))


def test_new_head_needs_keys(pristine):
    said = ("rngs", "nnx.Rngs(0)")
    refused(InputError, said, lambda: load(pristine.folder(), CLASSIFIER, new_head=True))


def test_new_head_is_reported(pristine):
    model, info = load(
        pristine.folder(), CLASSIFIER, new_head=True, rngs=nnx.Rngs(0), output_loading_info=True
    )
    assert set(info.new) == {"classifier.weight", "classifier.bias"}
    assert np.isfinite(model.classifier.kernel[...]).all()


def test_unused_head_is_left_unread(pristine, tmp_path):
    folder = pristine.copy(tmp_path / "model", MASKED)
    edit_tensors(folder, put(DENSE, holding(np.nan)))
    _, info = load(folder, output_loading_info=True)
    assert DENSE in info.left
    assert "pooler" in info.absent


def test_report_of_a_name_with_control_characters(pristine, tmp_path):
    """A head that is left may have any name; printed, it must not forge a line."""
    folder = pristine.copy(tmp_path / "model", MASKED)
    edit_tensors(folder, add("classifier.\n  matched: 0\0", ONES))
    _, info = load(folder, MASKED, output_loading_info=True)
    assert info.left == ("classifier.\n  matched: 0\0",)
    assert all(line.isprintable() for line in str(info).split("\n"))
    assert sum(line.startswith("  matched") for line in str(info).split("\n")) == 1
