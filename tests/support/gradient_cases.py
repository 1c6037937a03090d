"""The functions whose gradients are compared with PyTorch's, each beside its counterpart."""

from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import gradients
import losses
import references
from gradients import BATCH, MASK, SEQ, Case
from minibert import pooling, scratch, train
from minibert.embedding.modules import Dense, Normalize
from minibert.nn import layers
from minibert.nn.attention import attend, attention_mask_to_bool, causal_mask, split_heads
from minibert.nn.tree import Structure, parameters
from minibert.train.lora import adapter as adapters

F = torch.nn.functional


def normal(**shapes: Any) -> Any:
    """Draws parameters; a shape is a function of the width."""
    return lambda draw, width: {name: draw.normal(size=s(width)) for name, s in shapes.items()}


def masked(draw, width):
    return {"mask": MASK}


# Poolings, beside sentence-transformers' module.


def theirs_pooled(*modes: str, prompt_length: int = 0) -> Any:
    def pooled(hidden, arrays, constants):
        modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
        module = modules.Pooling(hidden.shape[-1], modes, include_prompt=False)
        features = {
            "token_embeddings": hidden.clone(),
            "attention_mask": constants["mask"].long(),
            "prompt_length": prompt_length,
        }
        return module(features)["sentence_embedding"]

    return pooled


def several_pooled(*modes: str, prompt_length: int = 0) -> Case:
    return Case(
        lambda h, a, c: pooling.pool(h, c["mask"], modes, prompt_length),
        theirs_pooled(*modes, prompt_length=prompt_length),
        constants=masked,
    )


def one_pooled(mode: str) -> Case:
    return Case(
        lambda h, a, c: pooling.POOLINGS[mode](h, c["mask"]), theirs_pooled(mode), constants=masked
    )


STATES = (1, 2, 3, 4, 5)  # factors, for want of layers


def of_states(h, a, c):
    states = [h * factor for factor in STATES]
    return jnp.concatenate([choose(states) for choose in pooling.LAYERS.values()], axis=-1)


def theirs_of_states(h, a, c):
    states = [h * factor for factor in STATES]
    four = sum(states[-4:])
    return torch.cat([states[-1], four / 4, four, *states[-4:]], dim=-1)


POOLINGS = {
    "max": one_pooled("max"),
    "all poolings": several_pooled(*pooling.POOLINGS),
    "all behind a prompt": several_pooled(*pooling.POOLINGS, prompt_length=2),
    "choices of layers": Case(of_states, theirs_of_states),
    "second last token": Case(
        lambda h, a, c: pooling.token(h, c["mask"], -2),
        lambda h, a, c: h[range(BATCH), [9, 5, 9]],
        constants=masked,
    ),
    "Normalize": Case(
        lambda h, a, c: Normalize()(h[:, 0]), lambda h, a, c: F.normalize(h[:, 0], dim=-1)
    ),
}

# Layers, beside torch.nn.functional.

SHAPES: dict[str, Any] = {"rngs": None, "dtype": None, "param_dtype": jnp.float32}


def module(make: Any, theirs: Any, constants: Any = gradients.nothing, call: Any = None) -> Case:
    """A module of ours, made for a width, whose parameters are drawn."""
    call = call or (lambda module, h, c: module(h))

    def ours(h, arrays, c):
        return call(Structure(make(h.shape[-1])).build(arrays), h, c)

    def shapes(draw, width):
        return {path: draw.normal(size=a.shape) for path, a in parameters(make(width)).items()}

    return Case(ours, theirs, shapes, constants)


def ids(draw, width):
    return {"ids": draw.integers(0, 7, (BATCH, SEQ))}


def tied_decoder(width):
    return layers.TiedLinear(width, 7, tied=True, stddev=1.0, **SHAPES)


def merged(h, a, c):
    kernel = c["linear.kernel"] + 2.0 * a["linear.lora_A"] @ a["linear.lora_B"]
    return h[:, 0] @ kernel + c["linear.bias"]


