"""Validation of model inputs, before anything is dispatched.

JAX does not raise on a bad index: it clamps, wraps or fills. So inputs that are concrete are
checked by value here; under a caller's own `jax.jit` only shapes and dtypes can be, and an index
that slips through turns into NaN in `layers.Embed`.
"""

from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import Array

from minibert.attention import attention_mask_to_bool
from minibert.errors import InputError, shown


class EncoderInputs(NamedTuple):
    """The arguments of an encoder's call, checked.

    Attributes:
        input_ids: `(batch, seq)` integers, or None.
        inputs_embeds: `(batch, seq, hidden)` floats, or None.
        token_type_ids: `(batch or 1, seq)` integers, or None.
        position_ids: `(batch or 1, seq)` integers, or None.
        mask: `(batch, 1, seq or 1, seq)` booleans, True where a query may look at a key; or None.
        head_mask: `(layers, heads)` floats, or None.
    """

    input_ids: Any
    inputs_embeds: Any
    token_type_ids: Array | None
    position_ids: Array | None
    mask: Array | None
    head_mask: Array | None


def encoder_inputs(
    config: Any,
    *,
    input_ids: Any,
    inputs_embeds: Any,
    attention_mask: Any,
    token_type_ids: Any,
    position_ids: Any,
    head_mask: Any,
) -> EncoderInputs:
    """Checks an encoder's arguments against its config; `BertModel.__call__` says what they are.

    Raises:
        InputError: an argument is of the wrong shape or type, out of range or contradictory.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise InputError("input_ids, inputs_embeds: give exactly one of the two")
    if input_ids is not None:
        input_ids = _indices("input_ids", input_ids, config.vocab_size, "vocab_size")
        batch, seq = _lengths("input_ids", input_ids, (), config.max_position_embeddings)
    else:
        inputs_embeds = _floats("inputs_embeds", inputs_embeds)
        batch, seq = _lengths(
            "inputs_embeds", inputs_embeds, (config.hidden_size,), config.max_position_embeddings
        )
    rows: list[tuple[int, ...]] = [(batch, seq), (1, seq)]
    if token_type_ids is not None:
        limit = config.type_vocab_size
        token_type_ids = _indices("token_type_ids", token_type_ids, limit, "type_vocab_size")
        _shaped("token_type_ids", token_type_ids, rows)
    if position_ids is not None:
        limit = config.max_position_embeddings
        position_ids = _indices("position_ids", position_ids, limit, "max_position_embeddings")
        _shaped("position_ids", position_ids, rows)
    if attention_mask is not None:
        attention_mask = _mask("attention_mask", attention_mask)
        _shaped("attention_mask", attention_mask, [(batch, seq), (batch, seq, seq)])
        attention_mask = attention_mask_to_bool(attention_mask)
    if head_mask is not None:
        heads = (config.num_attention_heads,)
        layers_heads = (config.num_hidden_layers, *heads)
        head_mask = _shaped("head_mask", _floats("head_mask", head_mask), [heads, layers_heads])
        head_mask = jnp.broadcast_to(head_mask, layers_heads)
    return EncoderInputs(
        input_ids=input_ids,
        inputs_embeds=inputs_embeds,
        token_type_ids=token_type_ids,
        position_ids=position_ids,
        mask=attention_mask,
        head_mask=head_mask,
    )


def joined_choices(**arrays: Any) -> tuple[tuple[int, int], dict[str, Any]]:
    """Joins the batch and choices axes of the arguments of a multiple-choice model.

    Args:
        arrays: the arguments that have both axes, by name; None for those not given.

    Returns:
        `(batch, choices)`, and the arguments with the two axes made one.

    Raises:
        InputError: an argument is too short of axes, or does not agree with the others.
    """
    name = "inputs_embeds" if arrays["input_ids"] is None else "input_ids"
    if arrays[name] is None:
        raise InputError("input_ids, inputs_embeds: give exactly one of the two")
    words = _as_array(name, arrays[name])
    if words.ndim < 3:
        raise InputError(f"{name}: expected shape (batch, choices, seq, …), found {words.shape}")
    lead, joined = words.shape[:2], dict(arrays)
    for name, value in arrays.items():
        if value is not None:
            array = _as_array(name, value)
            if array.ndim < 3 or array.shape[:2] != lead:
                raise InputError(
                    f"{name}: expected {lead[0]} rows of {lead[1]} choices first, as the words "
                    f"have; found shape {array.shape}"
                )
            joined[name] = array.reshape(lead[0] * lead[1], *array.shape[2:])
    return lead, joined


def _indices(name: str, ids: Any, limit: int, limit_name: str) -> Array:
    ids = _as_array(name, ids)
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise InputError(f"{name}: expected integers, found {ids.dtype}")
    for value in _extremes(ids):
        if not 0 <= int(value) < limit:
            raise InputError(
                f"{name}: {value} is out of range; expected 0 to {limit - 1} ({limit_name} {limit})"
            )
    return jnp.asarray(ids)


def _mask(name: str, mask: Any) -> Array:
    mask = _as_array(name, mask)
    if not (jnp.issubdtype(mask.dtype, jnp.integer) or mask.dtype == bool):
        raise InputError(
            f"{name}: expected integers or booleans, 1 to keep and 0 to mask; found {mask.dtype}"
        )
    for value in _extremes(mask):
        if value not in (0, 1):
            raise InputError(f"{name}: expected only 0 and 1, found {value}")
    return jnp.asarray(mask)


def _floats(name: str, values: Any) -> Array:
    values = _as_array(name, values)
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise InputError(f"{name}: expected floating-point numbers, found {values.dtype}")
    return jnp.asarray(values)


def _lengths(name: str, array: Array, tail: tuple[int, ...], longest: int) -> tuple[int, int]:
    if array.ndim != 2 + len(tail) or array.shape[2:] != tail:
        expected = ", ".join(["batch", "seq", *map(str, tail)])
        raise InputError(f"{name}: expected shape ({expected}), found {array.shape}")
    batch, seq = array.shape[:2]
    if not 1 <= seq <= longest:
        raise InputError(
            f"{name}: {seq} positions; expected 1 to {longest} (max_position_embeddings)"
        )
    return batch, seq


def _shaped(name: str, array: Array, shapes: list[tuple[int, ...]]) -> Array:
    if array.shape not in shapes:
        expected = " or ".join(map(str, dict.fromkeys(shapes)))
        raise InputError(f"{name}: expected shape {expected}, found {array.shape}")
    return array


def _extremes(array: Any) -> tuple[Any, ...]:
    if isinstance(array, jax.core.Tracer) or not array.size or array.dtype == bool:
        return ()
    values = np.asarray(array)
    return values.min(), values.max()


def _as_array(name: str, value: Any) -> Any:
    if isinstance(value, jax.Array):
        return value
    found = type(value).__name__
    try:
        array = np.asarray(value)
    except Exception as reason:  # whatever the object's own conversion raises
        why = shown(str(reason))
        raise InputError(f"{name}: expected an array, found {found} ({why})") from None
    if array.dtype.kind not in "biufV":  # V: bfloat16 and its like
        raise InputError(f"{name}: expected an array of numbers, found {found} of {array.dtype}")
    return array
