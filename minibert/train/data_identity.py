"""What training data are made of, so that a run does not go on with other data unnoticed."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from minibert.errors import InputError, shown
from minibert.train.fingerprint import described, digest


def identified(
    dataset: Any,
    examples: Any,
    *,
    options: Mapping[str, Any],
    functions: Mapping[str, Any],
    about: Mapping[str, Any],
) -> Any:
    """Gives a dataset of Grain a method `identity`; see `identity_of`.

    Args:
        dataset: the dataset.
        examples: what it is made from; read when the identity is asked for.
        options: those of `batches`.
        functions: the functions that examples go through, by name.
        about: what else is known about it, by name, as JSON can hold it.
    """
    drawn = bool(options["shuffle"] or functions["transforms"])

    @functools.cache  # the examples are read once
    def identity() -> dict[str, Any]:
        return {
            **about,
            "examples": len(examples),
            "contents": digest(examples),
            **{name: options[name] for name in ("batch_size", "shuffle", "drop_last", "workers")},
            **({"seed": options["seed"]} if drawn else {}),
            "processes": options["share"][1],
            **{name: _described(function) for name, function in functions.items()},
        }

    dataset.identity = identity
    return dataset


def _described(function: Any) -> Any:
    return (
        [described(one) for one in function] if isinstance(function, list) else described(function)
    )


def identity_of(data: Any) -> dict[str, Any] | None:
    """Returns what identifies batches, as JSON can hold it; None where nothing is known.

    Batches of `minibert.train.data`, and those of `with_teacher`, have a method `identity`; so may
    an iterable of yours. Of a dataset of Grain that was made from one that has it, the identity is
    that one's and the names of the transformations after it.

    Raises:
        InputError: `identity` is no method that returns a mapping.
    """
    method: Callable[[], Any] | None = getattr(data, "identity", None)
    if method is not None:
        found = method() if callable(method) else method
        if not isinstance(found, Mapping):
            raise InputError(f"data: identity: expected values by name, found {shown(found)}")
        return dict(found)
    parents: Sequence[Any] = getattr(data, "parents", ())
    for parent in parents:
        if (found := identity_of(parent)) is not None:
            return {**found, "then": [*found.get("then", ()), type(data).__name__]}
    return None
