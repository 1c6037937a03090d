"""The config of MPNet, which follows transformers' `configuration_mpnet.py`."""

import dataclasses
from typing import ClassVar

from minibert.checkpoint.config import REFUSED_FIELDS, Config, Neutral
from minibert.core.fields import (
    NON_NEGATIVE,
    POSITIVE,
    PROBABILITY,
    SIZE,
    SWITCH,
    field,
    one_of,
    or_null,
    size,
    whole,
)
from minibert.nn.activations import ACTIVATION_NAMES

PAD = 1  # the id and the position of padding, whatever the config's `pad_token_id`
BUCKETS = 32  # of distances, whatever the config's number


@dataclasses.dataclass(frozen=True, kw_only=True)
class MPNetConfig(Config):
    """The shape and settings of an MPNet; field names and defaults are Hugging Face's.

    Of `relative_attention_num_buckets` rows of the embedding of distances the first 32 are used, as
    in transformers.
    """

    model_type = "mpnet"
    classifier_dropout = None
    padding_position = PAD
    refused_fields: ClassVar[Neutral] = {
        **REFUSED_FIELDS,
        "is_causal": (False,),
        "is_decoder": (False,),
    }

    vocab_size: int = field(SIZE, 30527)
    hidden_size: int = field(SIZE, 768)
    num_hidden_layers: int = field(SIZE, 12)
    num_attention_heads: int = field(SIZE, 12)
    intermediate_size: int = field(SIZE, 3072)
    hidden_act: str = field(one_of(ACTIVATION_NAMES), "gelu")
    hidden_dropout_prob: float = field(PROBABILITY, 0.1)
    attention_probs_dropout_prob: float = field(PROBABILITY, 0.1)
    max_position_embeddings: int = field(size(PAD + 2), 512)
    initializer_range: float = field(NON_NEGATIVE, 0.02)
    layer_norm_eps: float = field(POSITIVE, 1e-12)
    relative_attention_num_buckets: int = field(size(BUCKETS), BUCKETS)
    pad_token_id: int | None = field(or_null(whole()), PAD)
    tie_word_embeddings: bool = field(SWITCH, True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_heads()

    @property
    def max_tokens(self) -> int:
        """The maximum number of tokens in a text."""
        return self.max_position_embeddings - PAD - 1

    @property
    def max_tokens_name(self) -> str:
        """The formula of `max_tokens`, for messages."""
        return f"max_position_embeddings - {PAD + 1}"

    @classmethod
    def base(cls, **changes: object) -> "MPNetConfig":
        """Returns the config of MPNet-base: 12 layers of 768, 109 million parameters."""
        return cls._sized(changes, max_position_embeddings=514, layer_norm_eps=1e-5)

    @classmethod
    def tiny(cls, **changes: object) -> "MPNetConfig":
        """Returns a config of two layers of 24 in which all sizes differ, for experiments."""
        return cls._sized(
            changes,
            vocab_size=97,
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=80,
            max_position_embeddings=40,
        )
