"""The config of ALBERT, which follows transformers' `configuration_albert.py`."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from minibert.checkpoint.config import Neutral
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
from minibert.models.bert.config import EncoderConfig
from minibert.nn.activations import ACTIVATION_NAMES


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlbertConfig(EncoderConfig):
    """The shape and settings of an ALBERT; field names and defaults are Hugging Face's.

    The defaults are those of the largest published model; `base`, `large`, `xlarge` and `xxlarge`
    return the configs of version 2 of the published models.
    """

    model_type = "albert"
    refused_fields: ClassVar[Neutral] = {
        **EncoderConfig.refused_fields,
        "add_cross_attention": (False, None),
        "is_decoder": (False, None),  # transformers 4 makes its eager attention causal
    }

    vocab_size: int = field(SIZE, 30000)
    embedding_size: int = field(SIZE, 128)
    hidden_size: int = field(SIZE, 4096)
    num_hidden_layers: int = field(SIZE, 12)
    num_hidden_groups: int = field(SIZE, 1)
    num_attention_heads: int = field(SIZE, 64)
    intermediate_size: int = field(SIZE, 16384)
    inner_group_num: int = field(SIZE, 1)
    hidden_act: str = field(one_of(ACTIVATION_NAMES), "gelu_new")
    hidden_dropout_prob: float = field(PROBABILITY, 0.0)
    attention_probs_dropout_prob: float = field(PROBABILITY, 0.0)
    max_position_embeddings: int = field(SIZE, 512)
    type_vocab_size: int = field(SIZE, 2)
    initializer_range: float = field(NON_NEGATIVE, 0.02)
    layer_norm_eps: float = field(POSITIVE, 1e-12)
    classifier_dropout_prob: float | None = field(or_null(PROBABILITY), 0.1)
    pad_token_id: int | None = field(or_null(whole()), 0)
    tie_word_embeddings: bool = field(SWITCH, True)

    @property
    def stored_layers(self) -> int:
        """The number of layers that have parameters of their own."""
        return self.num_hidden_groups * self.inner_group_num

    @property
    def stored_layers_name(self) -> str:
        """The formula of `stored_layers`, for messages."""
        return "num_hidden_groups × inner_group_num"

    @property
    def layer_paths(self) -> Sequence[str]:
        """The paths, in the list of groups, of the blocks that are executed, in order."""
        each = self.num_hidden_layers / self.num_hidden_groups  # may be a fraction
        groups = (int(layer / each) for layer in range(self.num_hidden_layers))
        inner = range(self.inner_group_num)
        return [f"{group}.albert_layers.{number}" for group in groups for number in inner]

    def with_layers(self, layers: int, blocks: int) -> "AlbertConfig":
        """Returns a copy with another number of layers, which consist of some number of groups."""
        return self.replace(num_hidden_layers=layers, num_hidden_groups=blocks)

    @property
    def classifier_rate(self) -> float:
        """The dropout rate of classifiers."""
        rate = self.classifier_dropout_prob
        return self.hidden_dropout_prob if rate is None else rate

    @classmethod
    def base(cls, **changes: object) -> "AlbertConfig":
        """Returns the config of ALBERT-base: 12 layers of 768, 12 million parameters."""
        sizes = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
        return cls._sized(changes, **sizes)

    @classmethod
    def large(cls, **changes: object) -> "AlbertConfig":
        """Returns the config of ALBERT-large: 24 layers of 1024, 18 million parameters."""
        sizes = {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096}
        return cls._sized(changes, num_hidden_layers=24, **sizes)

    @classmethod
    def xlarge(cls, **changes: object) -> "AlbertConfig":
        """Returns the config of ALBERT-xlarge: 24 layers of 2048, 59 million parameters."""
        sizes = {"hidden_size": 2048, "num_attention_heads": 16, "intermediate_size": 8192}
        return cls._sized(changes, num_hidden_layers=24, **sizes)

    @classmethod
    def xxlarge(cls, **changes: object) -> "AlbertConfig":
        """Returns the config of ALBERT-xxlarge: 12 layers of 4096, 223 million parameters."""
        return cls._sized(changes)

    @classmethod
    def tiny(cls, **changes: object) -> "AlbertConfig":
        """Returns a config of two layers of 24 in which all sizes differ, for experiments."""
        return cls._sized(
            changes,
            vocab_size=97,
            embedding_size=16,
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=80,
            max_position_embeddings=40,
        )
