"""Analyses of a model: pooled states by layer, similarities, attention, logit lens, ablation.

Arguments and results are arrays. The axes are those of `attention.py`, preceded by `layers`; there
is one more hidden state than layers: the first is the output of the embeddings.
"""

import collections
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.special import softmax

from minibert.core.checks import as_array, check_choice, shaped, whole
from minibert.core.fields import NON_NEGATIVE
from minibert.core.types import AnyArray, ArrayLike
from minibert.embedding.similarity import cosine, pairwise_cosine, similarity
from minibert.errors import InputError, TextNotFiniteError
from minibert.inspection.capture import captured
from minibert.models.base import PretrainedModel
from minibert.models.compilation import compiled
from minibert.models.inputs import known_inputs
from minibert.nn.numerics import cause, rows_not_finite
from minibert.nn.pooling import POOLINGS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def pool_layers(
    hidden_states: Sequence[AnyArray] | AnyArray, attention_mask: ArrayLike, pooling: str = "mean"
) -> np.ndarray:
    """Returns a vector for each text and layer, `(layers + 1, batch, hidden)`.

    Args:
        hidden_states: `(batch, seq, hidden)` each, the embeddings first.
        attention_mask: `(batch, seq)`, 1 for a token and 0 for padding.
        pooling: one of `pooling.POOLINGS`: mean, cls, max, …

    Raises:
        InputError: if there is no such pooling, or shapes do not match.
    """
    check_choice("pooling", pooling, POOLINGS)
    mask = jnp.asarray(as_array("attention_mask", attention_mask)).astype(bool)
    for state in hidden_states:
        if state.shape[:2] != mask.shape:
            raise InputError(
                f"attention_mask: expected {state.shape[:2]}, as the states, found {mask.shape}"
            )
    pooled = [POOLINGS[pooling](jnp.asarray(_wide(state)), mask) for state in hidden_states]
    if not pooled:
        raise InputError("hidden_states: expected at least one, found none")
    return np.stack(pooled)


