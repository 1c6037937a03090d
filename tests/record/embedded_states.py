"""Records what PyTorch computes with the embedded models, for `minibert demo` and the tests.

Run from the repository's root, with torch and transformers 5 installed, whenever the models change:

    python tests/record/embedded_states.py

Writes `minibert/assets/recorded.npz`. For each model (`bert.…`, `gpt2.…`): `input_ids` and
`attention_mask` `(batch, seq)`; `hidden_states` `(layers + 1, tokens, hidden)` at the unpadded
positions, computed in float64 and stored in float32; `torch_errors` `(layers + 1,)`, the largest
difference between those and what PyTorch computes in float32.
"""

import numpy as np
import torch
import transformers

from minibert import assets

TEXTS = {
    "bert": (
        "If an exception occurs, the [MASK] clause is executed and the exception is saved.",
        "A string is a sequence of characters.",
    ),
    "gpt2": (
        "If an exception occurs, the finally clause is executed and the exception is saved.",
        "A string is a sequence of characters.",
    ),
}
FOLDERS = {"bert": assets.BERT, "gpt2": assets.GPT2}


def inputs(name: str) -> dict[str, np.ndarray]:
    """The texts, padded on the right with 0."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDERS[name])
    rows = [tokenizer(text).input_ids for text in TEXTS[name]]
    ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
    mask = np.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row)], mask[index, : len(row)] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


def states(name: str, given: dict[str, np.ndarray], dtype: torch.dtype) -> np.ndarray:
    """Every hidden state at the unpadded positions."""
    model = transformers.AutoModel.from_pretrained(
        FOLDERS[name], dtype=dtype, attn_implementation="eager"
    )
    tensors = {key: torch.from_numpy(value) for key, value in given.items()}
    with torch.no_grad():
        found = model.eval()(**tensors, output_hidden_states=True).hidden_states
    return np.stack([state.numpy() for state in found])[:, given["attention_mask"] == 1]


def main() -> None:
    """Records both models."""
    recorded = {}
    for name in FOLDERS:
        given = inputs(name)
        exact, single = (states(name, given, dtype) for dtype in (torch.float64, torch.float32))
        found = {
            **given,
            "hidden_states": exact.astype(np.float32),
            "torch_errors": np.abs(single - exact).max(axis=(1, 2)).astype(np.float32),
        }
        recorded |= {f"{name}.{key}": value for key, value in found.items()}
    np.savez_compressed(assets.RECORDED, **recorded)


if __name__ == "__main__":
    main()
