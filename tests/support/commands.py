"""Folders for trying the `minibert` command, and running it."""

import os
import pathlib
import shutil
from typing import Any

import pytest
import transformers  # noqa: F401 - it logs to the stderr of its import, not to one command's
from flax import nnx
from typer.testing import CliRunner

import minibert
from minibert.cli.app import app
from minilm import minilm_folder

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
SIZES: dict[str, Any] = {
    "vocab_size": 30522,
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "intermediate_size": 32,
}


def model_folder(folder: pathlib.Path, name: str, **config: Any) -> str:
    """A small random model of that class, with bert-base-uncased's vocabulary."""
    cls = getattr(minibert, name)
    settings = minibert.BertConfig(**SIZES | config)
    cls(settings, rngs=nnx.Rngs(0)).eval().save_pretrained(folder)
    source = minilm_folder()
    assert source is not None
    for file in TOKENIZER:
        if os.path.exists(os.path.join(source, file)):
            shutil.copy(os.path.join(source, file), folder)
    return str(folder)


def run(*arguments: str) -> Any:
    """The command, run in this process, whose memory is not the command's to keep."""
    with pytest.MonkeyPatch.context() as patch:
        if "train" in arguments[:1]:
            patch.setattr("minibert.train.keep_memory", lambda: False)
        return CliRunner().invoke(app, [str(argument) for argument in arguments])
