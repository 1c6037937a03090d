"""The config of GPT-2, which follows transformers' `configuration_gpt2.py`."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from minibert.checkpoint.config import (
    REFUSED_DECODER_FIELDS,
    REFUSED_FIELDS,
    Config,
    Neutral,
    aliased,
)
from minibert.core.fields import (
    NON_NEGATIVE,
    POSITIVE,
    PROBABILITY,
    SIZE,
    SWITCH,
    field,
    one_of,
    or_null,
    whole,
)
from minibert.nn.activations import ACTIVATION_NAMES

SUMMARY_TYPES = ("last", "first", "mean", "cls_index")


@aliased
@dataclasses.dataclass(frozen=True, kw_only=True)
class GPT2Config(Config):
    """The shape and settings of a GPT-2; field names and defaults are Hugging Face's.

    `hidden_size`, `max_position_embeddings`, `num_attention_heads` and `num_hidden_layers` are
    aliases of `n_embd`, `n_positions`, `n_head` and `n_layer`. `classifier_dropout`,
    `hidden_dropout` and `summary_last_dropout` are not fields of Hugging Face's class, but its
    models read them. `reorder_and_upcast_attn` requests attention scores in float32, in which they
    are always computed here. `use_cache` is the default of the argument of that name only in so
    far as that determines how `position_ids` are interpreted: see `GPT2Model.__call__`.
    """

    model_type = "gpt2"
    is_decoder = True
    refused_fields: ClassVar[Neutral] = {
        **REFUSED_FIELDS,
        **REFUSED_DECODER_FIELDS,
        "tie_last_hidden_states": (True, None),  # whether the last state is after `ln_f`
    }
    aliases: ClassVar[Mapping[str, str]] = {
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }

    vocab_size: int = field(SIZE, 50257)
    n_positions: int = field(SIZE, 1024)
    n_embd: int = field(SIZE, 768)
    n_layer: int = field(SIZE, 12)
    n_head: int = field(SIZE, 12)
    n_inner: int | None = field(or_null(SIZE), None)
    activation_function: str = field(one_of(ACTIVATION_NAMES), "gelu_new")
    resid_pdrop: float = field(PROBABILITY, 0.1)
    embd_pdrop: float = field(PROBABILITY, 0.1)
    attn_pdrop: float = field(PROBABILITY, 0.1)
    classifier_dropout: float | None = field(or_null(PROBABILITY), None)
    hidden_dropout: float | None = field(or_null(PROBABILITY), None)
    layer_norm_epsilon: float = field(POSITIVE, 1e-5)
    initializer_range: float = field(NON_NEGATIVE, 0.02)
    summary_type: str = field(one_of(SUMMARY_TYPES), "cls_index")
    summary_use_proj: bool = field(SWITCH, True)
    summary_activation: str | None = field(or_null(one_of(ACTIVATION_NAMES)), None)
    summary_proj_to_labels: bool = field(SWITCH, True)
    summary_first_dropout: float = field(PROBABILITY, 0.1)
    summary_last_dropout: float = field(PROBABILITY, 0.0)
    scale_attn_weights: bool = field(SWITCH, True)
    scale_attn_by_inverse_layer_idx: bool = field(SWITCH, False)
    reorder_and_upcast_attn: bool = field(SWITCH, False)
    use_cache: bool = field(SWITCH, True)
    add_cross_attention: bool = field(SWITCH, False)
    tie_word_embeddings: bool = field(SWITCH, True)
    pad_token_id: int | None = field(or_null(whole()), None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_heads()

    @property
    def hidden_size(self) -> int:
        """An alias of `n_embd`."""
        return self.n_embd

    @property
    def max_position_embeddings(self) -> int:
        """An alias of `n_positions`."""
        return self.n_positions

    @property
    def num_attention_heads(self) -> int:
        """An alias of `n_head`."""
        return self.n_head

    @property
    def num_hidden_layers(self) -> int:
        """An alias of `n_layer`."""
        return self.n_layer

    @property
    def causal(self) -> bool:
        """Whether a token attends only to itself and to those before it."""
        return self.is_causal is not False

    @classmethod
    def small(cls, **changes: object) -> "GPT2Config":
        """Returns the config of GPT-2 small: 12 layers of 768, 124 million parameters."""
        return cls._sized(changes)

    @classmethod
    def medium(cls, **changes: object) -> "GPT2Config":
        """Returns the config of GPT-2 medium: 24 layers of 1024, 355 million parameters."""
        return cls._sized(changes, n_embd=1024, n_layer=24, n_head=16)

    @classmethod
    def large(cls, **changes: object) -> "GPT2Config":
        """Returns the config of GPT-2 large: 36 layers of 1280, 774 million parameters."""
        return cls._sized(changes, n_embd=1280, n_layer=36, n_head=20)

    @classmethod
    def xl(cls, **changes: object) -> "GPT2Config":
        """Returns the config of GPT-2 XL: 48 layers of 1600, 1.6 billion parameters."""
        return cls._sized(changes, n_embd=1600, n_layer=48, n_head=25)

    @classmethod
    def tiny(cls, **changes: object) -> "GPT2Config":
        """Returns a config of two layers of 24 in which all sizes differ, for experiments."""
        return cls._sized(
            changes, vocab_size=97, n_embd=24, n_layer=2, n_head=3, n_inner=80, n_positions=40
        )
