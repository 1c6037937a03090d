"""Old files (`artefacts.py`): every folder loads, and a run and a job go on where they were."""

import json
import pathlib
import shutil
import tempfile
from typing import Any

import jax
import numpy as np
from safetensors.flax import load_file

from . import records
from .artefacts import EMBED, FOLDER, LINES, TEXTS, TRAIN, start
from .environment import versions
from .models import BERT, GPT2, called, inputs, joined, parameters_of
from .records import Comparison, Record, entries
from .surface import minibert, train

VOCABULARY, PART = 60, 2048
# A job resumes only with the versions that it was started with; otherwise it must say so.
BINDING = ("jax",)


def found() -> Record:
    cases = (models, encoder, adapter, program, training, embedding)
    record: Record = {}
    for case in cases:
        with tempfile.TemporaryDirectory() as place:
            try:
                copy = pathlib.Path(place) / "artefacts"
                shutil.copytree(FOLDER, copy)
                record |= dict(entries(case.__name__, case(copy)))
            except Exception as reason:
                record[f"{case.__name__}/raised"] = f"{type(reason).__name__}: {reason}"
    return record


def compare(recorded: Record, now: Record) -> Comparison:
    then = json.loads((FOLDER / "versions.json").read_text())
    other = [name for name in BINDING if then[name] != versions()[name]]
    result = records.compare(recorded, now)
    if other:
        free = [one for one in result.differences if not one.startswith("embedding/")]
        left = len(result.differences) - len(free)
        result.differences = free
        result.remarks.append(f"another {', '.join(other)}: {left} entries of the job left out")
    return result


def models(folder: pathlib.Path) -> Any:
    found = {}
    for name in BERT + GPT2:
        place = folder / "models" / name
        model, info = minibert.load(place, output_loading_info=True)
        found[name] = {
            "class": type(model).__name__,
            "parameters": parameters_of(model),
            "outputs": called(model, inputs(name, vocab=VOCABULARY)),
            "info": str(info).replace(str(folder), ""),
        }
    return found


def encoder(folder: pathlib.Path) -> Any:
    run = minibert.SentenceEncoder.from_pretrained(folder / "encoder")
    return {
        "vectors": run.encode(TEXTS),
        "queries": run.encode_query(TEXTS),
        "likeness": run.similarity(run.encode(TEXTS), run.encode(TEXTS[:2])),
        "settings": repr(run.settings),
    }


def adapter(folder: pathlib.Path) -> Any:
    name = "BertForSequenceClassification"
    model = minibert.load(folder / "models" / name)
    read = train.load_adapter(model, folder / "adapter")
    merged = train.merge(model, read)
    return {
        "settings": repr(read.config),
        "numbers": joined(dict(read.params)),
        "outputs": called(merged, inputs(name, vocab=VOCABULARY)),
    }


def program(folder: pathlib.Path) -> Any:
    alone = jax.export.deserialize((folder / "program" / "bert.program").read_bytes())
    given = inputs("BertModel", vocab=VOCABULARY)
    arrays = load_file(folder / "program" / "bert.arrays")
    del given["token_type_ids"]
    return {"outputs": alone.call(arrays, given), "takes": [str(one) for one in alone.in_avals]}


def training(folder: pathlib.Path) -> Any:
    """The run is resumed to its end: the log is that of a run that was not interrupted."""
    place = folder / "training"
    before = (place / "run" / "log.jsonl").read_text().splitlines()
    told = finished(place, *TRAIN, "--resume")
    after = [json.loads(line) for line in (place / "run" / "log.jsonl").read_text().splitlines()]
    model = minibert.load(place / "run" / "model")
    return {
        "told": [told["steps"], told["stopped"], told["best_step"]],
        "kept": [json.loads(line) for line in before] == after[: len(before)],
        "steps": [line["step"] for line in after] == list(range(1, len(after) + 1)),
        "losses": [line["loss"] for line in after],
        "evaluated": told["metrics"]["eval_loss"],
        "outputs": called(model, inputs("BertModel", vocab=VOCABULARY)),
        "written": sorted(path.name for path in (place / "run").iterdir()),
    }


def embedding(folder: pathlib.Path) -> Any:
    """The job is resumed: finished parts are not computed again."""
    place = folder / "embedding"
    parts = sorted((place / "vectors.npy.parts").glob("*.npz"))
    done = [np.load(path)["vectors"] for path in parts]
    told = finished(place, *EMBED)
    vectors = np.load(place / "vectors.npy")
    return {
        "found done": told["rows"] - told["computed"] == len(done) * PART > 0,
        "told": [f"{name}: {told[name]}" for name in sorted(told)],
        "whole": told["rows"] == LINES == len(vectors),
        "vectors": vectors,
        "kept": [bool((vectors[n * PART :][:PART] == part).all()) for n, part in enumerate(done)],
        "left": sorted(path.name for path in place.iterdir()),
    }


def finished(folder: pathlib.Path, *command: str) -> dict[str, Any]:
    """What a command of the library says in JSON when it is done."""
    process = start(folder, *command, "--json")
    output, problems = process.communicate()
    if process.returncode:
        raise RuntimeError(
            f"{' '.join(command)}: exit status {process.returncode}: {problems.strip()}"
        )
    return json.loads(output)
