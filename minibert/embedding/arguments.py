"""Types of the arguments of `SentenceEncoder`'s methods, and refusals of others."""

from collections.abc import Mapping
from typing import Any, TypedDict

import jax

from minibert.core.types import ArrayLike
from minibert.errors import InputError, shown

# Arguments of sentence-transformers' `encode` that are not supported, and what replaces them.
ELSEWHERE = {
    "chunk_size": "texts are batched by length; set their size with token_budget",
    "pool": "encoding runs in one process",
    "processing_kwargs": "set max_seq_length of the encoder",
    "task": "use encode_query or encode_document",
}


class Settings(TypedDict, total=False):
    """The fields of `SentenceSettings` as arguments; None for those that are not passed."""

    max_seq_length: int | None
    do_lower_case: bool | None
    prompts: Mapping[str, str | None] | None
    default_prompt_name: str | None
    similarity_fn_name: str | None
    truncate_dim: int | None
    extra: Mapping[str, Any] | None


class SearchOptions(TypedDict, total=False):
    """The arguments of `similarity.semantic_search` that have a default."""

    top_k: int
    score_function: str
    query_chunk_size: int
    corpus_chunk_size: int


class EncodeOptions(TypedDict, total=False):
    """The arguments of `SentenceEncoder.encode` on which the type of its result does not depend."""

    precision: str | None
    device: jax.Device | str | None
    normalize_embeddings: bool
    truncate_dim: int | None
    token_budget: int | None
    packing: int | None
    ranges: ArrayLike | None
    show_progress: bool


def device_of(device: object) -> jax.Device:
    """Returns a device of this process, given itself or a name such as `gpu` or `cpu:1`.

    Raises:
        InputError: there is no such device.
    """
    if isinstance(device, jax.Device):
        return device
    kind, colon, number = device.partition(":") if isinstance(device, str) else ("", "", "")
    try:
        if kind and number.isdecimal() == bool(colon):
            return jax.local_devices(backend=kind)[int(number or 0)]
    except (RuntimeError, IndexError):  # there is no such platform, or no device of that number
        pass
    known = ", ".join(f"{one.platform}:{place}" for place, one in enumerate(jax.local_devices()))
    raise InputError(
        f"device: expected a device of JAX or its name, one of {known}; found {shown(device)}"
    )
