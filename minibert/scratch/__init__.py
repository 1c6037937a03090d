"""Attention and a language model from scratch: `parts`, and the `toys` built of them.

This code is for study: it is not optimised and loads no checkpoints.
"""

from minibert.scratch.parts import (
    Attended,
    CausalAttention,
    MultiHeadAttention,
    SelfAttention,
    attention,
    calculate_attention,
    causal_mask,
    linear,
    relu,
    softmax,
    softmax_naive,
)
from minibert.scratch.toys import (
    ToyAgent,
    ToyBody,
    ToyCausalLM,
    ToyConfig,
    ToyLayer,
    continued,
)

__all__ = [
    "Attended",
    "CausalAttention",
    "MultiHeadAttention",
    "SelfAttention",
    "ToyAgent",
    "ToyBody",
    "ToyCausalLM",
    "ToyConfig",
    "ToyLayer",
    "attention",
    "calculate_attention",
    "causal_mask",
    "continued",
    "linear",
    "relu",
    "softmax",
    "softmax_naive",
]
