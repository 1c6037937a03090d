"""Batch tokenization with a fast tokenizer of transformers.

The tokenizer itself is not changed: truncation is set on a copy of its backend, which returns ids
without the lists and offsets that a call of the tokenizer creates.
"""

import contextlib
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from minibert.core.checks import check_text, elements, whole
from minibert.errors import InputError, TextError, shown
from minibert.text.batching import Batch, padded

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerBase


@contextlib.contextmanager
def panics_as_errors() -> Generator[None]:
    """Converts a panic of tokenizers (of a damaged file), a `BaseException`, to a `ValueError`."""
    try:
        yield
    except BaseException as reason:
        if type(reason).__name__ != "PanicException":
            raise
        raise ValueError(f"a failure inside the tokenizers library: {reason}") from None


def backend_of(tokenizer: "PreTrainedTokenizerBase") -> Any:
    """Returns a copy of a fast tokenizer's backend without truncation and padding.

    Raises:
        InputError: `tokenizer` is not a fast tokenizer.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(
            "tokenizer: expected a fast tokenizer of transformers, found "
            f"{shown(type(tokenizer).__name__)}"
        )
    copy = type(backend).from_str(backend.to_str())
    copy.no_padding()
    copy.no_truncation()
    return copy


def encode_all(backend: "Backend", inputs: Sequence[Any], **options: bool) -> list[Any]:
    """Returns the encodings of several texts, pairs of texts, or lists of words.

    Args:
        backend: the tokenizer's backend.
        inputs: the texts.
        options: arguments of `encode_batch`.

    Raises:
        InputError: the backend cannot encode one of them.
    """
    try:
        with panics_as_errors():
            return backend.encode_batch(list(inputs), **options)
    except Exception as reason:  # tokenizers raises Exception itself
        if len(inputs) > 1:
            for one in inputs:  # to name the first that fails
                encode_all(backend, [one], **options)
        which = f" {shown(inputs[0])}" if len(inputs) == 1 else " the texts"
        raise InputError(f"tokenizer: cannot encode{which} ({shown(str(reason))})") from None


class TokenReader:
    """Converts texts to token ids with special tokens, truncated to a maximum length.

    Args:
        tokenizer: a fast tokenizer of transformers (almost all are).
        longest: the maximum number of tokens, special tokens included.
        lower_case: whether texts are lower-cased first.

    Raises:
        InputError: `tokenizer` is not a fast tokenizer, or `longest` is less than the number of
            special tokens.
    """

    tokenizer: "PreTrainedTokenizerBase"
    longest: int

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", longest: int, lower_case: bool = False
    ):
        self._backend = backend_of(tokenizer)
        special = tokenizer.num_special_tokens_to_add()
        longest = whole("max_seq_length", longest, max(special, 1))
        self.tokenizer, self.longest = tokenizer, longest
        self._backend.enable_truncation(longest, direction=tokenizer.truncation_side)
        if lower_case:
            make_lower_case(self._backend)
        if any(encode_all(self._backend, ["a"])[0].type_ids):
            raise InputError(
                "tokenizer: expected only token type 0 for a single text, found others"
            )

    def ids(
        self, texts: Sequence[str], numbers: Sequence[int] | None = None
    ) -> tuple[list[np.ndarray], int]:
        """Returns the token ids of each text, and the number of texts that were truncated.

        Args:
            texts: the texts.
            numbers: the numbers of the texts, for messages.

        Raises:
            TextError: a text is not a Unicode text, or has no tokens.
        """
        numbers = range(len(texts)) if numbers is None else numbers
        try:
            with panics_as_errors():
                found = self._backend.encode_batch_fast(list(texts))
        except Exception as reason:  # tokenizers raises TypeError for half a surrogate pair
            for number, text in zip(numbers, texts, strict=True):
                try:
                    check_text(text)
                except InputError as fault:
                    raise TextError(number, str(fault)) from None
            why = shown(str(reason))
            raise InputError(f"inputs: the tokenizer cannot encode them ({why})") from None
        ids = [np.array(encoding.ids, np.int32) for encoding in found]
        for number, text, row in zip(numbers, texts, ids, strict=True):
            if not row.size:
                raise TextError(number, f"expected at least 1 token, found none in {shown(text)}")
        return ids, sum(bool(encoding.overflowing) for encoding in found)

    def prompt_length(self, prompt: str) -> int:
        """Returns the number of tokens of a prompt before a text, without a final special token."""
        if not prompt:
            return 0
        ids = encode_all(self._backend, [prompt])[0].ids
        return len(ids) - (bool(ids) and ids[-1] in self.tokenizer.all_special_ids)

    def arrays(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns `input_ids`, `token_type_ids` (if used) and `attention_mask`, `(texts, length)`.

        They are padded to the longest text, on the tokenizer's padding side.
        """
        rows, _ = self.ids(texts)
        all_rows = Batch(np.arange(len(rows)), len(rows), max(map(len, rows), default=0))
        left = self.tokenizer.padding_side == "left"
        mask = padded([np.ones_like(row) for row in rows], all_rows, 0, left)
        segments = {"token_type_ids": np.zeros_like(mask)} if self.has_segments else {}
        ids = padded(rows, all_rows, self.pad, left)
        return {"input_ids": ids, **segments, "attention_mask": mask}

    @property
    def has_segments(self) -> bool:
        """Whether the tokenizer's model takes `token_type_ids`."""
        return "token_type_ids" in self.tokenizer.model_input_names

    @property
    def pad(self) -> int:
        """The id of padding; 0 if the tokenizer has none."""
        return self.tokenizer.pad_token_id or 0


def question_first(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Returns whether a question comes before its context in a pair.

    It comes after the context if the tokenizer pads on the left, as in the question-answering
    pipeline of transformers 4.57.6 and in its `run_qa.py`.
    """
    return tokenizer.padding_side != "left"


def make_lower_case(backend: "Backend") -> None:
    """Prepends a lower-casing normalizer unless there is one, as sentence-transformers does."""
    from tokenizers import normalizers

    own = backend.normalizer
    parts = list(own) if isinstance(own, normalizers.Sequence) else [own] if own else []
    if not any(isinstance(part, normalizers.Lowercase) for part in parts):
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *parts])


def sentence_list(sentences: object) -> list[str]:
    """Returns a text, or several, as a list; see `checks.elements`.

    Raises:
        InputError: `sentences` is neither a text nor several.
        TextError: an element is not a text.
    """
    texts = [sentences] if isinstance(sentences, str) else list(elements("inputs", sentences))
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            pair = isinstance(text, list | tuple)
            hint = "; a pair has no vector: join its texts, or encode each" if pair else ""
            raise TextError(number, f"expected a text, found {shown(text)}{hint}")
    return texts
