"""The identity of training data, so that a run does not resume with other data unnoticed."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from minibert.errors import InputError, shown
from minibert.train.fingerprint import description, digest

COMPARED = ("batch_size", "shuffle", "drop_last", "workers")


def with_identity(
    dataset: Any,
    examples: Any,
    options: Any,
    transforms: Sequence[Any],
    collate: Any,
    about: Mapping[str, Any],
) -> Any:
    """Adds a method `identity` to a dataset of Grain; see `identity_of`.

    Args:
        dataset: the dataset.
        examples: its source; read when the identity is first needed.
        options: those of `batches`, a `Batching`.
        transforms: the functions applied to examples.
        collate: the function applied to the examples of a batch.
        about: further values by name, as JSON can represent them.
    """

    @functools.cache  # the examples are read once
    def identity() -> dict[str, Any]:
        return {
            **about,
            "examples": len(examples),
            "contents": digest(examples),
            **{name: getattr(options, name) for name in COMPARED},
            **({"seed": options.seed} if options.shuffle or transforms else {}),
            "processes": options.share[1],
            "transforms": [description(one) for one in transforms],
            "collate": description(collate),
        }

    dataset.identity = identity
    return dataset


def identity_of(data: Any) -> dict[str, Any] | None:
    """Returns what identifies batches, as JSON can represent it; None if they have no identity.

    Batches of `minibert.train.data` and of `with_teacher` have a method `identity`; a user's own
    iterable may have one. A dataset of Grain that was made from another has that one's identity and
    the names of the transformations after it.

    Raises:
        InputError: `identity` does not return a mapping.
    """
    method: Any = getattr(data, "identity", None)
    if method is not None:
        found = method() if callable(method) else method
        if not isinstance(found, Mapping):
            raise InputError(f"data: identity: expected values by name, found {shown(found)}")
        return dict(found)
    for parent in getattr(data, "parents", ()):
        if (found := identity_of(parent)) is not None:
            return {**found, "then": [*found.get("then", ()), type(data).__name__]}
    return None
