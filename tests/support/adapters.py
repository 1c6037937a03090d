"""Adapters of ours and of PEFT, made to be compared."""

import warnings
from typing import Any

import jax.numpy as jnp
import numpy as np
import peft
import torch

import oracle
from families import CLASSES
from minibert import train

SAVED = {"modules_to_save": ["classifier", "score"]}
EMBEDDED = "embeddings.word_embeddings"
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "BERT as it comes": ("BertModel", {}),
    "BERT and its head": ("BertForSequenceClassification", {"r": 4, "lora_alpha": 16, **SAVED}),
    "BERT and its task's head": (
        "BertForSequenceClassification",
        {"r": 2, "task_type": "SEQ_CLS", "target_modules": "all-linear"},
    ),
    "rank-stabilised": (
        "BertForTokenClassification",
        {"r": 4, "use_rslora": True, "task_type": "TOKEN_CLS"},
    ),
    "every linear layer": ("BertModel", {"target_modules": "all-linear", "r": 2}),
    "one layer, chosen by an end": (
        "BertModel",
        {"target_modules": ["output.dense", "key"], "layers_to_transform": 1},
    ),
    "two layers of a list, one left out": (
        "BertForMaskedLM",
        {
            "target_modules": ["dense"],
            "layers_to_transform": [0, 1],
            "layers_pattern": ["layer"],
            "exclude_modules": ["attention.output.dense"],
        },
    ),
    "an expression": (
        "BertForQuestionAnswering",
        {
            "target_modules": r".*\.0\..*\.(query|key)",
            "exclude_modules": ".*key",
            "task_type": "QUESTION_ANS",
        },
    ),
    "GPT-2 as it comes": ("GPT2LMHeadModel", {"fan_in_fan_out": True}),
    "GPT-2, ranks and alphas of their own": (
        "GPT2ForSequenceClassification",
        {
            "target_modules": ["c_attn", "mlp.c_proj"],
            "rank_pattern": {"c_proj": 3, r"h\.1\.attn\.c_attn": 5},
            "alpha_pattern": {"c_attn": 2},
            "fan_in_fan_out": True,
            "task_type": "SEQ_CLS",
        },
    ),
    "DistilBERT and its task's head": (
        "DistilBertForSequenceClassification",
        {"target_modules": ["q_lin", "lin1"], "r": 3, "task_type": "SEQ_CLS"},
    ),
    "biases": (
        "BertForSequenceClassification",
        {"bias": "all", "lora_bias": True, "task_type": "SEQ_CLS"},
    ),
    "biases of adapted layers": (
        "GPT2LMHeadModel",
        {"bias": "lora_only", "lora_bias": True, "fan_in_fan_out": True},
    ),
    "tied biases": ("BertForMaskedLM", {"bias": "all"}),
    "magnitudes": (
        "BertForTokenClassification",
        {"use_dora": True, "target_modules": "all-linear", "r": 3, "lora_alpha": 5},
    ),
    "magnitudes of GPT-2": (
        "GPT2LMHeadModel",
        {"use_dora": True, "fan_in_fan_out": True, "use_rslora": True},
    ),
    "layers that share blocks": (
        "AlbertForSequenceClassification",
        {"target_modules": "all-linear", "use_dora": True, "r": 3, "task_type": "SEQ_CLS"},
    ),
    "embeddings": (
        "BertForSequenceClassification",
        {"target_modules": ["query", "word_embeddings", "position_embeddings"], "r": 3},
    ),
    "embeddings with magnitudes": ("BertModel", {"target_modules": [EMBEDDED], "use_dora": True}),
    "embeddings of GPT-2": (
        "GPT2ForSequenceClassification",
        {"target_modules": ["wte", "wpe", "c_attn"], "fan_in_fan_out": True},
    ),
    "tokens of a tied matrix": ("GPT2LMHeadModel", {"trainable_token_indices": [3, 5]}),
    "tokens of an encoder": ("BertModel", {"trainable_token_indices": [0, 3]}),
    "tokens and positions": (
        "GPT2LMHeadModel",
        {"trainable_token_indices": {"wte": [1, 8], "wpe": [2]}, "fan_in_fan_out": True},
    ),
    "GPT-2's every layer": (
        "GPT2LMHeadModel",
        {"target_modules": "all-linear", "fan_in_fan_out": True, "use_rslora": True},
    ),
}


def quiet() -> Any:
    """A context without the warnings of PEFT 0.21: of transformers' renamed switch, for one."""
    return warnings.catch_warnings(action="ignore")


def base(name: str, folder: Any) -> Any:
    """A re-randomised PyTorch model, saved, in float64."""
    with quiet():
        return oracle.saved(name, folder, **CLASSES[name]).double()


def peft_model(theirs: Any, settings: dict[str, Any]) -> Any:
    """It with an adapter of PEFT, all of whose numbers are drawn."""
    with quiet():
        adapted = peft.get_peft_model(theirs, peft.LoraConfig(**settings)).double().eval()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=draw))
    return adapted


def drawn(model: Any, lora: train.LoRA, seed: int = 2) -> train.Adapter:
    """An adapter of ours, all of whose numbers are drawn."""
    draw = np.random.default_rng(seed)
    params = train.init_adapter(model, lora).params
    return train.Adapter(
        lora, {path: jnp.asarray(0.2 * draw.normal(size=a.shape)) for path, a in params.items()}
    )


def outputs(theirs: Any, name: str) -> tuple[dict[str, Any], Any]:
    """Arguments, and a PyTorch model's outputs for them."""
    given = oracle.arguments(name)
    if isinstance(theirs, peft.PeftModelForQuestionAnswering):
        theirs = theirs.base_model  # it drops token_type_ids itself
    return given, oracle.run_torch(theirs, given)
