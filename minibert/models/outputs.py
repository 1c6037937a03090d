"""Model outputs: frozen dataclasses with the names, number and order of Hugging Face's fields.

Every output is a JAX pytree. `out.logits`, `out["logits"]` and `out[0]` all work; as in
transformers, integer indices count only the fields that are not None.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, dataclass_transform

import jax
import numpy as np
from jax import Array

from minibert.nn.cache import KVCache

States = tuple[Array, ...] | None


@dataclass_transform(frozen_default=True, kw_only_default=True, eq_default=False)
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ModelOutput(Mapping[str, Any]):
    """Base class of outputs: a frozen dataclass, a pytree, and a mapping of fields not None."""

    def __init_subclass__(cls) -> None:
        dataclasses.dataclass(frozen=True, kw_only=True, eq=False)(cls)
        names = [field.name for field in dataclasses.fields(cls)]
        jax.tree_util.register_dataclass(cls, data_fields=names, meta_fields=[])

    def __iter__(self) -> Iterator[str]:
        names = (field.name for field in dataclasses.fields(self))
        return (name for name in names if getattr(self, name) is not None)

    def __len__(self) -> int:
        return len(self.to_tuple())

    def __getitem__(self, key: str | int | slice) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in iter(self):
            raise KeyError(key)
        return getattr(self, key)

    def to_tuple(self) -> tuple[Any, ...]:
        """Returns the fields that are not None, in order."""
        return tuple(getattr(self, name) for name in self)


class BaseModelOutputWithPastAndCrossAttentions(ModelOutput):
    """The output of a bare decoder.

    Attributes:
        last_hidden_state: `(batch, seq, hidden)`.
        past_key_values: a `KVCache`, if one was passed or requested.
        hidden_states: the output of the embeddings and of each layer, each `(batch, seq, hidden)`;
            the last one is `last_hidden_state`.
        attentions: the attention weights of each layer, `(batch, heads, queries, keys)`.
        cross_attentions: the weights of each layer over the encoder's states.
    """

    last_hidden_state: Array
    past_key_values: KVCache | None = None
    hidden_states: States = None
    attentions: States = None
    cross_attentions: States = None


class BaseModelOutputWithPoolingAndCrossAttentions(ModelOutput):
    """The output of a bare BERT; `pooler_output` is `(batch, hidden)`, None without a pooler."""

    last_hidden_state: Array
    pooler_output: Array | None = None
    hidden_states: States = None
    past_key_values: KVCache | None = None
    attentions: States = None
    cross_attentions: States = None


AnyTrunkOutput = (
    BaseModelOutputWithPastAndCrossAttentions | BaseModelOutputWithPoolingAndCrossAttentions
)


class Scores(ModelOutput):
    """Base class of outputs with `logits`, which each subclass describes."""

    logits: Array
    hidden_states: States = None
    attentions: States = None


class ScoresWithPast(ModelOutput):
    """Base class of outputs with `logits`, and the cache if one was passed or requested."""

    logits: Array
    past_key_values: KVCache | None = None
    hidden_states: States = None
    attentions: States = None


class CausalLMOutputWithCrossAttentions(ScoresWithPast):
    """`logits`: a score for each next token at each position, `(batch, seq, vocab)`."""

    cross_attentions: States = None


class GPT2DoubleHeadsModelOutput(ModelOutput):
    """`logits`: `(batch, choices, seq, vocab)`; `mc_logits`: a score for each choice."""

    logits: Array
    mc_logits: Array
    past_key_values: KVCache | None = None
    hidden_states: States = None
    attentions: States = None


class SequenceClassifierOutputWithPast(ScoresWithPast):
    """`logits`: a score for each label, `(batch, labels)`."""


class MaskedLMOutput(Scores):
    """`logits`: a score for each token of the vocabulary, `(batch, seq, vocab)`."""


class BertForPreTrainingOutput(ModelOutput):
    """`prediction_logits`: `(batch, seq, vocab)`; `seq_relationship_logits`: `(batch, 2)`.

    Index 0 of the latter means "the second sentence follows the first".
    """

    prediction_logits: Array
    seq_relationship_logits: Array
    hidden_states: States = None
    attentions: States = None


class ElectraForPreTrainingOutput(Scores):
    """`logits`: a score for each token, `(batch, seq)`; above 0 it was replaced, more likely."""


class AlbertForPreTrainingOutput(ModelOutput):
    """`prediction_logits`: `(batch, seq, vocab)`; `sop_logits`: `(batch, 2)`.

    Index 0 of the latter means "the two segments are in their order", 1 "they are swapped".
    """

    prediction_logits: Array
    sop_logits: Array
    hidden_states: States = None
    attentions: States = None


class NextSentencePredictorOutput(Scores):
    """`logits`: `(batch, 2)`; index 0 means "the second sentence follows the first"."""


class SequenceClassifierOutput(Scores):
    """`logits`: a score for each label, `(batch, labels)`."""


class MultipleChoiceModelOutput(Scores):
    """`logits`: a score for each choice, `(batch, choices)`."""


class TokenClassifierOutput(Scores):
    """`logits`: a score for each label at each position, `(batch, seq, labels)`."""


class QuestionAnsweringModelOutput(ModelOutput):
    """`start_logits` and `end_logits`: a score for each position, `(batch, seq)` each."""

    start_logits: Array
    end_logits: Array
    hidden_states: States = None
    attentions: States = None


class GenerateOutput(ModelOutput):
    """Generated sequences, as NumPy arrays.

    Attributes:
        sequences: `(rows, seq + generated)` token ids, including the prompts.
        log_probs: `(rows, generated)`, the log-probability of each token under the model, before
            any logits processor; 0 after EOS.
        sequences_scores: `(rows,)`, beam search only: log-probability over a power of the length.
        scores: for each step `(rows, vocab)`: the processed scores from which the token was chosen.
            In beam search the rows are beams.
        logits: for each step `(rows, vocab)`: the unprocessed logits of the model.
        beam_indices: `(rows, generated)`, beam search only: the row of `scores` in which each token
            was chosen; −1 after EOS.
    """

    sequences: np.ndarray
    log_probs: np.ndarray | None = None
    sequences_scores: np.ndarray | None = None
    scores: tuple[np.ndarray, ...] | None = None
    logits: tuple[np.ndarray, ...] | None = None
    beam_indices: np.ndarray | None = None
