"""Damaged config.json files, and invalid values of fields."""

import os

import pytest

from malformed import as_folder, as_link, as_pipe, cases, edit_json, load, refused
from minibert.errors import ConfigError, SourceError

CONFIG = "config.json"


def content(new):
    return lambda path: path.write_bytes(new)


def edited(old, new):
    def apply(path):
        text = path.read_bytes()
        assert old in text
        path.write_bytes(text.replace(old, new, 1))

    return apply


def field(text):
    """A member of the JSON object more, as text."""
    return edited(b"{", b"{" + text + b",")


def padded(path):
    path.write_bytes(path.read_bytes() + b" " * (1 << 20))


def deep(levels):
    return field(b'"x": ' + b'{"x":' * levels + b"1" + b"}" * levels)


DAMAGED = {
    "empty": (content(b""), ConfigError, "not JSON"),
    "not-json": (content(b"vocab_size: 97"), ConfigError, "not JSON"),
    "python": (content(b"{'vocab_size': 97}"), ConfigError, "not JSON"),
    "cut": (lambda path: os.truncate(path, 100), ConfigError, "not JSON"),
    "trailing-comma": (edited(b"\n}", b",\n}"), ConfigError, "not JSON"),
    "comment": (edited(b"{", b"{ // tiny\n"), ConfigError, "not JSON"),
    "array": (content(b"[]"), ConfigError, "expected an object of fields, found list"),
    "null": (content(b"null"), ConfigError, "expected an object of fields, found NoneType"),
    "string": (content(b'"bert"'), ConfigError, "expected an object of fields, found str"),
    "number": (content(b"5"), ConfigError, "expected an object of fields, found int"),
    "bom": (edited(b"{", b"\xef\xbb\xbf{"), ConfigError, "not JSON"),
    "utf-16": (content('{"a": 1}'.encode("utf-16")), ConfigError, "UTF-8"),
    "not-utf-8": (edited(b"gelu", b"g\xfflu"), ConfigError, "UTF-8"),
    "half-surrogate": (field(rb'"x": "\ud800"'), ConfigError, "surrogate"),
    "too-large": (padded, ConfigError, "larger than 1,048,576 bytes"),
    "deep": (content(b"[" * 10**5), ConfigError, "nested too deeply"),
    "deep-closed": (deep(400), ConfigError, "nested too deeply"),
    "nan": (field(b'"x": NaN'), ConfigError, "NaN is not a finite number"),
    "infinity": (field(b'"x": Infinity'), ConfigError, "Infinity is not a finite number"),
    "minus-infinity": (field(b'"x": [-Infinity]'), ConfigError, "-Infinity is not a finite"),
    "1e999": (field(b'"x": 1e999'), ConfigError, "1e999 is not a finite number"),
    "long-number": (field(b'"x": 1' + b"0" * 10**5 + b".0"), ConfigError, "not a finite number"),
    "long-integer": (field(b'"x": 1' + b"0" * 10**5), ConfigError, CONFIG),
    "duplicate": (field(b'"vocab_size": 97'), ConfigError, "'vocab_size' appears twice"),
    "duplicate-inside": (field(b'"x": {"a": 1, "a": 1}'), ConfigError, "'a' appears twice"),
    "duplicate-long": (
        field(b'"%s": 1, "%s": 1' % (b"n" * 10**5, b"n" * 10**5)),
        ConfigError,
        "appears twice",
    ),
    "absent": (os.unlink, SourceError, "no config.json"),
    "directory": (as_folder, SourceError, "no config.json"),
    "fifo": (as_pipe, SourceError, "no config.json"),
    "link-to-nothing": (as_link("nowhere"), SourceError, "no config.json"),
    "link-to-dev-zero": (as_link("/dev/zero"), SourceError, "no config.json"),
    "link-to-own-memory": (as_link("/proc/self/mem"), SourceError, "outside of the folder"),
}


@pytest.mark.parametrize(("spoil", "error", "said"), cases(DAMAGED))
def test_file(spoil, error, said, folder):
    spoil(folder / CONFIG)
    refused(error, (str(folder), said), lambda: load(folder))


