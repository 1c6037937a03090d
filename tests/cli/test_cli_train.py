"""`minibert train`, as a new user runs it."""

import dataclasses
import json
import os
import pathlib
import random
import signal

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

pytest.importorskip("grain", reason="the data are Grain's")
pytest.importorskip("orbax.checkpoint", reason="the checkpoints are Orbax's")
pytest.importorskip("transformers", reason="it makes the tokenizers")

import minibert
from commands import model_folder, run
from conftest import EMBEDDING
from malformed import promptly
from minibert.checkpoint.tokenizer import load_tokenizer
from minibert.embedding.modules import Dense
from minibert.errors import ConfigError
from minibert.train.checkpoints import one_run
from minibert.train.job.settings import FIELDS, read_settings

pytestmark = pytest.mark.unoptimised

ANIMALS, THINGS = "cat dog mouse bird horse".split(), "house tree river table door".split()


def words(kind, count=6):
    return " ".join(random.choices(ANIMALS if kind == "animals" else THINGS, k=count))


@pytest.fixture(scope="module")
def place(tmp_path_factory, minilm):
    """A folder with a model, a text, and records with two labels."""
    folder = tmp_path_factory.mktemp("train")
    model_folder(folder / "base", "BertModel", max_position_embeddings=32)
    random.seed(0)
    (folder / "text.txt").write_text("\n".join(words("animals", 12) for _ in range(40)))
    rows = [{"text": words(label), "label": label} for label in ["things", "animals"] * 20]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def recipe(place, output, **changes):
    """Writes the settings of a classifier to a file."""
    keys = {
        "task": "classification",
        "model": str(place / "base"),
        "new_head": True,
        "data": str(place / "rows.jsonl"),
        "output": str(output),
        "epochs": 4,
        "batch_size": 8,
        "max_length": 8,
        "learning_rate": 0.01,
        **changes,
    }
    path = pathlib.Path(f"{output}.toml")
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items()))
    return path


@pytest.fixture(scope="module")
def classifier(place):
    output = place / "classifier"
    path = recipe(place, output)
    return path, output, run("train", path, "--evaluation-fraction", "0.2", "--keep", "1")


