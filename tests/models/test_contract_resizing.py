"""Sizes of a model changed in place: what is kept, what is new, and what comes back from disk."""

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the other side is PyTorch")

import transformers  # noqa: E402
from flax import nnx  # noqa: E402

import minibert  # noqa: E402
import oracle  # noqa: E402
from families import CLASSES_WITH_CODE, SOME_WITH_CODE, WITH_CODE  # noqa: E402
from minibert.errors import CheckpointMismatchError, InputError  # noqa: E402
from minibert.models.registry import MODELS  # noqa: E402
from oracle import arguments  # noqa: E402
from slowly import slow_but  # noqa: E402

WORDS = ("masked_lm", "causal_lm", "pretraining", "sentence_order_pretraining", "double_heads")
BIASES = ("cls.predictions.bias", "lm_head.bias", "predictions.bias")


@pytest.fixture(params=WITH_CODE, ids=lambda facts: facts.model_type)
def facts(request):
    return request.param


def pair(name, folder, **changes):
    """A model of transformers and the same model here."""
    theirs = oracle.saved(name, folder, **(CLASSES_WITH_CODE[name] | changes))
    return theirs, oracle.ours(name, folder)


def blocks_of(model):
    """The paths of the blocks that are executed, in order, without the numbers of their calls."""
    return [path.partition("@")[0] for path in model.block_paths]


def check_equal(theirs, model, folder):
    """Compares the arrays of two models, here by the names of a file."""
    model.save_pretrained(folder)
    back, info = type(theirs).from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info.values()), info
    expected = dict(theirs.state_dict())
    # the bias beside an untied decoder is not used; transformers overwrites it, or leaves its size
    unused = () if model.config.tie_word_embeddings else BIASES
    for name, tensor in back.state_dict().items():
        if name in unused:
            continue
        assert tensor.shape == expected[name].shape, name
        # transformers adds noise to the mean, at most a few 1e-5 of the standard deviation
        np.testing.assert_allclose(tensor, expected[name], rtol=0, atol=2e-4, err_msg=name)


@pytest.mark.parametrize(
    ("name", "untied"),
    slow_but(
        [
            (name, untied)
            for name in CLASSES_WITH_CODE
            for untied in ([False, True] if MODELS[name].objective in WORDS else [False])
        ],
        *itertools.product(SOME_WITH_CODE, [False, True]),
    ),
)
def test_tokens(name, untied, tmp_path):
    theirs, model = pair(
        name, tmp_path / "in", **({"tie_word_embeddings": False} if untied else {})
    )
    given, size = arguments(name), model.config.vocab_size
    before = model(**given)
    theirs.resize_token_embeddings(size + 7)
    found = model.resize_token_embeddings(size + 7)
    assert found is model.get_input_embeddings()
    assert model.config.vocab_size == model.base_model.config.vocab_size == size + 7
    check_equal(theirs, model, tmp_path / "out")
    for key, value in model(**given).items():
        if hasattr(value, "shape"):
            kept = value[..., :size] if value.shape[-1] == size + 7 else value
            np.testing.assert_allclose(kept, before[key], rtol=0, atol=1e-6)
    theirs.resize_token_embeddings(size - 30)
    model.resize_token_embeddings(size - 30)
    check_equal(theirs, model, tmp_path / "smaller")


def test_rounded_up_and_drawn(facts, tmp_path):
    theirs, model = pair(facts.words, tmp_path / "in")
    old = model.get_input_embeddings().embedding[...]
    size = model.config.vocab_size
    with pytest.raises(InputError, match=r"rngs: expected nnx\.Rngs"):
        model.resize_token_embeddings(size + 1, mean_resizing=False)
    model.resize_token_embeddings(size + 1, 64, mean_resizing=False, rngs=nnx.Rngs(0))
    theirs.resize_token_embeddings(size + 1, 64, mean_resizing=False)
    rows = model.get_input_embeddings().embedding[...]
    assert rows.shape == tuple(theirs.get_input_embeddings().weight.shape)
    np.testing.assert_array_equal(rows[:size], old)
    assert 0.01 < rows[size:].std() < 0.03
    output = model.get_output_embeddings()
    assert output.out_features == len(rows)
    same = model.resize_token_embeddings()
    np.testing.assert_array_equal(same.embedding[...], rows)
    assert model.resize_token_embeddings(pad_to_multiple_of=32) is model.get_input_embeddings()
    assert len(model.get_input_embeddings().embedding[...]) == len(rows)


def test_new_embeddings_of_the_same_shape(facts, tmp_path):
    _, model = pair(facts.words, tmp_path / "in")
    other = oracle.ours(facts.words, tmp_path / "in").get_input_embeddings()
    other.embedding[...] = other.embedding[...] + 1
    before = model(**arguments(facts.words)).logits
    model.set_input_embeddings(other)
    assert model.get_input_embeddings() is other
    assert np.abs(model(**arguments(facts.words)).logits - before).max() > 0.01
    other.embedding = nnx.Param(other.embedding[...][:-1])
    with pytest.raises(InputError, match="value: expected an Embed of shape"):
        model.set_input_embeddings(other)
    with pytest.raises(InputError, match="value: expected an Embed of shape"):
        model.set_input_embeddings(other.embedding[...])


