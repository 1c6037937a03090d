"""The training step: accumulation, rematerialisation, frozen parameters, errors."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import minibert
from generating import compilations
from minibert import train
from minibert.errors import InputError
from minibert.models.outputs import MaskedLMOutput
from minibert.nn.tree import Structure, parameters
from minibert.train import Objective, Trainer
from slowly import slow_but
from tiny import STILL, drawn, texts

pytestmark = pytest.mark.unoptimised
ONE_LAYER = {"num_hidden_layers": 1}
ONE_LAYER_GPT2 = {"n_layer": 1}


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def part(tree, start, rows):
    return jax.tree.map(lambda array: array[start : start + rows], tree)


def largest(one, other):
    return max(float(np.abs(one[path] - other[path]).max()) for path in other)


def same(one, other):
    """Returns whether arrays are equal bit for bit."""
    return all(np.asarray(one[p]).tobytes() == np.asarray(other[p]).tobytes() for p in other)


def pretraining_batch():
    batch = texts(rows=8)
    batch["labels"][1] = -100  # no masked word in a whole row
    return batch | {"next_sentence_label": np.array([0, 1, -100, 1, -100, -100, -100, 0])}


def steps(trainer, *batches):
    found = [jax.device_get(trainer.step(batch)) for batch in batches]
    return found, jax.device_get(trainer.state.params)


def test_parts_are_the_whole():
    """Parts with different numbers of targets, and two terms; some have no target of the second."""
    model = drawn("BertForPreTraining", **STILL["bert"], **ONE_LAYER)
    make = functools.partial(Trainer, model, train.pretraining, train.adamw(1e-3))
    whole, wanted = steps(make(), pretraining_batch(), pretraining_batch())
    parts, found = steps(make(accumulate=4), pretraining_batch(), pretraining_batch())
    for one, other in zip(parts, whole, strict=True):
        assert one.keys() >= {"loss", "grad_norm", "masked_lm", "next_sentence"}
        assert largest(one, other) <= 1e-12
    assert largest(found, wanted) <= 1e-11


def test_a_mean_of_means_is_another_number():
    """The result if each part had its own mean, which the test above detects."""
    model = drawn("BertForPreTraining", **ONE_LAYER)
    batch = pretraining_batch()
    outputs = jax.jit(lambda model, ids: model(ids))(model, batch["input_ids"])
    whole = train.pretraining(outputs, batch)
    means = [
        train.pretraining(part(outputs, start, 2), part(batch, start, 2)) for start in (0, 2, 4, 6)
    ]
    assert abs(float(whole) - np.mean(means)) > 1e-3


@pytest.mark.parametrize(
    ("name", "dropout"),
    slow_but(
        itertools.product(["BertForMaskedLM", "GPT2LMHeadModel"], [True, False]),
        ("BertForMaskedLM", True),
    ),
)
def test_computed_again_is_the_same(name, dropout):
    family = "bert" if name.startswith("Bert") else "gpt2"
    objective = {"bert": train.masked_lm, "gpt2": train.causal_lm}[family]
    two_layers = {"bert": {"num_hidden_layers": 2}, "gpt2": {"n_layer": 2}}[family]
    model = drawn(name, **two_layers, **({} if dropout else STILL[family]))
    make = functools.partial(Trainer, model, objective, optax.sgd(0.1))
    plain, wanted = steps(make(), texts())
    again, found = steps(make(remat=True), texts())
    assert largest(again[0], plain[0]) <= 1e-12
    assert largest(found, wanted) <= 1e-12


@pytest.mark.parametrize("name", ["BertForMaskedLM", "GPT2LMHeadModel"])
def test_computing_again_keeps_less_for_the_backward_pass(name):
    """Counts stored residuals, not XLA's allocation: on a CPU, XLA undoes rematerialisation."""
    deep, objective = {
        "BertForMaskedLM": ({"num_hidden_layers": 8}, train.masked_lm),
        "GPT2LMHeadModel": ({"n_layer": 8}, train.causal_lm),
    }[name]
    batch = texts(rows=16, seq=40)

    def kept(remat):
        model = drawn(name, **deep)
        if remat:
            model.gradient_checkpointing_enable()
        structure = Structure(model)

        def loss(params):
            return objective(objective.apply(structure.build(params), batch, None), batch)

        arrays = parameters(model)
        backward = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], arrays)
        return sum(leaf.size for leaf in jax.tree.leaves(backward))

    plain, again = kept(remat=False), kept(remat=True)
    assert again < 0.2 * plain, (again, plain)