def test_fine_tuning(classifier):
    _, output, done = classifier
    assert done.exit_code == 0, done.output
    assert "Trained 16 steps: loss" in done.output
    assert set(os.listdir(output)) >= {"model", "log.jsonl", "checkpoints", "settings.json"}
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 17))
    assert lines[-1]["eval_classification_accuracy"] == 1
    classify = minibert.pipeline("text-classification", str(output / "model"))
    found = classify(["cat dog bird", "river house door"])
    assert [one["label"] for one in found] == ["animals", "things"]
    if (output / "loss.png").exists():
        assert (output / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_is_replaced_only_with_overwrite(classifier, place):
    path, output, _ = classifier
    refused = run("train", path)
    assert refused.exit_code == 1
    assert "--resume" in refused.output
    other = run("train", path, "--resume", "--seed", "1", "--evaluation-fraction", "0.2")
    assert other.exit_code == 1
    assert "nevertheless): seed: 0 in the checkpoint, 1 here" in other.output
    faster = run("train", path, "--resume", "--learning-rate", 1, "--evaluation-fraction", 0.2)
    named = "optimizer: arguments: learning_rate: peak: 0.01 in the checkpoint, 1.0 here"
    assert faster.output.endswith(f"nevertheless): {named}\n")
    adapted = ("--elsewhere", "--evaluation-fraction", "0.2", "--lora-rank", 2)
    impossible = run("train", path, *adapted)
    assert impossible.exit_code == 1
    assert "the checkpoint of another run" in impossible.output
    kept = json.loads((output / "settings.json").read_text())
    assert kept["seed"] == 0
    assert "lora_rank" not in kept
    for wrong in (["--schedule", "steep"], ["--accumulate", "3"], ["--lora-targets", "nowhere"]):
        typo = run("train", path, "--overwrite", "--evaluation-fraction", "0.2", *wrong)
        assert typo.exit_code == 1
        assert {"model", "checkpoints", "log.jsonl"} <= set(os.listdir(output)), wrong
    with one_run(str(output)):
        busy = run("train", path, "--overwrite")
        assert "another run is using it" in busy.output
    (output / ".minibert-new-model-1a2b3c4d").mkdir()  # as of a run killed while it wrote
    far = run("train", path, "--overwrite", "--max-length", "1000")
    assert "max_length: 1000; the model has" in far.output
    assert {"model", "checkpoints", "log.jsonl"} <= set(os.listdir(output))
    (place / "mine").mkdir()
    (place / "mine" / "letter.txt").write_text("precious")
    kept = run("train", path, "--output", place / "mine", "--overwrite")
    assert kept.exit_code == 1
    assert (place / "mine" / "letter.txt").read_text() == "precious"
    before = (output / "model" / "model.safetensors").read_bytes()
    moved = place / "moved.jsonl"  # the same records
    moved.write_bytes((place / "rows.jsonl").read_bytes())
    again = run(
        *("train", path, "--resume", "--evaluation-fraction", "0.2", "--json", "--data", moved),
        *("--evaluate-every", 4, "--patience", 9, "--remat"),
    )
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["steps"] == 16
    assert (output / "model" / "model.safetensors").read_bytes() == before


@pytest.mark.slow
def test_interrupted(classifier, place, monkeypatch):
    from minibert.train.job import run as job

    _, whole, _ = classifier
    fit = job.fit

    def interrupted(*given, **options):
        stop = lambda step, metrics: step == 5 and signal.raise_signal(signal.SIGTERM)  # noqa: E731
        return fit(*given, **options, callbacks=[stop])

    path = recipe(place, place / "stopped", evaluation_fraction=0.2)
    with monkeypatch.context() as patched:
        patched.setattr(job, "fit", interrupted)
        stopped = run("train", path)
    assert stopped.exit_code == 130
    assert "interrupted at step 6" in stopped.output
    assert not {"model", "loss.png"} & set(os.listdir(place / "stopped"))
    done = run("train", path, "--resume")
    assert done.exit_code == 0, done.output
    ours, theirs = (folder / "model" / "model.safetensors" for folder in (place / "stopped", whole))
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.slow
def test_pretraining(place):
    done = run(
        *("train", "--task", "masked-lm", "--config", "tiny", "--tokenizer", place / "base"),
        *("--data", place / "text.txt", "--output", place / "fresh", "--steps", "20"),
        *("--batch-size", "4", "--max-length", "16", "--learning-rate", "0.01", "--json"),
    )
    assert done.exit_code == 0, done.output
    lines = (place / "fresh" / "log.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["loss"] < json.loads(lines[0])["loss"] - 0.5
    assert isinstance(minibert.load(place / "fresh" / "model"), minibert.BertForMaskedLM)
    minibert.pipeline("fill-mask", str(place / "fresh" / "model"))("the cat [MASK] the dog")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "term", "name"),
    [
        ("pretraining", "next_sentence", "BertForPreTraining"),
        ("sentence-order-pretraining", "sentence_order", "AlbertForPreTraining"),
    ],
)
def test_pairs_of_sentences(task, term, name, place):
    lines = "\n".join(words("animals", 5) for _ in range(6))
    (place / "documents.txt").write_text("\n\n".join([lines] * 10))
    done = run(
        *("train", "--task", task, "--config", "tiny", "--tokenizer", place / "base"),
        *("--data", place / "documents.txt", "--output", place / "pairs", "--steps", "3"),
        *("--batch-size", "4", "--max-length", "32", "--evaluation-fraction", "0.2", "--json"),
        *("--overwrite",),
    )
    assert done.exit_code == 0, done.output
    assert f"eval_{term}_accuracy" in json.loads(done.stdout)["metrics"]
    assert type(minibert.load(place / "pairs" / "model")).__name__ == name


