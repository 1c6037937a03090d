"""GPT-2's facts."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from facts import Facts, Planting, Tensors
from malformed import FINITE, FLOATS, ONES, add, both, drop, holding, put, rename
from minibert.errors import CheckpointMismatchError, MissingHeadError
from planting import (
    edit,
    epsilon,
    in_activation,
    in_attend,
    in_model,
    not_causal,
    positions_of,
    strictly_causal,
    swap,
    swapped,
    transpose,
    without,
    zero,
)

BLOCK = "transformer.h.1"
NORMS = ["transformer.ln_f"] + [
    f"transformer.h.{layer}.{norm}"
    for layer in range(2)
    for norm in ("ln_1", "ln_2", "ln_cross_attn")
]
BY_LAYER = {"scale_attn_by_inverse_layer_idx": True}


def reordered(order):
    """The parts of a fused projection in another order."""
    return lambda kernel: jnp.concatenate(
        [jnp.split(kernel, len(order), axis=-1)[part] for part in order], axis=-1
    )


def interleaved(kernel):
    """Query, key and value head by head, as other families have them."""
    return kernel.reshape(-1, 3, 3, 8).swapaxes(1, 2).reshape(kernel.shape)


def scale(value, *submodules):
    """Scores multiplied with another number, in one layer's attention."""

    def planted(model, given):
        for submodule in submodules:
            block = model.transformer.h[1]
            getattr(block, submodule).scale = value

    return in_model(planted)


def no_last_norm(model, given):
    return swapped(model.transformer, "ln_f", lambda hidden: hidden)


def untied(model, given):
    model.lm_head.kernel = nnx.Param(jnp.roll(model.transformer.wte.embedding[...].T, 1, axis=1))


MISTAKES = {
    "exact GELU for tanh": (
        in_activation("gelu_new", lambda x: jax.nn.gelu(x, approximate=False)),
        {},
    ),
    "epsilon 1e-6 for 1e-5": (epsilon(1e-6, *NORMS), {}),
    "epsilon 1e-12 for 1e-5": (epsilon(1e-12, *NORMS), {}),
    "epsilon of one norm": (epsilon(1e-6, f"{BLOCK}.ln_cross_attn"), {}),
    "the other LayerNorm": (swap(f"{BLOCK}.ln_1.scale", f"{BLOCK}.ln_2.scale"), {}),
    "LayerNorm bias dropped": (zero(f"{BLOCK}.ln_2.bias"), {}),
    "no last LayerNorm": (no_last_norm, {}),
    "key, query, value": (edit(f"{BLOCK}.attn.c_attn.kernel", reordered((1, 0, 2))), {}),
    "value, key, query": (edit(f"{BLOCK}.attn.c_attn.kernel", reordered((2, 1, 0))), {}),
    "heads interleaved": (edit(f"{BLOCK}.attn.c_attn.kernel", interleaved), {}),
    "fused bias dropped": (zero(f"{BLOCK}.attn.c_attn.bias"), {}),
    "projection bias dropped": (zero(f"{BLOCK}.attn.c_proj.bias"), {}),
    "Conv1D transposed": (transpose(f"{BLOCK}.attn.c_proj.kernel"), {}),
    "cross Conv1D transposed": (transpose(f"{BLOCK}.crossattention.q_attn.kernel"), {}),
    "a narrower MLP": (edit(f"{BLOCK}.mlp.c_proj.kernel", lambda k: k.at[79].set(0)), {}),
    "not causal": (in_attend(not_causal), {}),
    "strictly causal": (in_attend(strictly_causal), {}),
    "no padding mask": (without("attention_mask"), {}),
    "no token types": (without("token_type_ids"), {}),
    "padding takes positions": (positions_of(lambda given: np.arange(11)[None]), {}),
    "positions from 1": (positions_of(lambda given: given["position_ids"] + 1), {}),
    "scaled all the same": (scale(8**-0.5, "attn"), {"scale_attn_weights": False}),
    "not scaled": (scale(1.0, "attn"), {}),
    "scaled by layer where it is not asked for": (scale(8**-0.5 / 2, "attn"), {}),
    "not scaled by layer": (scale(8**-0.5, "attn"), BY_LAYER),
    "layers counted from 2": (scale(8**-0.5 / 3, "attn"), BY_LAYER),
    "cross-attention not scaled by layer": (scale(8**-0.5, "crossattention"), BY_LAYER),
    "no encoder mask": (without("encoder_attention_mask"), {}),
    "cross key and value swapped": (
        edit(f"{BLOCK}.crossattention.c_attn.kernel", reordered((1, 0))),
        {},
    ),
    "cross query bias dropped": (zero(f"{BLOCK}.crossattention.q_attn.bias"), {}),
    "the other norm before cross-attention": (
        swap(f"{BLOCK}.ln_cross_attn.scale", f"{BLOCK}.ln_2.scale"),
        {},
    ),
    "tied head replaced": (in_model(untied), {}),
    "table rows shifted": (edit("transformer.wte.embedding", lambda t: jnp.roll(t, 1, 0)), {}),
}

