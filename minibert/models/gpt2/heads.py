"""GPT-2 with its heads: language models, classification, tagging, question answering, choice.

Radford et al. (2019). Names follow transformers' `modeling_gpt2.py`. Every model takes the
arguments of `GPT2Model`, with the same names and in the same order.
"""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Integer

from minibert.core.checks import known
from minibert.errors import InputError
from minibert.models.base import Rngs
from minibert.models.gpt2.config import GPT2Config
from minibert.models.gpt2.modeling import GPT2Model, GPT2PreTrainedModel
from minibert.models.heads import (
    ForCausalLM,
    ForQuestionAnswering,
    ForTokenClassification,
    ModelWithHead,
    kept,
    lm_projection,
    projection,
)
from minibert.models.inputs import choice_indices, joined_choices
from minibert.models.outputs import (
    GPT2DoubleHeadsModelOutput,
    SequenceClassifierOutputWithPast,
)
from minibert.nn.activations import activation
from minibert.nn.layers import Dropout, Module


class _GPT2WithHead(ModelWithHead, GPT2PreTrainedModel):
    """A `GPT2Model`, in the attribute `transformer`, with a head."""

    base_class = GPT2Model


class _GPT2WithLMHead(_GPT2WithHead):
    tied = {"lm_head.weight": "transformer.wte.weight"}

    def _add_head(self, config: GPT2Config, **options: Any) -> None:
        self.lm_head = lm_projection(config, use_bias=False, **options)

    def _lm_logits(self, hidden: Float[Array, "*batch hidden"]) -> Float[Array, "*batch vocab"]:
        return self.lm_head(hidden, self.base_model.wte.embedding[...])


class GPT2LMHeadModel(ForCausalLM, _GPT2WithLMHead):
    """GPT-2 with a next-token head."""


class GPT2SequenceSummary(Module):
    """Pools a sequence to one vector, as the `summary_*` fields of the config specify."""

    def __init__(self, config: GPT2Config, **options: Any):
        self.kind = config.summary_type
        outputs = 1 if config.summary_proj_to_labels else config.n_embd
        projected = config.summary_use_proj
        self.summary = nnx.data(projection(config, outputs, **options) if projected else None)
        name = config.summary_activation
        self.activation = nnx.data(None if name is None else activation(name, **options))
        self.first_dropout = Dropout(config.summary_first_dropout)
        self.last_dropout = Dropout(config.summary_last_dropout)

    def __call__(
        self,
        hidden: Float[Array, "*batch seq hidden"],
        index: Integer[Array, "*batch"] | None = None,
        rngs: Rngs = None,
    ) -> Float[Array, "..."]:
        """Pools as `summary_type` says; `cls_index` takes the token at `index` (or the last)."""
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


class GPT2DoubleHeadsModel(_GPT2WithLMHead):
    """GPT-2 with a next-token head and a multiple-choice head."""

    has_choices = True

    def _add_head(self, config: GPT2Config, **options: Any) -> None:
        super()._add_head(config, **options)
        self.multiple_choice_head = GPT2SequenceSummary(config, **options)

    def __call__(
        self,
        input_ids: Any = None,
        past_key_values: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        head_mask: Any = None,
        inputs_embeds: Any = None,
        mc_token_ids: Any = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        *,
        rngs: Rngs = None,
    ) -> GPT2DoubleHeadsModelOutput:
        """Takes `GPT2Model`'s arguments, optionally with an axis of choices (not in `head_mask`).

        It is the second axis: `input_ids` is `(batch, choices, seq)`. `mc_token_ids`,
        `(batch, choices)`, is the index of the token that represents each choice: by default the
        last. Hidden states and attentions have batch × choices rows. With choices, the
        `summary_type`s `last`, `first` and `mean` pool along the choices, not along the sequence,
        as in transformers.
        """
        lead, joined = joined_choices(
            optional=True,
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
        )
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
        index = choice_indices(mc_token_ids, lead, hidden.shape[-2])
        choices = self.multiple_choice_head(hidden, index, rngs)
        return GPT2DoubleHeadsModelOutput(
            logits=self._lm_logits(hidden),
            mc_logits=choices[..., 0] if choices.shape[-1] == 1 else choices,
            **kept(outputs, "past_key_values"),
        )


class GPT2ForSequenceClassification(_GPT2WithHead):
    """GPT-2 with a sequence classification head, over the last token that is not padding."""

    needs_padding_id = True

    def _add_head(self, config: GPT2Config, **options: Any) -> None:
        self.score = projection(config, config.num_labels, use_bias=False, **options)

    def __call__(
        self, input_ids: Any = None, *args: Any, **kwargs: Any
    ) -> SequenceClassifierOutputWithPast:
        """Takes `GPT2Model`'s arguments; returns a score for each label, `(batch, labels)`.

        Padding is recognised by `config.pad_token_id`, not by the mask. With `inputs_embeds` the
        last position is used.

        Raises:
            InputError: there are several rows, and `config.pad_token_id` is None.
        """
        outputs = self.base_model(input_ids, *args, **kwargs)
        hidden, pad = outputs.last_hidden_state, self.config.pad_token_id
        if pad is None and not (known(hidden.shape[:1]) and hidden.shape[0] == 1):
            raise InputError(
                f"input_ids: expected 1 row, found {hidden.shape[0]}; for several rows set "
                "config.pad_token_id, by which the last token of each is found"
            )
        last = hidden[:, -1]
        if pad is not None and input_ids is not None:
            at = jnp.argmax(jnp.arange(hidden.shape[1]) * (jnp.asarray(input_ids) != pad), axis=1)
            last = jnp.take_along_axis(hidden, at[:, None, None], axis=1)[:, 0]
        return SequenceClassifierOutputWithPast(
            logits=self.score(last), **kept(outputs, "past_key_values")
        )


class GPT2ForTokenClassification(ForTokenClassification, _GPT2WithHead):
    """GPT-2 with a token classification head: scores of labels at each position."""

    def _add_head(self, config: GPT2Config, **options: Any) -> None:
        rates = (config.classifier_dropout, config.hidden_dropout, 0.1)
        self.dropout = Dropout(next(rate for rate in rates if rate is not None))
        self.classifier = projection(config, config.num_labels, **options)


class GPT2ForQuestionAnswering(ForQuestionAnswering, _GPT2WithHead):
    """GPT-2 with a question answering head: a start and an end score at each position."""
