"""Validation of model inputs, before anything is dispatched.

JAX does not raise on a bad index: it clamps, wraps or fills. Therefore the values of concrete
inputs are checked here. Under a caller's own `jax.jit` only shapes and dtypes can be checked, and
`layers.Embed` returns NaN for an index out of range.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from minibert.core.checks import (
    Size,
    as_array,
    checked_mask,
    concrete,
    floats,
    indices,
    lengths,
    shaped,
    undeleted,
    whole,
    zeros_and_ones,
)
from minibert.core.types import ArrayLike
from minibert.errors import InputError, shown
from minibert.models.base import PretrainedModel
from minibert.nn.attention import AttentionMask, attention_mask_to_bool
from minibert.nn.cache import KVCache


def known_inputs(model: object, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a tokenizer's arrays, without token types if the model has none."""
    typed = getattr(model, "segments", True)
    return {name: array for name, array in given.items() if typed or name != "token_type_ids"}


def index_limits(model: PretrainedModel) -> dict[str, str]:
    """Returns, for each argument of indices, the field of the config that limits it."""
    segments = getattr(model, "segments", "vocab_size")
    return {
        "input_ids": "vocab_size",
        **({"token_type_ids": segments} if segments else {}),
        "position_ids": model.config.name_of("max_position_embeddings"),
    }


class ModelInputs(NamedTuple):
    """The checked arguments of a model's call.

    Attributes:
        input_ids: `(batch, seq)` integers, or None.
        inputs_embeds: `(batch, seq, embedding_size)` floats, or None.
        token_type_ids: `(batch or 1, seq)` integers, or None.
        position_ids: `(batch or 1, seq)` integers.
        tokens: `(batch, seq)` booleans, False at padding; None without such a mask.
        mask: `(batch or 1, heads or 1, seq or 1, keys)`, booleans or numbers to add to scores, for
            all that a query attends to; None without such a mask.
        head_mask: `(layers, heads)` floats, or None.
        encoder_hidden_states: `(batch, encoder_seq, hidden)` floats, or None.
        encoder_mask: `(batch, 1, 1, encoder_seq)` booleans, or None.
        past: the cache that was passed, or None.
        batch, seq: the number of rows and of new tokens in each.
    """

    input_ids: Any
    inputs_embeds: Any
    token_type_ids: Array | None
    position_ids: Array
    tokens: Array | None
    mask: Array | None
    head_mask: Array | None
    encoder_hidden_states: Array | None
    encoder_mask: Array | None
    past: KVCache | None
    batch: Size
    seq: Size

    @property
    def bidirectional(self) -> AttentionMask | None:
        """The mask of attention to earlier and later tokens: `tokens` or `mask`, for `attend`."""
        return self.mask if self.tokens is None else attention_mask_to_bool(self.tokens)


def model_inputs(
    model: PretrainedModel,
    *,
    input_ids: ArrayLike | None,
    inputs_embeds: ArrayLike | None,
    attention_mask: ArrayLike | None,
    position_ids: ArrayLike | None,
    head_mask: ArrayLike | None,
    token_type_ids: ArrayLike | None = None,
    encoder_hidden_states: ArrayLike | None = None,
    encoder_attention_mask: ArrayLike | None = None,
    past_key_values: KVCache | None = None,
) -> ModelInputs:
    """Checks the arguments of a call against the config of the model.

    Args:
        model: the bare model; its `__call__` describes the other arguments.

    Raises:
        InputError: an argument is of the wrong shape or type, out of range or contradictory.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise InputError("input_ids, inputs_embeds: pass exactly one of the two")
    config = model.config
    longest = config.max_tokens, config.max_tokens_name
    if input_ids is not None:
        input_ids = indices("input_ids", input_ids, config.vocab_size, "vocab_size")
        batch, seq = lengths("input_ids", input_ids, (), *longest)
    else:
        inputs_embeds = floats("inputs_embeds", inputs_embeds)
        batch, seq = lengths("inputs_embeds", inputs_embeds, (config.embedding_size,), *longest)
    past = _cache(config, past_key_values, batch, seq)
    if token_type_ids is not None:
        token_type_ids = _indices(model, "token_type_ids", token_type_ids, batch, seq)
    encoder, encoder_mask = encoder_inputs(
        config, encoder_hidden_states, encoder_attention_mask, batch
    )
    tokens, mask = _attention_mask(config, attention_mask, past, batch, seq)
    return ModelInputs(
        input_ids=input_ids,
        inputs_embeds=inputs_embeds,
        token_type_ids=token_type_ids,
        position_ids=_positions(model, input_ids, position_ids, past, batch, seq),
        tokens=tokens,
        mask=mask,
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
    """Returns the positions passed, else the model's defaults, which continue those in `past`."""
    config = model.config
    if given is not None:
        return _indices(model, "position_ids", given, batch, seq)
    if past is None:
        return model.positions(input_ids, seq=seq)
    if (taken := concrete(past.index)) + seq > config.max_tokens:
        raise InputError(
            f"past_key_values: expected at most {config.max_tokens} tokens in all "
            f"({config.max_tokens_name}), found {taken} in the cache and {seq} new ones"
        )
    return model.positions(input_ids, seq=seq, past=past.index)


