"""Texts for terminals."""

import re

# Control characters except line ends, halves of surrogate pairs, line separators, and characters
# that reverse the direction of the text after them.
HIDDEN = re.compile(
    r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def visible(text: str) -> str:
    """Escapes characters that would control a terminal or hide what a text says."""
    return HIDDEN.sub(lambda found: repr(found[0])[1:-1], text)
