"""Tensors of every family that do not correspond with the model: every fault is found and named."""

import itertools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import minibert
from families import FACTS, OF_CLASS
from malformed import (
    FINITE,
    FLOATS,
    ONES,
    add,
    both,
    cast,
    drop,
    edit_json,
    edit_tensors,
    holding,
    load,
    put,
    refused,
    rename,
)
from minibert.checkpoint.saving import file_leaves
from minibert.errors import CheckpointMismatchError, ConfigError, MissingHeadError

pytestmark = pytest.mark.unoptimised


def faults(facts):
    """What may be wrong with any family's tensors, and what is then said."""
    t, width = facts.tensors, facts.width
    rows, columns = t.shape
    bias, size = t.bias
    extra_layer = f"{t.layer}.2.{t.leaf}"
    layer_01 = f"{t.layer}.01.{t.leaf}"
    return {
        "missing": (
            drop(t.kernel),
            (f"'{t.prefix}{t.kernel}': expected {t.shape}, found no such tensor",),
        ),
        "missing-bias": (drop(bias), (f"'{t.prefix}{bias}': expected {size}, found no such",)),
        "missing-norm": (drop(t.norm), (f"'{t.prefix}{t.norm}': expected (24,)",)),
        "missing-layer": (
            lambda tensors: [
                tensors.pop(name)
                for name in list(tensors)
                if name.startswith(f"{t.layer}.{t.last}.")
            ],
            (f"{t.layer_faults} faults", f"'{t.prefix}{t.kernel}'"),
        ),
        "extra": (add("spare", ONES), ("'spare': float32 of shape (24,)", f"no leaf of {t.name}")),
        "extra-in-a-submodule": (add(f"{t.layer}.0.spare", ONES), (f"'{t.layer}.0.spare'",)),
        "extra-scalar": (add("step", np.array(1, np.float32)), ("'step': float32 of shape ()",)),
        "extra-layer": (add(extra_layer, ONES), (f"'{extra_layer}'", "no leaf")),
        "layer-01": (add(layer_01, ONES), (f"'{layer_01}'", "no leaf")),
        "empty-name": (add("", ONES), ("'': float32",)),
        "shape": (put(t.norm, lambda a: a[:-1]), (t.norm, "expected shape (24,), found (23,)")),
        "shape-with-an-axis-more": (put(t.norm, lambda a: a[None]), (t.norm, "found (1, 24)")),
        "shape-flat": (
            put(t.kernel, np.ravel),
            (t.kernel, f"expected shape {t.shape}, found ({rows * columns},)"),
        ),
        "shape-scalar": (
            put(t.norm, lambda a: a[:1].reshape(())),
            (t.norm, "expected shape (24,), found ()"),
        ),
        "shape-empty": (put(t.norm, lambda a: a[:0]), (t.norm, "expected shape (24,), found (0,)")),
        "transposed": (
            put(t.wide, lambda a: np.ascontiguousarray(a.T)),
            (t.wide, "expected shape (24, 80), found (80, 24)"),
        ),
        "vocabulary-shorter": (
            put(t.words, lambda a: a[:-1]),
            (f"expected shape (97, {width}), found (96, {width})",),
        ),
        "vocabulary-longer": (
            put(t.words, lambda a: np.concatenate([a, a])),
            (f"expected shape (97, {width}), found (194, {width})",),
        ),
        "int64": (put(t.norm, cast(np.int64)), (t.norm, FLOATS, "int64")),
        "int32": (put(t.kernel, cast(np.int32)), (t.kernel, FLOATS, "int32")),
        "uint8": (put(t.norm, cast(np.uint8)), (t.norm, FLOATS, "uint8")),
        "bool": (put(t.norm, cast(np.bool_)), (t.norm, FLOATS, "bool")),
        "float8_e4m3": (
            put(t.norm, cast(ml_dtypes.float8_e4m3fn)),
            (t.norm, FLOATS, "float8_e4m3fn"),
        ),
        "float8_e5m2": (put(t.norm, cast(ml_dtypes.float8_e5m2)), (t.norm, FLOATS, "float8_e5m2")),
        "nan": (put(t.kernel, holding(np.nan)), (t.kernel, FINITE)),
        "nan-negative": (put(t.kernel, holding(-np.nan)), (t.kernel, FINITE)),
        "nan-in-words": (put(t.words, holding(np.nan)), (t.words, FINITE)),
        "infinity": (put(t.kernel, holding(np.inf)), (t.kernel, FINITE)),
        "infinity-negative": (put(t.norm, holding(-np.inf)), (t.norm, FINITE)),
        "nan-float16": (put(t.kernel, holding(np.nan, np.float16)), (t.kernel, FINITE)),
        "infinity-float16": (put(t.wide, holding(np.inf, np.float16)), (t.wide, FINITE)),
        "infinity-bfloat16": (
            put(t.kernel, holding(np.inf, ml_dtypes.bfloat16)),
            (t.kernel, FINITE),
        ),
        "float64": (
            put(t.norm, cast(np.float64)),
            (t.norm, "float64 needs jax.enable_x64(True)", "param_dtype=jnp.float32"),
        ),
        "unknown-prefix": (
            rename("", "elsewhere."),
            (f"{t.unprefixed_faults} faults", "'elsewhere.", "no leaf", "found no such tensor"),
        ),
    }


@pytest.fixture(params=FACTS.values(), ids=FACTS)
def tensors(request):
    return request.param.tensors


