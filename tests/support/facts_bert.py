"""BERT's facts."""

import jax
import jax.numpy as jnp
import numpy as np

from facts import Facts, Planting, Tensors
from malformed import (
    FINITE,
    FLOATS,
    ONES,
    add,
    both,
    cast,
    drop,
    holding,
    put,
    rename,
)
from minibert.errors import CheckpointMismatchError, MissingHeadError
from planting import (
    epsilon,
    in_activation,
    in_attend,
    in_model,
    not_causal,
    positions_of,
    strictly_causal,
    swap,
    transpose,
    without,
    zero,
)

LAYER = "encoder.layer.0"
NORMS = ["embeddings.LayerNorm"] + [
    f"encoder.layer.{layer}.{submodule}.LayerNorm"
    for layer in range(2)
    for submodule in ("attention.output", "output")
]
MISTAKES = {
    "tanh GELU for the exact one": in_activation(
        "gelu", lambda x: jax.nn.gelu(x, approximate=True)
    ),
    "sigmoid GELU for the exact one": in_activation(
        "gelu", lambda x: x * jax.nn.sigmoid(1.702 * x)
    ),
    "epsilon 1e-5 for 1e-12": epsilon(1e-5, *NORMS),
    "epsilon 1e-6, the framework's default": epsilon(1e-6, *NORMS),
    "attention output bias dropped": zero(f"{LAYER}.attention.output.dense.bias"),
    "query bias dropped": zero(f"{LAYER}.attention.self.query.bias"),
    "LayerNorm bias dropped": zero("embeddings.LayerNorm.bias"),
    "the other LayerNorm": swap(
        f"{LAYER}.attention.output.LayerNorm.scale", f"{LAYER}.output.LayerNorm.scale"
    ),
    "query and key swapped": swap(
        f"{LAYER}.attention.self.query.kernel", f"{LAYER}.attention.self.key.kernel"
    ),
    "layers in the wrong order": swap(
        "encoder.layer.0.output.dense.kernel", "encoder.layer.1.output.dense.kernel"
    ),
    "square kernel not transposed": transpose(f"{LAYER}.attention.self.value.kernel"),
    "pooler kernel not transposed": transpose("pooler.dense.kernel"),
    "no padding mask": without("attention_mask"),
    "no segments": without("token_type_ids"),
    "segments swapped": in_model(
        lambda model, given: given.update(token_type_ids=1 - given["token_type_ids"])
    ),
    "positions from 1": positions_of(lambda given: np.arange(1, 12)[None]),
    "no 1/sqrt(d)": in_attend(
        lambda attend, q, k, v, options: attend(q * q.shape[-1] ** 0.5, k, v, **options)
    ),
    "1/sqrt(hidden) for 1/sqrt(d)": in_attend(
        lambda attend, q, k, v, options: attend(q / q.shape[1] ** 0.5, k, v, **options)
    ),
    "mask inverted": in_attend(
        lambda attend, q, k, v, options: attend(q, k, v, **options | {"mask": ~options["mask"]})
    ),
    "heads in the wrong order": in_attend(
        lambda attend, q, k, v, options: (
            attend(q, k, v, **options)[0][:, ::-1],
            attend(q, k, v, **options)[1],
        )
    ),
    "causal for bidirectional": in_attend(
        lambda attend, q, k, v, options: attend(
            q, k, v, **options | {"mask": options["mask"] & jnp.tri(q.shape[2], dtype=bool)}
        )
    ),
}


def decoder_mistakes(trunk, bias):
    """Mistakes of a decoder with cross-attention, by its trunk and the bias of its LM head."""
    cross = f"{trunk}.encoder.layer.1"
    return {
        "looks both ways": in_attend(not_causal),
        "strictly causal": in_attend(strictly_causal),
        "no encoder mask": without("encoder_attention_mask"),
        "cross key and value swapped": swap(
            f"{cross}.crossattention.self.key.kernel", f"{cross}.crossattention.self.value.kernel"
        ),
        "the other norm after cross-attention": swap(
            f"{cross}.crossattention.output.LayerNorm.scale",
            f"{cross}.attention.output.LayerNorm.scale",
        ),
        "cross projection not transposed": transpose(f"{cross}.crossattention.output.dense.kernel"),
        "padding takes positions": positions_of(lambda given: np.arange(11)[None]),
        "decoder bias dropped": zero(bias),
    }


