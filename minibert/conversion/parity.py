"""Every output of a model compared with PyTorch's, in float32 and in float64.

Float64 separates a faithful copy (1e-14) from the faintest mistake (a wrong epsilon, 1e-6) by nine
orders of magnitude; float32 then shows that the error left is rounding, no larger than PyTorch's
own. Rounding grows with the numbers, so both tolerances are relative to an output's largest.
"""

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minibert import assets
from minibert.checkpoint.files import MOST_BYTES
from minibert.checkpoint.hub import first_line
from minibert.checkpoint.tensors import Arrays
from minibert.core.paths import read_file
from minibert.errors import SourceError
from minibert.text.tokenizer import panics_as_errors

Progress = Callable[[str], None]

FLOAT32 = 2e-5
FLOAT64 = 1e-9
TEXT = os.path.join(assets.HOME, "LICENSE")
OUTPUTS = {"output_hidden_states": True, "output_attentions": False}
WORDS_A_ROW = (90, 60, 25, 75, 8, 80, 45, 100)
ENCODER_SEQ = 3


@dataclasses.dataclass(frozen=True)
class Row:
    """How one output compares: largest differences, and errors against float64.

    Attributes:
        output: its name, such as `hidden_states[3]`.
        scale: the largest number in it, at least 1.
        ours_torch: max |ours − PyTorch|, both float32.
        ours_float64: max |ours float32 − PyTorch float64|.
        torch_float64: max |PyTorch float32 − PyTorch float64|.
        rms_ratio: our float32 RMS error against float64, over PyTorch's.
        float64: max |ours float64 − PyTorch float64|.
    """

    output: str
    scale: float
    ours_torch: float
    ours_float64: float
    torch_float64: float
    rms_ratio: float
    float64: float

    @property
    def passed(self) -> bool:
        """Whether both precisions are within their tolerance; NaN is not."""
        return self.ours_torch <= FLOAT32 * self.scale and self.float64 <= FLOAT64 * self.scale