LM, DOUBLE = "GPT2LMHeadModel", "GPT2DoubleHeadsModel"
CLASSIFIER = "GPT2ForSequenceClassification"
FUSED, WIDE = "transformer.h.1.attn.c_attn.weight", "transformer.h.1.mlp.c_fc.weight"
WORDS, NORM = "transformer.wte.weight", "transformer.ln_f.weight"
TABLE = np.ones((97, 24), np.float32)


def transposed(array):
    return np.ascontiguousarray(array.T)


def split_fused(tensors):
    """Query, key and value apart, as other families store them."""
    kernel = tensors.pop(FUSED)
    parts = np.split(kernel, 3, axis=1)
    names = ("q_proj", "k_proj", "v_proj")
    for name, part in zip(names, parts, strict=True):
        tensors[FUSED.replace("c_attn", name)] = np.ascontiguousarray(part)


FAULTS = {
    "missing-positions": (
        drop("transformer.wpe.weight"),
        ("'transformer.wpe.weight': expected (40",),
    ),
    "as-a-linear-layer": (
        put(FUSED, transposed),
        (FUSED, "expected shape (24, 72), found (72, 24"),
    ),
    "split": (split_fused, ("4 faults", f"'{FUSED}': expected", "q_proj", "k_proj", "v_proj")),
    "extra-in-attention": (
        add("transformer.h.0.attn.spare", ONES),
        ("'transformer.h.0.attn.spare'", "no leaf"),
    ),
    "gamma": (
        rename("transformer.h.0.ln_1.weight", "transformer.h.0.ln_1.gamma"),
        ("'transformer.h.0.ln_1.gamma'", "no leaf", "'transformer.h.0.ln_1.weight': expected"),
    ),
    "mixed-prefixes": (
        rename("transformer.h.", "h."),
        ("48 faults", "'h.0.attn.c_attn.weight'", "no leaf"),
    ),
    "both-prefixes": (add("wte.weight", TABLE), ("'wte.weight'", "no leaf")),
    "another-prefix": (rename("transformer.", "gpt2."), ("56 faults", "'gpt2.", "no such tensor")),
    "a-prefix-twice": (rename("transformer.", "transformer.transformer."), ("56 faults",)),
    "buffer-without-the-prefix": (
        add("h.0.attn.bias", np.ones((1, 1, 40, 40), np.float32)),
        ("'h.0.attn.bias'", "no leaf"),
    ),
    "cross-attention-that-is-not-asked-for": (
        add("transformer.h.0.ln_cross_attn.weight", ONES),
        ("'transformer.h.0.ln_cross_attn.weight'", "no leaf"),
    ),
    "head-of-another-shape": (
        add("lm_head.weight", TABLE[:-1]),
        ("'lm_head.weight': expected shape (97, 24), found (96, 24)",),
    ),
    "head-transposed": (add("lm_head.weight", transposed(TABLE)), ("found (24, 97)",)),
    "head-of-integers": (add("lm_head.weight", TABLE.astype(int)), ("lm_head.weight", FLOATS)),
    "head-with-nan": (add("lm_head.weight", holding(np.nan)(TABLE)), ("lm_head.weight", FINITE)),
    "head-with-a-bias": (
        both(add("lm_head.weight", TABLE), add("lm_head.bias", np.ones(97, np.float32))),
        ("'lm_head.bias'", "no leaf of GPT2LMHeadModel"),
    ),
    "head-without-words": (
        rename(WORDS, "lm_head.weight"),
        (f"'{WORDS}': expected (97, 24), found no such tensor",),
    ),
}

