"""The tree of every class as a user meets it: dropout and its keys, training, saving."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import minibert
from families import CLASSES_WITH_CODE, OF_CLASS, SOME_WITH_CODE, WITH_CODE
from minibert.errors import InputError
from minibert.models.stack import run_blocks
from minibert.nn.tree import submodules
from slowly import slow_but

pytestmark = pytest.mark.unoptimised
IDS = np.random.default_rng(0).integers(0, 97, (2, 9))


BASES = [facts.base for facts in WITH_CODE]
LEAST = {True: 0.1, False: 1e-3}  # what dropout changes at least: states, and a head's scores


def fresh(name, **changes):
    cls = getattr(minibert, name)
    return cls(cls.config_class.tiny(**CLASSES_WITH_CODE[name] | changes), rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", slow_but(CLASSES_WITH_CODE, *SOME_WITH_CODE))
def test_dropout_needs_keys_and_obeys_them(name):
    model = fresh(name, initializer_range=0.1)  # so that scores are not tiny
    ids = IDS[None] if name in OF_CLASS[name].choices else IDS
    with pytest.raises(InputError, match="rngs"):
        model(ids)
    one, other, again = (model(ids, rngs=nnx.Rngs(dropout=key))[0] for key in (0, 1, 0))
    assert np.abs(one - other).max() > LEAST[name in BASES]
    np.testing.assert_array_equal(one, again)
    assert model.eval() is model
    np.testing.assert_array_equal(model(ids)[0], model(ids)[0])
    assert np.abs(one - model(ids)[0]).max() > LEAST[name in BASES]


@pytest.mark.parametrize("name", SOME_WITH_CODE)
def test_dropout_obeys_keys_under_jit(name):
    ids = IDS[None] if name in OF_CLASS[name].choices else IDS
    call = jax.jit(lambda model, key: model(ids, rngs=nnx.Rngs(dropout=key))[0])
    model = fresh(name, initializer_range=0.1)  # so that scores are not tiny
    one, other = call(model, jax.random.key(0)), call(model, jax.random.key(1))
    assert np.abs(one - other).max() > LEAST[name in BASES]
    np.testing.assert_array_equal(one, call(model, jax.random.key(0)))


@pytest.mark.parametrize("name", BASES)
def test_checkpointing_of_gradients_leaves_the_tree_as_it_was(name):
    model = fresh(name)
    before = jax.tree.structure(model)
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    assert jax.tree.structure(model) != before
    model.gradient_checkpointing_disable()
    assert jax.tree.structure(model) == before


@pytest.mark.parametrize("name", BASES)
def test_each_block_has_its_own_mask(name):
    model = fresh(name, initializer_range=0.1).eval()
    parts = dict(submodules(model))
    blocks = [parts[path.partition("@")[0]] for path in model.block_paths]
    hidden = jax.random.normal(jax.random.key(0), (2, 5, 24))
    masks = [jnp.arange(5) < 3, jnp.arange(5) != 1]
    masks = [jnp.broadcast_to(mask, (2, 1, 1, 5)) for mask in masks]
    expected = blocks[1](blocks[0](hidden, masks[0]).hidden, masks[1]).hidden
    found, swapped = (run_blocks(blocks, hidden, masks=given) for given in (masks, masks[::-1]))
    np.testing.assert_array_equal(found.last_hidden_state, expected)
    assert np.abs(swapped.last_hidden_state - expected).max() > 1e-3
    with pytest.raises(ValueError, match="shorter"):
        run_blocks(blocks, hidden, masks=masks[:1])


@pytest.mark.slow
@pytest.mark.parametrize("name", [facts.words for facts in WITH_CODE])
def test_it_learns_and_is_saved(name, tmp_path):
    model = fresh(name).eval()
    optimizer = nnx.Optimizer(model, optax.adamw(1e-2), wrt=nnx.Param)
    shift = int(model.config.causal)  # a decoder predicts the next token

    @nnx.jit
    def step(model, optimizer):
        def loss(m):
            scores = jax.nn.log_softmax(m(IDS).logits[:, : IDS.shape[1] - shift])
            return -jnp.take_along_axis(scores, jnp.asarray(IDS)[:, shift:, None], -1).mean()

        value, gradient = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradient)
        return value

    losses = [float(step(model, optimizer)) for _ in range(25 if shift else 20)]
    assert losses[-1] < 0.5 * losses[0]
    model.save_pretrained(tmp_path / "trained")
    again = minibert.load(tmp_path / "trained")
    assert jax.tree.structure(again) == jax.tree.structure(model)  # what is tied is not there twice
    np.testing.assert_array_equal(again(IDS).logits, model(IDS).logits)
