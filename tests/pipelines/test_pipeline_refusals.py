"""Errors of pipelines: one each, which names the input."""

import numpy as np
import pytest
from flax import nnx

import minibert
from malformed import with_damaged_map
from minibert.errors import ConfigError, InputError
from minibert.pipelines import FeatureExtractionPipeline, FillMaskPipeline, pipeline

pytestmark = pytest.mark.unoptimised

BERT = {"vocab_size": 30522, "max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("fillmask", {}, r"'fillmask': unknown task \(did you mean fill-mask\?\)"),
        ("translation", {}, "'translation': unknown task .*text-generation"),
        ("fill-mask", {"topk": 3}, r"topk: unknown option of fill-mask \(did you mean top_k\?\)"),
        ("fill-mask", {"device": 0}, "device: unknown option of fill-mask: arrays go to JAX's"),
        ("fill-mask", {"batch_size": 0}, "batch_size: expected a whole number of at least 1"),
        ("fill-mask", {"token_budget": "8"}, "token_budget: expected a whole number of at least"),
        ("fill-mask", {"num_workers": 2}, "num_workers: .*there are no worker processes"),
        ("text-generation", {"device": 0}, "device: unknown option of text-generation: arrays go"),
        ("text-generation", {"generate_kwargs": {}}, "generate_kwargs: .*pass the options themsel"),
        (
            "fill-mask",
            {"model_kwargs": {}},
            "model_kwargs: .*pass the arguments of from_pretrained",
        ),
        (None, {"pipeline_class": int}, "pipeline_class: expected a subclass of Pipeline"),
        (
            "zero-shot-classification",
            {},
            "zero-shot-classification expects a BertForSequenceClassification or",
        ),
        (
            "fill-mask",
            {"revision": "main"},
            "revision: only for loading, but the model is already loaded",
        ),
        ("fill-mask", {"tokenizer": None}, "tokenizer: required when the model"),
        ("fill-mask", {"tokenizer": 5}, "tokenizer: expected a tokenizer, found 5"),
        (
            "text-classification",
            {},
            "expects a BertForSequenceClassification or a GPT2For.*MaskedLM",
        ),
        ("feature-extraction", {}, "a BertForMaskedLM has a head; pass its base model, model.bert"),
        (
            "text-generation",
            {},
            "a BertLMHeadModel or a GPT2LMHeadModel or a RobertaForCausalLM.*, found BertForM",
        ),
    ],
)
def test_a_pipeline_that_cannot_be(masked, tokenizer, task, options, message):
    with pytest.raises(InputError, match=message):
        pipeline(task, masked, **{"tokenizer": tokenizer} | options)


def test_models_must_be_models_in_evaluation_mode(masked, tokenizer, minilm):
    with pytest.raises(InputError, match=r"expects a BertForMaskedLM or .*, found 'x'"):
        FillMaskPipeline(model="x", tokenizer=tokenizer)
    with pytest.raises(InputError, match="found NoneType"):
        FeatureExtractionPipeline(tokenizer=tokenizer)
    config = minibert.BertConfig.tiny()
    training = minibert.BertForMaskedLM(config, rngs=nnx.Rngs(0)).train()
    with pytest.raises(InputError, match="training mode"):
        FillMaskPipeline(training, tokenizer)


