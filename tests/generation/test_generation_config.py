"""Fields of generation configs: honoured, refused or ignored; and arguments that are refused."""

import copy
import pickle

import jax
import numpy as np
import pytest

import minibert
from minibert.checkpoint.generation_config import INERT, OPTIONS, REFUSED, GenerationConfig
from minibert.errors import ConfigError, InputError, UnsupportedConfigError
from minibert.generation import planning

# What GenerationConfig of transformers 4.57 has, and 5.23 has not.
ONLY_IN_4 = {"return_legacy_cache"}
# What transformers has nowhere, or had in version 4 on models.
OURS = {"presence_penalty", "frequency_penalty", "forced_decoder_ids", "prompt_ignore_length"}


def test_every_field_of_transformers_is_honoured_refused_or_inert():
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    fields = vars(transformers.GenerationConfig()).keys() | ONLY_IN_4
    assert fields <= OPTIONS | REFUSED.keys() | INERT
    assert OPTIONS - fields == OURS
    assert not OPTIONS & (REFUSED.keys() | INERT)
    assert not REFUSED.keys() & INERT


def test_the_defaults_are_transformers():
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    defaults = transformers.GenerationConfig._get_default_generation_params()
    ours = GenerationConfig()
    del defaults["max_length"]  # of the text alone: see test_limit
    for name in OPTIONS & defaults.keys():
        assert getattr(ours, name) == defaults[name], name
    for name, neutral in REFUSED.items():
        assert defaults.get(name) in neutral, name


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_not_implemented_is_refused_by_name(name):
    for neutral in REFUSED[name]:
        assert GenerationConfig.from_dict({name: neutral}) == GenerationConfig()
        assert GenerationConfig().replace(**{name: neutral}) == GenerationConfig()
    with pytest.raises(UnsupportedConfigError, match=rf"here: {name}: .* is not implemented"):
        GenerationConfig.from_dict({name: 7}, "here")
    with pytest.raises(UnsupportedConfigError, match=f"^{name}: 7 is not implemented"):
        GenerationConfig().replace(**{name: 7})


def test_a_cache_is_always_used():
    for make in (GenerationConfig().replace, GenerationConfig):
        with pytest.raises(UnsupportedConfigError, match="use_cache: False"):
            make(use_cache=False)
    assert GenerationConfig.from_dict({"use_cache": None}).use_cache
    # In a file it is about training as a rule, and changes no token.
    assert GenerationConfig.from_model_config({"use_cache": False}).use_cache
    found = GenerationConfig.from_dict({"use_cache": False})
    assert found.use_cache
    assert found.to_dict() == {"use_cache": False}


def test_what_a_file_has_besides_is_kept():
    data = {
        "top_p": 0.9,
        "eos_token_id": [3, 4],
        "bad_words_ids": [[1, 2], [3]],
        "sequence_bias": [[[1], 2.5]],
        "transformers_version": "4.57.0",
        "lang_to_id": {"de": [1]},
    }
    config = GenerationConfig.from_dict(data)
    assert config.to_dict() == data
    assert config.ignored_fields == ("lang_to_id",)
    assert GenerationConfig.from_dict(config.to_dict()) == config
    plain = GenerationConfig.from_dict({k: v for k, v in data.items() if k in OPTIONS})
    assert plain == config
    assert hash(plain) == hash(config)


def test_null_is_the_default():
    assert GenerationConfig.from_dict(dict.fromkeys(OPTIONS | INERT)) == GenerationConfig()


