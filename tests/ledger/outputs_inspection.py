"""Inspection: submodules, analyses, plots, models from scratch, poolings."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from .models import called, drawn, filled, inputs
from .surface import analysis, capture, minibert, plots, pooling, scratch

LETTERS = list("abcdefg")


def states(dtype: str = "float32") -> tuple[Any, Any]:
    """Hidden states `(2, 5, 6)` by numpy, and a mask."""
    draw = np.random.default_rng(1).standard_normal((5, 2, 5, 6))
    mask = np.array([[1, 1, 1, 1, 1], [0, 1, 1, 0, 0]], bool)
    return jnp.asarray(draw, dtype), jnp.asarray(mask)


def poolings(folder: pathlib.Path) -> Any:
    found: dict[str, Any] = {}
    for dtype in ("float32", "float64"):
        with jax.enable_x64(True):
            layers, mask = states(dtype)
            kinds = {name: pool(layers[0], mask) for name, pool in pooling.POOLINGS.items()}
            kinds |= {name: mix(list(layers)) for name, mix in pooling.LAYERS.items()}
            kinds["pool"] = pooling.pool(layers[0], mask, ["cls", "weightedmean"], 1)
            kinds["token"] = pooling.token(layers[0], mask, -2)
            kinds["positions"] = pooling.positions(mask)
            one = (layers[0], mask)
            kinds["named"] = [
                *(pooling.cls(*one), pooling.lasttoken(*one), pooling.maximum(*one)),
                *(pooling.mean(*one), pooling.mean_sqrt_len_tokens(*one)),
                *(pooling.weightedmean(*one), pooling.last_layer(list(layers))),
                *(pooling.mean_of_last_four(list(layers)), pooling.sum_of_last_four(list(layers))),
                pooling.last_four_concatenated(list(layers)),
            ]
            summed = lambda tokens: pooling.maximum(tokens, mask).sum()  # noqa: B023, E731
            kinds["gradient"] = jax.jit(jax.grad(summed))(layers[0])
            found[dtype] = kinds
    return found


def submodules(folder: pathlib.Path) -> Any:
    model, given = drawn("BertForMaskedLM"), inputs("BertForMaskedLM")
    paths = ["bert.encoder.layer.*.attention.self", "cls.predictions.transform"]
    inner = minibert.captured(model, paths, **given)
    silent = {"bert.encoder.layer.1.attention.output.dense": lambda found: 0 * found}
    changed = minibert.captured(model, (), **given, replace=silent)
    return {
        "submodules": [
            f"{path}: {type(one).__name__}" for path, one in capture.submodules(model).items()
        ],
        "inner": dict(inner),
        "outputs": inner.outputs,
        "changed": changed.outputs,
    }


def analyses(folder: pathlib.Path) -> Any:
    bert, given = drawn("BertModel"), inputs("BertModel")
    mask = given["attention_mask"]
    out = called(bert, given, output_hidden_states=True, output_attentions=True)
    pooled = analysis.pool_layers(out.hidden_states, mask)
    words, vectors = bert.embeddings.word_embeddings.embedding[...], np.asarray(pooled[-1])
    gpt2, asked = drawn("GPT2LMHeadModel"), inputs("GPT2LMHeadModel")
    return {
        "pooled": pooled,
        "first": analysis.pool_layers(out.hidden_states, mask, "cls"),
        "by layer": analysis.embed_by_layer(bert, given, batch_size=1),
        "softmax": analysis.softmax_similarity(vectors, vectors, 0.5),
        "matrices": analysis.similarity_matrices(vectors),
        "static": analysis.static_to_layers(pooled),
        "steps": analysis.layer_to_layer(pooled),
        "numbers": analysis.describe(vectors),
        "token": analysis.token_through_layers(out.hidden_states, 0, 2),
        "attention": analysis.attention_statistics(out.attentions, mask),
        "last": [analysis.last_block(bert), analysis.last_block(gpt2)],
        "lens": analysis.logit_lens(gpt2, **asked),
        "knocked out": analysis.knocked_out(bert, lambda o: o.pooler_output.sum(), **given),
        "nearest": [[w, s] for w, s in analysis.nearest_words(words, words[5], Letters(), 3)],
    }


class Letters:
    """A tokenizer that knows names of ids."""

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [f"word {number}" for number in ids]


def drawing(figure: Any) -> Any:
    """What stands in a figure."""
    found: dict[str, Any] = {"size": [float(n) for n in figure.get_size_inches()]}
    for number, axes in enumerate(figure.get_axes()):
        lines = [np.asarray(line.get_ydata(), float) for line in axes.get_lines()]
        found[f"axes {number}"] = {
            "words": [axes.get_title(), axes.get_xlabel(), axes.get_ylabel(), axes.get_yscale()],
            "names": [label.get_text() for label in axes.get_yticklabels()][:8],
            "texts": [text.get_text() for text in axes.texts][:8],
            "images": [np.asarray(image.get_array(), float) for image in axes.get_images()],
            "lines": lines,
            "labels": [str(line.get_label()) for line in axes.get_lines()],
            "patches": [p.get_width() for p in axes.patches if hasattr(p, "get_width")],
            "collections": len(axes.collections),
        }
    return found


def pictures(folder: pathlib.Path) -> Any:
    draw = np.random.default_rng(2)
    square, maps = draw.standard_normal((7, 7)), draw.random((5, 7, 7))
    errors = {"BertModel": {"ours": [1e-7, 2e-7, 0], "torch": [1e-7, 3e-7, 1e-7]}}
    gaps = [{"text": "a [MASK]", "words": {"b": 0.5, "c": 0.25}}]
    history = [{"step": n, "loss": 1 / n} for n in range(1, 60)] + [{"step": 60, "eval_loss": 0.1}]
    words = {"title": "A", "xlabel": "x", "ylabel": "y"}
    made = {
        "matrix": plots.matrix(square, LETTERS, title="A", label="b", numbers=True),
        "violins": plots.violins(square[:3], LETTERS[:3], **words),
        "attention": plots.attention_maps(maps, LETTERS, title="A"),
        "lines": plots.lines({"a": [1, 2, 4], "b": [3, 2, 1]}, **words, start=1, log=True),
        "parity": plots.parity(errors, 2e-5),
        "words": plots.words(gaps, title="A"),
        "loss": plots.loss_curve(history),
    }
    return {name: drawing(figure) for name, figure in made.items()}


def parts(folder: pathlib.Path) -> Any:
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(4).standard_normal((2, 5, 6)))
        options: dict[str, Any] = {"rngs": nnx.Rngs(0), "param_dtype": jnp.float64}
        alone = filled(scratch.SelfAttention(6, 4, qkv_bias=True, **options))
        causal = filled(scratch.CausalAttention(6, 4, dropout=0.5, **options))
        several = filled(scratch.MultiHeadAttention(6, 4, num_heads=2, **options))
        mask = scratch.causal_mask(5)
        return {
            "softmax": [scratch.softmax(x), scratch.softmax_naive(x)],
            "attention": scratch.attention(x, x, x, scale=0.5, mask=mask),
            "bare": scratch.calculate_attention(x),
            "linear": scratch.linear(x, x[0, :4].T, x[0, 0, :4]),
            "relu": scratch.relu(x),
            "alone": alone.attend(x),
            "causal": causal.eval()(x),
            "dropped": causal.train()(x, nnx.Rngs(dropout=1)),
            "several": several.attend(x),
            "mask": mask,
        }


def toys(folder: pathlib.Path) -> Any:
    config = scratch.ToyConfig(vocab_size=11, hidden_size=8, positions=9, num_labels=3)
    ids = np.array([[1, 2, 3, 4], [5, 6, 0, 0]])
    writer = filled(scratch.ToyCausalLM(config, rngs=nnx.Rngs(0))).eval()
    agent = filled(scratch.ToyAgent(config, body=writer.body, rngs=nnx.Rngs(0))).eval()
    options: dict[str, Any] = {"rngs": nnx.Rngs(0), "dtype": None, "param_dtype": jnp.float32}
    layer = filled(scratch.ToyLayer(config, **options)).eval()
    body = filled(scratch.ToyBody(config, **options)).eval()
    return {
        "config": repr(config),
        "logits": writer(ids, ids > 0).logits,
        "actions": agent(ids, ids > 0).logits,
        "layer": layer(body(ids)),
        "fresh": scratch.ToyCausalLM(config, rngs=nnx.Rngs(1))(ids).logits,
        "continued": scratch.continued(writer, [1, 2], 5, window=4),
    }


CASES = (poolings, submodules, analyses, pictures, parts, toys)
