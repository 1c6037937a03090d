"""The facts of XLM-RoBERTa and of CamemBERT, which have RoBERTa's modules under other names."""

import dataclasses
from typing import Any

import facts_roberta
from facts import Facts, Planting
from facts_roberta import CLASSIFIER_HEAD, LM_HEAD, POSITIONS


def renamed(value: Any, prefix: str) -> Any:
    """Returns a fact of RoBERTa with the names of another family's classes."""
    if isinstance(value, str):
        return value.replace("Roberta", prefix)
    if isinstance(value, tuple):
        return tuple(renamed(one, prefix) for one in value)
    return value


def copy(model_type: str, prefix: str) -> Facts:
    """Returns the facts of a family that has RoBERTa's modules."""
    roberta = facts_roberta.FACTS
    return dataclasses.replace(
        roberta,
        model_type=model_type,
        classes={renamed(name, prefix): config for name, config in roberta.classes.items()},
        planted=(
            Planting(
                renamed(roberta.words, prefix),
                facts_roberta.planted(POSITIONS | LM_HEAD),
            ),
            Planting(
                renamed(facts_roberta.CLASSIFIER, prefix),
                facts_roberta.planted(CLASSIFIER_HEAD),
                {"num_labels": 5},
            ),
        ),
        tensors=dataclasses.replace(roberta.tensors, name=renamed(roberta.tensors.name, prefix)),
        heads={fault: renamed(row, prefix) for fault, row in roberta.heads.items()},
        **{
            name: renamed(getattr(roberta, name), prefix)
            for name in ("words", "switched", "labelled", "wrapped", "choices")
        },
    )


FACTS = copy("xlm-roberta", "XLMRoberta")
CAMEMBERT = copy("camembert", "Camembert")
