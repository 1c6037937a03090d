"""generation_config.json: read with config.json, kept and written back; never partly read."""

import json
import shutil

import jax
import pytest
from flax import nnx

import minibert
from converting import needs_torch, run
from folders import cached
from generating import compilations
from malformed import as_folder, as_link, as_pipe, cases, load, refused
from minibert.errors import ConfigError, InputError

pytestmark = pytest.mark.unoptimised

FILE, LM = "generation_config.json", "GPT2LMHeadModel"
CONTENTS = {
    "bos_token_id": 50256,
    "eos_token_id": [50256, 11],
    "do_sample": True,
    "temperature": 0.7,
    "transformers_version": "5.23.0",
    "suppress_tokens": [1, 2],
    "junk": {"nested": [None, 1.5, {"ü": "\u2028"}]},
    "_from_model_config": False,
}


@pytest.fixture
def folder(pristine, tmp_path):
    return pristine.copy(tmp_path / "model", LM)


@pytest.mark.parametrize("contents", [CONTENTS, {}], ids=["fields", "empty"])
@pytest.mark.parametrize("name", [LM, "GPT2Model", "GPT2ForTokenClassification"])
def test_round_trip(name, contents, folder, tmp_path):
    (folder / FILE).write_text(json.dumps(contents))
    model = load(folder, name, new_head=True, rngs=nnx.Rngs(0), num_labels=3)
    assert model.config.generation == contents
    model.save_pretrained(tmp_path / "out")
    assert json.loads((tmp_path / "out" / FILE).read_text()) == contents
    assert load(tmp_path / "out", name).config.generation == contents
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "generation" not in written
    assert not {"temperature", "junk"} & written.keys()


def test_without_the_file_there_is_none(folder, tmp_path):
    model = load(folder, LM)
    assert model.config.generation is None
    model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out" / FILE).exists()


def test_it_takes_no_part_in_equality(folder, tmp_path):
    plain = load(folder, LM)
    (folder / FILE).write_text(json.dumps(CONTENTS))
    other = load(folder, LM)
    assert plain.config == other.config
    assert hash(plain.config) == hash(other.config)
    assert jax.tree.structure(plain) == jax.tree.structure(other)
    assert other.config.replace(n_layer=2).generation == CONTENTS


def test_it_comes_from_a_program_too(tmp_path):
    config = minibert.GPT2Config.tiny(generation={"max_new_tokens": 3})
    model = minibert.GPT2LMHeadModel(config, rngs=nnx.Rngs(0))
    model.save_pretrained(tmp_path / "out")
    assert json.loads((tmp_path / "out" / FILE).read_text()) == {"max_new_tokens": 3}


@pytest.mark.parametrize("name", [LM, "BertLMHeadModel", "RobertaForCausalLM"])
def test_a_model_has_it(name, pristine, tmp_path):
    folder = pristine.copy(tmp_path / "model", name)
    plain = load(folder, name)
    assert plain.generation_config == minibert.GenerationConfig.from_pretrained(folder)
    stored = {"eos_token_id": 7, "top_k": 5, "do_sample": True, "junk": [1]}
    (folder / FILE).write_text(json.dumps(stored))
    model = load(folder, name)
    assert isinstance(model.generation_config, minibert.GenerationConfig)
    assert model.generation_config == minibert.GenerationConfig.from_pretrained(folder)
    model.generation_config = model.generation_config.replace(max_new_tokens=3)
    model.save_pretrained(tmp_path / "out")
    assert json.loads((tmp_path / "out" / FILE).read_text()) == stored | {"max_new_tokens": 3}
    assert load(tmp_path / "out", name).generation_config == model.generation_config
    assert jax.tree.structure(plain) == jax.tree.structure(model)
    assert plain.generation_config.max_new_tokens is None
    with pytest.raises(InputError, match=r"^generation_config: expected a GenerationConfig, found"):
        model.generation_config = stored
    assert not hasattr(load(folder, name).base_model, "generation_config")