IMPOSSIBLE = [
    *(("max_length", value) for value in (0, -1, 2.0, True, "20", 2**40)),
    *(("max_new_tokens", value) for value in (0, 1.5)),
    *((name, value) for name in ("min_length", "top_k") for value in (-1, 0.5, False)),
    *(("early_stopping", value) for value in ("always", 1, [])),
    *(("do_sample", value) for value in (1, "true")),
    *(("num_beams", value) for value in (0, 1.0)),
    *(("temperature", value) for value in (0, 0.0, -1, float("nan"), float("inf"), "1", 1e-50)),
    *((name, value) for name in ("top_p", "min_p") for value in (-0.1, 1.1, "0.5", True)),
    *((name, value) for name in ("top_h", "typical_p") for value in (0, 2)),
    *((name, value) for name in ("epsilon_cutoff", "eta_cutoff") for value in (-1, 1.5)),
    *((name, 0) for name in ("repetition_penalty", "encoder_repetition_penalty")),
    *(("presence_penalty", value) for value in (float("nan"), 1e40, "0")),
    ("length_penalty", "1"),
    *(("bad_words_ids", value) for value in ([], [[]], [1], [[1, -1]], [[1.0]], "1")),
    *(("sequence_bias", value) for value in ([], [[[], 1.0]], [[[1]]], [[1, 1.0]], {1: 2.0})),
    *(("sequence_bias", value) for value in ([[[1], float("nan")]], [[[1], float("inf")]])),
    *(("forced_bos_token_id", value) for value in (-1, [1], 1.0)),
    *((name, value) for name in ("forced_eos_token_id", "eos_token_id") for value in (-1, [], "")),
    *(("forced_decoder_ids", value) for value in ([[1]], [[1, None]], [1, 2])),
    *(("exponential_decay_length_penalty", value) for value in ([1], [1.5, 2], [1, 0], [1, -2])),
    *(
        (name, value)
        for name in ("suppress_tokens", "begin_suppress_tokens")
        for value in (3, [-1])
    ),
    *((name, value) for name in ("pad_token_id", "bos_token_id") for value in (-1, [1])),
]


@pytest.mark.parametrize(("name", "value"), IMPOSSIBLE, ids=lambda part: str(part)[:40])
def test_impossible_values_are_named(name, value):
    with pytest.raises(ConfigError, match=f"^there: {name}: expected .*, found "):
        GenerationConfig.from_dict({name: value}, "there")
    with pytest.raises(InputError, match=f"^{name}: expected .*, found "):
        GenerationConfig().replace(**{name: value})


@pytest.mark.parametrize("data", [None, [], "x", 3])
def test_a_file_of_something_else(data):
    for read in (GenerationConfig.from_dict, GenerationConfig.from_model_config):
        with pytest.raises(ConfigError, match="here: expected an object of fields"):
            read(data, "here")


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("temprature", "temperature"), ("max_tokens", "max_new_tokens"), ("topk", "top_k")],
)
def test_unknown_options_are_named_with_the_nearest(wrong, near):
    with pytest.raises(InputError, match=rf"^{wrong}: .*did you mean {near}\?"):
        GenerationConfig().replace(**{wrong: 1})
    assert GenerationConfig.from_dict({wrong: 1}).ignored_fields == (wrong,)


def test_an_option_like_no_other():
    with pytest.raises(InputError, match=r"^xyzzy: not a generation option$"):
        GenerationConfig().replace(xyzzy=1)


SAMPLED = GenerationConfig(do_sample=True, temperature=0.5, max_new_tokens=9)
BEAMS = GenerationConfig(num_beams=3, num_return_sequences=2)
GREEDY = GenerationConfig()

