"""ALBERT with its heads: pre-training, masked tokens, classification, tagging, answers, choice.

Names follow transformers' `modeling_albert.py`. Every model takes the arguments of `AlbertModel`,
with the same names and in the same order.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Unpack

from jax import Array
from jaxtyping import Float

from minibert.core.types import ArrayLike, Options, Rngs
from minibert.models.albert.config import AlbertConfig
from minibert.models.albert.modeling import AlbertModel, AlbertPreTrainedModel
from minibert.models.base import PretrainedModel, Table
from minibert.models.bert.heads import NO_POOLER, LMHead, VocabLogits
from minibert.models.bert.modeling import Hidden
from minibert.models.heads import (
    ForMaskedLM,
    ForMultipleChoice,
    ForQuestionAnswering,
    ForSequenceClassification,
    ForTokenClassification,
    ModelWithHead,
    Output,
    check_two_labels,
    kept,
    projection,
)
from minibert.models.outputs import (
    AlbertForPreTrainingOutput,
    AnyTrunkOutput,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from minibert.nn.activations import activation
from minibert.nn.layers import Dropout, LayerNorm, Linear, Module


class AlbertWithHead(ModelWithHead[Output], AlbertPreTrainedModel):
    """An `AlbertModel`, in the attribute `albert`, with a head."""

    base_class: ClassVar[Callable[..., PretrainedModel]] = AlbertModel

    def __call__(
        self,
        input_ids: ArrayLike | None = None,
        attention_mask: ArrayLike | None = None,
        token_type_ids: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
        head_mask: ArrayLike | None = None,
        inputs_embeds: ArrayLike | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        *,
        rngs: Rngs = None,
    ) -> Output:
        """Takes `AlbertModel`'s arguments; returns the output of this class."""
        ids, types, shown = input_ids, token_type_ids, (output_attentions, output_hidden_states)
        given = (ids, attention_mask, types, position_ids, head_mask, inputs_embeds, *shown)
        return self._output(self.base_model(*given, rngs=rngs), input_ids, rngs)


class AlbertMLMHead(LMHead):
    """The head of a masked language model: back to the width of the embeddings, and scores."""

    def __init__(self, config: AlbertConfig, **options: Unpack[Options]):
        width = config.embedding_size
        self.dense: Linear = projection(config, width, **options)
        self.activation: Module = activation(config.hidden_act, **options)
        self.LayerNorm: LayerNorm = LayerNorm(width, epsilon=config.layer_norm_eps, **options)
        self._add_decoder(config, **options)

    def transform(self, hidden: Hidden) -> Float[Array, "batch seq embedding"]:
        """Applies the layers before the decoder: dense, activation, LayerNorm."""
        return self.LayerNorm(self.activation(self.dense(hidden)))


class _AlbertWithLMHead(AlbertWithHead[Output]):
    tied: ClassVar[Table] = {
        "predictions.decoder.weight": "albert.embeddings.word_embeddings.weight",
        "predictions.decoder.bias": "predictions.bias",
    }

    def _add_head(self, config: AlbertConfig, **options: Unpack[Options]) -> None:
        self.predictions: AlbertMLMHead = AlbertMLMHead(config, **options)

    def _lm_logits(self, hidden: Hidden) -> VocabLogits:
        return self.predictions(hidden, self.base_model.embeddings.word_embeddings.embedding[...])


class AlbertSOPHead(Module):
    """The sentence-order head: scores whether the two segments are swapped."""

    def __init__(self, config: AlbertConfig, **options: Unpack[Options]):
        self.dropout: Dropout = Dropout(config.classifier_rate)
        self.classifier: Linear = projection(config, config.num_labels, **options)

    def __call__(
        self, pooled: Float[Array, "batch hidden"], rngs: Rngs = None
    ) -> Float[Array, "batch labels"]:
        """Returns the scores of "in their order" (index 0) and "swapped" (index 1)."""
        return self.classifier(self.dropout(pooled, rngs))


