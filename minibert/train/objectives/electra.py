"""ELECTRA's pretraining: a generator fills masked tokens, a discriminator finds the replaced ones.

Clark et al., arXiv:2003.10555. Both models are trained together and share the embeddings; no
gradient passes through the tokens that the generator draws.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from minibert.core.fields import NON_NEGATIVE
from minibert.core.types import Rngs
from minibert.errors import InputError, shown
from minibert.models.base import Dimensions
from minibert.models.electra import ElectraForMaskedLM, ElectraForPreTraining, ElectraModel
from minibert.models.outputs import ModelOutput
from minibert.nn.layers import Module
from minibert.nn.numerics import widen
from minibert.train.lora.layers import with_keys
from minibert.train.objectives.base import Batch, Choice, Objective, Terms, tokens
from minibert.train.objectives.labels import IGNORED, mask_of_tokens, of_tokens

INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
SHARED = (
    "vocab_size",
    "embedding_size",
    "max_position_embeddings",
    "type_vocab_size",
    "layer_norm_eps",
)


class ElectraPairOutput(ModelOutput):
    """The output of an `ElectraPair`.

    Attributes:
        logits: the generator's score for each token of the vocabulary, `(batch, seq, vocab)`.
        input_ids: the text in which the generator's tokens replace the masked ones, `(batch, seq)`.
        replaced: whether a token differs from the original one, `(batch, seq)`.
        discriminator_logits: the discriminator's score for each token of that text, `(batch, seq)`.
    """

    logits: Array
    input_ids: Array
    replaced: Array
    discriminator_logits: Array


class ElectraPair(Module):
    """A generator and a discriminator that share the discriminator's embeddings, to be trained.

    Args:
        generator: the generator, whose own embeddings are dropped; its decoder must be tied.
        discriminator: the discriminator.

    Raises:
        InputError: a model is of another class, their embeddings have different shapes or epsilons,
            or the generator's decoder is not tied.
    """

    dimensions: ClassVar[Dimensions] = ElectraModel.dimensions
    blocks_path = f"discriminator.{ElectraModel.trunk}.{ElectraModel.blocks}"

    def __init__(self, generator: ElectraForMaskedLM, discriminator: ElectraForPreTraining):
        for name, model, cls in (
            ("generator", generator, ElectraForMaskedLM),
            ("discriminator", discriminator, ElectraForPreTraining),
        ):
            if not isinstance(model, cls):
                found = shown(type(model).__name__)
                raise InputError(f"{name}: expected an {cls.__name__}, found {found}")
        for field in SHARED:
            ours, theirs = (getattr(m.config, field) for m in (generator, discriminator))
            if ours != theirs:
                raise InputError(
                    f"generator: {field}: expected {theirs}, as the discriminator's, found {ours}"
                )
        if generator.generator_lm_head.kernel is not None:
            raise InputError("generator: expected a decoder that is tied to the embeddings")
        self.config: Any = discriminator.config
        self.generator: ElectraForMaskedLM = _with_embeddings(generator, nnx.data(None))
        self.discriminator: ElectraForPreTraining = discriminator

    def models(self) -> tuple[ElectraForMaskedLM, ElectraForPreTraining]:
        """Returns the generator, with the shared embeddings, and the discriminator."""
        embeddings = self.discriminator.base_model.embeddings
        return _with_embeddings(self.generator, embeddings), self.discriminator

    def __call__(self, *, labels: Array, rngs: Rngs = None, **inputs: Any) -> ElectraPairOutput:
        """Fills masked tokens with the generator, and applies the discriminator to the result.

        Args:
            labels: `(batch, seq)`, the original token where it is masked, else −100.
            rngs: random keys for the tokens to draw and for dropout; without keys, those drawn are
                the same in every call.
            inputs: the arguments of both models, with `input_ids`.
        """
        key = jax.random.key(0) if rngs is None else rngs.dropout()
        generator, discriminator = self.models()
        logits = generator(**inputs, rngs=rngs).logits
        drawn = jax.random.categorical(key, jax.lax.stop_gradient(widen(logits)))
        ids, labels = jnp.asarray(inputs["input_ids"]), jnp.asarray(labels)
        masked = labels != IGNORED
        filled = jnp.where(masked, drawn.astype(ids.dtype), ids)
        given: dict[str, Any] = {**inputs, "input_ids": filled}
        found = discriminator(**given, rngs=rngs).logits
        return ElectraPairOutput(
            logits=logits,
            input_ids=filled,
            replaced=masked & (filled != labels.astype(filled.dtype)),
            discriminator_logits=found,
        )


def _with_embeddings(generator: ElectraForMaskedLM, embeddings: Any) -> Any:
    copy = jax.tree.map(lambda leaf: leaf, generator)
    copy.base_model.embeddings = embeddings
    return copy


def _apply(model: Any, batch: Batch, rngs: Rngs) -> Any:
    inputs = {name: batch[name] for name in INPUTS if name in batch}
    return with_keys(model, rngs)(labels=batch["labels"], rngs=rngs, **inputs)


MASKED = Choice("logits", "labels")


def _labels(config: Any, name: str, array: np.ndarray, batch: Batch) -> None:
    """Checks one label per token, and that the mask has one number per token."""
    of_tokens("vocab_size")(config, name, array, batch)
    mask_of_tokens(batch)


def electra_pretraining(weight: float = 50.0) -> Objective:
    """Returns the objective of an `ElectraPair`: masked tokens + weight × replaced tokens.

    Batches are those of `masked_lm`. Every token but padding is a target of the discriminator.

    Args:
        weight: the weight of the discriminator's loss.

    Raises:
        InputError: the weight is negative.
    """
    weight = NON_NEGATIVE.check("weight", weight, InputError)

    def losses(outputs: Any, batch: Batch) -> Terms:
        logits = widen(outputs.discriminator_logits)
        replaced = outputs.replaced.astype(logits.dtype)
        return {
            "masked_lm": MASKED.losses(outputs, batch),
            "replaced_tokens": optax.sigmoid_binary_cross_entropy(logits, replaced),
        }

    def hits(outputs: Any, batch: Batch) -> Terms:
        right = (outputs.discriminator_logits > 0) == outputs.replaced
        return {
            "masked_lm": MASKED.hits(outputs, batch),
            "replaced_tokens": right.astype(jnp.float32),
        }

    return Objective(
        name="electra_pretraining",
        needs=(("input_ids",), ("labels",)),
        inputs=INPUTS,
        labels={"labels": _labels},
        targets=lambda batch: {
            "masked_lm": MASKED.targets(batch),
            "replaced_tokens": tokens(batch),
        },
        losses=losses,
        hits=hits,
        weights={"masked_lm": 1.0, "replaced_tokens": weight},
        apply=_apply,
        settings={"weight": weight},
    )