def embed_by_layer(
    model: PretrainedModel,
    inputs: Mapping[str, Any],
    pooling: str = "mean",
    *,
    batch_size: int = 32,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns the vectors of many texts by layer.

    Args:
        model: a model without a head, in evaluation mode.
        inputs: its arguments by name, `(texts, seq)` each, as a tokenizer returns them with
            padding; `attention_mask` is required.
        pooling: as in `pool_layers`.
        batch_size: the number of texts computed at once.

    Returns:
        Vectors `(layers + 1, texts, hidden)`; and pooler outputs `(texts, hidden)`, or None.

    Raises:
        InputError: if there are no texts, or no mask.
        TextNotFiniteError: if the vectors of a text are NaN or infinite.
    """
    arrays = {name: np.asarray(as_array(name, array)) for name, array in inputs.items()}
    if "attention_mask" not in arrays or not len(arrays["attention_mask"]):
        raise InputError(f"inputs: expected texts with attention_mask, found {sorted(arrays)}")
    size = whole("batch_size", batch_size, 1)
    fast = compiled(model)
    layers, pooled = [], []
    for start in range(0, len(arrays["attention_mask"]), size):
        batch = {name: array[start : start + size] for name, array in arrays.items()}
        outputs = fast(**known_inputs(model, batch), output_hidden_states=True)
        layers.append(pool_layers(outputs.hidden_states, batch["attention_mask"], pooling))
        if wrong := rows_not_finite(layers[-1].swapaxes(0, 1)):
            why = f"one of its vectors is NaN or infinite: {cause(model)}"
            raise TextNotFiniteError([start + row for row in wrong], why)
        if (found := outputs.get("pooler_output")) is not None:
            pooled.append(_wide(found))
    return np.concatenate(layers, axis=1), np.concatenate(pooled) if pooled else None


def softmax_similarity(one: ArrayLike, other: ArrayLike, scale: float | int = 1.0) -> np.ndarray:
    """Returns the softmax of the dot products of two sets of vectors, `(first, second)`.

    Args:
        one, other: vectors, one in each row.
        scale: factor of all vectors; larger values give the most similar vector more weight.
    """
    scale = NON_NEGATIVE.check("scale", scale, InputError)
    left = np.asarray(as_array("one", one), np.float64) * scale
    right = np.asarray(as_array("other", other), np.float64) * scale
    return softmax(left @ right.T, axis=-1)


def similarity_matrices(embeddings: ArrayLike, scale: float | int = 10) -> dict[str, np.ndarray]:
    """Returns three matrices of the similarities between tokens.

    Args:
        embeddings: `(tokens, features)`.
        scale: the scale of the third matrix; see `softmax_similarity`.
    """
    vectors = _wide(embeddings)
    return {
        "cosine": cosine(vectors, vectors),
        "softmax": softmax_similarity(vectors, vectors),
        f"softmax × {scale:g}": softmax_similarity(vectors, vectors, scale),
    }


def static_to_layers(pooled: np.ndarray) -> np.ndarray:
    """Returns the cosine similarity of each layer's vectors to the embeddings, `(layers, texts)`.

    Args:
        pooled: the result of `pool_layers`, embeddings first.
    """
    return np.stack([pairwise_cosine(pooled[0], layer) for layer in pooled[1:]])


def layer_to_layer(pooled: np.ndarray) -> np.ndarray:
    """Returns the cosine similarity of vectors before and after each layer, `(layers, texts)`."""
    return np.stack([pairwise_cosine(*pair) for pair in itertools.pairwise(pooled)])


def describe(values: ArrayLike) -> dict[str, float]:
    """Returns count, mean, standard deviation (n − 1), min, quartiles and max of numbers."""
    flat = np.asarray(as_array("values", values), np.float64).ravel()
    if not flat.size:
        raise InputError("values: expected at least one, found none")
    names = ("min", "25%", "50%", "75%", "max")
    quartiles = np.quantile(flat, [0, 0.25, 0.5, 0.75, 1]).tolist()
    return {
        "count": float(flat.size),
        "mean": float(flat.mean()),
        "std": float(flat.std(ddof=1)) if flat.size > 1 else np.nan,
        **dict(zip(names, quartiles, strict=True)),
    }


def token_through_layers(
    hidden_states: Sequence[AnyArray], row: int, position: int
) -> dict[str, np.ndarray]:
    """Returns how the state of a token changes from layer to layer, `(layers + 1,)` each.

    Args:
        hidden_states: `(batch, seq, hidden)` each.
        row: the index of the text.
        position: the position of the token.

    Returns:
        `to_first` and `to_last`: cosine similarity to its embedding and its last state; `norm`: the
        norm of each state.
    """
    batch, seq = hidden_states[0].shape[:2]
    row, position = whole("row", row, 0, batch - 1), whole("position", position, 0, seq - 1)
    states = np.stack([_wide(state)[row, position] for state in hidden_states])
    return {
        "to_first": cosine(states, states[:1])[:, 0],
        "to_last": cosine(states, states[-1:])[:, 0],
        "norm": np.linalg.norm(states, axis=1),
    }


def attention_statistics(
    attentions: Sequence[AnyArray], attention_mask: ArrayLike
) -> dict[str, np.ndarray]:
    """Returns attention statistics of each head over the tokens of all texts, `(layers, heads)`.

    Args:
        attentions: `(batch, heads, seq, seq)` of each layer, padding on either side.
        attention_mask: `(batch, seq)`.

    Returns:
        `entropy`: mean entropy in nats, 0 for attention to one token, ln n for equal attention to n
        tokens; `distance`: mean distance in tokens; `itself`, `previous`, `next`, `first`: mean
        weight of these positions.

    Raises:
        InputError: if there are no weights or tokens, or shapes do not match.
    """
    mask = np.asarray(as_array("attention_mask", attention_mask)).astype(bool)
    given = () if attentions is None else attentions
    layers = [_wide(layer).astype(np.float64) for layer in given]
    if not layers or not mask.any():
        raise InputError(
            f"attentions: expected weights and tokens, found {len(layers)} layers and {mask.sum()} "
            "tokens"
        )
    batch, _, seq, _ = shaped(
        "attentions", layers[0], [layers[0].shape[:2] + mask.shape[1:] * 2]
    ).shape
    shaped("attention_mask", mask, [(batch, seq)])
    apart = np.arange(seq)[:, None] - np.arange(seq)
    shares = {
        "distance": np.abs(apart),
        "itself": apart == 0,
        "previous": apart == 1,
        "next": apart == -1,
        "first": (np.arange(seq) == mask.argmax(axis=1)[:, None])[:, None, None, :],
    }
    found = collections.defaultdict(list)
    for weights in layers:
        logs = np.log(weights, where=weights > 0, out=np.zeros_like(weights))
        for name, factors in {"entropy": -logs, **shares}.items():
            real = (weights * factors).sum(-1) * mask[:, None, :]
            found[name].append(real.sum((0, 2)) / mask.sum())
    return {name: np.stack(values) for name, values in found.items()}


def last_block(model: PretrainedModel) -> str:
    """Returns the path of a model's last block."""
    return model.block_paths[-1]


def logit_lens(model: PretrainedModel, *args: Any, **kwargs: Any) -> Array:
    """Returns a model's logits as if it ended after each layer, `(layers + 1, *logits)`.

    Each hidden state replaces the output of the last block, and is then processed by the modules
    that follow the blocks, a norm or a head (nostalgebraist, "interpreting GPT", 2020).

    Args:
        model: a model whose outputs have `logits`.
        *args, **kwargs: its arguments.

    Raises:
        InputError: if the outputs have no logits.
    """
    kwargs.pop("output_hidden_states", None)
    blocks = model.block_paths
    inner = captured(model, blocks, *args, output_hidden_states=True, **kwargs)
    if "logits" not in inner.outputs:
        raise InputError(f"model: expected one with logits, found {type(model).__name__}")
    states = [inner.outputs["hidden_states"][0], *(inner[block] for block in blocks)]
    return jnp.stack(
        [
            captured(model, (), *args, replace={blocks[-1]: state}, **kwargs).outputs["logits"]
            for state in states
        ]
    )


def knocked_out(
    model: PretrainedModel, score: Callable[[Any], Array], *args: Any, **kwargs: Any
) -> np.ndarray:
    """Returns how much a score drops when each head is ablated, `(layers, heads)`.

    One program is compiled for all heads.

    Args:
        model: the model, called with a `head_mask`.
        score: a function from the model's outputs to a number.
        *args, **kwargs: the model's arguments, without `head_mask`.

    Raises:
        InputError: if the score is not a scalar, or `head_mask` is passed.
    """
    if "head_mask" in kwargs:
        raise InputError("head_mask: expected none, as knocked_out uses it to ablate heads")
    layers, heads = len(model.block_paths), model.config.num_attention_heads

    @jax.jit
    def scored(model: PretrainedModel, factors: Array) -> Array:
        outputs = model(*args, **kwargs, head_mask=factors)
        return shaped("score", jnp.asarray(score(outputs)), [()])

    full = float(scored(model, jnp.ones((layers, heads))))
    without_one = 1 - np.eye(layers * heads, dtype=np.float32).reshape(-1, layers, heads)
    drops = [full - float(scored(model, factors)) for factors in without_one]
    return np.reshape(drops, (layers, heads))


def nearest_words(
    table: ArrayLike, vector: ArrayLike, tokenizer: "PreTrainedTokenizerBase", count: int = 5
) -> Sequence[tuple[str, float]]:
    """Returns the tokens whose embeddings are most similar to a vector, with cosines.

    Args:
        table: the embedding matrix `(vocab, features)`, such as
            `model.embeddings.word_embeddings.embedding[...]`.
        vector: `(features,)`.
        tokenizer: the tokenizer, for the names of tokens.
        count: the number of tokens.

    Raises:
        InputError: if the vector or the embeddings are not finite, or their widths differ.
    """
    alike = similarity(vector, table)[0]
    best = np.argsort(-alike)[: whole("count", count, 1)]
    names = tokenizer.convert_ids_to_tokens(best.tolist())
    return list(zip(names, alike[best].tolist(), strict=True))


def _wide(array: ArrayLike) -> np.ndarray:
    """Returns an array in float32, or wider."""
    found = np.asarray(as_array("array", array))
    return found.astype(np.float32) if found.dtype.itemsize < 4 else found
