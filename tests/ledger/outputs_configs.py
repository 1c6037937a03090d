"""Configs as JSON, in both directions; and how the library refuses what is wrong."""

import json
import pathlib
from typing import Any

import jax
import numpy as np

from .models import drawn
from .surface import analysis, assets, data, errors, minibert, pooling, scratch, train

PRESETS = {
    "BertConfig": ("tiny", "base", "large"),
    "GPT2Config": "tiny small medium large xl".split(),
}
FILE = {
    "model_type": "gpt2",
    "n_embd": 48,
    "num_attention_heads": 4,
    "id2label": {"0": "no", "1": "yes"},
    "task_specific_params": {"a": [1, 2]},
    "made_up": True,
}


def lines(value: Any) -> list[str]:
    return json.dumps(value, indent=1, sort_keys=True, default=str).splitlines()


def presets(folder: pathlib.Path) -> Any:
    found = {}
    for name, kinds in PRESETS.items():
        cls = getattr(minibert, name)
        for kind in kinds:
            config = getattr(cls, kind)()
            found[f"{name} {kind}"] = lines(config.to_dict())
        found[f"{name} default"] = lines(cls().to_dict())
    return found


def reading(folder: pathlib.Path) -> Any:
    config = minibert.GPT2Config.from_dict(FILE)
    (folder / "config.json").write_text(json.dumps(FILE))
    same = minibert.GPT2Config.from_json(str(folder / "config.json")) == config
    changed = config.replace(num_labels=3, hidden_size=96)
    return {
        "fields": lines(config.to_dict()),
        "ignored": list(config.ignored_fields),
        "same": same,
        "text": repr(config),
        "changed": lines(changed.to_dict()),
        "names": [config.hidden_size, config.name_of("hidden_size"), config.is_decoder],
    }


def generation(folder: pathlib.Path) -> Any:
    given = {"max_new_tokens": 5, "num_beams": 2, "eos_token_id": [3, 4], "made_up": 1}
    config = minibert.GenerationConfig.from_dict(given)
    return {
        "default": repr(minibert.GenerationConfig()),
        "text": repr(config),
        "fields": lines(config.to_dict()),
        "of a model": lines(minibert.GenerationConfig.of_model(minibert.GPT2Config()).to_dict()),
    }


def documents(folder: pathlib.Path) -> Any:
    rows = [{"title": "One", "text": "a b"}, {"title": "One", "text": "c"}]
    (folder / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "texts").mkdir()
    (folder / "texts" / "Two.txt").write_text("d\r\ne")
    own = minibert.read_documents()
    return {
        "table": minibert.read_documents(folder / "table.jsonl"),
        "folder": minibert.read_documents(folder / "texts"),
        "python's": [next(iter(own)), own["assert"][:300]],
    }


def refusals(folder: pathlib.Path) -> Any:
    """The types and messages of errors."""
    bert, gpt2 = drawn("BertModel"), drawn("GPT2LMHeadModel")
    bert.save_pretrained(folder / "bert")
    (folder / "adapted").mkdir()
    (folder / "adapted" / "config.json").write_text("{}")
    calls = {
        "range": lambda: bert(np.array([[97]])),
        "shape": lambda: bert(np.zeros((1, 2, 3, 4), int)),
        "length": lambda: bert(np.zeros((1, 41), int)),
        "both": lambda: bert(np.zeros((1, 2), int), inputs_embeds=np.zeros((1, 2, 24))),
        "mask": lambda: bert(np.zeros((1, 2), int), attention_mask=np.full((1, 2), 2)),
        "config": lambda: minibert.BertConfig(hidden_size=10, num_attention_heads=3),
        "refused": lambda: minibert.BertConfig.from_dict(
            {"position_embedding_type": "relative_key"}
        ),
        "nowhere": lambda: minibert.load(folder / "nothing"),
        "class": lambda: minibert.GPT2Model.from_pretrained(folder / "bert"),
        "head": lambda: minibert.BertForMaskedLM.from_pretrained(folder / "bert"),
        "exists": lambda: bert.save_pretrained(folder / "bert"),
        "no weights": lambda: minibert.load(folder / "adapted"),
        "no decoder": lambda: minibert.generate(bert, [[1]]),
        "option": lambda: minibert.generate(gpt2, [[1]], max_new_token=3),
        "no key": lambda: minibert.generate(gpt2, [[1]], do_sample=True),
        "unimplemented": lambda: minibert.generate(gpt2, [[1]], guidance_scale=2.0),
        "empty": lambda: minibert.generate(gpt2, [[]]),
        "room": lambda: minibert.captured(bert, "encoder.layer.9", np.array([[1]])),
        "task": lambda: minibert.pipeline("translation", assets.BERT),
        "pooling": lambda: analysis.pool_layers([], np.ones((1, 1)), "median"),
        "four layers": lambda: pooling.LAYERS["mean_of_last_four"]([1]),
        "heads": lambda: scratch.MultiHeadAttention(4, 6, num_heads=4, rngs=None),
        "schedule": lambda: train.schedule(1.0, 10, kind="steep"),
        "windows": lambda: data.windows([1, 2], max_length=4, batch_size=1),
        "objective": lambda: train.Trainer(bert, "causal_lm", train.adamw(1.0)),
        "traced": lambda: jax.jit(lambda ids: minibert.generate(gpt2, ids))(np.array([[1]])),
    }
    found = {}
    for name, call in calls.items():
        try:
            call()
            found[name] = ["nothing was raised"]
        except errors.MinibertError as reason:
            message = str(reason).replace(str(folder), "").splitlines()
            found[name] = [type(reason).__name__, *message]
    return found


CASES = (presets, reading, generation, documents, refusals)
