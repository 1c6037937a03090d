"""Training: schedules, the optimiser, steps of every kind, whole runs, adapters."""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .models import called, drawn, inputs, joined, parameters_of
from .outputs_models import written
from .surface import data, minibert, train

NAME = "GPT2LMHeadModel"


def schedules(folder: pathlib.Path) -> Any:
    found = {}
    for kind in ("linear", "cosine", "constant"):
        rate = train.schedule(0.1, 10, warmup=3, kind=kind)
        found[kind] = jnp.stack([jnp.asarray(rate(step)) for step in range(12)])
    return found


def optimizer(folder: pathlib.Path) -> Any:
    """AdamW alone, on arrays."""
    draw = np.random.default_rng(0)
    params = {name: jnp.asarray(draw.standard_normal(4)) for name in ("a.kernel", "a.bias")}
    found = {}
    for name, options in {"plain": {}, "free": {"max_grad_norm": None, "b2": 0.9}}.items():
        adam = train.adamw(train.schedule(0.1, 5), weight_decay=0.1, **options)
        state, now = adam.init(params), params
        for step in range(3):
            gradients = jax.tree.map(lambda x, step=step: x * (step + 1), now)
            updates, state = adam.update(gradients, state, now)
            now = jax.tree.map(jnp.add, now, updates)
        found[name] = {"params": now, "rate": train.learning_rate(state)}
    return found


def batch(rows: int = 4) -> dict[str, Any]:
    given = inputs(NAME, rows=rows)
    return given | {"labels": np.where(given["attention_mask"] > 0, given["input_ids"], -100)}


def state(trainer: Any) -> dict[str, Any]:
    """All that a step changes, by path."""
    named = jax.tree_util.tree_leaves_with_path(trainer.state)
    return {jax.tree_util.keystr(path): leaf for path, leaf in named}


def steps(folder: pathlib.Path) -> Any:
    """Two steps with dropout of each kind of training; then an evaluation."""
    alone = minibert.Sharding.of_devices(devices=jax.devices()[:1], fsdp=1)
    kinds: dict[str, dict[str, Any]] = {
        "plain": {},
        "parts": {"accumulate": 2, "remat": True, "seed": 3},
        "some": {"trainable": ("lm_head.*", "transformer.h.0.attn.*")},
        "adapter": {"lora": train.LoRA(r=2, lora_alpha=4)},
        "sharded": {"sharding": alone},
    }
    found: dict[str, Any] = {}
    for name, options in kinds.items():
        config = {"tie_word_embeddings": False} if name == "some" else {}
        optimizer = train.adamw(train.schedule(1e-2, 4, warmup=1))
        trainer = train.Trainer(
            drawn(NAME, n_layer=1, **config), train.causal_lm, optimizer, **options
        )
        metrics = [trainer.step(batch()) for _ in range(2)]
        found[name] = {"metrics": metrics, "model": parameters_of(trainer.model)}
        found[name] |= {"frozen": sorted(trainer.frozen), "evaluated": trainer.evaluate([batch()])}
        if name == "plain":
            found[name]["state"] = state(trainer)
        if name == "adapter":
            found[name]["adapter"] = dict(trainer.adapter.params)
    return found


class Rows:
    """Rows of numbers."""

    def __len__(self) -> int:
        return 11

    def __getitem__(self, number: int) -> dict[str, Any]:
        ids = np.random.default_rng(number).integers(0, 97, 6).astype(np.int32)
        return {"input_ids": ids, "labels": ids, "example": np.int64(number)}


def runs(folder: pathlib.Path) -> Any:
    """A run, the same run in two parts, and one that is resumed elsewhere."""

    def run(steps: int, name: str, **options: Any) -> Any:
        optimizer = train.adamw(options.pop("rate", 1e-2))
        trainer = train.Trainer(drawn(NAME, n_layer=1), train.causal_lm, optimizer)
        return train.fit(
            trainer,
            data.batches(Rows(), batch_size=4, shuffle=True, drop_last=True, epochs=None),
            steps=steps,
            evaluation=train.Evaluation(batches=[batch()], every=2, patience=9),
            checkpoints=train.Checkpoints(folder=folder / name, every=2, keep=5, **options),
            log=folder / f"{name}.jsonl",
            show_progress=False,
        )

    whole = run(6, "whole")
    run(4, "pieces")
    again = run(6, "pieces", resume=True)
    elsewhere = run(7, "pieces", resume="elsewhere", rate=1e-3)
    earlier = train.Trainer(drawn(NAME, n_layer=1), train.causal_lm, train.adamw(1e-2))
    step = train.restore(earlier, folder / "whole", 4)
    lines = (folder / "whole.jsonl").read_text().splitlines()
    return {
        "history": [timeless(line) for line in whole.history],
        "log": sorted(json.loads(lines[-1])),
        "ends": [whole.step, whole.stopped, whole.best_step, again.step, elsewhere.step],
        "whole": parameters_of(whole.model),
        "pieces": parameters_of(again.model),
        "elsewhere": parameters_of(elsewhere.model),
        "restored": [step, int(earlier.state.step)],
        "earlier": parameters_of(earlier.model),
        "folder": sorted(path.name for path in (folder / "whole").iterdir()),
    }


def timeless(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if "second" not in name and name != "mfu"}


def adapters(folder: pathlib.Path) -> Any:
    found: dict[str, Any] = {}
    kinds = {
        "GPT2LMHeadModel": train.LoRA(r=2, init_lora_weights=False),
        "BertForSequenceClassification": train.LoRA(
            r=3,
            lora_alpha=5,
            target_modules="all-linear",
            task_type="SEQ_CLS",
            use_rslora=True,
            init_lora_weights="gaussian",
            rank_pattern={"query": 2},
        ),
    }
    for name, lora in kinds.items():
        model = drawn(name)
        adapter = train.init_adapter(model, lora, seed=4)
        train.save_adapter(model, adapter, folder / name)
        back = train.load_adapter(model, folder / name)
        assert isinstance(back, train.Adapter)
        found[name] = {
            "files": written(folder / name),
            "drawn": dict(adapter.params),
            "read": joined(dict(back.params)),
            "merged": called(train.merge(model, back), inputs(name)),
            "settings": repr(lora),
        }
    return found


CASES = (schedules, optimizer, steps, runs, adapters)
