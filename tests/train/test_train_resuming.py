"""A run resumes only with the same data and settings, from undamaged numbers, unless requested."""

import dataclasses
import json
import logging
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from checkout import PYTHONPATH

pytest.importorskip("grain", reason="the data are Grain's")
pytest.importorskip("orbax.checkpoint", reason="the checkpoints are Orbax's")

import minibert
from minibert.errors import CheckpointMismatchError, InputError
from minibert.train import (
    Checkpoints,
    LoRA,
    Trainer,
    adamw,
    causal_lm,
    continuation,
    contrastive,
    data,
    distillation,
    fit,
    schedule,
    with_teacher,
)
from minibert.train.checkpoints import EvaluationState, opened, restore
from minibert.train.data.identity import identity_of
from minibert.train.run_identity import differences, identity
from sentences import tokenizer
from training import Rows

pytestmark = pytest.mark.unoptimised

MODEL = minibert.GPT2LMHeadModel(
    minibert.GPT2Config.tiny(vocab_size=61, n_layer=1), rngs=nnx.Rngs(0)
)


def rate(steps=12, **options):
    return schedule(3e-3, steps, **{"warmup": 4, **options})


def trainer(optimizer=None, objective=causal_lm, model=MODEL, **options):
    return Trainer(model, objective, optimizer or adamw(rate()), **options)


def batches(rows=37, **options):
    source = Rows(rows) if isinstance(rows, int) else rows
    return data.batches(source, **{"batch_size": 4, "shuffle": True, "epochs": None, **options})


def save(folder, trained, given, *steps):
    """Writes checkpoints without a step of training, whose program would have to be compiled."""
    iterator = iter(given)
    with opened(Checkpoints(folder=folder), trained, given, iterator) as store:
        for step in steps:
            next(iterator)
            done = jnp.asarray(step, jnp.int32)
            trained.state = dataclasses.replace(trained.state, step=done)
            store.save(trained.state, step, iterator, EvaluationState())
            store.wait()
    return iterator


