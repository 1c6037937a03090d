"""Loading of a model: a tree of shapes, matched with the tensors of a checkpoint and filled."""

import os
from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from minibert.checkpoint.agreement import check_config
from minibert.checkpoint.config import Config
from minibert.checkpoint.files import GENERATION, unchanged
from minibert.checkpoint.hub import AnyPath, HubOptions, model_folder
from minibert.checkpoint.leaves import leaves
from minibert.checkpoint.matching import LoadingInfo, Matching
from minibert.checkpoint.sources import open_source
from minibert.checkpoint.tensors import TensorSource
from minibert.core.strict_json import read_json, read_object_if_there
from minibert.core.types import Dtype, Rngs
from minibert.errors import ConfigError, InputError, shown
from minibert.sharding.mesh import Sharding, checked_sharding

Model = TypeVar("Model")


def load_pretrained(
    choose: Callable[[dict[str, Any], TensorSource, str], type[Model]],
    source: AnyPath,
    *,
    opened: Callable[..., TensorSource] | None = None,
    num_labels: int | None = None,
    id2label: Mapping[int, str] | None = None,
    config: Config | None = None,
    dtype: Dtype = None,
    param_dtype: Dtype = None,
    new_head: bool = False,
    rngs: Rngs = None,
    allow_pickle: bool = False,
    sharding: Sharding | None = None,
    fields: Mapping[str, object] = MappingProxyType({}),
    **where: Unpack[HubOptions],
) -> tuple[Model, LoadingInfo]:
    """Finds a checkpoint, opens it once, and loads it into the class that `choose` returns.

    Args:
        choose: maps the contents of config.json, the tensors and the folder to the class.
        source: a folder, or a repository of the Hub.
        opened: called instead of `open_source`.
        where: other arguments of `hub.model_folder`.

    Other arguments and the errors raised are those of `PretrainedModel.from_pretrained`.
    """
    folder = model_folder(source, allow_pickle=allow_pickle, **where)
    labels = {"num_labels": num_labels, "id2label": id2label}
    wanted = {name: value for name, value in labels.items() if value is not None}
    changes, named = {**wanted, **fields}, set(fields)
    with unchanged(folder):
        path = os.path.join(folder, "config.json")
        data = read_json(path)
        generation = read_object_if_there(os.path.join(folder, GENERATION))
        with (opened or open_source)(folder, allow_pickle=allow_pickle) as tensors:
            cls: Any = choose(data if isinstance(data, dict) else {}, tensors, folder)
            if config is None:
                config = cls.config_class.from_dict(data, path, generation)
            else:
                check_config(config, cls)
                named.add("num_hidden_layers")
            return assemble(
                cls,
                config.overridden(changes) if changes else config,
                tensors,
                folder,
                dtype=dtype,
                param_dtype=param_dtype,
                new_head=new_head,
                rngs=rngs,
                relabelled=bool(wanted),
                fewer_layers=config.name_of("num_hidden_layers") in map(config.name_of, named),
                sharding=sharding,
            )


def assemble(
    cls: type[Any],
    config: Config,
    source: TensorSource,
    where: str,
    *,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike | None = None,
    new_head: bool = False,
    rngs: nnx.Rngs | None = None,
    relabelled: bool = False,
    fewer_layers: bool = False,
    sharding: Sharding | None = None,
) -> tuple[Any, LoadingInfo]:
    """Builds a tree of shapes, matches it with the tensors of `source`, and fills it.

    Args:
        cls: the class of the model.
        config: the config of the model.
        source: the tensors.
        where: the folder, for messages.
        relabelled: whether the caller overrides the labels of the checkpoint.
        fewer_layers: whether the caller overrides the number of layers, so that the checkpoint may
            have more.

    Other arguments and the errors raised are those of `PretrainedModel.from_pretrained`.
    """
    sharding = checked_sharding(sharding)
    dtype, param_dtype = _floating("dtype", dtype), _floating("param_dtype", param_dtype)
    if rngs is not None and not isinstance(rngs, nnx.Rngs):
        raise InputError(f"rngs: expected nnx.Rngs(0), found {shown(rngs)}")
    kept = param_dtype or _prevailing_dtype(source)
    model = shapes_only(cls, config, source, where, dtype=dtype, param_dtype=kept)
    matching = Matching(
        model, source, new_head=new_head, relabelled=relabelled, fewer_layers=fewer_layers
    )
    matching.check(where)
    if sharding is not None:
        sharding = sharding.for_model(model)
    if matching.fresh:
        if rngs is None:
            raise InputError("rngs: expected random keys for a new head; pass rngs=nnx.Rngs(0)")
        paths = {leaf.path for leaf in matching.fresh}

        def build(key: jax.Array) -> dict[str, jax.Array]:
            whole = cls(config, rngs=nnx.Rngs(params=key), param_dtype=kept)
            return {leaf.path: leaf.variable[...] for leaf in leaves(whole) if leaf.path in paths}

        fresh = jax.jit(build)(rngs.params())  # compiled, so that no other leaf is initialised
        for leaf in matching.fresh:
            leaf.fill(fresh[leaf.path], sharding)
    matching.fill(where, param_dtype, sharding)
    unfilled = [
        leaf.path for leaf in leaves(model) if not isinstance(leaf.variable[...], jax.Array)
    ]
    assert not unfilled, unfilled
    return model.eval(), matching.info(where)


def shapes_only(
    cls: type[Any], config: Any, source: TensorSource, where: str, **options: Any
) -> Any:
    """Returns a tree of shapes with every optional submodule of a class.

    Raises:
        ConfigError: the source contains fewer tensors than the config has layers, or no model of
            the class has such a config.
    """
    if config.stored_layers > len(source.tensors):
        raise ConfigError(
            f"{where}: {config.stored_layers_name}: expected at most the number of tensors in the "
            f"checkpoint, {len(source.tensors)}, found {config.stored_layers}"
        )
    try:
        return cls(config, rngs=None, **options)
    except ConfigError as reason:
        raise type(reason)(f"{where}: {reason}") from None


def _floating(name: str, dtype: Dtype) -> np.dtype | None:
    if dtype is None:
        return None
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = None
    if found is None or not jnp.issubdtype(found, jnp.floating) or found.itemsize < 2:
        raise InputError(f"{name}: expected a floating-point type of JAX, found {shown(dtype)}")
    return found


def _prevailing_dtype(source: TensorSource) -> DTypeLike:
    dtypes = [info.dtype for info in source.tensors.values()]
    floats = Counter(dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating))
    return floats.most_common(1)[0][0] if floats else np.dtype(np.float32)
