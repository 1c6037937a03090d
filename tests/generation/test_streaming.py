"""Streams yield the columns of `generate` one by one, and consume their state."""

import jax
import numpy as np
import pytest

import minibert
from generating import PAD, prompts, tiny
from minibert.errors import InputError
from minibert.generation import api as generation
from minibert.generation import decoding
from slowly import slow_but

pytestmark = pytest.mark.unoptimised

WAYS = {
    "greedy": {"no_repeat_ngram_size": 2},
    "drawn": {"do_sample": True, "temperature": 1.5, "num_return_sequences": 2},
    "one": {"max_new_tokens": 1},
}
ENDS = list(range(0, 90, 6))


@pytest.fixture(scope="module")
def model():
    with jax.enable_x64(True):
        yield tiny()


def arguments(way: str) -> tuple:
    options = {"max_new_tokens": 15, "eos_token_id": ENDS, "pad_token_id": PAD} | WAYS[way]
    if options.get("do_sample"):
        options["key"] = jax.random.key(2)
    return prompts(np.random.default_rng(0), [7, 3]), options


@pytest.mark.parametrize("way", slow_but(WAYS, next(iter(WAYS))))
def test_a_stream_is_generates_columns(model, way):
    (ids, mask), options = arguments(way)
    expected = minibert.generate(model, ids, mask, **options)[:, 7:]
    columns = list(minibert.stream(model, ids, mask, **options))
    np.testing.assert_array_equal(np.stack(columns, axis=1), expected)
    assert all(isinstance(column, np.ndarray) for column in columns)
    if way == "drawn":  # all rows ended before the limit, and nothing was read after that
        assert len(columns) < 15


def test_the_state_is_used_up(model, monkeypatch):
    states = []
    original = generation.steps

    def watched(program, *rest):
        def compiled(function, **options):
            run = program(function, **options)

            def watch(leaves, *arguments):
                states.extend(one for one in arguments if isinstance(one, decoding.State))
                return run(leaves, *arguments)

            return watch

        return original(compiled, *rest)

    monkeypatch.setattr(generation, "steps", watched)
    columns = list(minibert.stream(model, [[1, 2, 3]], max_new_tokens=4, eos_token_id=None))
    assert len(states) == len(columns) - 1 == 3
    for state in states:
        assert isinstance(state, decoding.State)
        buffers = [*jax.tree.leaves(state.cache), state.tokens]
        assert all(buffer.is_deleted() for buffer in buffers)
    leaves = jax.tree.leaves(model)
    assert not any(leaf.is_deleted() for leaf in leaves)


def test_a_stream_may_be_left(model):
    (ids, mask), options = arguments("greedy")
    whole = minibert.generate(model, ids, mask, **options)
    started = minibert.stream(model, ids, mask, **options)
    first, other = next(started), minibert.stream(model, ids, mask, **options)
    np.testing.assert_array_equal(next(other), first)  # two at once do not disturb each other
    started.close()
    del started
    rest = np.stack(list(other), axis=1)
    np.testing.assert_array_equal(np.concatenate([first[:, None], rest], axis=1), whole[:, 7:])
    np.testing.assert_array_equal(minibert.generate(model, ids, mask, **options), whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 2}, "num_beams: not supported by stream; expected 1; use generate instead"),
        (
            {"output_scores": True, "return_dict_in_generate": True},
            "output_scores: not supported by stream; expected False; use generate instead",
        ),
        (
            {"output_logits": True, "return_dict_in_generate": True},
            "output_logits: not supported by stream; expected False; use generate instead",
        ),
        ({"max_new_tokens": 0}, "max_new_tokens: expected a whole number of at least 1, found 0"),
        ({"do_sample": True}, "key: sampling needs a random key"),
    ],
)
def test_arguments_are_checked_when_it_is_called(model, options, message):
    with pytest.raises(InputError, match=f"^{message}"):
        minibert.stream(model, [[1, 2, 3]], **options)