def _attention_mask(
    config: Any, given: ArrayLike | None, past: KVCache | None, batch: Size, seq: Size
) -> tuple[Array | None, Array | None]:
    """Returns `tokens` and `mask` of `ModelInputs`, of which at most one is not None."""
    if given is None:
        return None, None
    mask = jnp.asarray(checked_mask("attention_mask", given))
    keys = (seq,) if past is None else (concrete(past.index) + seq, past.length)
    if mask.ndim == 3:
        expected: list[tuple[Size, ...]] = [(batch, seq, count) for count in keys]
        return None, shaped("attention_mask", mask, expected)[:, None]
    if mask.ndim == 4:
        queries = (seq,) if config.causal else (seq, 1)  # one row for all would not be causal
        sizes = (batch, 1), (config.num_attention_heads, 1), queries, keys
        if any(size not in allowed for size, allowed in zip(mask.shape, sizes, strict=True)):
            each = (" or ".join(map(str, dict.fromkeys(allowed))) for allowed in sizes)
            raise InputError(
                f"attention_mask: expected shape ({', '.join(each)}), found {mask.shape}"
            )
        return None, mask
    if mask.shape != (batch, seq):
        why = ", for the new tokens only (the cache stores the mask of earlier ones)"
        square = ", ".join(map(str, (batch, seq, keys[0])))
        raise InputError(
            f"attention_mask: expected shape {(batch, seq)}{'' if past is None else why} or "
            f"({square}), found {mask.shape}"
        )
    return mask, None


def _head_mask(config: Any, factors: ArrayLike | None) -> Array | None:
    if factors is None:
        return None
    heads = (config.num_attention_heads,)
    layers_heads = (len(config.layer_paths), *heads)
    factors = as_array("head_mask", factors)
    if jnp.issubdtype(factors.dtype, jnp.integer) or factors.dtype == bool:
        factors = factors.astype(np.float32)
    factors = shaped("head_mask", floats("head_mask", factors), [heads, layers_heads])
    return jnp.broadcast_to(factors, layers_heads)


def _cache(config: Any, past: object, batch: Size, seq: Size) -> KVCache | None:
    if past is None:
        return None
    if not config.is_decoder:
        raise InputError(
            "past_key_values: only a decoder has a cache, and config.is_decoder is false"
        )
    if not isinstance(past, KVCache):
        raise InputError(
            "past_key_values: expected a KVCache (model.init_cache), found "
            f"{shown(type(past).__name__)}"
        )
    for array in jax.tree.leaves(past):
        undeleted("past_key_values", array)
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
            "past_key_values: contains states of an encoder, but the model has no cross-attention"
        )
    written = concrete(past.index)
    if written + seq > past.length:
        raise InputError(
            f"past_key_values: expected at most {past.length - written} new tokens (capacity "
            f"{past.length}, of which {written} are used), found {seq}"
        )
    return past


