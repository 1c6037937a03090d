"""LoRA's settings, adapters and their files: errors name what is refused."""

import json
import os

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import minibert
from minibert import train
from minibert.errors import (
    CheckpointMismatchError,
    ConfigError,
    InputError,
    PickleRefusedError,
    SourceError,
    TargetError,
    UnsupportedConfigError,
    WeightsFileError,
)
from minibert.nn.tree import parameters

pytestmark = pytest.mark.unoptimised

QUERY = "encoder.layer.0.attention.self.query"


@pytest.fixture(scope="module")
def bert():
    config = minibert.BertConfig.tiny(num_labels=3)
    return minibert.BertForSequenceClassification(config, rngs=nnx.Rngs(0)).eval()


@pytest.fixture(scope="module")
def gpt2():
    return minibert.GPT2LMHeadModel(minibert.GPT2Config.tiny(), rngs=nnx.Rngs(0)).eval()


def filled(model, **settings):
    """Returns an adapter without zeros."""
    params = train.init_adapter(model, train.LoRA(init_lora_weights=False, **settings)).params
    return train.Adapter(train.LoRA(**settings), params)


@pytest.fixture
def folder(bert, tmp_path):
    """The folder of a valid adapter."""
    adapter = filled(bert, r=4, modules_to_save=["classifier"])
    train.save_adapter(bert, adapter, tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("r", 0),
        ("bias", "some"),
        ("lora_bias", 1),
        ("use_dora", "yes"),
        ("trainable_token_indices", []),
        ("trainable_token_indices", [1, 1]),
        ("trainable_token_indices", [-1]),
        ("trainable_token_indices", {"wte": "all"}),
        ("r", 2.0),
        ("r", True),
        ("lora_alpha", 0),
        ("lora_alpha", float("nan")),
        ("lora_alpha", 10**400),
        ("use_rslora", 1),
        ("target_modules", ["query", 3]),
        ("target_modules", "("),
        ("target_modules", {"query": 1}),
        ("target_modules", []),
        ("target_modules", ".*{99999999999}"),
        ("target_modules", 3000 * "(" + "query" + 3000 * ")"),
        ("exclude_modules", ""),
        ("exclude_modules", 3000 * "(" + "query" + 3000 * ")"),
        ("layers_to_transform", -1),
        ("layers_to_transform", [0, "1"]),
        ("rank_pattern", {"query": 0}),
        ("rank_pattern", {"(": 2}),
        ("rank_pattern", {"(?i)query": 2}),
        ("layers_pattern", ["layer", "(?i)layer"]),
        ("alpha_pattern", ["query"]),
        ("alpha_pattern", {"query": 10**400}),
        ("alpha_pattern", {3000 * "(" + "query" + 3000 * ")": 1}),
        ("modules_to_save", [""]),
        ("fan_in_fan_out", 1),
        ("lora_dropout", 1.5),
        ("init_lora_weights", None),
        ("task_type", 3),
        ("task_type", "seq_cls"),
    ],
)
def test_impossible_settings(field, value):
    with pytest.raises(InputError, match=f"^{field}: expected"):
        train.LoRA(**{field: value})


@pytest.mark.parametrize(("given", "kept"), [(np.float32(8), 8.0), (np.int64(3), 3), (16, 16)])
def test_numbers_of_numpy_are_kept_as_pythons(given, kept):
    found = train.LoRA(lora_alpha=given).lora_alpha
    assert (found, type(found)) == (kept, type(kept))


def test_settings_that_contradict_each_other():
    with pytest.raises(InputError, match=r"^layers_to_transform: "):
        train.LoRA(target_modules=".*query", layers_to_transform=1)
    with pytest.raises(InputError, match=r"^layers_pattern: "):
        train.LoRA(layers_pattern="layer")
    for other in ({"use_dora": True}, {"init_lora_weights": "gaussian"}):
        with pytest.raises(InputError, match=r"^lora_bias: expected False with"):
            train.LoRA(lora_bias=True, **other)