CONTRADICTIONS = [
    (GREEDY, {"max_length": 5, "max_new_tokens": 5}, "max_length: 5, but max_new_tokens is 5"),
    (SAMPLED, {"max_length": 5}, "max_length: 5, but max_new_tokens is 9"),
    (GREEDY, {"min_length": 5, "min_new_tokens": 0}, "min_length: 5, but min_new_tokens is 0"),
    (GREEDY, {"min_length": 6, "max_length": 5}, "min_length: 6, .* greater than max_length, 5"),
    (GREEDY, {"min_new_tokens": 6, "max_new_tokens": 5}, "min_new_tokens: 6, .* greater than"),
    *(
        (GREEDY, {name: value}, f"^{name}: {value}, which needs do_sample=True")
        for name, value in (
            *(("temperature", 0.7), ("top_k", 5), ("top_p", 0.9), ("min_p", 0.1)),
            *(("top_h", 1.0), ("typical_p", 0.3), ("epsilon_cutoff", 0.1), ("eta_cutoff", 0.1)),
        )
    ),
    (SAMPLED, {"do_sample": False, "temperature": 0.7}, "temperature: 0.7, which needs do_sample"),
    (BEAMS, {"top_p": 0.5}, "top_p: 0.5, which needs do_sample"),
    (GREEDY, {"length_penalty": 2.0}, "length_penalty: 2.0, which needs num_beams"),
    (GREEDY, {"early_stopping": "never"}, "early_stopping: never, which needs num_beams"),
    (BEAMS, {"num_beams": 1, "do_sample": True, "early_stopping": True}, "early_stopping: True"),
    (BEAMS, {"num_return_sequences": 4}, "num_return_sequences: 4, but num_beams is 3"),
    (BEAMS, {"num_beams": 1}, "num_return_sequences: 2, but greedy decoding"),
    (GREEDY, {"num_return_sequences": 2}, "num_return_sequences: 2, but greedy decoding"),
    (GREEDY, {"output_scores": True}, "output_scores: true, which needs return_dict_in_generate"),
    (GREEDY, {"output_logits": True, "return_dict_in_generate": False}, "output_logits: true"),
    (GREEDY, {"suppress_tokens": [1, 2], "forced_eos_token_id": 2}, "forced_eos_token_id: 2, but"),
    (GREEDY, {"suppress_tokens": [1, 2], "forced_bos_token_id": 1}, "forced_bos_token_id: 1, but"),
    *(
        (BEAMS, {name: 3}, f"{name}: 3.*, which needs num_beams=1, but it is 3")
        for name in ("guidance_scale", "prompt_lookup_num_tokens")
    ),
    (GREEDY, {"prompt_lookup_num_tokens": 3, "guidance_scale": 2}, "3, but guidance_scale is 2"),
    (GREEDY, {"prompt_ignore_length": 3}, "prompt_ignore_length: 3, which needs a repetition_pen"),
    (GREEDY, {"exponential_decay_length_penalty": (1, 1.1)}, "set, but eos_token_id is not"),
]


@pytest.mark.parametrize(("config", "options", "message"), CONTRADICTIONS)
def test_options_of_a_call_that_contradict_each_other(config, options, message):
    with pytest.raises(InputError, match=message):
        config.replace(**options)


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (GREEDY, {"temperature": 1.0, "top_k": 50, "top_p": 1, "typical_p": 1.0}),
        (GREEDY, {"temperature": None, "top_k": None, "min_p": None}),
        (GREEDY, {"length_penalty": 1.0, "early_stopping": False}),
        (GREEDY, {"do_sample": True, "temperature": 0.7, "num_return_sequences": 5}),
        (GREEDY, {"suppress_tokens": [1, 2], "forced_eos_token_id": [2, 3]}),
        (SAMPLED, {"top_p": 0.9}),
        (SAMPLED, {"do_sample": False}),
        (SAMPLED, {"max_new_tokens": None, "max_length": 30}),
        (BEAMS, {"length_penalty": -1.0, "early_stopping": "never", "num_return_sequences": 3}),
        (GREEDY, {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}),
        (GREEDY, {"disable_compile": True, "cache_implementation": "static"}),
    ],
)
def test_options_that_do_not_contradict_each_other(config, options):
    before = copy.copy(config)
    changed = config.replace(**options)
    assert config == before
    for name in OPTIONS & options.keys():
        if options[name] is not None and not isinstance(options[name], list):
            assert getattr(changed, name) == options[name]


def test_of_a_file_what_is_not_used_is_left_alone():
    config = GenerationConfig.from_dict({"temperature": 0.3, "top_p": 0.2, "length_penalty": 2.0})
    assert jax.tree.leaves(planning.sampling(config)) == [1]
    with pytest.raises(ConfigError, match="here: num_return_sequences"):
        GenerationConfig.from_dict({"num_return_sequences": 2}, "here")