def ragged_inputs(config: Any, folder: str) -> Arrays:
    """Returns a fixed padded batch: some 2,000 tokens of the Apache licence, or random ids.

    Args:
        config: the model's config.
        folder: where its tokenizer may be; without one, the ids are drawn with a fixed seed.

    Returns:
        `input_ids` and `attention_mask`, each `(batch, seq)`; `token_type_ids`, if the model has
        segments; `encoder_hidden_states`, if it has cross-attention.
    """
    rows = _tokenized(config, folder) or _drawn(config)
    seq, pad = max(map(len, rows)), config.pad_token_id
    ids = np.full((len(rows), seq), pad if pad in range(config.vocab_size) else 0, np.int64)
    mask, types = np.zeros_like(ids), np.zeros_like(ids)
    segments = getattr(config, "type_vocab_size", 0)
    for index, row in enumerate(rows):
        ids[index, : len(row)], mask[index, : len(row)] = row, 1
        types[index, len(row) // 2 : len(row)] = index % min(2, segments or 1)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if segments:
        inputs["token_type_ids"] = types
    if config.add_cross_attention:
        shape = (len(rows), ENCODER_SEQ, config.hidden_size)
        drawn = np.random.default_rng(0).standard_normal(shape)
        inputs["encoder_hidden_states"] = drawn.astype(np.float32)
    return inputs


def _tokenized(config: Any, folder: str) -> list[list[int]]:
    import tokenizers

    try:
        with panics_as_errors():
            content = read_file(os.path.join(folder, "tokenizer.json"), MOST_BYTES)
            tokenizer = tokenizers.Tokenizer.from_buffer(content)
            tokenizer.no_padding()
            tokenizer.no_truncation()
            rows = [tokenizer.encode(text).ids for text in _passages()]
    except Exception:  # no tokenizer, or one that tokenizers refuses: use random ids
        return []
    usable = all(row and max(row) < config.vocab_size for row in rows)
    return [row[: config.max_tokens] for row in rows] if usable else []


def _passages() -> Iterator[str]:
    with open(TEXT, encoding="utf-8") as file:
        words = iter(file.read().split())
    for count in itertools.cycle(WORDS_A_ROW):
        if not (passage := " ".join(itertools.islice(words, count))):
            return
        yield passage


def _drawn(config: Any) -> list[list[int]]:
    draw = np.random.default_rng(0)
    return [
        draw.integers(0, config.vocab_size, min(2 * words, config.max_tokens)).tolist()
        for words in WORDS_A_ROW * 3
    ]


def shaped(inputs: Arrays, model: Any) -> Arrays:
    """The inputs as a model takes them: some have an axis of choices, and then no encoder."""
    if not model.has_choices:
        return inputs
    return {name: a[None] for name, a in inputs.items() if name != "encoder_hidden_states"}


def compare(
    load_ours: Callable[[Any], Any],
    load_theirs: Callable[[], Any],
    inputs: Arrays,
    progress: Progress = lambda step: None,
    one_by_one: bool = False,
) -> list[Row]:
    """Runs both models in both precisions and compares every output.

    Args:
        load_ours: from a param_dtype to our model.
        load_theirs: to the PyTorch model, in float32.
        inputs: the arguments, as the models take them.
        progress: called with a description of each step before it begins.
        one_by_one: whether the models take no more than one row at a time.

    Raises:
        SourceError: transformers cannot load or run the model.
    """
    calls = [inputs]
    if one_by_one:
        rows = range(len(inputs["input_ids"]))
        calls = [{name: a[row : row + 1] for name, a in inputs.items()} for row in rows]
    progress("PyTorch, float32")
    try:
        theirs = load_theirs().float()
        torch32 = _run_torch(theirs, calls)
        progress("PyTorch, float64")
        for module in theirs.modules():
            if hasattr(module, "reorder_and_upcast_attn"):
                module.reorder_and_upcast_attn = False  # it changes rounding, and refuses float64
        torch64 = _run_torch(theirs.double(), calls)
        del theirs
    except Exception as reason:  # torch and transformers raise many types, such as for a config
        raise SourceError(
            f"nothing can be verified: transformers failed ({type(reason).__name__}: "
            f"{first_line(reason)}); convert without a verification, or with another config.json"
        ) from None
    with jax.default_device(jax.devices("cpu")[0]):  # an accelerator rounds in ways of its own
        progress("minibert, float32")
        ours32 = _run_jax(load_ours(jnp.float32), calls)
        progress("minibert, float64")
        with jax.enable_x64(True):
            ours64 = _run_jax(load_ours(jnp.float64), calls)
    mask = inputs["attention_mask"].reshape(-1, inputs["attention_mask"].shape[-1]) == 1
    runs = (ours32, torch32, ours64, torch64)
    return [_row(name, *(_unpadded(name, run[name], mask) for run in runs)) for name in torch64]


def _run_torch(model: Any, calls: list[Arrays]) -> Arrays:
    import torch

    def call(inputs: Arrays) -> Any:
        tensors = {
            name: torch.as_tensor(array, dtype=model.dtype if array.dtype.kind == "f" else None)
            for name, array in inputs.items()
        }
        return model(**tensors, **OUTPUTS, return_dict=True)

    with torch.no_grad():
        return _joined(map(call, calls))


def _run_jax(model: Any, calls: list[Arrays]) -> Arrays:
    compiled = jax.jit(lambda m, kwargs: m(**kwargs, **OUTPUTS))
    return _joined(compiled(model, inputs) for inputs in calls)


def _joined(outputs: Iterable[Any]) -> Arrays:
    """The outputs of all calls by name, on the host, one after the other."""
    found = [dict(_named(one)) for one in outputs]
    return {name: np.concatenate([one[name] for one in found]) for name in found[0]}


def _named(outputs: Any) -> Iterator[tuple[str, Any]]:
    for index, state in enumerate(outputs["hidden_states"]):
        yield f"hidden_states[{index}]", state
    # transformers 5.24 renames past_key_values to cache
    apart = {"hidden_states", "last_hidden_state", "past_key_values", "cache"}
    for key in sorted(outputs.keys() - apart):
        yield key, outputs[key]


def _unpadded(name: str, array: np.ndarray, mask: np.ndarray) -> np.ndarray:
    by_token = array.ndim > 2 or name in ("start_logits", "end_logits")
    if not by_token or name == "mc_logits":
        return array
    return array.reshape(*mask.shape, -1)[mask]  # an axis of choices is joined to the rows


def _row(output: str, *runs: np.ndarray) -> Row:
    ours32, torch32, ours64, torch64 = (run.astype(np.float64) for run in runs)

    def largest(one: np.ndarray, other: np.ndarray) -> float:
        return float(np.abs(one - other).max())

    def rms(one: np.ndarray) -> float:
        return float(np.sqrt(np.mean((one - torch64) ** 2)))

    return Row(
        output=output,
        scale=max(1.0, float(np.abs(torch64).max())),
        ours_torch=largest(ours32, torch32),
        ours_float64=largest(ours32, torch64),
        torch_float64=largest(torch32, torch64),
        rms_ratio=rms(ours32) / max(rms(torch32), np.finfo(np.float64).tiny),
        float64=largest(ours64, torch64),
    )