def test_a_tokenizer_without_a_mask_is_refused(masked, minilm):
    maskless = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(minilm)
    maskless.mask_token = None
    with pytest.raises(InputError, match="tokenizer: fill-mask needs a mask token"):
        pipeline("fill-mask", masked, tokenizer=maskless)


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ("no mask", {}, r"^no \[MASK\] in 'no mask'"),
        (["a [MASK]", "none"], {}, r"^input 1: no \[MASK\] in 'none'"),
        ("", {}, r"no \[MASK\]"),
        (f"{'long ' * 80}[MASK]", {}, "^expected at most 64 tokens .*, found 83; truncation=True"),
        (
            ["[MASK]", f"{'long ' * 80}[MASK]"],
            {},
            "^input 1: expected at most 64 tokens .*, found 83",
        ),
        (f"{'long ' * 80}[MASK]", {"truncation": True}, "left after truncation"),
        (["[MASK]", 5], {}, "^input 1: expected a text, found 5"),
        (("[MASK]", "[MASK]"), {}, "expected a text, found "),
        (b"[MASK]", {}, "expected a text, found b"),
        ("[MASK] \ud800", {}, "half a surrogate pair"),
        ("[MASK]", {"top_k": 0}, "top_k: expected a whole number from 1 to 30522, found 0"),
        ("[MASK]", {"top_k": 30523}, "found 30523"),
        ("[MASK]", {"top_k": "3"}, "top_k: .*found '3'"),
        ("[MASK]", {"targets": []}, "targets: expected at least one"),
        ("[MASK]", {"targets": [""]}, "targets: '' has no tokens"),
        ("[MASK]", {"targets": [3]}, "targets: expected a text, found 3"),
        ("[MASK]", {"targets": 5}, "targets: expected a text or texts, found 5"),
        ("[MASK]", {"tokenizer_kwargs": "x"}, "tokenizer_kwargs: expected option → value, .*'x'"),
        ("[MASK]", {"tokenizer_kwargs": {"text": "a"}}, "tokenizer_kwargs: text: not allowed here"),
        ("[MASK]", {"tokenizer_kwargs": {"return_tensors": "np"}}, "return_tensors: not allowed"),
        (
            "[MASK]",
            {"tokenizer_kwargs": {"return_overflowing_tokens": True}},
            "tokenizer_kwargs: return_overflowing_tokens: not allowed",
        ),
        ("[MASK]", {"max_length": 5}, "max_length: has no effect alone"),
        ("[MASK]", {"token_budget": 0}, "token_budget: expected a whole number of at least 1"),
        ("[MASK]", {"batch_size": 1.5}, "batch_size: expected a whole number of at least 1"),
        ("[MASK]", {"tokenizer_kwargs": {"truncation": "somehow"}}, "the tokenizer rejects it"),
    ],
)
def test_masks_that_cannot_be_filled(fill, inputs, options, message):
    with pytest.raises(InputError, match=message):
        fill(inputs, **options)


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ({"text": "a", "pair": "b"}, {}, "expected a text, or a pair"),
        ([["a", "b"]], {}, "input 0: expected a text, or a pair"),
        (("a", "b", "c"), {}, "expected a text, or a pair"),
        (("a", 5), {}, "expected a text, found 5"),
        ("a", {"top_k": 0}, "top_k: expected a whole number of at least 1, found 0"),
        ("a", {"function_to_apply": "tanh"}, "function_to_apply: .*found 'tanh'"),
        ("a " * 100, {}, "expected at most 64 tokens .*, found 102"),
        ("a", {"token_budget": -1}, "token_budget: expected a whole number of at least 1"),
        (("a", "b"), {"max_length": 2, "truncation": True}, "max_length: .* at least 3, found 2"),
        ("a", {"max_length": "9", "truncation": True}, "max_length: .* at least 2, found '9'"),
    ],
)
def test_texts_that_cannot_be_classified(classify, inputs, options, message):
    with pytest.raises(InputError, match=message):
        classify(inputs, **options)


def test_the_tokenizers_words_must_be_the_models(tokenizer):
    small = minibert.BertForMaskedLM(minibert.BertConfig.tiny(), rngs=nnx.Rngs(0)).eval()
    with pytest.raises(InputError, match=r"input_ids: \d+ is out of range; .*vocab_size 97"):
        pipeline("fill-mask", small, tokenizer=tokenizer)("Paris is [MASK].")


def test_targets_that_only_the_tokenizer_knows(tokenizer):
    few = {"vocab_size": 29000, "max_position_embeddings": 64}
    small = minibert.BertForMaskedLM(minibert.BertConfig.tiny(**few), rngs=nnx.Rngs(0)).eval()
    run, rare = pipeline("fill-mask", small, tokenizer=tokenizer), "##~"
    word = tokenizer.convert_tokens_to_ids(rare)
    assert word > 29000
    said = f"targets: '{rare}' is token {word} of the tokenizer; the model has only 29000"
    for targets in (rare, ["the", rare]):
        with pytest.raises(InputError, match=said):
            run("a [MASK].", targets=targets)


def test_models_that_determine_no_task(tokenizer):
    config = minibert.BertConfig.tiny(**BERT)
    model = minibert.BertForMultipleChoice(config, rngs=nnx.Rngs(0)).eval()
    said = "task: not determined by a model of class BertForMultipleChoice; expected one of fill-m"
    with pytest.raises(InputError, match=said):
        pipeline(model=model, tokenizer=tokenizer)
    with pytest.raises(InputError, match="model: expected a folder, a repository of the Hub or a"):
        pipeline("fill-mask")
    with pytest.raises(InputError, match="5: unknown task"):
        pipeline(5, model, tokenizer=tokenizer)


