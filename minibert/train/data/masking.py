"""Masked words: which tokens of an example are to be found, and what stands in their place.

Devlin et al., arXiv:1810.04805, 3.1; the semantics are those of `DataCollatorForLanguageModeling`
of transformers, but that a masked word too is replaced token by token, 80/10/10, as in BERT's own
`create_pretraining_data.py`, and that no example is without a target.
"""

import dataclasses
from typing import Any

import numpy as np

from minibert.core.checks import flag, number
from minibert.errors import InputError, shown
from minibert.train.objectives.labels import IGNORED

MASKED, RANDOM = 0.8, 0.1  # the shares of the targets that get the mask, or another token


@dataclasses.dataclass(frozen=True, kw_only=True)
class Masking:
    """Masks an example anew every time.

    A call takes an example with `input_ids` `(seq,)` and, for whole words, `word_starts` `(seq,)`,
    whether a word begins at a token; and returns it with `labels` and without `word_starts`.

    Attributes:
        mask: the mask's id.
        vocab_size: how many tokens there are to draw from.
        special: the ids that are never masked.
        probability: how likely a token, or a word, is a target. Where none is drawn there is one
            all the same, any: an example of n tokens has 1/n · (1 − p)ⁿ more of them.
        whole_words: whether all tokens of a word are targets together.
    """

    mask: int
    vocab_size: int
    special: tuple[int, ...]
    probability: float = 0.15
    whole_words: bool = False

    def free(self, ids: np.ndarray) -> np.ndarray:
        """Which tokens may be masked."""
        return ~np.isin(ids, self.special)

    def targets(
        self, ids: np.ndarray, word_starts: Any, generator: np.random.Generator
    ) -> np.ndarray:
        """Which tokens are to be found, `(seq,)`; at least one, if one may be."""
        free = self.free(ids)
        words = np.cumsum(word_starts) if self.whole_words else np.arange(len(ids))
        drawn = generator.random(len(ids) + 1) < self.probability
        chosen = drawn[words] & free
        if not chosen.any() and free.any():
            chosen = (words == generator.choice(np.unique(words[free]))) & free
        return chosen

    def __call__(self, example: dict[str, Any], generator: np.random.Generator) -> dict[str, Any]:
        """The example, masked."""
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


def masking_of(tokenizer: Any, probability: Any, whole_words: Any) -> Masking:
    """The masking of a tokenizer.

    Raises:
        InputError: the tokenizer has no mask token, or an argument is wrong.
    """
    if tokenizer.mask_token_id is None:
        raise InputError("tokenizer: has no mask token, so it is not for masked words")
    if number("probability", probability, above=0) > 1:
        raise InputError(f"probability: expected a number up to 1, found {shown(probability)}")
    return Masking(
        mask=tokenizer.mask_token_id,
        vocab_size=len(tokenizer),
        special=tuple(sorted(tokenizer.all_special_ids)),
        probability=float(probability),
        whole_words=flag("whole_words", whole_words),
    )
