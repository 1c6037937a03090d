"""Labels for the tokens of a text; see transformers' `pipelines/token_classification.py`."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import softmax

from minibert.core.checks import check_text, text_list, whole
from minibert.errors import InputError, shown
from minibert.models.registry import task_classes
from minibert.pipelines.base import WindowPipeline
from minibert.pipelines.batches import Arrays

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
    if strategy in ("none", "simple"):
        alone = [_entity(token.scores, names, token.word, [token]) for token in tokens]
        return alone if strategy == "none" else grouped(alone, joined)
    words: list[list[Token]] = []
    for token in tokens:
        if token.continues and words:
            words[-1].append(token)
        else:
            words.append([token])
    found = []
    for word in words:
        match strategy:
            case "first":
                scores = word[0].scores
            case "max":
                scores = max(word, key=lambda token: token.scores.max()).scores
            case _:
                scores = np.mean([token.scores for token in word], axis=0)
        found.append(_entity(scores, names, joined([token.word for token in word]), word))
    return grouped(found, joined)


def _entity(
    scores: np.ndarray, names: Mapping[int, str], word: str, tokens: Sequence[Token]
) -> Entity:
    """A word with the likeliest label."""
    label = int(scores.argmax())
    return {
        "entity": names[label],
        "score": float(scores[label]),
        "index": tokens[0].index,
        "word": word,
        "start": tokens[0].start,
        "end": tokens[-1].end,
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
        else:
            kept[-1] = max(kept[-1], entity, key=_weight)
    return kept


def _weight(entity: Entity) -> tuple[int, float]:
    return entity["end"] - entity["start"], entity["score"]


class TokenClassificationPipeline(WindowPipeline):
    """The entities of a text.

    An answer is a list of dicts, in the text's order: `entity`, `score`, `index` (the token's
    position), `word`, `start` and `end` (characters of the text); with another
    `aggregation_strategy` than "none" of `entity_group`, `score`, `word`, `start`, `end`.

    Options: `aggregation_strategy`, see `entities`; `ignore_labels`, which are left out,
    by default "O"; `stride`, by how many tokens the windows overlap in which a long text is read;
    `is_split_into_words`, for lists of words, which `delimiter` joins; `truncation`, `max_length`.
    Words are known by the tokenizer; with one that has no word pieces, such as GPT-2's, by spaces.
    """

    task = "token-classification"
    models = task_classes("token-classification")

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """Finds the entities of a text, of a list of texts, or of those of an iterable."""
        words = self._shares(options)["preprocess"].get("is_split_into_words", False)
        if words and isinstance(inputs, list) and not any(isinstance(i, list) for i in inputs):
            return super().__call__([inputs], **options)
        return super().__call__(inputs, **options)

    def preprocess(
        self,
        inputs: Any,
        *,
        stride: Any = None,
        is_split_into_words: bool = False,
        delimiter: Any = None,
        truncation: Any = False,
        max_length: Any = None,
    ) -> list[dict[str, Any]]:
        """A text's windows, one if there is no `stride`, each a dict of arrays `(1, seq)`.

        In a window are also `sentence`, the text; `special_tokens_mask`; and `offset_mapping`,
        `(1, seq, 2)`: where in the text each token begins and ends.
        """
        longest, cut = self.cut_at(max_length), truncation or stride is not None
        if stride is not None:
            room = longest - self.tokenizer.num_special_tokens_to_add()
            stride = whole("stride", stride, 0, room - 1)
        if max_length is not None and not cut:
            raise InputError("max_length: cuts nothing by itself; say truncation=True too")
        sentence, starts = _placed(inputs, is_split_into_words, delimiter)
        encoded = self.tokenized(
            inputs,
            truncation=cut,
            max_length=longest if cut else None,
            is_split_into_words=is_split_into_words,
            **({} if stride is None else {"stride": stride, "return_overflowing_tokens": True}),
        )
        return [self._window(window, sentence, starts) for window in encoded.encodings]

    def postprocess(
        self,
        outputs: Sequence[Arrays],
        *,
        aggregation_strategy: Any = "none",
        ignore_labels: Any = None,
        stride: Any = None,
    ) -> list[Entity]:
        """The entities of a text, from its windows' `logits` `(1, seq, labels)`."""
        strategy = str(aggregation_strategy).lower()
        if strategy not in STRATEGIES:
            expected, found = ", ".join(STRATEGIES), shown(aggregation_strategy)
            raise InputError(f"aggregation_strategy: expected one of {expected}, found {found}")
        if stride is not None and strategy == "none":
            raise InputError("stride: windows overlap; expected an aggregation_strategy too")
        given = ("O",) if ignore_labels is None else ignore_labels
        ignored = text_list("ignore_labels", given, ordered=False)
        joined = self.tokenizer.convert_tokens_to_string
        names = self.model.config.id2label
        found = [
            entity
            for output in outputs
            for entity in entities(self._tokens(output), strategy, names, joined)
            if entity.get("entity", entity.get("entity_group")) not in ignored
        ]
        return disjoint(found) if len(outputs) > 1 else found

    def _window(self, encoding: Any, sentence: str, starts: Sequence[int]) -> dict[str, Any]:
        offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
        if starts:
            words = [0 if word is None else starts[word] for word in encoding.word_ids]
            offsets += np.array(words, np.int64)[:, None]
        return {
            **self._arrays(encoding),
            "special_tokens_mask": np.asarray(encoding.special_tokens_mask)[None],
            "offset_mapping": offsets[None],
            "sentence": sentence,
        }

    def _tokens(self, output: Arrays) -> list[Token]:
        """A window's tokens, but the special ones."""
        sentence, scores = output["sentence"], softmax(self.logits(output)[0], axis=-1)
        ids = np.asarray(output["input_ids"])[0].tolist()
        spans = np.asarray(output["offset_mapping"])[0].tolist()
        words = self.tokenizer.convert_ids_to_tokens(ids)
        model = getattr(getattr(self.tokenizer, "backend_tokenizer", None), "model", None)
        has_pieces = bool(getattr(model, "continuing_subword_prefix", None))
        tokens = []
        for index in np.flatnonzero(np.asarray(output["special_tokens_mask"])[0] == 0).tolist():
            word, (start, end) = words[index], spans[index]
            text = sentence[start:end]
            if ids[index] == self.tokenizer.unk_token_id:
                word, continues = text, False
            elif has_pieces:
                continues = len(word) != len(text)
            else:
                continues = start > 0 and " " not in sentence[start - 1 : start + 1]
            tokens.append(Token(word, scores[index], start, end, index, continues))
        return tokens


def _placed(inputs: Any, split: bool, delimiter: Any) -> tuple[str, list[int]]:
    """The text, and of a list of words where in it each begins."""
    if not split:
        check_text(inputs)
        return inputs, []
    if not isinstance(inputs, list):
        raise InputError(f"is_split_into_words: expected a list of words, found {shown(inputs)}")
    for word in inputs:
        check_text(word)
    between = " " if delimiter is None else delimiter
    if not isinstance(between, str):
        raise InputError(f"delimiter: expected a text, found {shown(delimiter)}")
    starts = [0, *itertools.accumulate(len(word) + len(between) for word in inputs)]
    return between.join(inputs), starts