def resume(folder, trained, given, how=True, **options):
    """Restores the last checkpoint and stops there."""
    return fit(
        trained,
        given,
        steps=2,
        checkpoints=Checkpoints(folder=folder, resume=how, **options),
        show_progress=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint of two steps."""
    found = tmp_path_factory.mktemp("run")
    save(found, trainer(), batches(), 2)
    return found


def changed(index):
    """The rows with another token in one of them."""
    rows = [Rows(37)[number] for number in range(37)]
    rows[index] = {**rows[index], "input_ids": np.roll(rows[index]["input_ids"], 1)}
    return rows


DATA = {
    "batch_size": ({"batch_size": 2}, "data: batch_size: 4 in the checkpoint, 2 here"),
    "order": ({"shuffle": False}, "data: shuffle: True in the checkpoint, False here"),
    "seed": ({"seed": 1}, "data: seed: 0 in the checkpoint, 1 here"),
    "rows": ({"rows": 36}, "data: examples: 37 in the checkpoint, 36 here"),
    "texts": ({"rows": changed(30)}, "data: contents: '.*' in the checkpoint, '.*' here"),
    "last batch": ({"drop_last": True}, "data: drop_last: False in the checkpoint, True here"),
    "own": ({"about": {"file": "b"}}, "data: file: nothing in the checkpoint, 'b' here"),
}


@pytest.mark.parametrize("case", DATA)
def test_other_data_are_refused(case, folder):
    options, said = DATA[case]
    with pytest.raises(CheckpointMismatchError, match=said):
        resume(folder, trainer(), batches(**options))


def tuned(**changes):
    return Trainer(
        minibert.GPT2LMHeadModel(MODEL.config.replace(**changes), rngs=nnx.Rngs(0)),
        causal_lm,
        adamw(rate()),
    )


def narrow():
    config = MODEL.config
    return trainer(model=minibert.GPT2LMHeadModel(config, rngs=nnx.Rngs(0), dtype=jnp.bfloat16))


SETTINGS = {
    "learning rate": (
        lambda: trainer(adamw(schedule(1e-3, 12, warmup=4))),
        "optimizer: arguments: learning_rate: peak: 0.003 in the checkpoint, 0.001 here",
    ),
    "steps": (
        lambda: trainer(adamw(rate(13))),
        "optimizer: arguments: learning_rate: steps: 12 in the checkpoint, 13 here",
    ),
    "decay": (
        lambda: trainer(adamw(rate(), weight_decay=0.1)),
        "optimizer: arguments: weight_decay: 0.01 in the checkpoint, 0.1 here",
    ),
    "objective": (
        lambda: trainer(objective=continuation(3)),
        "objective: 'causal_lm' in the checkpoint, 'continuation' here",
    ),
    "dropout": (
        lambda: tuned(attn_pdrop=0.3),
        "config: attn_pdrop: 0.1 in the checkpoint, 0.3 here",
    ),
    "dtype": (narrow, r"dtypes: \[\] in the checkpoint, \['bfloat16'\] here"),
    "seed": (lambda: trainer(seed=1), "seed: 0 in the checkpoint, 1 here"),
    "parts": (lambda: trainer(accumulate=2), "accumulate: 1 in the checkpoint, 2 here"),
    "adapter": (lambda: trainer(lora=LoRA(r=2)), "lora: nothing in the checkpoint"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_other_settings_are_refused(case, folder):
    make, said = SETTINGS[case]
    with pytest.raises(CheckpointMismatchError, match=said):
        resume(folder, make(), batches())


def test_the_same_run_resumes_and_may_be_extended(folder, tmp_path):
    assert resume(folder, trainer(), batches()).step == 2
    assert resume(folder, trainer(remat=True), batches(epochs=7)).step == 2
    constant = {"kind": "constant"}
    save(tmp_path, trainer(adamw(rate(**constant))), batches(), 2)
    assert resume(tmp_path, trainer(adamw(rate(1000, **constant))), batches()).step == 2


def held_by_a_program(rate):
    """An optimiser whose rates are constants of a program that its own program calls."""
    table = np.full(3, rate, np.float32)
    return optax.sgd(jax.jit(lambda step: jnp.asarray(table)[step % 3]))


def differs(one, other):
    return bool(differences(identity(trainer(one), {}), identity(trainer(other), {})))


def test_any_optimizer_is_known_by_its_program(tmp_path):
    def made(rate=1e-3, boundary=100):
        falling = optax.piecewise_constant_schedule(rate, {boundary: 0.1})
        return trainer(optax.chain(optax.clip(1.0), optax.adam(falling)))

    save(tmp_path, made(), batches(), 2)
    assert resume(tmp_path, made(), batches()).step == 2
    for other in ({"rate": 2e-3}, {"boundary": 101}):
        with pytest.raises(CheckpointMismatchError, match=r"optimizer: program: jax .*, optax .*"):
            resume(tmp_path, made(**other), batches())
    assert differs(held_by_a_program(1e-3), held_by_a_program(2e-3))
    assert not differs(held_by_a_program(1e-3), held_by_a_program(1e-3))
    assert not differences(
        {"optimizer": {"program": {"jax 0.1": "a"}}}, {"optimizer": {"program": {"jax 9": "b"}}}
    )


def noisy(impl="threefry2x32"):
    """A trainer whose optimiser draws noise from a typed random key."""
    key = jax.random.key(3, impl=impl)
    return trainer(optax.chain(optax.add_noise(0.1, 0.5, key), optax.sgd(1e-3)))


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_random_keys_of_an_optimizer_are_saved(impl, tmp_path):
    trained, later = noisy(impl), jax.random.key(7, impl=impl)
    moved = (trained.state.opt_state[0]._replace(rng_key=later), *trained.state.opt_state[1:])
    trained.state = dataclasses.replace(trained.state, opt_state=moved)
    save(tmp_path, trained, batches(), 2)
    resumed = noisy(impl)
    assert restore(resumed, tmp_path) == 2
    found = resumed.state.opt_state[0].rng_key
    assert found.dtype == later.dtype
    assert (jax.random.key_data(found) == jax.random.key_data(later)).all()
    other = "rbg" if impl == "threefry2x32" else "threefry2x32"
    with pytest.raises(CheckpointMismatchError, match=r"opt_state: \[0\].rng_key: 'key<"):
        resume(tmp_path, noisy(other), batches(), "elsewhere")


def test_arrays_of_the_optimizer_itself_outlive_the_state():
    """A step donates the memory of its state."""
    key, rate = jax.random.key(3), jnp.array(1e-3)
    noise = optax.add_noise(0.1, 0.5, key)
    made = trainer(optax.chain(noise, optax.inject_hyperparams(optax.sgd)(rate)))
    for leaf in jax.tree.leaves(made.state):
        leaf.delete()
    assert jax.random.key_data(key)[1] == 3
    assert rate == jnp.array(1e-3)


def test_objectives_have_their_settings():
    teaching = distillation(contrastive(scale=5, pooling="cls"), temperature=3.0)
    assert teaching.settings["scale"] == 5
    assert teaching.settings["pooling"] == ("cls",)
    assert (teaching.settings["temperature"], teaching.settings["alpha"]) == (3.0, 0.5)


def test_a_tokenizer_changed_at_its_path_is_other_data():
    rows = [{"text": "the of", "label": 0}, {"text": "and to", "label": 1}]

    def found(case=None, length=9, **options):
        case = case or tokenizer()
        return identity_of(
            data.classification(rows, case, max_length=length, batch_size=2, **options)
        )

    assert found() == found(epochs=3)
    assert found() == found(seed=3)  # nothing is drawn
    other = tokenizer()
    other.add_tokens(["and to"])
    names = {fault.split(": ")[0] for fault in differences(found(), found(other))}
    assert names == {"tokenizer", "contents"}
    assert differences(found(), found(length=8))[:1] != []
    masks = [
        identity_of(
            data.masked_lm(["the of and"] * 3, case, max_length=9, batch_size=2, probability=p)
        )
        for case, p in ((tokenizer(), 0.15), (tokenizer(), 0.3))
    ]
    assert masks[0]["transforms"][0]["probability"] == 0.15
    assert masks[0] != masks[1]
    assert masks[0]["contents"] == masks[1]["contents"]


def test_what_is_made_of_data_has_their_identity():
    own = identity_of(batches())
    assert identity_of(batches().map(dict)) == {**own, "then": ["MapIterDataset"]}
    taught = identity_of(with_teacher(MODEL.eval(), batches()))
    assert taught == {**own, "teacher": taught["teacher"]}
    assert identity_of([{"input_ids": np.ones((1, 2), int)}]) is None
    with pytest.raises(InputError, match="identity: expected values by name, found 5"):
        identity_of(type("Own", (), {"identity": 5})())


def test_elsewhere(folder, tmp_path, caplog):
    """Parameters and steps are restored; the data restart, and the new learning rate applies."""
    save(tmp_path, trainer(adamw(1e-3), seed=0), batches(), 2)
    other, given = trainer(adamw(5e-4), seed=1), batches(batch_size=2)
    before = {path: np.asarray(leaf) for path, leaf in other.state.params.items()}
    moved = {path: jnp.asarray(leaf + 1) for path, leaf in before.items()}
    other.state = dataclasses.replace(other.state, params=moved)
    iterator, options = iter(given), Checkpoints(folder=tmp_path, resume="elsewhere")
    with caplog.at_level(logging.WARNING), opened(options, other, given, iterator) as store:
        state, eval_state, positioned = store.restore(other.state, iterator)
    assert (int(state.step), eval_state, positioned) == (2, EvaluationState(), False)
    assert next(iterator)["input_ids"].shape == (2, 9)
    for path, leaf in state.params.items():
        np.testing.assert_array_equal(leaf, before[path])
    assert float(minibert.train.learning_rate(state.opt_state)) == np.float32(5e-4)
    said = "\n".join(caplog.messages)
    for part in ("seed: 0 in", "batch_size: 4 in", "arguments: learning_rate: 0.001 in"):
        assert part in said
    with pytest.raises(CheckpointMismatchError, match="params"):
        resume(folder, trainer(trainable=("*.wte.*",)), batches(), "elsewhere")
    with pytest.raises(InputError, match="resume: expected True, False or 'elsewhere', found 1"):
        Checkpoints(folder=tmp_path, resume=1)


class Foreign:
    """Batches with a custom iterator."""

    def __init__(self):
        self.state = {"place": 0}

    def __iter__(self):
        return self

    def __next__(self):
        return Rows(3)[0]

    def get_state(self):
        return self.state

    def set_state(self, state):
        self.state = state


def test_custom_iterators_are_reported_as_not_compared(tmp_path, caplog):
    save(tmp_path, trainer(), Foreign(), 2)
    resume(tmp_path, trainer(), Foreign())
    assert "rows, order and batch size are not compared" in caplog.text
    named = Foreign()
    named.identity = lambda: {"rows": 3}
    caplog.clear()
    save(tmp_path / "named", trainer(), named, 2)
    other = Foreign()
    other.identity = lambda: {"rows": 4}
    with pytest.raises(CheckpointMismatchError, match="data: rows: 3 in the checkpoint, 4 here"):
        resume(tmp_path / "named", trainer(), other)
    assert not caplog.text


def test_checkpoints_without_checksums_are_read(tmp_path, caplog):
    """Checkpoints of the first format have no checksums."""
    trained = trainer(trainable=("*.ln_f.*",))
    save(tmp_path, trained, batches(), 2)
    path = tmp_path / "2" / "run" / "metadata"
    record = json.loads(path.read_text())
    new = ("format", "config", "optimizer", "dtypes", "objective_settings")
    identity = {name: part for name, part in record["identity"].items() if name not in new}
    identity["frozen"] = {path: f"{one}123" for path, one in identity["frozen"].items()}
    path.write_text(json.dumps({"identity": identity, "standing": record["standing"]}))
    assert resume(tmp_path, trainer(trainable=("*.ln_f.*",)), batches()).step == 2
    assert "has no checksums" in caplog.text
    assert "the checkpoint has no data identity" in caplog.text


FLIPS = """
import os, pathlib, sys
import jax, numpy as np
import test_train_resuming as here
from minibert.errors import WeightsFileError
from minibert.checkpoint.sources import open_source
from minibert.conversion.orbax_folder import write_orbax
from minibert.train import restore

def flips(path, places, only=None):
    whole = path.read_bytes()
    for number in range(places) if only is None else [only]:
        place = (2 * number + 1) * len(whole) // (2 * places)
        flipped = bytes([whole[place] ^ 1 << number % 8])
        path.write_bytes(whole[:place] + flipped + whole[place + 1:])
        yield place
    path.write_bytes(whole)

def largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)

