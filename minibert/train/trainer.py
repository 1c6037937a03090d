"""The trainer: a compiled training step with donated state, evaluation, and the current model."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from minibert.core.checks import whole
from minibert.errors import InputError, NotFiniteError, shown
from minibert.models.arguments import refusing
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
    beside,
    check_rows,
    check_shares,
    gathered_module,
    put,
    put_batch,
    reusable,
    shardings_of,
    taken,
)
from minibert.train.arguments import METHODS, TRAINER
from minibert.train.batches import checked_batch
from minibert.train.lora.adapter import Adapter, Form, forms, trained_adapter
from minibert.train.lora.config import LoRA
from minibert.train.objectives.base import Batch, Objective, Terms, mean
from minibert.train.optimizers import (
    Update,
    checked_update,
    initial_state,
    learning_rate,
    promoting,
)
from minibert.train.wrappers import average_of

Arrays = dict[str, Array]  # by path
Combine = Callable[[Arrays, Arrays], Arrays]
Build = Callable[[Arrays, Arrays], Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state that training changes and that checkpoints store.

    Attributes:
        step: the number of completed steps, `()` int32.
        params: the trained parameters by path.
        opt_state: the state of the optimiser.
    """

    step: Any  # JAX rebuilds the tree with other leaves, such as shapes
    params: dict[str, Any]
    opt_state: Any


def first_state(
    params: Arrays,
    frozen: Arrays,
    optimizer: optax.GradientTransformation,
    sharding: Sharding | None,
) -> tuple[TrainState, Arrays, Any]:
    """Returns the initial state, the frozen parameters, and the shardings of a step's results.

    Trained parameters are copied, because every step donates the memory of its state.
    """
    start = jnp.zeros((), jnp.int32)
    if sharding is None:
        params = copied(params)
        opt_state = distinct(initial_state(optimizer, params))
        return TrainState(start, params, opt_state), frozen, None
    params = {path: put(sharding, path, array) for path, array in params.items()}
    frozen = {path: put(sharding, path, array) for path, array in frozen.items()}
    initialised = functools.partial(initial_state, optimizer)
    where = shardings_of(
        sharding, TrainState(start, params, jax.eval_shape(initialised, params)), params
    )
    opt_state = distinct(jax.jit(initialised, out_shardings=where.opt_state)(params))
    state = TrainState(jax.device_put(start, where.step), params, opt_state)
    return state, frozen, (where, sharding.everywhere)


def distinct(opt_state: object) -> Any:
    """Returns a state whose arrays are copies.

    Arrays of an optimiser's state may be parameters, several times the same array, or the
    optimiser's own keys; a step donates the memory of each, once.
    """
    leaves, structure = jax.tree.flatten(opt_state)
    for index, leaf in enumerate(leaves):  # one at a time, to save memory
        leaves[index] = jnp.array(leaf, copy=True)
    return jax.tree.unflatten(structure, leaves)


def _makes_one(optimizer: object) -> bool:
    return hasattr(optimizer, "gradient_transformation")  # optax.MultiSteps


def copied(arrays: Arrays) -> Arrays:
    """Returns copies of arrays on the same devices."""
    return {path: jnp.array(array, copy=True) for path, array in arrays.items()}


def check_wide(params: Arrays) -> None:
    """Checks that the trained parameters are wide enough for small steps.

    Raises:
        InputError: a parameter is narrower than float32.
    """
    for path, array in params.items():
        if array.dtype.itemsize < 4:
            raise InputError(
                f"{path}: expected float32 or wider, found {array.dtype}, in which small updates "
                "are lost; load the model with param_dtype=jnp.float32 (dtype= may stay narrow)"
            )


class _Sums(NamedTuple):
    """Sums over batches, by term: losses, weights of targets, targets, correct predictions."""

    losses: Terms
    counts: Terms
    numbers: Terms
    hits: Terms


