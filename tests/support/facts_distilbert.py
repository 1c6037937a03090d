"""DistilBERT's facts."""

import jax
import jax.numpy as jnp
import numpy as np

import facts_bert
from facts import Facts, Planting, Tensors
from facts_bert import without_tensors
from malformed import ONES, add, drop, rename
from minibert.errors import CheckpointMismatchError, MissingHeadError
from minibert.models.distilbert.modeling import Embeddings, TransformerBlock
from planting import (
    at,
    epsilon,
    in_activation,
    in_model,
    swap,
    transpose,
    zero,
)

MASKED, CLASSIFIER = "DistilBertForMaskedLM", "DistilBertForSequenceClassification"
LAYER = "transformer.layer.0"
NORMS = ["embeddings.LayerNorm"] + [
    f"transformer.layer.{layer}.{norm}"
    for layer in range(2)
    for norm in ("sa_layer_norm", "output_layer_norm")
]
OF_ATTENTION = (
    "no 1/sqrt(d)",
    "1/sqrt(hidden) for 1/sqrt(d)",
    "mask inverted",
    "heads in the wrong order",
    "causal for bidirectional",
    "tanh GELU for the exact one",
    "sigmoid GELU for the exact one",
    "no padding mask",
    "positions from 1",
)


def with_class(path, change):
    """A mistake in the call of one submodule."""

    def planted(model, given):
        module = at(model, path) if path else model
        kind = module.__class__
        module.__class__ = type(kind.__name__, (kind,), {"__call__": change})

    return in_model(planted)


def with_token_types(self, input_ids=None, inputs_embeds=None, position_ids=None, rngs=None):
    """BERT's third embedding: a row that is added to every token."""
    words = self.word_embeddings(input_ids) + self.word_embeddings(jnp.array(1))
    return Embeddings.__call__(self, None, words, position_ids, rngs)


def before_attention(self, hidden, *given, **options):
    """A pre-norm block."""
    return TransformerBlock.__call__(self, self.sa_layer_norm(hidden), *given, **options)


MISTAKES = {name: facts_bert.MISTAKES[name] for name in OF_ATTENTION} | {
    "epsilon 1e-5 for 1e-12": epsilon(1e-5, *NORMS),
    "epsilon 1e-6, the framework's default": epsilon(1e-6, *NORMS),
    "a token type's row added": with_class("embeddings", with_token_types),
    "norm before attention": with_class(LAYER, before_attention),
    "attention output bias dropped": zero(f"{LAYER}.attention.out_lin.bias"),
    "query bias dropped": zero(f"{LAYER}.attention.q_lin.bias"),
    "second bias dropped": zero(f"{LAYER}.ffn.lin2.bias"),
    "LayerNorm bias dropped": zero("embeddings.LayerNorm.bias"),
    "the other LayerNorm": swap(f"{LAYER}.sa_layer_norm.scale", f"{LAYER}.output_layer_norm.scale"),
    "query and key swapped": swap(
        f"{LAYER}.attention.q_lin.kernel", f"{LAYER}.attention.k_lin.kernel"
    ),
    "layers in the wrong order": swap(
        "transformer.layer.0.ffn.lin2.kernel", "transformer.layer.1.ffn.lin2.kernel"
    ),
    "square kernel not transposed": transpose(f"{LAYER}.attention.v_lin.kernel"),
}
LM_HEAD = {
    "decoder bias dropped": zero("vocab_projector.bias"),
    "head's dense bias dropped": zero("vocab_transform.bias"),
    "head's norm bias dropped": zero("vocab_layer_norm.bias"),
    "head's dense not transposed": transpose("vocab_transform.kernel"),
    "the epsilon of other models in the head": epsilon(1e-5, "vocab_layer_norm"),
    "tanh GELU": in_activation("gelu", lambda x: jax.nn.gelu(x, approximate=True)),
}


def scores_by(function):
    """Another activation, or other hidden states, in the first token's classifier."""

    def planted(model, given):
        kind = model.__class__

        def scores(self, outputs, rngs=None):
            return self.classifier(function(self, outputs.last_hidden_state))

        model.__class__ = type(kind.__name__, (kind,), {"_scores": scores})

    return in_model(planted)


CLASSIFIER_HEAD = {
    "tanh for ReLU": scores_by(lambda self, h: jnp.tanh(self.pre_classifier(h[:, 0]))),
    "GELU for ReLU": scores_by(
        lambda self, h: jax.nn.gelu(self.pre_classifier(h[:, 0]), approximate=False)
    ),
    "a mean for the first token": scores_by(
        lambda self, h: jax.nn.relu(self.pre_classifier(h.mean(axis=1)))
    ),
    "the last token for the first": scores_by(
        lambda self, h: jax.nn.relu(self.pre_classifier(h[:, -1]))
    ),
    "the dense layer left out": scores_by(lambda self, h: h[:, 0]),
    "no activation": scores_by(lambda self, h: self.pre_classifier(h[:, 0])),
    "dense bias dropped": zero("pre_classifier.bias"),
    "dense not transposed": transpose("pre_classifier.kernel"),
}


