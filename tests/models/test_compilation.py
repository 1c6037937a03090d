"""A compiled model: its own signature and outputs, one program a shape, little time a call."""

import os
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import minibert
from generating import compilations
from minibert.errors import InputError
from minibert.models import compilation, stack
from minibert.models.compilation import compiled
from tiny import drawn

IDS = np.arange(1, 22, dtype=np.int64).reshape(3, 7)
MASK = np.arange(7) < np.array([7, 5, 2])[:, None]


def single(name: str, **config: object):
    """A tiny model in float32."""
    with jax.enable_x64(True):
        model = drawn(name, **config)
    return jax.tree.map(lambda leaf: jax.numpy.asarray(np.float32(leaf)), model)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["BertModel", "BertForMaskedLM", "GPT2Model", "GPT2LMHeadModel"])
def test_its_own_outputs(name):
    model = single(name)
    fast = compiled(model)
    options = {"output_hidden_states": True, "output_attentions": True}
    mask = np.ones_like(MASK) if "GPT2" in name else MASK
    expected = model(IDS, attention_mask=mask, **options)
    found = fast(IDS, attention_mask=mask, **options)
    assert type(found) is type(expected)
    assert list(found) == list(expected)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert fast.config is model.config
    assert repr(fast) == f"compiled({name})"


@pytest.mark.slow
def test_positional_arguments_are_the_models_own():
    bert, gpt2 = single("BertModel"), single("GPT2Model")
    named = compiled(bert)(IDS, attention_mask=MASK).last_hidden_state
    assert (compiled(bert)(IDS, MASK).last_hidden_state == named).all()
    cache = gpt2.init_cache(3, 9)
    out = compiled(gpt2)(IDS, cache)  # the second of a GPT-2 is its cache
    assert int(out.past_key_values.index) == 7
    head = compiled(single("BertForMaskedLM"))
    assert (head(IDS, MASK).logits == head(IDS, attention_mask=MASK).logits).all()


class Mean(minibert.BertForMaskedLM):
    """A user's head, which passes on what it does not read; it has the trunk's arguments."""

    def __call__(self, *args, scale=1, **kwargs):
        return self.bert(*args, **kwargs).last_hidden_state.mean(axis=1) * scale


class Last(Mean):
    """One whose trunk's arguments are passed by name alone."""

    def __call__(self, *, scale=1, **kwargs):
        return super().__call__(scale=scale, **kwargs)


@pytest.mark.slow
def test_arguments_that_are_passed_on():
    config = minibert.BertConfig.tiny()
    mean, last = (cls(config, rngs=nnx.Rngs(0)).eval() for cls in (Mean, Last))
    expected = 2 * mean(IDS, MASK)
    found = compiled(mean)(IDS, MASK, scale=2)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    found = compiled(last)(input_ids=IDS, attention_mask=MASK, scale=2)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    with pytest.raises(InputError, match="at most 0 positional"):
        compiled(last)(IDS)
    with pytest.raises(InputError, match="attention_maks"):
        compiled(mean)(IDS, attention_maks=MASK)


@pytest.mark.slow
def test_one_program_a_shape():
    model = single("BertModel", hidden_size=12, intermediate_size=20)
    fast = compiled(model)
    with compilations() as found:
        fast(IDS, attention_mask=MASK)
    assert len(found) == 1
    with compilations() as found:
        fast(IDS[::-1], attention_mask=MASK)
        compiled(model)(IDS, attention_mask=MASK)
        twin = single("BertModel", hidden_size=12, intermediate_size=20, seed=1)
        other = compiled(twin)(IDS, attention_mask=MASK)
    assert found == []
    expected = twin(IDS, attention_mask=MASK).last_hidden_state
    np.testing.assert_allclose(other.last_hidden_state, expected, atol=1e-5)
    with compilations() as found:
        fast(IDS[:2], attention_mask=MASK[:2])
    assert len(found) == 1


def test_options_are_distinguished_by_type():
    """A True that is refused is not the 1 that comes after it, though they are equal."""
    model = single("GPT2LMHeadModel")
    for _ in range(2):
        fast = compiled(model)
        with pytest.raises(InputError, match=r"logits_to_keep: .* found True"):
            fast(IDS, logits_to_keep=True)
        assert fast(IDS, logits_to_keep=1).logits.shape[1] == 1


