"""The converter's command line: formats, verification, errors, and kills."""

import json
import os
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.serialization import msgpack_restore, msgpack_serialize
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

import minibert
from conftest import FIXTURES
from converting import HAS_TORCH, needs_torch, run
from folders import contents
from malformed import MOUNTED, cases, promptly, run_script, runs
from minibert.checkpoint.files import BODY_CONFIGS
from minibert.cli.convert import DIFFERS, REFUSED
from minibert.nn import activations

pytestmark = pytest.mark.unoptimised


@pytest.fixture
def source(tmp_path) -> pathlib.Path:
    folder = tmp_path / "source"
    model = minibert.BertForMaskedLM(minibert.BertConfig.tiny(), rngs=nnx.Rngs(0))
    model.save_pretrained(folder)
    return folder


@pytest.mark.slow
@needs_torch
def test_verifies_and_reports(source, tmp_path):
    result = run(source, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "hidden_states[2]" in result.output
    assert "equal" in result.output
    assert contents(tmp_path / "out") == contents(source)
    report = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert report["passed"]
    assert [row["output"] for row in report["outputs"]] == [
        *(f"hidden_states[{i}]" for i in range(3)),
        "logits",
    ]
    assert all(row["float64"] < 1e-12 for row in report["outputs"])
    assert report["versions"]["torch"]
    assert list(report["sha256"]) == ["model.safetensors"]
    assert np.array(report["inputs"]["attention_mask"]).sum() > 500


@pytest.mark.skipif(HAS_TORCH, reason="torch is here: what is said without it cannot be seen")
def test_says_so_without_torch(source, tmp_path):
    result = run(source, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "Not verified: torch is not installed" in result.output
    assert contents(tmp_path / "out") == contents(source)
    assert run("--verify-only", source).exit_code == REFUSED


@needs_torch
@pytest.mark.parametrize("arguments", [[], ["--verify-only"]], ids=["convert", "verify only"])
def test_a_planted_mistake_is_refused(arguments, source, tmp_path, monkeypatch):
    monkeypatch.setitem(activations.ACTIVATIONS, "gelu", lambda x: jax.nn.gelu(x, approximate=True))
    out = [] if arguments else [tmp_path / "out"]
    result = run(*arguments, source, *out)
    assert result.exit_code == DIFFERS
    assert "DIFFERS" in result.output
    assert sorted(os.listdir(tmp_path)) == ["source"]


@needs_torch
def test_verify_only_writes_nothing(source):
    before = {path: path.stat().st_mtime_ns for path in source.rglob("*")}
    assert run("--verify-only", source).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in source.rglob("*")} == before


@pytest.mark.slow
@needs_torch
def test_orbax(source, tmp_path, monkeypatch):
    pytest.importorskip("orbax.checkpoint")
    assert run(source, tmp_path / "orbax", "--to", "orbax").exit_code == 0
    monkeypatch.chdir(tmp_path)
    model = minibert.load("orbax")
    model.save_pretrained(tmp_path / "back")
    assert contents(tmp_path / "back") == contents(source)
    assert run("--verify-only", tmp_path / "orbax").exit_code == 0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtype(dtype, source, tmp_path):
    result = run(source, tmp_path / "out", "--dtype", dtype)
    assert result.exit_code == 0, result.output
    assert {str(d) for d, _, _ in contents(tmp_path / "out").values()} == {dtype}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype
    expected = minibert.load(source, param_dtype=getattr(jnp, dtype))
    kernel = minibert.load(tmp_path / "out").bert.encoder.layer[1].output.dense.kernel[...]
    np.testing.assert_array_equal(kernel, expected.bert.encoder.layer[1].output.dense.kernel[...])


def test_shards(source, tmp_path):
    result = run(source, tmp_path / "out", "--max-shard-size", "20KB", "--no-verify")
    assert "Not verified" in result.output
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 2
    assert contents(tmp_path / "out") == contents(source)


def test_all_heads_of_a_file_come_along(tmp_path):
    """A pre-training file that calls itself a masked language model, as the hub's does."""
    model = minibert.BertForPreTraining(minibert.BertConfig.tiny(), rngs=nnx.Rngs(0))
    model.save_pretrained(tmp_path / "in")
    config = json.loads((tmp_path / "in" / "config.json").read_text())
    config["architectures"] = ["BertForMaskedLM"]
    (tmp_path / "in" / "config.json").write_text(json.dumps(config))
    assert run(tmp_path / "in", tmp_path / "out", "--no-verify").exit_code == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "in")


