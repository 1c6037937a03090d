"""BERT with its heads: language models, classification, tagging, question answering, choice.

Devlin et al., arXiv:1810.04805. Names follow transformers' `modeling_bert.py`. Every model takes
the arguments of `BertModel`, with the same names and in the same order.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Unpack

from flax import nnx
from jax import Array
from jaxtyping import Float

from minibert.core.types import ArrayLike, Options, Rngs
from minibert.models.base import PretrainedModel, Table
from minibert.models.bert.config import BertConfig
from minibert.models.bert.modeling import BertModel, BertPreTrainedModel, Hidden
from minibert.models.heads import (
    ForCausalLM,
    ForMaskedLM,
    ForMultipleChoice,
    ForQuestionAnswering,
    ForSequenceClassification,
    ForTokenClassification,
    ModelWithHead,
    Output,
    check_two_labels,
    kept,
    lm_projection,
    projection,
)
from minibert.models.outputs import (
    AnyTrunkOutput,
    BertForPreTrainingOutput,
    CausalLMOutputWithCrossAttentions,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    NextSentencePredictorOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from minibert.nn.activations import activation
from minibert.nn.cache import KVCache
from minibert.nn.layers import SHAPES_ONLY, Dropout, LayerNorm, Linear, Module, TiedLinear, constant

EmbeddingMatrix = Float[Array, "vocab embedding"]
VocabLogits = Float[Array, "batch seq vocab"]

NO_POOLER = {"add_pooling_layer": False}


class BertWithHead(ModelWithHead[Output], BertPreTrainedModel):
    """A `BertModel`, in the attribute `bert`, with a head."""

    base_class: ClassVar[Callable[..., PretrainedModel]] = BertModel

    def __call__(
        self,
        input_ids: ArrayLike | None = None,
        attention_mask: ArrayLike | None = None,
        token_type_ids: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
        head_mask: ArrayLike | None = None,
        inputs_embeds: ArrayLike | None = None,
        encoder_hidden_states: ArrayLike | None = None,
        encoder_attention_mask: ArrayLike | None = None,
        past_key_values: KVCache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        *,
        rngs: Rngs = None,
    ) -> Output:
        """Takes `BertModel`'s arguments; returns the output of this class."""
        outputs = self.base_model(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            head_mask,
            inputs_embeds,
            encoder_hidden_states,
            encoder_attention_mask,
            past_key_values,
            use_cache,
            output_attentions,
            output_hidden_states,
            rngs=rngs,
        )
        return self._output(outputs, input_ids, rngs)


class _BertWithClassifier(BertWithHead[Output]):
    def _add_head(self, config: BertConfig, **options: Unpack[Options]) -> None:
        rate = config.classifier_dropout
        self.dropout: Dropout = Dropout(config.hidden_dropout_prob if rate is None else rate)
        self.classifier: Linear = projection(
            config, 1 if self.has_choices else config.num_labels, **options
        )


class BertForSequenceClassification(
    ForSequenceClassification, _BertWithClassifier[SequenceClassifierOutput]
):
    """BERT with a sequence classification head, over the pooled first token."""