def test_options_of_numpy():
    fast = compiled(single("GPT2LMHeadModel"))
    assert fast(IDS, logits_to_keep=np.int64(2)).logits.shape[1] == 2
    assert fast(IDS, output_hidden_states=np.True_).hidden_states


def lowered(fast, arrays, **options):
    """The text of the program of a compiled model for some arrays and options."""
    static = tuple(sorted((name, type(value), value) for name, value in options.items()))
    program = compilation.program(compilation._forward, fast.programs.treedef, static)
    return program.lower(fast.programs.leaves, arrays).as_text()


def test_weights_are_arguments():
    """Not constants of the program, whose text would grow with them."""
    model = single("BertModel")
    fast = compiled(model)
    text = lowered(fast, {"input_ids": IDS})
    assert "tensor<97x24xf32>" in text.partition("@main")[2].partition(")")[0]  # the words' table
    assert 'dense<"0x' not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": IDS - 2}, "input_ids: -1 is out of range"),
        ({"input_ids": IDS + 90}, "input_ids: 111 is out of range"),
        ({"input_ids": IDS * 2**33}, "input_ids: "),
        ({"input_ids": IDS * 1.0}, "input_ids: expected integers"),
        ({"input_ids": IDS[0]}, "input_ids: expected shape"),
        ({"input_ids": IDS, "token_type_ids": IDS}, "token_type_ids: 21 is out of range"),
        ({"input_ids": IDS, "position_ids": IDS + 30}, "position_ids: 51 is out of range"),
        ({"input_ids": IDS, "attention_mask": MASK * 2}, "attention_mask: expected only 0 and 1"),
        ({"input_ids": IDS, "attention_mask": MASK * 1.0}, "attention_mask: expected integers"),
        ({"input_ids": IDS, "attention_mask": MASK[:2]}, "attention_mask: expected shape"),
        ({"input_ids": "the"}, "input_ids"),
        ({"input_ids": IDS, "use_cache": 0.5}, "use_cache: expected True or False, found 0.5"),
        ({"input_ids": IDS, "output_attentions": "no"}, "output_attentions: expected True or"),
        ({"input_ids": IDS, "output_hidden_states": MASK}, "output_hidden_states: expected True"),
        ({"input_ids": IDS, "head_mask": 0.5}, "head_mask: expected an option or an array"),
        ({"input_ids": IDS, "rngs": nnx.Rngs(0)}, "rngs: a compiled model has no dropout"),
    ],
)
def test_wrong_arguments(arguments, message):
    fast = compiled(single("BertModel"))
    with pytest.raises((InputError, TypeError), match=message):
        fast(**arguments)


def test_too_many_or_twice():
    fast = compiled(single("BertModel"))
    with pytest.raises(InputError, match="expected at most 12 positional arguments, found 13"):
        fast(*[None] * 13)
    with pytest.raises(InputError, match="input_ids: passed both by position and by name"):
        fast(IDS, input_ids=IDS)


def test_what_cannot_be_compiled():
    with pytest.raises(InputError, match="model: expected a model, found 'str'"):
        compiled("bert")
    with pytest.raises(InputError, match="model: expected a model, found 'Compiled'"):
        compiled(compiled(single("BertModel")))
    with pytest.raises(InputError, match="model: expected evaluation mode"):
        compiled(single("BertModel").train())


