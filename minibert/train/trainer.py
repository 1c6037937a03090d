"""A model being trained: one compiled, donated step; evaluation; the model as it is now."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from minibert.core.checks import whole
from minibert.errors import InputError, NotFiniteError, shown
from minibert.models.base import PretrainedModel
from minibert.models.stack import with_execution
from minibert.nn.numerics import cause
from minibert.nn.tree import (
    Structure,
    computing_dtypes,
    matching_paths,
    parameters,
    trainable_paths,
)
from minibert.sharding.mesh import Sharding, checked_sharding
from minibert.sharding.placement import (
    check_rows,
    check_shares,
    gathered_module,
    put,
    put_batch,
    shardings_of,
    taken,
)
from minibert.train.batches import checked_batch
from minibert.train.lora.adapter import Adapter, combiner, trained_adapter
from minibert.train.lora.config import LoRA
from minibert.train.objectives.base import Batch, Objective, Terms
from minibert.train.optimizers import learning_rate

Arrays = dict[str, Array]  # by path
Combine = Callable[[Arrays, Arrays], Arrays]
Build = Callable[[Arrays, Arrays], Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What changes in training; checkpoints hold this.

    Attributes:
        step: how many steps are done, `()` int32.
        params: what is trained, by path.
        opt_state: the optimiser's own.
    """

    step: Any  # JAX rebuilds the tree with leaves of its own, such as shapes
    params: dict[str, Any]
    opt_state: Any


def first_state(
    params: Arrays,
    frozen: Arrays,
    optimizer: optax.GradientTransformation,
    sharding: Sharding | None,
) -> tuple[TrainState, Arrays, Any]:
    """The state before the first step, what is frozen, and where a step's results are to live.

    Of what is trained these are copies, for each step gives its own state's memory away.
    """
    start = jnp.zeros((), jnp.int32)
    if sharding is None:
        params = copied(params)
        leaves, structure = jax.tree.flatten(optimizer.init(params))
        for index, leaf in enumerate(leaves):  # may be the optimiser's own keys, or parameters
            leaves[index] = jnp.array(leaf, copy=True)  # only one of them is in memory twice
        return TrainState(start, params, jax.tree.unflatten(structure, leaves)), frozen, None
    params = {path: put(sharding, path, array) for path, array in params.items()}
    frozen = {path: put(sharding, path, array) for path, array in frozen.items()}
    first = TrainState(start, params, jax.eval_shape(optimizer.init, params))
    where = shardings_of(sharding, first, params)
    opt_state = jax.jit(optimizer.init, out_shardings=where.opt_state)(params)
    state = TrainState(jax.device_put(start, where.step), params, opt_state)
    return state, frozen, (where, sharding.everywhere)


def copied(arrays: Arrays) -> Arrays:
    """Copies of some arrays, where they are."""
    return {path: jnp.array(array, copy=True) for path, array in arrays.items()}


def check_wide(params: Arrays) -> None:
    """Checks that what is trained is wide enough for small steps.

    Raises:
        InputError: a parameter is narrower than float32.
    """
    for path, array in params.items():
        if array.dtype.itemsize < 4:
            raise InputError(
                f"{path}: expected float32 or wider, found {array.dtype}, in which small steps "
                "vanish; load the model with param_dtype=jnp.float32 (dtype= may stay narrow)"
            )


class _Sums(NamedTuple):
    """Of a batch or several, by term: summed losses, numbers of targets and of correct answers."""

    losses: Terms
    counts: Terms
    hits: Terms