class AlbertForPreTraining(_AlbertWithLMHead[AlbertForPreTrainingOutput]):
    """ALBERT with both heads of its pre-training: masked tokens and sentence order."""

    objective: ClassVar[str | None] = "sentence_order_pretraining"

    def _add_head(self, config: AlbertConfig, **options: Unpack[Options]) -> None:
        super()._add_head(config, **options)
        self.sop_classifier: AlbertSOPHead = AlbertSOPHead(config, **options)

    def _output(
        self, outputs: AnyTrunkOutput, input_ids: ArrayLike | None, rngs: Rngs
    ) -> AlbertForPreTrainingOutput:
        return AlbertForPreTrainingOutput(
            prediction_logits=self._lm_logits(outputs.last_hidden_state),
            sop_logits=self.sop_classifier(outputs["pooler_output"], rngs),
            **kept(outputs),
        )


class AlbertForMaskedLM(ForMaskedLM, _AlbertWithLMHead[MaskedLMOutput]):
    """ALBERT with a masked language model head."""

    base_options: ClassVar[Mapping[str, Any]] = NO_POOLER

    def __call__(
        self,
        input_ids: ArrayLike | None = None,
        attention_mask: ArrayLike | None = None,
        token_type_ids: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
        head_mask: ArrayLike | None = None,
        inputs_embeds: ArrayLike | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        *,
        logits_to_keep: int | ArrayLike = 0,
        rngs: Rngs = None,
    ) -> MaskedLMOutput:
        """Takes `AlbertModel`'s arguments; returns logits of `logits_to_keep` positions.

        With 0, the default, they are those of all positions; with another number those of the last
        ones; with indices `(positions,)` those of these positions; with indices
        `(batch, positions)` those of each row's positions.
        """
        ids, types, shown = input_ids, token_type_ids, (output_attentions, output_hidden_states)
        given = (ids, attention_mask, types, position_ids, head_mask, inputs_embeds, *shown)
        return self._kept_output(self.base_model(*given, rngs=rngs), logits_to_keep)


class _AlbertWithClassifier(AlbertWithHead[Output]):
    def _add_head(self, config: AlbertConfig, **options: Unpack[Options]) -> None:
        self.dropout: Dropout = Dropout(config.classifier_rate)
        self.classifier: Linear = projection(
            config, 1 if self.has_choices else config.num_labels, **options
        )


class AlbertForSequenceClassification(
    ForSequenceClassification, _AlbertWithClassifier[SequenceClassifierOutput]
):
    """ALBERT with a sequence classification head, over the pooled first token."""


class AlbertForMultipleChoice(ForMultipleChoice, _AlbertWithClassifier[MultipleChoiceModelOutput]):
    """ALBERT with a multiple-choice head: a score for each of several continuations."""

    def __call__(
        self,
        input_ids: ArrayLike | None = None,
        attention_mask: ArrayLike | None = None,
        token_type_ids: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
        head_mask: ArrayLike | None = None,
        inputs_embeds: ArrayLike | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        *,
        rngs: Rngs = None,
    ) -> MultipleChoiceModelOutput:
        """Takes `AlbertModel`'s arguments, with an axis of choices in each array but `head_mask`.

        It is the second axis: `input_ids` is `(batch, choices, seq)`. Returns a score for each
        choice, `(batch, choices)`; hidden states and attentions have batch × choices rows.
        """
        arrays = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
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


class AlbertForTokenClassification(
    ForTokenClassification, _AlbertWithClassifier[TokenClassifierOutput]
):
    """ALBERT with a token classification head: scores of labels at each position."""

    base_options: ClassVar[Mapping[str, Any]] = NO_POOLER


class AlbertForQuestionAnswering(
    ForQuestionAnswering, AlbertWithHead[QuestionAnsweringModelOutput]
):
    """ALBERT with a question answering head: a start and an end score at each position."""

    base_options: ClassVar[Mapping[str, Any]] = NO_POOLER

    def _add_head(self, config: AlbertConfig, **options: Unpack[Options]) -> None:
        check_two_labels(config)
        super()._add_head(config, **options)