def planted(mistakes):
    return {name: (mistake, {}) for name, mistake in mistakes.items()}


WORDS = "embeddings.word_embeddings.weight"
QUERY = "transformer.layer.1.attention.q_lin.weight"
NORM = "embeddings.LayerNorm.weight"
FAULTS = {
    "gamma-elsewhere": (
        rename(
            "transformer.layer.0.sa_layer_norm.weight", "transformer.layer.0.sa_layer_norm.gamma"
        ),
        ("'transformer.layer.0.sa_layer_norm.gamma'", "no leaf"),
    ),
    "a-pooler": (add("pooler.dense.bias", ONES), ("'pooler.dense.bias'", "no leaf")),
    "token-types": (
        add("embeddings.token_type_embeddings.weight", np.ones((2, 24), np.float32)),
        ("'embeddings.token_type_embeddings.weight'", "no leaf"),
    ),
}

FACTS = Facts(
    model_type="distilbert",
    tiny={
        "vocab_size": 97,
        "dim": 24,
        "n_layers": 2,
        "n_heads": 3,
        "hidden_dim": 80,
        "max_position_embeddings": 40,
    },
    classes={
        "DistilBertModel": {},
        MASKED: {},
        CLASSIFIER: {"num_labels": 5},
        "DistilBertForMultipleChoice": {},
        "DistilBertForTokenClassification": {"num_labels": 5},
        "DistilBertForQuestionAnswering": {},
    },
    words=MASKED,
    switched=MASKED,
    switches=(
        {"n_heads": 8},
        {"n_layers": 1},
        {"hidden_dim": 7},
        {"pad_token_id": None},
        {"pad_token_id": 3},
        {"sinusoidal_pos_embds": True},
        {"chunk_size_feed_forward": 11},
        {"tie_word_embeddings": False},
    ),
    gradients=({"activation": "prelu"},),
    planted=(
        Planting("DistilBertModel", planted(MISTAKES)),
        Planting(MASKED, planted(LM_HEAD)),
        Planting(CLASSIFIER, planted(CLASSIFIER_HEAD), {"num_labels": 5}),
    ),
    tensors=Tensors(
        name="DistilBertModel",
        kernel=QUERY,
        shape=(24, 24),
        wide="transformer.layer.0.ffn.lin2.weight",
        bias=("transformer.layer.0.ffn.lin1.bias", (80,)),
        norm=NORM,
        words=WORDS,
        layer="transformer.layer",
        leaf="ffn.lin2.bias",
        layer_faults=16,
        unprefixed_faults=72,
        prefix="distilbert.",
        more=FAULTS,
    ),
    heads={
        "missing": (MASKED, without_tensors("vocab_"), MissingHeadError, ("'vocab_projector'",)),
        "missing-classifier": (
            CLASSIFIER,
            without_tensors("pre_classifier."),
            MissingHeadError,
            ("'pre_classifier'",),
        ),
        "half": (
            CLASSIFIER,
            drop("classifier.bias"),
            CheckpointMismatchError,
            ("'classifier.bias': expected (2,)", "the head 'classifier' is incomplete"),
        ),
        "extra-in-it": (
            MASKED,
            add("vocab_transform.spare", ONES),
            CheckpointMismatchError,
            ("'vocab_transform.spare'", f"no leaf of {MASKED}"),
        ),
    },
    sizes={
        "vocab_size": (96, f"'distilbert.{WORDS}': expected shape (96, 24), found (97"),
        "hidden_size": (27, "expected shape (27, 27), found (24, 24)"),
        "hidden_dim": (81, "expected shape (81, 24), found (80, 24)"),
        "max_position_embeddings": (512, "expected shape (512, 24), found (40, 24)"),
        "num_hidden_layers": (1, f"'{QUERY}'"),
        "n_layers": (3, "'distilbert.transformer.layer.2.attention.q_lin.weight': expected"),
    },
    labelled=(CLASSIFIER, ("classifier.weight", "classifier.bias")),
    wrapped=("DistilBertModel", MASKED),
    choices=("DistilBertForMultipleChoice",),
    norms=("LayerNorm.weight", "layer_norm.weight"),
    types=0,
    activation="activation",
    attended=("attention.out_lin",),
)