def test_companions(minilm, tmp_path):
    assert run(minilm, tmp_path / "out", "--no-verify").exit_code == 0
    copied = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.*")}
    assert copied == {
        "1_Pooling/config.json",
        "config.json",
        "config_sentence_transformers.json",
        "model.safetensors",
        "modules.json",
        "sentence_bert_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    }
    original = pathlib.Path(minilm, "tokenizer.json").read_bytes()
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == original


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("source", "is the source"),
        ("source/inside", "inside it"),
        (".", "contains it"),
        ("occupied", "already holds config.json"),
        ("file", "not a folder"),
        ("file/below", "cannot be written"),
    ],
)
def test_refused_targets(out, message, source, tmp_path):
    (tmp_path / "occupied").mkdir()
    (tmp_path / "occupied" / "config.json").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = sorted(path for path in tmp_path.rglob("*"))
    result = run(source, tmp_path / out, *(["--overwrite"] if out in ("source", ".") else []))
    assert result.exit_code == REFUSED
    assert result.output.startswith("error: ")
    assert message in result.output
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_overwrite(source, tmp_path):
    (tmp_path / "out").mkdir()
    for name in ("pytorch_model.bin", "thesis.txt"):
        (tmp_path / "out" / name).write_text("old")
    assert run(source, tmp_path / "out", "--overwrite", "--no-verify").exit_code == 0
    assert sorted(os.listdir(tmp_path / "out")) == [
        "config.json",
        "model.safetensors",
        "thesis.txt",
    ]
    assert contents(tmp_path / "out") == contents(source)
    assert sorted(os.listdir(tmp_path)) == ["out", "source"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["nowhere/at/all", "out"], REFUSED, "no such folder"),
        (["{empty}", "out"], REFUSED, "no config.json"),
        (["{source}"], 2, "OUT"),
        (["{source}", "out", "--verify-only"], 2, "OUT"),
        (["{source}", "out", "--to", "torch"], 2, "torch"),
        (["{source}", "out", "--to", "orbax", "--max-shard-size", "1MB"], 2, "--max-shard-size"),
        (["{source}/model.safetensors", "out"], REFUSED, "found a file"),
        (["{source}", "out", "--max-shard-size", "much"], REFUSED, "max_shard_size"),
        (["{damaged}", "out"], REFUSED, "model.safetensors"),
        (["{flax}", "out"], REFUSED, "flax_model.msgpack"),
    ],
)
def test_one_clear_line(arguments, status, message, source, tmp_path):
    (tmp_path / "empty").mkdir()
    for kind in ("damaged", "flax"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "config.json").write_text((source / "config.json").read_text())
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"\x01")
    (tmp_path / "flax" / "flax_model.msgpack").write_bytes(b"\x93\x01\x02")
    names = {name: tmp_path / name for name in ("empty", "source", "damaged", "flax")}
    filled = [argument.format(**names) for argument in arguments]
    filled = [tmp_path / "out" if argument == "out" else argument for argument in filled]
    result = run(*filled)
    assert result.exit_code == status
    assert message in result.output
    assert not (tmp_path / "out").exists()
    if status == REFUSED:
        assert result.output.startswith("error: ")


