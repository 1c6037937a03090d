"""Fill-mask; the reference is transformers' `pipelines/fill_mask.py`."""

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from scipy.special import softmax

from minibert.core.checks import text_list, whole
from minibert.errors import InputError, shown
from minibert.models.base import ModelClass, PretrainedModel
from minibert.models.registry import task_classes
from minibert.nn.numerics import highest
from minibert.pipelines.base import Pipeline
from minibert.pipelines.batches import Arrays, on_host
from minibert.pipelines.options import for_tokenizer
from minibert.text.batching import default_budget

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LOGITS = 1 << 26  # maximum number of logits of a batch: a quarter of a gigabyte


class FillMaskPipeline(Pipeline):
    """Predicts the most probable tokens for every mask of a text.

    An answer is a list of dicts, the most probable token first: `score`, its probability; `token`,
    its id; `token_str`; `sequence`, the filled text. For a text with several masks it is a list of
    such lists. A list of one text is answered like the text itself, as in transformers.

    Raises:
        InputError: if the tokenizer has no mask token.
    """

    task = "fill-mask"
    models: ClassVar[tuple[ModelClass, ...]] = task_classes("fill-mask")

    def __init__(
        self,
        model: PretrainedModel | None = None,
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        **options: Any,
    ):
        super().__init__(model, tokenizer, **options)
        if getattr(tokenizer, "mask_token_id", None) is None:
            raise InputError("tokenizer: fill-mask needs a mask token, found none")

    def __call__(self, inputs: object, **options: Any) -> Any:
        """Fills the masks of a text, of a list of texts, or of those of an iterable.

        Args:
            inputs: the texts.
            options: `top_k`, the number of tokens for each mask, 5 by default; `targets`, the only
                words to score; `truncation`, `max_length`; `tokenizer_kwargs` for the tokenizer.
        """
        answers = super().__call__(inputs, **options)
        return answers[0] if isinstance(inputs, list) and len(inputs) == 1 else answers

    def preprocess(
        self,
        inputs: object,
        *,
        truncation: bool | str | None = False,
        max_length: int | None = None,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
    ) -> dict[str, np.ndarray]:
        """Returns a text's tokens as arrays `(1, seq)`.

        Raises:
            InputError: if there is no mask token.
        """
        given = for_tokenizer("tokenizer_kwargs", tokenizer_kwargs)
        options = {"truncation": truncation, "max_length": max_length, **given}
        encoded = self.encoded(inputs, **options)
        if self.tokenizer.mask_token_id not in encoded["input_ids"]:
            cut = " left after truncation" if options["truncation"] else ""
            raise InputError(f"no {self.tokenizer.mask_token}{cut} in {shown(inputs)}")
        return encoded

    def postprocess(
        self, outputs: Arrays, *, top_k: int = 5, targets: str | Sequence[str] | None = None
    ) -> list[Any]:
        """Returns the tokens for a text's masks, given `logits` `(1, seq, vocab)`."""
        ids = np.asarray(outputs["input_ids"])[0]
        masks = np.flatnonzero(ids == self.tokenizer.mask_token_id).tolist()
        chances = softmax(self.logits({"logits": on_host(outputs["logits"])[0, masks]}), axis=-1)
        words = np.arange(chances.shape[-1]) if targets is None else self._targets(targets)
        top_k = whole("top_k", top_k, 1, chances.shape[-1])
        answers, single, decode = [], len(masks) == 1, self.tokenizer.decode
        for mask, chance in zip(masks, chances[:, words], strict=True):
            answers.append([])
            for best in highest(chance, top_k):
                word, filled = int(words[best]), ids.copy()
                filled[mask] = word
                filled = filled[filled != self.tokenizer.pad_token_id].tolist()
                answers[-1].append(
                    {
                        "score": float(chance[best]),
                        "token": word,
                        "token_str": decode([word]),
                        # the other masks are special tokens, and must stay visible
                        "sequence": decode(filled, skip_special_tokens=single),
                    }
                )
        return answers[0] if single else answers

    def _targets(self, targets: str | Sequence[str]) -> np.ndarray:
        """Returns the ids of the target words, each once; for a longer word, its first token."""
        found = []
        for target in text_list("targets", targets):
            word: Any = self.tokenizer.convert_tokens_to_ids(target)
            if word is None or (
                word == self.tokenizer.unk_token_id and target != self.tokenizer.unk_token
            ):
                words = self.tokenized(target, add_special_tokens=False)["input_ids"]
                if not words:
                    raise InputError(f"targets: {shown(target)} has no tokens")
                word = words[0]
                if len(words) > 1 or word == self.tokenizer.unk_token_id:
                    token = self.tokenizer.convert_ids_to_tokens(word)
                    message = f"targets: {target!r} is not in the vocabulary; scoring {token!r}"
                    warnings.warn(message, stacklevel=2)
            if not 0 <= word < self.model.config.vocab_size:
                raise InputError(
                    f"targets: {target!r} is token {word} of the tokenizer; the model has only "
                    f"{self.model.config.vocab_size} (vocab_size)"
                )
            found.append(word)
        if not found:
            raise InputError("targets: expected at least one word, found none")
        return np.array(list(dict.fromkeys(found)))

    @property
    def _default_budget(self) -> int:
        return min(default_budget(), max(1, LOGITS // self.model.config.vocab_size))
