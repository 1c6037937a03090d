"""The language model and the agent from scratch: torch's counterpart, masks, training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from conftest import FLOAT64
from minibert import scratch
from minibert.errors import InputError
from minibert.scratch import ToyAgent, ToyCausalLM, ToyConfig

CONFIG = ToyConfig(vocab_size=31, hidden_size=8, positions=12)


@pytest.mark.parametrize("causal", [True, False])
def test_toy_model_equals_torchs(causal):
    torch = pytest.importorskip("torch")
    config = ToyConfig(vocab_size=31, hidden_size=8, causal=causal)
    ids = np.random.default_rng(0).integers(0, 31, (2, 9))
    with jax.enable_x64(True):
        model = ToyCausalLM(config, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
        tensor = lambda array: torch.tensor(np.asarray(array))  # noqa: E731
        x = tensor(model.body.embedding.embedding[...])[torch.tensor(ids)]
        for layer in model.body.layers:
            x = torch.nn.functional.scaled_dot_product_attention(x, x, x, is_causal=causal)
            x = x @ tensor(layer.linear.kernel[...]) + tensor(layer.linear.bias[...])
        x = x @ tensor(model.vocabulary.kernel[...]) + tensor(model.vocabulary.bias[...])
        assert np.abs(np.asarray(model(ids).logits) - x.numpy()).max() <= FLOAT64


def test_toy_model_does_not_see_ahead():
    model = ToyCausalLM(CONFIG, rngs=nnx.Rngs(0))
    ids = np.arange(12)[None]
    other = np.where(np.arange(12) < 7, ids, 30)
    ours, theirs = model(ids).logits, model(other).logits
    np.testing.assert_array_equal(ours[:, :7], theirs[:, :7])
    assert np.abs(ours[:, 7:] - theirs[:, 7:]).min(axis=-1).max() > 0


def test_padding_does_not_matter():
    agent = ToyAgent(CONFIG, rngs=nnx.Rngs(0))
    ids = np.array([[4, 5, 6, 0, 0], [7, 8, 9, 10, 11]])
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    found = agent(ids, attention_mask=mask).logits
    np.testing.assert_allclose(found[:1], agent(ids[:1, :3]).logits, atol=1e-6)
    assert found.shape == (2, 4)


def test_only_the_new_head_is_trained():
    from minibert import train
    from minibert.nn.tree import parameters

    body = ToyCausalLM(CONFIG, rngs=nnx.Rngs(0)).body
    agent = ToyAgent(CONFIG, body=body, rngs=nnx.Rngs(1))
    trainer = train.Trainer(
        agent, train.classification(CONFIG), train.adamw(1e-2), trainable=("actions.*",)
    )
    batch = {"input_ids": np.arange(24).reshape(4, 6), "labels": np.array([0, 1, 2, 3])}
    losses = [float(trainer.step(batch)["loss"]) for _ in range(100)]
    assert losses[-1] < losses[0] / 2
    before, after = parameters(agent), parameters(trainer.model)
    for path, array in before.items():
        same = np.array_equal(np.asarray(array), np.asarray(after[path]))
        assert same == (not path.startswith("actions.")), path
    with pytest.raises(InputError, match="config: expected the config of body"):
        ToyAgent(ToyConfig(vocab_size=31), body=body, rngs=nnx.Rngs(0))


@pytest.mark.slow
def test_continued_is_the_most_probable_token_again_and_again():
    config = ToyConfig(vocab_size=13, hidden_size=8, positions=6)
    model = ToyCausalLM(config, rngs=nnx.Rngs(0))
    words = [3, 1, 4]
    for _ in range(7):
        seen = np.array([words[-6:]])
        words.append(int(model(seen).logits[0, -1].argmax()))
    np.testing.assert_array_equal(scratch.continued(model, [3, 1, 4], 7, window=6), words)
    with pytest.raises(InputError, match=r"input_ids: expected shape .tokens,., found .0,."):
        scratch.continued(model, [], 7, window=6)


def test_what_a_toy_cannot_read():
    model = ToyCausalLM(CONFIG, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match=r"input_ids: 31 is out of range; expected 0 to 30"):
        model(np.array([[31]]))
    with pytest.raises(InputError, match=r"input_ids: 13 tokens; expected 1 to 12 .positions."):
        model(np.arange(13)[None])
    with pytest.raises(InputError, match="attention_mask: expected padding on the right only"):
        model(np.array([[0, 1]]), np.array([[0, 1]]))
    with pytest.raises(InputError, match="window: expected a whole number from 1 to 12, found 13"):
        scratch.continued(model, [1, 2], 3, window=13)
