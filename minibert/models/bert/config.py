"""The config of BERT, which follows transformers' `configuration_bert.py`."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from minibert.checkpoint.config import REFUSED_DECODER_FIELDS, REFUSED_FIELDS, Config, Neutral
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
from minibert.errors import ConfigError, UnsupportedConfigError
from minibert.nn.activations import ACTIVATION_NAMES

LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}


class EncoderConfig(Config):
    """What BERT's config and those of the encoders derived from it have in common."""

    refused_fields: ClassVar[Neutral] = {
        **REFUSED_FIELDS,
        "position_embedding_type": ("absolute", None),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_heads()
        self._check_padding()
        if self.is_causal and not self.is_decoder:
            # transformers' eager attention ignores it; its default one applies it without padding
            raise UnsupportedConfigError(
                "is_causal: expected false or no value, as is_decoder is false, found true; "
                "only a decoder attends to earlier tokens only"
            )

    @property
    def padding_position(self) -> int | None:
        """The position of padding, whose embedding receives no gradient; None if there is none."""
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertConfig(EncoderConfig):
    """The shape and settings of a BERT; field names and defaults are Hugging Face's."""

    model_type = "bert"

    vocab_size: int = field(SIZE, 30522)
    hidden_size: int = field(SIZE, 768)
    num_hidden_layers: int = field(SIZE, 12)
    num_attention_heads: int = field(SIZE, 12)
    intermediate_size: int = field(SIZE, 3072)
    hidden_act: str = field(one_of(ACTIVATION_NAMES), "gelu")
    hidden_dropout_prob: float = field(PROBABILITY, 0.1)
    attention_probs_dropout_prob: float = field(PROBABILITY, 0.1)
    classifier_dropout: float | None = field(or_null(PROBABILITY), None)
    max_position_embeddings: int = field(SIZE, 512)
    type_vocab_size: int = field(SIZE, 2)
    initializer_range: float = field(NON_NEGATIVE, 0.02)
    layer_norm_eps: float = field(POSITIVE, 1e-12)
    pad_token_id: int | None = field(or_null(whole()), 0)
    is_decoder: bool = field(SWITCH, False)
    add_cross_attention: bool = field(SWITCH, False)
    tie_word_embeddings: bool = field(SWITCH, True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.add_cross_attention and not self.is_decoder:
            raise ConfigError("add_cross_attention: expected false, as is_decoder is false")

    @classmethod
    def _refused(cls, data: Mapping[str, Any]) -> Neutral:
        return {**cls.refused_fields, **(REFUSED_DECODER_FIELDS if data.get("is_decoder") else {})}

    @property
    def causal(self) -> bool:
        """Whether a token attends only to itself and to those before it."""
        return self.is_decoder and self.is_causal is not False

    @classmethod
    def base(cls, **changes: object) -> "BertConfig":
        """Returns the config of BERT-base: 12 layers of 768, 110 million parameters."""
        return cls._sized(changes)

    @classmethod
    def large(cls, **changes: object) -> "BertConfig":
        """Returns the config of BERT-large: 24 layers of 1024, 335 million parameters."""
        return cls._sized(changes, **LARGE)

    @classmethod
    def tiny(cls, **changes: object) -> "BertConfig":
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
