"""Every output and every gradient of every class of every family, beside PyTorch's, in float64."""

import numpy as np
import pytest

from conftest import FLOAT64

torch = pytest.importorskip("torch", reason="the oracle is PyTorch")

from flax import nnx  # noqa: E402

import oracle  # noqa: E402
from families import CLASSES, CLASSES_WITH_CODE, FACTS, OF_CLASS, SOME  # noqa: E402
from minibert.models.registry import MODELS  # noqa: E402
from minibert.nn.activations import ACTIVATION_NAMES  # noqa: E402
from oracle import arguments, worst  # noqa: E402
from slowly import slow_but  # noqa: E402


def of_families(name):
    """Parametrises a test with a class of each family: an attribute of its facts."""
    return pytest.mark.parametrize("name", [getattr(facts, name) for facts in FACTS.values()])


def named(config):
    return "-".join(f"{key}={value}" for key, value in config.items())


def test_every_class_is_tested():
    assert CLASSES.keys() == MODELS.keys()


@pytest.mark.parametrize("padding", slow_but(["right", "left", None], "right"))
@pytest.mark.parametrize("name", CLASSES)
def test_classes(name, padding, tmp_path):
    theirs = oracle.saved(name, tmp_path, **CLASSES[name])
    given = arguments(name, padding=padding)
    if padding is None:
        del given["attention_mask"]
    assert worst(name, tmp_path, theirs, given) <= FLOAT64


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES_WITH_CODE)
def test_what_is_dropped(name, tmp_path):
    """In training, with one rate of the config at 1 and the others at 0, whatever the keys.

    And with those that fall back to another one.
    """
    tiny = vars(MODELS[name].config_class.tiny())
    rates = [field for field in tiny if "drop" in field]
    cases = [dict.fromkeys(rates, 0.0) | {rate: 1.0} for rate in rates]
    if "hidden_dropout_prob" in rates:
        given_ones = [rate for rate in rates if tiny[rate] is not None]
        cases.append(dict.fromkeys(given_ones, 0.0) | {"hidden_dropout_prob": 1.0})
    given = arguments(name)
    for number, case in enumerate(cases):
        folder = tmp_path / f"{number}"
        theirs = oracle.saved(name, folder, **CLASSES[name] | case).double().train()
        expected = oracle.run_torch(theirs, given)
        with oracle.float64():
            model = oracle.ours(name, folder, param_dtype="float64")
            found = model.train()(**given, rngs=nnx.Rngs(0))
            assert max(oracle.errors(found, expected).values()) <= FLOAT64, case


@pytest.mark.parametrize("act", slow_but(ACTIVATION_NAMES, "gelu", "gelu_new", "relu"))
@of_families("words")
def test_activations(name, act, tmp_path):
    theirs = oracle.saved(name, tmp_path, **{OF_CLASS[name].activation: act})
    assert worst(name, tmp_path, theirs, arguments(name)) <= FLOAT64


@pytest.mark.parametrize(
    ("name", "config"),
    [
        pytest.param(facts.switched, config, id=f"{facts.switched}-{named(config)}")
        for facts in FACTS.values()
        for config in facts.switches
    ],
)
def test_config_switches(name, config, tmp_path):
    theirs = oracle.saved(name, tmp_path, **config)
    sizes = OF_CLASS[name].tiny | config
    segments = sizes.get(OF_CLASS[name].types_field, 0)
    given = arguments(name, vocab=sizes["vocab_size"], segments=segments)
    assert worst(name, tmp_path, theirs, given) <= FLOAT64


DRAW = np.random.default_rng(0)


@pytest.mark.parametrize(
    "change",
    [
        {"token_type_ids": None},
        {"position_ids": np.tile(np.arange(10, -1, -1), (3, 1))},
        {"position_ids": DRAW.integers(0, 40, (3, 11))},
        {"position_ids": np.arange(29, 40)[None]},
        {"attention_mask": np.array([[1, 0] * 5 + [1]] * 3)},
        {"attention_mask": np.eye(11, dtype=int)[[0, 4, 10]]},
        {"input_ids": None, "inputs_embeds": DRAW.normal(size=(3, 11, 24))},  # or narrower
    ],
    ids=["no segments", "positions reversed", "positions drawn", "last positions",
         "mask with holes", "mask of one", "embeddings"],
)  # fmt: skip
@of_families("base")
def test_inputs(name, change, tmp_path):
    theirs = oracle.saved(name, tmp_path)
    given = {k: v for k, v in (arguments(name) | change).items() if v is not None}
    if "inputs_embeds" in given:
        given["inputs_embeds"] = given["inputs_embeds"][..., : OF_CLASS[name].width]
    assert worst(name, tmp_path, theirs, given) <= FLOAT64


@of_families("words")
def test_full_mask(name, tmp_path):
    """Used as it is: without a decoder's causality, even."""
    theirs = oracle.saved(name, tmp_path)
    full = (np.random.default_rng(0).random((3, 11, 11)) < 0.6).astype(int)
    full[1, 2] = 0  # a query that may look nowhere
    given = arguments(name) | {"attention_mask": oracle.additive(full)}
    assert worst(name, tmp_path, theirs, given, attention_mask=full) <= FLOAT64


@pytest.mark.parametrize("shape", [(3,), (2, 3)], ids=["heads", "layers by heads"])
@of_families("words")
def test_head_mask(name, shape, tmp_path):
    """Fractions too."""
    theirs = oracle.saved(name, tmp_path).double()
    factors = np.random.default_rng(0).random(shape)
    given = arguments(name)
    oracle.scale_heads(theirs, np.broadcast_to(factors, (2, 3)))
    flags = {"output_hidden_states": True}
    assert worst(name, tmp_path, theirs, given, flags, head_mask=factors) <= FLOAT64


@of_families("base")
def test_head_mask_scales_the_returned_weights(name, tmp_path):
    oracle.saved(name, tmp_path)
    model, given = oracle.ours(name, tmp_path), arguments(name)
    factors = np.array([0.5, 0.0, 2.0])
    plain = model(**given, output_attentions=True).attentions[0]
    masked = model(**given, output_attentions=True, head_mask=factors).attentions[0]
    np.testing.assert_allclose(masked, plain * factors[:, None, None], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        *[(name, CLASSES[name]) for name in SOME],
        *[
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                *[(name, config) for name, config in CLASSES.items() if name not in SOME],
                *[(facts.words, config) for facts in FACTS.values() for config in facts.gradients],
            )
        ],
    ],
    ids=str,
)
def test_gradients(name, config, tmp_path):
    """The gradient of every parameter, of a weighted sum of every output at unpadded positions."""
    theirs = oracle.saved(name, tmp_path, **config)
    given = arguments(name)
    if config.get("add_cross_attention"):
        given["encoder_hidden_states"] = np.random.default_rng(1).normal(size=(3, 5, 24))
    assert oracle.worst_gradient(name, tmp_path, theirs, given) <= 1
