"""Objects survive pickle and copies, work in other processes, and serve several threads at once."""

import concurrent.futures
import contextlib
import copy
import functools
import multiprocessing
import pickle
import sys
import threading
from typing import Any

import jax
import numpy as np
import pytest

import minibert
import sentences
from minibert.errors import TextError
from minibert.models.compilation import compiled
from minibert.train import LoRA
from minibert.train.lora.adapter import init_adapter, merge
from slowly import slow_but

pytestmark = pytest.mark.unoptimised

IDS = np.random.default_rng(0).integers(5, 90, (2, 6))
TEXTS = ["the of and to in", "a that it", "was for on are"]
BAD = "half a pair: \ud800"

model = functools.cache(sentences.model)


def pipe(task: str, name: str, **config: Any) -> Any:
    family = "gpt2" if name.startswith("GPT2") else "bert"
    tokenizer = sentences.tokenizer(family)
    return minibert.pipeline(task, model(name, **config), tokenizer=tokenizer)


# By name: how an object is made, and what is asked of it, with options.
OBJECTS = {
    "config": (lambda: model("BertModel").config, lambda one: one.to_dict()),
    "generation config": (
        lambda: minibert.GenerationConfig(num_beams=3, bad_words_ids=[[3], [4, 5]]),
        lambda one: one.to_dict(),
    ),
    "model": (lambda: model("BertModel"), lambda one, **given: one(IDS, **given)),
    "compiled": (
        lambda: compiled(model("BertForMaskedLM")),
        lambda one, **given: one(IDS, **given),
    ),
    "decoder": (
        lambda: model("GPT2LMHeadModel"),
        lambda one, **given: minibert.generate(one, IDS, **{"max_new_tokens": 3, **given}),
    ),
    "encoder": (
        lambda: sentences.encoder(prompts={"query": "in "}, normalize=True),
        lambda one, **given: one.encode(TEXTS, **given),
    ),
    "outputs": (lambda: model("GPT2LMHeadModel")(IDS, use_cache=True), lambda one: dict(one)),
    "adapter": (
        lambda: init_adapter(model("GPT2Model"), LoRA(r=2, init_lora_weights=False)),
        lambda one: merge(model("GPT2Model"), one)(IDS),
    ),
    "fill-mask": (
        lambda: pipe("fill-mask", "BertForMaskedLM"),
        lambda one, **given: one([f"{text} [MASK]" for text in TEXTS], **given),
    ),
    "text-classification": (
        lambda: pipe("text-classification", "BertForSequenceClassification", num_labels=3),
        lambda one, **given: one(TEXTS, **given),
    ),
    "token-classification": (
        lambda: pipe("token-classification", "BertForTokenClassification"),
        lambda one, **given: one(TEXTS, **given),
    ),
    "question-answering": (
        lambda: pipe("question-answering", "BertForQuestionAnswering"),
        lambda one, **given: one([{"question": "what", "context": t} for t in TEXTS], **given),
    ),
    "feature-extraction": (
        lambda: pipe("feature-extraction", "BertModel"),
        lambda one, **given: one(TEXTS, **given),
    ),
    "text-generation": (
        lambda: pipe("text-generation", "GPT2LMHeadModel"),
        lambda one, **given: one(TEXTS, **{"max_new_tokens": 3, **given}),
    ),
}

