"""Of a family that has another one's modules under other names, few tests run by default."""

import pytest

from facts import Facts, Planting
from families import FACTS, OF_CLASS
from minibert.models.base import Family

DEFAULT = (  # how the names of its tests begin
    "test_classes[{words}-right]",
    "test_mistake_is_seen[",
    "test_there_are_twelve[",
    "test_the_class_is_that_of_the_family_for_the_task[",
    "test_config_survives[",
    "test_tiny_models_compute_what_pytorch_computed[",
    "test_load_finds_the_class_pytorch_saved[",
    "test_labels_name_the_objective[",
)


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
    """Marks all other tests of such a family slow."""
    for item in items:
        given = item.callspec.params.values() if hasattr(item, "callspec") else ()
        for facts in filter(None, map(facts_of, given)):
            default = tuple(name.format(words=facts.words) for name in DEFAULT)
            if facts.copies and not item.name.startswith(default):
                item.add_marker(pytest.mark.slow)
