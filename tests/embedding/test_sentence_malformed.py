"""Sentence folders that are damaged, contradictory or unsupported: one clear error each."""

import base64
import json
import os
import pathlib
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import sentences
from malformed import promptly
from minibert.embedding.encoder import SentenceEncoder
from minibert.errors import (
    CheckpointMismatchError,
    ConfigError,
    InputError,
    MinibertError,
    PickleRefusedError,
    SourceError,
    UnsupportedConfigError,
)

pytestmark = pytest.mark.unoptimised

POOLING, DENSE, BODY, TOP = (
    "1_Pooling/config.json",
    "2_Dense/config.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("sound") / "encoder"
    sentences.encoder(
        dense=sentences.dense(24, 7), normalize=True, prompts={"query": "it is "}
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(sound, tmp_path) -> pathlib.Path:
    shutil.copytree(sound, tmp_path / "encoder")
    return tmp_path / "encoder"


def refused(folder: pathlib.Path, error: type[MinibertError], *parts: str) -> None:
    with pytest.raises(error) as caught:
        SentenceEncoder.from_pretrained(folder)
    for part in parts:
        assert part in str(caught.value), caught.value


def edit(path: pathlib.Path, **changes: object) -> None:
    """Sets fields of a JSON file; None removes one."""
    data = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in data.items() if v is not None}))


def test_sound(folder):
    assert SentenceEncoder.from_pretrained(folder).encode("the").shape == (7,)


@pytest.mark.parametrize("file", ["modules.json", POOLING, DENSE, BODY, TOP])
@pytest.mark.parametrize("text", ["", "{", "[1]", "3", '{"a": 1, "a": 2}', "\x00"])
def test_no_json_of_the_right_kind(file, text, folder):
    (folder / file).write_text(text)
    refused(folder, ConfigError, file)


@pytest.mark.parametrize("file", [POOLING, DENSE, "config.json", "2_Dense/model.safetensors"])
def test_a_file_is_missing(file, folder):
    (folder / file).unlink()
    refused(folder, MinibertError, file.rpartition("/")[0] or "config.json")


@pytest.mark.parametrize("file", ["3_Normalize/config.json", BODY, TOP])
def test_a_file_that_need_not_be_there(file, folder):
    (folder / file).unlink()
    assert SentenceEncoder.from_pretrained(folder).max_seq_length == 40


def test_no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    refused(folder, SourceError, str(folder), "tokenizer")
    (folder / "tokenizer.json").write_text("{}")
    refused(folder, SourceError, str(folder), "tokenizer")


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt", "tokenizer_config.json"])
def test_a_file_of_the_tokenizer_that_is_not_read(name, folder):
    path = folder / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with promptly():
        refused(folder, SourceError, f"{path}: expected a regular file")
    path.unlink()
    with open(path, "wb") as file:
        file.truncate(1 << 40)
    with promptly():
        refused(folder, SourceError, f"{path}: 1,099,511,627,776 bytes; expected at most")


def other_id(data):
    data["post_processor"]["special_tokens"]["[CLS]"]["ids"] = [5000]


def other_segment(data):
    data["post_processor"]["single"][1]["Sequence"]["type_id"] = 1


def damaged_map(data, charsmap=b"\x10\0\0\0" + bytes(20)):
    text = base64.b64encode(charsmap).decode()
    data["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": text}


def cut_map(data):
    damaged_map(data, b"\xff\xff\0\0")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (other_id, "adds the id 5000 to a text"),
        (other_segment, "gives a single text the segments"),
        (damaged_map, "its tokenizer cannot"),
        (cut_map, "its tokenizer cannot"),
    ],
)
def test_a_tokenizer_that_fails_at_the_first_text(change, part, folder):
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    refused(folder, SourceError, str(folder), part)


def test_no_folder(tmp_path):
    refused(tmp_path / "none", SourceError, "none")
    refused(tmp_path, SourceError, "no config.json")


OFF = dict.fromkeys(("word_embedding_dimension", "embedding_dimension"))
SWITCH = "pooling_mode_mean_tokens"


