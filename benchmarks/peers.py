"""BERT's forward pass, ours and others', each in its own process.

    python -m benchmarks.peers NAME FOLDER DTYPE

runs such a process. It loads the model of a folder and reports the time. For each line of stdin,
the path of a file with ids and mask, it then writes the states to a file next to it and reports the
time of the forward pass. It imports nothing that is missing in another environment.
"""

import contextlib
import functools
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks import environments
from benchmarks.memory import forget_peak, resident

TORCH = ("torch", "transformers.models.bert.modeling_bert")
ONNX = ("onnxruntime", "onnxscript")
# several models share a device; Keras reads its backend when imported
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "KERAS_BACKEND": "jax",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
}

Forward = Callable[[np.ndarray, np.ndarray], Any]


class Contender(NamedTuple):
    """A way to compute the last hidden states.

    Attributes:
        make: from a folder and a dtype, returns a synchronous forward pass, and a function that
            converts its states to NumPy.
        imports: modules to import before measuring.
        environment: its environment, see `environments`; None for ours.
        needs: packages that are not dependencies of the tests.
        anywhere: whether it also runs on accelerators, and in bfloat16.
    """

    make: Callable[[str, str], tuple[Forward, Callable[[Any], np.ndarray]]]
    imports: tuple[str, ...]
    environment: str | None = None
    needs: tuple[str, ...] = ()
    anywhere: bool = False


def _minibert(folder: str, dtype: str) -> tuple[Forward, Any]:
    import jax

    import minibert

    model = minibert.BertModel.from_pretrained(folder, dtype=dtype, param_dtype=dtype)
    fast = minibert.compiled(model)

    def forward(ids: np.ndarray, mask: np.ndarray) -> Any:
        return jax.block_until_ready(fast(ids, attention_mask=mask).last_hidden_state)

    return forward, lambda states: np.asarray(states, np.float32)


def torch_model(folder: str, dtype: str, compiler: str | None = None) -> tuple[Any, str]:
    """Returns a PyTorch model with fused attention, and its device.

    Args:
        folder: the model's folder.
        dtype: the dtype of weights and computation.
        compiler: a backend of torch.compile; None for no compilation.
    """
    import torch
    from transformers import AutoModel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    options: dict[str, Any] = {"attn_implementation": "sdpa", "dtype": getattr(torch, dtype)}
    model = AutoModel.from_pretrained(folder, **options).eval().to(device)
    if compiler is not None:
        model = torch.compile(model, dynamic=False, backend=compiler)
    return model, device


def _torch(folder: str, dtype: str, compiler: str | None = None) -> tuple[Forward, Any]:
    import torch

    run, device = torch_model(folder, dtype, compiler)

    def forward(ids: np.ndarray, mask: np.ndarray) -> Any:
        with torch.inference_mode():
            given = (torch.from_numpy(array).to(device) for array in (ids, mask))
            states = run(*given).last_hidden_state
            if device == "cuda":
                torch.cuda.synchronize()
        return states

    return forward, lambda states: states.float().cpu().numpy()


def _onnxruntime(folder: str, dtype: str) -> tuple[Forward, Any]:
    from benchmarks import onnx

    session = onnx.session(folder)
    forward = lambda ids, mask: session.run(None, {"input_ids": ids, "attention_mask": mask})[0]  # noqa: E731
    return forward, lambda states: states


def _flax(folder: str, dtype: str) -> tuple[Forward, Any]:
    import jax
    from transformers import FlaxBertModel  # ty: ignore[missing-module-member]  # until 4.57

    model = FlaxBertModel.from_pretrained(folder)
    run = jax.jit(lambda params, ids, mask: model(ids, mask, params=params).last_hidden_state)

    def forward(ids: np.ndarray, mask: np.ndarray) -> Any:
        return run(model.params, ids, mask).block_until_ready()

    return forward, np.asarray