LONG = r"(([\w.]+)+)+[!?]"  # takes `re` 2 ** 40 steps for a path


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("target_modules", LONG),
        ("exclude_modules", LONG),
        ("rank_pattern", {LONG: 2}),
        ("alpha_pattern", {LONG: 2}),
        ("layers_pattern", ["layer", LONG]),
        ("target_modules", r"(.|..)*x"),
        ("target_modules", r"(.|.)*x"),
        ("target_modules", r"(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)x"),
        ("target_modules", 40 * ".?" + 40 * "."),
        ("target_modules", 30 * "(?:a|b|.)" + "x"),
        ("target_modules", 20 * "(" + "a" + 20 * "{1,9999})"),
        ("target_modules", r"(?:^|){10000000}x"),
        ("target_modules", r"(?!(.+)*x).*query"),
    ],
)
def test_an_expression_that_may_take_long(field, value):
    with pytest.raises(InputError, match=rf"^{field}: expected an expression with few repetition"):
        train.LoRA(**{field: value})


@pytest.mark.parametrize(
    "expression",
    [
        r".*\.(0|1)\.attention\.(self|output)\.(query|key|dense)",
        r"^(?!.*(pooler|\.1\.)).*\.(query|value)$",
        r"bert\.encoder\.layer\.(\d|1[01])\.attention\.self\.(query|value)",
        r"(?:.*?(?:encoder|text).*?(?:self_attn|attention|attn|mlp|dense).*?(?:query|key|value).*?)",
        "|".join(f"bert.encoder.layer.{n}.attention.self.query" for n in range(100)),
    ],
)
def test_expressions_in_use(bert, expression):
    adapter = train.init_adapter(bert, train.LoRA(target_modules=expression))
    assert any("query" in path for path in adapter.params)


@pytest.mark.parametrize(
    ("field", "value"),
    [("init_lora_weights", "pissa"), ("init_lora_weights", "loftq")],
)
def test_settings_that_are_not_implemented(field, value):
    with pytest.raises(UnsupportedConfigError, match=f"^{field}: '{value}' is not implemented"):
        train.LoRA(**{field: value})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_modules": ["querry"]}, "target_modules: .*querry.*: no module"),
        ({"target_modules": ["uery"]}, "target_modules: .*uery.*: no module"),
        ({"exclude_modules": ["query", "value"]}, "target_modules: .*: no module"),
        ({"layers_to_transform": 7}, "target_modules: .*: no module"),
        ({"target_modules": ["word_embeddings"], "lora_bias": True}, "lora_bias: .*embedding"),
        (
            {"target_modules": ["LayerNorm"]},
            "LayerNorm: expected a linear layer .*, found LayerNorm",
        ),
        ({"target_modules": ["attention"]}, "expected a linear layer .*, found BertAttention"),
        ({"trainable_token_indices": {"query": [1]}}, "trainable_token_indices: .*found a Linear"),
        ({"trainable_token_indices": {"wte": [1]}}, "trainable_token_indices: 'wte': no embedding"),
        (
            {"trainable_token_indices": [1], "target_modules": ["query", "word_embeddings"]},
            "trainable_token_indices: .*not trained otherwise",
        ),
        ({"modules_to_save": ["clasifier"]}, "modules_to_save: .*clasifier"),
        ({"task_type": "QUESTION_ANS"}, "modules_to_save: .*qa_outputs.*: no module"),
        ({"target_modules": ["classifier"], "modules_to_save": ["classifier"]}, "no module"),
    ],
)
def test_settings_that_do_not_fit_a_model(bert, settings, message):
    with pytest.raises(InputError, match=message):
        train.init_adapter(bert, train.LoRA(**settings))


def test_an_initialisation_of_peft_alone(bert):
    with pytest.raises(UnsupportedConfigError, match=r"^init_lora_weights: 'eva' .* loaded"):
        train.init_adapter(bert, train.LoRA(init_lora_weights="eva"))