def test_an_encoder_cannot_continue_texts(masked, tokenizer, minilm):
    said = "is_decoder: text-generation needs a decoder, and this is an encoder; it may fill masks"
    with pytest.raises(ConfigError, match=said):
        pipeline("text-generation", minilm)
    config = minibert.BertConfig.tiny(**BERT)
    reader = minibert.BertLMHeadModel(config, rngs=nnx.Rngs(0)).eval()
    with pytest.raises(InputError, match="model: expected a decoder, found config"):
        pipeline("text-generation", reader, tokenizer=tokenizer)


NLI = {"num_labels": 3, "id2label": {0: "CONTRADICTION", 1: "NEUTRAL", 2: "ENTAILMENT"}}


@pytest.fixture(scope="module")
def judge(tokenizer):
    config = minibert.BertConfig.tiny(**BERT, **NLI)
    model = minibert.BertForSequenceClassification(config, rngs=nnx.Rngs(0)).eval()
    return pipeline("zero-shot-classification", model, tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ("a", {"candidate_labels": None}, "candidate_labels: expected one or more labels, found"),
        ("a", {"candidate_labels": []}, "candidate_labels: expected one or more labels"),
        ("a", {"candidate_labels": " , "}, "candidate_labels: expected one or more labels"),
        ("a", {"candidate_labels": 5}, "candidate_labels: expected a text or texts, found 5"),
        ("a", {"candidate_labels": [5]}, "candidate_labels: expected a text, found 5"),
        ("a", {"hypothesis_template": "no label"}, "hypothesis_template: expected a text with {}"),
        ("a", {"hypothesis_template": "{1}"}, r"hypothesis_template: .* found '\{1\}' \("),
        ("a", {"hypothesis_template": "{"}, r"hypothesis_template: .* found '\{' \("),
        ("a", {"hypothesis_template": "{0.x}"}, r"hypothesis_template: .* found '\{0.x\}' \("),
        ("a", {"hypothesis_template": 5}, "hypothesis_template: expected a text, found 5"),
        ("a", {"multi_label": 1}, "multi_label: expected True or False, found 1"),
        ("a", {"multi_class": True}, "multi_class: unknown option of zero-shot-classification"),
        ("", {}, "expected a non-empty text, found an empty one"),
        (["a", 5], {"candidate_labels": "b"}, "input 1: expected a text, found 5"),
        (("a", "b"), {"candidate_labels": "b"}, "expected a text, found"),
        ("a " * 80, {"candidate_labels": "b"}, "expected at most 64 tokens .*, found 88"),
    ],
)
def test_texts_that_cannot_be_judged(judge, inputs, options, message):
    with pytest.raises(InputError, match=message):
        judge(inputs, **{"candidate_labels": ["b", "c"], **options})


