"""GPT-2 with its heads: language models, classification, tagging, question answering, choice.

Radford et al. (2019). Names follow transformers' `modeling_gpt2.py`. Every model takes the
arguments of `GPT2Model`, with the same names and in the same order.
"""

from collections.abc import Callable
from typing import ClassVar, Unpack

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from minibert.core.checks import known
from minibert.core.types import ArrayLike, Options, Rngs
from minibert.errors import InputError
from minibert.models.base import PretrainedModel, Table
from minibert.models.gpt2.config import GPT2Config
from minibert.models.gpt2.modeling import GPT2Model, GPT2PreTrainedModel
from minibert.models.heads import (
    ForCausalLM,
    ForQuestionAnswering,
    ForTokenClassification,
    ModelWithHead,
    Output,
    SequenceSummary,
    kept,
    lm_projection,
    projection,
)
from minibert.models.inputs import choice_indices, joined_choices
from minibert.models.outputs import (
    AnyTrunkOutput,
    CausalLMOutputWithCrossAttentions,
    GPT2DoubleHeadsModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)
from minibert.nn.cache import KVCache
from minibert.nn.layers import Dropout, Linear, TiedLinear


class GPT2WithHead(ModelWithHead[Output], GPT2PreTrainedModel):
    """A `GPT2Model`, in the attribute `transformer`, with a head."""

    base_class: ClassVar[Callable[..., PretrainedModel]] = GPT2Model

    def __call__(
        self,
        input_ids: ArrayLike | None = None,
        past_key_values: KVCache | None = None,
        attention_mask: ArrayLike | None = None,
        token_type_ids: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
        head_mask: ArrayLike | None = None,
        inputs_embeds: ArrayLike | None = None,
        encoder_hidden_states: ArrayLike | None = None,
        encoder_attention_mask: ArrayLike | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        *,
        rngs: Rngs = None,
    ) -> Output:
        """Takes `GPT2Model`'s arguments; returns the output of this class."""
        outputs = self.base_model(
            input_ids,
            past_key_values,
            attention_mask,
            token_type_ids,
            position_ids,
            head_mask,
            inputs_embeds,
            encoder_hidden_states,
            encoder_attention_mask,
            use_cache,
            output_attentions,
            output_hidden_states,
            rngs=rngs,
        )
        return self._output(outputs, input_ids, rngs)


class _GPT2WithLMHead(GPT2WithHead[Output]):
    tied: ClassVar[Table] = {"lm_head.weight": "transformer.wte.weight"}

    def _add_head(self, config: GPT2Config, **options: Unpack[Options]) -> None:
        self.lm_head: TiedLinear = lm_projection(config, use_bias=False, **options)

    def _lm_logits(self, hidden: Float[Array, "*batch hidden"]) -> Float[Array, "*batch vocab"]:
        return self.lm_head(hidden, self.base_model.wte.embedding[...])


class GPT2LMHeadModel(ForCausalLM, _GPT2WithLMHead[CausalLMOutputWithCrossAttentions]):
    """GPT-2 with a next-token head."""

    def __call__(
        self,
        input_ids: ArrayLike | None = None,
        past_key_values: KVCache | None = None,
        attention_mask: ArrayLike | None = None,
        token_type_ids: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
        head_mask: ArrayLike | None = None,
        inputs_embeds: ArrayLike | None = None,
        encoder_hidden_states: ArrayLike | None = None,
        encoder_attention_mask: ArrayLike | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        *,
        logits_to_keep: int | ArrayLike = 0,
        rngs: Rngs = None,
    ) -> CausalLMOutputWithCrossAttentions:
        """Takes `GPT2Model`'s arguments; returns logits of the last `logits_to_keep` positions.

        With 0, the default, it returns those of all positions; with indices `(positions,)` those
        of these positions; with indices `(batch, positions)` those of each row's positions.
        """
        outputs = self.base_model(
            input_ids,
            past_key_values,
            attention_mask,
            token_type_ids,
            position_ids,
            head_mask,
            inputs_embeds,
            encoder_hidden_states,
            encoder_attention_mask,
            use_cache,
            output_attentions,
            output_hidden_states,
            rngs=rngs,
        )
        return self._kept_output(outputs, logits_to_keep)


class GPT2SequenceSummary(SequenceSummary):
    """Pools a sequence to one vector, as the `summary_*` fields of the config specify."""

    def __init__(self, config: GPT2Config, **options: Unpack[Options]):
        outputs = 1 if config.summary_proj_to_labels else config.n_embd
        super().__init__(config, outputs, config.summary_first_dropout, **options)