def nested(depth):
    content = b"\x81\xa1a" * depth + msgpack_serialize(np.ones(2, "f"))  # {"a": {"a": …
    return lambda path: path.write_bytes(content)


def vast(path):
    with open(path, "wb") as file:
        file.truncate(1 << 40)


MSGPACKS = {
    "pipe": (os.mkfifo, "expected a regular file"),
    "nested": (nested(500), "nested too deeply"),
    "nested-deeper": (nested(980), "nested too deeply|recursion"),
    "vast": (vast, "larger than [0-9,]+ bytes"),
}


@pytest.mark.parametrize(("make", "said"), cases(MSGPACKS))
def test_a_msgpack_that_cannot_be_read(make, said, tmp_path):
    (tmp_path / "in").mkdir()
    config = (FIXTURES / "flax_bert_base" / "config.json").read_text()
    (tmp_path / "in" / "config.json").write_text(config)
    make(tmp_path / "in" / "flax_model.msgpack")
    with promptly():
        result = run(tmp_path / "in", tmp_path / "out")
    assert result.exit_code == REFUSED
    assert re.search(f"flax_model.msgpack: .*({said})", result.output), result.output
    assert result.output.count("\n") == 1


@pytest.mark.parametrize("name", ["flax_bert_base", "flax_gpt2_lm"])
def test_a_msgpack_in_shards(name, tmp_path):
    """As the Flax classes wrote models larger than `max_shard_size`."""
    whole, source = FIXTURES / name, tmp_path / "in"
    source.mkdir()
    (source / "config.json").write_text((whole / "config.json").read_text())
    tree = msgpack_restore((whole / "flax_model.msgpack").read_bytes())
    flat = flatten_dict(tree, sep="/")
    files = [f"flax_model-{number:05}-of-00002.msgpack" for number in (1, 2)]
    shards = [dict(list(flat.items())[start::2]) for start in (0, 1)]
    for file, shard in zip(files, shards, strict=True):
        (source / file).write_bytes(msgpack_serialize(unflatten_dict(shard, sep="/")))
    weight_map = {key: file for file, part in zip(files, shards, strict=True) for key in part}
    index = source / "flax_model.msgpack.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    for folder in (whole, source):
        result = run(folder, tmp_path / f"out-{folder.name}", "--no-verify")
        assert result.exit_code == 0, result.output
    assert contents(tmp_path / "out-in") == contents(tmp_path / f"out-{name}")
    index.write_text(index.read_text().replace(files[0], files[1], 1))
    result = run(source, tmp_path / "again", "--no-verify")
    assert result.exit_code == REFUSED
    assert f"expected in '{files[1]}', found in '{files[0]}'" in result.output


