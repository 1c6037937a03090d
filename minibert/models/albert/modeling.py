"""ALBERT: BERT with factorised embeddings and layers that share parameters.

Lan et al., "ALBERT: A Lite BERT for Self-supervised Learning of Language Representations",
arXiv:1909.11942. Names, nesting and numerics follow transformers' `modeling_albert.py`.

The embeddings have a width of their own, `embedding_size`, and are mapped to the hidden size.
There are `num_hidden_groups` groups of `inner_group_num` blocks, and `num_hidden_layers` layers,
each of which executes all blocks of a group: the first layers those of the first group, and so on.
Each execution of a block has a hidden state, and a row of a head mask, as in transformers 5.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Unpack

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from minibert.checkpoint.config import Config
from minibert.core.types import ArrayLike, Dtype, Options, Rngs
from minibert.models.albert.config import AlbertConfig
from minibert.models.base import Dimensions, Names, PretrainedModel, Table
from minibert.models.bert.modeling import (
    BertEmbeddings,
    BertSelfAttention,
    HeadMask,
    Hidden,
    Mask,
    Weights,
)
from minibert.models.heads import projection
from minibert.models.inputs import model_inputs
from minibert.models.outputs import (
    BaseModelOutputWithPastAndCrossAttentions,
    BaseModelOutputWithPoolingAndCrossAttentions,
)
from minibert.models.stack import Execution, requested_outputs, run_blocks
from minibert.nn.activations import activation
from minibert.nn.cache import BlockOutput
from minibert.nn.layers import Dropout, LayerNorm, Linear, Module


class AlbertAttention(BertSelfAttention):
    """Multi-head self-attention, its projection, the residual connection and LayerNorm."""

    def __init__(self, config: AlbertConfig, **options: Unpack[Options]):
        super().__init__(config, **options)
        hidden, epsilon = config.hidden_size, config.layer_norm_eps
        self.dense: Linear = projection(config, hidden, **options)
        self.LayerNorm: LayerNorm = LayerNorm(hidden, epsilon=epsilon, **options)
        self.output_dropout: Dropout = Dropout(config.hidden_dropout_prob)

    def __call__(  # ty: ignore[incompatible-method-override]
        self,
        hidden: Hidden,
        mask: Mask = None,
        head_mask: HeadMask = None,
        rngs: Rngs = None,
    ) -> tuple[Hidden, Weights]:
        """Returns the new hidden states and the attention weights."""
        context, weights, _ = super().__call__(hidden, mask, head_mask, rngs=rngs)
        projected = self.output_dropout(self.dense(context), rngs)
        return self.LayerNorm(hidden + projected), weights


class AlbertLayer(Module):
    """One post-norm transformer block; its feed-forward network has no dropout."""

    def __init__(self, config: AlbertConfig, **options: Unpack[Options]):
        hidden, width = config.hidden_size, config.intermediate_size
        self.full_layer_layer_norm: LayerNorm = LayerNorm(
            hidden, epsilon=config.layer_norm_eps, **options
        )
        self.attention: AlbertAttention = AlbertAttention(config, **options)
        self.ffn: Linear = projection(config, width, **options)
        self.ffn_output: Linear = Linear(width, hidden, stddev=config.initializer_range, **options)
        self.activation: Module = activation(config.hidden_act, **options)

    def __call__(
        self,
        hidden: Hidden,
        mask: Mask = None,
        head_mask: HeadMask = None,
        encoded: None = None,
        encoder_mask: None = None,
        past: None = None,
        rngs: Rngs = None,
    ) -> BlockOutput:
        """Applies self-attention and the feed-forward network."""
        hidden, weights = self.attention(hidden, mask, head_mask, rngs)
        wide = self.activation(self.ffn(hidden))
        return BlockOutput(
            self.full_layer_layer_norm(self.ffn_output(wide) + hidden), weights, None, None
        )


class AlbertLayerGroup(Module):
    """Blocks that are executed one after the other in each layer of the group."""

    def __init__(self, config: AlbertConfig, **options: Unpack[Options]):
        self.albert_layers: nnx.List[AlbertLayer] = nnx.List(
            AlbertLayer(config, **options) for _ in range(config.inner_group_num)
        )


class AlbertTransformer(Module):
    """The projection to the hidden size, and the groups of blocks."""

    def __init__(self, config: AlbertConfig, **options: Unpack[Options]):
        self.embedding_hidden_mapping_in: Linear = Linear(
            config.embedding_size, config.hidden_size, stddev=config.initializer_range, **options
        )
        self.albert_layer_groups: nnx.List[AlbertLayerGroup] = nnx.List(
            AlbertLayerGroup(config, **options) for _ in range(config.num_hidden_groups)
        )

    def __call__(
        self,
        hidden: Float[Array, "batch seq embedding"],
        paths: Sequence[str],
        mask: Mask,
        **given: Any,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Applies the blocks at some paths; takes further arguments of `run_blocks`."""
        indices = [map(int, path.split(".albert_layers.")) for path in paths]
        blocks = [self.albert_layer_groups[group].albert_layers[n] for group, n in indices]
        hidden = self.embedding_hidden_mapping_in(hidden)
        return run_blocks(blocks, hidden, masks=[mask] * len(blocks), **given)


