"""ELECTRA: BERT's encoder over narrower embeddings, trained to find replaced tokens.

Clark et al., "ELECTRA: Pre-training Text Encoders as Discriminators Rather Than Generators",
arXiv:2003.10555. Names, nesting and numerics follow transformers' `modeling_electra.py`. Every
model takes the arguments of `ElectraModel`, with the same names and in the same order.

A projection follows the embeddings where their width is not the hidden size; there is no pooler.
The discriminator is `ElectraForPreTraining`, the generator `ElectraForMaskedLM`.
"""

from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from minibert.checkpoint.config import Config
from minibert.core.types import ArrayLike, Dtype, Options, Rngs
from minibert.models.base import Names, Table
from minibert.models.bert.modeling import (
    BertEmbeddings,
    BertEncoder,
    BertModel,
    BertPreTrainedModel,
    Hidden,
)
from minibert.models.electra.config import ElectraConfig
from minibert.models.inputs import ModelInputs
from minibert.models.outputs import BaseModelOutputWithPastAndCrossAttentions
from minibert.models.stack import Execution, requested_outputs
from minibert.nn.cache import KVCache
from minibert.nn.layers import Linear


class ElectraPreTrainedModel(BertPreTrainedModel):
    """Base class of all ELECTRA models: facts about their checkpoints."""

    config_class: ClassVar[type[Config]] = ElectraConfig
    trunk = "electra"
    submodules: ClassVar[Names] = ("embeddings", "embeddings_project", "encoder")
    heads: ClassVar[Names] = (
        "discriminator_predictions",
        "generator_predictions",
        "generator_lm_head",
        "sequence_summary",
        "classifier",
        "classifier.out_proj",
        "qa_outputs",
    )
    buffers: ClassVar[Table] = {
        "electra.embeddings.position_ids": "0, 1, 2, …, which are computed",
        "electra.embeddings.token_type_ids": "zeros, which are computed",
    }


class ElectraModel(ElectraPreTrainedModel, BertModel):
    """The bare encoder.

    Args:
        config: the shape and settings.
        rngs: random keys to initialise weights; None builds shapes only, for a loader to fill.
        dtype: the dtype of computations; None for the dtype of the parameters.
        param_dtype: the dtype of the parameters.
    """

    optional: ClassVar[Names] = ()

    def __init__(
        self,
        config: ElectraConfig,
        *,
        rngs: Rngs,
        dtype: Dtype = None,
        param_dtype: DTypeLike = jnp.float32,
    ):
        options: Options = {"rngs": rngs, "dtype": dtype, "param_dtype": param_dtype}
        self.config, self.execution = config, Execution()
        self.embeddings: BertEmbeddings = BertEmbeddings(config, **options)
        width, hidden, stddev = config.embedding_size, config.hidden_size, config.initializer_range
        self.embeddings_project: Linear | None = nnx.data(
            None if width == hidden else Linear(width, hidden, stddev=stddev, **options)
        )
        self.encoder: BertEncoder = BertEncoder(config, **options)

    def __call__(
        self,
        input_ids: ArrayLike | None = None,
        attention_mask: ArrayLike | None = None,
        token_type_ids: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
        head_mask: ArrayLike | None = None,
        inputs_embeds: ArrayLike | None = None,
        encoder_hidden_states: ArrayLike | None = None,
        encoder_attention_mask: ArrayLike | None = None,
        past_key_values: KVCache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        *,
        rngs: Rngs = None,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Takes `BertModel`'s arguments; `inputs_embeds` are `(batch, seq, embedding_size)`.

        The first of the hidden states is that after the projection.
        """
        done = self._encoded(
            use_cache,
            rngs,
            input_ids=input_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            past_key_values=past_key_values,
        )
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=done.last_hidden_state,
            **requested_outputs(done, self.config, output_hidden_states, output_attentions),
        )

    def _embedded(self, given: ModelInputs, rngs: Rngs) -> Hidden:
        hidden = super()._embedded(given, rngs)
        return hidden if self.embeddings_project is None else self.embeddings_project(hidden)
