"""The training step compared with PyTorch's: AdamW, its schedule and clipping."""

import itertools

import jax
import numpy as np
import pytest

pytest.importorskip("torch", reason="the oracle is PyTorch")

import torch
import transformers

import losses
import oracle
from minibert import train
from minibert.train import Trainer
from slowly import slow_but
from tiny import STILL, texts

STEPS, WARMUP, PEAK, DECAY = 20, 5, 3e-3, 0.1
OBJECTIVES = {"BertForMaskedLM": train.masked_lm, "GPT2LMHeadModel": train.causal_lm}


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(
    ("name", "clip"),
    slow_but(
        itertools.product(OBJECTIVES, [None, 0.5]),
        ("BertForMaskedLM", 0.5),
        ("GPT2LMHeadModel", None),
    ),
)
def test_twenty_steps_beside_pytorch(name, clip, tmp_path):
    still = STILL[oracle.family(name)]
    theirs, ours = losses.pair(name, tmp_path, **still)
    theirs.train()
    decayed = [p for path, p in theirs.named_parameters() if _decays(path)]
    others = [p for path, p in theirs.named_parameters() if not _decays(path)]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=PEAK, eps=1e-8)
    rate = transformers.get_linear_schedule_with_warmup(reference, WARMUP, STEPS)
    schedule = train.schedule(PEAK, STEPS, warmup=WARMUP)
    trainer = Trainer(
        ours, OBJECTIVES[name], train.adamw(schedule, weight_decay=DECAY, max_grad_norm=clip)
    )
    for number in range(STEPS):
        batch = texts(seed=number)
        with losses.wide_losses():
            expected = theirs(**losses.tensors(batch)).loss
        reference.zero_grad()
        expected.backward()
        if clip is not None:  # not by clip_grad_norm_, which adds 1e-6 to the norm
            norm = torch.sqrt(sum((p.grad**2).sum() for p in theirs.parameters()))
            for parameter in theirs.parameters():
                parameter.grad *= min(1.0, clip / norm.item())
        reference.step()
        rate.step()
        metrics = trainer.step(batch)
        assert abs(float(metrics["loss"]) - expected.item()) <= 1e-8
    found = oracle.named_arrays(trainer.model)
    start = oracle.named_arrays(ours)
    for path, parameter in theirs.named_parameters():
        assert np.abs(found[path] - parameter.detach().numpy()).max() <= 1e-7, path
        if not path.endswith("key.bias"):  # which no softmax depends on
            assert np.abs(found[path] - start[path]).max() > 1e-3, path


def _decays(path):
    return not path.endswith(("bias", *oracle.NORMS))
