"""The `minibert` command for a new user: help, answers, errors, exit statuses."""

import json
import subprocess
import sys

import numpy as np
import pytest

import minibert
from commands import model_folder, run
from slowly import slow_but

pytestmark = [pytest.mark.unoptimised, pytest.mark.usefixtures("minilm")]
TEXTS = ["A cat sat on the mat.", "", "Stocks fell sharply on Monday.", "Two kittens are playing."]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Creates each model's folder when it is first requested."""
    made: dict[str, str] = {}

    def folder(name: str, **config) -> str:
        if name not in made:
            made[name] = model_folder(tmp_path_factory.mktemp(name) / "model", name, **config)
        return made[name]

    return folder


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("".join(f"{text}\n" for text in TEXTS))
    return str(path)


def test_help():
    found = run("--help")
    assert found.exit_code == 0
    for name in ("inspect", "embed", "similar", "fill-mask", "classify", "answer", "generate"):
        assert name in found.stdout
        assert run(name, "--help").exit_code == 0


def test_inspect(minilm):
    found = run("inspect", minilm)
    assert found.exit_code == 0
    assert "(word_embeddings): Embed(30522, 384)" in found.stdout
    assert "22,713,216 parameters" in found.stdout
    assert "matched: 103" in found.stdout
    read = json.loads(run("inspect", minilm, "--json").stdout)
    assert read["model"] == "BertModel"
    assert read["parameters"] == 22_713_216
    assert read["config"]["hidden_size"] == 384


def test_fill_mask(folders):
    text = "Paris is the [MASK] of France."
    model = folders("BertForMaskedLM")
    read = json.loads(run("fill-mask", model, text, "--top-k", "3", "--json").stdout)
    assert read == minibert.pipeline("fill-mask", model)(text, top_k=3)
    printed = run("fill-mask", model, text, "--target", "city", "--target", "king").stdout
    assert "city" in printed
    assert "king" in printed
    two = run("fill-mask", model, "[MASK] and [MASK]", "--top-k", "2")
    assert two.exit_code == 0
    assert two.stdout.count("score") == 2


def test_classify(folders):
    model = folders("BertForSequenceClassification", id2label={0: "sad", 1: "glad", 2: "neither"})
    printed = run("classify", model, "What a day!")
    assert printed.exit_code == 0
    assert any(label in printed.stdout for label in ("sad", "glad", "neither"))
    read = json.loads(run("classify", model, "A", "--pair", "B", "--top-k", "3", "--json").stdout)
    assert {row["label"] for row in read} == {"sad", "glad", "neither"}
    assert sum(row["score"] for row in read) == pytest.approx(1, abs=1e-5)
    long = run("classify", model, "word " * 1000)
    assert long.exit_code == 1
    assert "found 1002;" in long.stderr
    assert run("classify", model, "word " * 1000, "--truncate").exit_code == 0


def test_answer(folders, tmp_path):
    model, context = folders("BertForQuestionAnswering"), "Lyon is in France. Rome is in Italy."
    read = json.loads(run("answer", model, "Where?", "--context", context, "--json").stdout)
    assert context[read[0]["start"] : read[0]["end"]] == read[0]["answer"]
    (tmp_path / "a.txt").write_text(context)
    found = run("answer", model, "Where?", "--context-file", tmp_path / "a.txt", "--top-k", "2")
    assert read[0]["answer"] in found.stdout
    assert run("answer", model, "Where?").exit_code == 2


def test_generate(folders):
    model = folders("BertLMHeadModel", is_decoder=True)
    whole = run("generate", model, "the cat", "--max-new-tokens", "5")
    assert whole.exit_code == 0
    assert whole.stdout.startswith("the cat")
    assert whole.stdout.endswith("\n")
    read = json.loads(run("generate", model, "the cat", "--max-new-tokens", "5", "--json").stdout)
    assert whole.stdout == read[0]["generated_text"] + "\n"
    drawn = [run("generate", model, "a", "--max-new-tokens", "5", "--seed", s) for s in "001"]
    assert drawn[0].stdout == drawn[1].stdout != drawn[2].stdout
    assert run("generate", model, "a", "--max-new-tokens", "3", "--beams", "2").exit_code == 0
    refused = run("generate", model, "a", "--temperature", "0.5")
    assert refused.exit_code == 1
    assert "temperature" in refused.stderr


@pytest.mark.parametrize("precision", slow_but(["float32", "int8", "ubinary"], "int8"))
def test_embed(precision, minilm, texts, tmp_path):
    output = tmp_path / "out.npy"
    done = run("embed", texts, "-o", output, "-m", minilm, "--precision", precision)
    assert done.exit_code == 0, done.stderr
    assert "Wrote 4 rows" in done.stdout
    encoder = minibert.SentenceEncoder.from_pretrained(minilm)
    expected = encoder.encode(TEXTS, precision=precision)
    np.testing.assert_allclose(np.load(output), expected, atol=1e-6)
    again = run("embed", texts, "-o", output, "-m", minilm)
    assert again.exit_code == 1
    assert "exists" in again.stderr
    read = run("embed", texts, "-o", output, "-m", minilm, "--overwrite", "--json")
    assert json.loads(read.stdout) == {
        "output": str(output),
        "rows": 4,
        "computed": 4,
        "cut": 0,
        "max_seq_length": 256,
    }


def test_similar(minilm, texts):
    found = run("similar", minilm, "a feline animal", "--among", texts, "--top-k", "2", "--json")
    hits = json.loads(found.stdout)[0]["hits"]
    assert {hit["row"] for hit in hits} == {0, 3}
    assert hits[0]["text"] == TEXTS[hits[0]["row"]]
    printed = run(
        "similar", minilm, "shares lost value", "pets", "--among", texts, "--top-k", "1"
    ).stdout
    assert printed.index("shares") < printed.index("Stocks") < printed.index("pets")


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["inspect", "nowhere/at/all"], 1, "nowhere/at/all"),
        (["inspect"], 2, "MODEL"),
        (["nonsense"], 2, "nonsense"),
        (["embed", "missing.txt", "-o", "out.npy", "-m", "x"], 1, "missing.txt"),
        (["embed", "a.txt", "-m", "x"], 2, "--output"),
        (["inspect", "x", "--device", "abacus"], 1, "abacus"),
        (["fill-mask", "x", "y", "--top-k", "0"], 2, "greater than or equal to 1"),
    ],
)
def test_refusals_are_one_line(arguments, status, said):
    found = run(*arguments)
    assert found.exit_code == status
    assert said in found.stderr
    assert "Traceback" not in found.output
    if status == 1:
        assert found.stderr.startswith("error: ")
        assert found.stderr.count("\n") == 1


def test_the_entry_point(minilm):
    command = [sys.executable, "-m", "minibert.cli.app", "inspect", minilm, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["model"] == "BertModel"