def test_models_without_entailment(classifier, tokenizer):
    said = "needs a label whose name begins with 'entail', found 'LABEL_0, LABEL_1, LABEL_2'; name"
    with pytest.raises(InputError, match=said):
        pipeline("zero-shot-classification", classifier, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def tag(tokenizer):
    config = minibert.BertConfig.tiny(**BERT, num_labels=3)
    model = minibert.BertForTokenClassification(config, rngs=nnx.Rngs(0)).eval()
    return pipeline("ner", model, tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ("a " * 100, {}, "expected at most 64 tokens .*, found 102"),
        ("a " * 100, {"aggregation_strategy": "max"}, "expected at most 64 tokens .*, found 102"),
        ("a", {"aggregation_strategy": "mean"}, "expected one of none, .*found 'mean'"),
        ("a", {"aggregation_strategy": 5}, "expected one of none, .*found 5"),
        ("a", {"stride": 5}, "stride: expected an aggregation_strategy other than"),
        ("a", {"stride": 64, "aggregation_strategy": "max"}, "stride: .*from 0 to 61, found 64"),
        ("a", {"stride": 62, "aggregation_strategy": "max"}, "stride: .*from 0 to 61, found 62"),
        ("a", {"stride": True, "aggregation_strategy": "max"}, "stride: .*found True"),
        ("a", {"is_split_into_words": True}, "expected a list of words, found 'a'"),
        ([["a", 5]], {"is_split_into_words": True}, "input 0: expected a text, found 5"),
        ([["a", "b"]], {}, "input 0: expected a text, found"),
        ("a", {"max_length": 5}, "max_length: has no effect alone"),
        ("a", {"max_length": 1, "truncation": True}, "max_length: .* at least 2, found 1"),
        ("a", {"ignore_labels": 5}, "ignore_labels: expected a text or texts, found 5"),
        (["a"], {"is_split_into_words": True, "delimiter": 5}, "delimiter: expected a text, .*5"),
    ],
)
def test_texts_that_cannot_be_tagged(tag, inputs, options, message):
    with pytest.raises(InputError, match=message):
        tag(inputs, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop_strings": 5}, "stop_strings: expected a text or texts, found 5"),
        ({"stop_strings": [5]}, "stop_strings: expected a text, found 5"),
        ({"callback": 3}, "callback: expected a function of a text, found 3"),
    ],
)
def test_texts_that_cannot_be_continued(tokenizer, options, message):
    config = minibert.BertConfig.tiny(**BERT, is_decoder=True)
    model = minibert.BertLMHeadModel(config, rngs=nnx.Rngs(0)).eval()
    with pytest.raises(InputError, match=message):
        pipeline("text-generation", model, tokenizer=tokenizer)("a", **options)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"question": ["a"], "context": 5}, "context: expected a text or texts, found 5"),
        ({"question": 5, "context": "a"}, "question: expected a text or texts, found 5"),
        ({"question": ["a"], "context": [5]}, "context: expected a text, found 5"),
    ],
)
def test_questions_that_cannot_be_answered(tokenizer, given, message):
    config = minibert.BertConfig.tiny(**BERT)
    model = minibert.BertForQuestionAnswering(config, rngs=nnx.Rngs(0)).eval()
    with pytest.raises(InputError, match=message):
        pipeline("question-answering", model, tokenizer=tokenizer)(**given)


@pytest.mark.parametrize("given", [3, "x", ["padding"]])
def test_options_for_the_tokenizer(tokenizer, given):
    model = minibert.BertModel(minibert.BertConfig.tiny(**BERT), rngs=nnx.Rngs(0)).eval()
    run = pipeline("feature-extraction", model, tokenizer=tokenizer)
    with pytest.raises(InputError, match="tokenize_kwargs: expected option → value"):
        run("a", tokenize_kwargs=given)


@pytest.mark.parametrize("cls", [int, 5, "fill-mask", list[int]])
def test_a_class_that_is_no_pipeline(masked, tokenizer, cls):
    with pytest.raises(InputError, match="pipeline_class: expected a subclass of Pipeline"):
        pipeline("fill-mask", masked, tokenizer=tokenizer, pipeline_class=cls)


def test_a_tokenizer_with_a_limit_that_is_none(classifier, minilm):
    odd = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(minilm)
    odd.model_max_length = "many"
    run = pipeline("text-classification", classifier, tokenizer=odd)
    with pytest.raises(InputError, match=r"model_max_length: .*found 'many'"):
        run("a", truncation=True)


def test_a_tokenizer_that_panics(classifier, tokenizer):
    run = pipeline("text-classification", classifier, tokenizer=with_damaged_map(tokenizer))
    assert run(["plain", "text"])
    with pytest.raises(InputError, match=r"^input 1: the tokenizer rejects it \('a failure inside"):
        run(["plain", "é", "text"])
    assert run("plain")


def test_numpys_whole_numbers(fill, classify):
    two = np.int64(2)
    assert fill("a [MASK]", top_k=two) == fill("a [MASK]", top_k=2)
    assert classify("a", top_k=two) == classify("a", top_k=2)
    assert classify("a b c", truncation=True, max_length=np.int32(4)) == classify(
        "a b c", truncation=True, max_length=4
    )


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("alone", "expected a pair of texts, found 'alone'"),
        ([{"text": "alone"}], "input 0: expected a pair of texts"),
        (("a", "b", "c"), "expected a text, or a pair"),
        (("a " * 40, "b " * 40), "expected at most 64 tokens .*, found 83"),
    ],
)
def test_pairs_that_are_none(tokenizer, inputs, message):
    config = minibert.BertConfig.tiny(**BERT)
    model = minibert.BertForNextSentencePrediction(config, rngs=nnx.Rngs(0)).eval()
    with pytest.raises(InputError, match=message):
        pipeline("next-sentence-prediction", model, tokenizer=tokenizer)(inputs)
