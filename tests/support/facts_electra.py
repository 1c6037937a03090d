"""ELECTRA's facts: what is as in BERT or RoBERTa is taken from there."""

import jax
import jax.numpy as jnp
import numpy as np

import facts_bert
import facts_roberta
from facts import Facts, Planting, Tensors
from facts_bert import without_tensors
from facts_roberta import head, planted
from malformed import ONES, add, drop
from minibert.errors import CheckpointMismatchError, MissingHeadError
from minibert.models.electra.modeling import ElectraModel
from minibert.nn.activations import activation
from planting import (
    epsilon,
    in_model,
    positions_of,
    swap,
    swapped,
    transpose,
    zero,
)

TINY = facts_bert.FACTS.tiny | {"embedding_size": 20}
MASKED, CLASSIFIER = "ElectraForMaskedLM", "ElectraForSequenceClassification"
DISCRIMINATOR, CHOICE = "ElectraForPreTraining", "ElectraForMultipleChoice"
PROJECT = "embeddings_project"


def gelu(approximate):
    return lambda x: jax.nn.gelu(x, approximate=approximate)


def embedded(change):
    """Another order of the embeddings' layers: from the model and the sum of the embeddings."""

    def wrong(self, given, rngs=None):
        parts = self.embeddings
        words = parts.word_embeddings(given.input_ids)
        words = words + parts.token_type_embeddings(given.token_type_ids)
        return change(self, words + parts.position_embeddings(given.position_ids))

    return lambda model, given: swapped(ElectraModel, "_embedded", wrong)


def projection_first(model, summed):
    """The projection before the norm."""
    hidden = model.embeddings_project(summed)
    return jax.nn.standardize(hidden, epsilon=1e-12)


def acting(path, name):
    """Another activation in a head."""

    def change(model, given):
        part = model
        for step in path.split("."):
            part = getattr(part, step)
        part.activation = activation(name, rngs=None, dtype=None, param_dtype=jnp.float64)

    return in_model(change)


def summary(change):
    """Another vector of a choice."""

    def plant(model, given):
        model.sequence_summary.kind = change

    return in_model(plant)


OF_BERT = (
    "tanh GELU for the exact one",
    "attention output bias dropped",
    "query bias dropped",
    "LayerNorm bias dropped",
    "the other LayerNorm",
    "layers in the wrong order",
    "square kernel not transposed",
    "no padding mask",
    "no segments",
    "positions from 1",
    "no 1/sqrt(d)",
    "heads in the wrong order",
)
OWN = {
    "projection's bias dropped": zero(f"{PROJECT}.bias"),
    "projection before the norm": embedded(projection_first),
    "embeddings without a norm": embedded(lambda model, x: model.embeddings_project(x)),
    "no projection": embedded(
        lambda model, x: jnp.pad(model.embeddings.LayerNorm(x), ((0, 0), (0, 0), (0, 4)))
    ),
    "the epsilon of other models": epsilon(1e-5, "embeddings.LayerNorm"),
}
GENERATOR = {
    "decoder bias dropped": zero("generator_lm_head.bias"),
    "head's dense bias dropped": zero("generator_predictions.dense.bias"),
    "head's norm bias dropped": zero("generator_predictions.LayerNorm.bias"),
    "the head's epsilon": epsilon(1e-5, "generator_predictions.LayerNorm"),
    "tanh GELU in the head": acting("generator_predictions", "gelu_new"),
    "no activation in the head": acting("generator_predictions", "linear"),
    "decoder's norm for the embeddings'": swap(
        "generator_predictions.LayerNorm.scale", "electra.embeddings.LayerNorm.scale"
    ),
}
# the discriminator's activation is the config's, the generator's and the classifier's are GELU
OTHERS = {"hidden_act": "relu"}
HEADS_OF_OTHERS = {
    "the config's activation in the generator": acting("generator_predictions", "relu")
}
DISCRIMINATING = {
    "GELU whatever the config says": acting("discriminator_predictions", "gelu"),
    "tanh for the activation": acting("discriminator_predictions", "tanh"),
    "head's dense not transposed": transpose("discriminator_predictions.dense.kernel"),
    "score's bias dropped": zero("discriminator_predictions.dense_prediction.bias"),
}
CLASSIFYING = {
    "tanh for GELU": head(
        lambda self, hidden, rngs=None: self.out_proj(jnp.tanh(self.dense(hidden[:, 0])))
    ),
    "the config's activation": head(
        lambda self, hidden, rngs=None: self.out_proj(jax.nn.relu(self.dense(hidden[:, 0])))
    ),
    "tanh GELU": head(
        lambda self, hidden, rngs=None: self.out_proj(gelu(True)(self.dense(hidden[:, 0])))
    ),
    "a mean for the first token": head(
        lambda self, hidden, rngs=None: self.out_proj(gelu(False)(self.dense(hidden.mean(axis=1))))
    ),
    "the dense layer left out": head(lambda self, hidden, rngs=None: self.out_proj(hidden[:, 0])),
}
CHOOSING = {
    "the last token for the first": summary("last"),
    "a mean for the first token": summary("mean"),
    "tanh for the summary's activation": acting("sequence_summary", "tanh"),
    "summary's bias dropped": zero("sequence_summary.summary.bias"),
}
DECODER = {
    name: mistake
    for name, mistake in facts_bert.decoder_mistakes("electra", "generator_lm_head.bias").items()
    if name != "padding takes positions"
} | {"padding takes positions": positions_of(lambda given: np.arange(11)[None])}


