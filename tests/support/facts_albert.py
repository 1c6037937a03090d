"""ALBERT's facts: what is as in BERT is taken from there."""

import contextlib
import copy

import jax
import jax.numpy as jnp
import numpy as np

import facts_bert
from facts import Facts, Planting, Tensors
from facts_bert import without_tensors
from malformed import ONES, add, drop, rename
from minibert.errors import CheckpointMismatchError, MissingHeadError
from minibert.models.albert import AlbertConfig
from minibert.models.albert.modeling import AlbertLayer
from minibert.nn.activations import activation
from minibert.nn.cache import BlockOutput
from planting import (
    at,
    epsilon,
    in_activation,
    in_attend,
    in_model,
    positions_of,
    swap,
    swapped,
    transpose,
    without,
    zero,
)

MASKED, CLASSIFIER = "AlbertForMaskedLM", "AlbertForSequenceClassification"
GROUP = "encoder.albert_layer_groups.0"
BLOCK = f"{GROUP}.albert_layers.0"
TINY = facts_bert.FACTS.tiny | {"embedding_size": 16}
DROPPED = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}  # by default 0
GROUPS = {"num_hidden_layers": 3, "num_hidden_groups": 2}
INNER = {"inner_group_num": 2}
NORMS = ["embeddings.LayerNorm", f"{BLOCK}.attention.LayerNorm", f"{BLOCK}.full_layer_layer_norm"]


def in_call(cls, change):
    """A mistake in the calls of a class."""

    @contextlib.contextmanager
    def planted(model, given):
        with swapped(cls, "__call__", change):
            yield

    return planted


def in_order(change):
    """A mistake in the paths of the blocks that are executed."""

    @contextlib.contextmanager
    def planted(model, given):
        paths = change(list(model.config.layer_paths))
        with swapped(AlbertConfig, "layer_paths", property(lambda config: paths)):
            yield

    return planted


@contextlib.contextmanager
def of_their_own(model, given):
    """The second layer executes another block, which lacks a bias."""
    groups = model.encoder.albert_layer_groups
    other = copy.deepcopy(groups[0])
    at(other, "albert_layers.0.ffn.bias")[...] = 0 * at(other, "albert_layers.0.ffn.bias")[...]
    groups.append(other)
    with in_order(lambda paths: [paths[0], "1.albert_layers.0"])(model, given):
        yield


def layer(change):
    """Another block; `change` takes the block, the attention's output and the network's."""

    def call(self, hidden, mask=None, head_mask=None, *rest):
        attended, weights = self.attention(hidden, mask, head_mask)
        wide = self.ffn_output(self.activation(self.ffn(attended)))
        return BlockOutput(change(self, hidden, attended, wide), weights, None, None)

    return in_call(AlbertLayer, call)


MISTAKES = {
    "exact GELU for the tanh one": in_activation(
        "gelu_new", lambda x: jax.nn.gelu(x, approximate=False)
    ),
    "epsilon 1e-5 for 1e-12": epsilon(1e-5, *NORMS),
    "epsilon 1e-6, the framework's default": epsilon(1e-6, *NORMS),
    "layers with parameters of their own": of_their_own,
    "attention output bias dropped": zero(f"{BLOCK}.attention.dense.bias"),
    "query bias dropped": zero(f"{BLOCK}.attention.query.bias"),
    "mapping's bias dropped": zero("encoder.embedding_hidden_mapping_in.bias"),
    "LayerNorm bias dropped": zero("embeddings.LayerNorm.bias"),
    "the other LayerNorm": swap(
        f"{BLOCK}.attention.LayerNorm.scale", f"{BLOCK}.full_layer_layer_norm.scale"
    ),
    "query and key swapped": swap(
        f"{BLOCK}.attention.query.kernel", f"{BLOCK}.attention.key.kernel"
    ),
    "square kernel not transposed": transpose(f"{BLOCK}.attention.value.kernel"),
    "pooler kernel not transposed": transpose("pooler.kernel"),
    "residual of the block's input": layer(
        lambda self, hidden, attended, wide: self.full_layer_layer_norm(wide + hidden)
    ),
    "no second residual": layer(
        lambda self, hidden, attended, wide: self.full_layer_layer_norm(wide)
    ),
    "no padding mask": without("attention_mask"),
    "no segments": without("token_type_ids"),
    "positions from 1": positions_of(lambda given: np.arange(1, 12)[None]),
    "no 1/sqrt(d)": in_attend(
        lambda attend, q, k, v, options: attend(q * q.shape[-1] ** 0.5, k, v, **options)
    ),
}
SHARED = {  # with two groups, and three layers
    "the groups in turn": (
        in_order(lambda paths: [f"{number % 2}.albert_layers.0" for number in range(3)]),
        GROUPS,
    ),
    "the larger group last": (
        in_order(lambda paths: [f"{number}.albert_layers.0" for number in (0, 1, 1)]),
        GROUPS,
    ),
    "one group for all layers": (in_order(lambda paths: paths[:1] * 3), GROUPS),
    "inner blocks in the wrong order": (in_order(lambda paths: paths[::-1]), INNER),
    "an inner block for each layer": (
        in_order(lambda paths: [f"0.albert_layers.{number}" for number in (0, 0, 1, 1)]),
        INNER,
    ),
}


