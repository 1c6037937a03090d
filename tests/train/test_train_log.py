"""Metrics of a run: log lines, tokens and FLOPs per second."""

import json
import os

import jax
import numpy as np
import pytest
from flax import nnx

import minibert
from minibert.errors import InputError, TargetError
from minibert.train import Trainer, adamw, causal_lm
from minibert.train.metrics import PEAKS, MetricsLog, Speed, sizes

pytestmark = pytest.mark.unoptimised


def test_a_log_is_continued(tmp_path):
    path = tmp_path / "log.jsonl"
    lines = [{"step": step, "loss": 1.0} for step in (1, 2, 3)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4, "lo')
    log = MetricsLog(path, 2, restored=True, resume=True)
    log.add({"step": 3, "loss": 2.0})
    log.close()
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert found == log.history == [*lines[:2], {"step": 3, "loss": 2.0}]
    path.write_text('{"step": 1}\nnothing\n{"step": 2}\n')
    with pytest.raises(InputError, match="line 2"):
        MetricsLog(path, 2, restored=True, resume=True)


def test_a_steps_second_line_is_added_to_its_first(tmp_path):
    path = tmp_path / "log.jsonl"
    log = MetricsLog(path, 0, restored=False, resume=False)
    for line in ({"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 2, "eval_loss": 2.5}):
        log.add(dict(line))
    log.add({"step": 3, "loss": 1.0})
    log.close()
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert found == log.history
    assert found[1] == {"step": 2, "loss": 2.0, "eval_loss": 2.5}
    assert [line["step"] for line in found] == [1, 2, 3]


def test_what_is_no_log_is_kept(tmp_path):
    path = tmp_path / "notes.json"
    path.write_text('{"my": "precious line"}')
    for restored in (True, False):
        with pytest.raises(
            InputError, match="line 1: expected a JSON object of metrics with a step"
        ):
            MetricsLog(path, 3, restored=restored, resume=True)
    assert path.read_text() == '{"my": "precious line"}'


def test_another_runs_log_is_kept(tmp_path):
    path = tmp_path / "log.jsonl"
    text = "".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 3))
    path.write_text(text)
    for step in (0, 2):  # a run that has no checkpoint, or a trainer that has gone two steps
        with pytest.raises(TargetError, match="already exists; choose another file"):
            MetricsLog(path, step, restored=False, resume=False)
    for number in (1, 2):
        path.write_text(text)
        log = MetricsLog(path, 0, restored=False, resume=True)
        log.add({"step": 1, "loss": 1.0})
        log.close()
        assert (tmp_path / f"log.jsonl.{number}").read_text() == text
    log = MetricsLog(path, 1, restored=False, resume=False)  # the same trainer's next steps
    assert [line["step"] for line in log.history] == [1]
    log.close()


def test_links_are_not_followed(tmp_path):
    path, mine = tmp_path / "log.jsonl", tmp_path / "thesis.txt"
    mine.write_text("precious")
    for name in ("log.jsonl.new", "log.jsonl.12345678.new"):
        (tmp_path / name).symlink_to(mine)
    path.write_text('{"step": 1}\n{"step": 2}\n')
    log = MetricsLog(path, 1, restored=True, resume=True)  # replaces the file
    log.add({"step": 1, "eval_loss": 2.0})  # and again
    log.close()
    assert path.read_text() == '{"step": 1, "eval_loss": 2.0}\n'
    assert mine.read_text() == "precious"
    assert len(list(tmp_path.iterdir())) == 4  # nothing of its own is left
    path.unlink()
    for there in (True, False):
        path.symlink_to(mine)
        with pytest.raises(
            TargetError, match=r"log\.jsonl: expected a file, found a symbolic link"
        ):
            MetricsLog(path, 0, restored=False, resume=True)
        assert mine.exists() == there
        mine.unlink(missing_ok=True)
        path.unlink()
    assert not mine.exists()
    os.mkfifo(path)
    with pytest.raises(TargetError, match="expected a regular file"):
        MetricsLog(path, 0, restored=False, resume=True)


def test_a_log_belongs_to_one_run(tmp_path):
    path = tmp_path / "log.jsonl"
    first = MetricsLog(path, 0, restored=False, resume=False)
    for amended in (False, True):
        for line in ({"step": 1, "loss": 2.0}, {"step": 1, "eval_loss": 2.0})[: 1 + amended]:
            first.add(dict(line))
        for resume in (False, True):
            with pytest.raises(TargetError, match="another run is writing this log"):
                MetricsLog(path, 0, restored=False, resume=resume)
    first.add({"step": 2, "loss": 1.0})
    first.close()
    lines = [{"step": 1, "loss": 2.0, "eval_loss": 2.0}, {"step": 2, "loss": 1.0}]
    assert [json.loads(line) for line in path.read_text().splitlines()] == lines
    second = MetricsLog(path, 2, restored=True, resume=True)
    assert second.history == lines
    second.close()


def test_sizes():
    mask = np.array([[1, 1, 1, 0], [1, 1, 0, 0]])
    assert sizes({"input_ids": mask, "attention_mask": mask, "labels": mask}) == {
        "examples": 2,
        "tokens": 5,
        "positions": 8,
        "squares": 32,
    }
    looks = np.tril(np.ones((2, 4, 4), int)) * mask[:, None]
    assert sizes({"input_ids": mask, "attention_mask": looks})["tokens"] == 5
    pairs = {"anchor_input_ids": mask, "anchor_attention_mask": mask, "positive_input_ids": mask}
    assert sizes(pairs) == {"examples": 2, "tokens": 13, "positions": 16, "squares": 64}


def test_flops_are_those_that_xla_counts(monkeypatch):
    config = minibert.GPT2Config.tiny(
        vocab_size=1000, n_embd=256, n_head=4, n_layer=2, n_inner=None, n_positions=128
    )
    model = minibert.GPT2LMHeadModel(config, rngs=nnx.Rngs(0)).eval()
    speed = Speed(Trainer(model, causal_lm, adamw(1e-3)))
    ids = np.zeros((4, 128), np.int32)
    lowered = jax.jit(lambda model, ids: model(ids).logits).lower(model, ids)
    forward = lowered.cost_analysis()["flops"]
    size = sizes({"input_ids": ids})
    linear, square = speed._flops
    assert linear * size["positions"] + square * size["squares"] == pytest.approx(
        3 * forward, rel=0.1
    )
    assert PEAKS["NVIDIA H200"] == 989e12
    assert "mfu" not in speed.rates()