LONG = "n\n" * 10**5
WHOLE = "a whole number of at least 1"
FEW = "a whole number from 1 to 2147483647"
RATE = "a number from 0 to 1"
VALUES = {
    "size-zero": ({"hidden_size": 0}, WHOLE, "0"),
    "size-negative": ({"vocab_size": -97}, WHOLE, "-97"),
    "size-true": ({"num_hidden_layers": True}, WHOLE, "True"),
    "size-float": ({"intermediate_size": 80.0}, WHOLE, "80.0"),
    "size-string": ({"max_position_embeddings": "40"}, WHOLE, "'40'"),
    "size-null": ({"type_vocab_size": None}, WHOLE, "None"),
    "size-list": ({"hidden_size": [24]}, WHOLE, "[24]"),
    "size-object": ({"hidden_size": {"x": 24}}, WHOLE, "{'x': 24}"),
    "size-2**31": ({"vocab_size": 2**31}, FEW, "2147483648"),
    "size-10**400": ({"vocab_size": 10**400}, FEW, "1000"),
    "size-long-text": ({"vocab_size": LONG}, WHOLE, "'n\\nn"),
    "size-long-lists": ({"vocab_size": [[LONG[:2000]] * 9] * 9}, WHOLE, "[['n\\nn"),
    "heads-zero": ({"num_attention_heads": 0}, WHOLE, "0"),
    "heads-not-dividing": ({"num_attention_heads": 5}, "a divisor of hidden_size (24)", "5"),
    "heads-too-many": ({"num_attention_heads": 48}, "a divisor of hidden_size (24)", "48"),
    "activation-unknown": ({"hidden_act": "gelu_exact"}, "one of gelu,", "'gelu_exact'"),
    "activation-path": ({"hidden_act": "os.system"}, "one of gelu,", "'os.system'"),
    "activation-dunder": ({"hidden_act": "__class__"}, "one of gelu,", "'__class__'"),
    "activation-null": ({"hidden_act": None}, "one of gelu,", "None"),
    "activation-list": ({"hidden_act": ["gelu"]}, "one of gelu,", "['gelu']"),
    "activation-long": ({"hidden_act": LONG}, "one of gelu,", "'n\\nn"),
    "eps-zero": ({"layer_norm_eps": 0}, "a positive number", "0"),
    "eps-zero-float": ({"layer_norm_eps": 0.0}, "a positive number", "0.0"),
    "eps-negative": ({"layer_norm_eps": -1e-12}, "a positive number", "-1e-12"),
    "eps-string": ({"layer_norm_eps": "1e-12"}, "a positive number", "'1e-12'"),
    "eps-true": ({"layer_norm_eps": True}, "a positive number", "True"),
    "eps-null": ({"layer_norm_eps": None}, "a positive number", "None"),
    "eps-10**400": ({"layer_norm_eps": 10**400}, "a positive number", "1000"),
    "dropout-negative": ({"hidden_dropout_prob": -0.1}, RATE, "-0.1"),
    "dropout-over-1": ({"attention_probs_dropout_prob": 1.5}, RATE, "1.5"),
    "dropout-true": ({"classifier_dropout": True}, RATE, "True"),
    "dropout-null": ({"hidden_dropout_prob": None}, RATE, "None"),
    "range-negative": ({"initializer_range": -0.02}, "a number of at least 0", "-0.02"),
    "pad-too-large": ({"pad_token_id": 97}, "an index into the vocabulary of 97", "97"),
    "pad-too-small": ({"pad_token_id": -98}, "an index into the vocabulary of 97", "-98"),
    "pad-true": ({"pad_token_id": True}, "a whole number or null", "True"),
    "pad-float": ({"pad_token_id": 0.0}, "a whole number or null", "0.0"),
    "tie-1": ({"tie_word_embeddings": 1}, "true or false", "1"),
    "tie-string": ({"tie_word_embeddings": "false"}, "true or false", "'false'"),
    "output-1": ({"output_hidden_states": 1}, "true or false", "1"),
    "problem-unknown": ({"problem_type": "ranking"}, "one of regression,", "'ranking'"),
    "model-type": ({"model_type": "roberta"}, "'bert'", "'roberta'"),
    "model-type-null": ({"model_type": None}, "'bert'", "None"),
    "model-type-list": ({"model_type": ["bert"]}, "'bert'", "['bert']"),
    "model-type-long": ({"model_type": LONG}, "'bert'", "'n\\nn"),
    "labels-0": ({"num_labels": 0}, "a whole number from 1 to 1048576", "0"),
    "labels-negative": ({"num_labels": -1}, "a whole number from 1", "-1"),
    "labels-true": ({"num_labels": True}, "a whole number from 1", "True"),
    "labels-string": ({"num_labels": "2"}, "a whole number from 1", "'2'"),
    "labels-10**9": ({"num_labels": 10**9}, "a whole number from 1 to 1048576", "1000000000"),
    "labels-10**400": ({"num_labels": 10**400}, "a whole number from 1", "1000"),
    "id2label-list": ({"id2label": ["a", "b"]}, "index → name", "['a', 'b']"),
    "id2label-string": ({"id2label": "ab"}, "index → name", "'ab'"),
    "id2label-number": ({"id2label": 2}, "index → name", "2"),
    "id2label-empty": ({"id2label": {}}, "distinct indices", "{}"),
    "id2label-name-for-index": ({"id2label": {"a": "0"}}, "index → name", "{'a': '0'}"),
    "id2label-float-index": ({"id2label": {"0.5": "a"}}, "index → name", "{'0.5': 'a'}"),
    "id2label-one-index-twice": (
        {"id2label": {"0": "a", "00": "b"}},
        "distinct",
        "{'0': 'a', '00': 'b'}",
    ),
    "id2label-null-name": ({"id2label": {"0": None}}, "index → name", "{'0': None}"),
    "id2label-list-name": ({"id2label": {"0": ["a"]}}, "index → name", "{'0': ['a']}"),
    "id2label-object-name": ({"id2label": {"0": {"a": 1}}}, "index → name", "{'0': {'a': 1}}"),
    "id2label-long": ({"id2label": {LONG: LONG}}, "index → name", "{'n\\nn"),
    "label2id-list": ({"label2id": ["a"]}, "name → index", "['a']"),
    "label2id-null-index": ({"label2id": {"a": None}}, "name → index", "{'a': None}"),
    "label2id-list-index": ({"label2id": {"a": [0]}}, "name → index", "{'a': [0]}"),
}


@pytest.mark.parametrize(("change", "expected", "found"), cases(VALUES))
def test_value(change, expected, found, folder):
    edit_json(folder / CONFIG, lambda config: config.update(change))
    said = (str(folder / CONFIG), f"{next(iter(change))}: expected {expected}", f"found {found}")
    refused(ConfigError, said, lambda: load(folder))


def test_labels_that_are_not_counted(folder):
    labels = {"id2label": {"0": "a", "1": "b"}, "num_labels": 3}
    edit_json(folder / CONFIG, lambda config: config.update(labels))
    said = ("num_labels: expected 2, the number of entries of id2label, found 3",)
    refused(ConfigError, said, lambda: load(folder))