HEADS = {
    "no-score": (CLASSIFIER, drop("score.weight"), MissingHeadError, ("'score'", "new_head=True")),
    "score-with-a-bias": (
        CLASSIFIER,
        add("score.bias", np.ones(2, np.float32)),
        CheckpointMismatchError,
        ("'score.bias'", "no leaf of GPT2ForSequenceClassification"),
    ),
    "score-of-more-labels": (
        CLASSIFIER,
        put("score.weight", lambda a: a[[0, 1, 0]]),
        CheckpointMismatchError,
        ("'score.weight': expected shape (2, 24), found (3, 24)",),
    ),
    "half-a-summary": (
        DOUBLE,
        drop("multiple_choice_head.summary.bias"),
        CheckpointMismatchError,
        (
            "'multiple_choice_head.summary.bias': expected (1,)",
            "the head 'multiple_choice_head' is incomplete",
        ),
    ),
    "no-summary": (
        DOUBLE,
        drop("multiple_choice_head.summary.bias", "multiple_choice_head.summary.weight"),
        MissingHeadError,
        ("'multiple_choice_head'",),
    ),
}

SIZES = {
    "vocab_size": (98, "'transformer.wte.weight': expected shape (98, 24), found (97, 24)"),
    "n_positions": (39, "'transformer.wpe.weight': expected shape (39, 24), found (40, 24)"),
    "n_embd": (27, "'transformer.h.0.attn.c_attn.weight': expected shape (27, 81), found (24, 72)"),
    "n_inner": (None, "'transformer.h.0.mlp.c_fc.weight': expected shape (24, 96), found (24, 80)"),
    "n_layer": (1, "'transformer.h.1.attn.c_attn.weight': float32 of shape (24, 72)"),
    "num_hidden_layers": (3, "'transformer.h.2.ln_1.weight': expected (24,), found no such tensor"),
}

FACTS = Facts(
    attended=("attn.c_proj", "crossattention.c_proj"),
    model_type="gpt2",
    tiny={
        "vocab_size": 97,
        "n_embd": 24,
        "n_layer": 2,
        "n_head": 3,
        "n_inner": 80,
        "n_positions": 40,
    },
    classes={
        "GPT2Model": {},
        "GPT2LMHeadModel": {},
        "GPT2DoubleHeadsModel": {},
        "GPT2ForSequenceClassification": {"num_labels": 5, "pad_token_id": 0},
        "GPT2ForTokenClassification": {"num_labels": 5},
        "GPT2ForQuestionAnswering": {},
    },
    words=LM,
    switched=LM,
    switches=(
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True, "n_layer": 4},
        {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True},
        {"n_inner": None},
        {"n_inner": 7},
        {"layer_norm_epsilon": 1e-12},
        {"layer_norm_epsilon": 1e-3},
        {"tie_word_embeddings": False},
        {"n_head": 1},
        {"n_head": 8},
        {"n_head": 24},
        {"n_layer": 1},
        {"n_layer": 5},
        {"pad_token_id": 3},
        {"pad_token_id": 1000},
        {"add_cross_attention": True},
        {"vocab_size": 1},
        {"n_ctx": 7, "use_cache": False},
    ),
    gradients=(
        {"tie_word_embeddings": False},
        {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False},
        {"activation_function": "xielu"},
        {"activation_function": "prelu"},
        {"add_cross_attention": True},
    ),
    planted=(Planting(LM, MISTAKES, {"add_cross_attention": True}, decoder=True),),
    tensors=Tensors(
        name=LM,
        kernel=FUSED,
        shape=(24, 72),
        wide=WIDE,
        bias=("transformer.h.0.attn.c_attn.bias", (72,)),
        norm=NORM,
        words=WORDS,
        layer="transformer.h",
        leaf="ln_1.bias",
        layer_faults=12,
        unprefixed_faults=56,
        more=FAULTS,
    ),
    heads=HEADS,
    sizes=SIZES,
    labelled=(CLASSIFIER, ("score.weight",)),
    wrapped=("GPT2Model", LM),
    choices=(DOUBLE,),
    norms=("ln_1.weight", "ln_2.weight", "ln_f.weight", "ln_cross_attn.weight"),
    types=97,
    activation="activation_function",
    positions="n_positions",
    tokens=(40, "n_positions"),
    types_field="vocab_size",
)
