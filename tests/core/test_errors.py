"""Errors survive pickle and copy, by which they reach another process."""

import copy
import importlib
import pickle
import pkgutil

import pytest

import minibert
from minibert import errors


def classes(base: type = errors.MinibertError) -> list[type]:
    return [base, *(one for part in base.__subclasses__() for one in classes(part))]


for module in pkgutil.walk_packages(minibert.__path__, "minibert."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)

GIVEN = {
    "CheckpointMismatchError": ("folder", ["a: missing", "b: (2,) and (3,)"], "; a hint"),
    "MissingHeadError": ("folder", ["a: missing"]),
    "TextError": (3, "no text"),
    "TextNotFiniteError": ([3, 4], "NaN"),
    "ParityError": ("0.1 apart", {"rows": 3}),
}
COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{
        f"pickle {protocol}": lambda error, protocol=protocol: pickle.loads(
            pickle.dumps(error, protocol)
        )
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    },
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("cls", dict.fromkeys(classes()), ids=lambda cls: cls.__name__)
def test_copies_are_equal(cls, way):
    error = cls(*GIVEN.get(cls.__name__, ("name: expected 1, found 2",)))
    error.advising("truncation=True").add_note("in a test")
    found = COPIES[way](error)
    assert type(found) is cls
    assert (str(found), found.args, vars(found)) == (str(error), error.args, vars(error))
    assert found.arguments == ("truncation=True",)


def test_what_the_constructor_was_given_stays():
    error = pickle.loads(pickle.dumps(errors.TextError(7, "no text")))
    assert (error.number, error.why, str(error)) == (7, "no text", "sentence 7: no text")
    error = copy.copy(errors.CheckpointMismatchError("folder", ["a", "b"]))
    assert error.faults == ("a", "b")
    assert str(error) == "folder: 2 faults:\n  - a\n  - b"