FACTS = Facts(
    model_type="electra",
    tiny=TINY,
    classes={
        "ElectraModel": {},
        DISCRIMINATOR: {},
        MASKED: {},
        "ElectraForCausalLM": {"is_decoder": True},
        CLASSIFIER: {"num_labels": 5},
        CHOICE: {},
        "ElectraForTokenClassification": {"num_labels": 5},
        "ElectraForQuestionAnswering": {},
    },
    words=MASKED,
    switched=MASKED,
    switches=(
        {"layer_norm_eps": 1e-5},
        {"embedding_size": 24},
        {"type_vocab_size": 1},
        {"num_attention_heads": 8},
        {"num_hidden_layers": 1},
        {"pad_token_id": None},
        {"hidden_act": "relu"},
        {"chunk_size_feed_forward": 11},
        {"tie_word_embeddings": False},
    ),
    gradients=({"hidden_act": "prelu"}, {"embedding_size": 24}),
    planted=(
        Planting(
            "ElectraModel", planted({name: facts_bert.MISTAKES[name] for name in OF_BERT} | OWN)
        ),
        Planting(MASKED, planted(GENERATOR)),
        Planting(MASKED, planted(HEADS_OF_OTHERS), OTHERS),
        Planting(DISCRIMINATOR, planted(DISCRIMINATING), OTHERS),
        Planting(CLASSIFIER, planted(CLASSIFYING), {"num_labels": 5}),
        Planting(CHOICE, planted(CHOOSING)),
        Planting(
            "ElectraForCausalLM",
            planted(DECODER),
            {"is_decoder": True, "add_cross_attention": True},
            decoder=True,
        ),
    ),
    tensors=Tensors(
        name="ElectraModel",
        kernel=facts_bert.QUERY,
        shape=(24, 24),
        wide="encoder.layer.0.output.dense.weight",
        bias=(f"{PROJECT}.bias", (24,)),
        norm="encoder.layer.0.output.LayerNorm.weight",
        words=facts_bert.WORDS,
        layer="encoder.layer",
        leaf="output.dense.bias",
        layer_faults=16,
        unprefixed_faults=78,
        prefix="electra.",
        more={
            "missing-projection": (
                drop(f"{PROJECT}.weight"),
                (f"'electra.{PROJECT}.weight': expected (24, 20), found no such tensor",),
            ),
        },
    ),
    heads={
        "missing": (
            MASKED,
            without_tensors("generator_"),
            MissingHeadError,
            ("'generator_predictions'", "'generator_lm_head'"),
        ),
        "missing-classifier": (
            CLASSIFIER,
            without_tensors("classifier."),
            MissingHeadError,
            ("'classifier'",),
        ),
        "half": (
            CLASSIFIER,
            drop("classifier.out_proj.bias"),
            CheckpointMismatchError,
            ("'classifier.out_proj.bias': expected (2,)", "the head 'classifier' is incomplete"),
        ),
        "half-of-discriminator": (
            DISCRIMINATOR,
            drop("discriminator_predictions.dense.bias"),
            CheckpointMismatchError,
            ("'discriminator_predictions.dense.bias': expected (24,)", "is incomplete"),
        ),
        "extra-in-it": (
            MASKED,
            add("generator_predictions.spare", ONES),
            CheckpointMismatchError,
            ("'generator_predictions.spare'", "no leaf of ElectraForMaskedLM"),
        ),
    },
    sizes={
        "vocab_size": (96, "'electra.embeddings.word_embeddings.weight': expected shape (96, 20)"),
        "hidden_size": (27, f"'electra.{PROJECT}.weight': expected shape (27, 20), found (24, 20)"),
        "embedding_size": (21, "expected shape (97, 21), found (97, 20)"),
        "embedding_size ": (24, f"'{PROJECT}.weight'"),
        "intermediate_size": (81, "expected shape (81, 24), found (80, 24)"),
        "max_position_embeddings": (512, "expected shape (512, 20), found (40, 20)"),
        "type_vocab_size": (1, "expected shape (1, 20), found (2, 20)"),
        "num_hidden_layers": (1, "'encoder.layer.1.attention.self.query.weight'"),
        "num_hidden_layers ": (3, "'electra.encoder.layer.2.attention.self.query.weight': expe"),
    },
    labelled=(CLASSIFIER, facts_roberta.FACTS.labelled[1]),
    wrapped=("ElectraModel", MASKED),
    choices=(CHOICE,),
    tree="bert",
)
