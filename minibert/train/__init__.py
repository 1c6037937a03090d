"""Training: objectives, optimisers, LoRA, the trainer, the training loop and checkpoints."""

from minibert.train.checkpoints import Checkpoints, restore
from minibert.train.loop import Evaluation, Result, fit
from minibert.train.lora.adapter import Adapter, attach, init_adapter, merge
from minibert.train.lora.combination import weighted_adapter
from minibert.train.lora.config import LoRA
from minibert.train.lora.files import load_adapter, save_adapter
from minibert.train.lora.loading import load_merged
from minibert.train.memory import keep_memory
from minibert.train.objectives.base import (
    Objective,
    causal_lm,
    continuation,
    masked_lm,
    pretraining,
    sentence_order_pretraining,
)
from minibert.train.objectives.contrastive import contrastive
from minibert.train.objectives.distillation import distillation, with_teacher
from minibert.train.objectives.electra import ElectraPair, electra_pretraining
from minibert.train.objectives.heads import (
    classification,
    double_heads,
    multiple_choice,
    next_sentence,
    question_answering,
    replaced_tokens,
    token_classification,
    weighted,
)
from minibert.train.optimizers import adamw, learning_rate, schedule
from minibert.train.trainer import Trainer
from minibert.train.wrappers import averaged, layerwise

__all__ = [
    "Adapter",
    "Checkpoints",
    "ElectraPair",
    "Evaluation",
    "LoRA",
    "Objective",
    "Result",
    "Trainer",
    "adamw",
    "attach",
    "averaged",
    "causal_lm",
    "classification",
    "continuation",
    "contrastive",
    "distillation",
    "double_heads",
    "electra_pretraining",
    "fit",
    "init_adapter",
    "keep_memory",
    "layerwise",
    "learning_rate",
    "load_adapter",
    "load_merged",
    "masked_lm",
    "merge",
    "multiple_choice",
    "next_sentence",
    "pretraining",
    "question_answering",
    "replaced_tokens",
    "restore",
    "save_adapter",
    "schedule",
    "sentence_order_pretraining",
    "token_classification",
    "weighted",
    "weighted_adapter",
    "with_teacher",
]