def encoder_inputs(
    config: Any, states: ArrayLike | None, mask: ArrayLike | None, batch: Size
) -> tuple[Array | None, Array | None]:
    """Checks an encoder's hidden states, `(batch, encoder_seq, hidden)`, and their padding mask.

    Returns:
        The states, and the mask as booleans `(batch, 1, 1, encoder_seq)`; each None if it was not
        passed.

    Raises:
        InputError: an array has the wrong shape or type, or the model has no cross-attention.
    """
    if states is None:
        if mask is not None:
            raise InputError("encoder_attention_mask: passed without encoder_hidden_states")
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
    arrays: Mapping[str, ArrayLike | None], *, optional: bool = False
) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Merges the batch and choices axes of the arguments of a multiple-choice model.

    Args:
        arrays: the arguments that have both axes, by name; None for those not passed.
        optional: whether the axis of choices may be missing; then nothing is merged.

    Returns:
        `(batch, choices)`, or `(batch,)`; and the arguments with the two axes merged.

    Raises:
        InputError: an argument has too few axes, or sizes of arguments differ.
    """
    name = "inputs_embeds" if arrays["input_ids"] is None else "input_ids"
    if arrays[name] is None:
        raise InputError("input_ids, inputs_embeds: pass exactly one of the two")
    tokens = as_array(name, arrays[name])
    if optional and tokens.ndim == (2 if name == "input_ids" else 3):
        return tokens.shape[:1], dict(arrays)
    if tokens.ndim < 3:
        raise InputError(f"{name}: expected shape (batch, choices, seq, …), found {tokens.shape}")
    first, lead, joined = name, tokens.shape[:2], dict(arrays)
    for name, value in arrays.items():
        if value is not None:
            array = as_array(name, value)
            if array.ndim < 3 or array.shape[:2] != lead:
                raise InputError(
                    f"{name}: expected shape ({lead[0]}, {lead[1]}, …), with the batch and choices "
                    f"of {first}, found {array.shape}"
                )
            joined[name] = array.reshape(lead[0] * lead[1], *array.shape[2:])
    return lead, joined


def choice_indices(mc_token_ids: ArrayLike | None, lead: tuple[int, ...], seq: int) -> Array | None:
    """Checks the index of the token that represents each choice.

    Args:
        mc_token_ids: integers of shape `lead`, at least 0 and less than `seq`; or None.
        lead: `(batch, choices)` or `(batch,)`.
        seq: the length of the choices.

    Raises:
        InputError: the shape or type is wrong, or an index is out of range.
    """
    if mc_token_ids is None:
        return None
    chosen = shaped("mc_token_ids", indices("mc_token_ids", mc_token_ids, seq, "seq"), [lead])
    if chosen.dtype.itemsize < 4:  # too narrow to hold `seq`
        chosen = chosen.astype(jnp.int32)
    # values cannot be checked under `jax.jit`: an invalid index becomes `seq`, which yields NaN
    return jnp.where((chosen >= 0) & (chosen < seq), chosen, seq)


def kept_positions(hidden: Array, logits_to_keep: int | ArrayLike) -> Array:
    """Returns some positions of `(batch, seq, hidden)`.

    Args:
        hidden: the hidden states.
        logits_to_keep: the number of last positions, 0 for all; or the indices of positions,
            `(positions,)`, or of each row's, `(batch, positions)`.

    Raises:
        InputError: `logits_to_keep` is not a number of at least 0, or not indices of positions.
    """
    name, (batch, seq) = "logits_to_keep", hidden.shape[:2]
    if getattr(logits_to_keep, "ndim", isinstance(logits_to_keep, list | tuple)):
        chosen = indices(name, logits_to_keep, seq, "seq")
        if chosen.shape[:-1] not in ((), (batch,)):
            raise InputError(
                f"{name}: expected a number or shape (positions,) or ({batch}, positions), found "
                f"{chosen.shape}"
            )
        if chosen.ndim == 1:
            return hidden.at[:, chosen].get(mode="fill", fill_value=jnp.nan)
        return jnp.take_along_axis(hidden, chosen[:, :, None], axis=1, mode="fill")
    kept = whole(name, logits_to_keep, 0)
    return hidden[:, -kept:]
