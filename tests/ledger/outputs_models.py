"""Models: every class, input and switch; caches; dropout; files; compiled and exported."""

import hashlib
import json
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh

from .models import BERT, GPT2, called, drawn, inputs, joined, parameters_of
from .surface import assets, minibert, parameters

EVERYTHING = {"output_hidden_states": True, "output_attentions": True}
ACTIVATIONS = (
    "gelu gelu_python gelu_10 gelu_new gelu_pytorch_tanh gelu_python_tanh gelu_accurate gelu_fast "
    "quick_gelu hardswish laplace leaky_relu linear mish relu relu2 relu6 sigmoid silu swish "
    "sqrtsoftplus tanh prelu xielu"
).split()
SWITCHES: dict[str, dict[str, Any]] = {
    "inverse": {"scale_attn_by_inverse_layer_idx": True},
    "unscaled": {"scale_attn_weights": False},
    "inner": {"n_inner": 50},
    "both ways": {"is_causal": False},
    "epsilon": {"layer_norm_epsilon": 1e-3},
}


def double_precision(folder: pathlib.Path) -> Any:
    found = {}
    with jax.enable_x64(True):
        for name in BERT + GPT2:
            model = drawn(name, dtype="float64")
            found[name] = called(model, inputs(name), **EVERYTHING)
    return found


def single_precision(folder: pathlib.Path) -> Any:
    return {name: called(drawn(name), inputs(name)) for name in BERT + GPT2}


def half_precision(folder: pathlib.Path) -> Any:
    names = ("BertModel", "GPT2LMHeadModel")
    return {name: called(drawn(name, dtype="bfloat16"), inputs(name)) for name in names}


def without_a_program(folder: pathlib.Path) -> Any:
    """Operation by operation, with lists and positional arguments."""
    given = inputs("BertModel")
    found = drawn("BertModel")(given["input_ids"].tolist(), given["attention_mask"])
    return {"by attribute": found.last_hidden_state, "by number": found[0], "names": list(found)}


def bert_inputs(folder: pathlib.Path) -> Any:
    with jax.enable_x64(True):
        model, given = drawn("BertModel", dtype="float64"), inputs("BertModel")
        ids, mask = given["input_ids"], given["attention_mask"]
        states = model.embeddings.word_embeddings(ids)
        square = np.tril(np.ones((2, 7, 7), np.int32)) * mask[:, None]
        cases: dict[str, dict[str, Any]] = {
            "inputs_embeds": {"inputs_embeds": states, "attention_mask": mask},
            "mask by query": {"input_ids": ids, "attention_mask": square},
            "position_ids": {"input_ids": ids, "position_ids": np.arange(7)[None, ::-1]},
            "head_mask": {"input_ids": ids, "head_mask": np.array([[1.0, 0, 0.5], [0, 1, 1]])},
            "left": {"input_ids": ids[:, ::-1], "attention_mask": mask[:, ::-1]},
        }
        return {name: called(model, given) for name, given in cases.items()}


def gpt2_inputs(folder: pathlib.Path) -> Any:
    with jax.enable_x64(True):
        model, given = drawn("GPT2LMHeadModel", dtype="float64"), inputs("GPT2LMHeadModel")
        ids, mask = given["input_ids"], given["attention_mask"]
        restarting = np.array([[0, 1, 2, 0, 1, 2, 3]] * 2)
        last = called(model, given, logits_to_keep=2)
        text = called(model, {"input_ids": ids, "position_ids": restarting}, use_cache=False)
        segments = called(model, {**given, "token_type_ids": ids % 3})
        left = called(model, {"input_ids": ids[:, ::-1], "attention_mask": mask[:, ::-1]})
        return {"last": last, "texts in a row": text, "segments": segments, "left": left}


def activations(folder: pathlib.Path) -> Any:
    found = {}
    with jax.enable_x64(True):
        for name in ACTIVATIONS:
            changed = {"hidden_act": name, "num_hidden_layers": 1}
            model = drawn("BertModel", dtype="float64", **changed)
            found[name] = called(model, inputs("BertModel")).last_hidden_state
    return found


