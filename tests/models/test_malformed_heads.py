"""Heads that are new, unused or not requested; tied copies that are not copies."""

import numpy as np
from flax import nnx

from malformed import (
    ONES,
    WEIGHTS,
    add,
    drop,
    edit_json,
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


def test_an_untied_model_needs_its_head(pristine, tmp_path):
    name = "GPT2LMHeadModel"
    folder = pristine.copy(tmp_path / "model", name, {"tie_word_embeddings": False})
    edit_tensors(folder, drop("lm_head.weight"))
    refused(MissingHeadError, ("'lm_head' is not in the file",), lambda: load(folder, name))


def test_cross_attention_in_the_config_alone(pristine, tmp_path):
    folder = pristine.copy(tmp_path / "model", "GPT2LMHeadModel")
    edit_json(folder / "config.json", lambda config: config.update(add_cross_attention=True))
    call = lambda: load(folder, "GPT2LMHeadModel")  # noqa: E731
    error = refused(CheckpointMismatchError, (str(folder),), call)
    assert len(error.faults) == 2 * 8
    assert all("cross" in fault for fault in error.faults)
