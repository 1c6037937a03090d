"""GPT-2 checkpoints whose tensors do not correspond with the model: every fault is named."""

import numpy as np
import pytest

from malformed import (
    FINITE,
    FLOATS,
    ONES,
    add,
    both,
    cases,
    cast,
    drop,
    edit_json,
    edit_tensors,
    holding,
    load,
    put,
    refused,
    rename,
)
from minibert.errors import CheckpointMismatchError, ConfigError, MissingHeadError

LM, BARE, DOUBLE = "GPT2LMHeadModel", "GPT2Model", "GPT2DoubleHeadsModel"
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
    "missing": (drop(FUSED), (f"'{FUSED}': expected (24, 72), found no such tensor",)),
    "missing-bias": (drop("transformer.h.0.attn.c_attn.bias"), ("expected (72,), found no such",)),
    "missing-norm": (drop(NORM), (f"'{NORM}': expected (24,)",)),
    "missing-positions": (
        drop("transformer.wpe.weight"),
        ("'transformer.wpe.weight': expected (40",),
    ),
    "missing-layer": (
        lambda tensors: [tensors.pop(name) for name in list(tensors) if ".h.1." in name],
        ("12 faults", f"'{FUSED}'"),
    ),
    "as-a-linear-layer": (
        put(FUSED, transposed),
        (FUSED, "expected shape (24, 72), found (72, 24"),
    ),
    "wide-as-a-linear-layer": (put(WIDE, transposed), (WIDE, "(24, 80), found (80, 24)")),
    "split": (split_fused, ("4 faults", f"'{FUSED}': expected", "q_proj", "k_proj", "v_proj")),
    "extra": (add("transformer.h.0.attn.spare", ONES), ("'transformer.h.0.attn.spare'", "no leaf")),
    "extra-layer": (add("transformer.h.2.ln_1.bias", ONES), ("'transformer.h.2.ln_1.bias'",)),
    "layer-01": (add("transformer.h.01.ln_1.bias", ONES), ("'transformer.h.01.ln_1.bias'",)),
    "gamma": (
        rename("transformer.h.0.ln_1.weight", "transformer.h.0.ln_1.gamma"),
        ("'transformer.h.0.ln_1.gamma'", "no leaf", "'transformer.h.0.ln_1.weight': expected"),
    ),
    "mixed-prefixes": (
        rename("transformer.h.", "h."),
        ("48 faults", "'h.0.attn.c_attn.weight'", "no leaf"),
    ),
    "both-prefixes": (add("wte.weight", TABLE), ("'wte.weight'", "no leaf")),
    "unknown-prefix": (rename("transformer.", "gpt2."), ("56 faults", "'gpt2.", "no such tensor")),
    "a-prefix-twice": (rename("transformer.", "transformer.transformer."), ("56 faults",)),
    "buffer-without-the-prefix": (
        add("h.0.attn.bias", np.ones((1, 1, 40, 40), np.float32)),
        ("'h.0.attn.bias'", "no leaf"),
    ),
    "cross-attention-that-is-not-asked-for": (
        add("transformer.h.0.ln_cross_attn.weight", ONES),
        ("'transformer.h.0.ln_cross_attn.weight'", "no leaf"),
    ),
    "int32": (put(FUSED, cast(np.int32)), (FUSED, FLOATS, "int32")),
    "nan": (put(FUSED, holding(np.nan)), (FUSED, FINITE)),
    "infinity-in-float16": (put(WIDE, holding(np.inf, np.float16)), (WIDE, FINITE)),
    "nan-in-words": (put(WORDS, holding(np.nan)), (WORDS, FINITE)),
    "shorter-vocabulary": (put(WORDS, lambda a: a[:-1]), ("(97, 24), found (96, 24)",)),
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


@pytest.mark.parametrize(("change", "said"), cases(FAULTS))
def test_fault(change, said, pristine, tmp_path):
    folder = pristine.copy(tmp_path / "model", LM)
    edit_tensors(folder, change)
    refused(CheckpointMismatchError, (str(folder), *said), lambda: load(folder, LM))


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
        ("'multiple_choice_head.summary.bias': expected (1,)", "half of the head"),
    ),
    "no-summary": (
        DOUBLE,
        drop("multiple_choice_head.summary.bias", "multiple_choice_head.summary.weight"),
        MissingHeadError,
        ("'multiple_choice_head'",),
    ),
}


@pytest.mark.parametrize(("name", "change", "error", "said"), cases(HEADS))
def test_head(name, change, error, said, pristine, tmp_path):
    folder = pristine.copy(tmp_path / "model", name)
    edit_tensors(folder, change)
    refused(error, (str(folder), *said), lambda: load(folder, name))


def test_an_untied_model_needs_its_head(pristine, tmp_path):
    folder = pristine.copy(tmp_path / "model", LM, {"tie_word_embeddings": False})
    edit_tensors(folder, drop("lm_head.weight"))
    refused(MissingHeadError, ("'lm_head' is not in the file",), lambda: load(folder, LM))


@pytest.mark.parametrize("name", [LM, BARE, CLASSIFIER])
def test_one_family_does_not_load_as_the_other(name, pristine, tmp_path):
    folder = pristine.copy(tmp_path / "gpt2", name)
    said = ("model_type: expected 'bert', found 'gpt2'",)
    refused(ConfigError, said, lambda: load(folder, "BertModel"))
    edit_json(folder / "config.json", lambda config: config.pop("model_type"))
    refused(CheckpointMismatchError, ("no such tensor",), lambda: load(folder, "BertModel"))
    folder = pristine.copy(tmp_path / "bert")
    said = ("model_type: expected 'gpt2', found 'bert'",)
    refused(ConfigError, said, lambda: load(folder, name))


def test_cross_attention_in_the_config_alone(pristine, tmp_path):
    folder = pristine.copy(tmp_path / "model", LM)
    edit_json(folder / "config.json", lambda config: config.update(add_cross_attention=True))
    error = refused(CheckpointMismatchError, (str(folder),), lambda: load(folder, LM))
    assert len(error.faults) == 2 * 8
    assert all("cross" in fault for fault in error.faults)