GROUPED = {
    "BertModel": {},
    "BertForSequenceClassification": {},
    "GPT2Model": {},
    "GPT2LMHeadModel": {"add_cross_attention": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", GROUPED)
def test_rows_in_groups(name, monkeypatch):
    """Blocks that are given some rows at a time return what they return for all."""
    draw = np.random.default_rng(0)
    ids, mask = draw.integers(1, 90, (6, 5)), np.arange(5) < draw.integers(2, 6, (6, 1))
    given: dict[str, Any] = {"output_hidden_states": True, "output_attentions": True}
    given |= {"attention_mask": mask} if "Bert" in name else {}
    with jax.enable_x64(True):
        model = drawn(name, **GROUPED[name])
        if GROUPED[name]:
            given["encoder_hidden_states"] = draw.standard_normal((6, 4, 24))
            given["encoder_attention_mask"] = np.arange(4) < draw.integers(1, 5, (6, 1))
        expected = model(ids, **given)
        monkeypatch.setattr(stack, "TOKENS", 11)  # two rows at a time
        compilation.program.cache_clear()
        fast = compiled(model)
        found = fast(ids, **given)
        arrays = {name: value for name, value in given.items() if not isinstance(value, bool)}
        text = lowered(
            fast, {"input_ids": ids, **arrays}, **{n: given[n] for n in given.keys() - arrays}
        )
        assert text.count("stablehlo.while") == 2  # one for each block
        compilation.program.cache_clear()
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)
    assert not model.base_model.execution.row_groups


def test_groups_are_not_too_small(monkeypatch):
    """Of a number of rows with no divisor, all rows are given."""
    monkeypatch.setattr(stack, "TOKENS", 21)
    for rows, groups in {6: 2, 7: 0, 3: 0}.items():
        ids = np.arange(1, 1 + 7 * rows).reshape(rows, 7)
        compilation.program.cache_clear()
        fast = compiled(single("BertModel"))
        fast(ids)
        text = lowered(fast, {"input_ids": ids})
        assert text.count("stablehlo.while") == groups, rows
    compilation.program.cache_clear()


@pytest.mark.slow
def test_warmed_up():
    fast = compiled(single("BertModel", hidden_size=12, intermediate_size=28))
    assert fast.warm_up((3, 7), [2, 4], output_attentions=True) is fast
    with compilations() as found:
        out = fast(IDS, attention_mask=MASK, output_attentions=True)
        fast(IDS, attention_mask=MASK.astype(np.uint8), output_attentions=True)
        fast(IDS[:2, :4], attention_mask=MASK[:2, :4], output_attentions=True)
        fast(IDS.astype(np.uint8), attention_mask=MASK, output_attentions=True)
        fast(IDS.tolist(), attention_mask=MASK.tolist(), output_attentions=True)
    assert found == []
    with jax.enable_x64(True):
        fast.warm_up((3, 7), output_attentions=True)
        with compilations() as found:
            fast(IDS.astype(np.int64), attention_mask=MASK, output_attentions=True)
    assert found == []
    assert len(out.attentions) == 2
    fast.warm_up((3, 7), attention_mask=None)
    choosing = compiled(single("BertForMultipleChoice")).warm_up((2, 3, 7))
    with compilations() as found:
        fast(IDS)
        choosing(np.ones((2, 3, 7), int), attention_mask=np.ones((2, 3, 7), int))
    assert found == []


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (3, "shapes: expected \\(batch, seq\\), found 3"),
        ((3,), "shapes: expected"),
        ((3, 0), "shapes: "),
        ((3, 2.5), "shapes: "),
        ((1, 41), "input_ids: "),
    ],
)
def test_shapes_that_are_none(shape, message):
    with pytest.raises(InputError, match=message):
        compiled(single("BertModel")).warm_up(shape)


START = """
import sys
import minibert
from jax import monitoring
found = []
monitoring.register_event_listener(lambda event, **_: found.append(event.split("/")[-1]))
model = minibert.load(sys.argv[1])
out = minibert.compiled(model)([[1, 2, 3]], attention_mask=[[1, 1, 1]])
print(found.count("cache_hits"), found.count("cache_misses"), float(out[0].sum()))
"""


@pytest.mark.slow
def test_programs_are_found_by_the_next_process(tmp_path):
    """In the folder that JAX's own settings name: nothing in a program is its process's own."""
    single("BertModel").save_pretrained(tmp_path / "model")
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-c", START, str(tmp_path / "model")]
    (hits, misses, total), again = (
        subprocess.run(
            command, env=os.environ | cache, capture_output=True, text=True, check=True
        ).stdout.split()
        for _ in range(2)
    )
    assert int(hits) == 0 < int(misses)
    assert again == [misses, "0", total]


@pytest.mark.slow
def test_little_time_a_call():
    """Host time of a call of twelve layers, next to nothing beside `nnx.jit`'s 10 ms and more."""
    config = minibert.BertConfig.tiny(num_hidden_layers=12)
    model = minibert.BertModel(config, rngs=nnx.Rngs(0)).eval()
    fast, ids = compiled(model), IDS.astype(np.int32)
    fast(ids).last_hidden_state.block_until_ready()
    seconds = []
    for _ in range(200):
        start = time.perf_counter()
        out = fast(ids)
        seconds.append(time.perf_counter() - start)
        out.last_hidden_state.block_until_ready()
    assert min(seconds) < 2e-3
