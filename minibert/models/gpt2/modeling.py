"""GPT-2: the decoder.

Radford et al., "Language Models are Unsupervised Multitask Learners" (2019). Names, nesting and
numbers follow transformers' `modeling_gpt2.py`: a checkpoint's tensor names are this tree's paths.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Bool, Integer

from minibert.models.base import PretrainedModel
from minibert.models.gpt2.blocks import GPT2Block
from minibert.models.gpt2.config import GPT2Config
from minibert.models.inputs import model_inputs
from minibert.models.outputs import BaseModelOutputWithPastAndCrossAttentions
from minibert.models.stack import asked, past_and_mask, run_blocks
from minibert.nn.cache import KVCache
from minibert.nn.layers import Dropout, Embed, LayerNorm


class GPT2PreTrainedModel(PretrainedModel):
    """What every GPT-2 class shares: the facts about its checkpoints."""

    config_class = GPT2Config
    trunk = "transformer"
    rooms = ("wte", "wpe", "h", "ln_f")
    heads = ("lm_head", "score", "classifier", "qa_outputs", "multiple_choice_head")
    lora_targets = ("c_attn",)
    buffers = {
        f"transformer.h.#.{name}": why
        for attention in ("attn", "crossattention")
        for name, why in (
            (f"{attention}.bias", "the causal mask, which the code makes itself"),
            (f"{attention}.masked_bias", "the score of a masked key, which the code has"),
        )
    }
    blocks = "h"
    dimensions = {
        "*attn.c_attn.kernel": (None, 3, "heads"),  # query, key and value
        "*attn.c_attn.bias": (3, "heads"),
        "*crossattention.c_attn.kernel": (None, 2, "heads"),  # key and value
        "*crossattention.c_attn.bias": (2, "heads"),
        "*crossattention.q_attn.kernel": (None, "heads"),
        "*crossattention.q_attn.bias": ("heads",),
        "*attn.c_proj.kernel": ("heads", None),
        "*crossattention.c_proj.kernel": ("heads", None),
        "*mlp.c_fc.kernel": (None, "features"),
        "*mlp.c_fc.bias": ("features",),
        "*mlp.c_proj.kernel": ("features", None),
    }
    config: GPT2Config


class GPT2Model(GPT2PreTrainedModel):
    """The bare decoder.

    Args:
        config: the shape and settings.
        rngs: random keys for fresh weights; None builds shapes only, for a loader to fill.
        dtype: what to compute in; None for the parameters' own dtype.
        param_dtype: what to store parameters in.
    """

    is_trunk = True

    def __init__(
        self,
        config: GPT2Config,
        *,
        rngs: nnx.Rngs | None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
    ):
        options: dict[str, Any] = {"rngs": rngs, "dtype": dtype, "param_dtype": param_dtype}
        hidden, stddev = config.n_embd, config.initializer_range
        self.config = config
        self.wte = Embed(config.vocab_size, hidden, stddev=stddev, **options)
        self.wpe = Embed(config.n_positions, hidden, stddev=stddev, **options)
        self.drop = Dropout(config.embd_pdrop)
        self.gradient_checkpointing, self.sharding, self.grouped = False, None, False
        self.h = nnx.List(GPT2Block(config, layer, **options) for layer in range(config.n_layer))
        self.ln_f = LayerNorm(hidden, epsilon=config.layer_norm_epsilon, **options)

    def init_cache(self, batch_size: Any, max_length: Any) -> KVCache:
        """An empty cache for `batch_size` rows of at most `max_length` tokens, padding included.

        Keys and values are kept in the dtype the model computes in.

        Raises:
            InputError: those are not sizes.
        """
        parts = (self.wte.embedding[...].dtype, self.h[0].attn.c_attn.kernel[...].dtype)
        dtype = self.wte.dtype or jnp.promote_types(*parts)
        return KVCache.empty(self.config, batch_size, max_length, dtype)

    def __call__(
        self,
        input_ids: Any = None,
        past_key_values: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        head_mask: Any = None,
        inputs_embeds: Any = None,
        encoder_hidden_states: Any = None,
        encoder_attention_mask: Any = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Reads a batch; a token attends only to itself and to those before it.

        Args:
            input_ids: `(batch, seq)` word indices; or give `inputs_embeds`.
            past_key_values: what earlier calls left (`init_cache` makes an empty one); the tokens
                given now come after those in it.
            attention_mask: `(batch, seq)`, 1 for a token and 0 for padding, of the tokens given
                now: the cache remembers the earlier ones. Without a cache also
                `(batch, seq, seq)`, 1 where a query (second axis) may look at a key (third): then
                nothing else is masked, not even the future.
            token_type_ids: `(batch, seq)` indices, looked up among the words and added.
            position_ids: `(batch, seq)` or `(1, seq)`; by default they go on from the cache, 0, 1,
                2, …, padding counted. Without a mask and a cache and with `use_cache=False`, here
                or in the config, a position that is not its predecessor's plus one starts a new
                text, whose tokens do not attend to those before it, as in transformers.
            head_mask: `(heads,)` or `(layers, heads)`, a factor for each head's weights.
            inputs_embeds: `(batch, seq, hidden)` in place of the words' embeddings.
            encoder_hidden_states: `(batch, encoder_seq, hidden)` for cross-attention; the cache
                remembers their keys and values, so that later calls need not give them.
            encoder_attention_mask: `(batch, encoder_seq)`, 0 at the encoder's padding.
            use_cache: whether to make a cache, of `n_positions` tokens, where none is given; by
                default none is made. False says too how `position_ids` are read, and by default
                `config.use_cache` says it.
            output_attentions: whether to return attention weights.
            output_hidden_states: whether to return every hidden state.
            rngs: random keys for dropout, needed in training mode only.

        Raises:
            InputError: an argument is of the wrong shape or type, out of range or contradictory.
        """
        given = model_inputs(
            self.config,
            segments="vocab_size",
            decoder=True,
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
        config = self.config
        mask, past = past_and_mask(
            given,
            lambda: self.init_cache(given.batch, config.n_positions),
            use_cache,
            config.causal,
        )
        cached = config.use_cache if use_cache is None else use_cache
        if position_ids is not None and given.mask is None and not cached and past is None:
            mask = mask if mask is None else mask & same_text(given.position_ids)
        words = given.inputs_embeds if input_ids is None else self.wte(given.input_ids)
        hidden = words + self.wpe(given.position_ids)
        if given.token_type_ids is not None:
            hidden = hidden + self.wte(given.token_type_ids)
        done = run_blocks(
            self.h,
            self.drop(hidden, rngs),
            mask=mask,
            head_mask=given.head_mask,
            encoded=given.encoder_hidden_states,
            encoder_mask=given.encoder_mask,
            past=past,
            rngs=rngs,
            remat=self.gradient_checkpointing,
            sharding=self.sharding,
            grouped=self.grouped,
        )
        last = self.ln_f(done.last_hidden_state)
        states = (*(done.hidden_states or ())[:-1], last)
        done = dataclasses.replace(done, last_hidden_state=last, hidden_states=states)
        kept = asked(done, self.config, output_hidden_states, output_attentions)
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=last, **kept)


def same_text(
    position_ids: Integer[Array, "batch seq"],
) -> Bool[Array, "batch 1 seq seq"]:
    """True where two tokens of a row belong to one text, which ends where positions start anew."""
    starts = jnp.diff(position_ids, prepend=position_ids[:, :1] - 1) != 1
    text = jnp.cumsum(starts, axis=1)
    return (text[:, :, None] == text[:, None, :])[:, None]
