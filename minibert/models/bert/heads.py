"""BERT with its heads: language models, classification, tagging, question answering, choice.

Devlin et al., arXiv:1810.04805. Names follow transformers' `modeling_bert.py`. Every model takes
the arguments of `BertModel`, with the same names and in the same order.
"""

from collections.abc import Callable
from typing import Any

from flax import nnx
from jax import Array
from jaxtyping import Float

from minibert.errors import ConfigError
from minibert.models.base import Rngs
from minibert.models.bert.config import BertConfig
from minibert.models.bert.modeling import BertModel, BertPreTrainedModel, Hidden
from minibert.models.heads import (
    ForCausalLM,
    ForMaskedLM,
    ForQuestionAnswering,
    ForTokenClassification,
    ModelWithHead,
    kept,
    lm_projection,
    projection,
)
from minibert.models.inputs import joined_choices
from minibert.models.outputs import (
    BertForPreTrainingOutput,
    MultipleChoiceModelOutput,
    NextSentencePredictorOutput,
    SequenceClassifierOutput,
)
from minibert.nn.activations import activation
from minibert.nn.layers import SHAPES_ONLY, Dropout, LayerNorm, Module, constant

EmbeddingMatrix = Float[Array, "vocab hidden"]
VocabLogits = Float[Array, "batch seq vocab"]

NO_POOLER = {"add_pooling_layer": False}


class BertWithHead(ModelWithHead, BertPreTrainedModel):
    """A `BertModel`, in the attribute `bert`, with a head."""

    base_class = BertModel


class _BertWithClassifier(BertWithHead):
    def _add_head(self, config: BertConfig, **options: Any) -> None:
        rate = config.classifier_dropout
        self.dropout = Dropout(config.hidden_dropout_prob if rate is None else rate)
        self.classifier = projection(
            config, 1 if self.has_choices else config.num_labels, **options
        )


class BertForSequenceClassification(_BertWithClassifier):
    """BERT with a sequence classification head, over the pooled first token."""

    def __call__(self, *args: Any, rngs: Rngs = None, **kwargs: Any) -> SequenceClassifierOutput:
        """Takes `BertModel`'s arguments; returns a score for each label, `(batch, labels)`."""
        outputs = self.base_model(*args, rngs=rngs, **kwargs)
        logits = self.classifier(self.dropout(outputs["pooler_output"], rngs))
        return SequenceClassifierOutput(logits=logits, **kept(outputs))


class BertForMultipleChoice(_BertWithClassifier):
    """BERT with a multiple-choice head: a score for each of several continuations."""

    has_choices = True

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
        rngs: Rngs = None,
    ) -> MultipleChoiceModelOutput:
        """Takes `BertModel`'s arguments, with an axis of choices in each array but `head_mask`.

        It is the second axis: `input_ids` is `(batch, choices, seq)`. Returns a score for each
        choice, `(batch, choices)`; hidden states and attentions have batch × choices rows.
        """
        lead, joined = joined_choices(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
        )
        outputs = self.base_model(
            head_mask=head_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            rngs=rngs,
            **joined,
        )
        logits = self.classifier(self.dropout(outputs["pooler_output"], rngs))
        return MultipleChoiceModelOutput(logits=logits.reshape(lead), **kept(outputs))


class BertForTokenClassification(ForTokenClassification, _BertWithClassifier):
    """BERT with a token classification head: scores of labels at each position."""

    base_options = NO_POOLER


class BertForQuestionAnswering(ForQuestionAnswering, BertWithHead):
    """BERT with a question answering head: a start and an end score at each position."""

    base_options = NO_POOLER

    def _add_head(self, config: BertConfig, **options: Any) -> None:
        if config.num_labels != 2:
            raise ConfigError(
                "num_labels: expected 2 for question answering (start and end), "
                f"found {config.num_labels}"
            )
        super()._add_head(config, **options)


TIED_DECODER = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}


class BertPredictionHeadTransform(Module):
    """The layers before the decoder: dense, activation, LayerNorm."""

    def __init__(self, config: BertConfig, **options: Any):
        hidden = config.hidden_size
        self.dense = projection(config, hidden, **options)
        self.transform_act_fn = activation(config.hidden_act, **options)
        self.LayerNorm = LayerNorm(hidden, epsilon=config.layer_norm_eps, **options)

    def __call__(self, hidden: Hidden) -> Hidden:
        """Applies the layers to each position."""
        return self.LayerNorm(self.transform_act_fn(self.dense(hidden)))


