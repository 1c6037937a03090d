"""Reading a model's folder: the files of one save, and only those that belong to the model."""

import contextlib
import os
import threading

import numpy as np
import pytest
from flax import nnx

import minibert
import minibert.checkpoint.loading
import minibert.embedding.folder
import minibert.embedding.loading
import minibert.train.job.run
import minibert.train.lora.files
import sentences
from converting import run
from malformed import cases, contents, refused
from minibert import train
from minibert.conversion import api as conversion
from minibert.conversion.folders import MOST_BYTES
from minibert.embedding.encoder import SentenceEncoder
from minibert.errors import MinibertError, SourceError, TargetError, UnsupportedConfigError
from minibert.train.job.settings import Settings

pytestmark = pytest.mark.unoptimised

# Two saves that no shape tells apart.


def model(seed):
    config = minibert.BertConfig.tiny(
        num_hidden_layers=1, extra={"save": seed}, id2label={0: "no", 1: f"yes-{seed}"}
    )
    return minibert.BertForSequenceClassification(config, rngs=nnx.Rngs(seed)).eval()


@pytest.fixture(scope="module")
def models():
    return [model(0), model(1)]


@pytest.fixture(scope="module")
def encoders():
    tokenizer = sentences.tokenizer()
    return [
        SentenceEncoder(sentences.model(seed=seed), tokenizer, prompts={"save": str(seed)})
        for seed in (0, 1)
    ]


def encoder(folder):
    return SentenceEncoder.from_pretrained(folder)


def classify(folder):
    return minibert.pipeline("feature-extraction", folder)


def save(what, folder, **options):
    what.save_pretrained(folder, overwrite=True, **options)


def patched(monkeypatch, module, name, first):
    """Lets something happen before the first call of a function, which then runs."""
    real, done = getattr(module, name), []

    def call(*given, **options):
        if not done:
            done.append(name)
            first()
        return real(*given, **options)

    monkeypatch.setattr(module, name, call)
    return done


CHANGED = "changed while the folder was read"
READERS = {
    "load": ("models", minibert.checkpoint.loading, "open_source", minibert.load),
    "encoder-tokenizer": ("encoders", minibert.embedding.loading, "load_tokenizer", encoder),
    "encoder-settings": ("encoders", minibert.embedding.loading, "read_settings", encoder),
    "encoder-pooling": ("encoders", minibert.embedding.loading, "read_modules", encoder),
    "pipeline": ("encoders", minibert.pipelines, "load_tokenizer", classify),
}


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["5GB", "20KB"], ids=["single", "sharded"])
@pytest.mark.parametrize(("pair", "module", "name", "load"), cases(READERS))
def test_a_save_in_the_middle_of_a_load(
    pair, module, name, load, shard, request, tmp_path, monkeypatch
):
    """Config or tokenizer of one save and weights of another: nothing else would tell."""
    one, other = request.getfixturevalue(pair)
    options = {"max_shard_size": shard} if pair == "models" else {}
    if pair == "encoders" and shard != "5GB":
        pytest.skip("encoders have no shards")
    save(one, tmp_path / "it", **options)
    done = patched(monkeypatch, module, name, lambda: save(other, tmp_path / "it", **options))
    refused(SourceError, (str(tmp_path / "it"), CHANGED), lambda: load(tmp_path / "it"))
    assert done
    assert load(tmp_path / "it") is not None


def test_an_error_of_mixed_files_is_not_blamed_on_them(models, tmp_path, monkeypatch):
    save(models[0], tmp_path / "it")
    larger = minibert.BertModel(minibert.BertConfig.tiny(hidden_size=36), rngs=nnx.Rngs(0))
    patched(
        monkeypatch,
        minibert.checkpoint.loading,
        "open_source",
        lambda: save(larger, tmp_path / "it"),
    )
    refused(SourceError, (CHANGED,), lambda: minibert.load(tmp_path / "it"))


def test_other_files_may_change(models, tmp_path, monkeypatch):
    save(models[0], tmp_path)
    log = tmp_path / "log.jsonl"
    patched(monkeypatch, minibert.checkpoint.loading, "open_source", lambda: log.write_text("{}"))
    assert minibert.load(tmp_path) is not None


def test_a_save_in_the_middle_of_reading_an_adapter(models, tmp_path, monkeypatch):
    adapters = [train.init_adapter(models[0], train.LoRA(r=2, lora_alpha=a)) for a in (1, 2)]
    train.save_adapter(models[0], adapters[0], tmp_path)

    def again():
        train.save_adapter(models[0], adapters[1], tmp_path, overwrite=True)

    patched(monkeypatch, minibert.train.lora.files, "tensors", again)
    refused(SourceError, (CHANGED,), lambda: train.load_adapter(models[0], tmp_path))


def of_the_pooling(folder):
    """A save that differs in a module's folder only."""
    path = folder / "1_Pooling" / "config.json"
    path.write_text(path.read_text().replace("true", "false", 1))


STARTS = {
    "after-modules.json": (minibert.embedding.folder, "_entry", save),
    "pooling": (minibert.train.job.run, "model_of", lambda _, folder: of_the_pooling(folder)),
    "tokenizer": (minibert.train.job.run, "model_of", save),
}