def test_generate_uses_what_is_assigned():
    model = minibert.GPT2LMHeadModel(minibert.GPT2Config.tiny(), rngs=nnx.Rngs(0)).eval()
    assert minibert.generate(model, [[1, 2]], max_new_tokens=5).shape == (1, 7)
    model.generation_config = minibert.GenerationConfig(max_new_tokens=5)
    with compilations() as programs:
        assert minibert.generate(model, [[1, 2]]).shape == (1, 7)
        model.generation_config = model.generation_config.replace(max_new_tokens=3)
        assert minibert.generate(model, [[1, 2]]).shape == (1, 5)
        config = minibert.GenerationConfig(max_new_tokens=4)
        assert minibert.generate(model, [[1, 2]], generation_config=config).shape == (1, 6)
    assert programs == []


def text(content):
    return lambda path: path.write_bytes(content)


def replaced(change):
    def apply(path):
        path.write_text("{}")
        change(path)

    return apply


MALFORMED = {
    "empty": (text(b""), "not JSON"),
    "cut": (text(b'{"do_sample": '), "not JSON"),
    "list": (text(b"[]"), "expected an object of fields, found list"),
    "null": (text(b"null"), "expected an object of fields, found NoneType"),
    "number": (text(b"1"), "expected an object of fields, found int"),
    "twice": (text(b'{"top_k": 1, "top_k": 2}'), "the key 'top_k' appears twice"),
    "nan": (text(b'{"temperature": NaN}'), "NaN is not a finite number"),
    "infinity": (text(b'{"temperature": 1e999}'), "1e999 is not a finite number"),
    "latin-1": (text(b'{"a": "\xfc"}'), "not UTF-8"),
    "deep": (text(b'{"a": ' + b"[" * 99 + b"]" * 99 + b"}"), "nested too deeply"),
    "vast": (text(b'{"a": "' + b"x" * (1 << 20) + b'"}'), "larger than 1,048,576 bytes"),
    "folder": (replaced(as_folder), "Is a directory"),
    "pipe": (replaced(as_pipe), "expected a regular file"),
    "link-to-nothing": (replaced(as_link("nowhere")), "cannot be read"),
    "link-to-itself": (replaced(as_link(FILE)), "cannot be read"),
}


@pytest.mark.parametrize(("change", "said"), cases(MALFORMED))
def test_malformed(change, said, folder, tmp_path):
    change(folder / FILE)
    refused(ConfigError, (str(folder / FILE), said), lambda: load(folder, LM))
    result = run(folder, tmp_path / "out", "--no-verify")
    assert result.exit_code == 1
    assert said in result.output.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def test_the_converter_takes_it_along_once(folder, tmp_path):
    (folder / FILE).write_text(json.dumps(CONTENTS))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    result = run(folder, tmp_path / "out", "--no-verify")
    assert result.exit_code == 0, result.output
    assert "copied: merges.txt" in result.output
    assert json.loads((tmp_path / "out" / FILE).read_text()) == CONTENTS


@needs_torch
def test_transformers_reads_it_back(folder, tmp_path):
    import transformers

    (folder / FILE).write_text(json.dumps({"max_new_tokens": 7, "top_k": 3, "do_sample": True}))
    ours = load(folder, LM)
    ours.generation_config = ours.generation_config.replace(eos_token_id=[5, 6])
    ours.save_pretrained(tmp_path / "out")
    model = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "out")
    assert (model.generation_config.max_new_tokens, model.generation_config.top_k) == (7, 3)
    assert model.generation_config.eos_token_id == [5, 6]
    model.save_pretrained(tmp_path / "theirs")
    found = minibert.GPT2LMHeadModel.from_pretrained(tmp_path / "theirs").generation_config
    assert (found.max_new_tokens, found.do_sample, found.end_ids) == (7, True, (5, 6))


def test_from_the_hubs_cache(folder, tmp_path):
    (folder / FILE).write_text(json.dumps(CONTENTS))
    cached(tmp_path / "with", "acme/tiny", "main", load(folder, LM))
    found = minibert.load("acme/tiny", cache_dir=tmp_path / "with")
    assert found.config.generation == CONTENTS
    (folder / FILE).unlink()
    cached(tmp_path / "without", "acme/tiny", "main", load(folder, LM))
    assert minibert.load("acme/tiny", cache_dir=tmp_path / "without").config.generation is None
    shutil.rmtree(folder)