@pytest.mark.parametrize(
    ("file", "changes", "error", "parts"),
    [
        (POOLING, OFF, ConfigError, ["word_embedding_dimension: missing"]),
        (POOLING, {"word_embedding_dimension": 25}, ConfigError, ["25", "expected 24"]),
        (POOLING, {"word_embedding_dimension": "24"}, ConfigError, ["word_embedding_dimension"]),
        (POOLING, {"embedding_dimension": 25}, ConfigError, ["24, but embedding_dimension is 25"]),
        (POOLING, {SWITCH: False}, ConfigError, ["pooling_mode", "none switched on"]),
        (POOLING, {SWITCH: 1}, ConfigError, [SWITCH, "true or false", "1"]),
        (POOLING, {"include_prompt": "no"}, ConfigError, ["include_prompt", "'no'"]),
        (POOLING, {"pooling_mode": "cls"}, ConfigError, ["pooling_mode: cls, but", "select mean"]),
        (POOLING, {"pooling_mode": "first"}, ConfigError, ["pooling_mode", "'first'"]),
        (POOLING, {"pooling_mode": []}, ConfigError, ["pooling_mode"]),
        (POOLING, {"pooling_mode": [3]}, ConfigError, ["pooling_mode"]),
        (POOLING, {"pooling_mode_first": True}, UnsupportedConfigError, ["pooling_mode_first"]),
        (DENSE, {"in_features": None}, ConfigError, ["in_features", "None"]),
        (DENSE, {"in_features": 25}, ConfigError, ["in_features: expected 24", "found 25"]),
        (DENSE, {"out_features": 0}, ConfigError, ["out_features", "0"]),
        (DENSE, {"bias": None}, ConfigError, ["bias", "None"]),
        (DENSE, {"bias": "yes"}, ConfigError, ["bias", "'yes'"]),
        (DENSE, {"activation_function": None}, ConfigError, ["activation_function", "None"]),
        (
            DENSE,
            {"activation_function": "os.system"},
            UnsupportedConfigError,
            ["activation_function", "os.system", "Tanh"],
        ),
        (
            DENSE,
            {"activation_function": "torch.nn.modules.activation.GLU"},
            UnsupportedConfigError,
            ["GLU"],
        ),
        (DENSE, {"module_input_name": "token_embeddings"}, UnsupportedConfigError, ["module_in"]),
        (DENSE, {"dropout": 0.1}, UnsupportedConfigError, ["dropout"]),
        ("3_Normalize/config.json", {"p": 1}, UnsupportedConfigError, ["3_Normalize", "p"]),
        (BODY, {"max_seq_length": 41}, ConfigError, ["max_seq_length", "40", "41"]),
        (BODY, {"max_seq_length": 0}, ConfigError, ["max_seq_length", "0"]),
        (BODY, {"max_seq_length": True}, ConfigError, ["max_seq_length", "True"]),
        (BODY, {"max_seq_length": "12"}, ConfigError, ["max_seq_length", "'12'"]),
        (BODY, {"do_lower_case": "no"}, ConfigError, ["do_lower_case", "'no'"]),
        (BODY, {"query_length": 9}, UnsupportedConfigError, ["query_length", "9"]),
        (BODY, {"transformer_task": "fill-mask"}, UnsupportedConfigError, ["transformer_task"]),
        (BODY, {"model_args": {"a": 1}}, UnsupportedConfigError, ["model_args", "{'a': 1}"]),
        (BODY, {"colour": 1}, UnsupportedConfigError, ["colour"]),
        (TOP, {"model_type": "SparseEncoder"}, UnsupportedConfigError, ["model_type", "Sparse"]),
        (TOP, {"prompts": ["a"]}, ConfigError, ["prompts", "['a']"]),
        (TOP, {"prompts": {"query": 3}}, ConfigError, ["prompts", "'query'", "3"]),
        (TOP, {"default_prompt_name": "none"}, ConfigError, ["default_prompt_name", "'none'"]),
        (TOP, {"default_prompt_name": 3}, ConfigError, ["default_prompt_name", "3"]),
        (TOP, {"similarity_fn_name": "maxsim"}, ConfigError, ["similarity_fn_name", "'maxsim'"]),
        (TOP, {"similarity_fn_name": "do_lower_case"}, ConfigError, ["similarity_fn_name"]),
        (TOP, {"prompts": {"do_lower_case": 3}}, ConfigError, ["prompts", "do_lower_case"]),
        (TOP, {"truncate_dim": -1}, ConfigError, ["truncate_dim", "-1"]),
    ],
)
def test_a_wrong_field(file, changes, error, parts, folder):
    edit(folder / file, **changes)
    refused(folder, error, file, *parts)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_args": {"trust_remote_code": True}, "unpad_inputs": False},
        {"processing_kwargs": {}, "query_length": None, "max_seq_length": None},
    ],
)
def test_fields_that_change_nothing(changes, folder):
    path = folder / BODY
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    assert SentenceEncoder.from_pretrained(folder).encode("the").shape == (7,)