class BertForMultipleChoice(ForMultipleChoice, _BertWithClassifier[MultipleChoiceModelOutput]):
    """BERT with a multiple-choice head: a score for each of several continuations."""

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
        """Takes `BertModel`'s arguments, with an axis of choices in each array but `head_mask`.

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


class BertForTokenClassification(
    ForTokenClassification, _BertWithClassifier[TokenClassifierOutput]
):
    """BERT with a token classification head: scores of labels at each position."""

    base_options: ClassVar[Mapping[str, Any]] = NO_POOLER


class BertForQuestionAnswering(ForQuestionAnswering, BertWithHead[QuestionAnsweringModelOutput]):
    """BERT with a question answering head: a start and an end score at each position."""

    base_options: ClassVar[Mapping[str, Any]] = NO_POOLER

    def _add_head(self, config: BertConfig, **options: Unpack[Options]) -> None:
        check_two_labels(config)
        super()._add_head(config, **options)


TIED_DECODER = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}


class BertPredictionHeadTransform(Module):
    """The layers before the decoder: dense, activation, LayerNorm."""

    def __init__(self, config: BertConfig, **options: Unpack[Options]):
        hidden = config.hidden_size
        self.dense: Linear = projection(config, hidden, **options)
        self.transform_act_fn: Module = activation(config.hidden_act, **options)
        self.LayerNorm: LayerNorm = LayerNorm(hidden, epsilon=config.layer_norm_eps, **options)

    def __call__(self, hidden: Hidden) -> Hidden:
        """Applies the layers to each position."""
        return self.LayerNorm(self.transform_act_fn(self.dense(hidden)))


class LMHead(Module):
    """Base class of language-model heads: a `transform`, then the decoder."""

    transform: Callable[..., Array]

    def _add_decoder(self, config: Any, **options: Unpack[Options]) -> None:
        self.decoder: TiedLinear = lm_projection(config, **options)
        key = (options["rngs"] or SHAPES_ONLY).params()
        self.bias: nnx.Param[Any] = nnx.Param(
            constant(0.0)(key, (config.vocab_size,), options["param_dtype"])
        )

    def __call__(self, hidden: Hidden, table: EmbeddingMatrix) -> VocabLogits:
        """Returns vocabulary logits; a tied decoder uses `table`, the token embedding matrix."""
        return self.decoder(self.transform(hidden), table, self.bias[...])


class BertLMPredictionHead(LMHead):
    """Scores each token of the vocabulary at each position."""

    def __init__(self, config: BertConfig, **options: Unpack[Options]):
        self.transform: Callable[..., Array] = BertPredictionHeadTransform(config, **options)
        self._add_decoder(config, **options)


class BertOnlyMLMHead(Module):
    """The head of a masked language model."""

    def __init__(self, config: BertConfig, **options: Unpack[Options]):
        self.predictions: BertLMPredictionHead = BertLMPredictionHead(config, **options)

    def __call__(self, hidden: Hidden, table: EmbeddingMatrix) -> VocabLogits:
        """Returns vocabulary logits; `table` is the token embedding matrix."""
        return self.predictions(hidden, table)


class BertOnlyNSPHead(Module):
    """The next-sentence head: scores whether the second sentence follows the first."""

    def __init__(self, config: BertConfig, **options: Unpack[Options]):
        self.seq_relationship: Linear = projection(config, 2, **options)

    def __call__(self, pooled: Float[Array, "batch hidden"]) -> Float[Array, "batch 2"]:
        """Returns the scores of "it follows" (index 0) and "it does not" (index 1)."""
        return self.seq_relationship(pooled)


class BertPreTrainingHeads(Module):
    """Both heads of BERT's pre-training."""

    def __init__(self, config: BertConfig, **options: Unpack[Options]):
        self.predictions: BertLMPredictionHead = BertLMPredictionHead(config, **options)
        self.seq_relationship: Linear = projection(config, 2, **options)

    def __call__(
        self,
        hidden: Hidden,
        pooled: Float[Array, "batch hidden"],
        table: EmbeddingMatrix,
    ) -> tuple[VocabLogits, Float[Array, "batch 2"]]:
        """Returns the logits of both heads; `table` is the token embedding matrix."""
        return self.predictions(hidden, table), self.seq_relationship(pooled)


class BertForPreTraining(BertWithHead[BertForPreTrainingOutput]):
    """BERT with both heads of its pre-training: masked tokens and next sentence."""

    objective: ClassVar[str | None] = "pretraining"
    tied: ClassVar[Table] = TIED_DECODER

    def _add_head(self, config: BertConfig, **options: Unpack[Options]) -> None:
        self.cls: BertPreTrainingHeads = BertPreTrainingHeads(config, **options)

    def _output(
        self, outputs: AnyTrunkOutput, input_ids: ArrayLike | None, rngs: Rngs
    ) -> BertForPreTrainingOutput:
        matrix = self.base_model.embeddings.word_embeddings.embedding[...]
        tokens, pairs = self.cls(outputs.last_hidden_state, outputs["pooler_output"], matrix)
        return BertForPreTrainingOutput(
            prediction_logits=tokens, seq_relationship_logits=pairs, **kept(outputs)
        )