def exact_gelu_in_the_head(model, given):
    """The head's own activation, which is the config's."""
    model.predictions.activation = activation(
        "gelu", rngs=None, dtype=None, param_dtype=jnp.float64
    )


LM_HEAD = {
    "decoder bias dropped": zero("predictions.bias"),
    "head's dense bias dropped": zero("predictions.dense.bias"),
    "head's norm bias dropped": zero("predictions.LayerNorm.bias"),
    "epsilon 1e-5 in the head": epsilon(1e-5, "predictions.LayerNorm"),
    "the exact GELU in the head alone": in_model(exact_gelu_in_the_head),
    "embeddings' norm in the head": swap(
        "predictions.LayerNorm.scale", "albert.embeddings.LayerNorm.scale"
    ),
}


def planted(mistakes):
    return {name: (mistake, {}) for name, mistake in mistakes.items()}


WORDS = "embeddings.word_embeddings.weight"
FACTS = Facts(
    model_type="albert",
    tiny=TINY,
    classes={
        "AlbertModel": DROPPED,
        "AlbertForPreTraining": DROPPED,
        MASKED: DROPPED,
        CLASSIFIER: DROPPED | {"num_labels": 5},
        "AlbertForMultipleChoice": DROPPED,
        "AlbertForTokenClassification": DROPPED | {"num_labels": 5},
        "AlbertForQuestionAnswering": DROPPED,
    },
    words=MASKED,
    switched="AlbertForPreTraining",
    switches=(
        {"layer_norm_eps": 1e-5},
        {"type_vocab_size": 1},
        {"num_attention_heads": 8},
        {"num_hidden_layers": 1},
        {"num_hidden_layers": 5, "num_hidden_groups": 3},
        {"num_hidden_layers": 4, "num_hidden_groups": 4},
        {"num_hidden_layers": 2, "num_hidden_groups": 3},
        {"inner_group_num": 2},
        {"num_hidden_layers": 3, "num_hidden_groups": 2, "inner_group_num": 3},
        {"embedding_size": 24},
        {"embedding_size": 40},
        {"pad_token_id": None},
        {"pad_token_id": 3},
        {"chunk_size_feed_forward": 11},
        {"tie_word_embeddings": False},
    ),
    gradients=({"hidden_act": "prelu"}, GROUPS | INNER),
    planted=(
        Planting("AlbertModel", planted(MISTAKES) | SHARED),
        Planting(MASKED, planted(LM_HEAD)),
    ),
    tensors=Tensors(
        name="AlbertModel",
        kernel=f"{BLOCK}.attention.query.weight",
        shape=(24, 24),
        wide=f"{BLOCK}.ffn_output.weight",
        bias=("pooler.bias", (24,)),
        norm=f"{BLOCK}.attention.LayerNorm.weight",
        words=WORDS,
        layer="encoder.albert_layer_groups",
        leaf="albert_layers.0.ffn_output.bias",
        layer_faults=16,
        last=0,
        unprefixed_faults=48,
        prefix="albert.",
        more={
            "layers-as-in-tensorflow": (
                rename(f"{BLOCK}.", "encoder.group_0.inner_group_0."),
                ("'encoder.group_0.inner_group_0.ffn.bias'", "no leaf"),
            ),
        },
    ),
    heads={
        "missing": (MASKED, without_tensors("predictions."), MissingHeadError, ("'predictions'",)),
        "missing-classifier": (
            CLASSIFIER,
            without_tensors("classifier."),
            MissingHeadError,
            ("'classifier'",),
        ),
        "missing-pooler": (
            CLASSIFIER,
            without_tensors("albert.pooler."),
            MissingHeadError,
            ("'albert.pooler'",),
        ),
        "pooler-as-in-bert": (
            CLASSIFIER,
            rename("albert.pooler.", "albert.pooler.dense."),
            MissingHeadError,
            ("'albert.pooler'",),
        ),
        "half": (
            CLASSIFIER,
            drop("classifier.bias"),
            CheckpointMismatchError,
            ("'classifier.bias': expected (2,)", "the head 'classifier' is incomplete"),
        ),
        "extra-in-it": (
            MASKED,
            add("predictions.spare", ONES),
            CheckpointMismatchError,
            ("'predictions.spare'", "no leaf of AlbertForMaskedLM"),
        ),
    },
    sizes={
        "vocab_size": (96, f"'albert.{WORDS}': expected shape (96, 16), found (97"),
        "embedding_size": (24, f"'albert.{WORDS}': expected shape (97, 24), found (97, 16)"),
        "hidden_size": (27, "'albert.pooler.weight': expected shape (27, 27), found (24, 24)"),
        "intermediate_size": (81, "expected shape (81, 24), found (80, 24)"),
        "max_position_embeddings": (512, "expected shape (512, 16), found (40, 16)"),
        "type_vocab_size": (1, "expected shape (1, 16), found (2, 16)"),
        "num_hidden_groups": (2, "'albert.encoder.albert_layer_groups.1.albert_layers.0."),
        "inner_group_num": (2, "'albert.encoder.albert_layer_groups.0.albert_layers.1."),
    },
    labelled=(CLASSIFIER, ("classifier.weight", "classifier.bias")),
    wrapped=("AlbertModel", MASKED),
    choices=("AlbertForMultipleChoice",),
    attended=("attention.dense",),
    norms=("LayerNorm.weight", "layer_norm.weight"),
)