def test_none_in_a_call_switches_a_filter_off():
    """In a file null is the default, which for top_k is 50."""
    assert (
        planning.sampling(GenerationConfig.from_dict({"do_sample": True, "top_k": None})).top_k
        == 50
    )
    assert planning.sampling(SAMPLED.replace(top_k=None)).top_k is None
    assert planning.sampling(SAMPLED.replace(temperature=None)).temperature is None


def test_numbers_of_numpy_and_jax():
    config = GenerationConfig().replace(
        max_new_tokens=np.int64(3),
        do_sample=np.bool_(True),
        temperature=np.float64(0.25),
        suppress_tokens=np.array([1, 2]),
        eos_token_id=jax.numpy.array(4),
    )
    assert config == GenerationConfig(
        max_new_tokens=3, do_sample=True, temperature=0.25, suppress_tokens=(1, 2), eos_token_id=4
    )


def test_limit():
    assert GenerationConfig().limit(7) == 20
    assert GenerationConfig().limit(7, positions=1024) == 20
    assert GenerationConfig().limit(7, positions=10) == 3
    assert GenerationConfig(max_length=9).limit(7) == 2
    assert GenerationConfig(max_length=9, max_new_tokens=5).limit(7) == 5
    with pytest.raises(InputError, match="max_length: 7, but the prompt already has 7"):
        GenerationConfig(max_length=7).limit(7)
    with pytest.raises(
        InputError, match="max_position_embeddings: 8, but the prompt already has 9"
    ):
        GenerationConfig().limit(9, positions=8)


def test_special_tokens():
    assert (GREEDY.end_ids, GREEDY.padding_id) == ((), None)
    config = GenerationConfig(eos_token_id=(3, 4))
    assert (config.end_ids, config.padding_id) == ((3, 4), 3)
    assert config.replace(eos_token_id=5, pad_token_id=0).padding_id == 0


@pytest.mark.parametrize(
    "options",
    [
        *({name: 10} for name in ("eos_token_id", "pad_token_id", "forced_eos_token_id")),
        *({name: [2, 10]} for name in ("suppress_tokens", "begin_suppress_tokens")),
        {"bad_words_ids": [[1], [2, 10]]},
        {"sequence_bias": {(10, 1): 1.0}},
        {"forced_decoder_ids": [[3, 10]]},
        {"forced_bos_token_id": 10},
    ],
    ids=str,
)
def test_ids_past_the_vocabulary_are_refused(options):
    config = GenerationConfig().replace(**options)
    planning.processors(config, 11)
    with pytest.raises(InputError, match=rf"^{next(iter(options))}: .* below 10 .*, found 10$"):
        planning.processors(config, 10)


CHECKPOINTS = [
    {},
    {"eos_token_id": 3, "pad_token_id": 4, "max_new_tokens": 30},
    {"do_sample": True, "temperature": 0.7, "top_k": 10, "max_length": 40, "eos_token_id": [3, 5]},
    {"num_beams": 3, "length_penalty": 2.0, "early_stopping": True, "repetition_penalty": 1.5},
]
CALLS = [
    {},
    {"max_new_tokens": 8},
    {"temperature": 1.0, "do_sample": True, "top_k": 50, "max_new_tokens": 9},
    {"do_sample": False, "num_beams": 1, "eos_token_id": 6},
]


@pytest.mark.parametrize("given", CALLS, ids=str)
@pytest.mark.parametrize("stored", CHECKPOINTS, ids=str)
def test_what_is_left_open_is_filled_as_transformers_does(stored, given):
    pytest.importorskip("torch")
    import transformers

    import oracle

    theirs = oracle.torch_model("GPT2LMHeadModel", n_layer=1)
    theirs.generation_config = transformers.GenerationConfig(**stored)
    ours = minibert.GPT2Config.tiny(generation=stored)
    for options in ({}, {"top_p": 1.0}):
        config = transformers.GenerationConfig(**given)
        expected = theirs._prepare_generation_config(config, **options)[0].to_dict()
        found = GenerationConfig.of_call(ours, GenerationConfig(**given), options)
        del expected["max_length"]  # 20 by default there, of the prompt and the text
        for name in OPTIONS & expected.keys():
            value = getattr(found, name)
            value = list(value) if isinstance(value, tuple) else value
            assert value == (expected[name] or getattr(GREEDY, name)), name
        assert found.max_length == (given | stored).get("max_length")