# What one object is asked at the same time.
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "compiled": [
        {},
        {"output_hidden_states": True},
        {"output_attentions": True},
        {"attention_mask": IDS > 20},
    ],
    "decoder": [
        {"num_beams": 2},
        {"repetition_penalty": 1.5},
        {"do_sample": True, "key": np.uint32([0, 7]), "top_k": 5},
        {"max_new_tokens": 5},
    ],
    "encoder": [{}, {"packing": 16}, {"truncate_dim": 5}, {"prompt_name": "query"}],
    "fill-mask": [{"top_k": 1}, {"top_k": 3}, {"targets": ["the", "of"]}, {"truncation": True}],
    "text-classification": [
        {"top_k": None},
        {"function_to_apply": "none"},
        {"truncation": True, "max_length": 4},
        {"truncation": True, "max_length": 5},
    ],
    "token-classification": [
        {"aggregation_strategy": "simple"},
        {"ignore_labels": []},
        {"truncation": True, "max_length": 4},
        {"truncation": True, "max_length": 5},
    ],
    "question-answering": [{"top_k": 3}, {"max_seq_len": 10, "doc_stride": 2}, {}, {"top_k": 2}],
    "feature-extraction": [
        {},
        {"return_tensors": True},
        {"truncation": True, "max_length": 3},
        {"truncation": True, "max_length": 4},
    ],
    "text-generation": [
        {"num_beams": 2},
        {"return_full_text": False},
        {"stop_strings": ["a"]},
        {"max_new_tokens": 5},
    ],
}

COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda one: pickle.loads(pickle.dumps(one)),
}


def check_equal(found: Any, expected: Any) -> None:
    found, expected = (jax.tree.flatten(tree) for tree in (found, expected))
    assert found[1] == expected[1]
    for one, other in zip(found[0], expected[0], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", OBJECTS)
def test_copies_answer_alike(name):
    make, ask = OBJECTS[name]
    one = make()
    expected = ask(one)  # objects that were used already are copied too
    for way, copied in COPIES.items():
        found = copied(one)
        assert type(found) is type(one), way
        check_equal(ask(found), expected)


def test_a_copy_has_its_own_weights():
    fast = compiled(model("BertModel"))
    copied = pickle.loads(pickle.dumps(fast))
    assert jax.tree.leaves(copied.model)[0] is copied.programs.leaves[0]
    assert jax.tree.leaves(copied.model)[0] is not fast.programs.leaves[0]
    assert len(pickle.dumps(fast)) < 1.5 * len(pickle.dumps(fast.model))  # weights once


def test_what_is_set_in_a_copy_of_an_encoder():
    encoder = sentences.encoder()
    copied = copy.copy(encoder)
    copied.max_seq_length = 3
    assert encoder.max_seq_length == 40
    assert np.abs(copied.encode(TEXTS) - encoder.encode(TEXTS)).max() > 1e-3
    check_equal(pickle.loads(pickle.dumps(copied)).encode(TEXTS), copied.encode(TEXTS))


@pytest.mark.parametrize("name", slow_but(OPTIONS, "compiled", "encoder", "fill-mask"))
def test_threads_get_their_own_answers(name):
    make, ask = OBJECTS[name]
    one, options = make(), [*OPTIONS[name], *OPTIONS[name]]
    expected = [ask(make(), **given) for given in OPTIONS[name]] * 2
    start = threading.Barrier(len(options))

    def answers(given: dict[str, Any]) -> list[Any]:
        start.wait()
        return [ask(one, **given) for _ in range(3)]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with concurrent.futures.ThreadPoolExecutor(len(options)) as pool:
            found = list(pool.map(answers, options))
    finally:
        sys.setswitchinterval(interval)
    for several, alone in zip(found, expected, strict=True):
        for answer in several:
            check_equal(answer, alone)


def asked(name: str, one: Any) -> Any:
    return jax.device_get(OBJECTS[name][1](one))


def encoded(encoder: Any, texts: list[str]) -> np.ndarray:
    return encoder.encode(texts)


@pytest.mark.slow
def test_processes_answer_alike():
    """One bad text is its caller's error, and the pool goes on."""
    context = multiprocessing.get_context("spawn")
    ones = {name: make() for name, (make, _) in OBJECTS.items()}
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(concurrent.futures.ProcessPoolExecutor(1, context))
        found = {name: pool.submit(asked, name, one) for name, one in ones.items()}
        for name, answer in found.items():
            check_equal(answer.result(), asked(name, ones[name]))
        encoder = ones["encoder"]
        with pytest.raises(TextError, match="half a surrogate pair") as caught:
            pool.submit(encoded, encoder, ["the", BAD]).result()
        assert caught.value.number == 1
        check_equal(pool.submit(encoded, encoder, TEXTS).result(), encoder.encode(TEXTS))