def said(what):
    try:
        what()
    except WeightsFileError as reason:
        return str(reason)
    return "nothing"

folder = pathlib.Path(sys.argv[1])
trained = here.trainer()
here.save(folder / "run", trained, here.batches(), 2, 4)
last = folder / "run" / "4"
expected = jax.tree.leaves(jax.device_get(trained.state))
seen = []

def restored():
    restore(trained, folder / "run")
    found = jax.tree.leaves(jax.device_get(trained.state))
    assert all(map(np.array_equal, found, expected))  # a bit that Orbax does not read

for path, places in ((largest(last / "state"), 12), (last / "data" / "metadata", 3),
                     (last / "run" / "metadata", 5)):
    for number, place in enumerate(flips(path, places)):
        line = said(restored)
        print("run", path.name, place, line)
        if line != "nothing" and places == 12:
            seen.append(number)
for place in flips(largest(last / "state"), 12, only=seen[0]):
    resumed = lambda: here.resume(folder / "run", here.trainer(), here.batches())
    print("fit", path.name, place, said(resumed))
    print("step 2", said(lambda: restore(trained, folder / "run", 2)))
    for _ in flips(largest(folder / "run" / "2" / "state"), 4):
        print("both", said(lambda: restore(trained, folder / "run")))
print("whole", said(lambda: restore(trained, folder / "run")), sorted(os.listdir(folder / "run")))
os.mkdir(folder / "converted")
write_orbax(here.MODEL, str(folder / "converted"))
path = largest(folder / "converted")
for place in flips(path, 12):
    print("orbax", place, said(lambda: open_source(str(folder / "converted"))))
