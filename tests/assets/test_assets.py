"""The embedded models: their files and sizes, and the figures and recipe of their cards."""

import json
import pathlib
import re

import jax
import numpy as np
import pytest
from transformers import AutoTokenizer

import minibert
from benchmarks import embedded, embedded_card, embedded_text
from conftest import EMBEDDING, FLOAT32
from minibert import assets

FOLDERS = {"BertForMaskedLM": assets.BERT, "GPT2LMHeadModel": assets.GPT2}
MEGABYTES = 12  # all of the assets
TEXTS = ["Use the with statement.", "An exception was raised, and caught again."]

own_text = pytest.mark.skipif(
    embedded_text.sha256() != embedded_text.SHA256,
    reason=f"the text is that of Python {embedded_text.PYTHON}",
)


@pytest.fixture(scope="module")
def figures():
    return {folder: embedded.figures(folder) for folder in FOLDERS.values()}


def test_they_are_small():
    sizes = [path.stat().st_size for path in pathlib.Path(assets.HOME).rglob("*") if path.is_file()]
    assert sum(sizes) <= MEGABYTES * 10**6


@pytest.mark.parametrize("name", FOLDERS)
def test_they_load_strictly(name):
    """No tensor is left over, initialised or ignored; the vocabulary size is the tokenizer's."""
    model, info = minibert.load(FOLDERS[name], output_loading_info=True)
    assert type(model).__name__ == name
    for fate in ("left", "new", "ignored", "suspicious", "config_ignored"):
        assert not getattr(info, fate), fate
    assert set(info.dtypes) == {"float32"}
    tokenizer = AutoTokenizer.from_pretrained(FOLDERS[name])
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer.model_max_length == model.config.max_position_embeddings


@pytest.mark.parametrize("name", FOLDERS)
def test_transformers_loads_them(name):
    torch = pytest.importorskip("torch")
    import transformers

    theirs, info = getattr(transformers, name).from_pretrained(
        FOLDERS[name], output_loading_info=True
    )
    assert not any(info.values()), info
    ids = AutoTokenizer.from_pretrained(FOLDERS[name])(TEXTS[0]).input_ids
    with torch.no_grad():
        expected = theirs.eval()(torch.tensor([ids])).logits.numpy()
    with jax.default_matmul_precision("highest"):
        found = minibert.compiled(minibert.load(FOLDERS[name]))(np.array([ids])).logits
    np.testing.assert_allclose(found, expected, atol=FLOAT32)


def test_sentence_transformers_loads_the_bert():
    peer = pytest.importorskip("sentence_transformers")
    theirs = peer.SentenceTransformer(assets.BERT, device="cpu").encode(TEXTS)
    ours = minibert.SentenceEncoder.from_pretrained(assets.BERT).encode(TEXTS)
    np.testing.assert_allclose(ours, theirs, atol=EMBEDDING)


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS.values(), ids=FOLDERS)
def test_the_card_says_what_is_measured(folder, figures):
    """Figures agree to about the last digit, because machines round differently."""
    card = pathlib.Path(folder, "README.md").read_text()
    assert embedded_text.SHA256 in card
    assert f"Python {embedded_text.PYTHON}" in card
    rows = re.findall(r"^\| (\S+) \| ([\d.]+)% \| ([\d.,]+) \|$", card, re.M)
    assert len(rows) == 3
    for (_, accuracy, perplexity), found in zip(rows, figures[folder].values(), strict=True):
        assert float(accuracy) / 100 == pytest.approx(found["accuracy"], abs=1e-3)
        assert float(perplexity.replace(",", "")) == pytest.approx(found["perplexity"], rel=2e-3)


@pytest.mark.parametrize("folder", FOLDERS.values(), ids=FOLDERS)
def test_they_have_learnt_something(folder, figures):
    model, unigram, uniform = figures[folder].values()
    assert model["accuracy"] > 3 * unigram["accuracy"] > uniform["accuracy"]
    assert model["perplexity"] < unigram["perplexity"] / 4 < uniform["perplexity"] / 4


def test_every_word_is_asked_for_once():
    """The figures' rows, on topics of all awkward lengths."""
    bert = AutoTokenizer.from_pretrained(assets.BERT)
    gpt2 = AutoTokenizer.from_pretrained(assets.GPT2)
    topics = [np.arange(100, 100 + size) for size in (1, 5, 14, 29)]
    asked = list(embedded.masked_rows(topics, bert, 16))
    for row in asked:
        masked = row["input_ids"] == bert.mask_token_id
        assert masked.any()
        np.testing.assert_array_equal(masked, row["labels"] != -100)
    labels = np.concatenate([row["labels"] for row in asked])
    np.testing.assert_array_equal(np.sort(labels[labels >= 0]), np.sort(np.concatenate(topics)))
    follow = list(embedded.next_rows(topics, gpt2, 16))
    labels = np.concatenate([row["shift_labels"] for row in follow])
    ends = [np.append(topic, gpt2.eos_token_id) for topic in topics]
    np.testing.assert_array_equal(labels[labels >= 0], np.concatenate(ends))
    for row in follow:  # each label is the word behind the one it stands at
        places = np.flatnonzero(row["shift_labels"][:-1] >= 0)
        seen = row["input_ids"][places + 1]
        behind = row["attention_mask"][places + 1] == 1
        np.testing.assert_array_equal(seen[behind], row["shift_labels"][places][behind])


def test_batches_are_filled_up():
    rows = [embedded.empty(4, 0) | {"labels": np.array([7, -100, -100, -100])}] * 33
    batches = list(embedded.batches(rows))
    assert [batch["labels"].shape for batch in batches] == [(32, 4)] * 2
    assert sum(int((batch["labels"] >= 0).sum()) for batch in batches) == 33


@own_text
def test_nothing_held_out_is_trained_on():
    training, held_out = embedded_text.documents()
    words = [
        {" ".join(text.split()) for texts in found.values() for text in texts}
        for found in (training, held_out)
    ]
    assert not words[0] & words[1]
    assert not training.keys() & held_out.keys()
    assert len(held_out) == 9


@own_text
@pytest.mark.parametrize("name", ["bert-pydoc", "gpt2-pydoc"])
def test_tokenizers_and_held_out_tokens_are_made_again(name, tmp_path):
    from benchmarks.embedded_recipe import RECIPES, joined, write_held_out

    folder = pathlib.Path(assets.HOME, name)
    training, held_out = map(joined, embedded_text.documents())
    tokenizer = RECIPES[name].tokenizer(training)
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(folder).get_vocab()
    write_held_out(tmp_path / "held_out.npz", tokenizer, training, held_out)
    made, shipped = np.load(tmp_path / "held_out.npz"), np.load(folder / "held_out.npz")
    assert made.files == shipped.files
    for key in made.files:
        np.testing.assert_array_equal(made[key], shipped[key])


@own_text
@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert-pydoc", "gpt2-pydoc"])
def test_the_recipe_makes_such_folders(name, tmp_path):
    """Three steps of it: the same files, sizes and settings, and a card."""
    from benchmarks.embedded_recipe import SIZE, make

    folder, shipped = tmp_path / name, pathlib.Path(assets.HOME, name)
    training = make(name, folder, steps=3)
    card = embedded_card.card(name, SIZE, training, embedded.figures(str(folder)))
    (folder / "README.md").write_text(card)
    files = [
        sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file())
        for home in (folder, shipped)
    ]
    assert files[0] == files[1]
    for file in ("config.json", "tokenizer_config.json"):
        assert json.loads((folder / file).read_text()) == json.loads((shipped / file).read_text())
