"""The run through a stack of blocks, which both families share: states, weights and cache kept."""

from collections.abc import Callable, Iterable
from typing import Any

from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Inexact

from minibert.cache import BlockOutput, KVCache, decoder_mask
from minibert.errors import InputError
from minibert.inputs import ModelInputs
from minibert.outputs import BaseModelOutputWithPastAndCrossAttentions


def run_blocks(
    blocks: Iterable[Callable[..., BlockOutput]],
    hidden: Float[Array, "batch seq hidden"],
    *,
    mask: Bool[Array, "#batch 1 #seq keys"] | None = None,
    head_mask: Inexact[Array, "layers heads"] | None = None,
    encoded: Float[Array, "batch encoder_seq hidden"] | None = None,
    encoder_mask: Bool[Array, "batch 1 1 encoder_seq"] | None = None,
    past: KVCache | None = None,
    rngs: nnx.Rngs | None = None,
) -> BaseModelOutputWithPastAndCrossAttentions:
    """Applies blocks one after the other.

    Args:
        blocks: each takes hidden states, mask, its heads' factors, the encoder's states, their
            mask, its part of the cache and random keys.
        hidden: what goes in.
        mask: where a query may look.
        head_mask: a factor for each layer's heads' weights.
        encoded: an encoder's states.
        encoder_mask: which of them are not padding.
        past: the cache, the new tokens marked in it.
        rngs: random keys for dropout.
    """
    if past is not None and encoded is None:
        encoder_mask = past.cross_mask
    done: list[BlockOutput] = []
    states = [hidden]
    for number, block in enumerate(blocks):
        factors = None if head_mask is None else head_mask[number]
        layer = None if past is None else past.layer(number)
        done.append(block(states[-1], mask, factors, encoded, encoder_mask, layer, rngs))
        states.append(done[-1].hidden)
    if past is not None:
        layers = [output.past for output in done if output.past is not None]
        past = past.with_layers(layers, hidden.shape[1], encoder_mask)
    cross = tuple(output.cross_weights for output in done if output.cross_weights is not None)
    return BaseModelOutputWithPastAndCrossAttentions(
        last_hidden_state=states[-1],
        past_key_values=past,
        hidden_states=tuple(states),
        attentions=tuple(output.weights for output in done),
        cross_attentions=cross or None,
    )


def past_and_mask(
    given: ModelInputs, new_cache: Callable[[], KVCache], use_cache: Any
) -> tuple[Bool[Array, "#batch 1 seq keys"], KVCache | None]:
    """A decoder's mask, and its cache with the new tokens marked.

    Args:
        given: the call's arguments.
        new_cache: makes a cache, if one is wanted and none was given.
        use_cache: whether one is wanted.

    Raises:
        InputError: a cache is wanted beside a mask that has a row for each query.
    """
    past = given.past
    if past is None and use_cache:
        if given.mask is not None and given.mask.shape[2] > 1:
            raise InputError("attention_mask: with a cache, expected shape (batch, seq)")
        past = new_cache()
    return decoder_mask(given.batch, given.seq, given.mask, past)


def asked(outputs: Any, config: Any, states: bool | None, weights: bool | None) -> dict[str, Any]:
    """Which of a run's records a call returns: those it asks for, else those its config does."""
    states = config.output_hidden_states if states is None else states
    weights = config.output_attentions if weights is None else weights
    return {
        "hidden_states": outputs.hidden_states if states else None,
        "past_key_values": outputs.past_key_values,
        "attentions": outputs.attentions if weights else None,
        "cross_attentions": outputs.cross_attentions if weights else None,
    }
