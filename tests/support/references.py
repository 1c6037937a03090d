"""References of the objectives: the losses of transformers and sentence-transformers.

Each is a function of a batch of tensors and of a PyTorch model or its outputs.
"""

from typing import Any

import pytest
import torch

from losses import IGNORED

F = torch.nn.functional

FILLER = 90
T, ALPHA = 3.0, 0.7


def causal(outputs, batch):
    """Returns the cross-entropy of next tokens, from logits `(batch, seq, classes)`."""
    return F.cross_entropy(
        outputs["logits"][:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
    )


def chosen(outputs, batch):
    """Returns the cross-entropy of labels that are not shifted, from logits `(…, classes)`."""
    return F.cross_entropy(outputs["logits"].flatten(0, -2), batch["labels"].flatten())


def spans(outputs, batch):
    """Returns the mean of the losses of start and end; a position past the end is ignored."""
    seq = outputs["start_logits"].shape[1]
    places = [batch[f"{end}_positions"].clamp(0, seq) for end in ("start", "end")]
    scores = [outputs[f"{end}_logits"] for end in ("start", "end")]
    pairs = zip(scores, places, strict=True)
    return sum(F.cross_entropy(score, place, ignore_index=seq) for score, place in pairs) / 2


def taught(outputs, batch):
    """Returns distillation at temperature `T` with weight `ALPHA`, plus cross-entropy."""
    soft = F.kl_div(
        F.log_softmax(outputs["logits"] / T, dim=-1),
        F.softmax(batch["teacher_logits"] / T, dim=-1),
        reduction="batchmean",
    )
    return ALPHA * T**2 * soft + (1 - ALPHA) * chosen(outputs, batch)


def hf(model: Any, batch: dict[str, Any]) -> Any:
    """Returns the loss that transformers' model computes."""
    return model(**batch).loss


def double_loss(model, batch):
    outputs = model(**batch)
    return outputs.loss + outputs.mc_loss


def continued(model, batch):
    """Returns the mean over positions of full windows; with padding, over the halves' means."""
    ids, mask, half = batch["input_ids"], batch["attention_mask"], batch["input_ids"].shape[1] // 2
    filled = torch.cat([ids[:, :half], torch.full_like(ids[:, half:], FILLER)], dim=1)
    logits = model(**batch | {"input_ids": filled}).logits
    losses = F.cross_entropy(logits.transpose(1, 2), ids, reduction="none")
    halves = [slice(None, half), slice(half, None)]
    return sum(losses[:, part][mask[:, part] == 1].mean() for part in halves) / 2


def distilled(model, batch):
    """Returns Hinton's loss: torch's KLDivLoss at targets, plus transformers' loss."""
    teacher = batch.pop("teacher_logits")
    outputs = model(**batch)
    labels, logits = batch["labels"], outputs.logits
    if "GPT2LM" in type(model).__name__:
        labels, logits, teacher = labels[:, 1:], logits[:, :-1], teacher[:, :-1]
    at = labels != IGNORED
    soft = F.kl_div(
        F.log_softmax(logits[at] / T, dim=-1),
        F.softmax(teacher[at] / T, dim=-1),
        reduction="batchmean",
    )
    return ALPHA * T**2 * soft + (1 - ALPHA) * outputs.loss


def ranking(scale: float = 20.0, pooling: str = "mean"):
    def loss(model, batch):
        library = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
        modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
        pool = modules.Pooling(model.config.hidden_size, pooling_mode=pooling)

        def embed(given):
            tokens = model(**given).last_hidden_state
            features = {"token_embeddings": tokens, "attention_mask": given["attention_mask"]}
            return pool(features)["sentence_embedding"]

        columns = []
        for prefix in ("anchor_", "positive_", "negative_"):
            given = {k.removeprefix(prefix): v for k, v in batch.items() if k.startswith(prefix)}
            if given and given["input_ids"].ndim == 3:
                count = given["input_ids"].shape[1]
                columns += [embed({k: v[:, n] for k, v in given.items()}) for n in range(count)]
            elif given:
                columns.append(embed(given))
        ranked = library.MultipleNegativesRankingLoss(torch.nn.Identity(), scale=scale)
        return ranked.compute_loss_from_embeddings(columns, torch.tensor(0))

    return loss
