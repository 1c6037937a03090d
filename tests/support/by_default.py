"""The tests of a family that run by default; the others are slow.

All tests of the contract run for the families in `EVERY`. Of other families, those are slow that
ask about code which all families share; of one that has another one's modules, all but a few.
"""

import pytest

from facts import Facts, Planting
from families import FACTS, OF_CLASS
from minibert.models.family import Family

EVERY = ("bert", "gpt2", "roberta")
SHARED = (
    "test_contract_config.py",
    "test_contract_malformed_inputs.py",
    "test_contract_masks.py",
    "test_contract_modules.py",
    "test_contract_resizing.py",
    "test_wrappers[",
    "test_base_file_into_a_head_class[",
    "test_relabelled_head_is_new_and_the_old_one_is_left[",
    "test_pickle[",
    "test_dtypes[",
    "test_double_precision_is_never_halved[",
    "test_head_mask",
)
DEFAULT = (  # how the names of tests begin that run for every family
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
    """Marks the other tests slow."""
    for item in items:
        given = item.callspec.params.values() if hasattr(item, "callspec") else ()
        for facts in filter(None, map(facts_of, given)):
            default = tuple(name.format(words=facts.words) for name in DEFAULT)
            shared = item.path.name in SHARED or item.name.startswith(SHARED)
            other = facts.copies or (shared and facts.model_type not in EVERY)
            if other and not item.name.startswith(default):
                item.add_marker(pytest.mark.slow)
