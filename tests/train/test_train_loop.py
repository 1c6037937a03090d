"""The training loop: metrics, evaluations, checkpoints, stopping and errors."""

import json
import os
import signal

import jax
import numpy as np
import optax
import pytest
from flax import nnx

pytest.importorskip("grain", reason="the data are Grain's")
pytest.importorskip("orbax.checkpoint", reason="the checkpoints are Orbax's")

import minibert
from minibert.errors import (
    CheckpointMismatchError,
    InputError,
    NotFiniteError,
    TargetError,
)
from minibert.inspection.plots import loss_curve
from minibert.train import (
    Checkpoints,
    Evaluation,
    Trainer,
    adamw,
    causal_lm,
    data,
    fit,
    restore,
)
from minibert.train.run_identity import identity, run_differences
from training import Rows, batches, digest, trainer

pytestmark = pytest.mark.unoptimised


def held():
    return list(batches(epochs=1))[:2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run of twelve steps."""
    folder, told = tmp_path_factory.mktemp("whole"), []
    result = fit(
        trainer(12),
        batches(),
        steps=12,
        evaluation=Evaluation(batches=held(), every=5),
        checkpoints=Checkpoints(folder=folder / "checkpoints", every=4, keep=2),
        log=folder / "log.jsonl",
        callbacks=[lambda step, metrics: told.append((step, metrics))],
    )
    return folder, result, told


@pytest.mark.slow
def test_metrics(whole):
    folder, result, told = whole
    assert (result.stopped, result.step) == ("steps", 12)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert lines == result.history == [metrics for _, metrics in told]
    assert [line["step"] for line in lines] == [step for step, _ in told] == list(range(1, 13))
    for line in lines:
        assert {"loss", "grad_norm", "learning_rate"} <= line.keys()
        assert ("eval_loss" in line) == (line["step"] in (5, 10, 12))
        assert ("tokens_per_second" in line) == (line["step"] > 1)
    evaluated = {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}
    assert result.best_step == min(evaluated, key=lambda step: evaluated[step])
    again = result.trainer.evaluate(held())
    assert again["loss"] == lines[-1]["eval_loss"]


def test_what_is_kept(whole):
    folder, result, _ = whole
    kept = {int(name) for name in os.listdir(folder / "checkpoints")}
    assert 12 in kept
    assert result.best_step in kept
    assert len(kept) <= 3
    other = trainer(12)
    assert restore(other, folder / "checkpoints") == 12
    assert digest(other) == digest(result.trainer)


def test_interrupted_and_resumed(whole, tmp_path):
    def interrupt(step, metrics):
        if step in (3, 9):
            signal.raise_signal(signal.SIGTERM if step == 3 else signal.SIGINT)

    def run(trained):
        return fit(
            trained,
            batches(),
            steps=12,
            evaluation=Evaluation(batches=held(), every=5),
            checkpoints=Checkpoints(folder=tmp_path / "c", every=50, keep=1, resume=True),
            log=tmp_path / "log.jsonl",
            callbacks=[interrupt],
        )

    stops = []
    while not stops or stops[-1][0] == "interrupted":
        result = run(trainer(12))
        stops.append((result.stopped, result.step))
    assert stops == [("interrupted", 4), ("interrupted", 10), ("steps", 12)]
    _, undisturbed, _ = whole
    assert digest(result.trainer) == digest(undisturbed.trainer)
    assert result.best_step == undisturbed.best_step
    for ours, theirs in zip(result.history, undisturbed.history, strict=True):
        assert {k: v for k, v in ours.items() if "second" not in k} == {
            k: v for k, v in theirs.items() if "second" not in k
        }
    assert run(trainer(12)).step == 12  # there is nothing left to do


def _spoiling(number):
    """An optimiser whose fifth update, number 4, is infinite."""

    def update(updates, step, params=None):
        spoilt = jax.tree.map(lambda x: jax.numpy.where(step == number, jax.numpy.inf, x), updates)
        return spoilt, step + 1

    return optax.GradientTransformation(lambda params: jax.numpy.zeros((), int), update)


@pytest.mark.parametrize("saving", [False, True])
def test_not_finite(saving, tmp_path):
    config = minibert.GPT2Config.tiny(vocab_size=61, n_layer=1)
    model = minibert.GPT2LMHeadModel(config, rngs=nnx.Rngs(0))
    trained = Trainer(model, causal_lm, optax.chain(adamw(1e-3), _spoiling(4)))
    checkpoints = Checkpoints(folder=tmp_path / "c", every=1) if saving else None
    said = (
        "step 5: NaN or infinity in"
        if saving
        else r"step 6: .*nan.* at batch 6 of the data, of the examples"
    )
    with pytest.raises(NotFiniteError, match=said):
        fit(trained, batches(), steps=9, checkpoints=checkpoints, log=tmp_path / "log.jsonl")
    if saving:
        assert max(int(name) for name in os.listdir(tmp_path / "c")) == 4


@pytest.mark.slow
def test_an_evaluation_that_is_not_finite(tmp_path):
    """The steps before it are valid: they are logged, and are in a checkpoint."""
    config = minibert.GPT2Config.tiny(vocab_size=61, n_layer=1)
    model = minibert.GPT2LMHeadModel(config, rngs=nnx.Rngs(0))
    places = model.transformer.wpe.embedding
    places[...] = places[...].at[9:].set(3e38)  # training does not come to them
    trained = Trainer(model, causal_lm, adamw(1e-3))
    ids = np.ones((2, 12), np.int32)
    evaluation = Evaluation(batches=[*held(), {"input_ids": ids, "labels": ids}], every=2)
    checkpoints = Checkpoints(folder=tmp_path / "c", every=10)
    said = r"^evaluation at step 2: batch 2: the loss 'causal_lm' is nan: every parameter is finite"
    with pytest.raises(NotFiniteError, match=said):
        fit(
            trained,
            batches(),
            steps=3,
            evaluation=evaluation,
            checkpoints=checkpoints,
            log=tmp_path / "log",
        )
    lines = (tmp_path / "log").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    assert "2" in os.listdir(tmp_path / "c")


def test_patience(tmp_path):
    result = fit(
        trainer(30, trainable=("*.ln_f.bias",)),
        batches(),
        steps=30,
        evaluation=Evaluation(batches=[alternating()], every=1, patience=2),
    )
    assert result.stopped == "patience"
    values = [line["eval_loss"] for line in result.history]
    assert result.best_step == int(np.argmin(values)) + 1
    assert len(values) == result.best_step + 2


def alternating():
    """A batch whose loss increases when the model learns the others."""
    ids = np.tile(np.arange(9, dtype=np.int32), (2, 1))
    return {"input_ids": ids, "labels": ids}


@pytest.mark.slow
def test_the_data_end():
    result = fit(trainer(), batches(epochs=1), steps=30)
    assert (result.stopped, result.step) == ("data", 9)
    assert len(result.history) == 9
    evaluation = Evaluation(batches=held(), every=20)
    result = fit(trainer(), batches(epochs=1), steps=30, evaluation=evaluation, log_every=20)
    (line,) = result.history
    assert line["step"] == result.best_step == 9
    assert line["eval_loss"] == result.trainer.evaluate(held())["loss"]
    result = fit(trainer(), batches(epochs=1), steps=30, log_every=4)
    assert [line["step"] for line in result.history] == [4, 8, 9]


def test_what_is_wrong_is_not_the_end_of_the_data():
    def failing(last):
        yield from held()[:1]
        if isinstance(last, Exception):
            raise last
        yield last

    trained = trainer()
    for last, error, said in (
        (None, InputError, "data: expected arrays by name, found None"),
        (ValueError("torn"), ValueError, "torn"),
        (StopIteration(), RuntimeError, "generator raised StopIteration"),
    ):
        given = failing(last)
        with pytest.raises(error, match=said):
            fit(trained, given, steps=9)
        with pytest.raises(InputError, match="data: expected batches, found none; an iterator"):
            fit(trained, given, steps=9)


class Torn(Rows):
    """Rows, one of which raises an error when it is read."""

    def __init__(self, wrong):
        super().__init__(9)
        self.wrong = wrong

    def __getitem__(self, number):
        if number == 5:
            return self.wrong()
        return super().__getitem__(number)


@pytest.mark.parametrize("shuffle", [False, True])
def test_errors_in_reading_examples_are_raised(shuffle):
    """Grain would end at a StopIteration, and skip None."""
    for wrong, error, said in (
        (lambda: next(iter(())), RuntimeError, "example 5: raised StopIteration"),
        (lambda: None, InputError, "example 5: expected arrays by name, found None"),
        (lambda: [][1], IndexError, "list index out of range"),
    ):
        with pytest.raises(error, match=said):
            list(data.batches(Torn(wrong), batch_size=2, shuffle=shuffle))

    def ending(example, generator):
        raise StopIteration

    with pytest.raises(RuntimeError, match="function: raised StopIteration"):
        list(data.batches(Rows(9), batch_size=2, transforms=[ending]))


def test_batches_of_pytorch(tmp_path):
    """A DataLoader's batches, tensors, train as the arrays in them do."""
    loaders = pytest.importorskip("torch.utils.data", reason="it makes the batches")
    rows = [{**Rows(8)[number], "attention_mask": np.ones(9, bool)} for number in range(8)]
    loader = loaders.DataLoader(rows, batch_size=4)
    arrays = [{name: tensor.numpy() for name, tensor in batch.items()} for batch in loader]
    found, expected = (
        fit(trainer(), given, steps=2, evaluation=Evaluation(batches=given, every=1))
        for given in (loader, arrays)
    )
    for ours, theirs in zip(found.history, expected.history, strict=True):
        assert {k: v for k, v in ours.items() if "second" not in k} == {
            k: v for k, v in theirs.items() if "second" not in k
        }
    assert found.history[1]["tokens_per_second"] > 0
    with pytest.raises(InputError, match="the data cannot be resumed"):
        fit(trainer(), loader, steps=1, checkpoints=Checkpoints(folder=tmp_path))


def test_every_third_line():
    result = fit(trainer(), batches(), steps=7, log_every=3)
    assert [line["step"] for line in result.history] == [3, 6, 7]


def test_another_run(whole, tmp_path):
    folder, _, _ = whole
    where = folder / "checkpoints"
    with pytest.raises(TargetError, match="holds checkpoints, the last of step 12"):
        fit(trainer(12), batches(), steps=12, checkpoints=Checkpoints(folder=where))
    with pytest.raises(CheckpointMismatchError, match="seed: 0 in the checkpoint, 1 here"):
        restore(trainer(12, seed=1), where)
    frozen = trainer(12, trainable=("*.wte.*",))
    with pytest.raises(CheckpointMismatchError, match=r"params: .*ln_f.bias: .* nothing here"):
        restore(frozen, where)
    with pytest.raises(TargetError, match="already exists; choose another file"):
        fit(trainer(12), batches(), steps=12, log=folder / "log.jsonl")


def test_frozen_parts_count():
    one, two = (trainer(12, trainable=("*.wte.*",)) for _ in range(2))
    path = next(iter(two.frozen))
    before = identity(one, {})
    assert identity(two, {}) == before
    changed = identity(two, {"data": 1})
    changed["frozen"] = {**changed["frozen"], path: "float32[72] #1"}
    assert len(run_differences(before, changed)) == 2
    assert len(run_differences(changed, before)) == 1  # `before` does not state its data


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 0}, "steps: expected a whole number from 1 to 2147483647, found 0"),
        ({"steps": 2**62}, "steps: expected a whole number from 1 to 2147483647"),
        ({"steps": 1, "log": "a\0b"}, r"log: expected a path or null, found 'a\\x00b'"),
        ({"steps": 3, "log_every": 0}, "log_every"),
        ({"steps": 3, "checkpoints": "list"}, "the data cannot be resumed"),
        ({"steps": 3, "evaluation": 5}, "evaluation: expected .*Evaluation.*, found .*int"),
    ],
)
def test_refused(options, said, tmp_path):
    if "checkpoints" in options:
        options["checkpoints"] = Checkpoints(folder=tmp_path)
    with pytest.raises(InputError, match=said):
        fit(trainer(), held(), **options)
    with pytest.raises(InputError, match=r"folder: expected a path, found 'a\\x00b'"):
        Checkpoints(folder="a\0b")
    with pytest.raises(InputError, match="iterated over repeatedly"):
        Evaluation(batches=iter(held()), every=1)
    with pytest.raises(InputError, match="iterated over repeatedly"):
        Evaluation(batches=5, every=1)
    with pytest.raises(InputError, match="data: expected batches, found"):
        fit(trainer(), 5, steps=1)
    with pytest.raises(InputError, match="trainer: expected"):
        fit("trainer", held(), steps=1)
    with pytest.raises(InputError, match="about: expected values that JSON can represent"):
        Checkpoints(folder=tmp_path, about={"data": object()})
    assert Checkpoints(folder=tmp_path, about={"rows": np.int64(3)}).every == 1000


def test_loss_curve(whole):
    pytest.importorskip("matplotlib", reason="it draws")
    _, result, _ = whole
    (axes,) = loss_curve(result.history).axes
    assert axes.get_title() == "Loss"
    assert axes.get_xlabel() == "step"
    assert "nats" in axes.get_ylabel()
    training, _, evaluation = axes.lines
    assert list(training.get_xdata()) == list(range(1, 13))
    assert list(evaluation.get_xdata()) == [5, 10, 12]
    with pytest.raises(InputError, match="none"):
        loss_curve([])
