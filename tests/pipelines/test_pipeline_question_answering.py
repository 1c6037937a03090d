"""Question answering returns what transformers 4.57.6 did (tests/record/question_answering.py)."""

import json

import pytest

from conftest import FIXTURES
from minibert.errors import InputError
from minibert.pipelines import pipeline

SCORE = 1e-5
RECORDED = FIXTURES / "question_answering"
FAMILIES = ("bert", "gpt2")
QUESTION, CONTEXT = "Where do I live?", "My name is Wolfgang and I live in Berlin."


@pytest.fixture(scope="module")
def bert():
    return pipeline("question-answering", RECORDED / "bert")


def recorded(family: str, name: str = "answers") -> list[dict]:
    return json.loads((RECORDED / family / f"{name}.json").read_text())


def check(found, case) -> None:
    found = [a for a in (found if isinstance(found, list) else [found]) if a["score"]]
    # what cannot be an answer is one of theirs, with a score of 0, if there are no others
    answers = [answer for answer in case["answers"] if answer["score"]]
    assert len(found) == len(answers), case
    for ours, theirs in zip(found, answers, strict=True):
        assert list(ours) == ["score", "start", "end", "answer"]
        assert {**ours, "score": 0} == {**theirs, "score": 0}, case
        # an answer that stands in many windows has the sum of their scores
        assert ours["score"] == pytest.approx(theirs["score"], abs=SCORE, rel=SCORE)


def answering(family: str, name: str = "answers"):
    """The recorded model, with a tokenizer that pads on the left for `answers_left`."""
    if name == "answers":
        return pipeline("question-answering", RECORDED / family)
    transformers = pytest.importorskip("transformers")
    left = transformers.AutoTokenizer.from_pretrained(RECORDED / family, padding_side="left")
    return pipeline("question-answering", RECORDED / family, tokenizer=left)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["answers", "answers_left"])
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_of_transformers(family, name):
    answer, cases = answering(family, name), recorded(family, name)
    assert len(cases) > 80
    for case in cases:
        given = {"question": case["question"], "context": case["context"] * case["repeat"]}
        check(answer(given, **case["options"]), case)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_context_comes_first_if_padding_is_on_the_left(family):
    name, options = "answers_left", {"max_seq_len": 40, "doc_stride": 10, "top_k": 2}
    cases = [case for case in recorded(family, name) if case["options"] == options]
    inputs = [{"question": c["question"], "context": c["context"]} for c in cases]
    found = answering(family, name)(inputs, **options)
    for ours, case in zip(found, cases, strict=True):
        check(ours, case)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_lists_and_generators(family):
    answer = pipeline("question-answering", RECORDED / family)
    cases = [case for case in recorded(family) if not case["options"] and case["repeat"] == 1]
    inputs = [{"question": c["question"], "context": c["context"] * c["repeat"]} for c in cases]
    for found in (answer(inputs), answer(iter(inputs))):
        for ours, case in zip(found, cases, strict=True):
            check(ours, case)


def test_ways_to_ask(bert):
    expected = bert({"question": QUESTION, "context": CONTEXT})
    assert bert(question=QUESTION, context=CONTEXT) == expected
    assert bert(QUESTION, CONTEXT) == expected
    assert bert([{"question": QUESTION, "context": CONTEXT}]) == expected
    assert bert(question=[QUESTION, QUESTION], context=CONTEXT) == [expected] * 2
    assert bert(question=[QUESTION] * 2, context=[CONTEXT] * 2) == [expected] * 2
    assert CONTEXT[expected["start"] : expected["end"]] == expected["answer"]


def test_a_question_is_cut_when_it_is_asked_for(bert):
    long = f"{QUESTION} " * 3
    assert bert(long, CONTEXT, max_question_len=5) == bert(QUESTION, CONTEXT)
    assert bert(QUESTION, CONTEXT, max_question_len=5) == bert(QUESTION, CONTEXT)


def test_a_long_question_leaves_windows_that_overlap(bert):
    context = CONTEXT * 5
    found = bert(QUESTION * 8, context)  # theirs panics
    assert found["answer"] == context[found["start"] : found["end"]]


def test_a_context_without_words_answers_nothing(bert):
    assert bert(QUESTION, " \n")["answer"] == ""


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ((), {}, "expected both"),
        ((QUESTION,), {}, "expected.*question"),
        ((QUESTION, ""), {}, "context: expected a non-empty text"),
        (("", CONTEXT), {}, "question: expected a non-empty text"),
        ((QUESTION, 3), {}, "expected a text, found 3"),
        ((QUESTION, CONTEXT), {"question": QUESTION}, "passed twice"),
        ((QUESTION, CONTEXT, CONTEXT), {}, "3 arguments"),
        (([QUESTION] * 2, [CONTEXT]), {}, "as many contexts as questions, 2, found 1"),
        ((QUESTION, CONTEXT), {"top_k": 0}, "top_k: .* at least 1, found 0"),
        ((QUESTION, CONTEXT), {"max_answer_len": 0}, "max_answer_len: .*found 0"),
        ((QUESTION, CONTEXT), {"max_seq_len": 65}, "max_seq_len: .*from 1 to 64, found 65"),
        ((QUESTION, CONTEXT), {"doc_stride": 70}, "doc_stride: .*from 0 to 64, found 70"),
        ((QUESTION, CONTEXT), {"max_seq_len": 8}, "question: leaves no space .* of 8 tokens"),
        ((QUESTION, CONTEXT * 9), {"doc_stride": 60}, r"cannot overlap by 60 .*space for only \d+"),
        (([QUESTION * 20], CONTEXT), {}, "question: leaves no space"),
        ((QUESTION, CONTEXT), {"topk": 2}, r"topk: unknown option .*did you mean top_k\?"),
        (([{"question": QUESTION}, 2],), {}, "input 0: expected"),
    ],
)
def test_what_is_wrong_is_named(bert, given, options, message):
    with pytest.raises(InputError, match=message):
        bert(*given, **options)