def test_positions(facts, tmp_path):
    _, model = pair(facts.words, tmp_path / "in")
    given = arguments(facts.words)
    before, size = model(**given).logits, model.config.max_position_embeddings
    with pytest.raises(InputError, match=r"rngs: expected nnx\.Rngs"):
        model.resize_position_embeddings(size + 10)
    model.resize_position_embeddings(size + 10, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(model(**given).logits, before)
    longest = model.config.max_tokens
    ids = np.full((1, longest), 5)
    assert model(ids).logits.shape[:2] == (1, longest)
    model.resize_position_embeddings(size - 5)
    np.testing.assert_array_equal(model(**given).logits, before)
    with pytest.raises(InputError, match="input_ids"):
        model(ids)
    model.save_pretrained(tmp_path / "out")
    back = minibert.load(tmp_path / "out")
    np.testing.assert_array_equal(back(**given).logits, before)
    with pytest.raises(InputError, match="new_num_position_embeddings: expected a whole number"):
        model.resize_position_embeddings(0)


def test_fewer_layers(facts, tmp_path):
    name = facts.words
    _, model = pair(name, tmp_path / "in", num_hidden_layers=3)
    _, whole = pair(name, tmp_path / "again", num_hidden_layers=3)
    given = arguments(name)
    model.keep_layers([0, 2])
    assert model.config.num_hidden_layers == len(model.block_paths) == 2
    model.save_pretrained(tmp_path / "out")
    theirs = getattr(transformers, name).from_pretrained(
        tmp_path / "out", attn_implementation="eager"
    )
    expected = oracle.run_torch(theirs.eval(), given)["logits"]
    np.testing.assert_allclose(model(**given).logits, expected, rtol=0, atol=1e-5)
    assert np.abs(model(**given).logits - whole(**given).logits).max() > 1e-3
    for wrong, why in (([0, 5], "5"), ([1, 1], "different layers"), ([], "indices"), ("01", "ind")):
        with pytest.raises(InputError, match=f"layers: .*{why}"):
            model.keep_layers(wrong)


def test_layers_that_depend_on_their_index(tmp_path):
    changes = {"num_hidden_layers": 3, "scale_attn_by_inverse_layer_idx": True}
    _, model = pair("GPT2LMHeadModel", tmp_path / "in", **changes)
    with pytest.raises(CheckpointMismatchError, match="scale"):
        model.keep_layers([0, 2])
    assert len(model.base_model.h) == model.config.num_hidden_layers == 3
    model.keep_layers([0, 1])
    assert len(model.base_model.h) == 2


def test_fields_that_override_the_checkpoints(facts, tmp_path):
    name = facts.words
    _, whole = pair(name, tmp_path / "in", num_hidden_layers=3)
    given = arguments(name)
    model, info = oracle.ours(
        name, tmp_path / "in", num_hidden_layers=2, output_hidden_states=True,
        output_loading_info=True,
    )  # fmt: skip
    prefix = f"{whole.blocks_path}.2."
    assert bool(info.left) == (len(set(blocks_of(whole))) > 1)
    assert all(name.startswith(prefix) for name in info.left)
    assert model.config.num_hidden_layers == 2
    whole.keep_layers([0, 1])
    outputs = model(**given)
    np.testing.assert_array_equal(outputs.logits, whole(**given).logits)
    assert len(outputs.hidden_states) == 3
    assert minibert.load(tmp_path / "in", num_hidden_layers=1).config.num_hidden_layers == 1
    config = whole.config
    assert oracle.ours(name, tmp_path / "in", config=config).config == config


def test_wrong_overrides(facts, tmp_path):
    name = facts.words
    pair(name, tmp_path / "in")
    for fields, why in (
        ({"num_hiden_layers": 2}, "num_hiden_layers: not an argument .*num_hidden_layers"),
        ({"num_hidden_layers": 0}, "num_hidden_layers|n_layer"),
        ({"gradient_checkpointing": True}, "gradient_checkpointing_enable"),
        ({"config": {"vocab_size": 4}}, "config: expected a"),
    ):
        with pytest.raises(ValueError, match=why):
            oracle.ours(name, tmp_path / "in", **fields)
    with pytest.raises(CheckpointMismatchError, match=r"faults?:"):
        oracle.ours(name, tmp_path / "in", vocab_size=50)
    model = oracle.ours(name, tmp_path / "in")
    if len(set(blocks_of(model))) > 1:
        with pytest.raises(CheckpointMismatchError):  # more layers than there are
            oracle.ours(name, tmp_path / "in", num_hidden_layers=4)