class Trainer:
    """A model, an objective and an optimiser.

    Args:
        model: what to train; it is copied, and stays as it is.
        objective: what to minimise (`minibert.train.objectives.base`).
        optimizer: any optax transformation; it sees a dictionary of arrays by path.
        trainable: patterns of the paths to train, such as `classifier.*`; None for every
            `nnx.Param`. (The constants of `xielu` are none, and are never trained.)
            What is not trained is bit for bit the same afterwards.
        lora: what to train in place of parameters of the model: a `LoRA`, or an `Adapter` to be
            trained further.
        accumulate: how many parts a batch is taken in, one after the other: of `n`, part `k` is
            the rows `k`, `k + n`, `k + 2n`, ….
        remat: whether a layer's inner results are computed again in the backward pass, not kept.
        seed: of dropout and of a fresh adapter. The dropout masks of a row depend on the seed, the
            step, `accumulate` (each part has a key of its own), the shape of the batch and the
            row's position in it: not on `remat`, nor on the number of processes and devices or the
            shape of their mesh.
        sharding: how several devices share the work. Every process then passes its own rows of a
            batch, as many as the others: with `share` = (i, n), the `i`-th of `n` contiguous parts
            of the batch that a single process would pass. `minibert.train.data` makes them with
            `share=sharding.share`.

    Raises:
        InputError: an argument is wrong, or parameters to be trained are narrower than float32.
    """

    objective: Objective
    optimizer: Any
    config: Any
    state: TrainState

    def __init__(
        self,
        model: PretrainedModel,
        objective: Objective,
        optimizer: optax.GradientTransformation,
        *,
        trainable: Iterable[str] | None = None,
        lora: LoRA | Adapter | None = None,
        accumulate: int = 1,
        remat: bool = False,
        seed: int = 0,
        sharding: Sharding | None = None,
    ):
        accumulate, seed = whole("accumulate", accumulate, 1), whole("seed", seed, 0, (1 << 32) - 1)
        sharding = checked_sharding(sharding)
        if not isinstance(objective, Objective):
            raise InputError(f"objective: expected one of minibert.train, found {shown(objective)}")
        if not isinstance(optimizer, optax.GradientTransformation):
            raise InputError(
                f"optimizer: expected a transformation of optax, found {shown(optimizer)}"
            )
        if accumulate > 1 and not objective.separable:
            raise InputError(f"accumulate: {objective.name} compares the rows of a batch: give 1")
        self.objective, self.optimizer, self.config = objective, optimizer, model.config
        arrays = parameters(model)
        params, self._lora, combine = _trained(model, arrays, trainable, lora, seed)
        frozen = {path: arrays[path] for path in arrays if path not in params}
        check_wide(params)
        self.sharding: Sharding | None = None if sharding is None else sharding.for_model(model)
        self._dtypes = {path: array.dtype for path, array in arrays.items()}
        self._shapes = {path: array.shape for path, array in (arrays | params).items()}
        self.state, self._frozen, where = first_state(params, frozen, optimizer, self.sharding)
        self._plain, self._combine = Structure(with_execution(model).eval()), combine
        copy = with_execution(model, remat=remat, sharding=self.sharding)  # train, eval change it
        training = functools.partial(_built, Structure(copy.train()), combine, self.sharding)
        evaluating = functools.partial(_built, Structure(copy.eval()), combine, self.sharding)
        self._step = jax.jit(
            functools.partial(
                _step, training, objective, optimizer, accumulate, jax.random.key(seed)
            ),
            donate_argnums=0,
            out_shardings=where,
        )
        self._parts, self._shares_checked = accumulate, False
        self.made_by: dict[str, Any] = {
            "objective": objective.name,
            "objective_settings": {"weights": dict(objective.weights), **objective.settings},
            "accumulate": accumulate,
            "seed": seed,
            "dtypes": computing_dtypes(model),
        }
        if self._lora is not None:
            self.made_by["lora"] = repr(self._lora)
        self._evaluate = jax.jit(
            functools.partial(_evaluate, evaluating, objective),
            out_shardings=None if where is None else where[1],
        )

    @property
    def frozen(self) -> Arrays:
        """What is not trained, by path."""
        return self._frozen

    @property
    def model(self) -> Any:
        """The model as it is now, in evaluation mode."""
        arrays = self._combine(copied(self.state.params), self._frozen)
        if self._lora is not None:  # an adapter is wider than what it adapts may be
            arrays = {path: array.astype(self._dtypes[path]) for path, array in arrays.items()}
        return self._plain.build(self._taken(arrays))

    @property
    def adapter(self) -> Adapter:
        """The adapter as it is now.

        Raises:
            InputError: there is none, for the model is trained without `lora`.
        """
        if self._lora is None:
            raise InputError("adapter: there is none; train with lora=LoRA(…)")
        return Adapter(self._lora, self._taken(copied(self.state.params)))

    def step(self, batch: Batch) -> Arrays:
        """One step of training.

        Args:
            batch: what the objective and the model need, by name; each has the batch first.

        Returns:
            `loss`, the batch's; `grad_norm`; `learning_rate`, if the optimiser says it; where there
            are several terms, each term's; arrays that may not be computed yet.

        Raises:
            InputError: something is missing, out of range or of the wrong shape.
        """
        given = self._given(batch, self._parts)
        self.state, metrics = self._step(self.state, self._frozen, given)
        return metrics

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """The loss over all of some batches, each target counting alike, dropout off.

        Returns:
            `loss`; for each term its loss, and `<term>_accuracy` where the model can be right.

        Raises:
            InputError: as for `step`; or there are no batches, or no targets in them.
            NotFiniteError: the loss of a batch is NaN or infinite; accuracies would be of no use.
        """
        sums: _Sums | None = None
        for number, batch in enumerate(batches):
            given = self._given(batch, 1, evaluated=True)
            found = self._evaluate(self.state.params, self._frozen, given)
            found = jax.tree.map(np.float64, jax.device_get(found))
            for term, loss in found.losses.items():
                if not np.isfinite(loss):
                    why = cause(self.model)
                    raise NotFiniteError(f"batch {number}: the loss {term!r} is {loss}: {why}")
            sums = found if sums is None else jax.tree.map(np.add, sums, found)
        if sums is None:
            raise InputError("batches: expected at least one, found none")
        losses, counts, hits = sums
        if not any(counts.values()):
            raise InputError("batches: no target in any of them")
        metrics = {"loss": self.objective.total(losses, counts)}
        metrics |= {term: losses[term] / max(counts[term], 1) for term in counts}
        metrics |= {f"{term}_accuracy": hits[term] / max(counts[term], 1) for term in hits}
        return {name: float(value) for name, value in metrics.items()}

    def _taken(self, arrays: Arrays) -> Arrays:
        return arrays if self.sharding is None else taken(self.sharding, arrays, self._shapes)

    def _given(self, batch: object, parts: int, evaluated: bool = False) -> dict[str, Any]:
        alone = jax.process_count() == 1
        given = checked_batch(
            self.config, self.objective, batch, parts, targets=alone and not evaluated
        )
        if self.sharding is None:
            return given
        if not (alone or self._shares_checked):
            check_shares(self.sharding, given)
            self._shares_checked = True
        uneven = len(next(iter(given.values()))) % self.sharding.rows_here
        if evaluated and alone and uneven:
            return jax.device_put(given, self.sharding.everywhere)
        check_rows(self.sharding, given, parts)
        return put_batch(self.sharding, given)