def line(kind: str, path: str, **more: object) -> dict:
    return {"type": f"sentence_transformers.models.{kind}", "path": path, "name": path, **more}


FIRST, SECOND = line("Transformer", ""), line("Pooling", "1_Pooling")
THIRD, FOURTH = line("Dense", "2_Dense"), line("Normalize", "3_Normalize")


@pytest.mark.parametrize(
    ("lines", "error", "part"),
    [
        ([], ConfigError, "expected a list of modules"),
        ({}, ConfigError, "expected a list of modules"),
        ([3], ConfigError, "module 0: expected an object"),
        ([{"path": ""}], ConfigError, "module 0: type"),
        ([{"type": "x.Transformer"}], ConfigError, "module 0: path"),
        ([FIRST], UnsupportedConfigError, "found Transformer"),
        ([SECOND, FIRST], UnsupportedConfigError, "found Pooling, Transformer"),
        ([FIRST, FIRST, SECOND], UnsupportedConfigError, "Transformer, Transformer, Pooling"),
        ([FIRST, SECOND, SECOND], UnsupportedConfigError, "Pooling, Pooling"),
        ([FIRST, SECOND, FIRST], UnsupportedConfigError, "Pooling, Transformer"),
        ([FIRST, line("Dropout", "1"), SECOND], UnsupportedConfigError, "Transformer, Dropout, P"),
        ([line("StaticEmbedding", "")], UnsupportedConfigError, "model2vec computes it"),
        ([line("Router", "")], UnsupportedConfigError, "save each of its routes as an encoder"),
        ([FIRST, line("LSTM", "1_LSTM")], UnsupportedConfigError, "models.LSTM"),
        ([FIRST, line("BoW", "1_BoW")], UnsupportedConfigError, "models.BoW"),
        ([FIRST, line("Pooling", "../1_Pooling")], ConfigError, "'../1_Pooling'"),
        ([FIRST, line("Pooling", "/etc")], ConfigError, "'/etc'"),
        ([FIRST, line("Pooling", ".hidden")], ConfigError, "'.hidden'"),
        ([FIRST, line("Pooling", "a" * 40 + "!")], ConfigError, "aa!'"),  # without backtracking
        ([FIRST, line("Pooling", "a/" * 40 + "!")], ConfigError, "a/!'"),
        ([FIRST, {**SECOND, "kwargs": ["task"]}], UnsupportedConfigError, "kwargs"),
        ([FIRST, {**SECOND, "colour": 1}], UnsupportedConfigError, "colour"),
        ([line("Transformer", "", idx=1), line("Pooling", "1_Pooling", idx=0)], ConfigError, "idx"),
        ([line("Transformer", "", idx="0"), SECOND], ConfigError, "idx"),
    ],
)
def test_modules_that_are_no_chain(lines, error, part, folder):
    (folder / "modules.json").write_text(json.dumps(lines))
    refused(folder, error, "modules.json", part)


def test_modules_are_known_wherever_the_library_has_them(folder):
    library = "sentence_transformers."
    lines = [
        {**one, "type": one["type"].replace(library, f"{library}elsewhere.")}
        for one in (FIRST, SECOND, THIRD, FOURTH)
    ]
    (folder / "modules.json").write_text(json.dumps(lines))
    assert SentenceEncoder.from_pretrained(folder).encode("the").shape == (7,)