def test_what_is_not_trained_stays_and_one_program_serves():
    model = drawn("BertForSequenceClassification", num_labels=4, **ONE_LAYER)
    before = jax.device_get(parameters(model))
    objective = train.classification(model.config)
    trainer = Trainer(model, objective, train.adamw(1e-2), trainable=["classifier.*"])
    batch = {"input_ids": texts()["input_ids"], "labels": np.array([0, 3, 2, 1])}
    jax.block_until_ready(trainer.step(batch))
    with compilations() as programs:
        for seed in range(5):
            other = texts(seed=seed)["input_ids"]
            jax.block_until_ready(trainer.step(batch | {"input_ids": other}))
    assert programs == []
    after = jax.device_get(parameters(trainer.model))
    trained = {path for path in before if not same({path: before[path]}, {path: after[path]})}
    assert trained == {"classifier.kernel", "classifier.bias"} == trainer.state.params.keys()
    assert same(parameters(model), before)  # and the user's own model is as it was
    assert not any(
        m.deterministic is False for _, m in nnx.iter_modules(model) if hasattr(m, "deterministic")
    )


def recording(keys):
    """An objective that records the key of each call and has a constant loss."""

    def apply(model, batch, rngs):
        jax.debug.callback(
            lambda data: keys.append(tuple(data.tolist())), jax.random.key_data(rngs.dropout())
        )
        return sum(jnp.sum(leaf) * 0.0 for leaf in jax.tree.leaves(model))

    return Objective(
        name="keys",
        needs=(("input_ids",),),
        labels={},
        targets=lambda batch: {"keys": jnp.ones(batch["input_ids"].shape[0])},
        losses=lambda outputs, batch: {"keys": outputs * jnp.ones(batch["input_ids"].shape[0])},
        apply=apply,
    )


def drawn_keys(seed):
    keys = []
    model = drawn("BertModel", **ONE_LAYER)
    trainer = Trainer(model, recording(keys), optax.sgd(0.0), accumulate=4, seed=seed)
    for _ in range(3):
        trainer.step({"input_ids": np.zeros((4, 5), int)})
    jax.effects_barrier()
    return keys


def test_keys_are_a_steps_and_a_parts_own():
    one, other = drawn_keys(seed=0), drawn_keys(seed=1)
    assert len(one) == len(set(one)) == 12  # 3 steps of 4 parts
    assert set(drawn_keys(seed=0)) == set(one)
    assert not set(one) & set(other)


def test_the_same_seed_is_the_same_run():
    model = drawn("GPT2LMHeadModel", **ONE_LAYER_GPT2)
    make = functools.partial(Trainer, model, train.causal_lm, train.adamw(1e-3))
    (one, first), (other, second) = (steps(make(seed=3), texts(), texts()) for _ in range(2))
    assert same(first, second)
    assert all(map(same, one, other))
    still = make(seed=3)
    evaluated = [still.evaluate([texts()]) for _ in range(2)]
    assert evaluated[0] == evaluated[1]  # no dropout there
    assert abs(evaluated[0]["loss"] - one[0]["loss"]) > 1e-3


def test_evaluation_counts_every_target_alike():
    model = drawn("GPT2LMHeadModel", **ONE_LAYER_GPT2)
    trainer = Trainer(model, train.causal_lm, train.adamw(1e-3))
    batch = texts(rows=6)
    halves = [part(batch, 0, 3), part(batch, 3, 3)]
    whole = trainer.evaluate([batch])
    assert whole.keys() == {"loss", "causal_lm", "causal_lm_accuracy"}
    assert trainer.evaluate(halves)["causal_lm"] == pytest.approx(whole["causal_lm"], abs=1e-9)
    right = model(batch["input_ids"]).logits.argmax(-1)[:, :-1] == batch["labels"][:, 1:]
    kept = batch["labels"][:, 1:] != -100
    assert whole["causal_lm_accuracy"] == pytest.approx(float(right[kept].mean()))
    with pytest.raises(InputError, match="batches: expected at least one, found none"):
        trainer.evaluate([])
    none = batch | {"labels": np.full_like(batch["labels"], -100)}
    assert trainer.evaluate([none, batch]) == whole
    with pytest.raises(InputError, match="expected at least one target, found none"):
        trainer.evaluate([none])