class GPT2DoubleHeadsModel(_GPT2WithLMHead[GPT2DoubleHeadsModelOutput]):
    """GPT-2 with a next-token head and a multiple-choice head."""

    has_choices = True
    objective: ClassVar[str | None] = "double_heads"

    def _add_head(self, config: GPT2Config, **options: Unpack[Options]) -> None:
        super()._add_head(config, **options)
        self.multiple_choice_head: GPT2SequenceSummary = GPT2SequenceSummary(config, **options)

    def __call__(
        self,
        input_ids: ArrayLike | None = None,
        past_key_values: KVCache | None = None,
        attention_mask: ArrayLike | None = None,
        token_type_ids: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
        head_mask: ArrayLike | None = None,
        inputs_embeds: ArrayLike | None = None,
        mc_token_ids: ArrayLike | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        *,
        rngs: Rngs = None,
    ) -> GPT2DoubleHeadsModelOutput:
        """Takes `GPT2Model`'s arguments, optionally with an axis of choices (not in `head_mask`).

        It is the second axis: `input_ids` is `(batch, choices, seq)`. `mc_token_ids`,
        `(batch, choices)`, is the index of the token that represents each choice: by default the
        last. Hidden states and attentions have batch × choices rows, but the last hidden state has
        the shape `(batch, choices, seq, hidden)`, as in transformers. With choices, the
        `summary_type`s `last`, `first` and `mean` pool along the choices, not along the sequence,
        as in transformers.
        """
        arrays = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        lead, joined = joined_choices(arrays, optional=True)
        outputs = self.base_model(
            past_key_values=past_key_values,
            head_mask=head_mask,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            rngs=rngs,
            **joined,
        )
        hidden = outputs.last_hidden_state
        hidden = hidden.reshape(*lead, *hidden.shape[1:])
        own = kept(outputs, "past_key_values")
        if own["hidden_states"] is not None:
            own["hidden_states"] = (*own["hidden_states"][:-1], hidden)
        index = choice_indices(mc_token_ids, lead, hidden.shape[-2])
        choices = self.multiple_choice_head(hidden, index, rngs)
        return GPT2DoubleHeadsModelOutput(
            logits=self._lm_logits(hidden),
            mc_logits=choices[..., 0] if choices.shape[-1] == 1 else choices,
            **own,
        )


class GPT2ForSequenceClassification(GPT2WithHead[SequenceClassifierOutputWithPast]):
    """GPT-2 with a sequence classification head, over the last token that is not padding.

    Padding is recognised by `config.pad_token_id`, not by the mask; without one, several rows are
    an `InputError`. With `inputs_embeds` the last position is used.
    """

    needs_padding_id = True
    objective: ClassVar[str | None] = "classification"

    def _add_head(self, config: GPT2Config, **options: Unpack[Options]) -> None:
        self.score: Linear = projection(config, config.num_labels, use_bias=False, **options)

    def _output(
        self, outputs: AnyTrunkOutput, input_ids: ArrayLike | None, rngs: Rngs
    ) -> SequenceClassifierOutputWithPast:
        hidden, pad = outputs.last_hidden_state, self.config.pad_token_id
        if pad is None and not (known(hidden.shape[:1]) and hidden.shape[0] == 1):
            raise InputError(
                f"input_ids: expected 1 row, found {hidden.shape[0]}; for several rows set "
                "config.pad_token_id, by which the last token of each is found"
            )
        last = hidden[:, -1]
        if pad is not None and input_ids is not None:
            numbers = jnp.arange(hidden.shape[1])[None]
            at = jnp.argmax(jnp.where(jnp.asarray(input_ids) != pad, numbers, 0), axis=1)
            last = jnp.take_along_axis(hidden, at[:, None, None], axis=1)[:, 0]
        return SequenceClassifierOutputWithPast(
            logits=self.score(last), **kept(outputs, "past_key_values")
        )


class GPT2ForTokenClassification(ForTokenClassification, GPT2WithHead[TokenClassifierOutput]):
    """GPT-2 with a token classification head: scores of labels at each position."""

    def _add_head(self, config: GPT2Config, **options: Unpack[Options]) -> None:
        rates = (config.classifier_dropout, config.hidden_dropout, 0.1)
        self.dropout: Dropout = Dropout(next(rate for rate in rates if rate is not None))
        self.classifier: Linear = projection(config, config.num_labels, **options)


class GPT2ForQuestionAnswering(ForQuestionAnswering, GPT2WithHead[QuestionAnsweringModelOutput]):
    """GPT-2 with a question answering head: a start and an end score at each position."""