@pytest.mark.slow
def test_instructions(place):
    """With an average of the parameters, and smaller learning rates of lower layers."""
    rows = [{"ask": f"{words('things')}: ", "completion": words("animals", 3)} for _ in range(30)]
    (place / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["train", "--task", "instruction", "--config", "tiny", "--tokenizer", place / "base"]
    command += ["--data", place / "asked.jsonl", "--prompt", "ask", "--output", place / "told"]
    command += ["--steps", "20", "--batch-size", "8", "--max-length", "16", "--json"]
    command += ["--evaluation-fraction", "0.2", "--learning-rate", "0.01"]
    command += ["--ema-decay", "0.5", "--layer-decay", "0.9"]
    done = run(*command)
    assert done.exit_code == 0, done.output
    metrics = json.loads(done.stdout)["metrics"]
    lines = (place / "told" / "log.jsonl").read_text().splitlines()
    assert metrics["eval_loss"] < json.loads(lines[0])["loss"] - 0.5
    refused = run(*command, "--resume", "--ema-decay", "0.9", "--steps", "21")
    assert "average_decay: 0.5 in the checkpoint, 0.9 here" in refused.output
    run_of = minibert.pipeline("text-generation", str(place / "told" / "model"))
    assert run_of("house tree: ", max_new_tokens=2)


@pytest.mark.slow
def test_continuation(place):
    command = ["train", "--task", "continuation", "--config", "tiny", "--data", place / "text.txt"]
    command += ["--tokenizer", place / "base", "--output", place / "continued", "--steps", "3"]
    command += ["--batch-size", "4", "--max-length", "16"]
    refused = run(*command)
    assert refused.exit_code == 1
    assert "filler: missing; continuation needs" in refused.output
    done = run(*command, "--filler", "1", "--overwrite", "--json")
    assert done.exit_code == 0, done.output
    assert {"given", "continued"} <= json.loads(done.stdout)["metrics"].keys()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("problem", "labels", "found"),
    [
        ("multi_label_classification", {"animals": ["a", "x"], "things": []}, {"a", "x"}),
        ("regression", {"animals": 1.5, "things": -1}, {"LABEL_0"}),
    ],
)
def test_problem_types(problem, labels, found, place):
    rows = [{"text": words(kind), "label": labels[kind]} for kind in ["things", "animals"] * 20]
    source = place / f"{problem}.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = recipe(place, place / problem, data=str(source), problem_type=problem, epochs=12)
    done = run("train", path, "--fsdp", "1", "--evaluation-fraction", "0.3")
    assert done.exit_code == 0, done.output
    classify = minibert.pipeline("text-classification", str(place / problem / "model"))
    assert classify.model.config.problem_type == problem
    glad, sad = classify(["cat dog bird", "river house door"], top_k=None)
    assert {one["label"] for one in glad} == found
    assert min(one["score"] for one in glad) > max(one["score"] for one in sad) + 0.3


@pytest.mark.slow
def test_adapters(place):
    """The newly initialised head is trained in addition to the adapters."""
    path = recipe(place, place / "adapted", lora_rank=2, epochs=1)
    done = run("train", path)
    assert done.exit_code == 0, done.output
    tensors = load_file(place / "adapted" / "adapter" / "adapter_model.safetensors")
    assert "base_model.model.classifier.weight" in tensors
    fields = json.loads((place / "adapted" / "adapter" / "adapter_config.json").read_text())
    assert fields["task_type"] == "SEQ_CLS"


@pytest.mark.slow
def test_adapters_beside_a_new_language_model_head(place, tmp_path):
    """The layers of a head that the model lacks are trained; those of one that it has are not."""
    command = ["train", "--task", "masked-lm", "--data", place / "text.txt", "--new-head"]
    command += ["--max-length", 8, "--batch-size", 4, "--lora-rank", 2, "--steps", 2]
    headed = tmp_path / "one" / "model"
    for model, output, saved in ((place / "base", "one", 4), (headed, "two", 0)):
        done = run(*command, "--model", model, "--output", tmp_path / output)
        assert done.exit_code == 0, done.output
        tensors = load_file(tmp_path / output / "adapter" / "adapter_model.safetensors")
        whole = [name for name in tensors if ".lora_" not in name]
        assert len(whole) == saved
        assert all("cls.predictions.transform." in name for name in whole)


