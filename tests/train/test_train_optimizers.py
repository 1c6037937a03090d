"""AdamW compared with PyTorch's; planted mistakes; schedules; which parameters decay."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch", reason="the oracle is PyTorch")

import oracle  # noqa: E402
from families import CLASSES  # noqa: E402
from minibert import train  # noqa: E402
from minibert.checkpoint.saving import file_leaves  # noqa: E402
from minibert.errors import InputError  # noqa: E402
from minibert.nn.tree import parameters  # noqa: E402
from minibert.train import optimizers  # noqa: E402
from planting import swapped  # noqa: E402


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def drawn(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


PARAMETERS = {"a.kernel": (3, 5), "a.bias": (5,), "norm.scale": (5,), "e.embedding": (4, 5)}
RATE, DECAY = 1e-2, 0.1


def optimizer_error(optimizer, steps=20):
    """Returns the distance of parameters from torch.optim.AdamW's after 20 equal gradient steps."""
    params = {path: jnp.asarray(drawn(*shape)) for path, shape in PARAMETERS.items()}
    theirs = {path: torch.tensor(np.array(p), requires_grad=True) for path, p in params.items()}
    kernels = [p for path, p in theirs.items() if not path.endswith(("bias", "scale"))]
    others = [p for path, p in theirs.items() if path.endswith(("bias", "scale"))]
    groups = [{"params": kernels, "weight_decay": DECAY}, {"params": others, "weight_decay": 0}]
    reference = torch.optim.AdamW(groups, lr=RATE)
    state = optimizer.init(params)
    for number in range(steps):
        gradients = {p: 1e-3 * drawn(*shape, seed=number) for p, shape in PARAMETERS.items()}
        for path, parameter in theirs.items():
            parameter.grad = torch.as_tensor(gradients[path])
        reference.step()
        updates, state = optimizer.update(jax.tree.map(jnp.asarray, gradients), state, params)
        params = optax.apply_updates(params, updates)
    return max(float(np.abs(params[p] - theirs[p].detach().numpy()).max()) for p in params)


def adamw(**options):
    return train.adamw(RATE, **{"weight_decay": DECAY, "max_grad_norm": None} | options)


def uncorrected():
    """Adam without its bias correction."""

    def scale(b1, b2, eps):
        def init(params):
            zeros = jax.tree.map(jnp.zeros_like, params)
            return zeros, zeros

        def update(updates, state, params=None):
            mean = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state[0], updates)
            square = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g**2, state[1], updates)
            moved = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mean, square)
            return moved, (mean, square)

        return optax.GradientTransformation(init, update)

    with swapped(optimizers.optax, "scale_by_adam", scale):
        return adamw()


def decaying_everything():
    with swapped(optimizers, "decaying", lambda params: dict.fromkeys(params, True)):
        return adamw()


def test_adamw_is_pytorchs():
    assert optimizer_error(adamw()) <= 1e-12


@pytest.mark.parametrize(
    "make",
    [
        uncorrected,
        decaying_everything,
        lambda: adamw(weight_decay=0.0),
        lambda: adamw(b2=0.99),
        lambda: adamw(eps=1e-6),
        lambda: adamw(max_grad_norm=1e-3),
        lambda: optax.chain(
            optax.add_decayed_weights(DECAY, mask=optimizers.decaying), optax.adam(RATE)
        ),
    ],
    ids=["no bias correction", "biases decay", "no decay", "b2", "eps", "clipped", "decay in Adam"],
)
def test_mistakes_in_the_optimizer_are_seen(make):
    assert optimizer_error(make()) >= 1e-4  # 1000 times what twenty steps are held to


@pytest.mark.parametrize(("steps", "warmup"), [(30, 5), (30, 0), (10, 10), (10, 9), (1, 0), (1, 1)])
@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
def test_schedules_are_transformers(kind, steps, warmup):
    """Compares every step and the one after the last; after that, a decayed rate stays 0."""
    transformers = pytest.importorskip("transformers")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=RATE)
    name = {"constant": "constant_with_warmup"}.get(kind, kind)
    reference = transformers.get_scheduler(name, optimizer, warmup, steps)
    ours = train.schedule(RATE, steps, warmup=warmup, kind=kind)
    for step in range(steps + 1):
        assert abs(float(ours(step)) - optimizer.param_groups[0]["lr"]) <= 1e-9
        optimizer.step()
        reference.step()
    for step in (steps + 1, steps + 7):
        assert float(ours(step)) == (RATE if kind == "constant" else 0)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        *CLASSES.items(),
        *[
            (name, {"tie_word_embeddings": False})
            for name in ("BertForPreTraining", "BertForMaskedLM", "GPT2LMHeadModel")
        ],
        ("BertLMHeadModel", {"is_decoder": True, "add_cross_attention": True}),
        ("GPT2LMHeadModel", {"add_cross_attention": True}),
        ("BertModel", {"hidden_act": "prelu"}),
    ],
)
def test_what_decays_is_transformers(name, config, tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs = oracle.saved(name, tmp_path, **config)
    expected = set(transformers.Trainer.get_decay_parameter_names(None, theirs))
    model = oracle.ours(name, tmp_path)
    prefix = model.tensor_prefix
    ours = optimizers.decaying(parameters(model))
    found = {
        name: ours[leaf.path.removeprefix(prefix)] for name, leaf in file_leaves(model).items()
    }
    first = {id(weight): name for name, weight in theirs.named_parameters()}  # of tied weights
    names = dict(theirs.named_parameters(remove_duplicate=False))
    assert {first[id(names[name])]: decays for name, decays in found.items()} == {
        name: name in expected for name in first.values()
    }


def test_the_rate_stands_in_the_state():
    optimizer = train.adamw(train.schedule(RATE, 10, warmup=4))
    params = {"a.kernel": jnp.ones((2, 2))}
    state = optimizer.init(params)
    for step in range(4):
        _, state = optimizer.update(params, state, params)
        assert float(train.learning_rate(state)) == pytest.approx(RATE * step / 4)
    assert train.learning_rate(optax.sgd(0.1).init(params)) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "step"}, "kind: expected one of linear, cosine, constant; found 'step'"),
        ({"warmup": 11}, "warmup: expected a whole number from 0 to 10, found 11"),
        ({"warmup": -1}, "warmup: expected a whole number from 0"),
    ],
)
def test_schedules_are_checked(arguments, message):
    with pytest.raises(InputError, match=message):
        train.schedule(RATE, 10, **arguments)


@pytest.mark.parametrize("name", ["b1", "b2"])
def test_means_that_never_move_are_refused(name):
    with pytest.raises(
        InputError, match=f"{name}: expected a number of at least 0 and below 1, found 1.0"
    ):
        train.adamw(1e-3, **{name: 1.0})
