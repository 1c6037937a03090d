"""A model is saved only with a config that describes it."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import minibert
import sentences
from malformed import cases, refused
from minibert import train
from minibert.errors import CheckpointMismatchError, InputError
from minibert.nn.layers import Linear

pytestmark = pytest.mark.unoptimised

QUERY = "encoder.layer.1.attention.self.query"


def tiny(name="BertForSequenceClassification", **config):
    cls = getattr(minibert, name)
    return cls(cls.config_class.tiny(**config), rngs=nnx.Rngs(0)).eval()


def fewer_layers(model):
    model.bert.encoder.layer = nnx.List(list(model.bert.encoder.layer)[:1])


def wider_head(model):
    options = {"stddev": 0.02, "rngs": nnx.Rngs(1), "dtype": None, "param_dtype": jnp.float32}
    model.classifier = Linear(24, 5, **options)


def more_tokens(model):
    table = model.bert.embeddings.word_embeddings
    table.embedding = nnx.Param(jnp.concatenate([table.embedding[...]] * 2))


def fewer_positions(model):
    table = model.bert.embeddings.position_embeddings
    table.embedding = nnx.Param(table.embedding[:16])


def extra_module(model):
    model.adapter = nnx.Linear(24, 24, rngs=nnx.Rngs(0))


def no_bias(model):
    model.classifier.bias = nnx.data(None)


def whole_numbers(model):
    model.classifier.bias = nnx.Param(jnp.zeros(2, jnp.int8))


def shape_only(model):
    model.classifier.bias.set_value(jax.ShapeDtypeStruct((2,), jnp.float32))


def another_activation(model):
    model.config = model.config.replace(hidden_act="relu")


def another_epsilon(model):
    model.config = model.config.replace(layer_norm_eps=1e-5)


def another_number_of_heads(model):
    model.config = model.config.replace(num_attention_heads=2)


CHANGES = {
    "fewer-layers": (fewer_layers, f"bert.{QUERY}.kernel: expected shape (24, 24), found no such"),
    "wider-head": (wider_head, "classifier.kernel: expected shape (24, 2), found shape (24, 5)"),
    "more-tokens": (more_tokens, "expected shape (97, 24), found shape (194, 24)"),
    "fewer-positions": (fewer_positions, "expected shape (40, 24), found shape (16, 24)"),
    "extra-module": (extra_module, "adapter.kernel: expected no such parameter, found shape (24"),
    "no-bias": (no_bias, "classifier.bias: expected shape (2,), found no such parameter"),
    "whole-numbers": (whole_numbers, "classifier.bias: expected floating-point numbers, found int"),
    "shape-only": (shape_only, "classifier.bias: expected an array, found a shape without values"),
    "activation": (another_activation, "intermediate_act_fn.name: expected 'relu', found 'gelu'"),
    "epsilon": (another_epsilon, "LayerNorm.epsilon: expected 1e-05, found 1e-12"),
    "heads": (another_number_of_heads, "self.heads: expected 2, found 3"),
}


@pytest.mark.parametrize(("change", "said"), cases(CHANGES))
def test_a_tree_that_is_not_the_configs(change, said, tmp_path):
    model = tiny()
    change(model)
    said = (said, "save_pretrained(config=…)")
    refused(CheckpointMismatchError, said, lambda: model.save_pretrained(tmp_path / "out"))
    assert os.listdir(tmp_path) == []


def test_a_stacked_ensemble(tmp_path):
    @nnx.vmap(in_axes=0)
    def build(key):
        return minibert.BertModel(minibert.BertConfig.tiny(), rngs=nnx.Rngs(params=key))

    models = build(jax.random.split(jax.random.key(0), 3))
    said = (": expected shape (24, 24), found shape (3, 24, 24) (and 8 more like it)",)
    refused(CheckpointMismatchError, said, lambda: models.save_pretrained(tmp_path / "out"))


CONFIGS = {
    "fewer-layers": (fewer_layers, {"num_hidden_layers": 1}),
    "wider-head": (wider_head, {"num_labels": 5}),
    "more-tokens": (more_tokens, {"vocab_size": 194}),
    "fewer-positions": (fewer_positions, {"max_position_embeddings": 16}),
}


@pytest.mark.parametrize(("change", "fields"), cases(CONFIGS))
def test_a_config_of_the_tree_is_given(change, fields, tmp_path):
    """What is loaded computes what was saved; the model's own config is left alone."""
    model = tiny()
    change(model)
    before = model.config
    model.save_pretrained(tmp_path / "out", config=model.config.replace(**fields))
    assert model.config == before
    again = minibert.load(tmp_path / "out")
    ids = np.arange(12).reshape(2, 6)
    np.testing.assert_array_equal(again(ids).logits, model(ids).logits)