PAIRS = [{"anchor": "The cat", "positive": "a dog"}, {"anchor": "house", "positive": "The door"}]


def vectors(folder, texts, **options):
    """Those of minibert; compared with sentence-transformers'."""
    peers = pytest.importorskip("sentence_transformers", reason="it reads the folder")
    ours = minibert.SentenceEncoder.from_pretrained(folder)
    theirs = peers.SentenceTransformer(str(folder), device="cpu")
    found = ours.encode(texts, **options)
    np.testing.assert_allclose(found, theirs.encode(texts, **options), atol=EMBEDDING)
    return ours, found


@pytest.mark.slow
def test_a_sentence_encoder_stays_one(place, tmp_path):
    """Modules, prompts and lengths are the folder's, and training uses its embeddings."""
    base = minibert.load(place / "base")
    before = minibert.SentenceEncoder(
        base,
        load_tokenizer(place / "base"),
        pooling=("cls", "max"),
        dense=Dense(48, 10, activation="tanh", rngs=nnx.Rngs(1)),
        normalize=True,
        prompts={"query": "bird: "},
        default_prompt_name="query",
        max_seq_length=9,
        do_lower_case=True,
    )
    before.save_pretrained(tmp_path / "encoder")
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    command = ["train", "--task", "contrastive", "--model", tmp_path / "encoder", "--max-length"]
    command += [16, "--data", tmp_path / "pairs.jsonl", "--evaluation", tmp_path / "pairs.jsonl"]
    command += ["--output", tmp_path / "out", "--steps", 2, "--batch-size", 2, "--json"]
    command += ["--learning-rate", 0.01]
    refused = run(*command, "--pooling", "mean")
    assert refused.exit_code == 1
    assert "pooling: expected cls, max or nothing" in refused.output
    assert "found mean" in refused.output
    done = run(*command)
    assert done.exit_code == 0, done.output
    texts = [row[column] for column in ("anchor", "positive") for row in PAIRS]
    after, found = vectors(tmp_path / "out" / "model", texts, prompt="")
    assert [type(module).__name__ for module in after.model.chain] == [
        *("Pooling", "Dense", "Normalize")
    ]
    assert after.settings == before.settings
    old, new = (one.model.chain[1].linear for one in (before, after))
    np.testing.assert_array_equal(old.kernel[...], new.kernel[...])
    assert np.abs(found - before.encode(texts, prompt="")).max() > 1e-3
    scores = 20 * found[:2] @ found[2:].T
    loss = np.mean(np.log(np.exp(scores).sum(axis=1)) - np.diag(scores))
    metrics = json.loads(done.stdout)["metrics"]
    assert metrics["eval_loss"] == pytest.approx(loss, abs=1e-4)


@pytest.mark.slow
def test_a_sentence_encoder_of_a_plain_model(place, tmp_path):
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    done = run(
        *("train", "--task", "contrastive", "--model", place / "base", "--pooling", "cls"),
        *("--data", tmp_path / "pairs.jsonl", "--output", tmp_path / "out", "--steps", 1),
        *("--batch-size", 2, "--max-length", 16),
    )
    assert done.exit_code == 0, done.output
    encoder, _ = vectors(tmp_path / "out" / "model", ["a cat", "the door"])
    (pooling,) = encoder.model.chain
    assert pooling.modes == ("cls",)
    assert isinstance(minibert.load(tmp_path / "out" / "model"), minibert.BertModel)


