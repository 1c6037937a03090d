"""The tests of a family that run by default; the others are slow.

All tests of the contract run for the families in `EVERY`, and for another family those that ask
about its own modules: parity, planted mistakes, a round trip, recorded outputs. What a family's own
file marks slow is slow.
"""

import re

import pytest

from facts import Facts, Planting
from families import FACTS, OF_CLASS
from minibert.models.family import Family

EVERY = ("bert", "gpt2", "roberta")
DEFAULT = re.compile(
    r"test_(classes\[\w+-right\]|mistake_is_seen\[|there_are_twelve\[|config_survives\["
    r"|bytes_and_outputs\[\w+-bfloat16-single\]|tiny_models_compute_what_pytorch_computed\["
    r"|load_finds_the_class_pytorch_saved\[|labels_name_the_objective\[)"
)
OWN = {f"test_{name.replace('-', '_')}.py" for name in FACTS}


def facts_of(value: object) -> Facts | None:
    """Returns the facts of the family that a parameter of a test stands for."""
    match value:
        case Facts():
            return value
        case Planting():
            return OF_CLASS[value.name]
        case Family():
            return FACTS[value.model_type]
        case type():
            return OF_CLASS.get(value.__name__)
        case str():
            return OF_CLASS.get(value, FACTS.get(value))
    return None


def mark_slow(items: list[pytest.Item]) -> None:
    """Marks the other tests slow."""
    for item in items:
        given = item.callspec.params.values() if hasattr(item, "callspec") else ()
        families = {facts.model_type for facts in filter(None, map(facts_of, given))}
        shared = item.path.name not in OWN and not DEFAULT.match(item.name)
        if shared and families - set(EVERY):
            item.add_marker(pytest.mark.slow)
