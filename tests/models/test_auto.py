"""Classes by task, and configs that are read and written without weights."""

import json
import re

import pytest
from flax import nnx

import minibert
from families import CLASSES
from minibert.errors import ConfigError, InputError, MissingHeadError, SourceError, TargetError
from minibert.models.registry import FAMILIES, task_classes

AUTO = [getattr(minibert, name) for name in minibert.__all__ if name.startswith("AutoModel")]


@pytest.fixture(params=FAMILIES, ids=lambda family: family.model_type)
def family(request):
    return request.param


@pytest.fixture
def folder(family, tmp_path):
    """A language model of a family, a decoder if it has one, and its generation settings."""
    cls = family.tasks.get("text-generation", family.tasks["continuation"])
    config = family.config.tiny(**CLASSES[cls.__name__]).replace(generation={"max_new_tokens": 3})
    cls(config, rngs=nnx.Rngs(0)).save_pretrained(tmp_path / "in")
    return tmp_path / "in"


@pytest.mark.parametrize("cls", AUTO, ids=lambda cls: cls.__name__)
def test_the_class_is_that_of_the_family_for_the_task(cls, family, folder):
    expected = [one for one in task_classes(cls.task) if one in family.models]
    options = {"new_head": True, "rngs": nnx.Rngs(0)}
    config = family.config.tiny()
    if not expected:
        with pytest.raises(ConfigError, match=f"model_type: {cls.__name__} is for"):
            cls.from_pretrained(folder, **options)
        with pytest.raises(InputError, match=f"config: expected one of .* for {cls.__name__}"):
            cls.from_config(config, rngs=nnx.Rngs(0))
        return
    model, info = cls.from_pretrained(folder, output_loading_info=True, **options)
    assert type(model) is expected[0]
    assert info.model == expected[0].__name__
    new = cls.from_config(config, rngs=nnx.Rngs(0))
    assert type(new) is expected[0]
    assert new.config == config


def test_a_missing_head_is_not_made_up(folder):
    with pytest.raises(MissingHeadError, match="new_head=True"):
        minibert.AutoModelForSequenceClassification.from_pretrained(folder)
    model = minibert.AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=5, new_head=True, rngs=nnx.Rngs(0)
    )
    assert model.config.num_labels == 5


def test_a_config_that_the_class_refuses(tmp_path):
    """The message names the folder, and not the class's argument alone."""
    config = minibert.AlbertConfig.tiny(num_labels=3)
    minibert.AlbertForTokenClassification(config, rngs=nnx.Rngs(0)).save_pretrained(tmp_path)
    said = f"^{re.escape(str(tmp_path))}: num_labels: expected 2 for question answering"
    with pytest.raises(ConfigError, match=said):
        minibert.AutoModelForQuestionAnswering.from_pretrained(
            tmp_path, new_head=True, rngs=nnx.Rngs(0)
        )


@pytest.mark.parametrize("cls", [minibert.AutoConfig, *AUTO], ids=lambda cls: cls.__name__)
def test_none_is_instantiated(cls):
    with pytest.raises(TypeError, match="is not to be instantiated; call from_pretrained"):
        cls()


def test_configs(family, folder, tmp_path):
    config = minibert.AutoConfig.from_pretrained(folder)
    assert type(config) is family.config
    assert config == family.config.from_pretrained(folder) == minibert.load(folder).config
    assert config.generation == {"max_new_tokens": 3}
    changed = minibert.AutoConfig.from_pretrained(folder, num_hidden_layers=1, num_labels=3)
    assert (changed.num_hidden_layers, changed.num_labels) == (1, 3)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    changed.save_pretrained(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json", "generation_config.json", "notes.txt",
    ]  # fmt: skip
    assert family.config.from_pretrained(tmp_path / "out") == changed
    with pytest.raises(TargetError, match=r"config\.json"):
        config.save_pretrained(tmp_path / "out")
    config.save_pretrained(tmp_path / "out", overwrite=True)
    assert minibert.AutoConfig.from_pretrained(tmp_path / "out") == config
    for save in (config.save_pretrained, minibert.GenerationConfig().save_pretrained):
        with pytest.raises(InputError, match="folder: expected a path, found 3"):
            save(3)
    with pytest.raises(InputError, match="layers: not an argument"):
        minibert.AutoConfig.from_pretrained(folder, layers=1)
    with pytest.raises(SourceError, match=r"config\.json"):
        minibert.AutoConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", ["t5", 3, None])
def test_a_config_of_no_family(kind, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(ConfigError, match=r"model_type: expected 'bert' or .*, found"):
        minibert.AutoConfig.from_pretrained(tmp_path)


def test_generation_configs(family, folder, tmp_path):
    config = minibert.GenerationConfig.from_pretrained(folder)
    assert config.max_new_tokens == 3
    changed = minibert.GenerationConfig.from_pretrained(folder, do_sample=True, top_k=5)
    changed.save_pretrained(tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert saved == {"max_new_tokens": 3, "do_sample": True, "top_k": 5}
    with pytest.raises(TargetError, match=r"generation_config\.json"):
        config.save_pretrained(tmp_path / "out")
    config.save_pretrained(folder, overwrite=True)
    assert minibert.load(folder).config.generation == {"max_new_tokens": 3}
    (folder / "generation_config.json").unlink()
    assert minibert.GenerationConfig.from_pretrained(folder).max_new_tokens is None
