"""Heads shared by several families, each on top of the bare model of its family."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from minibert.models.base import PretrainedModel, Rngs
from minibert.models.inputs import kept_positions
from minibert.models.outputs import (
    CausalLMOutputWithCrossAttentions,
    MaskedLMOutput,
    QuestionAnsweringModelOutput,
    TokenClassifierOutput,
)
from minibert.nn.cache import KVCache
from minibert.nn.layers import Dropout, Linear, TiedLinear


class ModelWithHead(PretrainedModel):
    """A bare model, in the attribute that its family names (`trunk`), with a head.

    Args:
        config: the shape and settings.
        rngs: random keys to initialise weights; None builds shapes only, for a loader to fill.
        dtype: the dtype of computations; None for the dtype of the parameters.
        param_dtype: the dtype of the parameters.

    Attributes:
        base_class: the class of the bare model.
        base_options: further arguments of its constructor.
    """

    base_class: ClassVar[Callable[..., PretrainedModel]]
    base_options: ClassVar[Mapping[str, Any]] = {}

    def __init__(
        self,
        config: Any,
        *,
        rngs: Rngs,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
    ):
        options = {"rngs": rngs, "dtype": dtype, "param_dtype": param_dtype}
        self.config = config
        setattr(self, self.trunk, self.base_class(config, **self.base_options, **options))
        self._add_head(config, **options)

    def _add_head(self, config: Any, **options: Any) -> None:
        raise TypeError(f"{type(self).__name__} has no head; use a class with a head")

    def _lm_logits(self, hidden: Any) -> Array:
        """Returns the vocabulary logits of hidden states, `(…, hidden)` to `(…, vocab)`."""
        raise TypeError(f"{type(self).__name__} has no language-model head")

    def init_cache(self, batch_size: Any, max_length: Any) -> KVCache:
        """Returns an empty cache; see `init_cache` of the bare model."""
        return self.base_model.init_cache(batch_size, max_length)


class ForMaskedLM(ModelWithHead):
    """A model that predicts masked tokens."""

    def __call__(self, *args: Any, **kwargs: Any) -> MaskedLMOutput:
        """Takes the bare model's arguments; returns logits, `(batch, seq, vocab)`."""
        outputs = self.base_model(*args, **kwargs)
        return MaskedLMOutput(logits=self._lm_logits(outputs.last_hidden_state), **kept(outputs))


class ForCausalLM(ModelWithHead):
    """A decoder that predicts the next token."""

    generates = True

    def __call__(
        self, *args: Any, logits_to_keep: Any = 0, **kwargs: Any
    ) -> CausalLMOutputWithCrossAttentions:
        """Takes the bare model's arguments; returns logits of the last `logits_to_keep` positions.

        With 0, the default, it returns those of all positions.
        """
        outputs = self.base_model(*args, **kwargs)
        return CausalLMOutputWithCrossAttentions(
            logits=self._lm_logits(kept_positions(outputs.last_hidden_state, logits_to_keep)),
            **kept(outputs, "past_key_values", "cross_attentions"),
        )


class ForTokenClassification(ModelWithHead):
    """A model that classifies every token."""

    dropout: Dropout
    classifier: Linear

    def __call__(self, *args: Any, rngs: Rngs = None, **kwargs: Any) -> TokenClassifierOutput:
        """Takes the bare model's arguments; returns logits, `(batch, seq, labels)`."""
        outputs = self.base_model(*args, rngs=rngs, **kwargs)
        logits = self.classifier(self.dropout(outputs.last_hidden_state, rngs))
        return TokenClassifierOutput(logits=logits, **kept(outputs))


class ForQuestionAnswering(ModelWithHead):
    """A model that scores each token as the start and as the end of an answer."""

    def _add_head(self, config: Any, **options: Any) -> None:
        self.qa_outputs = projection(config, 2, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> QuestionAnsweringModelOutput:
        """Takes the bare model's arguments; returns start and end logits, `(batch, seq)`."""
        outputs = self.base_model(*args, **kwargs)
        logits = self.qa_outputs(outputs.last_hidden_state)
        return QuestionAnsweringModelOutput(
            start_logits=logits[..., 0], end_logits=logits[..., 1], **kept(outputs)
        )


def projection(config: Any, outputs: int, **options: Any) -> Linear:
    """Returns a linear layer from hidden states to `outputs` features."""
    return Linear(config.hidden_size, outputs, stddev=config.initializer_range, **options)


def lm_projection(config: Any, **options: Any) -> TiedLinear:
    """Returns a linear layer from hidden states to logits, which may be tied."""
    return TiedLinear(
        config.hidden_size,
        config.vocab_size,
        tied=config.tie_word_embeddings and options["rngs"] is not None,
        stddev=config.initializer_range,
        **options,
    )


def kept(outputs: Any, *names: str) -> dict[str, Any]:
    """Returns the fields that a model's output takes over from the bare model's output."""
    return {name: getattr(outputs, name) for name in ("hidden_states", "attentions", *names)}
