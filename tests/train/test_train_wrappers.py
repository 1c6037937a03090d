"""Moving averages of parameters and learning rates by layer, compared with PyTorch's."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

torch = pytest.importorskip("torch", reason="the oracle is PyTorch")

import minibert  # noqa: E402
from minibert import train  # noqa: E402
from minibert.errors import CheckpointMismatchError, InputError  # noqa: E402
from minibert.nn.tree import parameters  # noqa: E402
from minibert.train import wrappers  # noqa: E402
from planting import swapped  # noqa: E402

pytestmark = pytest.mark.unoptimised
RATE, DECAY = 1e-2, 0.9
CONFIG = minibert.GPT2Config.tiny(vocab_size=61, n_layer=1)
IDS = np.random.default_rng(0).integers(0, 61, (4, 9)).astype(np.int32)
BATCH = {"input_ids": IDS, "labels": IDS}


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def gradients(params, number):
    draw = np.random.default_rng(number)
    return {path: 1e-3 * draw.normal(size=p.shape) for path, p in params.items()}


def as_torch(params):
    return {
        path: torch.tensor(np.array(p, float), requires_grad=True) for path, p in params.items()
    }


def average_error(factor):
    """The distance of averages from those of PyTorch after ten steps."""
    params = {"a.bias": jnp.ones(5), "a.kernel": jnp.ones((3, 5))}  # sorted, as JAX does
    theirs = as_torch(params)
    module = torch.nn.ParameterList(map(torch.nn.Parameter, theirs.values()))
    averages = torch.optim.swa_utils.AveragedModel(
        module, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(factor)
    )
    averages.update_parameters(module)  # the first of these copies the parameters
    optimizer = train.averaged(train.adamw(RATE, weight_decay=0), DECAY)
    reference = torch.optim.AdamW(module, lr=RATE, weight_decay=0)
    state = optimizer.init(params)
    for number in range(10):
        given = gradients(params, number)
        for parameter, gradient in zip(module, given.values(), strict=True):
            parameter.grad = torch.tensor(np.array(gradient))
        reference.step()
        averages.update_parameters(module)
        updates, state = optimizer.update(given, state, params)
        params = optax.apply_updates(params, updates)
    found = wrappers.average_of(state)
    pairs = zip(found.values(), averages.module, strict=True)
    return max(float(np.abs(one - other.detach().numpy()).max()) for one, other in pairs)


def test_averages_are_pytorchs():
    assert average_error(DECAY) <= 1e-12
    assert average_error(0.91) >= 1e-4


def layer_error(name, config, depth, count):
    """The distance from PyTorch's AdamW with a group for each parameter, after three steps."""
    model = getattr(minibert, name)(config, rngs=nnx.Rngs(0))
    params = {path: jnp.asarray(array, float) for path, array in parameters(model).items()}
    theirs = as_torch(params)
    rates = {path: RATE * DECAY ** (count + 1 - depth(path)) for path in params}
    assert len(set(rates.values())) == count + (2 if "For" in name or "LM" in name else 1)
    groups = [
        {"params": [theirs[path]], "lr": rates[path], "weight_decay": 0.1 * decays}
        for path, decays in train.optimizers.decaying(params).items()
    ]
    reference = torch.optim.AdamW(groups)
    adamw = train.adamw(RATE, weight_decay=0.1, max_grad_norm=None)
    optimizer = train.layerwise(adamw, model, DECAY)
    state, step = optimizer.init(params), jax.jit(optimizer.update)
    for number in range(3):
        given = gradients(params, number)
        for path, parameter in theirs.items():
            parameter.grad = torch.tensor(np.array(given[path]))
        reference.step()
        updates, state = step(given, state, params)
        params = optax.apply_updates(params, updates)
    return max(float(np.abs(params[p] - theirs[p].detach().numpy()).max()) for p in params)


def of_bert(path):
    layer = re.search(r"encoder\.layer\.(\d+)\.", path)
    return int(layer[1]) + 1 if layer else 0 if "embeddings." in path else 3


def of_gpt2(path):
    layer = re.search(r"\bh\.(\d+)\.", path)
    return int(layer[1]) + 1 if layer else 0 if re.search(r"\bw[tp]e\.", path) else 3


def of_albert(path):
    group = re.search(r"albert_layer_groups\.(\d+)\.", path)
    early = ("albert.embeddings.", "albert.encoder.embedding_hidden_mapping_in.")
    return int(group[1]) + 1 if group else 0 if path.startswith(early) else 3


BERT = minibert.BertConfig.tiny(num_hidden_layers=2)
GPT2 = minibert.GPT2Config.tiny(n_layer=2)
ALBERT = minibert.AlbertConfig.tiny(num_hidden_layers=4, num_hidden_groups=2)


