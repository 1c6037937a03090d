"""Text classification and next-sentence prediction.

The reference is transformers' `pipelines/text_classification.py`; transformers has no pipeline for
next-sentence prediction.
"""

from collections.abc import Mapping, Sequence
from types import EllipsisType
from typing import Any, ClassVar

import numpy as np
from jax import Array
from scipy.special import softmax

from minibert.core.checks import whole
from minibert.errors import InputError, shown
from minibert.models.base import ModelClass, Names, PretrainedModel
from minibert.models.registry import task_classes
from minibert.nn.numerics import is_finite
from minibert.pipelines.base import Pipeline, Shares
from minibert.pipelines.batches import Arrays
from minibert.text.batching import Batch


class ClassifierPipeline(Pipeline):
    """Base class of pipelines that classify whole texts."""

    models: ClassVar[tuple[ModelClass, ...]] = task_classes("text-classification")
    by_token: ClassVar[Names] = ()

    def _batches(self, lengths: Sequence[int], shares: Shares) -> list[Batch]:
        if self._left:
            shares = {**shares, "batching": {**shares["batching"], "batch_size": 1}}
        return super()._batches(lengths, shares)

    def _through(
        self, arrays: dict[str, Any], numbers: Sequence[int], options: Mapping[str, Any]
    ) -> Arrays:
        if self._left and "position_ids" not in arrays:
            ids, mask = arrays["input_ids"], arrays["attention_mask"] == 1
            arrays["position_ids"] = self.compiled.programs(_positions)(ids, mask)
        return super()._through(arrays, numbers, options)

    @property
    def _left(self) -> bool:
        """Whether to pad on the left: without a pad token the model reads the last position."""
        return self.model.config.pad_token_id is None


def _positions(model: PretrainedModel, ids: Array, mask: Array) -> Array:
    return model.base_model.positions(ids, mask)


class TextClassificationPipeline(ClassifierPipeline):
    """Predicts the most probable label of a text, or of a pair of texts.

    A pair is `{"text": …, "text_pair": …}` or a tuple of two. An answer is a dict of `label` and
    `score`, in a list if the input is a single text, as in transformers. With `top_k` it is a list
    of that many, the most probable first; `top_k=None` returns all labels.

    Other options: `function_to_apply`, one of sigmoid, softmax and none, by default according to
    the config's problem type; `truncation`, `max_length`, `padding`, `add_special_tokens`.
    """

    task = "text-classification"

    def __call__(self, inputs: object, **options: Any) -> Any:
        """Classifies a text or pair, a list of them, or those of an iterable."""
        answer = super().__call__(inputs, **options)
        return [answer] if isinstance(inputs, str) and "top_k" not in options else answer

    def preprocess(
        self,
        inputs: object,
        *,
        truncation: bool | str | None = False,
        max_length: int | None = None,
        padding: bool | str | None = False,
        add_special_tokens: bool = True,
    ) -> dict[str, np.ndarray]:
        """Returns the tokens of a text or a pair as arrays `(1, seq)`."""
        return self.encoded(
            *text_and_pair(inputs),
            truncation=truncation,
            max_length=max_length,
            padding=padding,
            add_special_tokens=add_special_tokens,
        )

    def postprocess(
        self,
        outputs: Arrays,
        *,
        function_to_apply: str | None = None,
        top_k: int | EllipsisType | None = ...,
    ) -> Any:
        """Returns labels, given `logits` `(1, labels)`; without `top_k` only the most probable."""
        if top_k is not ... and top_k is not None:
            top_k = whole("top_k", top_k, 1)
        scores = self._scored(self.logits(outputs)[0], function_to_apply)
        if not is_finite(scores):
            raise self.not_finite("logits")
        order = np.argsort(-scores, kind="stable").tolist()
        names = self.model.config.id2label
        answers = [{"label": names[label], "score": float(scores[label])} for label in order]
        return answers[0] if top_k is ... else answers[:top_k]

    def _scored(self, logits: np.ndarray, function: str | None) -> np.ndarray:
        if function is None:
            kind, labels = self.model.config.problem_type, self.model.config.num_labels
            several = kind == "multi_label_classification" or labels == 1
            function = "none" if kind == "regression" else "sigmoid" if several else "softmax"
        match function.lower() if isinstance(function, str) else function:
            case "sigmoid":
                return 1 / (1 + np.exp(-logits))
            case "softmax":
                return softmax(logits, axis=-1)
            case "none":
                return logits
        raise InputError(
            f"function_to_apply: expected one of sigmoid, softmax, none, found {shown(function)}"
        )


class NextSentencePredictionPipeline(Pipeline):
    """Predicts whether the second of two texts follows the first.

    An input is a pair, `{"text": …, "text_pair": …}` or a tuple of two. An answer is a list of two
    dicts of `label` and `score`, a probability: first `is_next`, then `not_next`. Options:
    `truncation`, `max_length`.
    """

    task = "next-sentence-prediction"
    models: ClassVar[tuple[ModelClass, ...]] = task_classes("next-sentence-prediction")
    by_token: ClassVar[Names] = ()
    labels: tuple[str, str] = ("is_next", "not_next")

    def preprocess(
        self,
        inputs: object,
        *,
        truncation: bool | str | None = False,
        max_length: int | None = None,
    ) -> dict[str, np.ndarray]:
        """Returns a pair's tokens as arrays `(1, seq)`."""
        text, pair = text_and_pair(inputs)
        if pair is None:
            raise InputError(f"expected a pair of texts, found {shown(inputs)}")
        return self.encoded(text, pair, truncation=truncation, max_length=max_length)

    def postprocess(self, outputs: Arrays) -> list[dict[str, Any]]:
        """Returns the probabilities of both labels, given `logits` `(1, 2)`."""
        scores = softmax(self.logits(outputs)[0], axis=-1)
        return [
            {"label": label, "score": float(score)}
            for label, score in zip(self.labels, scores, strict=True)
        ]


def text_and_pair(inputs: object) -> tuple[Any, Any]:
    """Returns the text and the second text, or None.

    Raises:
        InputError: if `inputs` is neither a text nor a pair.
    """
    match inputs:
        case str():
            return inputs, None
        case {"text": text, **rest} if rest.keys() <= {"text_pair"}:
            return text, rest.get("text_pair")
        case (text, pair) if isinstance(inputs, tuple):
            return text, pair
    raise InputError(
        'expected a text, or a pair as {"text": …, "text_pair": …} or a tuple of two, found '
        f"{shown(inputs)}"
    )
