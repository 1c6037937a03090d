"""Old files, written once by an earlier version, that later versions must load and resume from.

`python -m tests.ledger.artefacts` writes them where there are none. They are not to be written
anew: a version that cannot read them breaks what users have.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

from .environment import ROOT, of_processes, prepare, versions

FOLDER = pathlib.Path(__file__).parent / "artefacts"
SIZES = {
    "vocab_size": 60,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 16,
}
ANIMALS = "cat dog mouse bird horse cow sheep goat hen fox".split()
THINGS = "house tree river table door lamp road hill boat cup".split()
OTHERS = "the a of in on and runs sleeps sees is old new small big red blue".split()
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *ANIMALS, *THINGS, *OTHERS]
VOCABULARY += [f"[unused{number}]" for number in range(SIZES["vocab_size"] - len(VOCABULARY))]
TEXTS = ["the cat runs", "a small dog sees the old house .", "river", "red lamp and blue door"]
RUN = {
    "task": "classification",
    "model": "base",
    "new_head": True,
    "data": "rows.jsonl",
    "output": "run",
    "steps": 50,
    "batch_size": 4,
    "max_length": 12,
    "learning_rate": 0.01,
    "warmup": 5,
    "evaluation_fraction": 0.2,
    "evaluate_every": 20,
    "checkpoint_every": 100,
    "keep": 1,
}
LINES = 2048 * 2 + 300  # of the embedding job, which makes parts of 2,048
EMBED = ["minibert", "embed", "lines.txt", "-o", "vectors.npy", "-m", "encoder", "--normalize"]
TRAIN = ["minibert", "train", "run.toml"]


def line(number: int) -> str:
    words = ANIMALS + THINGS + OTHERS
    chosen = [
        words[(number * 7 + place * place * 3) % len(words)] for place in range(number % 6 + 1)
    ]
    return " ".join(chosen)


def start(folder: pathlib.Path, *command: str) -> subprocess.Popen:
    """Starts a command of the library in a folder."""
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=of_processes(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def write_all(folder: pathlib.Path) -> None:
    from .models import BERT, GPT2

    folder.mkdir()
    tokenizer = _tokenizer(folder / "tokenizer")
    for name in BERT + GPT2:
        _model(name).save_pretrained(folder / "models" / name)
    _write_encoder(folder / "encoder", tokenizer)
    _write_adapter(folder / "adapter")
    _write_program(folder / "program")
    _write_run(folder / "training")
    _write_job(folder / "embedding")
    (folder / "versions.json").write_text(json.dumps(versions(), indent=1) + "\n")


def _model(name: str) -> object:
    from .models import drawn

    sizes = dict(SIZES)
    if name.startswith("GPT2"):
        del sizes["intermediate_size"]
    return drawn(name, **sizes)


def _tokenizer(folder: pathlib.Path) -> object:
    from transformers import BertTokenizerFast

    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    made = BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=16)
    (folder / "vocab.txt").unlink()
    made.save_pretrained(folder)
    return made


def _write_encoder(folder: pathlib.Path, tokenizer: object) -> None:
    """Pooling, Dense and Normalize: the Dense is put there as sentence-transformers writes it."""
    import numpy as np
    from safetensors.numpy import save_file

    from .surface import minibert

    settings = {"prompts": {"query": "the "}, "similarity_fn_name": "dot"}
    minibert.SentenceEncoder(
        _model("BertModel"), tokenizer, pooling=("cls", "mean"), normalize=True, **settings
    ).save_pretrained(folder)
    kind = json.loads((folder / "modules.json").read_text())[-1]["type"].replace(
        "Normalize", "Dense"
    )
    dense = {"in_features": 16, "out_features": 6, "bias": True}
    dense["activation_function"] = "torch.nn.modules.activation.Tanh"
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense" / "config.json").write_text(json.dumps(dense))
    draw = np.random.default_rng(0)
    weight, bias = draw.standard_normal((6, 16)), draw.standard_normal(6)
    tensors = {"linear.weight": weight.astype(np.float32), "linear.bias": bias.astype(np.float32)}
    save_file(tensors, folder / "2_Dense" / "model.safetensors")
    modules = json.loads((folder / "modules.json").read_text())
    last = modules.pop() | {"idx": 3, "name": "3", "path": "3_Normalize"}
    modules += [{"idx": 2, "name": "2", "path": "2_Dense", "type": kind}, last]
    (folder / "modules.json").write_text(json.dumps(modules))
    minibert.SentenceEncoder.from_pretrained(folder).save_pretrained(f"{folder}-saved")
    shutil.rmtree(folder)
    os.rename(f"{folder}-saved", folder)


def _write_adapter(folder: pathlib.Path) -> None:
    from .surface import train

    model = _model("BertForSequenceClassification")
    lora = train.LoRA(r=2, lora_alpha=3, task_type="SEQ_CLS", init_lora_weights=False)
    train.save_adapter(model, train.init_adapter(model, lora, seed=1), folder)


def _write_program(folder: pathlib.Path) -> None:
    from safetensors.flax import save_file

    from .surface import minibert

    folder.mkdir()
    fast = minibert.compiled(_model("BertModel"))
    program = fast.export(platforms=["cpu", "cuda", "tpu"])
    (folder / "bert.program").write_bytes(program.serialize())
    save_file(fast.parameters, folder / "bert.arrays")


def _write_run(folder: pathlib.Path) -> None:
    """A training run that SIGTERM ended."""
    folder.mkdir()
    _model("BertModel").save_pretrained(folder / "base")
    shutil.copytree(folder.parent / "tokenizer", folder / "base", dirs_exist_ok=True)
    rows = [
        {
            "text": f"the {(ANIMALS, THINGS)[n % 2][n % 10]} {line(n)}",
            "label": ("animal", "thing")[n % 2],
        }
        for n in range(40)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = "".join(f"{name} = {json.dumps(value)}\n" for name, value in RUN.items())
    (folder / "run.toml").write_text(settings)
    process = start(folder, *TRAIN)
    log = folder / "run" / "log.jsonl"
    while process.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") >= 22):
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    said = process.communicate()
    if process.returncode != 130:
        raise RuntimeError(f"the run was not interrupted ({process.returncode}): {said}")


def _write_job(folder: pathlib.Path) -> None:
    """An embedding job that was killed when it had done its first part."""
    folder.mkdir()
    shutil.copytree(folder.parent / "encoder", folder / "encoder")
    (folder / "lines.txt").write_text("".join(f"{line(n)}\n" for n in range(LINES)))
    process = start(folder, *EMBED)
    parts = folder / "vectors.npy.parts"
    while process.poll() is None and not (parts / "0000000.npz").exists():
        time.sleep(0.001)
    process.kill()
    said = process.communicate()
    if process.returncode != -signal.SIGKILL or (folder / "vectors.npy").exists():
        raise RuntimeError(f"the job was not killed in time ({process.returncode}): {said}")
    for path in folder.glob("*.lock"):
        path.unlink()


if __name__ == "__main__":
    prepare()
    if FOLDER.exists():
        sys.exit(f"{FOLDER.relative_to(ROOT)}: is there, and is not to be written anew")
    write_all(FOLDER)
