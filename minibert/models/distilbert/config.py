"""The config of DistilBERT, which follows transformers' `configuration_distilbert.py`."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from minibert.checkpoint.config import REFUSED_FIELDS, Config, Neutral, aliased
from minibert.core.fields import (
    NON_NEGATIVE,
    PROBABILITY,
    SIZE,
    SWITCH,
    field,
    one_of,
    or_null,
    whole,
)
from minibert.nn.activations import ACTIVATION_NAMES


@aliased
@dataclasses.dataclass(frozen=True, kw_only=True)
class DistilBertConfig(Config):
    """The shape and settings of a DistilBERT; field names and defaults are Hugging Face's.

    `hidden_size`, `num_attention_heads` and `num_hidden_layers` are aliases of `dim`, `n_heads` and
    `n_layers`. `sinusoidal_pos_embds` determines how new position embeddings are initialised, also
    those that `resize_position_embeddings` adds; those of a checkpoint are in its file.
    """

    model_type = "distilbert"
    refused_fields: ClassVar[Neutral] = REFUSED_FIELDS
    aliases: ClassVar[Mapping[str, str]] = {
        "hidden_size": "dim",
        "num_attention_heads": "n_heads",
        "num_hidden_layers": "n_layers",
    }

    vocab_size: int = field(SIZE, 30522)
    max_position_embeddings: int = field(SIZE, 512)
    sinusoidal_pos_embds: bool = field(SWITCH, False)
    n_layers: int = field(SIZE, 6)
    n_heads: int = field(SIZE, 12)
    dim: int = field(SIZE, 768)
    hidden_dim: int = field(SIZE, 3072)
    dropout: float = field(PROBABILITY, 0.1)
    attention_dropout: float = field(PROBABILITY, 0.1)
    activation: str = field(one_of(ACTIVATION_NAMES), "gelu")
    initializer_range: float = field(NON_NEGATIVE, 0.02)
    qa_dropout: float = field(PROBABILITY, 0.1)
    seq_classif_dropout: float = field(PROBABILITY, 0.2)
    pad_token_id: int | None = field(or_null(whole()), 0)
    tie_word_embeddings: bool = field(SWITCH, True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_heads()
        self._check_padding()

    @property
    def hidden_size(self) -> int:
        """An alias of `dim`."""
        return self.dim

    @property
    def num_attention_heads(self) -> int:
        """An alias of `n_heads`."""
        return self.n_heads

    @property
    def num_hidden_layers(self) -> int:
        """An alias of `n_layers`."""
        return self.n_layers

    @classmethod
    def base(cls, **changes: object) -> "DistilBertConfig":
        """Returns the config of DistilBERT-base: 6 layers of 768, 66 million parameters."""
        return cls._sized(changes)

    @classmethod
    def tiny(cls, **changes: object) -> "DistilBertConfig":
        """Returns a config of two layers of 24 in which all sizes differ, for experiments."""
        sizes = {"vocab_size": 97, "max_position_embeddings": 40}
        return cls._sized(changes, dim=24, n_layers=2, n_heads=3, hidden_dim=80, **sizes)
