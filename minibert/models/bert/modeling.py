"""BERT: the encoder, which can also be a decoder.

Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language
Understanding", arXiv:1810.04805. Names, nesting and numbers follow transformers'
`modeling_bert.py`: a checkpoint's tensor names are this tree's paths.
"""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from minibert.errors import InputError
from minibert.models.base import PretrainedModel
from minibert.models.bert.blocks import BertEmbeddings, BertEncoder, BertPooler
from minibert.models.bert.config import BertConfig
from minibert.models.inputs import model_inputs
from minibert.models.outputs import BaseModelOutputWithPoolingAndCrossAttentions
from minibert.models.stack import asked, past_and_mask
from minibert.nn.cache import KVCache
from minibert.nn.layers import Dropout, Linear

Rngs = nnx.Rngs | None


class BertPreTrainedModel(PretrainedModel):
    """What every BERT class shares: the facts about its checkpoints."""

    config_class = BertConfig
    trunk = "bert"
    rooms = ("embeddings", "encoder", "pooler")
    heads = ("cls.predictions", "cls.seq_relationship", "classifier", "qa_outputs", "bert.pooler")
    lora_targets = ("query", "value")
    buffers = {
        "bert.embeddings.position_ids": "0, 1, 2, …, which the code counts itself",
        "bert.embeddings.token_type_ids": "zeros, which the code makes itself",
    }
    blocks = "encoder.layer"
    dimensions = {
        "*attention.self.*.kernel": (None, "heads"),
        "*attention.self.*.bias": ("heads",),
        "*attention.output.dense.kernel": ("heads", None),
        "*intermediate.dense.kernel": (None, "features"),
        "*intermediate.dense.bias": ("features",),
        "*output.dense.kernel": ("features", None),
    }
    config: BertConfig


class BertModel(BertPreTrainedModel):
    """The bare encoder, with the pooler if its checkpoint has one.

    Args:
        config: the shape and settings.
        rngs: random keys for fresh weights; None builds shapes only, for a loader to fill.
        dtype: what to compute in; None for the parameters' own dtype.
        param_dtype: what to store parameters in.
        add_pooling_layer: whether there is a pooler.
    """

    is_trunk = True
    optional = ("bert.pooler",)

    def __init__(
        self,
        config: BertConfig,
        *,
        rngs: Rngs,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        add_pooling_layer: bool = True,
    ):
        options = {"rngs": rngs, "dtype": dtype, "param_dtype": param_dtype}
        self.config = config
        self.embeddings = BertEmbeddings(config, **options)
        self.encoder = BertEncoder(config, **options)
        self.pooler = nnx.data(BertPooler(config, **options) if add_pooling_layer else None)

    def init_cache(self, batch_size: Any, max_length: Any) -> KVCache:
        """An empty cache for `batch_size` rows of at most `max_length` tokens, padding included.

        Keys and values are kept in the dtype the model computes in.

        Raises:
            InputError: the model is not a decoder, or those are not sizes.
        """
        if not self.config.is_decoder:
            raise InputError("init_cache: only a decoder has a cache, and config.is_decoder is off")
        words = self.embeddings.word_embeddings
        parts = (words.embedding[...].dtype, self.encoder.layer[0].output.dense.kernel[...].dtype)
        dtype = words.dtype or jnp.promote_types(*parts)
        return KVCache.empty(self.config, batch_size, max_length, dtype)

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        head_mask: Any = None,
        inputs_embeds: Any = None,
        encoder_hidden_states: Any = None,
        encoder_attention_mask: Any = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        *,
        rngs: Rngs = None,
    ) -> BaseModelOutputWithPoolingAndCrossAttentions:
        """Encodes a batch; in a decoder a token attends only to itself and to those before it.

        Args:
            input_ids: `(batch, seq)` word indices; or give `inputs_embeds`.
            attention_mask: `(batch, seq)`, 1 for a token and 0 for padding; or
                `(batch, seq, seq)`, 1 where a query (second axis) may look at a key (third). With
                a cache it is `(batch, seq)`, of the tokens given now.
            token_type_ids: `(batch, seq)` segments; zeros by default.
            position_ids: `(batch, seq)` or `(1, seq)` positions; 0, 1, 2, … by default, going on
                from the cache.
            head_mask: `(heads,)` or `(layers, heads)`, a factor for each head's weights.
            inputs_embeds: `(batch, seq, hidden)` in place of the word embeddings.
            encoder_hidden_states: `(batch, encoder_seq, hidden)` for cross-attention; the cache
                remembers their keys and values, so that later calls need not give them.
            encoder_attention_mask: `(batch, encoder_seq)`, 0 at the encoder's padding.
            past_key_values: a decoder's memory of earlier calls (`init_cache` makes an empty one).
            use_cache: whether a decoder makes one, of `max_position_embeddings` tokens, where none
                is given.
            output_attentions: whether to return attention weights.
            output_hidden_states: whether to return every hidden state.
            rngs: random keys for dropout, needed in training mode only.

        Raises:
            InputError: an argument is of the wrong shape or type, out of range or contradictory.
        """
        config = self.config
        given = model_inputs(
            config,
            segments="type_vocab_size",
            decoder=config.is_decoder,
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
        mask, past = given.mask, None
        if config.is_decoder:
            mask, past = past_and_mask(
                given,
                lambda: self.init_cache(given.batch, config.max_position_embeddings),
                use_cache,
                config.causal,
            )
        hidden = self.embeddings(
            given.input_ids, given.token_type_ids, given.position_ids, given.inputs_embeds, rngs
        )
        done = self.encoder(
            hidden,
            mask=mask,
            head_mask=given.head_mask,
            encoded=given.encoder_hidden_states,
            encoder_mask=given.encoder_mask,
            past=past,
            rngs=rngs,
        )
        last = done.last_hidden_state
        return BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=last,
            pooler_output=None if self.pooler is None else self.pooler(last),
            **asked(done, config, output_hidden_states, output_attentions),
        )


class BertWithHead(BertPreTrainedModel):
    """A `BertModel` under the name `bert`, and a head.

    Args:
        config: the shape and settings.
        rngs: random keys for fresh weights; None builds shapes only, for a loader to fill.
        dtype: what to compute in; None for the parameters' own dtype.
        param_dtype: what to store parameters in.
    """

    pooled: bool

    def __init__(
        self,
        config: BertConfig,
        *,
        rngs: nnx.Rngs | None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
    ):
        options = {"rngs": rngs, "dtype": dtype, "param_dtype": param_dtype}
        self.config = config
        self.bert = BertModel(config, add_pooling_layer=self.pooled, **options)
        self._add_head(config, **options)

    def _add_head(self, config: BertConfig, **options: Any) -> None:
        raise TypeError(f"{type(self).__name__} has no head; use one of the BertFor… classes")

    def init_cache(self, batch_size: Any, max_length: Any) -> KVCache:
        """An empty cache: see `BertModel.init_cache`."""
        return self.bert.init_cache(batch_size, max_length)

    def _add_classifier(self, config: BertConfig, outputs: int, **options: Any) -> None:
        rate = config.classifier_dropout
        self.dropout = Dropout(config.hidden_dropout_prob if rate is None else rate)
        stddev = config.initializer_range
        self.classifier = Linear(config.hidden_size, outputs, stddev=stddev, **options)