def test_a_config_of_another_class(tmp_path):
    said = ("config: expected a BertConfig, found 'GPT2Config'",)
    config = minibert.GPT2Config.tiny()
    refused(InputError, said, lambda: tiny().save_pretrained(tmp_path / "out", config=config))


def test_a_class_that_no_load_could_build(tmp_path):
    class Mine(minibert.BertForSequenceClassification):
        def __init__(self, config, temperature, *, rngs):
            super().__init__(config, rngs=rngs)
            self.temperature = temperature

    model = Mine(minibert.BertConfig.tiny(), 2.0, rngs=nnx.Rngs(0))
    said = ("can be built from its config alone, as loading does, found Mine", "temperature")
    refused(InputError, said, lambda: model.save_pretrained(tmp_path / "out"))


TIED = {"tied": {}, "untied": {"tie_word_embeddings": False}}


@pytest.mark.parametrize("config", TIED.values(), ids=TIED)
@pytest.mark.parametrize("name", ["BertForMaskedLM", "BertForPreTraining", "GPT2LMHeadModel"])
def test_tied_and_optional_parameters(name, config, tmp_path):
    tiny(name, **config).save_pretrained(tmp_path)
    assert type(minibert.load(tmp_path)).__name__ == name


def test_a_copy_that_is_missing(tmp_path):
    """The config records that the parameter is no longer tied."""
    model = tiny("GPT2LMHeadModel")
    config = model.config.replace(tie_word_embeddings=False)
    said = ("lm_head.kernel: expected shape (24, 97), found no such parameter",)
    refused(
        CheckpointMismatchError,
        said,
        lambda: model.save_pretrained(tmp_path / "out", config=config),
    )


def test_a_merged_adapter_is_saved(tmp_path):
    model = tiny()
    adapter = train.init_adapter(model, train.LoRA(r=2))
    train.merge(model, adapter).save_pretrained(tmp_path)
    assert minibert.load(tmp_path) is not None


def test_the_parts_of_an_encoder(tmp_path):
    encoder = sentences.encoder(dense=sentences.dense(24, 7))
    dense = encoder.model.chain[1]
    dense.linear.kernel = nnx.Param(jnp.zeros((24, 9)))
    said = ("linear.kernel: expected shape (24, 7), found shape (24, 9)",)
    refused(CheckpointMismatchError, said, lambda: encoder.save_pretrained(tmp_path / "out"))
    body = encoder.model.transformer
    body.encoder.layer = nnx.List(list(body.encoder.layer)[:1])
    said = (f"{QUERY}.kernel: expected shape (24, 24), found no such parameter",)
    refused(CheckpointMismatchError, said, lambda: encoder.save_pretrained(tmp_path / "out"))
    assert os.listdir(tmp_path) == []


def test_a_config_that_was_not_read(tmp_path):
    """Fields of the file that nothing here reads are written from the config that is given."""
    model = tiny()
    config = dataclasses.replace(model.config, extra={"note": "mine"})
    model.save_pretrained(tmp_path, config=config)
    assert minibert.load(tmp_path).config.extra["note"] == "mine"
