"""Execution of a stack of transformer blocks, shared by all families."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Inexact

from minibert.checkpoint.config import Config
from minibert.core.checks import known
from minibert.core.types import Rngs
from minibert.models.inputs import ModelInputs
from minibert.models.outputs import BaseModelOutputWithPastAndCrossAttentions
from minibert.nn.attention import AttentionMask
from minibert.nn.attention_cpu import divisor
from minibert.nn.cache import BlockOutput, KVCache, decoder_mask
from minibert.nn.layers import Linear
from minibert.nn.numerics import common_dtype
from minibert.sharding.mesh import Sharding
from minibert.sharding.placement import by_rows, gathered_module

TOKENS = 1024  # in a group of rows: the hidden states of more do not fit into a CPU's caches


@dataclasses.dataclass(frozen=True)
class Execution:
    """Execution options of a model, which affect time and memory but not its results.

    Attributes:
        remat: whether the backward pass recomputes the activations inside blocks, to save memory.
        sharding: how parameters and computations are distributed over devices.
        row_groups: whether a CPU processes a few rows at a time, so that hidden states stay in its
            caches.
    """

    remat: bool = False
    sharding: Sharding | None = None
    row_groups: bool = False


def state_dtype(embeddings: nnx.Embed, layer: Linear) -> Any:
    """Returns the dtype of hidden states: `embeddings.dtype`, or the wider of the parameters'."""
    stored = embeddings.embedding[...].dtype, layer.kernel[...].dtype
    return embeddings.dtype or common_dtype(*stored)


def with_execution(model: Any, **changes: object) -> Any:
    """Returns a copy of a model with the same arrays and a changed `execution`.

    Args:
        model: any module; submodules that have no `execution` are not changed.
        changes: fields of `Execution`.
    """
    copy = jax.tree.map(lambda leaf: leaf, model)
    modules: list[Any] = [module for _, module in nnx.iter_modules(copy)]
    for module in modules:
        if hasattr(module, "execution"):
            module.execution = dataclasses.replace(module.execution, **changes)
        elif isinstance(module, Linear) and "sharding" in changes:
            module.sharded = changes["sharding"] is not None
    return copy


def run_blocks(
    blocks: Iterable[Callable[..., BlockOutput]],
    hidden: Float[Array, "batch seq hidden"],
    *,
    masks: Sequence[AttentionMask | None],
    head_mask: Inexact[Array, "layers heads"] | None = None,
    encoded: Float[Array, "batch encoder_seq hidden"] | None = None,
    encoder_mask: Bool[Array, "batch 1 1 encoder_seq"] | None = None,
    past: KVCache | None = None,
    rngs: nnx.Rngs | None = None,
    execution: Execution = Execution(),
) -> BaseModelOutputWithPastAndCrossAttentions:
    """Applies blocks one after the other.

    Args:
        blocks: the blocks in order; each takes hidden states, an attention mask, a head mask, the
            encoder's hidden states, their mask, its layer of the cache and random keys.
        hidden: the input of the first block.
        masks: the attention mask of each block, as `attention.attend` takes it.
        head_mask: factors for the attention weights of each layer's heads.
        encoded: hidden states of an encoder.
        encoder_mask: True where these are not padding.
        past: the cache, in which the new tokens are already marked.
        rngs: random keys for dropout.
        execution: execution options.
    """
    if past is not None and encoded is None:
        encoder_mask = past.cross_mask
    run, sharding = _runner(execution), execution.sharding
    done: list[BlockOutput] = []
    states = [hidden if sharding is None else by_rows(sharding, hidden)]
    for number, (block, mask) in enumerate(zip(blocks, masks, strict=True)):
        factors = None if head_mask is None else head_mask[number]
        layer = None if past is None else past.layer(number)
        given = (mask, factors, encoded, encoder_mask, layer, _key(rngs))
        done.append(run(block, states[-1], *given))
        states.append(done[-1].hidden)
    if past is not None:
        layers = [output.past for output in done if output.past is not None]
        past = past.with_layers(layers, hidden.shape[1], encoder_mask)
    cross = tuple(output.cross_weights for output in done if output.cross_weights is not None)
    last = states[-1] if sharding is None else by_rows(sharding, states[-1], last=True)
    return BaseModelOutputWithPastAndCrossAttentions(
        last_hidden_state=last,
        past_key_values=past,
        hidden_states=tuple(states),
        attentions=tuple(output.weights for output in done),
        cross_attentions=cross or None,
    )