print("whole", said(lambda: open_source(str(folder / "converted"))))
"""


@pytest.mark.slow
def test_every_flipped_bit_is_found(tmp_path):
    """In a process of its own: Orbax leaves coroutines that warn when they are collected."""
    done = subprocess.run(
        [sys.executable, "-c", FLIPS, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=pathlib.Path(__file__).parent,
        env=os.environ | {"PYTHONPATH": PYTHONPATH},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    of = {kind: [line for line in lines if line.startswith(kind)] for kind in ("run", "fit")}
    assert len(of["run"]) == 20
    found = [line for line in of["run"] if not line.endswith("nothing")]
    assert len(found) >= 18  # the others change no array, and are in none of the metadata
    assert sum(" metadata " in line for line in found) == 8
    for line in found + of["fit"]:
        assert "run/4: a damaged checkpoint (" in line
        assert line.endswith(
            f"; the checkpoint of step 2 is intact: move {tmp_path / 'run' / '4'} away to resume "
            "from it"
        )
    assert "step 2 nothing" in lines
    assert any(line.startswith("both") and "no earlier checkpoint in" in line for line in lines)
    assert [line for line in lines if line.startswith("whole")] == [
        "whole nothing ['2', '4']",
        "whole nothing",
    ]
    orbax = [line for line in lines if line.startswith("orbax")]
    assert len(orbax) == 12
    assert all("damaged" in line or "not an Orbax checkpoint" in line for line in orbax), orbax