@pytest.mark.parametrize(("module", "name", "change"), cases(STARTS))
def test_a_save_in_the_middle_of_what_training_starts_from(
    module, name, change, encoders, tmp_path, monkeypatch
):
    folder = tmp_path / "it"
    save(encoders[0], folder)
    (tmp_path / "pairs.jsonl").write_text('{"anchor": "the", "positive": "of"}\n' * 4)
    settings = Settings(
        task="contrastive",
        model=str(folder),
        data=str(tmp_path / "pairs.jsonl"),
        output=str(tmp_path / "out"),
        steps=1,
        batch_size=2,
        max_length=8,
    )
    done = patched(monkeypatch, module, name, lambda: change(encoders[1], folder))
    monkeypatch.setattr(
        minibert.train.job.run, "fit", lambda *_, **__: pytest.fail("it was not seen")
    )
    refused(SourceError, (str(folder), CHANGED), lambda: minibert.train.job.run.run(settings))
    assert done


@pytest.mark.parametrize("name", ["write_model", "copy_companions"])
def test_a_save_in_the_middle_of_a_conversion(name, encoders, tmp_path, monkeypatch):
    save(encoders[0], tmp_path / "in")
    patched(monkeypatch, conversion, name, lambda: save(encoders[1], tmp_path / "in"))
    result = run(tmp_path / "in", tmp_path / "out", "--no-verify")
    assert result.exit_code == 1
    assert CHANGED in result.output
    assert os.listdir(tmp_path) == ["in"]


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["5GB", "20KB"], ids=["single", "sharded"])
def test_loads_while_another_saves(shard, models, tmp_path):
    """One save or the other, or an error: never a mixture."""
    save(models[0], tmp_path, max_shard_size=shard)
    stop = threading.Event()

    def write():
        while not stop.is_set():
            for one in models[::-1]:
                save(one, tmp_path, max_shard_size=shard)

    writer = threading.Thread(target=write)
    writer.start()
    seen, errors = set(), 0
    try:
        for _ in range(40):
            try:
                found = minibert.load(tmp_path)
            except MinibertError:
                errors += 1
                continue
            which = found.config.extra["save"]
            seen.add(which)
            assert found.config.id2label[1] == f"yes-{which}"
            for name in ("kernel", "bias"):
                one = getattr(found.bert.pooler.dense, name)[...]
                np.testing.assert_array_equal(
                    one, getattr(models[which].bert.pooler.dense, name)[...]
                )
    finally:
        stop.set()
        writer.join()
    assert seen or errors
    assert minibert.load(tmp_path) is not None


# Links.


@pytest.fixture
def source(encoders, tmp_path):
    encoders[0].save_pretrained(tmp_path / "in")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text('{"a": "secret"}')
    return tmp_path / "in"


def linked(folder, name, target):
    with contextlib.suppress(FileNotFoundError):
        (folder / name).unlink()
    (folder / name).symlink_to(target)


TARGETS = {
    "file": "../secret/key",
    "absolute": "/etc/passwd",
    "environment": "/proc/self/environ",
    "through-a-link": "2_Link/key",
}
COPIED = ["config.json", "tokenizer.json", "vocab.txt", "chat_template.jinja", "modules.json"]


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("name", [*COPIED, "generation_config.json"])
def test_nothing_is_copied_through_a_link(name, target, source, tmp_path):
    (source / "2_Link").symlink_to("../secret")
    linked(source, name, target)
    result = run(source, tmp_path / "out", "--no-verify")
    assert result.exit_code == 1
    assert f"{name}: is a link to" in result.output
    assert not (tmp_path / "out").exists()


def as_module_config(source):
    linked(source, "1_Pooling/config.json", "../../secret/key")


def as_module_folder(source):
    (source.parent / "secret" / "config.json").write_text("{}")
    (source / "3_Link").symlink_to("../secret")


def as_pipe(source):
    (source / "vocab.txt").unlink(missing_ok=True)
    os.mkfifo(source / "vocab.txt")


def as_huge(source):
    with open(source / "vocab.txt", "wb") as file:
        file.truncate(MOST_BYTES + 1)


COMPANIONS = {
    "module-config": (as_module_config, "1_Pooling/config.json: is a link to"),
    "module-folder": (as_module_folder, "3_Link/config.json: is a link to"),
    "pipe": (as_pipe, "vocab.txt: expected a regular file"),
    "huge": (as_huge, "1,073,741,825 bytes; at most 1,073,741,824"),
}


@pytest.mark.parametrize(("spoil", "said"), cases(COMPANIONS))
def test_companions_that_are_not_copied(spoil, said, source, tmp_path):
    spoil(source)
    result = run(source, tmp_path / "out", "--no-verify")
    assert result.exit_code == 1
    assert said in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "vocab.txt", "modules.json"])
def test_no_load_reads_text_from_elsewhere(name, source):
    """It would be written by a later save."""
    linked(source, name, "../secret/key")
    refused(SourceError, (f"{name}: is a link to",), lambda: encoder(source))


