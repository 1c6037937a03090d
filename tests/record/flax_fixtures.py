"""Records what the old Flax classes of transformers saved, and what they computed.

transformers 4.57.6 was the last release line that had them. Run from the repository's root, in an
environment of its own:

    pip install transformers==4.57.6 jax flax
    python tests/record/flax_fixtures.py

Writes a folder `tests/fixtures/flax_bert_*` for each class: `config.json` and
`flax_model.msgpack` as `save_pretrained` left them, and `outputs.safetensors` with the inputs and
every output in float32. Every parameter is drawn anew, biases and LayerNorms too: the classes' own
initialisation would hide a dropped bias and a swapped LayerNorm.
"""

import pathlib
import zlib

import jax
import numpy as np
import transformers
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save_file

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
TINY = {
    "vocab_size": 97,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 80,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
}
CLASSES = {
    "flax_bert_base": ("FlaxBertModel", {}),
    "flax_bert_pretraining": ("FlaxBertForPreTraining", {}),
    "flax_bert_classification": ("FlaxBertForSequenceClassification", {"num_labels": 5}),
}
LENGTHS = (11, 7, 4)


def randomised(params: dict, seed: int) -> dict:
    """The same tree with every array drawn anew, norms around one, the rest around zero."""
    flat = {}
    for path, array in sorted(flatten_dict(params, sep="/").items()):
        draw = np.random.default_rng([seed, zlib.crc32(path.encode())])
        noise = draw.standard_normal(array.shape).astype(np.float32)
        flat[path] = 1 + 0.3 * noise if path.endswith("LayerNorm/scale") else 0.2 * noise
    return unflatten_dict({path: np.float32(array) for path, array in flat.items()}, sep="/")


def inputs(seed: int) -> dict[str, np.ndarray]:
    """A ragged batch: ids, padding mask, segments."""
    draw = np.random.default_rng(seed)
    shape = (len(LENGTHS), max(LENGTHS))
    mask = (np.arange(shape[1]) < np.array(LENGTHS)[:, None]).astype(np.int64)
    ids = draw.integers(0, TINY["vocab_size"], shape) * mask
    types = draw.integers(0, TINY["type_vocab_size"], shape) * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def record(folder: pathlib.Path, name: str, changes: dict, seed: int) -> None:
    """Saves one model and its outputs."""
    config = transformers.BertConfig(**TINY, **changes)
    model = getattr(transformers, name)(config, input_shape=(1, max(LENGTHS)))
    model.params = randomised(model.params, seed)
    model.save_pretrained(folder)
    given = inputs(seed)
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


def main() -> None:
    """Records every class."""
    for seed, (folder, (name, changes)) in enumerate(CLASSES.items()):
        record(FIXTURES / folder, name, changes, seed)


if __name__ == "__main__":
    main()