class Trainer:
    """Trains a model with an objective and an optimiser.

    Args:
        model: the model to train; the trainer copies it and leaves the original unchanged.
        objective: the objective to minimise (`minibert.train.objectives.base`).
        optimizer: an optax transformation; it receives a dictionary of arrays by path, and, if its
            `update` accepts them, `value`, the loss; `grad`; and `value_fn`, the loss as a function
            of parameters, for the same batch and dropout.
        trainable: patterns of the paths to train, such as `classifier.*`; None for every
            `nnx.Param`. (The constants of `xielu` are no `nnx.Param` and are never trained.)
            All other parameters stay bit for bit the same.
        lora: what to train instead of the model's parameters: a `LoRA` for a new adapter, or an
            `Adapter` to train further. The trained parameters are then those of the adapter.
        accumulate: the number of parts into which a batch is split, whose gradients are
            accumulated: with `n` parts, part `k` consists of the rows `k`, `k + n`, `k + 2n`, ….
        remat: whether to recompute a layer's activations in the backward pass instead of storing
            them.
        seed: the seed of dropout and of a new adapter. The dropout masks of a row depend on the
            seed, the step, `accumulate` (each part has a key of its own), the shape of the batch
            and the row's position in it; not on `remat`, the number of processes and devices, or
            the shape of their mesh.
        sharding: how the work is split over several devices. Every process then passes its own rows
            of a batch, the same number in each: with `share` = (i, n), the `i`-th of `n` contiguous
            parts of the batch that a single process would pass. `minibert.train.data` makes them
            with `share=sharding.share`.

    Raises:
        InputError: an argument is wrong; the optimiser cannot be used with a dictionary of arrays,
            or needs further arguments; or parameters to be trained are narrower than float32.
    """

    objective: Objective
    optimizer: Any
    update: Update
    config: Any
    state: TrainState

    @refusing(TRAINER)
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
            raise InputError(
                f"objective: expected an objective of minibert.train, found {shown(objective)}"
            )
        if not isinstance(optimizer, optax.GradientTransformation):
            hint = "; pass its .gradient_transformation()" if _makes_one(optimizer) else ""
            raise InputError(
                f"optimizer: expected an optax transformation, found {shown(optimizer)}{hint}"
            )
        if accumulate > 1 and not objective.separable:
            raise InputError(
                f"accumulate: expected 1, because {objective.name} compares the rows of a batch; "
                f"found {accumulate}"
            )
        self.objective, self.optimizer, self.config = objective, optimizer, model.config
        arrays = parameters(model)
        params, self._lora, training, evaluating = _trained(model, arrays, trainable, lora, seed)
        frozen = {path: arrays[path] for path in arrays if path not in params}
        check_wide(params)
        self.sharding: Sharding | None = None if sharding is None else sharding.for_model(model)
        self._dtypes = {path: array.dtype for path, array in arrays.items()}
        self._shapes = {path: array.shape for path, array in (arrays | params).items()}
        self.state, self._frozen, where = first_state(params, frozen, optimizer, self.sharding)
        self.update = checked_update(optimizer, self.state.params, self.state.opt_state)
        self._plain = Structure(with_execution(evaluating.model).eval())
        self._combine = evaluating.combine
        copied_with = functools.partial(with_execution, remat=remat, sharding=self.sharding)
        in_training = Structure(copied_with(training.model).train())
        in_evaluation = Structure(copied_with(evaluating.model).eval())
        build = functools.partial(_built, in_training, training.combine, self.sharding)
        self._step = jax.jit(
            functools.partial(
                _step, build, objective, self.update, accumulate, jax.random.key(seed)
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
        build = functools.partial(_built, in_evaluation, evaluating.combine, self.sharding)
        self._evaluate = jax.jit(
            functools.partial(_evaluate, build, objective),
            out_shardings=None if where is None else where[1],
        )

    if not TYPE_CHECKING:  # where any attribute would be known

        def __getattr__(self, name: str) -> Any:
            if name in METHODS:
                raise AttributeError(f"{name}: not a method of Trainer: {METHODS[name]}")
            return object.__getattribute__(self, name)  # raises Python's own error

    @property
    def frozen(self) -> Arrays:
        """The parameters that are not trained, by path."""
        return self._frozen

    @property
    def model(self) -> Any:
        """The model with its current parameters, in evaluation mode; an adapter is merged.

        With `averaged` the parameters are their average. An adapter of an embedding matrix to which
        the output is tied is attached instead of merged.
        """
        arrays = self._combine(copied(self._evaluated), self._frozen)
        if self._lora is not None:  # an adapter may be wider than the kernels that it adapts
            dtypes = self._dtypes
            arrays = {p: array.astype(dtypes.get(p, array.dtype)) for p, array in arrays.items()}
        return self._plain.build(self._taken(arrays))

    @property
    def adapter(self) -> Adapter:
        """The adapter with its current parameters, or their average.

        Raises:
            InputError: the model is trained without `lora`.
        """
        if self._lora is None:
            raise InputError("adapter: there is none; train with lora=LoRA(…)")
        return Adapter(self._lora, self._taken(copied(self._evaluated)))

    def step(self, batch: Batch) -> Arrays:
        """Runs one training step.

        Args:
            batch: the arrays that the objective and the model need, by name, `(batch, …)` each.

        Returns:
            Scalar arrays, which may not be computed yet: `loss`, the loss of the batch;
            `grad_norm`; `learning_rate`, if the optimiser's state holds it; and the loss of each
            term, if there are several.

        Raises:
            InputError: an entry is missing, out of range or of the wrong shape.
        """
        given = self._given(batch, self._parts)
        self.state, metrics = self._step(self.state, self._frozen, given)
        return metrics

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Returns the mean loss over all targets of some batches, without dropout.

        Returns:
            `loss`; the loss of each term, by its name; and `<term>_accuracy` for classification
            terms.

        Raises:
            InputError: as for `step`; or there are no batches, or they have no targets.
            NotFiniteError: the loss of a batch is NaN or infinite.
        """
        sums: _Sums | None = None
        for number, batch in enumerate(batches):
            given = self._given(batch, 1, evaluated=True)
            found = self._evaluate(self._evaluated, self._frozen, given)
            found = jax.tree.map(np.float64, jax.device_get(found))
            for term, loss in found.losses.items():
                if not np.isfinite(loss):
                    why = cause(self.model)
                    raise NotFiniteError(f"batch {number}: the loss {term!r} is {loss}: {why}")
            sums = found if sums is None else jax.tree.map(np.add, sums, found)
        if sums is None:
            raise InputError("batches: expected at least one, found none")
        losses, counts, numbers, hits = sums
        if not any(counts.values()):
            raise InputError("batches: expected at least one target, found none")
        metrics = {"loss": self.objective.total(losses, counts)}
        metrics |= {term: mean(losses[term], counts[term]) for term in counts}
        metrics |= {f"{term}_accuracy": mean(hits[term], numbers[term]) for term in hits}
        return {name: float(value) for name, value in metrics.items()}

    @property
    def _evaluated(self) -> Arrays:
        return {**self.state.params, **average_of(self.state.opt_state)}

    def _taken(self, arrays: Arrays) -> Arrays:
        return arrays if self.sharding is None else taken(self.sharding, arrays, self._shapes)

    def _given(self, batch: object, parts: int, evaluated: bool = False) -> dict[str, Any]:
        alone = jax.process_count() == 1
        given = checked_batch(
            self.config, self.objective, batch, parts, targets=alone and not evaluated
        )
        if self.sharding is None:
            entries: Any = batch
            like = next(iter(self.state.params.values()))
            # those on the device already are not transferred again
            there = {n: entries[n] for n in given if reusable(like, entries[n])}
            return beside(like, given | there)
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
) -> tuple[Arrays, LoRA | None, Form, Form]:
    """Returns the parameters to train, LoRA's settings, and forms for training and evaluation."""
    if lora is None:
        patterns = ("*",) if trainable is None else trainable
        paths = matching_paths("trainable", patterns, trainable_paths(model))
        form = Form(model, _together)
        return {path: arrays[path] for path in paths}, None, form, form
    if trainable is not None:
        raise InputError(
            "trainable: expected None with lora, whose modules_to_save select further modules to "
            "train"
        )
    adapter = trained_adapter(model, lora, seed)
    return dict(adapter.params), adapter.config, *forms(model, adapter)


def _together(params: Mapping[str, Any], frozen: Mapping[str, Any]) -> Arrays:
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
    update: Update,
    parts: int,
    key: Array,
    state: TrainState,
    frozen: Arrays,
    batch: Batch,
) -> tuple[TrainState, Arrays]:
    """Sums the gradients of the parts of a batch and applies them."""
    counts = objective.counts(batch)
    key = jax.random.fold_in(key, state.step)

    def loss_of(params: Arrays, part: Batch, key: Array) -> tuple[Array, Terms]:
        model = build(params, frozen)
        sums = objective.sums(objective.apply(model, part, nnx.Rngs(dropout=key)), part)
        return objective.total(sums, counts), sums

    gradient = jax.grad(loss_of, has_aux=True)

    def add(carry: Any, given: tuple[Batch, Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, carry, gradient(state.params, *given)), None

    def loss_of_batch(params: Arrays) -> Array:
        if parts == 1:
            return loss_of(params, batch, key)[0]

        def add_loss(total: Array, given: tuple[Batch, Array]) -> tuple[Array, None]:
            return total + jax.checkpoint(loss_of)(params, *given)[0], None

        return jax.lax.scan(add_loss, jnp.zeros_like(loss), (split, keys))[0]

    if parts == 1:
        gradients, sums = gradient(state.params, batch, key)
    else:
        keys = jax.random.split(key, parts)
        # (batch, …) as (parts, batch / parts, …); each device's rows stay on it
        split = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)
        shapes = jax.eval_shape(gradient, state.params, batch, key)  # the same for any rows
        zeros = jax.tree.map(jnp.zeros_like, shapes)
        (gradients, sums), _ = jax.lax.scan(add, zeros, (split, keys))
    loss = objective.total(sums, counts)
    with promoting():
        updates, opt_state = update(gradients, state.opt_state, state.params, loss, loss_of_batch)
        params: Any = optax.apply_updates(state.params, updates)
        norm = optax.tree.norm(gradients)
    metrics = {"loss": loss, "grad_norm": norm}
    rate = learning_rate(opt_state)
    if rate is not None:
        metrics["learning_rate"] = rate
    if len(sums) > 1:
        metrics |= {term: mean(sums[term], counts[term]) for term in sums}
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
        objective.numbers(batch),
        objective.correct(outputs, batch),
    )
