"""Compiled programs are shared, and bounded in number; long runs keep no memory."""

import functools
import gc
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from minibert.models import compilation
from minibert.models.compilation import Programs

MOST = 4


def doubled(model, array):
    return 2 * array + model.bias[...][0]


def held() -> int:
    gc.collect()
    return len(jax.devices()[0].client.live_executables())


@pytest.fixture
def few(monkeypatch):
    """Only a few programs are kept."""
    bounded = functools.lru_cache(maxsize=MOST)(compilation.program.__wrapped__)
    monkeypatch.setattr(compilation, "program", bounded)
    return bounded


def test_programs_of_many_shapes_are_dropped(few):
    programs, before = Programs(nnx.Linear(2, 2, rngs=nnx.Rngs(0))), held()
    for size in range(1, 31):
        found = programs(doubled)(np.ones(size, np.float32))
        assert found.shape == (size,)
    assert few.cache_info().currsize == MOST
    assert held() - before <= 2 * MOST  # a reused one is not compiled again
    kept = few.cache_info().misses
    programs(doubled)(np.zeros(30, np.float32))
    assert few.cache_info().misses == kept


def test_equal_models_share_programs(few):
    for seed in range(3):
        Programs(nnx.Linear(2, 2, rngs=nnx.Rngs(seed)))(doubled)(np.ones(3, np.float32))
    assert few.cache_info().misses == 1


# Prints the resident memory in bytes after half of the calls, and after all of them.
RUN = """
import sys

import numpy as np
import psutil
from transformers import AutoTokenizer

import minibert
from minibert.assets import BERT, GPT2

draw = np.random.default_rng(0)
if sys.argv[1] == "encode":
    tokenizer = AutoTokenizer.from_pretrained(BERT)
    encoder = minibert.SentenceEncoder(minibert.BertModel.from_pretrained(BERT), tokenizer)
    words = "the of and to in a that is was for on are with as be by this at".split()

    def call():
        texts = [" ".join(draw.choice(words, size)) for size in draw.integers(1, 20, 2)]
        encoder.encode(texts, packing=int(draw.integers(1, 33)))
else:
    gpt2 = minibert.GPT2LMHeadModel.from_pretrained(GPT2)

    def call():
        ids = draw.integers(1, 90, (1, draw.integers(1, 30)))
        minibert.generate(gpt2, ids, max_new_tokens=int(draw.integers(1, 3)))

for number in range(1, 3001):
    call()
    if number % 1500 == 0:
        print(psutil.Process().memory_info().rss)
"""


@pytest.mark.slow
@pytest.mark.parametrize("what", ["encode", "generate"])
def test_long_runs_keep_no_memory(what):
    """Of random widths, lengths and limits, whose programs are few."""
    command = [sys.executable, "-c", RUN, what]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    half, whole = map(int, done.stdout.split())
    assert whole - half <= 1.5 * 2**20  # 1 MiB in a thousand calls