def test_what_a_call_may_replace_of_a_checkpoint():
    ours = minibert.GPT2Config.tiny(generation={"num_beam_groups": 2, "max_new_tokens": 30})
    with pytest.raises(UnsupportedConfigError, match=r"generation_config.json: num_beam_groups"):
        GenerationConfig.of_call(ours, GenerationConfig(max_new_tokens=3), {})
    assert GenerationConfig.of_call(ours, None, {"num_beam_groups": None}).max_new_tokens == 30
    stored = {"max_new_tokens": 30, "num_return_sequences": 3, "num_beams": 4}
    ours = minibert.GPT2Config.tiny(generation=stored)
    with pytest.raises(InputError, match="generation_config: max_length: 9, but max_new_tokens is"):
        GenerationConfig.of_call(ours, GenerationConfig(max_length=9), {})
    with pytest.raises(
        InputError, match=r"generation_config: .* num_return_sequences: 3, but num_beams"
    ):
        GenerationConfig.of_call(ours, GenerationConfig(num_beams=2), {})
    with pytest.raises(InputError, match="generation_config: expected a GenerationConfig, found"):
        GenerationConfig.of_call(ours, {"num_beams": 2}, {})


def test_open_fields():
    config = GenerationConfig(top_k=50)
    assert OPTIONS - config.unset == {"top_k"}
    assert config.to_dict() == {"top_k": 50}
    assert GenerationConfig.from_dict({"top_k": 50, "top_p": None}).unset == config.unset
    changed = config.replace(do_sample=True, eos_token_id=None)
    assert OPTIONS - changed.unset == {"top_k", "do_sample", "eos_token_id"}
    assert changed == GenerationConfig(do_sample=True)  # what they hold is the same
    assert (
        copy.deepcopy(changed).unset == pickle.loads(pickle.dumps(changed)).unset == changed.unset
    )
    # without an end of its own; a checkpoint may have one
    GenerationConfig(exponential_decay_length_penalty=(1, 1.1))


MODEL_CONFIGS = [
    {"model_type": "gpt2", "vocab_size": 9, "eos_token_id": 3, "bos_token_id": 2},
    {"model_type": "gpt2", "eos_token_id": [3, 4], "pad_token_id": 1, "n_layer": 2},
    {"eos_token_id": None, "max_length": 50, "do_sample": True, "top_p": 0.9, "top_k": None},
    {"task_specific_params": {"text-generation": {"do_sample": True}}, "no_repeat_ngram_size": 3},
    {"force_bos_token_to_be_generated": True, "bos_token_id": 5, "num_beams": 4},
    {"bad_words_ids": [[1]], "output_scores": True, "repetition_penalty": 1.5},
]


@pytest.mark.parametrize("data", MODEL_CONFIGS, ids=str)
def test_from_a_models_config_as_transformers_does(data):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GenerationConfig.from_model_config(dict(data)).to_dict()
    known = {name: theirs[name] for name in theirs.keys() - {"_from_model_config"}}
    assert GenerationConfig.from_model_config(data) == GenerationConfig.from_dict(known)


def test_a_models_own_outputs_are_not_generations():
    data = {"output_hidden_states": True, "output_attentions": True, "eos_token_id": 1}
    assert GenerationConfig.from_model_config(data) == GenerationConfig(eos_token_id=1)
    with pytest.raises(UnsupportedConfigError, match=r"^config: num_beam_groups: 2"):
        GenerationConfig.from_model_config({"num_beam_groups": 2})
