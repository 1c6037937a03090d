"""Validation of model inputs, before anything is dispatched.

JAX does not raise on a bad index: it clamps, wraps or fills. So inputs that are concrete are
checked by value here; under a caller's own `jax.jit` only shapes and dtypes can be, and an index
that slips through turns into NaN in `layers.Embed`.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from minibert.core.checks import (
    Size,
    as_array,
    concrete,
    floats,
    indices,
    lengths,
    shaped,
    whole,
    zeros_and_ones,
)
from minibert.core.types import ArrayLike
from minibert.errors import InputError, shown
from minibert.models.base import PretrainedModel
from minibert.nn.attention import attention_mask_to_bool
from minibert.nn.cache import KVCache


def index_limits(model: PretrainedModel) -> dict[str, str]:
    """The field of the config that limits each argument of indices."""
    return {
        "input_ids": "vocab_size",
        "token_type_ids": getattr(model, "segments", "vocab_size"),
        "position_ids": model.config.name_of("max_position_embeddings"),
    }


class ModelInputs(NamedTuple):
    """The arguments of a model's call, checked.

    Attributes:
        input_ids: `(batch, seq)` integers, or None.
        inputs_embeds: `(batch, seq, hidden)` floats, or None.
        token_type_ids: `(batch or 1, seq)` integers, or None.
        position_ids: `(batch or 1, seq)` integers.
        mask: `(batch, 1, seq or 1, seq)` booleans, True where a query may look at a key; or None.
        head_mask: `(layers, heads)` floats, or None.
        encoder_hidden_states: `(batch, encoder_seq, hidden)` floats, or None.
        encoder_mask: `(batch, 1, 1, encoder_seq)` booleans, or None.
        past: the cache given, or None.
        batch, seq: the sizes.
    """

    input_ids: Any
    inputs_embeds: Any
    token_type_ids: Array | None
    position_ids: Array
    mask: Array | None
    head_mask: Array | None
    encoder_hidden_states: Array | None
    encoder_mask: Array | None
    past: KVCache | None
    batch: Size
    seq: Size


def model_inputs(
    model: PretrainedModel,
    *,
    input_ids: ArrayLike | None,
    inputs_embeds: ArrayLike | None,
    attention_mask: ArrayLike | None,
    token_type_ids: ArrayLike | None,
    position_ids: ArrayLike | None,
    head_mask: ArrayLike | None,
    encoder_hidden_states: ArrayLike | None,
    encoder_attention_mask: ArrayLike | None,
    past_key_values: KVCache | None,
) -> ModelInputs:
    """Checks a call's arguments against the model's config; its call says what they are.

    Args:
        model: the bare model.

    Raises:
        InputError: an argument is of the wrong shape or type, out of range or contradictory.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise InputError("input_ids, inputs_embeds: give exactly one of the two")
    config = model.config
    longest = config.max_tokens, config.max_tokens_name
    if input_ids is not None:
        input_ids = indices("input_ids", input_ids, config.vocab_size, "vocab_size")
        batch, seq = lengths("input_ids", input_ids, (), *longest)
    else:
        inputs_embeds = floats("inputs_embeds", inputs_embeds)
        batch, seq = lengths("inputs_embeds", inputs_embeds, (config.hidden_size,), *longest)
    past = _cache(config, past_key_values, batch, seq)
    if token_type_ids is not None:
        token_type_ids = _indices(model, "token_type_ids", token_type_ids, batch, seq)
    encoder, encoder_mask = encoder_inputs(
        config, encoder_hidden_states, encoder_attention_mask, batch
    )
    return ModelInputs(
        input_ids=input_ids,
        inputs_embeds=inputs_embeds,
        token_type_ids=token_type_ids,
        position_ids=_positions(model, input_ids, position_ids, past, batch, seq),
        mask=_attention_mask(attention_mask, past, batch, seq),
        head_mask=_head_mask(config, head_mask),
        encoder_hidden_states=encoder,
        encoder_mask=encoder_mask,
        past=past,
        batch=batch,
        seq=seq,
    )


def _indices(model: PretrainedModel, name: str, given: ArrayLike, batch: Size, seq: Size) -> Array:
    limit = index_limits(model)[name]
    found = indices(name, given, getattr(model.config, limit), limit)
    return shaped(name, found, [(batch, seq), (1, seq)])


def _positions(
    model: PretrainedModel,
    input_ids: Array | None,
    given: ArrayLike | None,
    past: KVCache | None,
    batch: Size,
    seq: Size,
) -> Array:
    """The positions given; else the model's own, which go on from the cache."""
    config = model.config
    if given is not None:
        return _indices(model, "position_ids", given, batch, seq)
    if past is None:
        return model.positions(input_ids, seq=seq)
    if (taken := concrete(past.index)) + seq > config.max_tokens:
        raise InputError(
            f"past_key_values: {taken} tokens and {seq} more; expected at most "
            f"{config.max_tokens} ({config.max_tokens_name})"
        )
    return model.positions(input_ids, seq=seq, past=past.index)


def _attention_mask(
    mask: ArrayLike | None, past: KVCache | None, batch: Size, seq: Size
) -> Array | None:
    if mask is None:
        return None
    mask = zeros_and_ones("attention_mask", mask)
    if past is not None and mask.shape != (batch, seq):
        raise InputError(
            f"attention_mask: expected shape {(batch, seq)}, of the tokens given now (the cache "
            f"remembers those before them), found {mask.shape}"
        )
    shaped("attention_mask", mask, [(batch, seq), (batch, seq, seq)])
    return attention_mask_to_bool(mask)