def adapted(h, a, c):
    dense = Dense(h.shape[-1], 7, activation="linear", rngs=None)
    lora = train.LoRA(r=3, lora_alpha=6, target_modules=["linear"])
    combine = adapters.combiner(dense, lora)
    factors = {path: array for path, array in a.items() if "lora" in path}
    return Structure(dense).build(combine(factors, c))(h[:, 0])


def linear_arrays(draw, width):
    return {"linear.kernel": draw.normal(size=(width, 7)), "linear.bias": draw.normal(size=7)}


LAYERS = {
    "Embed": module(
        lambda width: layers.Embed(7, width, padding_idx=3, stddev=1.0, **SHAPES),
        lambda h, a, c: h * F.embedding(c["ids"], a["embedding"], padding_idx=3),
        ids,
        lambda module, h, c: h * module(c["ids"]),
    ),
    "Linear": module(
        lambda width: layers.Linear(width, 7, stddev=1.0, **SHAPES),
        lambda h, a, c: h @ a["kernel"] + a["bias"],
    ),
    "Conv1D": module(
        lambda width: layers.Conv1D(width, 7, use_bias=False, stddev=1.0, **SHAPES),
        lambda h, a, c: h @ a["kernel"],
    ),
    "TiedLinear": Case(
        lambda h, a, c: tied_decoder(h.shape[-1])(h, a["table"], a["bias"]),
        lambda h, a, c: F.linear(h, a["table"], a["bias"]),
        normal(table=lambda width: (7, width), bias=lambda width: 7),
    ),
    "LayerNorm": module(
        lambda width: layers.LayerNorm(width, epsilon=1e-5, **SHAPES),
        lambda h, a, c: F.layer_norm(3 + h, h.shape[-1:], a["scale"], a["bias"], 1e-5),
        call=lambda module, h, c: module(3 + h),
    ),
    "LoRA": Case(
        adapted,
        merged,
        normal(
            **{"linear.lora_A": lambda width: (width, 3), "linear.lora_B": lambda width: (3, 7)}
        ),
        linear_arrays,
    ),
    "scratch softmax": Case(
        lambda h, a, c: scratch.softmax(h), lambda h, a, c: torch.softmax(h, dim=-1)
    ),
    "scratch attention": Case(
        lambda h, a, c: scratch.attention(h, h, h, mask=scratch.causal_mask(SEQ)).context,
        lambda h, a, c: F.scaled_dot_product_attention(h, h, h, is_causal=True, scale=1.0),
    ),
}

# Attention, beside PyTorch's softmax of masked scores.

FULL = np.random.default_rng(0).random((BATCH, SEQ, SEQ)) < 0.6
FULL[1, 2] = False  # a query that may look nowhere
KEPT = np.random.default_rng(1).random((BATCH, 1, SEQ, SEQ)) < 0.8  # for all heads alike
SEEN = {
    "all": None,
    "padding": attention_mask_to_bool(jnp.asarray(MASK)),
    "causal": causal_mask(SEQ, SEQ),
    "causal and padding": attention_mask_to_bool(jnp.asarray(MASK)) & causal_mask(SEQ, SEQ),
    "of each query": attention_mask_to_bool(jnp.asarray(FULL)),
}
SEEN = {name: None if mask is None else np.asarray(mask) for name, mask in SEEN.items()}


def heads(width: int) -> int:
    return 3 if width % 3 == 0 else 2


