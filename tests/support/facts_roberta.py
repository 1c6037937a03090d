"""RoBERTa's facts: what is as in BERT is taken from there."""

import jax
import jax.numpy as jnp
import numpy as np

import facts_bert
from facts import Facts, Planting, Tensors
from facts_bert import SIZES, without_tensors
from malformed import ONES, add, drop
from minibert.errors import CheckpointMismatchError, MissingHeadError
from minibert.nn.activations import activation
from planting import epsilon, in_activation, in_model, positions_of, swap, transpose, zero

TINY = facts_bert.FACTS.tiny | {"pad_token_id": 1}
PAD = TINY["pad_token_id"]
DENSE = ("dense.weight", "dense.bias")
MASKED, CLASSIFIER = "RobertaForMaskedLM", "RobertaForSequenceClassification"


def counted(given):
    """The positions as they should be."""
    real = given["input_ids"] != PAD
    return PAD + np.cumsum(real, axis=1) * real


def head(change):
    """A mistake in the first token's classifier."""

    def planted(model, given):
        first = model.classifier.__class__
        model.classifier.__class__ = type(first.__name__, (first,), {"__call__": change})

    return in_model(planted)


def without_tanh(name):
    function = {"gelu": lambda x: jax.nn.gelu(x, approximate=False), "relu": jax.nn.relu}[name]
    return head(lambda self, hidden, rngs=None: self.out_proj(function(self.dense(hidden[:, 0]))))


def tanh_gelu_in_the_head(model, given):
    """The head's own activation, which is the exact GELU whatever the config's is."""
    model.lm_head.act = activation("gelu_new", rngs=None, dtype=None, param_dtype=jnp.float64)


def mean_for_first(self, hidden, rngs=None):
    """A mean of tokens for the first one."""
    return self.out_proj(jnp.tanh(self.dense(hidden.mean(axis=1))))


def pooled_first(self, hidden, rngs=None):
    """BERT's head takes the output of a pooler, which is a dense layer and tanh too."""
    first = jnp.tanh(self.dense(hidden[:, 0]))
    return self.out_proj(jnp.tanh(self.dense(first)))


POSITIONS = {
    "positions from 0": positions_of(lambda given: np.arange(11)[None]),
    "positions from 1": positions_of(lambda given: np.arange(1, 12)[None]),
    "positions from pad + 1, padding counted": positions_of(
        lambda given: np.arange(PAD + 1, PAD + 12)[None]
    ),
    "positions by the mask": positions_of(
        lambda given: PAD + np.cumsum(given["attention_mask"], axis=1) * given["attention_mask"]
    ),
    "positions one on": positions_of(lambda given: counted(given) + 1),
}
LM_HEAD = {
    "decoder bias dropped": zero("lm_head.bias"),
    "head's dense bias dropped": zero("lm_head.dense.bias"),
    "head's norm bias dropped": zero("lm_head.layer_norm.bias"),
    "head's dense not transposed": transpose("lm_head.dense.kernel"),
    "the epsilon of the published models": epsilon(1e-5, "lm_head.layer_norm"),
    "the trunk's epsilon too": epsilon(1e-5, "roberta.embeddings.LayerNorm"),
    "tanh GELU in the head alone": in_model(tanh_gelu_in_the_head),
    "tanh GELU": in_activation("gelu", lambda x: jax.nn.gelu(x, approximate=True)),
    "decoder's norm for the embeddings'": swap(
        "lm_head.layer_norm.scale", "roberta.embeddings.LayerNorm.scale"
    ),
}
CLASSIFIER_HEAD = {
    "GELU for tanh": without_tanh("gelu"),
    "ReLU for tanh": without_tanh("relu"),
    "a mean for the first token": head(mean_for_first),
    "a pooler before the head": head(pooled_first),
    "the dense layer left out": head(lambda self, hidden, rngs=None: self.out_proj(hidden[:, 0])),
}
DECODER = facts_bert.decoder_mistakes("roberta", "lm_head.bias") | {
    "padding takes positions": positions_of(lambda given: PAD + 1 + np.arange(11)[None])
}


def planted(mistakes):
    return {name: (mistake, {}) for name, mistake in mistakes.items()}


FACTS = Facts(
    model_type="roberta",
    tiny=TINY,
    classes={
        "RobertaModel": {},
        "RobertaForMaskedLM": {},
        "RobertaForCausalLM": {"is_decoder": True},
        "RobertaForSequenceClassification": {"num_labels": 5},
        "RobertaForMultipleChoice": {},
        "RobertaForTokenClassification": {"num_labels": 5},
        "RobertaForQuestionAnswering": {},
    },
    words=MASKED,
    switched=MASKED,
    switches=(
        {"layer_norm_eps": 1e-5},
        {"type_vocab_size": 1},
        {"num_attention_heads": 8},
        {"num_hidden_layers": 1},
        {"pad_token_id": 0},
        {"pad_token_id": 3},
        {"max_position_embeddings": 13},
        {"chunk_size_feed_forward": 11},
        {"tie_word_embeddings": False},
    ),
    gradients=({"hidden_act": "prelu"},),
    planted=(
        Planting("RobertaModel", planted(facts_bert.MISTAKES | POSITIONS)),
        Planting(MASKED, planted(LM_HEAD)),
        Planting(CLASSIFIER, planted(CLASSIFIER_HEAD), {"num_labels": 5}),
        Planting(
            "RobertaForCausalLM",
            planted(DECODER),
            {"is_decoder": True, "add_cross_attention": True},
            decoder=True,
        ),
    ),
    tensors=Tensors(
        name="RobertaModel",
        kernel=facts_bert.QUERY,
        shape=(24, 24),
        wide="encoder.layer.0.output.dense.weight",
        bias=("pooler.dense.bias", (24,)),
        norm=facts_bert.NORM,
        words=facts_bert.WORDS,
        layer="encoder.layer",
        leaf="output.dense.bias",
        layer_faults=16,
        unprefixed_faults=76,
        prefix="roberta.",
    ),
    heads={
        "missing": (MASKED, without_tensors("lm_head."), MissingHeadError, ("'lm_head'",)),
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
        "extra-in-it": (
            MASKED,
            add("lm_head.spare", ONES),
            CheckpointMismatchError,
            ("'lm_head.spare'", "no leaf of RobertaForMaskedLM"),
        ),
    },
    sizes={
        name: (value, text.replace("bert.", "roberta.")) for name, (value, text) in SIZES.items()
    },
    labelled=(
        CLASSIFIER,
        tuple(f"classifier.{part}" for part in ("out_proj.weight", "out_proj.bias", *DENSE)),
    ),
    wrapped=("RobertaModel", MASKED),
    choices=("RobertaForMultipleChoice",),
    tokens=(38, "max_position_embeddings - pad_token_id - 1"),
    tree="bert",
    norms=("LayerNorm.weight", "layer_norm.weight"),
)
