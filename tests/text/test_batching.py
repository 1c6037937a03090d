"""Batches of few shapes: every text occurs once, within the budget, with few programs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibert.errors import InputError
from minibert.text.batching import BUCKETS, Batch, bucket, check_budget, padded, plan


def test_buckets():
    assert BUCKETS[:9] == (8, 16, 24, 32, 40, 48, 56, 64, 80)
    assert list(BUCKETS) == sorted(set(BUCKETS))
    assert [size for size in BUCKETS if size >= 448][:3] == [448, 512, 640]
    assert BUCKETS[-1] >= 1 << 15
    assert [bucket(size, 100) for size in (1, 8, 9, 64, 65, 97, 100)] == [
        8,
        8,
        16,
        64,
        80,
        100,
        100,
    ]


def test_longer_than_all_buckets():
    assert bucket(60_000, 100_000) == 100_000


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 300), max_size=60),
    budget=st.integers(1, 2000),
    longest=st.integers(300, 600),
)
def test_every_text_once_within_the_budget(lengths, budget, longest):
    batches = plan(lengths, longest, budget)
    placed = [index for batch in batches for index in batch.indices]
    assert sorted(placed) == list(range(len(lengths)))
    for batch in batches:
        assert 1 <= len(batch.indices) <= batch.rows
        assert batch.rows == 1 or batch.rows * batch.length <= budget
        assert max(lengths[index] for index in batch.indices) <= batch.length <= longest
    found = [batch.length for batch in batches]
    assert found == sorted(found, reverse=True)
    # one shape for each length, but for the last batch
    assert len({(batch.rows, batch.length) for batch in batches[:-1]}) == len(set(found[:-1]))


def test_a_plan():
    """Long texts are batched together; the last few are in a batch of a power of two rows."""
    batches = plan([5, 40, 7, 9, 6, 41], 512, 96)
    assert [(list(b.indices), b.rows, b.length) for b in batches] == [
        ([5, 1], 2, 48),
        ([3, 2, 4, 0], 4, 16),
    ]
    assert plan([], 512, 1024) == []
    assert [b.rows for b in plan([8] * 5, 512, 1024)] == [8]
    assert [b.rows for b in plan([8] * 9, 512, 64)] == [8, 8]  # the second as the first


@pytest.mark.parametrize("budget", [0, -1, 2.0, True, "64"])
def test_an_invalid_budget(budget):
    with pytest.raises(InputError, match="token_budget: expected a whole number of at least 1"):
        check_budget(budget)


@pytest.mark.parametrize("length", [0, 513])
def test_a_text_of_no_length_or_too_long(length):
    with pytest.raises(InputError, match=f"text 1: {length} tokens; expected 1 to 512"):
        plan([3, length], 512, 1024)


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        (False, [[1, 2, 3, 9], [4, 9, 9, 9], [9, 9, 9, 9]]),
        (True, [[9, 1, 2, 3], [9, 9, 9, 4], [9, 9, 9, 9]]),
    ],
)
def test_padding(left, expected):
    batch = Batch(np.array([2, 0]), rows=3, length=4)
    found = padded([[4], [], [1, 2, 3]], batch, 9, left)
    assert found.dtype == np.int32
    assert found.tolist() == expected
