"""The training text of the embedded models: the language reference in Python's `help()`.

`pydoc_data.topics` has 79 topics, wrapped at 70 columns, many of which are parts of others. Here
lines are joined, rulings and tables are removed, and a paragraph that occurs in several topics is
used once: in a held-out topic if there is one, so that no held-out text is trained on.
"""

import hashlib
import pathlib
import platform
import re
import sys
from collections.abc import Iterator

from minibert.data.documents import unwrapped

PYTHON = "3.11.7"
SHA256 = "abaa56a64551d8eead1b19cbae3c6db443f99f0cab81df07bed3cb75c0db9346"
HELD_OUT_FILE = "held_out.npz"  # in a model's folder: tokens of held-out topics
HELD_OUT = slice(4, None, 9)  # every ninth topic in alphabetical order, from the fifth

Documents = dict[str, list[str]]


def sha256() -> str:
    """Returns the SHA-256 digest of this Python's topics."""
    import pydoc_data.topics

    return hashlib.sha256(pathlib.Path(pydoc_data.topics.__file__).read_bytes()).hexdigest()


def documents() -> tuple[Documents, Documents]:
    """Returns the paragraphs of the training topics, and of those held out, by topic.

    Exits with a message if this Python has another text.
    """
    from pydoc_data.topics import topics

    if sha256() != SHA256:
        sys.exit(
            f"pydoc_data.topics: expected Python {PYTHON}'s (sha256 {SHA256}), "
            f"found Python {platform.python_version()}'s ({sha256()})"
        )
    names = sorted(topics)
    seen: set[str] = set()
    held_out = {name: list(_new(topics[name], seen)) for name in names[HELD_OUT]}
    training = {name: list(_new(topics[name], seen)) for name in names if name not in held_out}
    return {name: found for name, found in training.items() if found}, held_out


def _new(text: str, seen: set[str]) -> Iterator[str]:
    """Yields a topic's paragraphs that were not seen before."""
    for paragraph in re.split(r"\n{2,}", unwrapped(text)):
        words = " ".join(paragraph.split())
        if words and words not in seen:
            seen.add(words)
            yield paragraph.strip("\n")
