"""ELECTRA with its heads: replaced tokens, masked tokens, classification, tagging, answers, choice.

Names follow transformers' `modeling_electra.py`. Every model takes the arguments of `ElectraModel`,
with the same names and in the same order.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Unpack

from jax import Array
from jaxtyping import Float

from minibert.core.types import ArrayLike, Options, Rngs
from minibert.models.base import Names, PretrainedModel, Table
from minibert.models.bert.config import BertConfig
from minibert.models.bert.heads import (
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForTokenClassification,
    BertWithCausalLM,
    BertWithHead,
    BertWithMaskedLM,
    EmbeddingMatrix,
    VocabLogits,
)
from minibert.models.bert.modeling import Hidden
from minibert.models.electra.config import ElectraConfig
from minibert.models.electra.modeling import ElectraModel, ElectraPreTrainedModel
from minibert.models.heads import (
    ForSequenceClassification,
    Output,
    SequenceSummary,
    kept,
    lm_projection,
    projection,
)
from minibert.models.outputs import (
    AnyTrunkOutput,
    CausalLMOutputWithCrossAttentions,
    ElectraForPreTrainingOutput,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from minibert.models.roberta import RobertaClassificationHead
from minibert.nn.activations import ACTIVATIONS, activation
from minibert.nn.layers import LayerNorm, Linear, Module, TiedLinear


class ElectraWithHead(BertWithHead[Output], ElectraPreTrainedModel):
    """An `ElectraModel`, in the attribute `electra`, with a head."""

    base_class: ClassVar[Callable[..., PretrainedModel]] = ElectraModel
    base_options: ClassVar[Mapping[str, Any]] = {}


class ElectraDiscriminatorPredictions(Module):
    """The head of the discriminator: scores whether each token was replaced."""

    def __init__(self, config: ElectraConfig, **options: Unpack[Options]):
        self.dense: Linear = projection(config, config.hidden_size, **options)
        self.activation: Module = activation(config.hidden_act, **options)
        self.dense_prediction: Linear = projection(config, 1, **options)

    def __call__(self, hidden: Hidden) -> Float[Array, "batch seq"]:
        """Returns a score for each position."""
        return self.dense_prediction(self.activation(self.dense(hidden)))[..., 0]


class ElectraForPreTraining(ElectraWithHead[ElectraForPreTrainingOutput]):
    """The discriminator: ELECTRA with a score for each token, above 0 if it was replaced."""

    objective: ClassVar[str | None] = "replaced_tokens"

    def _add_head(self, config: ElectraConfig, **options: Unpack[Options]) -> None:
        self.discriminator_predictions: ElectraDiscriminatorPredictions = (
            ElectraDiscriminatorPredictions(config, **options)
        )

    def _output(
        self, outputs: AnyTrunkOutput, input_ids: ArrayLike | None, rngs: Rngs
    ) -> ElectraForPreTrainingOutput:
        logits = self.discriminator_predictions(outputs.last_hidden_state)
        return ElectraForPreTrainingOutput(logits=logits, **kept(outputs))


class ElectraGeneratorPredictions(Module):
    """The layers before the decoder: dense, GELU, LayerNorm."""

    def __init__(self, config: ElectraConfig, **options: Unpack[Options]):
        width, epsilon = config.embedding_size, config.layer_norm_eps
        # GELU whatever `config.hidden_act` is, as in transformers
        self.activation: Module = activation("gelu", **options)
        self.LayerNorm: LayerNorm = LayerNorm(width, epsilon=epsilon, **options)
        self.dense: Linear = projection(config, width, **options)

    def __call__(self, hidden: Hidden) -> Float[Array, "batch seq width"]:
        """Returns vectors of the width of token embeddings."""
        return self.LayerNorm(self.activation(self.dense(hidden)))


class _ElectraWithLMHead(ElectraWithHead[Output]):
    parts: ClassVar[Names] = ("generator_predictions", "generator_lm_head")
    tied: ClassVar[Table] = {
        "generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"
    }

    def _add_head(self, config: ElectraConfig, **options: Unpack[Options]) -> None:
        self.generator_predictions: ElectraGeneratorPredictions = ElectraGeneratorPredictions(
            config, **options
        )
        self.generator_lm_head: TiedLinear = lm_projection(config, own_bias=True, **options)

    def _lm_logits(self, hidden: Hidden) -> VocabLogits:
        table: EmbeddingMatrix = self.base_model.embeddings.word_embeddings.embedding[...]
        return self.generator_lm_head(self.generator_predictions(hidden), table)


class ElectraForMaskedLM(BertWithMaskedLM, _ElectraWithLMHead[MaskedLMOutput]):
    """The generator: ELECTRA with a masked language model head."""


class ElectraForCausalLM(BertWithCausalLM, _ElectraWithLMHead[CausalLMOutputWithCrossAttentions]):
    """ELECTRA with a next-token head; a causal decoder if `config.is_decoder` is set."""


class ElectraClassificationHead(RobertaClassificationHead):
    """The sequence classification head: dense, GELU and a classifier over the first token."""

    def activate(self, first: Float[Array, "batch hidden"]) -> Float[Array, "batch hidden"]:
        """Applies the exact GELU, whatever `config.hidden_act` is, as in transformers."""
        return ACTIVATIONS["gelu"](first)


class ElectraForSequenceClassification(
    ForSequenceClassification, ElectraWithHead[SequenceClassifierOutput]
):
    """ELECTRA with a classifier over the first token."""

    def _add_head(self, config: BertConfig, **options: Unpack[Options]) -> None:
        self.classifier: ElectraClassificationHead = ElectraClassificationHead(config, **options)

    def _scores(self, outputs: AnyTrunkOutput, rngs: Rngs) -> Array:
        return self.classifier(outputs.last_hidden_state, rngs)


class ElectraSequenceSummary(SequenceSummary):
    """Pools a sequence to one vector, as the `summary_*` fields of the config specify."""

    def __init__(self, config: BertConfig, **options: Unpack[Options]):
        super().__init__(config, config.hidden_size, 0.0, **options)


class ElectraForMultipleChoice(ElectraWithHead[MultipleChoiceModelOutput], BertForMultipleChoice):
    """ELECTRA with a multiple-choice head: a score for each of several continuations."""

    def _add_head(self, config: BertConfig, **options: Unpack[Options]) -> None:
        self.sequence_summary: ElectraSequenceSummary = ElectraSequenceSummary(config, **options)
        self.classifier: Linear = projection(config, 1, **options)

    def _scores(self, outputs: AnyTrunkOutput, rngs: Rngs) -> Array:
        return self.classifier(self.sequence_summary(outputs.last_hidden_state, rngs=rngs))


class ElectraForTokenClassification(
    ElectraWithHead[TokenClassifierOutput], BertForTokenClassification
):
    """ELECTRA with a token classification head: scores of labels at each position."""


class ElectraForQuestionAnswering(
    ElectraWithHead[QuestionAnsweringModelOutput], BertForQuestionAnswering
):
    """ELECTRA with a question answering head: a start and an end score at each position."""