@pytest.fixture
def folder(tensors, pristine, tmp_path):
    return pristine.copy(tmp_path / "model", tensors.name)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        pytest.param(facts.tensors.name, *row, id=f"{family}-{fault}")
        for family, facts in FACTS.items()
        for fault, row in (*faults(facts).items(), *facts.tensors.more.items())
    ],
)
def test_fault(name, change, said, pristine, tmp_path):
    folder = pristine.copy(tmp_path / "model", name)
    edit_tensors(folder, change)
    error = refused(CheckpointMismatchError, (str(folder), said[0]), lambda: load(folder, name))
    for fragment in said:
        assert fragment in f"{len(error.faults)} faults: {error.faults}"
        assert len(error.faults) > 20 or fragment in str(error)  # of more, the message shows some


@pytest.mark.parametrize(
    ("name", "change", "error", "said"),
    [
        pytest.param(*row, id=f"{family}-{fault}")
        for family, facts in FACTS.items()
        for fault, row in facts.heads.items()
    ],
)
def test_head(name, change, error, said, pristine, tmp_path):
    folder = pristine.copy(tmp_path / "model", name)
    edit_tensors(folder, change)
    refused(error, (str(folder), *said), lambda: load(folder, name))


@pytest.mark.parametrize("facts", FACTS.values(), ids=FACTS)
def test_missing_head_of_labels(facts, pristine, tmp_path):
    name, head = facts.labelled
    folder = pristine.copy(tmp_path / "model", name)
    edit_tensors(folder, drop(*head))
    said = (str(folder), f"'{head[0].partition('.')[0]}'", "new_head=True")
    refused(MissingHeadError, said, lambda: load(folder, name))


def test_every_fault_at_once(tensors, folder):
    t = tensors
    shorter, whole = put(t.norm, lambda a: a[:3]), put(t.words, cast(int))
    edit_tensors(folder, both(drop(t.kernel), add("spare", ONES), shorter, whole))
    said = (t.kernel, "spare", t.norm, t.words)
    error = refused(CheckpointMismatchError, said, lambda: load(folder, t.name))
    assert len(error.faults) == 4


def test_zero_layer_norm_is_suspicious(tensors, folder):
    edit_tensors(folder, put(tensors.norm, np.zeros_like))
    _, info = load(folder, tensors.name, output_loading_info=True)
    assert info.suspicious == (f"all values of {tensors.norm} are zero",)
    assert info.suspicious[0] in str(info)


def test_a_sound_layer_norm_is_not_suspicious(tensors, pristine):
    folder = pristine.folder(tensors.name)
    assert load(folder, tensors.name, output_loading_info=True)[1].suspicious == ()


@pytest.mark.parametrize(
    ("value", "dtype", "fits"),
    [(65504, np.float16, True), (65520, np.float16, False), (-7e4, np.float16, False),
     (3e38, ml_dtypes.bfloat16, True), (3.4e38, ml_dtypes.bfloat16, False)],
)  # fmt: skip
def test_cast_that_overflows(value, dtype, fits, tensors, folder):
    edit_tensors(folder, put(tensors.kernel, holding(value)))
    if fits:
        model = load(folder, tensors.name, param_dtype=dtype)
        assert {leaf.dtype for leaf in jax.tree.leaves(model)} == {np.dtype(dtype)}
    else:
        said = (tensors.kernel, f"fit in param_dtype {np.dtype(dtype)}")
        refused(
            CheckpointMismatchError, said, lambda: load(folder, tensors.name, param_dtype=dtype)
        )


def test_float64_is_read_where_it_fits(tensors, folder):
    edit_tensors(folder, put(tensors.norm, cast(np.float64)))
    narrow = jax.tree.leaves(load(folder, tensors.name, param_dtype=jnp.float32))
    assert {leaf.dtype for leaf in narrow} == {np.dtype(np.float32)}
    with jax.enable_x64(True):
        wide = file_leaves(load(folder, tensors.name))
        found = [name for name, leaf in wide.items() if leaf.variable.dtype == np.float64]
    assert found == [tensors.norm]


def classes_of_two(one, two):
    """Pairs of a class of one family and a class of another."""
    return itertools.product(
        *(dict.fromkeys((of.tensors.name, of.base, of.labelled[0])) for of in (one, two))
    )


QUICK = {(one, two) for pair in itertools.pairwise(FACTS) for one, two in (pair, pair[::-1])}


@pytest.mark.parametrize(
    ("name", "other"),
    [
        pytest.param(*pair, marks=[] if (one, two) in QUICK else [pytest.mark.slow])
        for one, two in itertools.permutations(FACTS, 2)
        for pair in classes_of_two(FACTS[one], FACTS[two])
    ],
)
def test_one_family_does_not_load_as_another(name, other, pristine, tmp_path):
    """By its model_type, and without one by its tensors."""
    folder = pristine.copy(tmp_path / "model", name)
    expected, found = OF_CLASS[other].model_type, OF_CLASS[name].model_type
    said = (f"model_type: expected '{expected}', found '{found}'",)
    refused(ConfigError, said, lambda: load(folder, other))
    trees = [OF_CLASS[cls].tree or OF_CLASS[cls].model_type for cls in (name, other)]
    if getattr(minibert, name).trunk == getattr(minibert, other).trunk:
        return  # their tensors have the same names, even with a prefix
    if trees[0] == trees[1] and name in (OF_CLASS[name].base, OF_CLASS[name].tensors.name):
        return  # without a head there is no prefix either, and one tree is like the other
    foreign = {"model_type", *getattr(minibert, other).config_class.refused_fields}
    edit_json(folder / "config.json", lambda config: [config.pop(n, None) for n in foreign])
    edit_json(folder / "config.json", lambda config: config.update(pad_token_id=1))
    refused(CheckpointMismatchError, ("no such tensor",), lambda: load(folder, other))
