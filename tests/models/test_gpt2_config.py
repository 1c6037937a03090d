"""GPT-2's config: other names of fields, presets, what is refused, what survives."""

import json

import jax
import pytest
from flax import nnx

import minibert
from malformed import cases, edit_json, load, refused
from minibert import GPT2Config
from minibert.errors import ConfigError

CONFIG, LM = "config.json", "GPT2LMHeadModel"
ALIASES = {
    "hidden_size": ("n_embd", 48),
    "max_position_embeddings": ("n_positions", 17),
    "num_attention_heads": ("n_head", 4),
    "num_hidden_layers": ("n_layer", 3),
}


@pytest.fixture
def folder(pristine, tmp_path):
    return pristine.copy(tmp_path / "model", LM)


@pytest.mark.parametrize(("alias", "name", "value"), [(k, *v) for k, v in ALIASES.items()])
def test_aliases(alias, name, value):
    """By either name: built, replaced, preset, read from a file, and read."""
    plain = GPT2Config.tiny(**{name: value})
    for config in (
        GPT2Config.tiny(**{alias: value}),
        GPT2Config.tiny().replace(**{alias: value}),
        GPT2Config.from_dict({**GPT2Config.tiny(**{name: value}).to_dict(), alias: value}),
        GPT2Config.tiny(**{alias: value, name: value}),
    ):
        assert config == plain
        assert hash(config) == hash(plain)
        assert getattr(config, alias) == getattr(config, name) == value
    data = plain.to_dict()
    data[alias] = data.pop(name)
    assert GPT2Config.from_dict(data) == plain
    assert alias not in plain.to_dict()


@pytest.mark.parametrize("preset", ["small", "medium", "large", "xl", "tiny"])
def test_presets_take_aliases(preset):
    """Sizes that are passed override those of a preset, under any of their names."""
    config = getattr(GPT2Config, preset)(hidden_size=50, num_attention_heads=5, n_layer=1)
    assert (config.n_embd, config.n_head, config.n_layer) == (50, 5, 1)


def test_presets_are_the_published_sizes():
    """Counted in shapes, with the tied head once."""
    published = {"small": 124439808, "medium": 354823168, "large": 774030080, "xl": 1557611200}
    for preset, count in published.items():
        model = minibert.GPT2LMHeadModel(getattr(GPT2Config, preset)(), rngs=None)
        leaves = jax.tree.leaves(nnx.state(model))
        vocabulary = model.config.vocab_size * model.config.n_embd
        # a tree of shapes is the widest: its head is not tied yet
        assert sum(leaf.size for leaf in leaves) - vocabulary == count


@pytest.mark.parametrize(("alias", "name", "value"), [(k, *v) for k, v in ALIASES.items()])
def test_contradicting_aliases(alias, name, value, folder):
    said = f"{name}: found {value}, but its alias {alias} is 7"
    refused(ConfigError, (said,), lambda: GPT2Config(**{alias: 7, name: value}))
    edit_json(folder / CONFIG, lambda config: config.update({alias: 7, name: value}))
    refused(ConfigError, (str(folder / CONFIG), said), lambda: load(folder, LM))


def test_two_aliases_of_different_fields_do_not_meet():
    config = GPT2Config(hidden_size=12, num_attention_heads=3)
    assert (config.n_embd, config.n_head) == (12, 3)


REFUSED = {
    "heads": ({"n_head": 5}, "n_head: expected a divisor of n_embd (24), found 5"),
    "heads-alias": ({"num_attention_heads": 5}, "n_head: "),
    "inner-0": ({"n_inner": 0}, "n_inner: expected a whole number of at least 1 or null, found 0"),
    "inner-float": ({"n_inner": 80.0}, "n_inner: expected"),
    "inner-bool": ({"n_inner": True}, "n_inner: expected"),
    "layers-0": ({"n_layer": 0}, "n_layer: expected a whole number of at least 1, found 0"),
    "epsilon-0": ({"layer_norm_epsilon": 0}, "layer_norm_epsilon: expected a positive number"),
    "epsilon-text": ({"layer_norm_epsilon": "1e-5"}, "layer_norm_epsilon: expected"),
    "activation": ({"activation_function": "gelu_newer"}, "activation_function: expected one of"),
    "activation-null": ({"activation_function": None}, "activation_function: expected one of"),
    "dropout": ({"resid_pdrop": 1.5}, "resid_pdrop: expected a number from 0 to 1"),
    "switch": ({"scale_attn_weights": 1}, "scale_attn_weights: expected true or false, found 1"),
    "switch-text": ({"scale_attn_by_inverse_layer_idx": "no"}, "expected true or false"),
    "upcast-null": ({"reorder_and_upcast_attn": None}, "reorder_and_upcast_attn: expected"),
    "summary": ({"summary_type": "attn"}, "summary_type: expected one of last, first, mean, cls_"),
    "summary-activation": ({"summary_activation": "none"}, "summary_activation: expected one of"),
    "pad-text": ({"pad_token_id": "0"}, "pad_token_id: expected a whole number or null"),
    "pad-bool": ({"pad_token_id": True}, "pad_token_id: expected a whole number or null"),
    "model-type": ({"model_type": "gpt_neo"}, "model_type: expected 'gpt2', found 'gpt_neo'"),
    "model-type-bert": ({"model_type": "bert"}, "model_type: expected 'gpt2', found 'bert'"),
}


@pytest.mark.parametrize(("change", "said"), cases(REFUSED))
def test_refused(change, said, folder):
    edit_json(folder / CONFIG, lambda config: config.update(change))
    refused(ConfigError, (str(folder / CONFIG), said), lambda: load(folder, LM))


PUBLISHED = {  # what the hub's gpt2 has besides
    "n_ctx": 40,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
}
JUNK = {"gradient_clip": 1.0, "embed_dropout": [0.1], "causal": True}


def test_other_fields_survive(folder, tmp_path):
    edit_json(folder / CONFIG, lambda config: config.update(PUBLISHED | JUNK))
    model, info = load(folder, LM, output_loading_info=True)
    assert set(info.config_ignored) >= set(JUNK)
    assert not set(info.config_ignored) & {"bos_token_id", "task_specific_params"}
    model.save_pretrained(tmp_path / "out")
    written = json.loads((tmp_path / "out" / CONFIG).read_text())
    assert {name: written[name] for name in PUBLISHED | JUNK} == PUBLISHED | JUNK
    again = load(tmp_path / "out", LM)
    assert again.config == model.config
    assert jax.tree.structure(again) == jax.tree.structure(model)


def test_config_of_a_whole_file_survives(folder, tmp_path):
    """Every field written is read back as it was, aliases by their proper names."""
    before = json.loads((folder / CONFIG).read_text())
    edit_json(folder / CONFIG, lambda config: config.update(num_hidden_layers=config["n_layer"]))
    load(folder, LM).save_pretrained(tmp_path / "out")
    assert json.loads((tmp_path / "out" / CONFIG).read_text()) == before


def test_dropouts_of_the_head():
    """The config's own, then `hidden_dropout`, then 0.1, as transformers looks for them."""
    cls = minibert.GPT2ForTokenClassification
    rates = {
        0.1: {},
        0.3: {"hidden_dropout": 0.3},
        0.0: {"hidden_dropout": 0.3, "classifier_dropout": 0.0},
    }
    for rate, fields in rates.items():
        model = cls(GPT2Config.tiny(resid_pdrop=0.7, **fields), rngs=nnx.Rngs(0))
        assert model.dropout.rate == rate
