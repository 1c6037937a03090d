"""The tree as a user meets it: printing, opening, dropout, modes, jit, equal tree definitions."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import minibert
from minibert.errors import InputError

pytestmark = pytest.mark.unoptimised

TINY = minibert.BertConfig.tiny()
IDS = np.random.default_rng(0).integers(0, 97, (2, 9))


def fresh(cls=minibert.BertModel, seed=0, **changes):
    return cls(minibert.BertConfig.tiny(**changes), rngs=nnx.Rngs(seed))


def test_prints_as_a_compact_tree():
    bert = fresh(minibert.BertForSequenceClassification)
    text = str(bert)
    assert text == repr(bert)
    assert text.splitlines()[:9] == [
        "BertForSequenceClassification(",
        "  (bert): BertModel(",
        "    (embeddings): BertEmbeddings(",
        "      (word_embeddings): Embed(97, 24)",
        "      (position_embeddings): Embed(40, 24)",
        "      (token_type_embeddings): Embed(2, 24)",
        "      (LayerNorm): LayerNorm(24, epsilon=1e-12)",
        "      (dropout): Dropout(0.1)",
        "    )",
    ]
    assert "(0-1): 2 x BertLayer(" in text
    assert "(intermediate_act_fn): Activation(gelu)" in text
    assert text.splitlines()[-3:] == [
        "  (dropout): Dropout(0.1)",
        "  (classifier): Linear(24, 2)",
        ")",
    ]
    assert str(bert.bert.embeddings).splitlines()[1] == "  (word_embeddings): Embed(97, 24)"
    assert str(fresh(minibert.BertForMaskedLM).cls.predictions).splitlines()[-3:] == [
        "  (decoder): TiedLinear(24, 97)",
        "  (bias): Param(97,)",
        ")",
    ]


def test_any_submodule_can_be_called():
    bert = fresh().eval()
    words = bert.embeddings.word_embeddings(jnp.asarray(IDS))
    assert words.shape == (2, 9, 24)
    np.testing.assert_array_equal(words, bert.embeddings.word_embeddings.embedding[...][IDS])
    assert bert.encoder.layer[1].attention.self.query.kernel.shape == (24, 24)


@pytest.mark.parametrize("ids", [[[5, 96]], np.array([5, 96]), jnp.array(7, jnp.uint8)])
def test_a_table_takes_any_integers(ids):
    table = fresh().embeddings.word_embeddings
    np.testing.assert_array_equal(table(ids), np.asarray(table.embedding[...])[np.asarray(ids)])


def test_a_table_refuses_floats_and_never_narrows():
    table = fresh().embeddings.word_embeddings
    with pytest.raises(InputError, match="float32"):
        table(jnp.array([1.0]))
    assert np.isnan(table(np.array([2**32 + 1]))).all()


@pytest.mark.parametrize("ids", [-1, 97, 2**31 - 1, -(2**31)])
def test_an_invalid_index_returns_nan_and_never_another_row(ids):
    table = fresh().embeddings.word_embeddings
    assert np.isnan(jax.jit(lambda m, i: m(i))(table, jnp.array([ids]))).all()


def test_one_row_table_checks_its_index():
    segments = fresh(type_vocab_size=1).embeddings.token_type_embeddings
    rows = segments(jnp.array([0, 1]))
    assert np.isfinite(rows[0]).all()
    assert np.isnan(rows[1]).all()


def test_64_bit_index_is_not_truncated():
    with jax.enable_x64(True):
        table = fresh().embeddings.word_embeddings
        assert np.isnan(table(jnp.array([2**32 + 1, 2**63 - 1], jnp.int64))).all()


def test_modes_return_the_model():
    bert = fresh()
    assert bert.eval() is bert
    assert bert.embeddings.dropout.deterministic
    assert bert.train() is bert
    assert not bert.encoder.layer[0].attention.self.dropout.deterministic


@pytest.mark.parametrize("rate", [0.0, 0.25, 1.0])
def test_dropout_rate(rate):
    from minibert.nn.layers import Dropout

    x = jnp.ones((200, 200))
    dropped = Dropout(rate)(x, nnx.Rngs(dropout=0))
    assert abs(float((dropped == 0).mean()) - rate) < 0.01
    if rate < 1:
        np.testing.assert_allclose(dropped[dropped != 0], 1 / (1 - rate), rtol=1e-6)


def test_classifier_dropout_is_honoured():
    falls_back = fresh(minibert.BertForSequenceClassification, hidden_dropout_prob=0.3)
    assert falls_back.dropout.rate == 0.3
    own = fresh(minibert.BertForTokenClassification, classifier_dropout=0.0)
    assert own.dropout.rate == 0.0


def test_config_decides_what_is_returned_by_default():
    bert = fresh(output_hidden_states=True, output_attentions=True).eval()
    out = bert(IDS)
    assert len(out.hidden_states) == 3
    assert [weights.shape for weights in out.attentions] == [(2, 3, 9, 9)] * 2
    assert bert(IDS, output_hidden_states=False).hidden_states is None
    np.testing.assert_array_equal(out[0], out.last_hidden_state)
    np.testing.assert_array_equal(out["pooler_output"], out.to_tuple()[1])


def test_labels_and_problem_type_are_kept():
    config = minibert.BertConfig.tiny(id2label={0: "no", 1: "yes", 2: "perhaps"})
    assert (config.num_labels, config.label2id["yes"]) == (3, 1)
    model = minibert.BertForSequenceClassification(config, rngs=nnx.Rngs(0)).eval()
    assert model(IDS).logits.shape == (2, 3)
    config = minibert.BertConfig.tiny(problem_type="regression", num_labels=1)
    assert config.problem_type == "regression"
    assert config.replace(num_labels=4).id2label[3] == "LABEL_3"


def test_two_models_of_one_architecture_are_one_tree(tmp_path):
    fresh(seed=0).save_pretrained(tmp_path / "a")
    fresh(seed=1).save_pretrained(tmp_path / "b")
    config = (tmp_path / "b" / "config.json").read_text()
    junk = config.replace("{", '{"_name_or_path": "elsewhere", "junk": [1, {"a": 2}],', 1)
    (tmp_path / "b" / "config.json").write_text(junk)
    a, b = (minibert.BertModel.from_pretrained(tmp_path / name) for name in "ab")
    assert jax.tree.structure(a) == jax.tree.structure(b)
    mean = jax.tree.map(lambda x, y: (x + y) / 2, a, b)
    np.testing.assert_allclose(
        mean.pooler.dense.kernel[...],
        (a.pooler.dense.kernel[...] + b.pooler.dense.kernel[...]) / 2,
        rtol=1e-6,
    )
    traces = []

    @jax.jit
    def call(model, ids):
        traces.append(1)
        return model(ids).last_hidden_state

    call(a, IDS)
    call(b, IDS)
    assert len(traces) == 1


def test_trees_are_plain_nnx():
    bert = fresh(minibert.BertForMaskedLM).eval()
    graph, state = nnx.split(bert)
    again = nnx.merge(graph, state)
    np.testing.assert_array_equal(again(IDS).logits, bert(IDS).logits)
    assert {type(v) for _, v in nnx.iter_graph(bert) if isinstance(v, nnx.Variable)} == {nnx.Param}


def test_loading_makes_no_random_weights(tmp_path, monkeypatch):
    fresh().save_pretrained(tmp_path / "model")

    def refuse(*args, **kwargs):
        raise AssertionError("random weights were drawn")

    monkeypatch.setattr(jax.random, "normal", refuse)
    minibert.BertModel.from_pretrained(tmp_path / "model")


def test_loaded_arrays_may_be_donated(tmp_path):
    fresh().save_pretrained(tmp_path / "model")
    model = minibert.BertModel.from_pretrained(tmp_path / "model")
    kept = np.array(model.pooler.dense.kernel[...])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a host buffer that JAX adopted cannot be reused
        doubled = jax.jit(lambda m: jax.tree.map(lambda x: 2 * x, m), donate_argnums=0)(model)
    np.testing.assert_array_equal(doubled.pooler.dense.kernel[...], 2 * kept)


def test_initialisation_is_hugging_faces():
    bert = minibert.BertModel(minibert.BertConfig.tiny(hidden_size=240), rngs=nnx.Rngs(0))
    words = np.asarray(bert.embeddings.word_embeddings.embedding[...])
    assert abs(words[1:].std() - 0.02) < 0.001
    assert not words[0].any()
    layer = bert.encoder.layer[0]
    assert abs(np.asarray(layer.output.dense.kernel[...]).std() - 0.02) < 0.001
    assert not np.asarray(layer.output.dense.bias[...]).any()
    assert (np.asarray(layer.output.LayerNorm.scale[...]) == 1).all()