def switches(folder: pathlib.Path) -> Any:
    found = {}
    with jax.enable_x64(True):
        for name, changed in SWITCHES.items():
            model = drawn("GPT2Model", dtype="float64", **changed)
            found[name] = called(model, inputs("GPT2Model")).last_hidden_state
        for kind in ("last", "first", "mean", "cls_index"):
            model = drawn("GPT2DoubleHeadsModel", dtype="float64", summary_type=kind)
            found[kind] = called(model, inputs("GPT2DoubleHeadsModel")).mc_logits
        bare = drawn("BertForMaskedLM", dtype="float64", tie_word_embeddings=False)
        found["untied"] = called(bare, inputs("BertForMaskedLM")).logits
        both = drawn("BertForSequenceClassification", dtype="float64", num_labels=1)
        found["one label"] = called(both, inputs("BertForSequenceClassification")).logits
    return found


def decoders(folder: pathlib.Path) -> Any:
    """Token by token, with a cache, and with an encoder's states."""
    encoded = np.random.default_rng(3).standard_normal((2, 5, 24))
    heard = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    encoder = {"encoder_hidden_states": encoded, "encoder_attention_mask": heard}
    found: dict[str, Any] = {}
    with jax.enable_x64(True):
        for name in ("BertLMHeadModel", "GPT2LMHeadModel"):
            model = drawn(name, dtype="float64", add_cross_attention=True)
            ids = inputs(name)["input_ids"]
            first = called(model, {"input_ids": ids[:, :4], **encoder}, use_cache=True)
            then = called(
                model, {"input_ids": ids[:, 4:], "past_key_values": first.past_key_values}
            )
            cache = model.init_cache(batch_size=2, max_length=9)
            alone = called(model, {"input_ids": ids, "past_key_values": cache}, **EVERYTHING)
            turned = alone.past_key_values.rows(np.array([1, 0, 1]))
            found[name] = {"first": first.logits, "then": then.logits, "alone": alone}
            found[name] |= {"turned": turned, "sizes": [turned.batch, turned.length]}
        empty = minibert.KVCache.empty(model.config, 1, 3, jnp.float32)
    return {**found, "empty": empty}


def dropout(folder: pathlib.Path) -> Any:
    """In training mode: which keys are drawn where."""
    found = {}
    for name in ("BertForPreTraining", "GPT2DoubleHeadsModel"):
        model = drawn(name).train()
        run = jax.jit(lambda model, given, key: model(**given, rngs=nnx.Rngs(dropout=key)))
        found[name] = run(model, inputs(name), jax.random.key(5))
    return found


def initialisers(folder: pathlib.Path) -> Any:
    """Fresh parameters, by class."""
    found = {}
    for name in ("BertForPreTraining", "GPT2DoubleHeadsModel", "BertForSequenceClassification"):
        cls = getattr(minibert, name)
        found[name] = parameters_of(cls(cls.config_class.tiny(), rngs=nnx.Rngs(0)))
    return found


def texts(folder: pathlib.Path) -> Any:
    """How models print."""
    return {name: str(drawn(name)).splitlines() for name in BERT + GPT2}


def files(folder: pathlib.Path) -> Any:
    """What is written, to the byte, and what loads say of it."""
    found = {}
    for name in BERT + GPT2:
        place = folder / name
        drawn(name).save_pretrained(place)
        cls = getattr(minibert, name)
        back, info = cls.from_pretrained(place, output_loading_info=True)
        found[name] = {
            **written(place),
            "info": str(info).replace(str(folder), ""),
            "loaded": parameters_of(back),
            "class": type(minibert.load(place)).__name__,
        }
    return found