class LMHead(Module):
    """Base class of language-model heads: a `transform`, then the decoder."""

    transform: Callable[..., Array]

    def _add_decoder(self, config: BertConfig, **options: Any) -> None:
        self.decoder = lm_projection(config, **options)
        key = (options["rngs"] or SHAPES_ONLY).params()
        self.bias = nnx.Param(constant(0.0)(key, (config.vocab_size,), options["param_dtype"]))

    def __call__(self, hidden: Hidden, table: EmbeddingMatrix) -> VocabLogits:
        """Returns vocabulary logits; a tied decoder uses `table`, the token embedding matrix."""
        return self.decoder(self.transform(hidden), table, self.bias[...])


class BertLMPredictionHead(LMHead):
    """Scores each token of the vocabulary at each position."""

    def __init__(self, config: BertConfig, **options: Any):
        self.transform = BertPredictionHeadTransform(config, **options)
        self._add_decoder(config, **options)


class BertOnlyMLMHead(Module):
    """The head of a masked language model."""

    def __init__(self, config: BertConfig, **options: Any):
        self.predictions = BertLMPredictionHead(config, **options)

    def __call__(self, hidden: Hidden, table: EmbeddingMatrix) -> VocabLogits:
        """Returns vocabulary logits; `table` is the token embedding matrix."""
        return self.predictions(hidden, table)


class BertOnlyNSPHead(Module):
    """The next-sentence head: scores whether the second sentence follows the first."""

    def __init__(self, config: BertConfig, **options: Any):
        self.seq_relationship = projection(config, 2, **options)

    def __call__(self, pooled: Float[Array, "batch hidden"]) -> Float[Array, "batch 2"]:
        """Returns the scores of "it follows" (index 0) and "it does not" (index 1)."""
        return self.seq_relationship(pooled)


class BertPreTrainingHeads(Module):
    """Both heads of BERT's pre-training."""

    def __init__(self, config: BertConfig, **options: Any):
        self.predictions = BertLMPredictionHead(config, **options)
        self.seq_relationship = projection(config, 2, **options)

    def __call__(
        self,
        hidden: Hidden,
        pooled: Float[Array, "batch hidden"],
        table: EmbeddingMatrix,
    ) -> tuple[VocabLogits, Float[Array, "batch 2"]]:
        """Returns the logits of both heads; `table` is the token embedding matrix."""
        return self.predictions(hidden, table), self.seq_relationship(pooled)


class BertForPreTraining(BertWithHead):
    """BERT with both heads of its pre-training: masked tokens and next sentence."""

    tied = TIED_DECODER

    def _add_head(self, config: BertConfig, **options: Any) -> None:
        self.cls = BertPreTrainingHeads(config, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> BertForPreTrainingOutput:
        """Takes `BertModel`'s arguments; index 0 of the second logits means "it follows"."""
        outputs = self.base_model(*args, **kwargs)
        matrix = self.base_model.embeddings.word_embeddings.embedding[...]
        tokens, pairs = self.cls(outputs.last_hidden_state, outputs["pooler_output"], matrix)
        return BertForPreTrainingOutput(
            prediction_logits=tokens, seq_relationship_logits=pairs, **kept(outputs)
        )


class _BertWithLMHead(BertWithHead):
    base_options = NO_POOLER
    tied = TIED_DECODER

    def _add_head(self, config: BertConfig, **options: Any) -> None:
        self.cls = BertOnlyMLMHead(config, **options)

    def _lm_logits(self, hidden: Hidden) -> VocabLogits:
        return self.cls(hidden, self.base_model.embeddings.word_embeddings.embedding[...])


class BertForMaskedLM(ForMaskedLM, _BertWithLMHead):
    """BERT with a masked language model head."""


class BertForNextSentencePrediction(BertWithHead):
    """BERT with a next-sentence head."""

    def _add_head(self, config: BertConfig, **options: Any) -> None:
        self.cls = BertOnlyNSPHead(config, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> NextSentencePredictorOutput:
        """Takes `BertModel`'s arguments; index 0 of the logits means "it follows"."""
        outputs = self.base_model(*args, **kwargs)
        logits = self.cls(outputs["pooler_output"])
        return NextSentencePredictorOutput(logits=logits, **kept(outputs))


class BertLMHeadModel(ForCausalLM, _BertWithLMHead):
    """BERT with a next-token head; a causal decoder if `config.is_decoder` is set."""
