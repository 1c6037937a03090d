"""The oracle tested: every known porting mistake, planted, must be seen 1000 tolerances away."""

import copy
import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from conftest import FLOAT64

torch = pytest.importorskip("torch", reason="the oracle is PyTorch")

import oracle  # noqa: E402
from families import FACTS  # noqa: E402

ENCODED = np.random.default_rng(1).normal(size=(3, 5, 24))
ENCODER_MASK = np.array([[1, 1, 1, 1, 1], [0, 1, 1, 0, 1], [1, 0, 0, 0, 0]])
CASES = [
    pytest.param(planting, mistake, id=f"{planting.name}-{mistake}")
    for facts in FACTS.values()
    for planting in facts.planted
    for mistake in planting.mistakes
]


def arguments(planting):
    if not planting.decoder:
        return oracle.arguments(planting.name)
    given = oracle.arguments(planting.name, padding="left")
    given["position_ids"] = np.maximum(np.cumsum(given["attention_mask"], axis=1) - 1, 0)
    return given | {"encoder_hidden_states": ENCODED, "encoder_attention_mask": ENCODER_MASK}


@dataclasses.dataclass
class Subject:
    """A model without a mistake, and what PyTorch makes of its arguments."""

    model: object
    given: dict
    expected: object

    def distance(self, model, given):
        """How far from PyTorch a model is, in tolerances."""
        found = model(**given, output_hidden_states=True)
        errors = oracle.errors(found, self.expected, self.given["attention_mask"])
        return max(errors.values()) / FLOAT64


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    """Each model is built once, and seen to be right."""
    found = {}

    def get(planting, config):
        key = (planting.name, *config.items())
        if key not in found:
            folder, given = tmp_path_factory.mktemp("subject"), arguments(planting)
            theirs = oracle.saved(planting.name, folder, **config)
            expected = oracle.run_torch(theirs.double(), given, output_hidden_states=True)
            with oracle.float64():
                model = oracle.ours(planting.name, folder, param_dtype=jnp.float64)
                found[key] = Subject(model, given, expected)
                assert found[key].distance(model, given) <= 1
        return found[key]

    return get


@pytest.mark.parametrize(("planting", "mistake"), CASES)
def test_mistake_is_seen(planting, mistake, subject):
    plant, config = planting.mistakes[mistake]
    right = subject(planting, planting.config | config)
    with oracle.float64():
        model, given = copy.deepcopy(right.model), dict(right.given)
        with plant(model, given):
            wrong = right.distance(model, given)
        assert right.distance(right.model, right.given) <= 1
    assert wrong >= 1000


@pytest.mark.parametrize("family", FACTS)
def test_there_are_twelve(family):
    assert len(FACTS[family].planted[0].mistakes) >= 12
