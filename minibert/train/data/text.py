"""Running text: windows for causal models, masked texts, masked pairs of sentences."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from minibert.core.checks import as_array, checked_indices, flag, whole
from minibert.core.fields import number
from minibert.core.types import ArrayLike, Path, Texts
from minibert.data.records import read_texts
from minibert.errors import InputError
from minibert.train.data.batching import Batching, BatchOptions, batched, stacked
from minibert.train.data.encoding import (
    Encoder,
    Windows,
    blocks_of,
    collate_for,
    unpadded,
    word_starts,
)
from minibert.train.data.next_sentence import (
    SentencePairs,
    SwappedPairs,
    pairs_of,
    read_documents,
)
from minibert.train.objectives.labels import IGNORED

if TYPE_CHECKING:
    from grain import IterDataset
    from transformers import PreTrainedTokenizerBase

MASKED, RANDOM = 0.8, 0.1  # the fractions of targets replaced by the mask, and by a random token

POSITIVE_PROBABILITY = number("a number above 0, to 1", lambda value: 0 < value <= 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Masking:
    """Masks an example at random, differently at every call (Devlin et al., arXiv:1810.04805, 3.1).

    The semantics are those of `DataCollatorForLanguageModeling` of transformers, except that the
    tokens of a masked word are replaced independently, 80/10/10, as in BERT's own
    `create_pretraining_data.py`, and that every example has at least one target.

    A call takes an example with `input_ids` `(seq,)` and, for whole words, `word_starts` `(seq,)`,
    whether a word begins at a token; and returns it with `labels` and without `word_starts`.

    Attributes:
        mask: the id of the mask token.
        vocab_size: the number of tokens from which random replacements are drawn.
        special: the ids that are never masked.
        probability: the probability that a token, or a word, is a target. If none is drawn, one is
            chosen at random, which adds 1/n · (1 − p)ⁿ to the probability for n tokens.
        whole_words: whether all tokens of a word are targets together.
    """

    mask: int
    vocab_size: int
    special: tuple[int, ...]
    probability: float = 0.15
    whole_words: bool = False

    def free(self, ids: np.ndarray) -> np.ndarray:
        """Returns which tokens may be masked."""
        return ~np.isin(ids, self.special)

    def check(self, ids: Any, place: str, what: str = "") -> None:
        """Raises an InputError if no token may be masked."""
        if not self.free(ids).any():
            raise InputError(f"{place}: {what}has no token that can be masked")

    def targets(
        self, ids: np.ndarray, word_starts: Any, generator: np.random.Generator
    ) -> np.ndarray:
        """Returns which tokens are targets, `(seq,)`; at least one, if any may be masked."""
        free = self.free(ids)
        words = np.cumsum(word_starts) if self.whole_words else np.arange(len(ids))
        drawn = generator.random(len(ids) + 1) < self.probability
        chosen = drawn[words] & free
        if not chosen.any() and free.any():
            chosen = (words == generator.choice(np.unique(words[free]))) & free
        return chosen

    def __call__(self, example: dict[str, Any], generator: np.random.Generator) -> dict[str, Any]:
        """Returns the example, masked."""
        ids = example["input_ids"]
        chosen = self.targets(ids, example.get("word_starts"), generator)
        fate = generator.random(len(ids))
        others = generator.integers(self.vocab_size, size=len(ids), dtype=ids.dtype)
        shown_ids = np.where(chosen & (fate < MASKED), self.mask, ids)
        is_other = chosen & (fate >= MASKED) & (fate < MASKED + RANDOM)
        kept = {name: value for name, value in example.items() if name != "word_starts"}
        return kept | {
            "input_ids": np.where(is_other, others, shown_ids).astype(ids.dtype),
            "labels": np.where(chosen, ids, IGNORED).astype(ids.dtype),
        }


def masking_of(
    tokenizer: "PreTrainedTokenizerBase", probability: float, whole_words: bool
) -> Masking:
    """Returns the masking for a tokenizer.

    Raises:
        InputError: the tokenizer has no mask token, or an argument is wrong.
    """
    if tokenizer.mask_token_id is None:
        raise InputError("tokenizer: expected a tokenizer with a mask token, found none")
    return Masking(
        mask=tokenizer.mask_token_id,
        vocab_size=len(tokenizer),
        special=tuple(sorted(tokenizer.all_special_ids)),
        probability=POSITIVE_PROBABILITY.check("probability", probability, InputError),
        whole_words=flag("whole_words", whole_words),
    )


AT_ONCE = 1 << 24  # ids that are checked together


def windows(
    ids: ArrayLike,
    *,
    max_length: int,
    stride: int | None = None,
    batch_size: int,
    **options: Unpack[BatchOptions],
) -> "IterDataset[dict[str, np.ndarray]]":
    """Returns sliding windows over ids: `input_ids` and `shift_labels`, `(batch, max_length)` both.

    Windows begin at 0, stride, 2 · stride, … as long as each of their tokens has a token after it.

    Args:
        ids: token ids `(tokens,)`, as of `token_ids`; they may be a memory map.
        max_length: the number of tokens of a window.
        stride: the distance from the start of a window to the next; `max_length` by default.
        batch_size: rows of a batch.
        **options: those of `batches`.

    Raises:
        InputError: an argument is wrong, or there are not more ids than a window has.
    """
    batching = Batching(batch_size=batch_size, **options)
    max_length = whole("max_length", max_length, 1)
    stride = max_length if stride is None else whole("stride", stride, 1)
    array = as_array("ids", ids)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InputError(
            f"ids: expected whole numbers of shape (tokens,), found {array.dtype} of {array.shape}"
        )
    if len(array) <= max_length:
        raise InputError(
            f"ids: {len(array)} tokens; a window of {max_length} and the next token need "
            f"{max_length + 1}"
        )
    for start in range(0, len(array), AT_ONCE):  # a memory map is not read whole
        checked_indices("ids", array[start : start + AT_ONCE], 1 << 31, "int32's")
    return batched(Windows(array, max_length, stride), batching, stacked, about={})


def masked_lm(
    source: Path | Texts | Iterable[Mapping[str, Any]],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_length: int,
    batch_size: int,
    column: str | None = None,
    pack: bool = True,
    truncation: bool = False,
    probability: float = 0.15,
    whole_words: bool = False,
    pad_to: int | Sequence[int] | None = None,
    show_progress: bool | None = None,
    **options: Unpack[BatchOptions],
) -> "IterDataset[dict[str, np.ndarray]]":
    """Returns masked texts: `input_ids`, `attention_mask`, `labels`, `(batch, seq)` each.

    Masks are drawn again in every epoch (`Masking`).

    Args:
        source: a path, of a `.txt` file with one text per line, or another; or an iterable of
            texts.
        tokenizer: a fast tokenizer of transformers with a mask token.
        max_length, truncation, pad_to, show_progress: see `data`.
        batch_size: rows of a batch.
        column: the column of a file that has columns; `text` by default.
        pack: whether to concatenate texts, with separators, and split them into blocks of
            `max_length` tokens; otherwise each text is an example.
        probability: the probability that a token, or a word, is a target.
        whole_words: whether all tokens of a word are masked together.
        **options: those of `batches`.

    Raises:
        SourceError: there is no such file.
        InputError: an argument is wrong, or a text is empty or too long.
    """
    encoder = Encoder(tokenizer, max_length, truncation, show_progress, batch_size, options)
    masking = masking_of(tokenizer, probability, whole_words)
    collate = collate_for(encoder, pad_to, labels=True)
    texts, places = read_texts(source, column)
    examples: Any
    if flag("pack", pack):
        examples = blocks_of(encoder, texts)
        places = [f"block {index}" for index in range(len(examples))]
    else:
        examples = [
            {
                **unpadded(encoding.ids),
                "word_starts": word_starts(encoding),
                "example": np.int64(index),
            }
            for index, encoding in enumerate(encoder(texts, places))
        ]
    for index, place in enumerate(places):
        masking.check(examples[index]["input_ids"], place)
    return encoder.batches(examples, collate, [masking])


def pretraining(
    source: Path | Texts | Iterable[Mapping[str, Any]],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_length: int,
    batch_size: int,
    column: str | None = None,
    truncation: bool = False,
    probability: float = 0.15,
    whole_words: bool = False,
    sentence_order: bool = False,
    pad_to: int | Sequence[int] | None = None,
    show_progress: bool | None = None,
    **options: Unpack[BatchOptions],
) -> "IterDataset[dict[str, np.ndarray]]":
    """Returns masked sentence pairs: as `masked_lm`, and `token_type_ids`, `next_sentence_label`.

    `next_sentence_label` `(batch,)` is 0 if the second part follows the first in its document, and
    1 if it is from another document, which is drawn again in every epoch, like the masks. With
    `sentence_order`, as for ALBERT, it is `sentence_order_label`, and 1 if the parts are swapped.

    Args:
        source: a path, of a `.txt` file with one sentence per line and a blank line between
            documents, or another, of documents with one sentence per line; or an iterable of
            documents, each such a text or a list of sentences.
        tokenizer: a fast tokenizer of transformers with a mask token.
        max_length, truncation, pad_to, show_progress: see `data`.
        batch_size: rows of a batch.
        column: the column of a file that has columns; `text` by default.
        probability, whole_words: as for `masked_lm`.
        sentence_order: whether the second part is swapped with the first, not replaced.
        **options: those of `batches`.

    Raises:
        SourceError: there is no such file.
        InputError: an argument is wrong; a document has fewer than two sentences, or two that are
            too long together; or there are fewer than two documents to draw from.
    """
    encoder = Encoder(tokenizer, max_length, truncation, show_progress, batch_size, options)
    masking = masking_of(tokenizer, probability, whole_words)
    collate = collate_for(encoder, pad_to, labels=True)
    documents, places = read_documents(source, column)
    kind = SwappedPairs if sentence_order else SentencePairs
    pairs = pairs_of(encoder, documents, places, kind)
    for document, place in zip(pairs.documents, places, strict=True):
        for index, (ids, _) in enumerate(document):
            masking.check(ids, place, f"sentence {index} ")
    return encoder.batches(pairs, collate, [pairs, masking])
