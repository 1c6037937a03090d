"""Tensors that do not correspond with the model, one to one: every fault is found and named."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from malformed import (
    FINITE,
    FLOATS,
    ONES,
    add,
    both,
    cases,
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
from minibert.errors import CheckpointMismatchError, ConfigError, InputError

NORM = "embeddings.LayerNorm.weight"
QUERY = "encoder.layer.1.attention.self.query.weight"
WORDS = "embeddings.word_embeddings.weight"


FAULTS = {
    "missing": (drop(QUERY), (f"'bert.{QUERY}': expected (24, 24), found no such tensor",)),
    "missing-bias": (drop("pooler.dense.bias"), ("'bert.pooler.dense.bias': expected (24,)",)),
    "missing-layer": (
        lambda tensors: [tensors.pop(name) for name in list(tensors) if ".layer.1." in name],
        ("16 faults", f"'bert.{QUERY}'"),
    ),
    "extra": (add("spare", ONES), ("'spare': float32 of shape (24,)", "no leaf of BertModel")),
    "extra-in-a-room": (add("encoder.layer.0.spare", ONES), ("'encoder.layer.0.spare'",)),
    "extra-scalar": (add("step", np.array(1, np.float32)), ("'step': float32 of shape ()",)),
    "extra-layer": (
        add("encoder.layer.2.output.dense.bias", ONES),
        ("'encoder.layer.2.output.dense.bias'", "no leaf"),
    ),
    "layer-01": (
        add("encoder.layer.01.output.dense.bias", ONES),
        ("'encoder.layer.01.output.dense.bias'", "no leaf"),
    ),
    "empty-name": (add("", ONES), ("'': float32",)),
    "shape": (put(NORM, lambda a: a[:-1]), (NORM, "expected shape (24,), found (23,)")),
    "shape-with-an-axis-more": (put(NORM, lambda a: a[None]), (NORM, "found (1, 24)")),
    "shape-flat": (put(QUERY, np.ravel), (QUERY, "expected shape (24, 24), found (576,)")),
    "shape-scalar": (
        put(NORM, lambda a: a[:1].reshape(())),
        (NORM, "expected shape (24,), found ()"),
    ),
    "shape-empty": (put(NORM, lambda a: a[:0]), (NORM, "expected shape (24,), found (0,)")),
    "transposed": (
        put("encoder.layer.0.output.dense.weight", lambda a: np.ascontiguousarray(a.T)),
        ("encoder.layer.0.output.dense.weight", "expected shape (24, 80), found (80, 24)"),
    ),
    "vocabulary-shorter": (
        put(WORDS, lambda a: a[:-1]),
        ("expected shape (97, 24), found (96, 24)",),
    ),
    "vocabulary-longer": (
        put(WORDS, lambda a: np.concatenate([a, a])),
        ("expected shape (97, 24), found (194, 24)",),
    ),
    "int64": (put(NORM, cast(np.int64)), (NORM, FLOATS, "int64")),
    "int32": (put(QUERY, cast(np.int32)), (QUERY, FLOATS, "int32")),
    "uint8": (put(NORM, cast(np.uint8)), (NORM, FLOATS, "uint8")),
    "bool": (put(NORM, cast(np.bool_)), (NORM, FLOATS, "bool")),
    "float8_e4m3": (put(NORM, cast(ml_dtypes.float8_e4m3fn)), (NORM, FLOATS, "float8_e4m3fn")),
    "float8_e5m2": (put(NORM, cast(ml_dtypes.float8_e5m2)), (NORM, FLOATS, "float8_e5m2")),
    "nan": (put(QUERY, holding(np.nan)), (QUERY, FINITE)),
    "nan-negative": (put(QUERY, holding(-np.nan)), (QUERY, FINITE)),
    "infinity": (put(QUERY, holding(np.inf)), (QUERY, FINITE)),
    "infinity-negative": (put(NORM, holding(-np.inf)), (NORM, FINITE)),
    "nan-float16": (put(QUERY, holding(np.nan, np.float16)), (QUERY, FINITE)),
    "infinity-bfloat16": (put(QUERY, holding(np.inf, ml_dtypes.bfloat16)), (QUERY, FINITE)),
    "float64": (
        put(NORM, cast(np.float64)),
        (NORM, "float64 needs jax.enable_x64(True)", "param_dtype=jnp.float32"),
    ),
    "gamma-and-weight": (
        add("embeddings.LayerNorm.gamma", ONES),
        ("'embeddings.LayerNorm.gamma'", f"'{NORM}'", f"are both 'bert.{NORM}'"),
    ),
    "beta-and-bias": (
        add("encoder.layer.0.output.LayerNorm.beta", ONES),
        ("'encoder.layer.0.output.LayerNorm.beta'", "are both"),
    ),
    "gamma-elsewhere": (
        rename("pooler.dense.bias", "pooler.dense.beta"),
        ("'pooler.dense.beta'", "no leaf", "'bert.pooler.dense.bias'"),
    ),
    "mixed-prefixes": (
        rename("embeddings.", "bert.embeddings."),
        ("no leaf", f"'{QUERY}'", f"'bert.{QUERY}': expected (24, 24), found no such tensor"),
    ),
    "both-prefixes": (
        add(f"bert.{NORM}", ONES),
        ("no leaf", f"'bert.{WORDS}': expected", f"'{NORM}'"),
    ),
    "unknown-prefix": (
        rename("", "roberta."),
        ("76 faults", "'roberta.", "no leaf", "found no such tensor"),
    ),
    "half-prefixed-by-a-wrapper": (
        rename("encoder.", "module.encoder."),
        ("no leaf", f"'module.{QUERY}'", f"'bert.{QUERY}': expected"),
    ),
}


@pytest.mark.parametrize(("change", "said"), cases(FAULTS))
def test_fault(change, said, folder):
    edit_tensors(folder, change)
    error = refused(CheckpointMismatchError, (str(folder), said[0]), lambda: load(folder))
    for fragment in said:
        assert fragment in f"{len(error.faults)} faults: {error.faults}"


def test_no_tensor_at_all(folder):
    edit_tensors(folder, lambda tensors: tensors.clear())
    said = ("num_hidden_layers: 2 layers, but the checkpoint holds 0 tensors",)
    refused(ConfigError, said, lambda: load(folder))


def test_every_fault_at_once(folder):
    edit_tensors(
        folder,
        both(drop(QUERY), add("spare", ONES), put(NORM, lambda a: a[:3]), put(WORDS, cast(int))),
    )
    error = refused(CheckpointMismatchError, (QUERY, "spare", NORM, WORDS), lambda: load(folder))
    assert len(error.faults) == 4


def test_many_faults_are_counted_and_twenty_shown(folder):
    edit_tensors(folder, lambda tensors: tensors.update({f"x{i}": ONES for i in range(100)}))
    error = refused(
        CheckpointMismatchError, ("100 faults", "… and 80 more …"), lambda: load(folder)
    )
    assert len(error.faults) == 100


def test_buffers_are_ignored_with_a_reason(folder):
    edit_tensors(folder, add("embeddings.position_ids", np.arange(40)[None]))
    _, info = load(folder, output_loading_info=True)
    assert info.ignored == {"embeddings.position_ids": "0, 1, 2, …, which the code counts itself"}


def test_zero_layer_norm_is_suspicious(folder):
    edit_tensors(folder, put(NORM, np.zeros_like))
    _, info = load(folder, output_loading_info=True)
    assert info.suspicious == (f"{NORM} is zero everywhere",)
    assert info.suspicious[0] in str(info)


def test_a_sound_layer_norm_is_not_suspicious(pristine):
    assert load(pristine.folder(), output_loading_info=True)[1].suspicious == ()


@pytest.mark.parametrize(
    ("value", "dtype", "fits"),
    [(65504, np.float16, True), (65520, np.float16, False), (-7e4, np.float16, False),
     (3e38, ml_dtypes.bfloat16, True), (3.4e38, ml_dtypes.bfloat16, False)],
)  # fmt: skip
def test_cast_that_overflows(value, dtype, fits, folder):
    edit_tensors(folder, put(QUERY, holding(value)))
    if fits:
        model = load(folder, param_dtype=dtype)
        assert model.encoder.layer[1].attention.self.query.kernel[...].dtype == dtype
    else:
        said = (QUERY, f"too large for param_dtype {np.dtype(dtype)}")
        refused(CheckpointMismatchError, said, lambda: load(folder, param_dtype=dtype))


def test_float64_is_read_where_it_fits(folder):
    edit_tensors(folder, put(NORM, cast(np.float64)))
    assert load(folder, param_dtype=jnp.float32).embeddings.LayerNorm.scale[...].dtype == np.float32
    with jax.enable_x64(True):
        assert load(folder).embeddings.LayerNorm.scale[...].dtype == np.float64


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bool_, "int8", "floaty"])
@pytest.mark.parametrize("argument", ["dtype", "param_dtype"])
def test_dtype_that_is_not_floating(argument, dtype, pristine):
    said = (f"{argument}: expected a floating-point type", "found")
    refused(InputError, said, lambda: load(pristine.folder(), **{argument: dtype}))


UP = "encoder.layer.0.intermediate.dense.weight"
WIDE = 12_345  # rows of 24 numbers: more than two of the blocks a tensor is read by


def widen(folder):
    """Two tensors of several blocks, one of which is transposed; their numbers."""
    draw = np.random.default_rng(0)
    big = {name: draw.normal(size=(WIDE, 24)).astype(np.float32) for name in (WORDS, UP)}

    def change(tensors):
        for layer in range(2):
            tensors[UP.replace("0", str(layer))] = big[UP]
            tensors[f"encoder.layer.{layer}.intermediate.dense.bias"] = np.zeros(WIDE, np.float32)
            tensors[f"encoder.layer.{layer}.output.dense.weight"] = big[UP].T.copy()
        tensors[WORDS] = big[WORDS]

    edit_tensors(folder, change)
    sizes = {"vocab_size": WIDE, "intermediate_size": WIDE}
    edit_json(folder / "config.json", lambda config: config.update(sizes))
    return big


def test_tensors_of_several_blocks(folder):
    big = widen(folder)
    model = load(folder)
    np.testing.assert_array_equal(model.embeddings.word_embeddings.embedding[...], big[WORDS])
    for layer in model.encoder.layer:
        np.testing.assert_array_equal(layer.intermediate.dense.kernel[...], big[UP].T)
        np.testing.assert_array_equal(layer.output.dense.kernel[...], big[UP])


@pytest.mark.parametrize("place", [0, WIDE // 2, WIDE - 1])
@pytest.mark.parametrize("name", [WORDS, UP, "encoder.layer.1.output.dense.weight"])
def test_one_bad_number_in_any_block(name, place, folder):
    widen(folder)

    def spoil(value):
        def change(tensors):
            rows = tensors[name] if tensors[name].shape[0] == WIDE else tensors[name].T
            rows[place, -1] = value

        return change

    edit_tensors(folder, spoil(np.nan))
    refused(CheckpointMismatchError, (name, FINITE), lambda: load(folder))
    edit_tensors(folder, spoil(7e4))
    said = (name, "too large for param_dtype float16")
    refused(CheckpointMismatchError, said, lambda: load(folder, param_dtype=np.float16))
    assert load(folder).pooler is not None