DECODER_MISTAKES = decoder_mistakes("bert", "cls.predictions.bias")
NORM = "embeddings.LayerNorm.weight"
QUERY = "encoder.layer.1.attention.self.query.weight"
WORDS = "embeddings.word_embeddings.weight"
FAULTS = {
    "gamma-and-weight": (
        add("embeddings.LayerNorm.gamma", ONES),
        ("'embeddings.LayerNorm.gamma'", f"'{NORM}'", f"are both 'bert.{NORM}'"),
    ),
    "beta-and-bias": (
        add("encoder.layer.0.output.LayerNorm.beta", ONES),
        ("'encoder.layer.0.output.LayerNorm.beta'", "are both"),
    ),
    "gamma-elsewhere": (
        rename("pooler.dense.bias", "pooler.dense.beta"),
        ("'pooler.dense.beta'", "no leaf", "'bert.pooler.dense.bias'"),
    ),
    "mixed-prefixes": (
        rename("embeddings.", "bert.embeddings."),
        ("no leaf", f"'{QUERY}'", f"'bert.{QUERY}': expected (24, 24), found no such tensor"),
    ),
    "both-prefixes": (
        add(f"bert.{NORM}", ONES),
        ("no leaf", f"'bert.{WORDS}': expected", f"'{NORM}'"),
    ),
    "half-prefixed-by-a-wrapper": (
        rename("encoder.", "module.encoder."),
        ("no leaf", f"'module.{QUERY}'", f"'bert.{QUERY}': expected"),
    ),
}

MASKED, CLASSIFIER = "BertForMaskedLM", "BertForSequenceClassification"
DECODER = "cls.predictions.decoder.weight"
EMBEDDED = "bert.embeddings.word_embeddings.weight"
DENSE = "cls.predictions.transform.dense.weight"


def decoder(change):
    """A copy of the embeddings in the file, changed."""
    return lambda tensors: tensors.update({DECODER: change(tensors[EMBEDDED])})


def without_tensors(prefix):
    return lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith(prefix)]


HEADS = {
    "missing": (
        MASKED,
        without_tensors("cls."),
        MissingHeadError,
        ("'cls.predictions'", "new_head=True"),
    ),
    "missing-classifier": (
        CLASSIFIER,
        without_tensors("classifier."),
        MissingHeadError,
        ("'classifier'",),
    ),
    "missing-pooler": (
        CLASSIFIER,
        without_tensors("bert.pooler."),
        MissingHeadError,
        ("'bert.pooler'",),
    ),
    "half": (
        CLASSIFIER,
        drop("classifier.bias"),
        CheckpointMismatchError,
        ("'classifier.bias': expected (2,)", "the head 'classifier' is incomplete"),
    ),
    "half-pooler": (
        CLASSIFIER,
        drop("bert.pooler.dense.weight"),
        CheckpointMismatchError,
        ("'bert.pooler.dense.weight': expected (24, 24)", "is incomplete"),
    ),
    "half-of-masked": (MASKED, drop(DENSE), CheckpointMismatchError, (DENSE, "is incomplete")),
    "extra-in-it": (
        MASKED,
        add("cls.predictions.spare", ONES),
        CheckpointMismatchError,
        ("'cls.predictions.spare'", "no leaf of BertForMaskedLM"),
    ),
    "more-labels": (
        CLASSIFIER,
        both(
            put("classifier.weight", lambda a: a[[0, 1, 0]]),
            put("classifier.bias", lambda a: a[[0, 1, 0]]),
        ),
        CheckpointMismatchError,
        ("'classifier.weight': expected shape (2, 24), found (3, 24)", "'classifier.bias'"),
    ),
    "missing-and-a-fault": (
        CLASSIFIER,
        both(without_tensors("classifier."), add("spare", ONES)),
        CheckpointMismatchError,
        ("2 faults", "'spare'", "the head 'classifier' is not in the file"),
    ),
    "decoder-of-another-shape": (
        MASKED,
        decoder(lambda a: a[:-1]),
        CheckpointMismatchError,
        (f"'{DECODER}': expected shape (97, 24), found (96, 24)",),
    ),
    "decoder-of-integers": (
        MASKED,
        decoder(cast(np.int32)),
        CheckpointMismatchError,
        (DECODER, FLOATS),
    ),
    "decoder-with-nan": (
        MASKED,
        decoder(holding(np.nan)),
        CheckpointMismatchError,
        (DECODER, FINITE),
    ),
    "embeddings-only-as-decoder": (
        MASKED,
        both(decoder(lambda a: a), drop(EMBEDDED)),
        CheckpointMismatchError,
        (f"'{EMBEDDED}'", "found no such tensor"),
    ),
    "nan-in-both-copies": (
        MASKED,
        both(put(EMBEDDED, holding(np.nan)), decoder(lambda a: a)),
        CheckpointMismatchError,
        (EMBEDDED, FINITE),
    ),
}