@pytest.mark.parametrize(
    ("name", "config", "depth"),
    [
        ("BertForMaskedLM", BERT, of_bert),
        ("GPT2LMHeadModel", GPT2, of_gpt2),
        pytest.param("AlbertForMaskedLM", ALBERT, of_albert, marks=pytest.mark.slow),
    ],
)
def test_rates_by_layer_are_those_of_groups(name, config, depth):
    assert layer_error(name, config, depth, 2) <= 1e-12


def test_a_mistake_in_the_layers_is_seen():
    with swapped(wrappers, "_layers_above", lambda model: lambda path: 3 - of_bert(path) // 3 * 3):
        assert layer_error("BertForMaskedLM", BERT, of_bert, 2) >= 1e-4


def model():
    return minibert.GPT2LMHeadModel(CONFIG, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    "lora",
    [None, pytest.param(train.LoRA(r=2, target_modules=["wte", "c_attn"]), marks=pytest.mark.slow)],
    ids=["whole", "adapter"],
)
def test_the_average_is_evaluated_and_saved(lora):
    plain = train.layerwise(train.adamw(RATE), model(), 0.5)
    ours = train.Trainer(model(), train.causal_lm, train.averaged(plain, DECAY), lora=lora)
    other = train.Trainer(model(), train.causal_lm, plain, lora=lora)
    expected = jax.device_get(other.state.params)
    for _ in range(3):
        one, two = ours.step(BATCH), other.step(BATCH)
        assert {name: float(x) for name, x in one.items()} == {n: float(x) for n, x in two.items()}
        assert float(one["learning_rate"]) == pytest.approx(RATE)
        for path, array in jax.device_get(other.state.params).items():
            assert np.array_equal(ours.state.params[path], array)
            expected[path] = DECAY * expected[path] + (1 - DECAY) * array
    found = parameters(ours.model) if lora is None else ours.adapter.params
    for path, array in expected.items():
        np.testing.assert_allclose(found[path], array, rtol=1e-6, atol=1e-7)
    loss = float(train.causal_lm(ours.model(IDS), BATCH))
    assert ours.evaluate([BATCH])["loss"] == pytest.approx(loss, rel=1e-6)
    assert other.evaluate([BATCH])["loss"] != pytest.approx(loss, rel=1e-6)


def test_an_average_of_some_parameters():
    """The others are evaluated as they are."""
    parts = {"averaged": train.averaged(train.adamw(RATE), DECAY), "plain": train.adamw(RATE)}

    def labels(params):
        return {path: "averaged" if "wpe" in path else "plain" for path in params}

    trainer = train.Trainer(model(), train.causal_lm, optax.multi_transform(parts, labels))
    before = jax.device_get(trainer.state.params)
    trainer.step(BATCH)
    after, found = jax.device_get(trainer.state.params), parameters(trainer.model)
    for path, array in after.items():
        mean = DECAY * before[path] + (1 - DECAY) * array if "wpe" in path else array
        np.testing.assert_allclose(found[path], mean, rtol=1e-6, atol=1e-7)
    assert trainer.evaluate([BATCH])["loss"] > 0


@pytest.mark.slow
def test_an_average_resumes(tmp_path):
    pytest.importorskip("grain", reason="the data are Grain's")
    pytest.importorskip("orbax.checkpoint", reason="the checkpoints are Orbax's")
    from training import Rows

    def run(steps, folder, decay=DECAY):
        return train.fit(
            train.Trainer(model(), train.causal_lm, train.averaged(train.adamw(RATE), decay)),
            train.data.batches(Rows(12), batch_size=4, epochs=None),
            steps=steps,
            checkpoints=train.Checkpoints(folder=tmp_path / folder, resume=True),
        )

    run(2, "a")
    resumed, whole = (parameters(run(4, folder).model) for folder in ("a", "b"))
    assert all(np.array_equal(resumed[path], whole[path]) for path in whole)
    said = "optimizer: arguments: average_decay: 0.9 in the checkpoint, 0.5 here"
    with pytest.raises(CheckpointMismatchError, match=said):
        run(6, "a", 0.5)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: train.averaged(train.adamw(1), 1.0), "decay: expected a number of at least 0 and"),
        (lambda: train.averaged(0.9), "optimizer: expected an optax transformation, found 0.9"),
        (
            lambda: train.layerwise(train.adamw(1), model(), 0),
            "decay: expected a number above 0, to",
        ),
        (lambda: train.layerwise(train.adamw(1), 0.9), "model: expected a model, found 0.9"),
        *(
            (make, "optimizer: expected one without an average")
            for make in (
                lambda: train.layerwise(train.averaged(train.adamw(1)), model()),
                lambda: train.averaged(train.averaged(train.adamw(1))),
            )
        ),
    ],
)
def test_wrong_arguments(make, said):
    with pytest.raises(InputError, match=f"^{said}"):
        make()