def attention(seen: str = "all", **options: Any) -> Case:
    """Of queries, keys and values that a layer computes; with `weights`, they count too."""
    scale, dropped = options.get("scale"), options.get("dropout", False)
    factors = options.get("head_mask", False)
    weighed, biased = options.get("weights", False), options.get("bias", False)

    def ours(h, a, c):
        count = heads(h.shape[-1])
        parts = [split_heads(part, count) for part in (h, h * a["key"], h + a["value"])]
        context, weights = attend(
            *parts,
            scale=scale,
            mask=c.get("seen"),
            bias=((h * a["bias"]) @ h.mT)[:, None] if biased else None,
            head_mask=jnp.stack([a["heads"][0]] * count) if factors else None,
            dropout=(lambda w: jnp.where(c["kept"], w / 0.8, 0)) if dropped else None,
            sharded=options.get("sharded", False),
        )
        return jnp.concatenate([context, weights], axis=-1) if weighed else context

    def theirs(h, a, c):
        count = heads(h.shape[-1])
        parts = (h, h * a["key"], h + a["value"])
        query, key, value = (part.unflatten(-1, (count, -1)).transpose(1, 2) for part in parts)
        scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
        if biased:
            scores = scores + ((h * a["bias"]) @ h.mT)[:, None]
        if "seen" in c:
            scores = scores.masked_fill(~c["seen"], torch.finfo(scores.dtype).min)
        weights = torch.softmax(scores, dim=-1)
        if dropped:
            weights = torch.where(c["kept"], weights / 0.8, 0)
        if factors:
            weights = weights * a["heads"][0]
        context = weights @ value
        return torch.cat([context, weights], dim=-1) if weighed else context

    shapes = {"key": lambda width: width, "value": lambda width: width}
    given = {} if SEEN[seen] is None else {"seen": SEEN[seen]}
    given |= {"kept": KEPT} if dropped else {}
    shapes |= {"heads": lambda width: 1} if factors else {}
    shapes |= {"bias": lambda width: width} if biased else {}
    return Case(ours, theirs, normal(**shapes), lambda draw, width: given)


ATTENTION = {
    "attention": attention(),
    "attention, padding, scaled": attention("padding", scale=0.3),
    "attention, causal, heads weighed": attention("causal", head_mask=True),
    "attention, causal and padding, dropout": attention("causal and padding", dropout=True),
    "attention, padding, sharded": attention("padding", sharded=True),
    "attention, causal and padding, a bias": attention("causal and padding", bias=True),
    "attention, of each query, weights too": attention("of each query", weights=True),
}

# Losses of a layer's outputs as scores, each beside torch's own.


def loss(objective: Any, theirs: Any, labels: Any, outputs: Any = None) -> Case:
    """A number: an objective of scores that are cut out of hidden states."""
    outputs = outputs or (lambda h: {"logits": h})

    def ours(h, a, c):
        given = SimpleNamespace(**outputs(h))
        chosen = objective if isinstance(objective, train.Objective) else objective(h)
        return chosen(given, {"input_ids": jnp.ones((BATCH, SEQ), int), **c})

    return Case(ours, lambda h, a, c: theirs(outputs(h), c), constants=labels)


def classes(*shape: int, below: int = 7, name: str = "labels", real: bool = False) -> Any:
    def labels(draw, width):
        found = draw.integers(0, below, shape)
        found[0] = 3 % below
        if len(shape) == 2 and not real:
            found[:, ::3] = losses.IGNORED
        return {name: found.astype(np.float64) if real else found}

    return labels


def both(*kinds: Any) -> Any:
    return lambda draw, width: {k: v for kind in kinds for k, v in kind(draw, width).items()}


def numbers(draw, width):
    return {"labels": draw.normal(size=(BATCH, 5))}


def teacher(draw, width):
    return {"teacher_logits": draw.normal(size=(BATCH, width))}


def config(kind: str, labels: int = 5) -> Any:
    return SimpleNamespace(problem_type=kind, num_labels=labels)


def spans(draw, width):
    return {"start_positions": np.array([0, 9, 20]), "end_positions": np.array([3, -2, 6])}


def first(h):
    return {"logits": h[:, 0]}


def five(h):
    return {"logits": h[:, 0, :5]}


def taught(h):
    return train.distillation(
        train.classification(config("single_label_classification", h.shape[-1])),
        temperature=references.T,
        alpha=references.ALPHA,
    )


def continuation_labels(draw, width):
    return {"input_ids": draw.integers(0, 7, (BATCH, SEQ))}


def halves(outputs, c):
    each = F.cross_entropy(outputs["logits"].mT, c["input_ids"], reduction="none")
    half = SEQ // 2
    return (each[:, :half].mean() + each[:, half:].mean()) / 2


def together(*cases: Case) -> Case:
    """Several numbers, of losses that are choices among the same labels."""
    return Case(
        lambda h, a, c: jnp.stack([case.ours(h, a, c) for case in cases]),
        lambda h, a, c: torch.stack([case.theirs(h, a, c) for case in cases]),
        constants=cases[0].constants,
    )


