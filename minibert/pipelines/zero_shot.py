"""Zero-shot classification by entailment.

The reference is transformers' `pipelines/zero_shot_classification.py`. Yin et al., "Benchmarking
Zero-shot Text Classification", arXiv:1909.00161.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import softmax

from minibert.core.checks import check_text, flag, text_list
from minibert.errors import InputError, shown
from minibert.models.base import PretrainedModel
from minibert.pipelines.batches import Arrays
from minibert.pipelines.text_classification import ClassifierPipeline

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ZeroShotClassificationPipeline(ClassifierPipeline):
    """Classifies a text by labels that are chosen in the call.

    The model is a classifier of pairs that was trained on natural language inference: the text is
    the premise, and each label, inserted into a template, a hypothesis. The model must have a label
    whose name begins with "entail".

    An answer is a dict of `sequence`, the text, and `labels` and `scores`, the most probable first.

    Options: `candidate_labels`, a list of labels, or a text of labels separated by commas;
    `hypothesis_template`, "This example is {}." by default; `multi_label`, whether several labels
    can apply: then each score is the probability of entailment against contradiction, otherwise
    the scores of all labels add up to 1; `truncation=True`, to truncate long texts, but not their
    hypotheses; `max_length`; `add_special_tokens`.

    Raises:
        InputError: if the model has no label of entailment.
    """

    task = "zero-shot-classification"

    def __init__(
        self,
        model: PretrainedModel | None = None,
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        **options: Any,
    ):
        super().__init__(model, tokenizer, **options)
        self._entailment()  # raises an error if there is none

    def __call__(
        self,
        inputs: object,
        candidate_labels: str | Sequence[str] | None = None,
        **options: Any,
    ) -> Any:
        """Classifies a text, a list of texts, or those of an iterable."""
        if candidate_labels is not None:
            options["candidate_labels"] = candidate_labels
        return super().__call__(inputs, **options)

    def preprocess(
        self,
        inputs: object,
        *,
        candidate_labels: str | Sequence[str] | None = None,
        hypothesis_template: str = "This example is {}.",
        truncation: bool | str | None = False,
        max_length: int | None = None,
        add_special_tokens: bool = True,
    ) -> list[dict[str, Any]]:
        """Returns a text with each hypothesis: arrays `(1, seq)`, `candidate_label`, `sequence`."""
        check_text(inputs)
        if not inputs:
            raise InputError("expected a non-empty text, found an empty one")
        return [
            {
                **self.encoded(
                    inputs,
                    hypothesis,
                    truncation="only_first" if truncation is True else truncation,
                    max_length=max_length,
                    add_special_tokens=add_special_tokens,
                ),
                "candidate_label": label,
                "sequence": inputs,
            }
            for label, hypothesis in _hypotheses(candidate_labels, hypothesis_template)
        ]

    def postprocess(
        self, outputs: Sequence[Arrays], *, multi_label: bool = False
    ) -> dict[str, Any]:
        """Returns the labels with their scores, given the `logits` `(1, labels)` of each."""
        logits = np.concatenate([self.logits(output) for output in outputs])
        entailment = self._entailment()
        if flag("multi_label", multi_label) or len(logits) == 1:
            contradiction = -1 if entailment == 0 else 0
            scores = softmax(logits[:, [contradiction, entailment]], axis=-1)[:, 1]
        else:
            scores = softmax(logits[:, entailment])
        order = np.argsort(scores)[::-1].tolist()
        labels = [output["candidate_label"] for output in outputs]
        return {
            "sequence": outputs[0]["sequence"],
            "labels": [labels[index] for index in order],
            "scores": scores[order].tolist(),
        }

    def _entailment(self) -> int:
        names = self.model.config.label2id
        for name, label in names.items():
            if name.lower().startswith("entail"):
                return label
        found = ", ".join(names)
        raise InputError(
            f"model: {self.task} needs a label whose name begins with 'entail', found "
            f"{shown(found)}; name the labels of the model with id2label"
        )


def _hypotheses(labels: object, template: object) -> list[tuple[str, str]]:
    """Returns each label and its hypothesis."""
    if labels is None:
        raise InputError("candidate_labels: expected one or more labels, found none")
    if isinstance(labels, str):
        labels = [label.strip() for label in labels.split(",") if label.strip()]
    found = text_list("candidate_labels", labels)
    if not found:
        raise InputError("candidate_labels: expected one or more labels, found none")
    check_text(template, "hypothesis_template")
    try:
        hypotheses = [str(template).format(label) for label in found]
    except (LookupError, ValueError, AttributeError) as reason:
        raise InputError(
            f"hypothesis_template: expected a text with {{}} for the label, found "
            f"{shown(template)} ({reason})"
        ) from None
    if hypotheses[0] == template:
        raise InputError(
            f"hypothesis_template: expected a text with {{}} for the label, found {shown(template)}"
        )
    return list(zip(found, hypotheses, strict=True))
