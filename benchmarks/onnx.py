"""Export of PyTorch's model to onnxruntime."""

import os
import subprocess
import sys
import tempfile
import warnings
from typing import Any

from benchmarks.environments import ROOT


def session(folder: str) -> Any:
    """Returns a CPU `InferenceSession` from `input_ids` and `attention_mask` to the last states."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as scratch:
        path = os.path.join(scratch, "model.onnx")
        # in a separate process, to exclude PyTorch's memory and threads
        subprocess.run(
            [sys.executable, "-m", "benchmarks.onnx", folder, path], cwd=ROOT, check=True
        )
        return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def _export(folder: str, path: str) -> None:
    import torch
    from transformers import AutoModel

    class Tokens(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = AutoModel.from_pretrained(folder).eval()

        def forward(self, input_ids, attention_mask):
            return self.model(input_ids, attention_mask).last_hidden_state

    example = torch.ones((2, 16), dtype=torch.int64)
    mask = example.tril(8)  # with only ones the exporter would conclude that there is no padding
    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    names = ("input_ids", "attention_mask")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own warnings
        torch.onnx.export(
            Tokens(),
            (example, mask),
            path,
            input_names=list(names),
            dynamic_shapes=dict.fromkeys(names, axes),
            dynamo=True,
            verbose=False,
        )


if __name__ == "__main__":
    _export(*sys.argv[1:])