def _run(block: Callable[..., BlockOutput], *given: Any) -> BlockOutput:
    """Applies a block; random keys are split inside, so that rematerialisation repeats them."""
    *rest, key = given
    return block(*rest, None if key is None else nnx.Rngs(dropout=key))


def _run_in_groups(block: Callable[..., BlockOutput], hidden: Array, *given: Any) -> BlockOutput:
    """Applies a block; programs for a CPU apply it to a few rows at a time."""
    *arrays, layer, key = given
    if not known(hidden.shape):
        return _run(block, hidden, *given)
    rows = divisor(hidden.shape[0], TOKENS // hidden.shape[1])
    # if the batch has no suitable divisor, groups may be so small that matrix products are slow
    small = rows == hidden.shape[0] or 2 * rows * hidden.shape[1] < TOKENS
    if small or layer is not None or key is not None:
        return _run(block, hidden, *given)
    return jax.lax.platform_dependent(
        block,
        hidden,
        *arrays,
        cpu=functools.partial(_by_groups, rows),
        default=lambda *given: _run(*given, None, None),
    )


def _by_groups(
    rows: int, block: Callable[..., BlockOutput], hidden: Array, *arrays: Any
) -> BlockOutput:
    mask, factors, encoded, encoder_mask = arrays
    batch = hidden.shape[0]
    cut, fixed = {"hidden": hidden}, {}
    named = {"mask": mask, "encoded": encoded, "encoder_mask": encoder_mask}
    for name, array in named.items():
        own = array is not None and array.shape[0] == batch
        (cut if own else fixed)[name] = array

    def run(group: dict[str, Array]) -> BlockOutput:
        now = fixed | group
        here = (now["hidden"], now["mask"], factors, now["encoded"], now["encoder_mask"])
        return _run(block, *here, None, None)

    groups = jax.tree.map(lambda array: array.reshape(-1, rows, *array.shape[1:]), cut)
    done = jax.lax.map(run, groups)
    return jax.tree.map(lambda array: array.reshape(batch, *array.shape[2:]), done)


def _runner(execution: Execution) -> Callable[..., BlockOutput]:
    remat, sharding = execution.remat, execution.sharding
    if sharding is None and not remat:
        return _run_in_groups if execution.row_groups else _run
    run = _run if sharding is None else functools.partial(_run_sharded, sharding)
    if sharding is None or remat:
        return jax.checkpoint(run)
    # a layer's gathered parameters are not stored but gathered again for its backward pass
    return run if sharding.parts == 1 else jax.checkpoint(run, policy=_all_but_moved)


def _run_sharded(sharding: Sharding, block: nnx.Module, *given: Any) -> BlockOutput:
    output = _run(gathered_module(sharding, block), *given)
    return output._replace(hidden=by_rows(sharding, output.hidden))


def _all_but_moved(primitive: Any, *_: object, **__: object) -> bool:
    return primitive.name != "sharding_constraint"


def _key(rngs: Rngs) -> Array | None:
    drawn = isinstance(rngs, nnx.Rngs) and ("dropout" in rngs or "default" in rngs)
    return rngs.dropout() if drawn else None  # without keys, `Dropout` says what is missing


def past_and_mask(
    given: ModelInputs, new_cache: Callable[[], KVCache], use_cache: bool | None, causal: bool
) -> tuple[AttentionMask | None, KVCache | None]:
    """Returns the attention mask of a decoder, and its cache with the new tokens marked.

    Args:
        given: the arguments of the call.
        new_cache: makes an empty cache; called if `use_cache` is set and no cache was passed.
        use_cache: whether to use a cache.
        causal: whether a token attends only to itself and to those before it.
    """
    past = new_cache() if given.past is None and use_cache else given.past
    return decoder_mask(given.batch, given.seq, given.tokens, given.mask, past, causal)


def requested_outputs(
    outputs: BaseModelOutputWithPastAndCrossAttentions,
    config: Config,
    states: bool | None,
    weights: bool | None,
) -> dict[str, Any]:
    """Returns the cache, and the states and weights that the call or else the config requests."""
    states = config.output_hidden_states if states is None else states
    weights = config.output_attentions if weights is None else weights
    return {
        "hidden_states": outputs.hidden_states if states else None,
        "past_key_values": outputs.past_key_values,
        "attentions": outputs.attentions if weights else None,
        "cross_attentions": outputs.cross_attentions if weights else None,
    }
