"""The steps of the GPU benchmark, the most important first."""

from typing import NamedTuple


class Step(NamedTuple):
    """A step, which runs in its own process.

    Attributes:
        title: what it measures.
        seconds: its part of the time limit. Unused time goes to the next step.
        module: its module in `benchmarks.gpu`.
        function: the name of a function in the module that takes a `Job`.
    """

    title: str
    seconds: int
    module: str
    function: str = "measure"


STEPS = {
    "card": Step("The card: matrix products and copies", 12, "card"),
    "parity": Step("Parity with PyTorch (tests/models/test_accelerator.py)", 65, "parity"),
    "forward": Step("Forward passes in bfloat16", 45, "forward"),
    "texts": Step("Ragged texts to vectors", 22, "texts"),
    "decode": Step("GPT-2 124M, text generated in bfloat16", 22, "decode"),
    "train": Step("GPT-2 124M, a training step, bfloat16 over float32 parameters", 28, "train"),
    "attention": Step("Attention kernels in bfloat16, 12 heads of 64", 20, "attention"),
    "layers": Step("Layers alone in bfloat16", 7, "layers"),
    "torch-compile": Step("Forward passes beside torch.compile", 14, "forward", "beside_compiled"),
}
SECONDS = 235  # for all steps on a GPU