def _trained(
    model: PretrainedModel,
    arrays: Arrays,
    trainable: Iterable[str] | None,
    lora: LoRA | Adapter | None,
    seed: int,
) -> tuple[Arrays, LoRA | None, Combine]:
    """What is trained, by path; LoRA's settings; and what makes all arrays of it and the rest."""
    if lora is None:
        patterns = ("*",) if trainable is None else trainable
        paths = matching_paths("trainable", patterns, trainable_paths(model))
        return {path: arrays[path] for path in paths}, None, _together
    if trainable is not None:
        raise InputError("trainable: with lora, its modules_to_save say what else is trained")
    adapter = trained_adapter(model, lora, seed)
    return dict(adapter.params), adapter.config, combiner(model, adapter.config)


def _together(params: Arrays, frozen: Arrays) -> Arrays:
    return {**frozen, **params}


def _built(
    structure: Structure,
    combine: Combine,
    sharding: Sharding | None,
    params: Arrays,
    frozen: Arrays,
) -> Any:
    model = structure.build(combine(params, frozen))
    if sharding is None:
        return model
    return gathered_module(sharding, model, but=f"{model.blocks_path}.")


def _step(
    build: Build,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    parts: int,
    key: Array,
    state: TrainState,
    frozen: Arrays,
    batch: Batch,
) -> tuple[TrainState, Arrays]:
    """One step: the gradients of the parts are summed, then applied."""
    counts = objective.counts(batch)
    key = jax.random.fold_in(key, state.step)

    def loss_of(params: Arrays, part: Batch, key: Array) -> tuple[Array, Terms]:
        model = build(params, frozen)
        sums = objective.sums(objective.apply(model, part, nnx.Rngs(dropout=key)), part)
        return objective.total(sums, counts), sums

    gradient = jax.grad(loss_of, has_aux=True)

    def add(carry: Any, given: tuple[Batch, Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, carry, gradient(state.params, *given)), None

    if parts == 1:
        gradients, sums = gradient(state.params, batch, key)
    else:
        keys = jax.random.split(key, parts)
        # (batch, …) as (parts, batch / parts, …); each device's rows stay on it
        split = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)
        shapes = jax.eval_shape(gradient, state.params, batch, key)  # any rows have these
        zeros = jax.tree.map(jnp.zeros_like, shapes)
        (gradients, sums), _ = jax.lax.scan(add, zeros, (split, keys))
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params: Any = optax.apply_updates(state.params, updates)
    metrics = {"loss": objective.total(sums, counts), "grad_norm": optax.tree.norm(gradients)}
    rate = learning_rate(opt_state)
    if rate is not None:
        metrics["learning_rate"] = rate
    if len(sums) > 1:
        metrics |= {term: sums[term] / jnp.maximum(counts[term], 1) for term in sums}
    return TrainState(state.step + 1, params, opt_state), metrics


def _evaluate(
    build: Build,
    objective: Objective,
    params: Arrays,
    frozen: Arrays,
    batch: Batch,
) -> _Sums:
    outputs = objective.apply(build(params, frozen), batch, None)
    return _Sums(
        objective.sums(outputs, batch),
        objective.counts(batch),
        objective.correct(outputs, batch),
    )
