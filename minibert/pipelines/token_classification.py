"""Token classification; the reference is transformers' `pipelines/token_classification.py`."""

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
from scipy.special import softmax

from minibert.core.checks import check_choice, check_text, text_list, whole
from minibert.errors import InputError, shown
from minibert.models.base import ModelClass
from minibert.models.registry import task_classes
from minibert.pipelines.base import WindowPipeline
from minibert.pipelines.batches import Arrays

if TYPE_CHECKING:
    from tokenizers import Encoding

STRATEGIES = ("none", "simple", "first", "average", "max")

Item = TypeVar("Item")
Entity = dict[str, Any]
Joined = Callable[[list[str]], str]


@dataclasses.dataclass(frozen=True)
class Token:
    """A token that is not special.

    Attributes:
        word: its text in the vocabulary.
        scores: `(labels,)` probabilities.
        start, end: its character offsets in the text.
        index: its position.
        continues: whether it belongs to the same word as the previous token.
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
    """Returns the entities of a text.

    Args:
        tokens: its tokens, in order.
        strategy: one of `STRATEGIES`: with "none" each token is an entity; "simple" merges adjacent
            tokens with the same label; with the others each word has one label first: that of its
            first token, of its tokens' average, or of the token with the highest score.
        names: the names of labels.
        joined: converts the texts of tokens to one text.
    """
    by_token = strategy in ("none", "simple")
    found = []
    for word in _runs(tokens, lambda _, token: token.continues and not by_token):
        first = word[0]
        match strategy:
            case "max":
                scores = max(word, key=lambda token: token.scores.max()).scores
            case "average":
                scores = np.mean([token.scores for token in word], axis=0)
            case _:
                scores = first.scores
        label = int(scores.argmax())
        found.append(
            {
                "entity": names[label],
                "score": float(scores[label]),
                "index": first.index,
                "word": first.word if by_token else joined([token.word for token in word]),
                "start": first.start,
                "end": word[-1].end,
            }
        )
    return found if strategy == "none" else grouped(found, joined)


def grouped(parts: Sequence[Entity], joined: Joined) -> list[Entity]:
    """Merges adjacent parts with the same tag to one entity; a tag `B-` starts a new one."""
    return [
        {
            "entity_group": group[0]["entity"].split("-", 1)[-1],
            "score": float(np.mean([part["score"] for part in group])),
            "word": joined([part["word"] for part in group]),
            "start": group[0]["start"],
            "end": group[-1]["end"],
        }
        for group in _runs(parts, _continues)
    ]


def _continues(before: Entity, part: Entity) -> bool:
    """Returns whether a part continues the previous one: `B-PER` and `I-PER` are both `PER`."""
    tags = {re.sub("^[BI]-", "", one["entity"]) for one in (before, part)}
    return len(tags) == 1 and not part["entity"].startswith("B-")


def _runs(items: Iterable[Item], go_on: Callable[[Item, Item], bool]) -> list[list[Item]]:
    """Splits items into runs in which each item continues the previous one."""
    found: list[list[Item]] = []
    for item in items:
        if found and go_on(found[-1][-1], item):
            found[-1].append(item)
        else:
            found.append([item])
    return found


def disjoint(found: Sequence[Entity]) -> list[Entity]:
    """Resolves overlaps between entities of overlapping windows: longest, then highest score."""
    kept: list[Entity] = []
    for entity in sorted(found, key=lambda entity: entity["start"]):
        if not kept or not kept[-1]["start"] <= entity["start"] < kept[-1]["end"]:
            kept.append(entity)
        else:
            kept[-1] = max(
                kept[-1], entity, key=lambda one: (one["end"] - one["start"], one["score"])
            )
    return kept


class TokenClassificationPipeline(WindowPipeline):
    """Finds the entities of a text.

    An answer is a list of dicts, in the order of the text: `entity`, `score`, `index` (the token's
    position), `word`, `start` and `end` (character offsets); with an `aggregation_strategy` other
    than "none", `entity_group`, `score`, `word`, `start`, `end`.

    Options: `aggregation_strategy`, see `entities`; `ignore_labels`, labels to leave out, by
    default "O"; `stride`, the overlap in tokens of the windows of a long text;
    `is_split_into_words`, for lists of words, which are joined with `delimiter`; `truncation`,
    `max_length`. Word boundaries are those of the tokenizer, or spaces if it has no word pieces, as
    GPT-2's.
    """

    task = "token-classification"
    models: ClassVar[tuple[ModelClass, ...]] = task_classes("token-classification")

    def __call__(self, inputs: object, **options: Any) -> Any:
        """Finds the entities of a text, of a list of texts, or of those of an iterable."""
        words = self._shares(options)["preprocess"].get("is_split_into_words", False)
        if words and isinstance(inputs, list) and not any(isinstance(i, list) for i in inputs):
            inputs = [inputs]
        return super().__call__(inputs, **options)

    def preprocess(
        self,
        inputs: object,
        *,
        stride: int | None = None,
        is_split_into_words: bool = False,
        delimiter: str | None = None,
        truncation: bool | str | None = False,
        max_length: int | None = None,
    ) -> list[dict[str, Any]]:
        """Returns a text's windows, one without `stride`, each a dict of arrays `(1, seq)`.

        A window also contains `sentence`, the text; `special_tokens_mask`; and `offset_mapping`,
        `(1, seq, 2)`, the character offsets of each token.
        """
        longest, cut = self.cut_at(max_length), truncation or stride is not None
        if stride is not None:
            special = self.tokenizer.num_special_tokens_to_add()
            stride = whole("stride", stride, 0, longest - special - 1)
        if max_length is not None and not cut:
            raise InputError("max_length: has no effect alone; pass truncation=True too")
        sentence, starts = _placed(inputs, is_split_into_words, delimiter)
        encoded = self.tokenized(
            inputs,
            truncation=cut,
            max_length=longest if cut else None,
            is_split_into_words=is_split_into_words,
            stride=stride or 0,
            return_overflowing_tokens=stride is not None,
        )
        return [self._window(window, sentence, starts) for window in encoded.encodings]

    def postprocess(
        self,
        outputs: Sequence[Arrays],
        *,
        aggregation_strategy: str = "none",
        ignore_labels: Sequence[str] | None = None,
        stride: int | None = None,
    ) -> list[Entity]:
        """Returns the entities of a text, given its windows' `logits` `(1, seq, labels)`."""
        strategy = str(aggregation_strategy).lower()
        if strategy not in STRATEGIES:
            check_choice("aggregation_strategy", aggregation_strategy, STRATEGIES)
        if stride is not None and strategy == "none":
            raise InputError('stride: expected an aggregation_strategy other than "none" with it')
        ignored = text_list(
            "ignore_labels", ["O"] if ignore_labels is None else ignore_labels, ordered=False
        )
        joined = self.tokenizer.convert_tokens_to_string
        names = self.model.config.id2label
        found = [
            entity
            for output in outputs
            for entity in entities(self._tokens(output), strategy, names, joined)
            if entity.get("entity", entity.get("entity_group")) not in ignored
        ]
        return disjoint(found) if len(outputs) > 1 else found

    def _window(self, encoding: "Encoding", sentence: str, starts: Sequence[int]) -> dict[str, Any]:
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
        """Returns a window's tokens, without special ones."""
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


def _placed(inputs: Any, split: bool, delimiter: str | None) -> tuple[str, list[int]]:
    """Returns the text and, for a list of words, the start of each word in it."""
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
