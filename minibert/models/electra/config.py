"""The config of ELECTRA, which follows transformers' `configuration_electra.py`."""

import dataclasses
from typing import ClassVar

from minibert.checkpoint.config import Neutral
from minibert.core.fields import PROBABILITY, SIZE, SWITCH, field, one_of, or_null
from minibert.models.bert.config import LARGE, BertConfig
from minibert.models.gpt2.config import SUMMARY_TYPES
from minibert.nn.activations import ACTIVATION_NAMES

BASE = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ElectraConfig(BertConfig):
    """The shape and settings of an ELECTRA; field names and defaults are Hugging Face's.

    The defaults are those of ELECTRA-small; `base` and `large` return the configs of the other
    published discriminators.
    """

    model_type = "electra"
    refused_fields: ClassVar[Neutral] = {
        **BertConfig.refused_fields,
        "summary_first_dropout": (0,),
        "summary_proj_to_labels": (False,),
    }

    embedding_size: int = field(SIZE, 128)
    hidden_size: int = field(SIZE, 256)
    num_attention_heads: int = field(SIZE, 4)
    intermediate_size: int = field(SIZE, 1024)
    summary_type: str = field(one_of(SUMMARY_TYPES), "first")
    summary_use_proj: bool = field(SWITCH, True)
    summary_activation: str | None = field(or_null(one_of(ACTIVATION_NAMES)), "gelu")
    summary_last_dropout: float = field(PROBABILITY, 0.1)

    @classmethod
    def small(cls, **changes: object) -> "ElectraConfig":
        """Returns the config of ELECTRA-small: 12 layers of 256, 14 million parameters."""
        return cls._sized(changes)

    @classmethod
    def base(cls, **changes: object) -> "ElectraConfig":
        """Returns the config of ELECTRA-base: 12 layers of 768, 109 million parameters."""
        return cls._sized(changes, embedding_size=768, **BASE)

    @classmethod
    def large(cls, **changes: object) -> "ElectraConfig":
        """Returns the config of ELECTRA-large: 24 layers of 1024, 334 million parameters."""
        return cls._sized(changes, embedding_size=1024, **LARGE)

    @classmethod
    def tiny(cls, **changes: object) -> "ElectraConfig":
        """Returns a config of two layers of 24 in which all sizes differ, for experiments."""
        return cls._sized(
            changes,
            vocab_size=97,
            embedding_size=20,
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=80,
            max_position_embeddings=40,
        )
