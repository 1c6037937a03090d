"""Heads shared by several families, each on top of the bare model of its family."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Generic, TypeVar, Unpack

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Integer

from minibert.checkpoint.config import Config
from minibert.checkpoint.generation_config import GenerationConfig
from minibert.core.types import ArrayLike, Dtype, Options, Rngs
from minibert.errors import ConfigError, InputError, shown
from minibert.models.base import PretrainedModel
from minibert.models.inputs import joined_choices, kept_positions
from minibert.models.outputs import (
    AnyTrunkOutput,
    CausalLMOutputWithCrossAttentions,
    MaskedLMOutput,
    ModelOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from minibert.nn.activations import activation
from minibert.nn.layers import Dropout, Linear, Module, TiedLinear

Output = TypeVar("Output", bound=ModelOutput)


class ModelWithHead(PretrainedModel, Generic[Output]):
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
        dtype: Dtype = None,
        param_dtype: DTypeLike = jnp.float32,
    ):
        options: Options = {"rngs": rngs, "dtype": dtype, "param_dtype": param_dtype}
        self.config = config
        setattr(self, self.trunk, self.base_class(config, **self.base_options, **options))
        self._add_head(config, **options)

    def _add_head(self, config: Any, **options: Unpack[Options]) -> None:
        raise TypeError(f"{type(self).__name__} has no head; use a class with a head")

    def _output(self, outputs: AnyTrunkOutput, input_ids: ArrayLike | None, rngs: Rngs) -> Output:
        """The head's output, of the bare model's."""
        raise TypeError(f"{type(self).__name__} has no head; use a class with a head")

    def _lm_logits(self, hidden: Array) -> Array:
        """Returns the vocabulary logits of hidden states, `(…, hidden)` to `(…, vocab)`."""
        raise TypeError(f"{type(self).__name__} has no language-model head")


class ForMaskedLM(ModelWithHead[MaskedLMOutput]):
    """A model that predicts masked tokens."""

    objective: ClassVar[str | None] = "masked_lm"

    def _kept_output(
        self, outputs: AnyTrunkOutput, logits_to_keep: int | ArrayLike
    ) -> MaskedLMOutput:
        hidden = kept_positions(outputs.last_hidden_state, logits_to_keep)
        return MaskedLMOutput(logits=self._lm_logits(hidden), **kept(outputs))


class ForCausalLM(ModelWithHead[CausalLMOutputWithCrossAttentions]):
    """A decoder that predicts the next token."""

    generates = True
    objective: ClassVar[str | None] = "causal_lm"

    @property
    def generation_config(self) -> GenerationConfig:
        """The settings of generation that `generate` uses where a call does not override them.

        They are those of the checkpoint's generation_config.json, or else of its config.json. A
        config that is assigned replaces all of them, the end token too, and `save_pretrained`
        writes it; assign `model.generation_config.replace(…)` to change some.

        Raises:
            ConfigError, UnsupportedConfigError: the checkpoint's settings are invalid, or request
                something that is not implemented.
            InputError: what is assigned is not a `GenerationConfig`.
        """
        return GenerationConfig.of_model(self.config)

    @generation_config.setter
    def generation_config(self, value: GenerationConfig) -> None:
        if not isinstance(value, GenerationConfig):
            raise InputError(
                f"generation_config: expected a GenerationConfig, found {shown(value)}"
            )
        self.config: Any = self.config.replace(generation=value.to_dict())

    def _kept_output(
        self, outputs: AnyTrunkOutput, logits_to_keep: int | ArrayLike
    ) -> CausalLMOutputWithCrossAttentions:
        return CausalLMOutputWithCrossAttentions(
            logits=self._lm_logits(kept_positions(outputs.last_hidden_state, logits_to_keep)),
            **kept(outputs, "past_key_values", "cross_attentions"),
        )


class ForTokenClassification(ModelWithHead[TokenClassifierOutput]):
    """A model that classifies every token."""

    objective: ClassVar[str | None] = "token_classification"

    dropout: Dropout
    classifier: Linear

    def _output(
        self, outputs: AnyTrunkOutput, input_ids: ArrayLike | None, rngs: Rngs
    ) -> TokenClassifierOutput:
        logits = self.classifier(self.dropout(outputs.last_hidden_state, rngs))
        return TokenClassifierOutput(logits=logits, **kept(outputs))


class WithClassifier(ModelWithHead[Output]):
    """Base class of models that score whole texts."""

    dropout: Dropout
    classifier: Any

    def _scores(self, outputs: AnyTrunkOutput, rngs: Rngs) -> Float[Array, "batch labels"]:
        """Returns the scores of each text, by default of its pooled first token."""
        return self.classifier(self.dropout(outputs["pooler_output"], rngs))


class ForSequenceClassification(WithClassifier[SequenceClassifierOutput]):
    """A model that classifies texts."""

    objective: ClassVar[str | None] = "classification"

    def _output(
        self, outputs: AnyTrunkOutput, input_ids: ArrayLike | None, rngs: Rngs
    ) -> SequenceClassifierOutput:
        return SequenceClassifierOutput(logits=self._scores(outputs, rngs), **kept(outputs))


class ForMultipleChoice(WithClassifier[MultipleChoiceModelOutput]):
    """A model that scores each of several continuations."""

    has_choices = True
    objective: ClassVar[str | None] = "multiple_choice"

    def _choice_output(
        self, arrays: Mapping[str, ArrayLike | None], **options: Any
    ) -> MultipleChoiceModelOutput:
        """Returns the output for arrays with an axis of choices, and other arguments of a call."""
        lead, joined = joined_choices(arrays)
        outputs = self.base_model(**joined, **options)
        scores = self._scores(outputs, options["rngs"])
        return MultipleChoiceModelOutput(logits=scores.reshape(lead), **kept(outputs))


class ForQuestionAnswering(ModelWithHead[QuestionAnsweringModelOutput]):
    """A model that scores each token as the start and as the end of an answer."""

    objective: ClassVar[str | None] = "question_answering"

    def _add_head(self, config: Any, **options: Unpack[Options]) -> None:
        self.qa_outputs: Linear = projection(config, 2, **options)

    def _output(
        self, outputs: AnyTrunkOutput, input_ids: ArrayLike | None, rngs: Rngs
    ) -> QuestionAnsweringModelOutput:
        logits = self.qa_outputs(outputs.last_hidden_state)
        return QuestionAnsweringModelOutput(
            start_logits=logits[..., 0], end_logits=logits[..., 1], **kept(outputs)
        )


class SequenceSummary(Module):
    """Pools a sequence to one vector, as the `summary_*` fields of the config specify.

    Args:
        config: the config.
        outputs: the width of the vector, if there is a projection.
        first_dropout: the rate of dropout before the projection.
    """

    def __init__(self, config: Any, outputs: int, first_dropout: float, **options: Unpack[Options]):
        self.kind: str = config.summary_type
        projected = config.summary_use_proj
        self.summary: Linear | None = nnx.data(
            projection(config, outputs, **options) if projected else None
        )
        name = config.summary_activation
        self.activation: Module | None = nnx.data(activation(name, **options) if name else None)
        self.first_dropout: Dropout = Dropout(first_dropout)
        self.last_dropout: Dropout = Dropout(config.summary_last_dropout)

    def __call__(
        self,
        hidden: Float[Array, "*batch seq hidden"],
        index: Integer[Array, "*batch"] | None = None,
        rngs: Rngs = None,
    ) -> Float[Array, "..."]:
        """Pools by `summary_type`; `cls_index` takes the token at `index` (or the last)."""
        match self.kind:
            case "last":
                picked = hidden[:, -1]
            case "first":
                picked = hidden[:, 0]
            case "mean":
                picked = hidden.mean(axis=1)
            case _ if index is None:
                picked = hidden[..., -1, :]
            case _:
                picked = jnp.take_along_axis(hidden, index[..., None, None], axis=-2)[..., 0, :]
        picked = self.first_dropout(picked, rngs)
        if self.summary is not None:
            picked = self.summary(picked)
        if self.activation is not None:
            picked = self.activation(picked)
        return self.last_dropout(picked, rngs)


def check_two_labels(config: Config) -> None:
    """Raises a `ConfigError` if the labels are not two: the start and the end of an answer."""
    if config.num_labels != 2:
        raise ConfigError(
            "num_labels: expected 2 for question answering (start and end), "
            f"found {config.num_labels}"
        )


def projection(
    config: Any, outputs: int, use_bias: bool = True, **options: Unpack[Options]
) -> Linear:
    """Returns a linear layer from hidden states to `outputs` features."""
    return Linear(
        config.hidden_size, outputs, use_bias=use_bias, stddev=config.initializer_range, **options
    )


def lm_projection(
    config: Any, use_bias: bool = True, own_bias: bool = False, **options: Unpack[Options]
) -> TiedLinear:
    """Returns a linear layer to logits from features of the token embeddings' width.

    It may be tied; see `TiedLinear`.
    """
    return TiedLinear(
        config.embedding_size,
        config.vocab_size,
        tied=config.tie_word_embeddings and options["rngs"] is not None,
        own_bias=own_bias,
        stddev=config.initializer_range,
        use_bias=use_bias,
        **options,
    )


def kept(outputs: ModelOutput, *names: str) -> dict[str, Any]:
    """Returns the fields that a model's output takes over from the bare model's output."""
    return {name: getattr(outputs, name) for name in ("hidden_states", "attentions", *names)}
