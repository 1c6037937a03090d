"""Any optax transformation trains, or is refused when the trainer is made."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from optax import contrib

import minibert
from minibert import Sharding, train
from minibert.errors import InputError
from minibert.nn.tree import Structure, parameters
from slowly import slow_but
from tiny import STILL

pytestmark = pytest.mark.unoptimised

CONFIG = minibert.GPT2Config.tiny(vocab_size=61, n_layer=1, **STILL["gpt2"])
IDS = np.random.default_rng(0).integers(0, 61, (4, 9)).astype(np.int32)
BATCH = {"input_ids": IDS, "labels": IDS}


def model():
    return minibert.GPT2LMHeadModel(CONFIG, rngs=nnx.Rngs(0))


def trainer(optimizer, **options):
    return train.Trainer(model(), train.causal_lm, optimizer, **options)


def after_plateau(**options):
    return optax.chain(optax.adam(1e-3), contrib.reduce_on_plateau(factor=0.5, **options))


def sharp(opaque):
    adversarial = optax.chain(contrib.normalize(), optax.sgd(0.05))
    return contrib.sam(optax.sgd(0.1), adversarial, opaque_mode=opaque)


OPTIMIZERS = {
    "sam": lambda: sharp(opaque=False),
    "sam, opaque": lambda: sharp(opaque=True),
    "prodigy": lambda: contrib.prodigy(1.0, estim_lr0=1e-3),
    "dog": lambda: contrib.dog(1.0, init_step=("heuristic", 1e-2)),
    "dowg": lambda: contrib.dowg(1.0),
    "cocob": lambda: contrib.cocob(),
    "mechanize": lambda: contrib.mechanize(optax.adam(1e-3), s_init=1e-2),
    "momo": lambda: contrib.momo(0.1),
    "momo_adam": lambda: contrib.momo_adam(1e-2),
    "polyak_sgd": lambda: optax.polyak_sgd(0.1),
    "reduce_on_plateau": after_plateau,
    "lbfgs": lambda: optax.lbfgs(memory_size=3),
    "backtracking": lambda: optax.chain(
        optax.sgd(1.0), optax.scale_by_backtracking_linesearch(max_backtracking_steps=9)
    ),
    "sophia": lambda: contrib.sophia(1e-2),
    "schedule_free": lambda: contrib.schedule_free_adamw(1e-2),
    "muon": lambda: contrib.muon(1e-2),
    "galore": lambda: contrib.galore(1e-2, rank=4),
    "dadapt_adamw": lambda: contrib.dadapt_adamw(1.0, estim_lr0=1e-3),
    "multi_steps": lambda: optax.MultiSteps(optax.adam(1e-2), 2).gradient_transformation(),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.adam(1e-2), 2),
    "adafactor": lambda: optax.adafactor(1e-2),
    "lamb": lambda: optax.lamb(1e-2),
    "lion": lambda: optax.lion(1e-3),
}


@pytest.mark.parametrize("name", slow_but(OPTIMIZERS, "prodigy", "reduce_on_plateau"))
def test_it_trains(name):
    trained = trainer(OPTIMIZERS[name]())
    losses = [float(trained.step(BATCH)["loss"]) for _ in range(12)]
    assert min(losses[-2:]) < losses[0] - 0.005, losses


@pytest.mark.slow
def test_arrays_of_a_sharded_state_are_distinct():
    trained = trainer(OPTIMIZERS["cocob"](), sharding=Sharding.of_devices(fsdp=(1,)))
    losses = [float(trained.step(BATCH)["loss"]) for _ in range(3)]
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_the_loss_is_passed_as_optax_documents():
    """The same steps as in a loop with optax, whole and in parts."""
    optimizer = optax.lbfgs(memory_size=3)
    structure, params = Structure(model().eval()), parameters(model())

    def value_fn(params):
        return train.causal_lm(structure.build(params)(IDS), BATCH)

    @jax.jit
    def step(params, state):
        value, grad = jax.value_and_grad(value_fn)(params)
        updates, state = optimizer.update(
            grad, state, params, value=value, grad=grad, value_fn=value_fn
        )
        return optax.apply_updates(params, updates), state, value

    whole, in_parts = trainer(optimizer), trainer(optimizer, accumulate=2)
    state = optimizer.init(params)
    for _ in range(3):
        params, state, value = step(params, state)
        for trained in (whole, in_parts):
            assert float(trained.step(BATCH)["loss"]) == pytest.approx(float(value), rel=1e-5)
    for trained in (whole, in_parts):
        for path, leaf in params.items():
            np.testing.assert_allclose(trained.state.params[path], leaf, atol=1e-3)


def needing():
    """An optimiser whose `update` needs an argument that no trainer has."""

    def update(updates, state, params=None, *, curvature):
        return updates, state

    return optax.GradientTransformationExtraArgs(lambda params: (), update)


def failing(params):
    raise KeyError("kernel")


REFUSED = {
    "lookahead": (
        lambda: optax.lookahead(optax.sgd(0.1), 2, 0.5),
        r"its update raised AttributeError \(\"'dict' object has no attribute 'fast'\"\)",
    ),
    "per example": (
        lambda: contrib.differentially_private_aggregate(1.0, 0.1, key=0),
        "its update raised ValueError",
    ),
    "unknown argument": (needing, "its update raised TypeError .*curvature"),
    "init": (
        lambda: optax.GradientTransformation(failing, optax.sgd(0.1).update),
        "its init raised KeyError",
    ),
    "of others": (
        lambda: optax.GradientTransformation(
            lambda params: (), lambda updates, state, params=None: ({"a": jnp.ones(3)}, state)
        ),
        "expected updates of the trained parameters",
    ),
    "multi_steps": (
        lambda: optax.MultiSteps(optax.sgd(0.1), 2),
        r"expected an optax transformation, .*; pass its \.gradient_transformation\(\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused(name):
    make, said = REFUSED[name]
    with pytest.raises(InputError, match=f"^optimizer: .*{said}") as found:
        trainer(make())
    assert "\n" not in str(found.value)


def test_an_optimizer_that_sees_the_loss_resumes(tmp_path):
    """Its best loss is infinite before the first average; its settings are compared."""
    pytest.importorskip("grain", reason="the data are Grain's")
    pytest.importorskip("orbax.checkpoint", reason="the checkpoints are Orbax's")
    from minibert.errors import CheckpointMismatchError
    from training import Rows

    def run(steps, folder, **options):
        return train.fit(
            trainer(after_plateau(accumulation_size=3, **options)),
            train.data.batches(Rows(12), batch_size=4, epochs=None),
            steps=steps,
            checkpoints=train.Checkpoints(folder=tmp_path / folder, resume=True),
        )

    run(2, "a")
    resumed, whole = run(5, "a"), run(5, "b")
    assert jax.tree.all(
        jax.tree.map(np.array_equal, *(one.trainer.state for one in (resumed, whole)))
    )
    with pytest.raises(CheckpointMismatchError, match="optimizer: program: "):
        run(6, "a", patience=3)