def test_help_shows_defaults():
    words = "".join(filter(str.isascii, run("train", "--help").output)).split()
    for field in FIELDS.values():
        if field.default not in (dataclasses.MISSING, None):
            flag = f"no-{field.name.replace('_', '-')}"
            shown = flag if field.default is False else field.default
            assert f"[default: {shown}]" in " ".join(words), field.name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("learning_rat = 1.0\n", r"unknown key: 'learning_rat' \(did you mean learning_rate\?\)"),
        (
            'batch_size = "8"\n',
            "batch_size: expected a whole number from 1 to 2147483647, found '8'",
        ),
        ("remat = 1\n", "remat: expected true or false, found 1"),
        (
            "batch_size = true\n",
            "batch_size: expected a whole number from 1 to 2147483647, found True",
        ),
        ('trainable = ["a", 1]\n', r"trainable: expected a list of texts, found \['a', 1\]"),
        ("steps = 1\nepochs = 1\n", "steps, epochs: expected one of them"),
        ("patience = 2\nsteps = 1\n", "patience: needs evaluation or evaluation_fraction"),
        ("lora_alpha = 2\nsteps = 1\n", "lora_alpha: needs lora_rank"),
        *(
            (f'dtype = "{name}"\n', "dtype: expected one of float32, bfloat16, float16")
            for name in ("evil", "int32", "object", "complex64", "float8_e4m3fn", "")
        ),
        (f"seed = {2**70}\n", "seed: expected a whole number from 0 to 4294967295, found 11805"),
        (f"steps = {2**62}\n", "steps: expected a whole number from 1 to 2147483647, found 46116"),
        (
            f"filler = {-(2**62)}\n",
            "filler: expected a whole number from -2147483647 to 2147483647",
        ),
        *(
            (
                f'{name} = "a\\u0000b"\n',
                rf"{name}: expected a path without NUL characters, found "
                r"'a\\x00b'",
            )
            for name in ("config", "tokenizer", "evaluation")
        ),
        ("steps = \n", "not TOML"),
        ("[lora]\nrank = 1\n", "unknown key: 'lora'"),
    ],
)
def test_wrong_files(text, said, tmp_path):
    path = tmp_path / "a.toml"
    path.write_text(text)
    given = {"task": "masked-lm", "data": "a.txt", "output": "out", "model": "m"}
    with pytest.raises(ConfigError, match=said):
        read_settings(str(path), given)


def test_a_pipe_as_config_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.toml")
    with promptly(), pytest.raises(ConfigError, match=r"a\.toml: expected a regular file"):
        read_settings(str(tmp_path / "a.toml"), {})


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--task", "translation"], "task: expected one of causal-lm, instruction, continuation"),
        (["--probability", "0.3"], "probability: not a key of classification"),
        (["--data", "missing.jsonl"], "missing.jsonl"),
        (
            ["--dtype", "float64"],
            "dtype: float64 needs jax.enable_x64(True), or set JAX_ENABLE_X64",
        ),
        (["--class-weights", "1"], "class_weights: expected 2 weights, for the labels ['animals'"),
        (["--label-smoothing", "1"], "label_smoothing: expected a number of at least 0 and below"),
        (["--schedule", "steep"], "schedule: expected one of linear, cosine, constant"),
        (
            ["--accumulate", "0"],
            "accumulate: expected a whole number from 1 to 2147483647, found 0",
        ),
        (["--tensor", "0"], "tensor: expected a whole number from 1 to 2147483647, found 0"),
        (["--learning-rate", "nan"], "learning_rate: expected a number of at least 0"),
        (["--max-grad-norm", "0"], "max_grad_norm: expected a positive number"),
        (["--lora-rank", "2", "--lora-alpha", "0"], "lora_alpha: expected a positive number"),
        (["--pooling", "mean"], "pooling: not a key of classification"),
    ],
)
def test_wrong_flags(flags, said, place, tmp_path):
    refused = run("train", recipe(place, tmp_path / "out"), *flags)
    assert refused.exit_code == 1
    assert said in refused.output
    assert not (tmp_path / "out").exists() or not os.listdir(tmp_path / "out")
    assert run("train", tmp_path / "none.toml").exit_code == 1
