"""The identity of training data, so that a run does not resume with other data unnoticed."""

from collections.abc import Mapping
from typing import Any

from minibert.errors import InputError, shown


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