def test_the_names_of_the_old_flax_classes(tmp_path):
    """They wrote BertForCausalLM into config.json, which PyTorch's classes do not have."""
    model = minibert.BertLMHeadModel(minibert.BertConfig.tiny(is_decoder=True), rngs=nnx.Rngs(0))
    model.save_pretrained(tmp_path / "in")
    path = tmp_path / "in" / "config.json"
    for name in ("BertForCausalLM", "FlaxBertForCausalLM", "FlaxBertLMHeadModel"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": [name]}))
        assert type(minibert.load(tmp_path / "in")) is minibert.BertLMHeadModel
    assert run(tmp_path / "in", tmp_path / "out", "--no-verify").exit_code == 0
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["architectures"] == ["BertLMHeadModel"]


def test_names_are_printed_without_control_characters(source, tmp_path):
    out = tmp_path / "a\x9b31m\u202e\x1b[1m"
    result = run(source, out, "--no-verify")
    assert result.exit_code == 0
    assert result.output.endswith("/a\\x9b31m\\u202e\\x1b[1m\n")
    result = run(source, out, "--no-verify")
    assert result.exit_code == REFUSED
    assert not set(result.output) & set("\x9b\u202e\x1b")


ON_A_FULL_DISK = """
    import json, os, pathlib, subprocess, sys
    home = pathlib.Path(sys.argv[1])
    (home / "out").mkdir()
    (home / "out" / "thesis.tex").write_text("mine")
    command = [sys.executable, "-m", "convert", sys.argv[2], home / "out", *sys.argv[3:]]
    done = subprocess.run(command, capture_output=True, text=True)
    left = [os.listdir(home), os.listdir(home / "out")]
    print(json.dumps([done.returncode, done.stderr, *left]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("to", ["hf", "orbax"])
def test_a_full_disk(to, source, tmp_path):
    """One line, which says what is left; and nothing else is."""
    home = tmp_path / "small"
    home.mkdir()
    options = ("--to", to, "--no-verify")
    mounted = runs([*MOUNTED, str(home)])
    status, said, *left = run_script(ON_A_FULL_DISK, home, source, *options, before=mounted)
    assert (status, left) == (REFUSED, [["out"], ["thesis.tex"]])
    assert re.fullmatch(rf"error: {home}/out/.*: cannot be written \(.*\); its files .*\n", said)


def test_wrong_weights_are_refused(source, tmp_path):
    tensors = load_file(source / "model.safetensors")
    del tensors["bert.encoder.layer.1.output.dense.bias"]
    save_file(tensors, source / "model.safetensors")
    result = run(source, tmp_path / "out")
    assert result.exit_code == REFUSED
    assert "bert.encoder.layer.1.output.dense.bias" in result.output
    assert sorted(os.listdir(tmp_path)) == ["source"]


@pytest.mark.slow
@needs_torch
@pytest.mark.parametrize("field", ["output_attentions", "output_hidden_states", "return_dict"])
def test_output_switches_in_the_config(field, source, tmp_path):
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {field: field != "return_dict"}))
    result = run(source, tmp_path / "out")
    assert result.exit_code == 0, result.output


def test_settings_of_an_encoder_are_copied_under_every_name(source, tmp_path):
    for name in BODY_CONFIGS:
        (source / name).write_text('{"max_seq_length": 5}')
    assert run(source, tmp_path / "out", "--no-verify").exit_code == 0
    assert {*BODY_CONFIGS} <= {*os.listdir(tmp_path / "out")}


def test_unreadable_companion_is_named(source, tmp_path):
    (source / "vocab.txt").symlink_to("/proc/self/mem")
    result = run(source, tmp_path / "out", "--no-verify")
    assert result.exit_code == REFUSED
    assert "vocab.txt: is a link to" in result.output


def test_another_class_that_does_not_fit_is_no_error(tmp_path):
    """Tensors of a head that their own config cannot build stay in the file."""
    model = minibert.BertModel(minibert.BertConfig.tiny(num_labels=3), rngs=nnx.Rngs(0))
    model.save_pretrained(tmp_path / "in")
    file = tmp_path / "in" / "model.safetensors"
    head = {"qa_outputs.weight": np.ones((2, 24), "f"), "qa_outputs.bias": np.ones(2, "f")}
    save_file(load_file(file) | head, file)
    result = run(tmp_path / "in", tmp_path / "out", "--no-verify")
    assert result.exit_code == 0, result.output
    assert "left: qa_outputs.bias, qa_outputs.weight" in result.output


def test_dotted_names_in_msgpack_are_refused(tmp_path):
    tree = msgpack_restore((FIXTURES / "flax_bert_base" / "flax_model.msgpack").read_bytes())
    tree["pooler.dense.bias"] = tree["pooler"]["dense"]["bias"]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "flax_model.msgpack").write_bytes(msgpack_serialize(tree))
    config = (FIXTURES / "flax_bert_base" / "config.json").read_text()
    (tmp_path / "in" / "config.json").write_text(config)
    result = run(tmp_path / "in", tmp_path / "out")
    assert result.exit_code == REFUSED
    assert "'pooler.dense.bias': expected a name without dots" in result.output
