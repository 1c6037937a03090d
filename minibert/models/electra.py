"""ELECTRA: BERT's encoder over narrower embeddings, trained to find replaced tokens.

Clark et al., "ELECTRA: Pre-training Text Encoders as Discriminators Rather Than Generators",
arXiv:2003.10555. Names, nesting and numerics follow transformers' `modeling_electra.py`. Every
model takes the arguments of `ElectraModel`, with the same names and in the same order.

A projection follows the embeddings where their width is not the hidden size; there is no pooler.
The discriminator is `ElectraForPreTraining`, the generator `ElectraForMaskedLM`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Unpack

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from minibert.checkpoint.config import Config, Neutral
from minibert.core.fields import PROBABILITY, SIZE, SWITCH, field, one_of, or_null
from minibert.core.types import ArrayLike, Dtype, Options, Rngs
from minibert.models.base import Names, PretrainedModel, Table
from minibert.models.bert.config import LARGE, BertConfig
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
from minibert.models.bert.modeling import (
    BertEmbeddings,
    BertEncoder,
    BertModel,
    BertPreTrainedModel,
    Hidden,
)
from minibert.models.family import Family
from minibert.models.gpt2.config import SUMMARY_TYPES
from minibert.models.heads import (
    ForSequenceClassification,
    Output,
    SequenceSummary,
    kept,
    lm_projection,
    projection,
)
from minibert.models.inputs import ModelInputs
from minibert.models.outputs import (
    AnyTrunkOutput,
    BaseModelOutputWithPastAndCrossAttentions,
    CausalLMOutputWithCrossAttentions,
    ElectraForPreTrainingOutput,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from minibert.models.roberta import RobertaClassificationHead
from minibert.models.stack import Execution, requested_outputs
from minibert.nn.activations import ACTIVATION_NAMES, ACTIVATIONS, activation
from minibert.nn.cache import KVCache
from minibert.nn.layers import LayerNorm, Linear, Module, TiedLinear


@dataclasses.dataclass(frozen=True, kw_only=True)
class ElectraConfig(BertConfig):
    """The shape and settings of an ELECTRA; field names and defaults are Hugging Face's.

    The defaults are those of ELECTRA-small; `base` and `large` return the configs of the other
    published discriminators.
    """

    model_type = "electra"
    refused_fields: ClassVar[Neutral] = {
        **BertConfig.refused_fields,
        "summary_first_dropout": (0,),
        "summary_proj_to_labels": (False,),
    }

    embedding_size: int = field(SIZE, 128)
    hidden_size: int = field(SIZE, 256)
    num_attention_heads: int = field(SIZE, 4)
    intermediate_size: int = field(SIZE, 1024)
    summary_type: str = field(one_of(SUMMARY_TYPES), "first")
    summary_use_proj: bool = field(SWITCH, True)
    summary_activation: str | None = field(or_null(one_of(ACTIVATION_NAMES)), "gelu")
    summary_last_dropout: float = field(PROBABILITY, 0.1)

    @classmethod
    def small(cls, **changes: object) -> "ElectraConfig":
        """Returns the config of ELECTRA-small: 12 layers of 256, 14 million parameters."""
        return cls._sized(changes)

    @classmethod
    def base(cls, **changes: object) -> "ElectraConfig":
        """Returns the config of ELECTRA-base: 12 layers of 768, 109 million parameters."""
        return cls._sized(changes, embedding_size=768, **BASE)

    @classmethod
    def large(cls, **changes: object) -> "ElectraConfig":
        """Returns the config of ELECTRA-large: 24 layers of 1024, 334 million parameters."""
        return cls._sized(changes, embedding_size=1024, **LARGE)

    @classmethod
    def tiny(cls, **changes: object) -> "ElectraConfig":
        """Returns a config of two layers of 24 in which all sizes differ, for experiments."""
        return cls._sized(
            changes,
            vocab_size=97,
            embedding_size=20,
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=80,
            max_position_embeddings=40,
        )


BASE = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}


class ElectraPreTrainedModel(BertPreTrainedModel):
    """Base class of all ELECTRA models: facts about their checkpoints."""

    config_class: ClassVar[type[Config]] = ElectraConfig
    trunk = "electra"
    submodules: ClassVar[Names] = ("embeddings", "embeddings_project", "encoder")
    heads: ClassVar[Names] = (
        "discriminator_predictions",
        "generator_predictions",
        "generator_lm_head",
        "sequence_summary",
        "classifier",
        "classifier.out_proj",
        "qa_outputs",
    )
    buffers: ClassVar[Table] = {
        "electra.embeddings.position_ids": "0, 1, 2, …, which are computed",
        "electra.embeddings.token_type_ids": "zeros, which are computed",
    }


class ElectraModel(ElectraPreTrainedModel, BertModel):
    """The bare encoder.

    Args:
        config: the shape and settings.
        rngs: random keys to initialise weights; None builds shapes only, for a loader to fill.
        dtype: the dtype of computations; None for the dtype of the parameters.
        param_dtype: the dtype of the parameters.
    """

    optional: ClassVar[Names] = ()

    def __init__(
        self,
        config: ElectraConfig,
        *,
        rngs: Rngs,
        dtype: Dtype = None,
        param_dtype: DTypeLike = jnp.float32,
    ):
        options: Options = {"rngs": rngs, "dtype": dtype, "param_dtype": param_dtype}
        self.config, self.execution = config, Execution()
        self.embeddings: BertEmbeddings = BertEmbeddings(config, **options)
        width, hidden, stddev = config.embedding_size, config.hidden_size, config.initializer_range
        self.embeddings_project: Linear | None = nnx.data(
            None if width == hidden else Linear(width, hidden, stddev=stddev, **options)
        )
        self.encoder: BertEncoder = BertEncoder(config, **options)

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
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Takes `BertModel`'s arguments; `inputs_embeds` are `(batch, seq, embedding_size)`.

        The first of the hidden states is that after the projection.
        """
        done = self._encoded(
            use_cache,
            rngs,
            input_ids=input_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            past_key_values=past_key_values,
        )
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=done.last_hidden_state,
            **requested_outputs(done, self.config, output_hidden_states, output_attentions),
        )

    def _embedded(self, given: ModelInputs, rngs: Rngs) -> Hidden:
        hidden = super()._embedded(given, rngs)
        return hidden if self.embeddings_project is None else self.embeddings_project(hidden)


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


FAMILY = Family(
    models=(
        ElectraModel,
        ElectraForPreTraining,
        ElectraForMaskedLM,
        ElectraForCausalLM,
        ElectraForSequenceClassification,
        ElectraForMultipleChoice,
        ElectraForTokenClassification,
        ElectraForQuestionAnswering,
    ),
    by_heads={
        (): ElectraModel,
        ("discriminator_predictions",): ElectraForPreTraining,
        ("generator_predictions", "generator_lm_head"): ElectraForMaskedLM,
        ("sequence_summary", "classifier"): ElectraForMultipleChoice,
        ("classifier", "classifier.out_proj"): ElectraForSequenceClassification,
        ("classifier",): ElectraForTokenClassification,
        ("qa_outputs",): ElectraForQuestionAnswering,
    },
    causal={ElectraForMaskedLM: ElectraForCausalLM},
    tasks={
        "fill-mask": ElectraForMaskedLM,
        "text-classification": ElectraForSequenceClassification,
        "token-classification": ElectraForTokenClassification,
        "question-answering": ElectraForQuestionAnswering,
        "multiple-choice": ElectraForMultipleChoice,
        "text-generation": ElectraForCausalLM,
        "continuation": ElectraForMaskedLM,
    },
)