def test_settings_that_do_not_fit_gpt2(gpt2):
    adapter = train.init_adapter(gpt2, train.LoRA(target_modules=["wte"]))
    with pytest.raises(InputError, match=r"target_modules: .*wte: .*lm_head.weight.*use attach"):
        train.merge(gpt2, adapter)
    with pytest.raises(InputError, match=r"lm_head: .* without a kernel of its own"):
        train.init_adapter(gpt2, train.LoRA(target_modules=["lm_head"]))
    with pytest.raises(InputError, match=r"modules_to_save: .*wte.*lm_head.* tied; name it in"):
        train.init_adapter(gpt2, train.LoRA(modules_to_save=["wte"]))


def test_what_cannot_be_trained(bert):
    def trainer(**options):
        return train.Trainer(bert, train.classification(bert.config), train.adamw(1e-3), **options)

    with pytest.raises(InputError, match=r"^trainable: "):
        trainer(lora=train.LoRA(), trainable=["classifier.*"])
    with pytest.raises(InputError, match=r"^lora: expected a LoRA or an Adapter"):
        trainer(lora={"r": 8})
    with pytest.raises(InputError, match=r"^adapter: there is none"):
        trainer(trainable=["classifier.*"]).adapter  # noqa: B018


def test_an_adapter_of_another_model(bert, gpt2):
    adapter = filled(bert, r=4)
    with pytest.raises(InputError, match=r"^target_modules: "):
        train.merge(gpt2, train.Adapter(train.LoRA(target_modules=["query"]), adapter.params))
    with pytest.raises(InputError, match=r"^adapter: .*lora_A: expected .* found \(\d+, 4\)"):
        train.merge(bert, train.Adapter(train.LoRA(r=2), adapter.params))
    fewer = dict(list(adapter.params.items())[1:])
    with pytest.raises(InputError, match=r"found no such array"):
        train.merge(bert, train.Adapter(adapter.config, fewer))
    with pytest.raises(InputError, match=r"expected none"):
        train.merge(bert, train.Adapter(adapter.config, {**adapter.params, "x": jnp.zeros(3)}))


def test_narrow_kernels(bert, folder):
    narrow = minibert.BertForSequenceClassification(
        bert.config, rngs=nnx.Rngs(0), param_dtype=jnp.bfloat16
    )
    adapter = train.load_adapter(narrow, folder)
    assert {str(array.dtype) for array in adapter.params.values()} == {"float32"}
    merged = parameters(train.merge(narrow, adapter))
    assert {str(array.dtype) for array in merged.values()} == {"bfloat16"}
    fresh = train.init_adapter(narrow, train.LoRA()).params
    assert {str(array.dtype) for array in fresh.values()} == {"float32"}


def test_the_files(folder, tmp_path):
    assert sorted(os.listdir(folder)) == ["adapter_config.json", "adapter_model.safetensors"]
    tensors = load_file(folder / "adapter_model.safetensors")
    hidden = minibert.BertConfig.tiny().hidden_size
    assert tensors[f"base_model.model.bert.{QUERY}.lora_A.weight"].shape == (4, hidden)
    assert tensors[f"base_model.model.bert.{QUERY}.lora_B.weight"].shape == (hidden, 4)
    assert tensors["base_model.model.classifier.weight"].shape == (3, hidden)
    fields = json.loads((folder / "adapter_config.json").read_text())
    assert fields["peft_type"] == "LORA"
    assert fields["target_modules"] == ["query", "value"]
    assert fields["modules_to_save"] == ["classifier"]
    assert fields["fan_in_fan_out"] is False


def test_an_adapter_with_dropout_is_read(bert, folder):
    change(folder, lora_dropout=0.1)
    assert train.load_adapter(bert, folder).config.lora_dropout == 0.1


