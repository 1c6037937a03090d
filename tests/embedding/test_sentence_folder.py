"""Folders of sentence encoders: atomic writing, and reading, also from the Hub's cache."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

import sentences
from conftest import EMBEDDING
from minibert.embedding.encoder import SentenceEncoder
from minibert.errors import ConfigError, InputError, SourceError, TargetError

pytestmark = pytest.mark.unoptimised

FEW, SHA = sentences.FEW, "a" * 40


@pytest.fixture(scope="module")
def encoder():
    return sentences.encoder(prompts={"query": "it is ", "other": "they said "})


def test_recorded_outputs():
    """Compares with what sentence-transformers 6 computed from a folder it saved (tests/record)."""
    ours = SentenceEncoder.from_pretrained(sentences.FIXTURE)
    recorded = load_file(sentences.FIXTURE / "outputs.safetensors")
    found = {
        "encode": ours.encode(FEW),
        "encode_query": ours.encode_query(FEW),
        "encode_document": ours.encode_document(FEW),
        "truncated": ours.encode(FEW, truncate_dim=4, normalize_embeddings=True),
        "binary": ours.encode(FEW, precision="binary"),
        "similarity": ours.similarity(ours.encode(FEW), ours.encode(FEW[:2])),
    }
    assert found.keys() == recorded.keys()
    for name, expected in recorded.items():
        assert found[name].dtype == expected.dtype
        np.testing.assert_allclose(found[name], expected, atol=EMBEDDING, rtol=0)


def test_saving(tmp_path, encoder):
    encoder.save_pretrained(tmp_path / "out")
    with pytest.raises(TargetError, match="already holds"):
        encoder.save_pretrained(tmp_path / "out")
    encoder.save_pretrained(tmp_path / "out", overwrite=True)
    again = SentenceEncoder.from_pretrained(tmp_path / "out")
    assert again.settings == encoder.settings
    assert str(again.model.chain) == str(encoder.model.chain)
    np.testing.assert_array_equal(again.encode(FEW), encoder.encode(FEW))
    again.save_pretrained(tmp_path / "twice")
    for path in sorted((tmp_path / "out").rglob("*")):
        if path.is_file() and path.name != "tokenizer_config.json":  # transformers notes its source
            twin = tmp_path / "twice" / path.relative_to(tmp_path / "out")
            assert twin.read_bytes() == path.read_bytes(), path
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "twice"]


def test_a_failed_save_leaves_nothing(tmp_path, encoder, monkeypatch):
    monkeypatch.setattr(type(encoder.tokenizer), "save_pretrained", lambda *_: 1 / 0)
    with pytest.raises(TargetError, match="the tokenizer cannot be written"):
        encoder.save_pretrained(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_unknown_top_fields_survive(tmp_path, encoder):
    encoder.save_pretrained(tmp_path / "out")
    path = tmp_path / "out" / "config_sentence_transformers.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"__version__": {"a": "1"}}))
    SentenceEncoder.from_pretrained(tmp_path / "out").save_pretrained(tmp_path / "twice")
    twice = json.loads((tmp_path / "twice" / path.name).read_text())
    assert twice["__version__"] == {"a": "1"}
    assert twice["prompts"]["other"] == "they said "


def test_no_torch_is_needed():
    """Loads and encodes in a new process that cannot import torch."""
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['sentence_transformers'] = None;"
        "import minibert; print(*sorted(sys.modules.keys() & {'transformers', 'tokenizers'}));"
        f"e = minibert.SentenceEncoder.from_pretrained({str(sentences.FIXTURE)!r});"
        "print(e.encode(['the', 'of']).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["", "(2, 7)"]


def cached(home, encoder, subfolder="", plain=False):
    """Puts an encoder into a Hub cache as huggingface_hub lays it out: refs, blobs, links."""
    repository = home / "models--acme--tiny"
    snapshot = repository / "snapshots" / SHA
    encoder.save_pretrained(home / "scratch" / subfolder)
    if plain:
        (home / "scratch" / subfolder / "modules.json").unlink()
    for folder in (repository / "refs", repository / "blobs"):
        folder.mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(SHA)
    for number, file in enumerate(sorted((home / "scratch").rglob("*.*"))):
        if file.is_file():
            blob, link = (
                repository / "blobs" / f"{number}",
                snapshot / file.relative_to(home / "scratch"),
            )
            link.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, blob)
            link.symlink_to(os.path.relpath(blob, link.parent))
    shutil.rmtree(home / "scratch")


@pytest.mark.parametrize("subfolder", ["", "inner"])
def test_from_the_hubs_cache(subfolder, tmp_path):
    ours = sentences.encoder(dense=sentences.dense(24, 7), normalize=True)
    cached(tmp_path, ours, subfolder)
    again = SentenceEncoder.from_pretrained(
        "acme/tiny", cache_dir=tmp_path, subfolder=subfolder, local_files_only=True
    )
    np.testing.assert_array_equal(again.encode(FEW), ours.encode(FEW))


def test_a_plain_model_from_the_hubs_cache(tmp_path, encoder):
    cached(tmp_path, encoder, plain=True)
    with pytest.raises(InputError, match=r"pooling: .* has no modules.json"):
        SentenceEncoder.from_pretrained("acme/tiny", cache_dir=tmp_path)
    again = SentenceEncoder.from_pretrained("acme/tiny", cache_dir=tmp_path, pooling="mean")
    np.testing.assert_array_equal(again.encode(FEW), encoder.encode(FEW))


@pytest.mark.parametrize("name", ["acme/absent", "not a name!", "acme/absent/deeper", "/absent"])
def test_absent(name, tmp_path):
    with pytest.raises(SourceError, match=name.strip("/").split("/")[0]):
        SentenceEncoder.from_pretrained(name, cache_dir=tmp_path, local_files_only=True)


def test_a_damaged_repository(tmp_path, encoder):
    cached(tmp_path, encoder)
    snapshot = tmp_path / "models--acme--tiny" / "snapshots" / SHA
    (snapshot / "1_Pooling" / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"1_Pooling/config.json: cannot be read"):
        SentenceEncoder.from_pretrained("acme/tiny", cache_dir=tmp_path)
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(SourceError, match="acme/tiny"):
        SentenceEncoder.from_pretrained("acme/tiny", cache_dir=tmp_path)
