"""BERT with heads to fine-tune: classification, tagging, answering, choosing.

Devlin et al., arXiv:1810.04805, and transformers' `modeling_bert.py`, whose names these are. Every
model here is called with `BertModel`'s arguments, by the same names and in the same order.
"""

from typing import Any

from flax import nnx

from minibert.errors import ConfigError
from minibert.models.bert.config import BertConfig
from minibert.models.bert.modeling import BertWithHead
from minibert.models.inputs import joined_choices
from minibert.models.outputs import (
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from minibert.nn.layers import Linear


def _rest(outputs: Any) -> dict[str, Any]:
    return {"hidden_states": outputs.hidden_states, "attentions": outputs.attentions}


class BertForSequenceClassification(BertWithHead):
    """BERT with a classifier over the pooled first token."""

    pooled = True

    def _add_head(self, config: BertConfig, **options: Any) -> None:
        self._add_classifier(config, config.num_labels, **options)

    def __call__(
        self, *args: Any, rngs: nnx.Rngs | None = None, **kwargs: Any
    ) -> SequenceClassifierOutput:
        """Takes `BertModel`'s arguments; returns a score for every label."""
        outputs = self.bert(*args, rngs=rngs, **kwargs)
        logits = self.classifier(self.dropout(outputs["pooler_output"], rngs))
        return SequenceClassifierOutput(logits=logits, **_rest(outputs))


class BertForMultipleChoice(BertWithHead):
    """BERT with a score for each of several continuations."""

    pooled = True

    def _add_head(self, config: BertConfig, **options: Any) -> None:
        self._add_classifier(config, 1, **options)

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        head_mask: Any = None,
        inputs_embeds: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> MultipleChoiceModelOutput:
        """Takes `BertModel`'s arguments, each array but `head_mask` with an axis of choices.

        That axis is the second: `input_ids` is `(batch, choices, seq)`. Returns a score for every
        choice, `(batch, choices)`; hidden states and attentions have batch × choices rows.
        """
        lead, joined = joined_choices(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
        )
        outputs = self.bert(
            head_mask=head_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            rngs=rngs,
            **joined,
        )
        logits = self.classifier(self.dropout(outputs["pooler_output"], rngs))
        return MultipleChoiceModelOutput(logits=logits.reshape(lead), **_rest(outputs))


class BertForTokenClassification(BertWithHead):
    """BERT with a classifier at every position."""

    pooled = False

    def _add_head(self, config: BertConfig, **options: Any) -> None:
        self._add_classifier(config, config.num_labels, **options)

    def __call__(
        self, *args: Any, rngs: nnx.Rngs | None = None, **kwargs: Any
    ) -> TokenClassifierOutput:
        """Takes `BertModel`'s arguments; returns a score for every label at every position."""
        outputs = self.bert(*args, rngs=rngs, **kwargs)
        logits = self.classifier(self.dropout(outputs.last_hidden_state, rngs))
        return TokenClassifierOutput(logits=logits, **_rest(outputs))


class BertForQuestionAnswering(BertWithHead):
    """BERT with a start and an end score at every position."""

    pooled = False

    def _add_head(self, config: BertConfig, **options: Any) -> None:
        if config.num_labels != 2:
            raise ConfigError(
                "num_labels: expected 2 for question answering (start and end), "
                f"found {config.num_labels}"
            )
        stddev = config.initializer_range
        self.qa_outputs = Linear(config.hidden_size, 2, stddev=stddev, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> QuestionAnsweringModelOutput:
        """Takes `BertModel`'s arguments; returns start and end scores at every position."""
        outputs = self.bert(*args, **kwargs)
        logits = self.qa_outputs(outputs.last_hidden_state)
        return QuestionAnsweringModelOutput(
            start_logits=logits[..., 0], end_logits=logits[..., 1], **_rest(outputs)
        )