def numbers(batch):
    return {"input_ids": batch["input_ids"], "labels": np.ones((4, 3))}


def rows_of(batch):
    return {"input_ids": batch["input_ids"], "labels": np.array([0, 2, -100, 1])}


def pairs(batch):
    names = ("anchor_input_ids", "positive_input_ids", "negative_input_ids")
    return dict.fromkeys(names, batch["input_ids"])


STRICT = {
    "pretraining": ("BertForPreTraining", lambda c: train.pretraining, None, {"accumulate": 2}),
    "causal": ("GPT2LMHeadModel", lambda c: train.causal_lm, dict, {"lora": train.LoRA(r=2)}),
    "one label": ("BertForSequenceClassification", train.classification, rows_of, {}),
    "weighted": (
        "BertForSequenceClassification",
        lambda c: train.weighted(train.classification(c), class_weights=[1, 2, 3]),
        rows_of,
        {},
    ),
    "several labels": ("BertForSequenceClassification", train.classification, numbers, {}),
    "continuation": ("BertForMaskedLM", lambda c: train.continuation(3), dict, {}),
    "pairs": ("BertModel", lambda c: train.contrastive(pooling=["max", "mean"]), pairs, {}),
}


@pytest.mark.parametrize("name", slow_but(STRICT, "one label"))
def test_nothing_relies_on_implicit_promotion(name):
    cls, objective, change, options = STRICT[name]
    one_layer = ONE_LAYER_GPT2 if cls.startswith("GPT2") else ONE_LAYER
    labels = {"num_labels": 3} if "Sequence" in cls else {}
    batch = change(texts()) if change else part(pretraining_batch(), 0, 4)
    # flax's LayerNorm itself relies on it for float64
    with jax.enable_x64(False), jax.numpy_dtype_promotion("strict"):
        cls = getattr(minibert, cls)
        model = cls(cls.config_class.tiny(**one_layer, **labels), rngs=nnx.Rngs(0))
        rate = train.schedule(1e-3, 4, warmup=2, kind="cosine")
        trainer = Trainer(model, objective(model.config), train.adamw(rate), **options)
        losses = [float(trainer.step(batch)["loss"]) for _ in range(2)]
        assert np.isfinite([*losses, trainer.evaluate([batch])["loss"]]).all()