class AlbertPreTrainedModel(PretrainedModel):
    """Base class of all ALBERT models: facts about their checkpoints."""

    config_class: ClassVar[type[Config]] = AlbertConfig
    trunk = "albert"
    submodules: ClassVar[Names] = ("embeddings", "encoder", "pooler")
    heads: ClassVar[Names] = (
        "predictions",
        "sop_classifier",
        "classifier",
        "qa_outputs",
        "albert.pooler",
    )
    lora_targets: ClassVar[Names] = ("query", "value")
    buffers: ClassVar[Table] = {
        "albert.embeddings.position_ids": "0, 1, 2, …, which are computed",
        "albert.embeddings.token_type_ids": "zeros, which are computed",
    }
    blocks = "encoder.albert_layer_groups"
    dimensions: ClassVar[Dimensions] = {
        "*attention.[qkv]*.kernel": (None, "heads"),  # query, key and value
        "*attention.[qkv]*.bias": ("heads",),
        "*attention.dense.kernel": ("heads", None),
        "*ffn.kernel": (None, "features"),
        "*ffn.bias": ("features",),
        "*ffn_output.kernel": ("features", None),
    }
    segments = "type_vocab_size"
    token_embeddings = "embeddings.word_embeddings"
    config: AlbertConfig


class AlbertModel(AlbertPreTrainedModel):
    """The bare encoder, with a pooler if the checkpoint has one.

    Args:
        config: the shape and settings.
        rngs: random keys to initialise weights; None builds shapes only, for a loader to fill.
        dtype: the dtype of computations; None for the dtype of the parameters.
        param_dtype: the dtype of the parameters.
        add_pooling_layer: whether there is a pooler.
    """

    is_trunk = True
    optional: ClassVar[Names] = ("albert.pooler",)

    execution: Execution

    def __init__(
        self,
        config: AlbertConfig,
        *,
        rngs: Rngs,
        dtype: Dtype = None,
        param_dtype: DTypeLike = jnp.float32,
        add_pooling_layer: bool = True,
    ):
        options: Options = {"rngs": rngs, "dtype": dtype, "param_dtype": param_dtype}
        self.config, self.execution = config, Execution()
        self.embeddings: BertEmbeddings = BertEmbeddings(config, **options)
        self.encoder: AlbertTransformer = AlbertTransformer(config, **options)
        self.pooler: Linear | None = nnx.data(
            projection(config, config.hidden_size, **options) if add_pooling_layer else None
        )

    def __call__(
        self,
        input_ids: ArrayLike | None = None,
        attention_mask: ArrayLike | None = None,
        token_type_ids: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
        head_mask: ArrayLike | None = None,
        inputs_embeds: ArrayLike | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        *,
        rngs: Rngs = None,
    ) -> BaseModelOutputWithPoolingAndCrossAttentions:
        """Encodes a batch.

        Args:
            input_ids: `(batch, seq)` token ids; alternatively pass `inputs_embeds`.
            attention_mask: `(batch, seq)`, 1 for a token and 0 for padding; or a mask of queries
                and keys, as `BertModel` takes it.
            token_type_ids: `(batch, seq)` token types (segments); zeros by default.
            position_ids: `(batch, seq)` or `(1, seq)` positions; 0, 1, 2, … by default.
            head_mask: `(heads,)` or `(layers, heads)`, factors for the heads' attention weights;
                a layer is an execution of a block.
            inputs_embeds: `(batch, seq, embedding_size)` token embeddings, used instead of
                `input_ids`.
            output_attentions: whether to return attention weights.
            output_hidden_states: whether to return the hidden states of all layers.
            rngs: random keys for dropout, needed in training mode only.

        Raises:
            InputError: an argument is of the wrong shape or type, out of range or contradictory.
        """
        given = model_inputs(
            self,
            input_ids=input_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
        )
        done = self.encoder(
            self.embeddings(
                given.input_ids, given.token_type_ids, given.position_ids, given.inputs_embeds, rngs
            ),
            self.config.layer_paths,
            given.bidirectional,
            head_mask=given.head_mask,
            rngs=rngs,
            execution=self.execution,
        )
        last = done.last_hidden_state
        return BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=last,
            pooler_output=None if self.pooler is None else jnp.tanh(self.pooler(last[:, 0])),
            **requested_outputs(done, self.config, output_hidden_states, output_attentions),
        )
