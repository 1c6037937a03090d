"""DistilBERT with its heads: language model, classification, tagging, question answering, choice.

Names follow transformers' `modeling_distilbert.py`. Every model takes the arguments of
`DistilBertModel`, with the same names and in the same order.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, Unpack

import jax
from jax import Array
from jaxtyping import Float

from minibert.core.types import ArrayLike, Options, Rngs
from minibert.models.base import Names, PretrainedModel, Table
from minibert.models.bert.modeling import Hidden
from minibert.models.distilbert.config import DistilBertConfig
from minibert.models.distilbert.modeling import EPSILON, DistilBertModel, DistilBertPreTrainedModel
from minibert.models.heads import (
    ForMaskedLM,
    ForMultipleChoice,
    ForQuestionAnswering,
    ForSequenceClassification,
    ForTokenClassification,
    ModelWithHead,
    Output,
    WithClassifier,
    check_two_labels,
    lm_projection,
    projection,
)
from minibert.models.outputs import (
    AnyTrunkOutput,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from minibert.nn.activations import activation
from minibert.nn.layers import Dropout, LayerNorm, Linear, Module, TiedLinear


class DistilBertWithHead(ModelWithHead[Output], DistilBertPreTrainedModel):
    """A `DistilBertModel`, in the attribute `distilbert`, with a head."""

    base_class: ClassVar[Callable[..., PretrainedModel]] = DistilBertModel

    def __call__(
        self,
        input_ids: ArrayLike | None = None,
        attention_mask: ArrayLike | None = None,
        head_mask: ArrayLike | None = None,
        inputs_embeds: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        *,
        rngs: Rngs = None,
    ) -> Output:
        """Takes `DistilBertModel`'s arguments; returns the output of this class."""
        shown = (output_attentions, output_hidden_states)
        given = (input_ids, attention_mask, head_mask, inputs_embeds, position_ids, *shown)
        return self._output(self.base_model(*given, rngs=rngs), input_ids, rngs)


class DistilBertForMaskedLM(ForMaskedLM, DistilBertWithHead[MaskedLMOutput]):
    """DistilBERT with a masked language model head."""

    parts: ClassVar[Names] = ("vocab_transform", "vocab_layer_norm", "vocab_projector")
    tied: ClassVar[Table] = {
        "vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"
    }

    def _add_head(self, config: DistilBertConfig, **options: Unpack[Options]) -> None:
        self.activation: Module = activation(config.activation, **options)
        self.vocab_transform: Linear = projection(config, config.dim, **options)
        self.vocab_layer_norm: LayerNorm = LayerNorm(config.dim, epsilon=EPSILON, **options)
        self.vocab_projector: TiedLinear = lm_projection(config, own_bias=True, **options)

    def __call__(
        self,
        input_ids: ArrayLike | None = None,
        attention_mask: ArrayLike | None = None,
        head_mask: ArrayLike | None = None,
        inputs_embeds: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        *,
        logits_to_keep: int | ArrayLike = 0,
        rngs: Rngs = None,
    ) -> MaskedLMOutput:
        """Takes `DistilBertModel`'s arguments; returns logits of `logits_to_keep` positions.

        With 0, the default, they are those of all positions; with another number those of the last
        ones; with indices `(positions,)` those of these positions; with indices
        `(batch, positions)` those of each row's positions.
        """
        shown = (output_attentions, output_hidden_states)
        given = (input_ids, attention_mask, head_mask, inputs_embeds, position_ids, *shown)
        return self._kept_output(self.base_model(*given, rngs=rngs), logits_to_keep)

    def _lm_logits(self, hidden: Hidden) -> Float[Array, "batch seq vocab"]:
        hidden = self.vocab_layer_norm(self.activation(self.vocab_transform(hidden)))
        matrix = self.base_model.embeddings.word_embeddings.embedding[...]
        return self.vocab_projector(hidden, matrix)


class _DistilBertWithClassifier(WithClassifier[Output], DistilBertWithHead[Output]):
    def _add_head(self, config: DistilBertConfig, **options: Unpack[Options]) -> None:
        labels = 1 if self.has_choices else config.num_labels
        self.pre_classifier: Linear = projection(config, config.dim, **options)
        self.classifier: Linear = projection(config, labels, **options)
        self.dropout: Dropout = Dropout(config.seq_classif_dropout)

    def _scores(self, outputs: AnyTrunkOutput, rngs: Rngs) -> Float[Array, "batch labels"]:
        first = jax.nn.relu(self.pre_classifier(outputs.last_hidden_state[:, 0]))
        return self.classifier(self.dropout(first, rngs))


class DistilBertForSequenceClassification(
    ForSequenceClassification, _DistilBertWithClassifier[SequenceClassifierOutput]
):
    """DistilBERT with a classifier over the first token: dense, ReLU, classifier."""


class DistilBertForMultipleChoice(
    ForMultipleChoice, _DistilBertWithClassifier[MultipleChoiceModelOutput]
):
    """DistilBERT with a multiple-choice head: a score for each of several continuations."""

    def __call__(
        self,
        input_ids: ArrayLike | None = None,
        attention_mask: ArrayLike | None = None,
        head_mask: ArrayLike | None = None,
        inputs_embeds: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        *,
        rngs: Rngs = None,
    ) -> MultipleChoiceModelOutput:
        """Takes `DistilBertModel`'s arguments, with an axis of choices in all but `head_mask`.

        It is the second axis: `input_ids` is `(batch, choices, seq)`. Returns a score for each
        choice, `(batch, choices)`; hidden states and attentions have batch × choices rows.
        """
        arrays = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        return self._choice_output(
            arrays,
            head_mask=head_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            rngs=rngs,
        )


class DistilBertForTokenClassification(
    ForTokenClassification, DistilBertWithHead[TokenClassifierOutput]
):
    """DistilBERT with a token classification head: scores of labels at each position."""

    def _add_head(self, config: DistilBertConfig, **options: Unpack[Options]) -> None:
        self.dropout: Dropout = Dropout(config.dropout)
        self.classifier: Linear = projection(config, config.num_labels, **options)


class DistilBertForQuestionAnswering(
    ForQuestionAnswering, DistilBertWithHead[QuestionAnsweringModelOutput]
):
    """DistilBERT with a question answering head: a start and an end score at each position."""

    def _add_head(self, config: DistilBertConfig, **options: Unpack[Options]) -> None:
        check_two_labels(config)
        super()._add_head(config, **options)
        self.dropout: Dropout = Dropout(config.qa_dropout)

    def _output(
        self, outputs: AnyTrunkOutput, input_ids: ArrayLike | None, rngs: Rngs
    ) -> QuestionAnsweringModelOutput:
        hidden = self.dropout(outputs.last_hidden_state, rngs)
        outputs = dataclasses.replace(outputs, last_hidden_state=hidden)
        return super()._output(outputs, input_ids, rngs)