@pytest.mark.slow
def test_weighted_classes():
    """The loss is weighted, accuracies are not, and parts have the loss of the whole batch."""
    model = drawn("BertForSequenceClassification", num_labels=3, **STILL["bert"], **ONE_LAYER)
    plain = train.classification(model.config)
    weights = (0.01, 0.02, 0.03)
    objective = train.weighted(plain, class_weights=weights, label_smoothing=0.1)
    batch = {"input_ids": texts()["input_ids"], "labels": np.array([0, 2, -100, 2])}
    made = functools.partial(Trainer, model, objective, optax.sgd(0.1))
    found = made().evaluate([batch])
    unweighted = Trainer(model, plain, optax.sgd(0.1)).evaluate([batch])
    assert found["classification_accuracy"] == unweighted["classification_accuracy"]
    log_p = jax.nn.log_softmax(model(batch["input_ids"]).logits)
    each = [
        0.9 * w * -log_p[row, label] - 0.1 / 3 * (log_p[row] @ np.array(weights))
        for row, label, w in ((0, 0, 0.01), (1, 2, 0.03), (3, 2, 0.03))
    ]
    assert found["loss"] == pytest.approx(float(sum(each)) / 0.07, abs=1e-9)
    (whole,), expected = steps(made(), batch)
    (parts,), params = steps(made(accumulate=2), batch)
    assert whole["loss"] == pytest.approx(found["loss"], abs=1e-9)
    assert largest(parts, whole) <= 1e-12
    assert largest(params, expected) <= 1e-12
    for wrong, said in (
        ({"class_weights": [1, 0]}, "class_weights: expected a positive number, found 0"),
        ({"class_weights": "ab"}, "class_weights: expected numbers, found 'ab'"),
        ({"label_smoothing": 1.0}, "label_smoothing: expected a number of at least 0 and below 1"),
    ):
        with pytest.raises(InputError, match=said):
            train.weighted(plain, **wrong)
    with pytest.raises(InputError, match="with one cross-entropy term, found 'pretraining'"):
        train.weighted(train.pretraining, label_smoothing=0.1)
    with pytest.raises(InputError, match=r"class_weights: expected 3 weights, .*; found 2"):
        Trainer(model, train.weighted(plain, class_weights=[1, 2]), optax.sgd(0.1)).step(batch)
    numbers = batch | {"labels": np.zeros((4, 3))}
    with pytest.raises(InputError, match="not implemented for multi_label_classification"):
        made().step(numbers)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (
            lambda: train.fit(None, [], steps=1, callback=print),
            "callback: not an argument of fit: p",
        ),
        (
            lambda: train.fit(None, [], step=1),
            r"step: not an argument of fit \(did you mean steps\?",
        ),
        (lambda: train.fit(None, [], epochs=1), "epochs: not an argument of fit: pass steps"),
        (
            lambda: Trainer(args=1, model=2),
            "args: not an argument of Trainer: pass each setting to",
        ),
        (lambda: train.adamw(lr=1), "lr: not an argument of adamw: pass learning_rate"),
        (lambda: train.LoRA(r=1, inference_mode=False), "inference_mode: not .* LoRA: Trainer tr"),
        (lambda: train.LoRA(lora_alfa=1), r"lora_alfa: .* of LoRA \(did you mean lora_alpha\?\)"),
        (lambda: Trainer(1, 2, 3, remats=True), r"remats: .* of Trainer \(did you mean remat\?\)"),
        (lambda: Trainer(1, 2, 3, peft_config=4), "peft_config: not an argument .*: pass lora"),
    ],
)
def test_arguments_of_other_libraries(made, said):
    with pytest.raises(InputError, match=f"^{said}"):
        made()


def test_methods_of_other_libraries():
    trainer = Trainer(drawn("BertModel", **ONE_LAYER), train.contrastive(), optax.sgd(0.1))
    for name in ("train", "fit", "save_model", "predict"):
        with pytest.raises(AttributeError, match=f"^{name}: not a method of Trainer: "):
            getattr(trainer, name)
    with pytest.raises(AttributeError, match="'Trainer' object has no attribute 'params'"):
        assert trainer.params
    batch = {"input_ids": texts()["input_ids"]}
    with pytest.raises(InputError, match="callbacks: expected a list of functions, found <built"):
        train.fit(trainer, [batch], steps=1, callbacks=print)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_parameters_are_refused(dtype):
    config = minibert.BertConfig.tiny(**ONE_LAYER)
    model = minibert.BertForMaskedLM(config, rngs=nnx.Rngs(0), param_dtype=dtype)
    with pytest.raises(InputError, match="expected float32 or wider, found"):
        Trainer(model, train.masked_lm, train.adamw(1e-3))


def test_pairs_cannot_be_taken_in_parts():
    model = drawn("BertModel", **ONE_LAYER)
    with pytest.raises(InputError, match=r"accumulate: expected 1, because .* compares the rows"):
        Trainer(model, train.contrastive(), train.adamw(1e-3), accumulate=2)
    with pytest.raises(
        InputError, match=r"objective: expected an objective of minibert.train, found"
    ):
        Trainer(model, train.contrastive, train.adamw(1e-3))
    with pytest.raises(InputError, match="optimizer: expected an optax transformation, found"):
        Trainer(model, train.contrastive(), 1e-3)


def test_scores_narrower_than_float32_are_widened():
    """A model that computes in bfloat16 has a float32 loss, and the gradient of that loss."""
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, 9, 97)) * 5, jnp.bfloat16)
    outputs = MaskedLMOutput(logits=logits)
    exact = MaskedLMOutput(logits=logits.astype(jnp.float64))
    loss = train.masked_lm(outputs, texts())
    assert loss.dtype == jnp.float32
    assert abs(float(loss) - float(train.masked_lm(exact, texts()))) < 1e-6