def change(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"peft_type": "IA3"}, UnsupportedConfigError, "peft_type"),
        ({"layer_replication": [[0, 1]]}, UnsupportedConfigError, "layer_replication"),
        ({"trainable_token_indices": [1]}, CheckpointMismatchError, "trainable_tokens.*missing"),
        ({"trainable_token_indices": [1000]}, ConfigError, "trainable_token_indices: .* tokens be"),
        ({"something_new": "on"}, UnsupportedConfigError, "something_new"),
        ({"use_dora": True}, CheckpointMismatchError, "lora_magnitude_vector.*missing"),
        ({"lora_bias": True}, CheckpointMismatchError, "lora_B.bias.*missing"),
        ({"bias": "lora_only"}, CheckpointMismatchError, "query.base_layer.bias.*missing"),
        ({"bias": "all"}, CheckpointMismatchError, "LayerNorm.bias.*missing"),
        ({"init_lora_weights": "corda"}, UnsupportedConfigError, "init_lora_weights"),
        ({"init_lora_weights": "pissa_niter_4"}, UnsupportedConfigError, "init_lora_weights"),
        ({"r": "4"}, ConfigError, "r: expected"),
        ({"target_modules": ["c_attn"]}, ConfigError, "target_modules"),
        ({"target_modules": LONG}, ConfigError, "target_modules: .*few repetitions"),
        ({"r": 8}, CheckpointMismatchError, r"lora_A.*expected shape \(8, "),
        ({"target_modules": ["query"]}, CheckpointMismatchError, "value.*unexpected"),
        ({"target_modules": ["query", "value", "key"]}, CheckpointMismatchError, "key.*missing"),
        ({"modules_to_save": None}, CheckpointMismatchError, "classifier.*unexpected"),
    ],
)
def test_a_wrong_config(bert, folder, fields, error, message):
    change(folder, **fields)
    with pytest.raises(error, match=message) as found:
        train.load_adapter(bert, folder)
    assert str(folder) in str(found.value)


def test_fields_that_say_nothing(bert, folder):
    change(folder, use_dora=False, eva_config=None, loftq_config={}, peft_version="0.21.2")
    train.load_adapter(bert, folder)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.float32("nan"), "NaN"),
        (np.float32("inf"), "NaN or infinity"),
        (np.int32(3), "floating-point"),
        (np.float64(0), "needs jax.enable_x64"),
    ],
)
def test_wrong_numbers(bert, folder, value, message):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    name = f"base_model.model.bert.{QUERY}.lora_A.weight"
    tensors[name] = np.full(tensors[name].shape, value)
    save_file(tensors, path)
    with pytest.raises(CheckpointMismatchError, match=message):
        train.load_adapter(bert, folder)


def test_missing_and_damaged_files(bert, folder):
    path = folder / "adapter_model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(WeightsFileError, match=r"truncated"):
        train.load_adapter(bert, folder)
    path.unlink()
    with pytest.raises(SourceError, match=r"adapter_model.safetensors"):
        train.load_adapter(bert, folder)
    (folder / "adapter_model.bin").write_bytes(b"\x80")
    with pytest.raises(PickleRefusedError, match=r"adapter_model.bin.*allow_pickle=True"):
        train.load_adapter(bert, folder)
    with pytest.raises(WeightsFileError, match=r"adapter_model.bin"):
        train.load_adapter(bert, folder, allow_pickle=True)
    with pytest.raises(SourceError, match=r"adapter_config.json"):
        train.load_adapter(bert, folder / "nowhere")


def test_writing_is_whole_or_not_at_all(bert, folder):
    adapter = filled(bert, r=2)
    with pytest.raises(TargetError, match=r"already holds"):
        train.save_adapter(bert, adapter, folder)
    assert train.load_adapter(bert, folder).config.r == 4
    spoiled = {path: array.at[0].set(jnp.nan) for path, array in adapter.params.items()}
    with pytest.raises(TargetError, match=r"NaN"):
        train.save_adapter(bert, train.Adapter(adapter.config, spoiled), folder, overwrite=True)
    assert train.load_adapter(bert, folder).config.r == 4
    train.save_adapter(bert, adapter, folder, overwrite=True)
    assert train.load_adapter(bert, folder).config.r == 2
    assert os.listdir(folder.parent) == ["adapter"]
