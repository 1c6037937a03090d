"""Configs of new models: they have the tokenizer's ids, or an error is raised."""

import json

import pytest

import minibert
from minibert.errors import ConfigError
from minibert.train.job.tasks import fresh_config

pytestmark = pytest.mark.unoptimised

CLASSES = (minibert.GPT2LMHeadModel, minibert.BertLMHeadModel)


class Tokenizer:
    """The attributes of a tokenizer that a config needs."""

    pad_token_id, bos_token_id, eos_token_id = 5, None, 7

    def __len__(self):
        return 61


def made(name, classes=CLASSES, **labels):
    return fresh_config(str(name), classes[0].config_class.model_type, classes, Tokenizer(), labels)


def test_a_preset_has_the_tokenizers_ids():
    config = made("tiny")
    assert (config.vocab_size, config.pad_token_id) == (61, 5)
    assert config.to_dict()["eos_token_id"] == config.generation["eos_token_id"] == 7
    assert "bos_token_id" not in config.generation
    assert made("tiny", (minibert.BertForMaskedLM,)).pad_token_id == 5


def test_a_file_is_completed_or_refused(tmp_path):
    path = tmp_path / "config.json"
    sizes = {"vocab_size": 64, "n_embd": 24, "n_layer": 1, "n_head": 3, "n_positions": 8}
    given = {"model_type": "gpt2", **sizes, "pad_token_id": None, "task": "mine"}
    path.write_text(json.dumps(given))
    config = made(path)
    assert (config.vocab_size, config.pad_token_id) == (64, 5)
    assert config.extra["task"] == "mine"
    assert config.extra["eos_token_id"] == 7
    for key, other in (("pad_token_id", 0), ("eos_token_id", 50256)):
        path.write_text(json.dumps(given | {key: other}))
        with pytest.raises(
            ConfigError, match=rf"config.json: {key}: expected \d, as in the tokenizer"
        ):
            made(path)
    path.write_text(json.dumps(given | {"vocab_size": 60}))
    with pytest.raises(ConfigError, match="vocab_size: expected at least 61"):
        made(path)
    path.write_text(json.dumps(given | {"model_type": "t5"}))
    with pytest.raises(ConfigError, match="expected gpt2 or bert"):
        made(path)
    with pytest.raises(ConfigError, match=r"expected a config.json or a preset, found 'replace'"):
        made("replace")
