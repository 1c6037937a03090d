"""Feature extraction; the reference is transformers' `pipelines/feature_extraction.py`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from minibert.errors import InputError
from minibert.models.base import ModelClass, Names, PretrainedModel
from minibert.models.registry import task_classes
from minibert.nn.numerics import is_finite
from minibert.pipelines.base import Pipeline
from minibert.pipelines.batches import Arrays, on_host
from minibert.pipelines.options import for_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class FeatureExtractionPipeline(Pipeline):
    """Extracts the last hidden states of a text's tokens, special ones included.

    An answer is a nested list of floats, `(1, seq, hidden)`, or an array with
    `return_tensors=True`. Other options: `truncation`, `max_length`; `tokenize_kwargs` for the
    tokenizer.
    """

    task = "feature-extraction"
    models: ClassVar[tuple[ModelClass, ...]] = task_classes("feature-extraction")
    by_token: ClassVar[Names] = ("last_hidden_state",)

    def __init__(
        self,
        model: PretrainedModel | None = None,
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        **options: Any,
    ):
        trunk = getattr(model, "trunk", None)
        if not isinstance(model, self.models) and isinstance(
            getattr(model, trunk or "", None), self.models
        ):
            found = type(model).__name__
            raise InputError(f"model: a {found} has a head; pass its base model, model.{trunk}")
        super().__init__(model, tokenizer, **options)

    def preprocess(
        self,
        inputs: object,
        *,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        tokenize_kwargs: Mapping[str, Any] | None = None,
    ) -> dict[str, np.ndarray]:
        """Returns a text's tokens as arrays `(1, seq)`.

        Raises:
            InputError: if it is not a text, or `truncation` is passed twice.
        """
        options = for_tokenizer("tokenize_kwargs", tokenize_kwargs)
        if truncation is not None and "truncation" in options:
            raise InputError("truncation: passed twice, as an argument and in tokenize_kwargs")
        given: dict[str, Any] = {"truncation": truncation, "max_length": max_length}
        return self.encoded(inputs, **given | options)

    def postprocess(self, outputs: Arrays, *, return_tensors: bool = False) -> Any:
        """Returns the text's `last_hidden_state` `(1, seq, hidden)`."""
        states = on_host(outputs["last_hidden_state"])
        if not is_finite(states):
            raise self.not_finite("last_hidden_state")
        return states if return_tensors else states.tolist()
