"""MPNet with its heads: masked tokens, classification, tagging, question answering, choice.

Names follow transformers' `modeling_mpnet.py`. Every model takes the arguments of `MPNetModel`,
with the same names and in the same order.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Unpack

from jax import Array

from minibert.core.types import ArrayLike, Options, Rngs
from minibert.models.base import PretrainedModel, Table
from minibert.models.bert.heads import NO_POOLER, VocabLogits
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
    projection,
)
from minibert.models.mpnet.config import MPNetConfig
from minibert.models.mpnet.modeling import MPNetModel, MPNetPreTrainedModel
from minibert.models.outputs import (
    AnyTrunkOutput,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from minibert.models.roberta import RobertaClassificationHead, RobertaLMHead
from minibert.nn.layers import Dropout, Linear


class MPNetWithHead(ModelWithHead[Output], MPNetPreTrainedModel):
    """An `MPNetModel`, in the attribute `mpnet`, with a head."""

    base_class: ClassVar[Callable[..., PretrainedModel]] = MPNetModel
    base_options: ClassVar[Mapping[str, Any]] = NO_POOLER

    def __call__(
        self,
        input_ids: ArrayLike | None = None,
        attention_mask: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
        head_mask: ArrayLike | None = None,
        inputs_embeds: ArrayLike | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        *,
        rngs: Rngs = None,
    ) -> Output:
        """Takes `MPNetModel`'s arguments; returns the output of this class."""
        shown = (output_attentions, output_hidden_states)
        given = (input_ids, attention_mask, position_ids, head_mask, inputs_embeds, *shown)
        return self._output(self.base_model(*given, rngs=rngs), input_ids, rngs)


class MPNetLMHead(RobertaLMHead):
    """The language-model head: scores each token of the vocabulary at each position."""


class MPNetForMaskedLM(ForMaskedLM, MPNetWithHead[MaskedLMOutput]):
    """MPNet with a masked language model head."""

    tied: ClassVar[Table] = {
        "lm_head.decoder.weight": "mpnet.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    }

    def _add_head(self, config: MPNetConfig, **options: Unpack[Options]) -> None:
        shared: Any = config
        self.lm_head: MPNetLMHead = MPNetLMHead(shared, **options)

    def __call__(
        self,
        input_ids: ArrayLike | None = None,
        attention_mask: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
        head_mask: ArrayLike | None = None,
        inputs_embeds: ArrayLike | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        *,
        logits_to_keep: int | ArrayLike = 0,
        rngs: Rngs = None,
    ) -> MaskedLMOutput:
        """Takes `MPNetModel`'s arguments; returns logits of `logits_to_keep` positions.

        With 0, the default, they are those of all positions; with another number those of the last
        ones; with indices `(positions,)` those of these positions; with indices
        `(batch, positions)` those of each row's positions.
        """
        shown = (output_attentions, output_hidden_states)
        given = (input_ids, attention_mask, position_ids, head_mask, inputs_embeds, *shown)
        return self._kept_output(self.base_model(*given, rngs=rngs), logits_to_keep)

    def _lm_logits(self, hidden: Hidden) -> VocabLogits:
        return self.lm_head(hidden, self.base_model.embeddings.word_embeddings.embedding[...])


class MPNetClassificationHead(RobertaClassificationHead):
    """The sequence classification head: dense, tanh and a classifier over the first token."""


class MPNetForSequenceClassification(
    ForSequenceClassification, MPNetWithHead[SequenceClassifierOutput]
):
    """MPNet with a classifier over the first token."""

    def _add_head(self, config: MPNetConfig, **options: Unpack[Options]) -> None:
        shared: Any = config
        self.classifier: MPNetClassificationHead = MPNetClassificationHead(shared, **options)

    def _scores(self, outputs: AnyTrunkOutput, rngs: Rngs) -> Array:
        return self.classifier(outputs.last_hidden_state, rngs)


class MPNetForMultipleChoice(ForMultipleChoice, MPNetWithHead[MultipleChoiceModelOutput]):
    """MPNet with a multiple-choice head: a score for each of several continuations."""

    base_options: ClassVar[Mapping[str, Any]] = {}

    def _add_head(self, config: MPNetConfig, **options: Unpack[Options]) -> None:
        self.dropout: Dropout = Dropout(config.hidden_dropout_prob)
        self.classifier: Linear = projection(config, 1, **options)

    def __call__(
        self,
        input_ids: ArrayLike | None = None,
        attention_mask: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
        head_mask: ArrayLike | None = None,
        inputs_embeds: ArrayLike | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        *,
        rngs: Rngs = None,
    ) -> MultipleChoiceModelOutput:
        """Takes `MPNetModel`'s arguments, with an axis of choices in each array but `head_mask`.

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


class MPNetForTokenClassification(ForTokenClassification, MPNetWithHead[TokenClassifierOutput]):
    """MPNet with a token classification head: scores of labels at each position."""

    def _add_head(self, config: MPNetConfig, **options: Unpack[Options]) -> None:
        self.dropout: Dropout = Dropout(config.hidden_dropout_prob)
        self.classifier: Linear = projection(config, config.num_labels, **options)


class MPNetForQuestionAnswering(ForQuestionAnswering, MPNetWithHead[QuestionAnsweringModelOutput]):
    """MPNet with a question answering head: a start and an end score at each position."""

    def _add_head(self, config: MPNetConfig, **options: Unpack[Options]) -> None:
        check_two_labels(config)
        super()._add_head(config, **options)