def row_loss(objective: Any, factor: int) -> Case:
    return loss(
        objective,
        references.chosen,
        classes(BATCH, below=2),
        lambda h: {"logits": factor * h[:, 0]},
    )


LOSSES = {
    "causal_lm": loss(train.causal_lm, references.causal, classes(BATCH, SEQ)),
    "masked_lm, token_classification": together(
        loss(train.masked_lm, references.chosen, classes(BATCH, SEQ)),
        loss(train.token_classification, references.chosen, None, lambda h: {"logits": 2 * h}),
    ),
    "next_sentence, multiple_choice, one label": together(
        row_loss(train.next_sentence, 1),
        row_loss(train.multiple_choice, 2),
        row_loss(train.classification(config("single_label_classification")), 3),
    ),
    "pretraining": loss(
        train.pretraining,
        lambda o, c: (
            references.chosen({"logits": o["prediction_logits"]}, c)
            + F.cross_entropy(o["seq_relationship_logits"], c["next_sentence_label"])
        ),
        both(classes(BATCH, SEQ), classes(BATCH, below=2, name="next_sentence_label")),
        lambda h: {"prediction_logits": h, "seq_relationship_logits": h[:, 0, :2]},
    ),
    "double_heads": loss(
        train.double_heads,
        lambda o, c: references.causal(o, c) + F.cross_entropy(o["mc_logits"], c["mc_labels"]),
        both(classes(BATCH, SEQ), classes(BATCH, name="mc_labels")),
        lambda h: {"logits": h, "mc_logits": h[:, 0]},
    ),
    "question_answering": loss(
        train.question_answering,
        references.spans,
        spans,
        lambda h: {"start_logits": h[:, :, 0], "end_logits": h[:, :, 1]},
    ),
    "several labels": loss(
        train.classification(config("multi_label_classification")),
        lambda o, c: F.binary_cross_entropy_with_logits(o["logits"], c["labels"]),
        classes(BATCH, 5, below=2, real=True),
        five,
    ),
    "regression": loss(
        train.classification(config("regression")),
        lambda o, c: F.mse_loss(o["logits"], c["labels"]),
        numbers,
        five,
    ),
    "distillation": loss(taught, references.taught, both(classes(BATCH), teacher), first),
    "continuation": loss(train.continuation(6), halves, continuation_labels),
}


# Contrastive training, of a model that looks its states up and sends them through the layer.


def ranked(pooled: str) -> Case:
    objective = train.contrastive(pooling=pooled, scale=7.0)

    def model(h):
        class States:
            config = None

            def __call__(self, input_ids, attention_mask=None, rngs=None):
                return SimpleNamespace(last_hidden_state=h.reshape(-1, h.shape[-1])[input_ids])

        return States()

    def ours(h, a, c):
        batch = {f"{side}_{name}": c[f"{side}_{name}"] for side in SIDES for name in NAMES}
        return objective(objective.apply(model(h), batch, None), batch)

    def theirs(h, a, c):
        sides = []
        for side in SIDES:
            states = h.flatten(0, 1)[c[f"{side}_input_ids"]]
            sides.append(
                theirs_pooled(pooled)(states, a, {"mask": c[f"{side}_attention_mask"] > 0})
            )
        anchors, positives = (F.normalize(side, dim=-1) for side in sides)
        return F.cross_entropy(7.0 * anchors @ positives.T, torch.arange(BATCH))

    def constants(draw, width):
        # no state twice in a text: of equal maxima, libraries may choose different ones
        order = [draw.permutation(BATCH * SEQ).reshape(BATCH, SEQ) for _ in SIDES]
        found = dict(zip([f"{side}_input_ids" for side in SIDES], order, strict=True))
        return found | {f"{side}_attention_mask": MASK.astype(int) for side in SIDES}

    return Case(ours, theirs, constants=constants)


SIDES, NAMES = ("anchor", "positive"), ("input_ids", "attention_mask")
RANKED = {f"contrastive, {mode}": ranked(mode) for mode in ("mean", "max")}

CASES = POOLINGS | LAYERS | ATTENTION | LOSSES | RANKED