def written(folder: pathlib.Path) -> dict[str, str | list[str]]:
    """The files of a folder: JSON by line, of others a digest."""
    found: dict[str, str | list[str]] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder)).replace("/", " ")
        if path.suffix == ".json" and path.name != "tokenizer.json":
            found[name] = json.dumps(json.loads(path.read_text()), indent=1).splitlines()
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def loads(folder: pathlib.Path) -> Any:
    """A new head, other labels, other dtypes, shards."""
    drawn("BertModel").save_pretrained(folder / "base", max_shard_size="20KB")
    classifier, info = minibert.BertForSequenceClassification.from_pretrained(
        folder / "base",
        id2label={0: "a", 1: "b", 2: "c"},
        new_head=True,
        rngs=nnx.Rngs(0),
        param_dtype="bfloat16",
        output_loading_info=True,
    )
    assert isinstance(info, minibert.LoadingInfo)
    with jax.enable_x64(True):
        wide = minibert.load(folder / "base", param_dtype="float64")
    host = minibert.on_host(wide)
    return {
        "files": sorted(os.listdir(folder / "base")),
        "head": classifier.classifier.kernel[...],
        "labels": dict(classifier.config.label2id),
        "info": str(info).replace(str(folder), ""),
        "wide": parameters_of(wide),
        "host": [type(one).__name__ for one in jax.tree.leaves(host)[:1]],
    }


def embedded(folder: pathlib.Path) -> Any:
    """The models of the package, and PyTorch's outputs for them."""
    recorded = np.load(assets.RECORDED)
    found: dict[str, Any] = {"recorded": {name: recorded[name] for name in sorted(recorded)}}
    for name, place in (("bert", assets.BERT), ("gpt2", assets.GPT2)):
        model, info = minibert.load(place, output_loading_info=True)
        said = str(info).replace(place, "")
        out = called(model, inputs("GPT2Model", vocab=2000), output_hidden_states=True)
        found[name] = {"class": type(model).__name__, "info": said, "outputs": out}
    return found | {"home": os.path.basename(assets.HOME)}


def compiled(folder: pathlib.Path) -> Any:
    model, given = drawn("BertModel"), inputs("BertModel")
    fast = minibert.compiled(model).warm_up((2, 7))
    program = fast.export(platforms=["cpu", "cuda", "tpu"])
    names = ("input_ids", "attention_mask")
    back = jax.export.deserialize(program.serialize())
    return {
        "text": repr(fast),
        "outputs": fast(**given, output_hidden_states=True),
        "paths": sorted(fast.parameters),
        "same": fast.parameters.keys() == parameters.parameters(model).keys(),
        "takes": [str(one) for one in program.in_avals],
        "gives": [str(one) for one in program.out_avals],
        "platforms": list(program.platforms),
        "exported": back.call(fast.parameters, {name: given[name] for name in names}),
    }


def shardings(folder: pathlib.Path) -> Any:
    """Which dimensions are split over the devices of a plan, by path."""
    mesh = AbstractMesh((2, 4, 2), ("data", "fsdp", "tensor"))
    plan = minibert.Sharding(mesh, data=("data",), fsdp=("fsdp",), tensor=("tensor",))
    found: dict[str, Any] = {}
    for name in ("BertForPreTraining", "GPT2DoubleHeadsModel"):
        heads = {"num_attention_heads": 4}
        model = drawn(name, **heads)
        mine, arrays = plan.for_model(model), parameters.parameters(model)
        found[name] = {
            path: f"{mine.shape(path, array.shape)} {mine.spec(path, array.shape)} "
            f"{mine.used_spec(path, mine.shape(path, array.shape))}"
            for path, array in sorted(arrays.items())
            if mine.shape(path, array.shape) == array.shape
        }
    here = minibert.Sharding.of_devices(devices=jax.devices()[:1])
    drawn("GPT2Model").save_pretrained(folder / "model")
    there = minibert.load(folder / "model", sharding=here)
    return {**found, "share": list(here.share), "loaded": joined(parameters.parameters(there))}


CASES = (
    double_precision,
    single_precision,
    half_precision,
    without_a_program,
    bert_inputs,
    gpt2_inputs,
    activations,
    switches,
    decoders,
    dropout,
    initialisers,
    texts,
    files,
    loads,
    embedded,
    compiled,
    shardings,
)
