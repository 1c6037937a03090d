"""MPNet's facts: what is as in BERT or RoBERTa is taken from there."""

import math

import jax.numpy as jnp

import facts_bert
import facts_roberta
from facts import Facts, Planting, Tensors
from facts_bert import without_tensors
from facts_roberta import planted
from malformed import ONES, add, drop, rename
from minibert.errors import CheckpointMismatchError, MissingHeadError
from minibert.models.mpnet import modeling
from planting import epsilon, in_model, swap, swapped, transpose, zero

MASKED, CLASSIFIER = "MPNetForMaskedLM", "MPNetForSequenceClassification"
TINY = {key: size for key, size in facts_roberta.TINY.items() if key != "type_vocab_size"}
LAYER, BIAS = "encoder.layer.0.attention", "encoder.relative_attention_bias"
KERNEL = "encoder.layer.1.attention.attn.q.weight"


def instead(name, function):
    """Another function in the place of one of the module's."""
    return lambda model, given: swapped(modeling, name, function(getattr(modeling, name)))


def per_layer(model, given):
    """The second layer has another bias: that of the other heads."""

    def other(right):
        return lambda blocks, hidden, *, masks, **options: right(
            blocks, hidden, masks=[masks[0], masks[1][:, ::-1]], **options
        )

    return instead("run_blocks", other)(model, given)


def with_types(model, given):
    """What models with token types add: a row, here the first position's."""
    words = model.embeddings.word_embeddings.embedding
    words[...] = words[...] + model.embeddings.position_embeddings.embedding[...][0]


OF_BERT = (
    "tanh GELU for the exact one",
    "sigmoid GELU for the exact one",
    "LayerNorm bias dropped",
    "layers in the wrong order",
    "pooler kernel not transposed",
    "no padding mask",
    "no 1/sqrt(d)",
    "1/sqrt(hidden) for 1/sqrt(d)",
    "heads in the wrong order",
)
OF_DISTANCES = {
    "no bias": zero(f"{BIAS}.embedding"),
    "bias scaled by 1/sqrt(d)": instead(
        "position_bias", lambda right: lambda *given: right(*given) / math.sqrt(8)
    ),
    "distance from the key to the query": instead(
        "bucket", lambda right: lambda distance: right(-distance)
    ),
    "no direction": instead("bucket", lambda right: lambda distance: right(-jnp.abs(distance))),
    "buckets one on": instead("bucket", lambda right: lambda distance: (right(distance) + 1) % 32),
    "a bias by layer": per_layer,
    "heads of the bias in the wrong order": instead(
        "position_bias", lambda right: lambda *given: right(*given)[:, ::-1]
    ),
}
OWN = {
    "epsilon 1e-5 for 1e-12": epsilon(1e-5, f"{LAYER}.LayerNorm"),
    "token types": in_model(with_types),
    "output bias dropped": zero(f"{LAYER}.attn.o.bias"),
    "query and key swapped": swap(f"{LAYER}.attn.q.kernel", f"{LAYER}.attn.k.kernel"),
    "square kernel not transposed": transpose(f"{LAYER}.attn.v.kernel"),
    "the other LayerNorm": swap(
        f"{LAYER}.LayerNorm.scale", "encoder.layer.0.output.LayerNorm.scale"
    ),
}
MISTAKES = (
    {name: facts_bert.MISTAKES[name] for name in OF_BERT}
    | facts_roberta.POSITIONS
    | OF_DISTANCES
    | OWN
)

FACTS = Facts(
    model_type="mpnet",
    tiny=TINY,
    classes={
        "MPNetModel": {},
        "MPNetForMaskedLM": {},
        "MPNetForSequenceClassification": {"num_labels": 5},
        "MPNetForMultipleChoice": {},
        "MPNetForTokenClassification": {"num_labels": 5},
        "MPNetForQuestionAnswering": {},
    },
    words=MASKED,
    switched=MASKED,
    switches=(
        {"layer_norm_eps": 1e-5},
        {"num_attention_heads": 8},
        {"num_hidden_layers": 1},
        {"pad_token_id": 0},
        {"pad_token_id": None},
        {"max_position_embeddings": 13},
        {"relative_attention_num_buckets": 40},
        {"tie_word_embeddings": False},
    ),
    gradients=({"hidden_act": "prelu"},),
    planted=(
        Planting("MPNetModel", planted(MISTAKES)),
        Planting(
            MASKED,
            planted(
                {
                    name: mistake
                    for name, mistake in facts_roberta.LM_HEAD.items()
                    if name.startswith(("decoder bias", "head's", "tanh"))
                }
            ),
        ),
        Planting(CLASSIFIER, planted(facts_roberta.CLASSIFIER_HEAD), {"num_labels": 5}),
    ),
    tensors=Tensors(
        name="MPNetModel",
        kernel=KERNEL,
        shape=(24, 24),
        wide="encoder.layer.0.output.dense.weight",
        bias=("pooler.dense.bias", (24,)),
        norm=facts_bert.NORM,
        words=facts_bert.WORDS,
        layer="encoder.layer",
        leaf="output.dense.bias",
        layer_faults=16,
        unprefixed_faults=76,
        prefix="mpnet.",
        more={
            "gamma-elsewhere": (
                rename("pooler.dense.bias", "pooler.dense.beta"),
                ("'pooler.dense.beta'", "no leaf", "'mpnet.pooler.dense.bias'"),
            ),
            "missing-distances": (
                drop(f"{BIAS}.weight"),
                (f"'mpnet.{BIAS}.weight': expected (32, 3), found no such tensor",),
            ),
            "distances-in-a-layer": (
                rename(BIAS, "encoder.layer.0.relative_attention_bias"),
                ("'encoder.layer.0.relative_attention_bias.weight'", "no leaf of MPNetModel"),
            ),
        },
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
            ("'lm_head.spare'", "no leaf of MPNetForMaskedLM"),
        ),
    },
    sizes={
        "vocab_size": (96, "'mpnet.embeddings.word_embeddings.weight': expected shape (96, 24)"),
        "hidden_size": (27, "'mpnet.pooler.dense.weight': expected shape (27, 27), found (24, 24)"),
        "intermediate_size": (81, "expected shape (81, 24), found (80, 24)"),
        "max_position_embeddings": (512, "expected shape (512, 24), found (40, 24)"),
        "relative_attention_num_buckets": (33, "expected shape (33, 3), found (32, 3)"),
        "num_attention_heads": (4, "expected shape (32, 4), found (32, 3)"),
        "num_hidden_layers": (1, "'encoder.layer.1.attention.attn.q.weight'"),
        "num_hidden_layers ": (3, "'mpnet.encoder.layer.2.attention.attn.q.weight': expected"),
    },
    labelled=(CLASSIFIER, facts_roberta.FACTS.labelled[1]),
    wrapped=("MPNetModel", MASKED),
    choices=("MPNetForMultipleChoice",),
    tokens=(38, "max_position_embeddings - 2"),
    types=0,
    norms=("LayerNorm.weight", "layer_norm.weight"),
    attended=("attention.attn.o",),
)
