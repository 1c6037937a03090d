"""Hub ids, through huggingface_hub itself: a real cache on disk, and the offline switch."""

import os
import pathlib
import subprocess
import sys

import pytest
from flax import nnx
from hub_server import hub_server

import minibert
from folders import SHA, cached, contents
from minibert.errors import PickleRefusedError, SourceError, TargetError

ROOT = pathlib.Path(__file__).parents[2]


def tiny(seed: int = 0):
    return minibert.BertModel(minibert.BertConfig.tiny(), rngs=nnx.Rngs(seed))


def test_revisions(tmp_path):
    models = {revision: tiny(seed) for seed, revision in enumerate(SHA)}
    for revision, model in models.items():
        cached(tmp_path, "acme/tiny", revision, model)
    for revision, model in models.items():
        found = minibert.load("acme/tiny", revision=revision, cache_dir=tmp_path)
        assert (found.pooler.dense.kernel[...] == model.pooler.dense.kernel[...]).all()
    assert minibert.BertModel.from_pretrained("acme/tiny", cache_dir=tmp_path) is not None


def test_shards(tmp_path):
    cached(tmp_path, "acme/tiny", "main", tiny(), max_shard_size="20KB")
    _, info = minibert.load("acme/tiny", cache_dir=tmp_path, output_loading_info=True)
    assert len(info.files) > 2


@pytest.mark.parametrize("name", ["acme/absent", "tiny", "not a name!", "acme/absent/deeper"])
def test_absent(name, tmp_path):
    with pytest.raises(SourceError, match=name.split("/")[0]):
        minibert.load(name, cache_dir=tmp_path, local_files_only=True)


def test_absent_revision(tmp_path):
    cached(tmp_path, "acme/tiny", "main", tiny())
    with pytest.raises(SourceError, match="acme/tiny"):
        minibert.load("acme/tiny", revision="v3", cache_dir=tmp_path)


def test_a_folder_wins_over_the_hub(tmp_path, monkeypatch):
    tiny().save_pretrained(tmp_path / "acme" / "tiny")
    monkeypatch.chdir(tmp_path)
    assert minibert.load("acme/tiny") is not None


def test_subfolder(tmp_path):
    tiny().save_pretrained(tmp_path / "outer" / "inner")
    assert minibert.load(tmp_path / "outer", subfolder="inner") is not None
    with pytest.raises(SourceError, match="outer"):
        minibert.load(tmp_path / "outer")


def test_a_repository_with_only_a_pickle(tmp_path):
    snapshot = cached(tmp_path, "acme/tiny", "main", tiny())
    (snapshot / "model.safetensors").rename(snapshot / "pytorch_model.bin")
    with pytest.raises((SourceError, PickleRefusedError), match="allow_pickle=True"):
        minibert.load("acme/tiny", cache_dir=tmp_path)


@pytest.mark.slow
def test_the_converter_takes_a_hub_id(tmp_path):
    snapshot = cached(tmp_path / "hub", "acme/tiny", "main", tiny())
    (snapshot / "vocab.txt").write_text("[PAD]\n")
    done = subprocess.run(
        [sys.executable, "-m", "convert", "acme/tiny", tmp_path / "out", "--no-verify"],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(tmp_path / "out")) == ["config.json", "model.safetensors", "vocab.txt"]


def test_a_model_is_uploaded(tmp_path):
    model = tiny()
    with hub_server(tmp_path) as hub:
        for message in ("Upload model", "A second time"):
            url = model.push_to_hub("acme/bert", commit_message=message)
            assert url.endswith("/acme/bert/commit/a")
    assert [commit["summary"] for commit in hub.commits] == ["Upload model", "A second time"]
    main = tmp_path / "acme" / "bert" / "main"
    assert sorted(os.listdir(main)) == ["config.json", "model.safetensors"]
    model.save_pretrained(tmp_path / "saved")
    assert contents(main) == contents(tmp_path / "saved")


def test_a_model_that_is_not_uploaded(tmp_path):
    """Without the Hub, and with a name that it does not allow."""
    with pytest.raises(TargetError, match=r"'acme/bert': cannot be uploaded to the Hub \(Can"):
        tiny().push_to_hub("acme/bert")
    with hub_server(tmp_path) as hub, pytest.raises(TargetError, match="'not a name!': cannot be"):
        tiny().push_to_hub("not a name!")
    assert not hub.created
