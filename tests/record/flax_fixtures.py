"""Records what the old Flax classes of transformers saved, and what they computed.

transformers 4.57.6 was the last release line that had them. Run from the repository's root, in an
environment of its own:

    pip install transformers==4.57.6 jax flax
    python tests/record/flax_fixtures.py

Writes a folder `tests/fixtures/flax_*` for each class: `config.json` and
`flax_model.msgpack` as `save_pretrained` left them, and `outputs.safetensors` with the inputs and
every output in float32; and `tests/fixtures/flax_arrays.json`, the shapes of the arrays of other
classes, by name. Every parameter is drawn anew, biases and LayerNorms too: the classes' own
initialisation would hide a dropped bias and a swapped LayerNorm.
"""

import json
import pathlib
import zlib

import jax
import numpy as np
import transformers
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save_file

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
BERT = {
    "vocab_size": 97,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 80,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
}
GPT2 = {
    "vocab_size": 97,
    "n_embd": 24,
    "n_layer": 2,
    "n_head": 3,
    "n_inner": 80,
    "n_positions": 40,
}
ALBERT = BERT | {"embedding_size": 16, "num_hidden_layers": 3, "num_hidden_groups": 2}
CLASSES = {
    "flax_bert_base": ("FlaxBertModel", {}),
    "flax_bert_pretraining": ("FlaxBertForPreTraining", {}),
    "flax_bert_classification": ("FlaxBertForSequenceClassification", {"num_labels": 5}),
    "flax_gpt2_base": ("FlaxGPT2Model", {}),
    "flax_gpt2_lm": ("FlaxGPT2LMHeadModel", {}),
    "flax_albert_pretraining": ("FlaxAlbertForPreTraining", {}),
}
DISTILBERT = {
    "vocab_size": 97,
    "dim": 24,
    "n_layers": 1,
    "n_heads": 3,
    "hidden_dim": 80,
    "max_position_embeddings": 40,
}
ONE_LAYER = BERT | {"num_hidden_layers": 1}
SHAPES = {
    "FlaxXLMRobertaForMaskedLM": ONE_LAYER,
    "FlaxXLMRobertaForSequenceClassification": ONE_LAYER,
    "FlaxDistilBertForMaskedLM": DISTILBERT,
    "FlaxDistilBertForSequenceClassification": DISTILBERT,
    "FlaxElectraForPreTraining": ONE_LAYER | {"embedding_size": 20},
    "FlaxElectraForMaskedLM": ONE_LAYER | {"embedding_size": 20},
    "FlaxElectraForSequenceClassification": ONE_LAYER | {"embedding_size": 20},
    "FlaxElectraForMultipleChoice": ONE_LAYER | {"embedding_size": 20},
}
NORMS = ("LayerNorm/scale", "layer_norm/scale", "ln_1/scale", "ln_2/scale", "ln_f/scale")
LENGTHS = (11, 7, 4)


def randomised(params: dict, seed: int) -> dict:
    """The same tree with every array drawn anew, norms around one, the rest around zero."""
    flat = {}
    for path, array in sorted(flatten_dict(params, sep="/").items()):
        draw = np.random.default_rng([seed, zlib.crc32(path.encode())])
        noise = draw.standard_normal(array.shape).astype(np.float32)
        flat[path] = 1 + 0.3 * noise if path.endswith(NORMS) else 0.2 * noise
    return unflatten_dict({path: np.float32(array) for path, array in flat.items()}, sep="/")


def inputs(seed: int) -> dict[str, np.ndarray]:
    """A ragged batch: ids, padding mask, segments."""
    draw = np.random.default_rng(seed)
    shape = (len(LENGTHS), max(LENGTHS))
    mask = (np.arange(shape[1]) < np.array(LENGTHS)[:, None]).astype(np.int64)
    ids = draw.integers(0, BERT["vocab_size"], shape) * mask
    types = draw.integers(0, BERT["type_vocab_size"], shape) * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def record(folder: pathlib.Path, name: str, changes: dict, seed: int) -> None:
    """Saves one model and its outputs."""
    gpt2 = name.startswith("FlaxGPT2")
    cls = getattr(transformers, name)
    tiny = {"gpt2": GPT2, "bert": BERT, "albert": ALBERT}[cls.config_class.model_type]
    config = cls.config_class(**tiny, **changes)
    model = cls(config, input_shape=(1, max(LENGTHS)))
    model.params = randomised(model.params, seed)
    model.save_pretrained(folder)
    given = inputs(seed)
    if gpt2:
        del given["token_type_ids"]  # which that class does not take
    with jax.default_matmul_precision("highest"):
        outputs = model(**given, output_hidden_states=True)
    arrays = dict(given)
    for key, value in outputs.items():
        if isinstance(value, tuple):
            arrays |= {f"{key}.{index}": np.asarray(part) for index, part in enumerate(value)}
        else:
            arrays[key] = np.asarray(value)
    # safetensors writes an array that is not contiguous in the wrong order, silently
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    save_file(arrays, folder / "outputs.safetensors")


def shapes(name: str, tiny: dict) -> dict[str, tuple[int, ...]]:
    """The shapes of the arrays of a class, by name."""
    cls = getattr(transformers, name)
    rows = (1, 1) if name.endswith("MultipleChoice") else (1,)
    model = cls(cls.config_class(**tiny), input_shape=(*rows, max(LENGTHS)))
    return {path: array.shape for path, array in flatten_dict(model.params, sep=".").items()}


def main() -> None:
    """Records every class."""
    found = {name: shapes(name, tiny) for name, tiny in SHAPES.items()}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(found[name])}" for name in found)
    (FIXTURES / "flax_arrays.json").write_text(f"{{\n{lines}\n}}\n")
    for seed, (folder, (name, changes)) in enumerate(CLASSES.items()):
        record(FIXTURES / folder, name, changes, seed)


if __name__ == "__main__":
    main()