def test_modules_in_folders_of_other_names(folder):
    (folder / "body").mkdir()
    for path in folder.iterdir():
        if path.is_file() and path.name not in ("modules.json", TOP):
            path.rename(folder / "body" / path.name)
    (folder / "1_Pooling").rename(folder / "pool")
    lines = [line("Transformer", "body"), line("Pooling", "pool"), THIRD]
    (folder / "modules.json").write_text(json.dumps(lines))
    assert SentenceEncoder.from_pretrained(folder).encode_query("the").shape == (7,)


def _tensors(folder: pathlib.Path, **changes: np.ndarray | None) -> None:
    path = folder / "2_Dense" / "model.safetensors"
    tensors = load_file(path) | {name.replace("_", "."): array for name, array in changes.items()}
    save_file({name: array for name, array in tensors.items() if array is not None}, path)


@pytest.mark.parametrize(
    ("changes", "faults"),
    [
        ({"linear_weight": None}, ["'linear.weight': missing"]),
        ({"linear_bias": None}, ["'linear.bias': missing"]),
        ({"other": np.zeros(3, np.float32)}, ["'other': unexpected"]),
        (
            {"linear_weight": np.zeros((24, 7), np.float32), "linear_bias": np.zeros(8)},
            ["'linear.bias': expected shape (7,)", "'linear.weight': expected shape (7, 24)"],
        ),
        (
            {"linear_bias": np.zeros(7, np.int32)},
            ["'linear.bias': expected floating-point numbers, found int32"],
        ),
        (
            {"linear_bias": np.full(7, np.nan, np.float32)},
            ["'linear.bias': expected finite numbers"],
        ),
        (
            {"linear_bias": np.zeros(7)},
            ["'linear.bias': float64 needs jax.enable_x64(True); or pass param_dtype"],
        ),
    ],
)
def test_weights_that_are_not_the_configs(changes, faults, folder):
    _tensors(folder, **changes)
    with pytest.raises(CheckpointMismatchError, match="2_Dense") as caught:
        SentenceEncoder.from_pretrained(folder)
    assert len(caught.value.faults) == len(faults)
    for fault, expected in zip(caught.value.faults, faults, strict=True):
        assert fault.startswith(expected)


def test_a_pickle(folder):
    torch = pytest.importorskip("torch", reason="only PyTorch reads pickles")
    vectors = SentenceEncoder.from_pretrained(folder).encode(sentences.FEW)
    path = folder / "2_Dense" / "model.safetensors"
    tensors = {name: torch.tensor(array) for name, array in load_file(path).items()}
    torch.save(tensors, path.with_name("pytorch_model.bin"))
    path.unlink()
    refused(folder, PickleRefusedError, "2_Dense/pytorch_model.bin", "allow_pickle=True")
    again = SentenceEncoder.from_pretrained(folder, allow_pickle=True)
    np.testing.assert_array_equal(again.encode(sentences.FEW), vectors)


def test_a_pooling_of_its_own(folder):
    for name, value in (("pooling", "mean"), ("normalize", True)):
        with pytest.raises(InputError, match=f"{name}: expected None, as .* specifies it"):
            SentenceEncoder.from_pretrained(folder, **{name: value})


def test_settings_in_place_of_the_folders(folder):
    edit(folder / BODY, max_seq_length=400)
    ours = SentenceEncoder.from_pretrained(
        folder, max_seq_length=9, prompts={"other": "a "}, default_prompt_name="other"
    )
    assert ours.max_seq_length == 9
    assert ours.prompts == {"query": "it is ", "document": "", "other": "a "}
    with pytest.raises(InputError, match="max_seq_length: expected at most 40"):
        SentenceEncoder.from_pretrained(folder, max_seq_length=41)
    with pytest.raises(InputError, match="prompt: no such argument"):
        SentenceEncoder.from_pretrained(folder, prompt="x")


def test_another_family(folder):
    edit(folder / "config.json", model_type="mobilebert", architectures=["MobileBertModel"])
    refused(folder, ConfigError, "model_type", "'mobilebert'")
