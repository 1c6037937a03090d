"""The selection of modules by name, as in PEFT: ends of paths and regular expressions.

Expressions may come from files, and `re` takes years for some of 20 characters. Those that might
take long are refused before they are used.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from re import _constants as codes  # ty: ignore[missing-module-member]
from re import _parser as parser  # ty: ignore[missing-module-member]
from typing import Any, NamedTuple

from minibert.errors import InputError, shown

LENGTH = 64  # of paths
STEPS = 10**7  # of a match: a tenth of a second

# PEFT's expressions around those of a field: for the end of a path, and for a list in it.
FORMS = {
    "rank_pattern": r"(.*\.)?({})$",
    "alpha_pattern": r"(.*\.)?({})$",
    "layers_pattern": r"(?:^|.*?\.){}\.(?P<idx>\d+)\.",
}
ANY_LIST = r".*?\.[^.]*\.(?P<idx>\d+)\."


def is_expression(field: str, value: object) -> bool:
    """Returns whether a value is a regular expression that a field may hold.

    Raises:
        InputError: matching the expression may take long.
    """
    if not isinstance(value, str) or not value:
        return False
    expression = FORMS.get(field, "{}").format(value)
    try:
        re.compile(expression)
        steps = _ways(parser.parse(expression)).most
    except (re.error, OverflowError, RecursionError):
        return False
    if steps > STEPS:
        raise InputError(
            f"{field}: expected an expression with few repetitions and none in another, found "
            f"{shown(value)}, whose matching may take long"
        )
    return True


def named(path: str, names: str | tuple[str, ...]) -> bool:
    """Returns whether an expression matches a whole path, or a path ends in one of some names."""
    if isinstance(names, str):
        return re.fullmatch(names, path) is not None
    return path in names or path.endswith(tuple(f".{name}" for name in names))


def first(field: str, patterns: Mapping[str, Any], path: str, default: object) -> Any:
    """Returns the value of the first expression that matches the end of a path, or a default."""
    for pattern, value in patterns.items():
        if re.match(FORMS[field].format(pattern), path):
            return value
    return default


def layer(path: str, patterns: tuple[str, ...] | None) -> int | None:
    """Returns the index of a path in a list of modules, which one of some expressions names.

    Without expressions it is the first list inside of another module. None if there is no list.
    """
    form = FORMS["layers_pattern"]
    expressions = [form.format(pattern) for pattern in patterns or ()] or [ANY_LIST]
    tried = (re.match(expression, path) for expression in expressions)
    found = next((one for one in tried if one), None)
    return None if found is None or found["idx"] is None else int(found["idx"])


class Ways(NamedTuple):
    """An upper bound of the number of ways in which a part of an expression may match.

    Attributes:
        choices: the number of combinations of choices: of alternatives, and of small counts.
        repetitions: the number of repetitions that divide a path among them.
    """

    choices: float = 1
    repetitions: float = 0

    @property
    def most(self) -> float:
        """The number of ways for the longest path."""
        if self.repetitions > LENGTH:
            return math.inf
        return self.choices * math.comb(LENGTH + int(self.repetitions), int(self.repetitions))


def _ways(items: Iterable[tuple[Any, Any]]) -> Ways:
    """Returns the ways of a sequence of parsed items."""
    found = [_item_ways(*item) for item in items]
    return Ways(math.prod(w.choices for w in found), sum(w.repetitions for w in found))


def _item_ways(code: int, value: Any) -> Ways:
    if code is codes.BRANCH:
        branches = value[1]
        ways = [_ways(branch) for branch in branches]
        starts = [branch[0] for branch in branches if len(branch)]
        alike = len(branches)  # alternatives that may begin in the same way
        if len(starts) == alike and all(start[0] is codes.LITERAL for start in starts):
            alike = max(Counter(letter for _, letter in starts).values())
        return Ways(alike * max(w.choices for w in ways), max(w.repetitions for w in ways))
    if code in (codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT):
        least, most, items = value
        idle = max(1, int(least)) if items.getwidth()[0] == 0 else 1  # matches of nothing
        ways, least, most = _ways(items), min(int(least), LENGTH), min(int(most), LENGTH)
        if ways == Ways():
            return Ways(idle, 1) if most - least > 1 else Ways(idle + most - least)
        choices = min(float(ways.choices), STEPS)  # no more than floats can hold
        choices = sum(choices ** min(count, 30) for count in range(least, most + 1))
        return Ways(idle * choices, ways.repetitions * most)
    parts = value if isinstance(value, tuple | list) else (value,)
    return _ways(item for part in parts if isinstance(part, parser.SubPattern) for item in part)
