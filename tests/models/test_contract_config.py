"""Configs of every family: what is refused by name, and sizes that are not the checkpoint's."""

import pytest

import minibert
from families import FACTS
from malformed import edit_json, load, refused
from minibert.errors import CheckpointMismatchError, UnsupportedConfigError

CONFIG = "config.json"
UNSUPPORTED = {
    "pruned": ({"pruned_heads": {"0": [1]}}, "{'0': [1]}"),
    "quantized": ({"quantization_config": {"bits": 4}}, "{'bits': 4}"),
    "quantized-empty": ({"quantization_config": {}}, "{}"),
    "quantized-false": ({"quantization_config": False}, "False"),
    "layers-differ": ({"per_layer_config": {"0": {"num_attention_heads": 6}}}, "{'0': {'num_"),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
@pytest.mark.parametrize("family", FACTS)
def test_unsupported(family, case, pristine, tmp_path):
    (change, found), name = UNSUPPORTED[case], FACTS[family].tensors.name
    folder = pristine.copy(tmp_path / "model", name)
    edit_json(folder / CONFIG, lambda config: config.update(change))
    said = (str(folder / CONFIG), f"{next(iter(change))}: ", found, "is not implemented")
    refused(UnsupportedConfigError, said, lambda: load(folder, name))


@pytest.mark.parametrize(
    ("facts", "field", "size", "said"),
    [
        pytest.param(facts, field, *row, id=f"{facts.model_type}-{field}")
        for facts in FACTS.values()
        for field, row in facts.sizes.items()
    ],
)
def test_size_that_is_not_the_checkpoints(facts, field, size, said, pristine, tmp_path):
    name = facts.tensors.name
    folder = pristine.copy(tmp_path / "model", name)

    config_class = getattr(minibert, name).config_class

    def change(config):
        config.pop(config_class.aliases.get(field, field.strip()), None)
        config[field.strip()] = size

    edit_json(folder / CONFIG, change)
    error = refused(CheckpointMismatchError, (str(folder),), lambda: load(folder, name))
    assert said in "\n".join(error.faults)