def _head_mask(config: Any, factors: ArrayLike | None) -> Array | None:
    if factors is None:
        return None
    heads = (config.num_attention_heads,)
    layers_heads = (config.num_hidden_layers, *heads)
    factors = shaped("head_mask", floats("head_mask", factors), [heads, layers_heads])
    return jnp.broadcast_to(factors, layers_heads)


def _cache(config: Any, past: object, batch: Size, seq: Size) -> KVCache | None:
    if past is None:
        return None
    if not config.is_decoder:
        raise InputError("past_key_values: only a decoder has a past, and config.is_decoder is off")
    if not isinstance(past, KVCache):
        raise InputError(
            "past_key_values: expected a KVCache (model.init_cache), found "
            f"{shown(type(past).__name__)}"
        )
    heads = config.num_attention_heads
    shape = (batch, heads, past.length, config.hidden_size // heads)
    layers = config.num_hidden_layers
    found = {array.shape for array in (*past.keys, *past.values)}
    if len(past.keys) != layers or found != {shape}:
        raise InputError(
            f"past_key_values: expected {layers} layers of shape {shape}, found {len(past.keys)} "
            f"of {' and '.join(map(str, sorted(found)))}"
        )
    crossed = [array.shape for array in (*(past.cross_keys or ()), *(past.cross_values or ()))]
    if past.mask.shape[0] != batch or any(
        (s[0], s[1], s[3]) != (batch, heads, shape[3]) for s in crossed
    ):
        raise InputError(f"past_key_values: expected {batch} rows in all of its arrays")
    if crossed and not config.add_cross_attention:
        raise InputError(
            "past_key_values: remembers an encoder, and the model has no cross-attention"
        )
    written = concrete(past.index)
    if written + seq > past.length:
        raise InputError(
            f"past_key_values: room for {past.length} tokens, {written} taken; expected at most "
            f"{past.length - written} more, found {seq}"
        )
    return past


def encoder_inputs(
    config: Any, states: ArrayLike | None, mask: ArrayLike | None, batch: Size
) -> tuple[Array | None, Array | None]:
    """Checks an encoder's states, `(batch, encoder_seq, hidden)`, and their padding mask.

    Returns:
        The states, and the mask as booleans `(batch, 1, 1, encoder_seq)`; None for what is not
        given.

    Raises:
        InputError: they are of the wrong shape or type, or the model has no cross-attention.
    """
    if states is None:
        if mask is not None:
            raise InputError("encoder_attention_mask: given without encoder_hidden_states")
        return None, None
    if not config.add_cross_attention:
        raise InputError(
            "encoder_hidden_states: the model has no cross-attention (config.add_cross_attention)"
        )
    states = floats("encoder_hidden_states", states)
    hidden = config.hidden_size
    if states.ndim != 3 or (states.shape[0], states.shape[2]) != (batch, hidden):
        raise InputError(
            f"encoder_hidden_states: expected shape ({batch}, encoder_seq, {hidden}), found "
            f"{states.shape}"
        )
    if not states.shape[1]:
        raise InputError("encoder_hidden_states: 0 positions; expected at least 1")
    if mask is not None:
        mask = zeros_and_ones("encoder_attention_mask", mask)
        shaped("encoder_attention_mask", mask, [states.shape[:2]])
        mask = attention_mask_to_bool(mask)
    return states, mask


def joined_choices(
    *, optional: bool = False, **arrays: ArrayLike | None
) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Joins the batch and choices axes of the arguments of a multiple-choice model.

    Args:
        optional: whether there may be no axis of choices; then nothing is joined.
        arrays: the arguments that have both axes, by name; None for those not given.

    Returns:
        `(batch, choices)`, or `(batch,)`; and the arguments with the two axes made one.

    Raises:
        InputError: an argument is too short of axes, or does not agree with the others.
    """
    name = "inputs_embeds" if arrays["input_ids"] is None else "input_ids"
    if arrays[name] is None:
        raise InputError("input_ids, inputs_embeds: give exactly one of the two")
    words = as_array(name, arrays[name])
    if optional and words.ndim == (2 if name == "input_ids" else 3):
        return words.shape[:1], arrays
    if words.ndim < 3:
        raise InputError(f"{name}: expected shape (batch, choices, seq, …), found {words.shape}")
    lead, joined = words.shape[:2], dict(arrays)
    for name, value in arrays.items():
        if value is not None:
            array = as_array(name, value)
            if array.ndim < 3 or array.shape[:2] != lead:
                raise InputError(
                    f"{name}: expected {lead[0]} rows of {lead[1]} choices first, as the words "
                    f"have; found shape {array.shape}"
                )
            joined[name] = array.reshape(lead[0] * lead[1], *array.shape[2:])
    return lead, joined


def choice_indices(mc_token_ids: ArrayLike | None, lead: tuple[int, ...], seq: int) -> Array | None:
    """Checks which token stands for each choice: integers of shape `lead`, below `seq`.

    Raises:
        InputError: they are not.
    """
    if mc_token_ids is None:
        return None
    chosen = shaped("mc_token_ids", indices("mc_token_ids", mc_token_ids, seq, "seq"), [lead])
    if chosen.dtype.itemsize < 4:  # too narrow to hold `seq`
        chosen = chosen.astype(jnp.int32)
    # while it is traced, a negative one would count from the end: past the end it gives NaN
    return jnp.where((chosen >= 0) & (chosen < seq), chosen, jnp.int32(seq))


def kept_positions(hidden: Array, logits_to_keep: int) -> Array:
    """The last `logits_to_keep` positions of `(batch, seq, hidden)`; all of them for 0.

    Raises:
        InputError: it is not a number of positions.
    """
    kept = whole("logits_to_keep", logits_to_keep, 0)
    return hidden[:, -kept:]