SIZES = {
    "vocab_size": (
        96,
        "'bert.embeddings.word_embeddings.weight': expected shape (96, 24), found (97",
    ),
    "vocab_size ": (
        98,
        "'bert.embeddings.word_embeddings.weight': expected shape (98, 24), found (97",
    ),
    "hidden_size": (27, "'bert.pooler.dense.weight': expected shape (27, 27), found (24, 24)"),
    "intermediate_size": (81, "expected shape (81, 24), found (80, 24)"),
    "max_position_embeddings": (512, "expected shape (512, 24), found (40, 24)"),
    "type_vocab_size": (1, "expected shape (1, 24), found (2, 24)"),
    "num_hidden_layers": (1, "'encoder.layer.1.attention.self.query.weight'"),
    "num_hidden_layers ": (3, "'bert.encoder.layer.2.attention.self.query.weight': expected"),
}

FACTS = Facts(
    model_type="bert",
    tiny={
        "vocab_size": 97,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 80,
        "max_position_embeddings": 40,
        "type_vocab_size": 2,
    },
    classes={
        "BertModel": {},
        "BertForPreTraining": {},
        "BertForMaskedLM": {},
        "BertForNextSentencePrediction": {},
        "BertForSequenceClassification": {"num_labels": 5},
        "BertForMultipleChoice": {},
        "BertForTokenClassification": {"num_labels": 5},
        "BertForQuestionAnswering": {},
        "BertLMHeadModel": {"is_decoder": True},
    },
    words="BertForMaskedLM",
    switched="BertForPreTraining",
    switches=(
        {"layer_norm_eps": 1e-5},
        {"layer_norm_eps": 1e-3},
        {"type_vocab_size": 1},
        {"type_vocab_size": 5},
        {"num_attention_heads": 1},
        {"num_attention_heads": 8},
        {"num_attention_heads": 24},
        {"num_hidden_layers": 1},
        {"num_hidden_layers": 5},
        {"pad_token_id": None},
        {"pad_token_id": 3},
        {"chunk_size_feed_forward": 11},
        {"tie_word_embeddings": False},
    ),
    gradients=({"hidden_act": "prelu"}, {"hidden_act": "xielu"}),
    planted=(
        Planting("BertModel", {name: (mistake, {}) for name, mistake in MISTAKES.items()}),
        Planting(
            "BertLMHeadModel",
            {name: (mistake, {}) for name, mistake in DECODER_MISTAKES.items()},
            {"is_decoder": True, "add_cross_attention": True},
            decoder=True,
        ),
    ),
    tensors=Tensors(
        name="BertModel",
        kernel=QUERY,
        shape=(24, 24),
        wide="encoder.layer.0.output.dense.weight",
        bias=("pooler.dense.bias", (24,)),
        norm=NORM,
        words=WORDS,
        layer="encoder.layer",
        leaf="output.dense.bias",
        layer_faults=16,
        unprefixed_faults=76,
        prefix="bert.",
        more=FAULTS,
    ),
    heads=HEADS,
    sizes=SIZES,
    labelled=("BertForSequenceClassification", ("classifier.weight", "classifier.bias")),
    wrapped=("BertModel", "BertForMaskedLM"),
    choices=("BertForMultipleChoice",),
)