class _BertWithLMHead(BertWithHead[Output]):
    base_options: ClassVar[Mapping[str, Any]] = NO_POOLER
    tied: ClassVar[Table] = TIED_DECODER

    def _add_head(self, config: BertConfig, **options: Unpack[Options]) -> None:
        self.cls: BertOnlyMLMHead = BertOnlyMLMHead(config, **options)

    def _lm_logits(self, hidden: Hidden) -> VocabLogits:
        return self.cls(hidden, self.base_model.embeddings.word_embeddings.embedding[...])


class BertWithMaskedLM(ForMaskedLM, BertWithHead[MaskedLMOutput]):
    """Base class of models with a masked language model head."""

    def __call__(
        self,
        input_ids: ArrayLike | None = None,
        attention_mask: ArrayLike | None = None,
        token_type_ids: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
        head_mask: ArrayLike | None = None,
        inputs_embeds: ArrayLike | None = None,
        encoder_hidden_states: ArrayLike | None = None,
        encoder_attention_mask: ArrayLike | None = None,
        past_key_values: KVCache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        *,
        logits_to_keep: int | ArrayLike = 0,
        rngs: Rngs = None,
    ) -> MaskedLMOutput:
        """Takes `BertModel`'s arguments; returns logits of the last `logits_to_keep` positions.

        With 0, the default, it returns those of all positions; with indices `(positions,)` those
        of these positions; with indices `(batch, positions)` those of each row's positions.
        """
        outputs = self.base_model(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            head_mask,
            inputs_embeds,
            encoder_hidden_states,
            encoder_attention_mask,
            past_key_values,
            use_cache,
            output_attentions,
            output_hidden_states,
            rngs=rngs,
        )
        return self._kept_output(outputs, logits_to_keep)


class BertForMaskedLM(BertWithMaskedLM, _BertWithLMHead[MaskedLMOutput]):
    """BERT with a masked language model head."""


class BertForNextSentencePrediction(BertWithHead[NextSentencePredictorOutput]):
    """BERT with a next-sentence head."""

    objective: ClassVar[str | None] = "next_sentence"

    def _add_head(self, config: BertConfig, **options: Unpack[Options]) -> None:
        self.cls: BertOnlyNSPHead = BertOnlyNSPHead(config, **options)

    def _output(
        self, outputs: AnyTrunkOutput, input_ids: ArrayLike | None, rngs: Rngs
    ) -> NextSentencePredictorOutput:
        logits = self.cls(outputs["pooler_output"])
        return NextSentencePredictorOutput(logits=logits, **kept(outputs))


class BertWithCausalLM(ForCausalLM, BertWithHead[CausalLMOutputWithCrossAttentions]):
    """Base class of decoders with a next-token head."""

    def __call__(
        self,
        input_ids: ArrayLike | None = None,
        attention_mask: ArrayLike | None = None,
        token_type_ids: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
        head_mask: ArrayLike | None = None,
        inputs_embeds: ArrayLike | None = None,
        encoder_hidden_states: ArrayLike | None = None,
        encoder_attention_mask: ArrayLike | None = None,
        past_key_values: KVCache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        *,
        logits_to_keep: int | ArrayLike = 0,
        rngs: Rngs = None,
    ) -> CausalLMOutputWithCrossAttentions:
        """Takes `BertModel`'s arguments; returns logits of the last `logits_to_keep` positions.

        With 0, the default, it returns those of all positions; with indices `(positions,)` those
        of these positions; with indices `(batch, positions)` those of each row's positions.
        """
        outputs = self.base_model(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            head_mask,
            inputs_embeds,
            encoder_hidden_states,
            encoder_attention_mask,
            past_key_values,
            use_cache,
            output_attentions,
            output_hidden_states,
            rngs=rngs,
        )
        return self._kept_output(outputs, logits_to_keep)


class BertLMHeadModel(BertWithCausalLM, _BertWithLMHead[CausalLMOutputWithCrossAttentions]):
    """BERT with a next-token head; a causal decoder if `config.is_decoder` is set."""