def test_a_folder_of_links_to_another(source, encoders, tmp_path):
    """To files of the same names, as package managers and people make them."""
    (tmp_path / "farm").mkdir()
    for path in source.iterdir():
        (tmp_path / "farm" / path.name).symlink_to(path)
    expected = encoders[0].encode(["the of"])
    np.testing.assert_array_equal(encoder(tmp_path / "farm").encode(["the of"]), expected)


DIGEST = "0123456789abcdef" * 4
STORES = {
    "snapshot_download": ("blobs", DIGEST[:40]),
    "cached_download": ("transformers", f"{DIGEST}.{DIGEST}"),
    "dvc": ("cache/files/md5/01", DIGEST[2:32]),
    "git-annex": ("annex/objects/Xx/0J/KEY", f"SHA256E-s123--{DIGEST}.json"),
}


@pytest.mark.parametrize(("store", "name"), cases(STORES))
def test_a_folder_of_links_to_contents_by_digest(store, name, source, encoders, tmp_path):
    """Links with which version control and caches replace files, also in modules' folders."""
    expected = encoders[0].encode(["the of"])
    for number, path in enumerate(p for p in sorted(source.rglob("*")) if p.is_file()):
        content = tmp_path / store / str(number) / name
        content.parent.mkdir(parents=True)
        path.rename(content)
        path.symlink_to(os.path.relpath(content, path.parent))
    np.testing.assert_array_equal(encoder(source).encode(["the of"]), expected)
    pooling = source / "1_Pooling" / "config.json"
    pooling.resolve().unlink()
    refused(SourceError, ("config.json: is a link to",), lambda: encoder(source))


def test_a_content_by_digest_that_changes_while_it_is_read(models, tmp_path, monkeypatch):
    save(models[0], tmp_path / "it")
    config = tmp_path / "it" / "config.json"
    config.rename(tmp_path / DIGEST)
    config.symlink_to(tmp_path / DIGEST)
    text = (tmp_path / DIGEST).read_text()
    write = lambda: (tmp_path / DIGEST).write_text(text.replace("yes-0", "yes-2"))  # noqa: E731
    patched(monkeypatch, minibert.checkpoint.loading, "open_source", write)
    refused(SourceError, (CHANGED, "config.json"), lambda: minibert.load(tmp_path / "it"))


def test_links_inside_are_copied_as_files(source, tmp_path):
    (source / "tokenizer.json").rename(source / "kept")
    (source / "tokenizer.json").symlink_to("kept")
    assert run(source, tmp_path / "out", "--no-verify").exit_code == 0
    assert not (tmp_path / "out" / "tokenizer.json").is_symlink()
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (source / "kept").read_bytes()


def test_a_snapshot_of_the_hub_is_converted(source, tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / ("0" * 40)
    blobs.mkdir()
    snapshot.parent.mkdir()
    source.rename(snapshot)
    for number, path in enumerate(sorted(p for p in snapshot.rglob("*") if p.is_file())):
        path.rename(blobs / str(number))
        path.symlink_to(os.path.relpath(blobs / str(number), path.parent))
    assert run(snapshot, tmp_path / "out", "--no-verify").exit_code == 0
    assert encoder(tmp_path / "out") is not None


# Adapters.


ADAPTED = {
    "load": minibert.load,
    "from_pretrained": minibert.BertModel.from_pretrained,
    "pipeline": classify,
    "encoder": encoder,
    "plain-encoder": lambda folder: SentenceEncoder.from_pretrained(folder, pooling="mean"),
}


@pytest.mark.parametrize("weights", [True, False], ids=["whole", "config-alone"])
@pytest.mark.parametrize("name", ADAPTED)
def test_an_adapter_beside_the_weights(name, weights, source):
    """transformers applies it, or fails without its weights; it is not passed over."""
    body = minibert.load(source)
    train.save_adapter(body, train.init_adapter(body, train.LoRA(r=2)), source.parent / "adapter")
    for path in (source.parent / "adapter").iterdir():
        if weights or path.suffix == ".json":
            path.rename(source / path.name)
    if name == "plain-encoder":
        (source / "modules.json").unlink()
    said = ("adapter_config.json", "minibert.train.load_adapter")
    refused(UnsupportedConfigError, said, lambda: ADAPTED[name](source))
    result = run(source, source.parent / "out", "--no-verify")
    assert result.exit_code == 1
    assert "adapter_config.json: expected no adapter next to" in result.output


def test_an_adapter_is_not_saved_beside_a_model(models, tmp_path):
    models[0].save_pretrained(tmp_path)
    before = contents(tmp_path)
    adapter = train.init_adapter(models[0], train.LoRA(r=2))
    with pytest.raises(TargetError, match=r"config.json: expected a folder without a model"):
        train.save_adapter(models[0], adapter, tmp_path, overwrite=True)
    assert contents(tmp_path) == before


def test_the_folder_of_an_adapter_alone(models, tmp_path):
    train.save_adapter(models[0], train.init_adapter(models[0], train.LoRA(r=2)), tmp_path)
    said = ("expected a model, found an adapter", "minibert.train.load_adapter")
    refused(SourceError, said, lambda: minibert.load(tmp_path))
