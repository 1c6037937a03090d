"""From scored tokens to entities: tokens to words, words to groups.

The reference is transformers' `pipelines/token_classification.py`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

STRATEGIES = ("none", "simple", "first", "average", "max")

Entity = dict[str, Any]
Joined = Callable[[list[str]], str]


@dataclasses.dataclass(frozen=True)
class Token:
    """A token that is not special.

    Attributes:
        word: its text in the vocabulary.
        scores: `(labels,)` probabilities.
        start, end: its characters in the text.
        index: its position.
        continues: whether it is the same word as the token before it.
    """

    word: str
    scores: np.ndarray
    start: int
    end: int
    index: int
    continues: bool


def entities(
    tokens: Sequence[Token], strategy: str, names: Mapping[int, str], joined: Joined
) -> list[Entity]:
    """The entities of a text.

    Args:
        tokens: its tokens, in order.
        strategy: one of `STRATEGIES`: "none", an entity is a token; "simple", neighbours of one
            label are one; with the others a word has one label, that of its first token, of its
            tokens' average, or of its surest token.
        names: the labels' names.
        joined: makes a text of tokens' texts.
    """
    if strategy == "none":
        return [labelled(token, names) for token in tokens]
    if strategy == "simple":
        return grouped([labelled(token, names) for token in tokens], joined)
    words: list[list[Token]] = []
    for token in tokens:
        if token.continues and words:
            words[-1].append(token)
        else:
            words.append([token])
    return grouped([worded(word, strategy, names, joined) for word in words], joined)


def labelled(token: Token, names: Mapping[int, str]) -> Entity:
    """A token with its likeliest label."""
    label = int(token.scores.argmax())
    return {
        "entity": names[label],
        "score": float(token.scores[label]),
        "index": token.index,
        "word": token.word,
        "start": token.start,
        "end": token.end,
    }


def worded(
    word: Sequence[Token], strategy: str, names: Mapping[int, str], joined: Joined
) -> Entity:
    """A word with the label that `strategy` gives it."""
    match strategy:
        case "first":
            scores = word[0].scores
        case "max":
            scores = max(word, key=lambda token: token.scores.max()).scores
        case _:
            scores = np.mean([token.scores for token in word], axis=0)
    label = int(scores.argmax())
    return {
        "entity": names[label],
        "score": float(scores[label]),
        "word": joined([token.word for token in word]),
        "start": word[0].start,
        "end": word[-1].end,
    }


def grouped(parts: Sequence[Entity], joined: Joined) -> list[Entity]:
    """Neighbours of one tag as one entity; a part marked `B-` begins another."""
    groups: list[list[Entity]] = []
    for part in parts:
        begins, tag = _tag(part["entity"])
        if groups and not begins and tag == _tag(groups[-1][-1]["entity"])[1]:
            groups[-1].append(part)
        else:
            groups.append([part])
    return [
        {
            "entity_group": group[0]["entity"].split("-", 1)[-1],
            "score": float(np.mean([part["score"] for part in group])),
            "word": joined([part["word"] for part in group]),
            "start": group[0]["start"],
            "end": group[-1]["end"],
        }
        for group in groups
    ]


def _tag(label: str) -> tuple[bool, str]:
    """Whether a label begins an entity, and which: `B-PER` and `I-PER` are both `PER`."""
    return label.startswith("B-"), label[2:] if label.startswith(("B-", "I-")) else label


def disjoint(found: Sequence[Entity]) -> list[Entity]:
    """Of entities that overlap, found in windows that do, the longest, then the surest."""
    kept: list[Entity] = []
    for entity in sorted(found, key=lambda entity: entity["start"]):
        if not kept or not kept[-1]["start"] <= entity["start"] < kept[-1]["end"]:
            kept.append(entity)
        elif _weight(entity) > _weight(kept[-1]):
            kept[-1] = entity
    return kept


def _weight(entity: Entity) -> tuple[int, float]:
    return entity["end"] - entity["start"], entity["score"]
