"""Pipelines of every task, on the models in the package and on drawn ones with their tokenizer."""

import pathlib
from typing import Any

import jax
import numpy as np
from transformers import AutoTokenizer

from .models import drawn
from .surface import assets, minibert, pipelines

TEXT = "The exception is raised again. If no handler is found, the program ends."
QUESTION = "What is raised again?"
LONG = " ".join([TEXT, "Strings are sequences of characters."] * 4)


def tokenizer(place: str | None = None) -> Any:
    return AutoTokenizer.from_pretrained(place or assets.BERT)


def small(name: str, **config: Any) -> Any:
    """A drawn model of the tokenizer's vocabulary."""
    return drawn(name, vocab_size=2048, max_position_embeddings=64, **config)


def made(task: str, name: str, **options: Any) -> Any:
    config = options.pop("config", {})
    return minibert.pipeline(task, small(name, **config), tokenizer=tokenizer(), **options)


def fill_mask(folder: pathlib.Path) -> Any:
    fill = minibert.pipeline("fill-mask", assets.BERT)
    assert isinstance(fill, pipelines.FillMaskPipeline)
    words = ["raised", "found", "string"]
    return {
        "one": fill("If no exception [MASK], the else clause runs.", top_k=3),
        "two": fill("The [MASK] is [MASK].", top_k=2),
        "list": fill(["A [MASK].", "The variable is bound in the local [MASK]."], top_k=1),
        "targets": fill("An exception is [MASK].", targets=words),
        "iterable": list(fill((text for text in ("A [MASK].", "The [MASK].")), top_k=1)),
        "text": repr(fill),
    }


def text_classification(folder: pathlib.Path) -> Any:
    labels = {"config": {"id2label": {0: "glad", 1: "sad", 2: "neither"}}}
    run = made("text-classification", "BertForSequenceClassification", **labels)
    assert isinstance(run, pipelines.TextClassificationPipeline)
    several = {"config": {"problem_type": "multi_label_classification", "num_labels": 3}}
    many = made("sentiment-analysis", "BertForSequenceClassification", **several)
    gpt2 = small("GPT2ForSequenceClassification")
    other = minibert.pipeline("text-classification", gpt2, tokenizer=tokenizer(assets.GPT2))
    return {
        "one": run(TEXT),
        "all": run([TEXT, "Again."], top_k=None),
        "pair": run({"text": TEXT, "text_pair": QUESTION}, function_to_apply="none"),
        "many": many(TEXT, top_k=None),
        "cut": run(LONG, truncation=True, max_length=20),
        "gpt2": other([TEXT, "Again."]),
    }


def token_classification(folder: pathlib.Path) -> Any:
    names = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC"}
    run = made("ner", "BertForTokenClassification", config={"id2label": names})
    assert isinstance(run, pipelines.TokenClassificationPipeline)
    kinds = ("none", "simple", "first", "average", "max")
    found = {kind: run(TEXT, aggregation_strategy=kind) for kind in kinds}
    return found | {"kept": run(["Again.", TEXT], ignore_labels=["B-PER"])}


def question_answering(folder: pathlib.Path) -> Any:
    run = made("question-answering", "BertForQuestionAnswering")
    assert isinstance(run, pipelines.QuestionAnsweringPipeline)
    windows = {"max_seq_len": 40, "doc_stride": 12}
    return {
        "one": run(question=QUESTION, context=TEXT),
        "several": run(question=QUESTION, context=LONG, top_k=3, **windows),
        "impossible": run(
            {"question": QUESTION, "context": LONG}, handle_impossible_answer=True, **windows
        ),
        "tokens": run(question=QUESTION, context=TEXT, align_to_words=False, max_answer_len=3),
        "list": run([{"question": QUESTION, "context": c} for c in (TEXT, "The loop ends.")]),
    }


def feature_extraction(folder: pathlib.Path) -> Any:
    run = made("feature-extraction", "BertModel")
    assert isinstance(run, pipelines.FeatureExtractionPipeline)
    return {"one": np.asarray(run(TEXT)), "list": [np.asarray(one) for one in run(["A.", TEXT])]}


def next_sentence(folder: pathlib.Path) -> Any:
    run = made("next-sentence-prediction", "BertForNextSentencePrediction")
    assert isinstance(run, pipelines.NextSentencePredictionPipeline)
    return run([{"text": TEXT, "text_pair": QUESTION}, {"text": "A.", "text_pair": "B."}])


def text_generation(folder: pathlib.Path) -> Any:
    run = minibert.pipeline("text-generation", assets.GPT2, max_new_tokens=8)
    assert isinstance(run, pipelines.TextGenerationPipeline)
    pieces: list[str] = []
    prompt = "The for statement is used to"
    return {
        "greedy": run(prompt, do_sample=False),
        "beams": run(prompt, num_beams=2, num_return_sequences=2, do_sample=False),
        "drawn": run([prompt, "A string"], do_sample=True, key=jax.random.key(0), top_k=10),
        "stopped": run(prompt, do_sample=False, stop_strings=[" the"], callback=pieces.append),
        "pieces": pieces,
        "new": run("A function definition", do_sample=False, return_full_text=False),
    }


def stages(folder: pathlib.Path) -> Any:
    """One stage after the other, and a class of the caller's own."""
    run = made("text-classification", "BertForSequenceClassification", top_k=1)

    class Shouting(pipelines.TextClassificationPipeline):
        def preprocess(self, inputs: Any, **options: Any) -> Any:
            return super().preprocess(f"{inputs}!", **options)

    own = made("text-classification", "BertForSequenceClassification", pipeline_class=Shouting)
    first = run.preprocess(TEXT)
    second = run.forward(first)
    return {"first": first, "second": second, "third": run.postprocess(second), "own": own(TEXT)}


CASES = (
    fill_mask,
    text_classification,
    token_classification,
    question_answering,
    feature_extraction,
    next_sentence,
    text_generation,
    stages,
)