def _keras(folder: str, dtype: str) -> tuple[Forward, Any]:
    import jax
    import keras_hub

    model = keras_hub.models.BertBackbone.from_preset(folder)
    trained, fixed = (
        [variable.value for variable in variables]
        for variables in (model.trainable_variables, model.non_trainable_variables)
    )

    @jax.jit
    def run(trained: Any, fixed: Any, ids: Any, mask: Any) -> Any:
        given = {"token_ids": ids, "padding_mask": mask, "segment_ids": ids * 0}
        return model.stateless_call(trained, fixed, given)[0]["sequence_output"]

    return lambda ids, mask: run(trained, fixed, ids, mask).block_until_ready(), np.asarray


CONTENDERS = {
    "minibert": Contender(_minibert, ("minibert.models.registry",), anywhere=True),
    "PyTorch": Contender(_torch, TORCH, anywhere=True),
    "torch.compile": Contender(
        functools.partial(_torch, compiler="inductor"), TORCH, anywhere=True
    ),
    "onnxruntime": Contender(_onnxruntime, ("onnxruntime",), needs=ONNX),
    "transformers 4, Flax": Contender(_flax, ("transformers.models.bert",), environment="flax"),
    "KerasHub": Contender(_keras, ("keras_hub",), environment="keras"),
}


def installed(dtype: str, device: str) -> list[str]:
    """Returns the available contenders; prints a line on stderr for one that is missing."""
    found = []
    for name, contender in CONTENDERS.items():
        missing = [each for each in contender.needs if importlib.util.find_spec(each) is None]
        environment = contender.environment
        if missing:
            print(f"{name}: {missing[0]} is not installed: skipped", file=sys.stderr)
        elif environment is not None and environments.python(environment) is None:
            print(f"{name}: skipped; python -m benchmarks setup installs it", file=sys.stderr)
        elif contender.anywhere or (dtype, device) == ("float32", "cpu"):
            found.append(name)
    return found


class Peer:
    """A process that runs a contender; a context manager.

    Attributes:
        load: seconds of loading.
    """

    def __init__(self, name: str, folder: str, dtype: str):
        interpreter = sys.executable
        if (environment := CONTENDERS[name].environment) is not None:
            interpreter = environments.python(environment) or sys.exit(f"{name}: no environment")
        self._name = name
        self._scratch = tempfile.TemporaryDirectory()
        self._errors = os.path.join(self._scratch.name, "stderr")
        with open(self._errors, "w") as errors:
            self._process = subprocess.Popen(
                [interpreter, "-m", "benchmarks.peers", name, folder, dtype],
                cwd=environments.ROOT,
                env=os.environ | ENVIRONMENT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.load: float = self._answer()["load"]

    def __call__(self, ids: np.ndarray, mask: np.ndarray) -> tuple[float, np.ndarray, float]:
        """Returns seconds and states of a forward pass, and peak bytes beyond the imports."""
        path = os.path.join(self._scratch.name, "batch.npz")
        np.savez(path, ids=ids, mask=mask)
        assert self._process.stdin is not None
        self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()
        answer = self._answer()
        return answer["seconds"], np.load(f"{path}.states.npy"), answer["memory"]

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            return json.loads(line)
        with open(self._errors) as file:
            message = file.read()
        self.close()
        sys.exit(f"{self._name} failed:\n{message}")

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()
        self._scratch.cleanup()

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(name: str, folder: str, dtype: str) -> None:
    """Runs the process of a contender."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries' output must not mix with the answers
    contender = CONTENDERS[name]
    for module in contender.imports:
        importlib.import_module(module)
    before, start = resident("VmRSS"), time.perf_counter()
    forward, fetch = contender.make(folder, dtype)
    print(json.dumps({"load": time.perf_counter() - start}), file=answers, flush=True)
    for line in sys.stdin:
        path = line.rstrip("\n")
        given = np.load(path)
        ids, mask = given["ids"], given["mask"]
        with contextlib.suppress(OSError):
            forget_peak()
        start = time.perf_counter()
        states = forward(ids, mask)
        seconds = time.perf_counter() - start
        memory = resident("VmHWM") - before
        np.save(f"{path}.states.npy", fetch(states))
        print(json.dumps({"seconds": seconds, "memory": memory}), file=answers, flush=True)


if __name__ == "__main__":
    serve(*sys.argv[1:])
