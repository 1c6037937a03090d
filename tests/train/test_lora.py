"""LoRA and PEFT: the same adapters have the same outputs and gradients, in both directions."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
peft = pytest.importorskip("peft")

import adapters  # noqa: E402
import losses  # noqa: E402
import oracle  # noqa: E402
from conftest import FLOAT32, FLOAT64, GRADIENT  # noqa: E402
from families import CLASSES  # noqa: E402
from minibert import train  # noqa: E402
from minibert.errors import InputError  # noqa: E402
from minibert.nn.tree import Structure, parameters  # noqa: E402
from minibert.train.lora import adapter as library  # noqa: E402
from minibert.train.lora.sites import TOKENS  # noqa: E402


@jax.jit
def call(model, given):
    return model(**given)


def apart(model, given, expected) -> float:
    found = call(model, {name: jnp.asarray(array) for name, array in given.items()})
    return max(oracle.errors(found, expected, given["attention_mask"]).values())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "settings"), adapters.CASES.values(), ids=list(adapters.CASES))
def test_in_both_directions(name, settings, tmp_path):
    theirs = adapters.base(name, tmp_path / "base")
    adapted = adapters.peft_model(theirs, settings)
    with adapters.quiet():
        adapted.save_pretrained(tmp_path / "theirs")
    given, expected = adapters.outputs(adapted, name)
    with oracle.float64():
        model = oracle.ours(name, tmp_path / "base", param_dtype=jnp.float64)
        before = host(parameters(model))
        adapter = train.load_adapter(model, tmp_path / "theirs")
        assert apart(train.merge(model, adapter), given, expected) <= FLOAT64
        assert apart(train.attach(model, adapter), given, expected) <= FLOAT64
        assert apart(model, given, expected) > 1000 * FLOAT64
        assert all(np.array_equal(before[path], a) for path, a in parameters(model).items())

        adapter = adapters.drawn(model, train.LoRA(**settings))
        train.save_adapter(model, adapter, tmp_path / "ours")
        again = train.load_adapter(model, tmp_path / "ours").params
        assert again.keys() == adapter.params.keys()
        assert all(np.array_equal(again[path], a) for path, a in adapter.params.items())
        with adapters.quiet():
            base = oracle.torch_model(name, **CLASSES[name]).double()
            adapted = peft.PeftModel.from_pretrained(
                base, tmp_path / "ours", autocast_adapter_dtype=False
            )
        given, expected = adapters.outputs(adapted.eval(), name)
        assert apart(train.merge(model, adapter), given, expected) <= FLOAT64


def host(arrays) -> dict[str, np.ndarray]:
    return {path: np.array(array) for path, array in arrays.items()}


@pytest.mark.parametrize("name", ["BertForSequenceClassification", "GPT2LMHeadModel"])
def test_single_precision(name, tmp_path):
    adapters.base(name, tmp_path / "base")
    adapted = adapters.peft_model(oracle.torch_model(name, **CLASSES[name]), {}).float()
    with adapters.quiet():
        adapted.save_pretrained(tmp_path / "adapter")
    given, expected = adapters.outputs(adapted, name)
    model = oracle.ours(name, tmp_path / "base")
    adapter = train.load_adapter(model, tmp_path / "adapter")
    assert apart(train.merge(model, adapter), given, expected) <= FLOAT32


def torch_names(adapter, model) -> dict[str, str]:
    """Returns PEFT's names of our parameters, by path."""
    from minibert.train.lora.files import tensors

    found = {}
    for name, tensor in tensors(model, adapter.config).items():
        head, _, last = name.rpartition(".")
        if last == TOKENS:
            found[tensor.path] = f"{name}.default"
        elif last.startswith("lora_"):
            found[tensor.path] = f"{name}.default{'.weight' if 'magnitude' in last else ''}"
        elif "lora_" in head:
            found[tensor.path] = f"{head}.default.{last}"
        elif adapter.config.saves_within(tensor.path):
            found[tensor.path] = f"{head}.modules_to_save.default.{last}"
        else:
            found[tensor.path] = name
    return found


def ours_and_theirs(name, settings, folder):
    """Returns our model and adapter, and PEFT's model with the same numbers, in float64."""
    theirs = adapters.base(name, folder / "base")
    adapted = adapters.peft_model(theirs, settings)
    with adapters.quiet():
        adapted.save_pretrained(folder / "adapter")
    model = oracle.ours(name, folder / "base", param_dtype=jnp.float64)
    return model, train.load_adapter(model, folder / "adapter"), adapted


def as_torch(adapter, model, params) -> dict[str, np.ndarray]:
    """Returns arrays by our paths as PEFT's tensors by its names."""
    names = torch_names(adapter, model)
    arrays = {path: np.asarray(array) for path, array in params.items()}
    return {names[path]: a if TOKENS in path else a.T for path, a in arrays.items()}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("BertForSequenceClassification", {"task_type": "SEQ_CLS"}),
        (
            "BertForSequenceClassification",
            {"task_type": "SEQ_CLS", "target_modules": ["query", "classifier"]},
        ),
        (
            "BertForSequenceClassification",
            {"task_type": peft.TaskType.SEQ_CLS, "target_modules": "all-linear"},
        ),
        (
            "BertForSequenceClassification",
            {"task_type": "SEQ_CLS", "modules_to_save": ["pooler"]},
        ),
        ("BertForSequenceClassification", {"task_type": "FEATURE_EXTRACTION"}),
        ("BertForTokenClassification", {"task_type": "TOKEN_CLS"}),
        ("BertForQuestionAnswering", {"task_type": "QUESTION_ANS"}),
        (
            "GPT2ForSequenceClassification",
            {"task_type": "SEQ_CLS", "target_modules": "all-linear", "fan_in_fan_out": True},
        ),
        ("GPT2ForTokenClassification", {"task_type": "TOKEN_CLS", "fan_in_fan_out": True}),
        ("GPT2ForQuestionAnswering", {"task_type": "QUESTION_ANS", "fan_in_fan_out": True}),
    ],
)
def test_a_task_trains_its_head(name, settings, tmp_path):
    """The same parameters are trained as by PEFT: for these tasks the whole head."""
    theirs = oracle.saved(name, tmp_path, **CLASSES[name])
    with adapters.quiet():
        adapted = peft.get_peft_model(theirs, peft.LoraConfig(**settings))
    model = oracle.ours(name, tmp_path)
    adapter = train.init_adapter(model, train.LoRA(**settings))

    def unwrapped(paths):
        return {path.replace(".modules_to_save", "").replace(".default", "") for path in paths}

    expected = unwrapped(path for path, p in adapted.named_parameters() if p.requires_grad)
    assert unwrapped(torch_names(adapter, model).values()) == expected


@pytest.mark.parametrize(
    ("name", "task", "head"),
    [
        ("BertForTokenClassification", "TOKEN_CLS", "classifier"),
        ("GPT2ForQuestionAnswering", "QUESTION_ANS", "qa_outputs"),
    ],
)
def test_a_head_beside_every_linear_layer(name, task, head, tmp_path):
    """PEFT 0.21 cannot create such an adapter, but loads ours."""
    oracle.saved(name, tmp_path / "base", **CLASSES[name])
    settings = train.LoRA(task_type=task, target_modules="all-linear")
    with oracle.float64():
        model = oracle.ours(name, tmp_path / "base", param_dtype=jnp.float64)
        adapter = adapters.drawn(model, settings)
        assert {path for path in adapter.params if head in path} == {
            f"{head}.kernel",
            f"{head}.bias",
        }
        train.save_adapter(model, adapter, tmp_path / "ours")
        with adapters.quiet():
            base = oracle.torch_model(name, **CLASSES[name]).double()
            adapted = peft.PeftModel.from_pretrained(
                base, tmp_path / "ours", autocast_adapter_dtype=False
            )
        given, expected = adapters.outputs(adapted.eval(), name)
        assert apart(train.merge(model, adapter), given, expected) <= FLOAT64


# It has no default targets for a family, and cannot save a layer (`pre_classifier`) that it adapts.
PEFTS_OWN = ("Please specify `target_modules`", "modules_to_save cannot be applied")
MATCHING = {
    "ends": {"target_modules": ["self.query", "pooler.dense", "c_proj", "score"]},
    "the end of a name is no end": {"target_modules": ["uery", "roj"]},
    "whole paths": {"target_modules": ["pooler.dense", "h.0.attn.c_attn", "score"]},
    "an expression": {"target_modules": r".*\.(0|2)\..*(query|c_attn)|.*(classifier|score)"},
    "flags": {"target_modules": r"(?i).*(QUERY|C_ATTN)"},
    "looking ahead": {"target_modules": r"(?!.*\.1\.).*(query|c_attn)"},
    "an expression for the end": {"target_modules": "query|c_attn"},
    "every linear layer": {"target_modules": "all-linear"},
    "in other letters": {"target_modules": "All-Linear"},
    "a task": {"target_modules": "all-linear", "task_type": "SEQ_CLS"},
    "one layer": {"layers_to_transform": 1},
    "layers": {"layers_to_transform": [0, 2, 7]},
    "no layers": {"layers_to_transform": []},
    "a path is in every layer": {
        "target_modules": ["query", "bert.encoder.layer.1.attention.self.key", "c_attn"],
        "layers_to_transform": [0],
    },
    "a list": {"layers_to_transform": [0], "layers_pattern": "layer|h"},
    "lists": {"layers_to_transform": [1], "layers_pattern": ["blocks", "layer", "h"]},
    "the end of a list's name": {"layers_to_transform": [1], "layers_pattern": ["ayer"]},
    "an empty list": {"layers_to_transform": [0], "layers_pattern": ""},
    "no list": {"layers_pattern": []},
    "excluded ends": {"exclude_modules": ["0.attention.self.query", "0.attn.c_attn"]},
    "an expression to exclude": {"exclude_modules": r".*\.1\..*"},
    "all excluded": {"exclude_modules": r".*"},
    "ranks": {
        "target_modules": "all-linear",
        "rank_pattern": {"query|c_attn": 3, r"^.*\.0\..*dense": 5, r"(layer|h)\.1\..*": 7},
    },
    "ranks of groups": {"rank_pattern": {r"(.)ery": 3, r"c_at(t)\3n": 4}},
    "alphas": {"alpha_pattern": {"uery": 1, "value": 2, r"h\.\d\.attn\.c_attn": 3}},
}


@pytest.mark.parametrize(
    "name",
    [
        "BertForSequenceClassification",
        "GPT2LMHeadModel",
        pytest.param("BertModel", marks=pytest.mark.slow),
        pytest.param("BertForPreTraining", marks=pytest.mark.slow),
        pytest.param("RobertaForSequenceClassification", marks=pytest.mark.slow),
        pytest.param("RobertaForMaskedLM", marks=pytest.mark.slow),
        pytest.param("XLMRobertaForSequenceClassification", marks=pytest.mark.slow),
        pytest.param("DistilBertForSequenceClassification", marks=pytest.mark.slow),
        pytest.param("ElectraForSequenceClassification", marks=pytest.mark.slow),
        pytest.param("ElectraForMaskedLM", marks=pytest.mark.slow),
        pytest.param("AlbertForSequenceClassification", marks=pytest.mark.slow),
        pytest.param("AlbertForPreTraining", marks=pytest.mark.slow),
        pytest.param("GPT2Model", marks=pytest.mark.slow),
        pytest.param("GPT2ForSequenceClassification", marks=pytest.mark.slow),
        pytest.param("GPT2DoubleHeadsModel", marks=pytest.mark.slow),
    ],
)
def test_the_same_modules_are_selected(name, tmp_path):
    """The same layers, with the same ranks and factors, as by PEFT; or none by either."""
    oracle.saved(name, tmp_path, **CLASSES[name])
    model = oracle.ours(name, tmp_path)
    # PEFT has no defaults for some families
    defaults = peft.utils.constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    known = model.config.model_type in defaults
    default = {} if known else {"target_modules": [*model.lora_targets]}
    for label, settings in MATCHING.items():
        theirs = oracle.torch_model(name, **CLASSES[name])
        try:
            with adapters.quiet():
                adapted = peft.get_peft_model(theirs, peft.LoraConfig(**default | settings))
        except (TypeError, ValueError) as reason:
            if any(text in f"{reason}" for text in PEFTS_OWN):
                continue
            with pytest.raises(InputError, match=r"target_modules: "):
                library.sites(model, train.LoRA(**settings))
            continue
        expected = {
            path.removeprefix("base_model.model."): (m.r["default"], m.scaling["default"])
            for path, m in adapted.named_modules()
            if isinstance(m, peft.tuners.lora.LoraLayer)
        }
        found = library.sites(model, train.LoRA(**settings))
        assert {site.path: (site.rank, site.scaling) for site in found} == expected, label


@pytest.mark.parametrize(
    ("name", "wrong"), [("GPT2LMHeadModel", False), ("BertForSequenceClassification", True)]
)
def test_fan_in_fan_out_is_the_models(name, wrong, tmp_path):
    """PEFT corrects a wrong value, and writes it for further adapters of a model."""
    with oracle.float64():
        model, _, adapted = ours_and_theirs(name, {}, tmp_path)
        path = tmp_path / "adapter" / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"fan_in_fan_out": wrong}))
        adapter = train.load_adapter(model, tmp_path / "adapter")
        given, expected = adapters.outputs(adapted, name)
        assert apart(train.merge(model, adapter), given, expected) <= FLOAT64
        train.save_adapter(model, adapter, tmp_path / "ours")
    written = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert written["fan_in_fan_out"] is not wrong


OBJECTIVES = {
    "BertForSequenceClassification": lambda config: train.classification(config),
    "GPT2LMHeadModel": lambda config: train.causal_lm,
}


def a_batch(name, seed=0):
    words = losses.words(name, 4, seed)
    if name == "GPT2LMHeadModel":
        return words | {"labels": losses.some_ignored(words["input_ids"], words["attention_mask"])}
    return words | {"labels": np.random.default_rng(seed).integers(0, 5, 4)}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("BertForSequenceClassification", {"r": 4, "lora_alpha": 16, **adapters.SAVED}),
        pytest.param(
            *("GPT2LMHeadModel", {"r": 3, "use_rslora": True, "fan_in_fan_out": True}),
            marks=pytest.mark.slow,
        ),
        ("GPT2LMHeadModel", {"use_dora": True, "lora_bias": False, "fan_in_fan_out": True}),
        *(
            pytest.param(name, settings, marks=pytest.mark.slow)
            for name, settings in (
                ("BertForSequenceClassification", {"bias": "all", "lora_bias": True}),
                ("GPT2LMHeadModel", {"target_modules": ["wte", "c_attn"], "fan_in_fan_out": True}),
                (
                    "BertForSequenceClassification",
                    {"trainable_token_indices": list(range(5, 60, 2))},
                ),
                (
                    "GPT2LMHeadModel",
                    {"trainable_token_indices": list(range(9)), "fan_in_fan_out": True},
                ),
            )
        ),
        pytest.param(
            "BertForSequenceClassification",
            {"target_modules": [adapters.EMBEDDED], "use_dora": True},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *("GPT2LMHeadModel", {"bias": "lora_only", "lora_bias": True, "fan_in_fan_out": True}),
            marks=pytest.mark.slow,
        ),
    ],
)
class TestTraining:
    def test_gradients(self, name, settings, tmp_path):
        with oracle.float64(), losses.wide_losses():
            model, adapter, adapted = ours_and_theirs(name, settings, tmp_path)
            batch, objective = a_batch(name), OBJECTIVES[name](model.config)
            form, arrays = library.forms(model, adapter)[0], parameters(model)
            structure = Structure(form.model)
            frozen = {path: a for path, a in arrays.items() if path not in adapter.params}

            def loss(params):
                whole = structure.build(form.combine(params, frozen))
                return objective(objective.apply(whole, batch, None), batch)

            found = as_torch(adapter, model, jax.jit(jax.grad(loss))(adapter.params))
            adapted(**losses.tensors(batch)).loss.backward()
            expected = {
                path: p.grad.numpy() for path, p in adapted.named_parameters() if p.requires_grad
            }
            assert losses.distance(found, expected) <= GRADIENT

    def test_steps(self, name, settings, tmp_path):
        with oracle.float64(), losses.wide_losses():
            model, adapter, adapted = ours_and_theirs(name, settings, tmp_path)
            objective = OBJECTIVES[name](model.config)
            trainer = train.Trainer(
                quietly(model), objective, optax.adamw(1e-2, weight_decay=0.1), lora=adapter
            )
            trained = [p for p in adapted.parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.1)
            for step in range(5):
                batch = a_batch(name, step)
                optimizer.zero_grad()
                loss = adapted(**losses.tensors(batch)).loss
                loss.backward()
                optimizer.step()
                assert abs(float(trainer.step(batch)["loss"]) - loss.item()) <= 1e-8
            found = as_torch(adapter, model, trainer.adapter.params)
            expected = {p: a.detach().numpy() for p, a in adapted.named_parameters()}
            assert max(np.abs(found[p] - expected[p]).max() for p in found) <= 1e-7
            given, outputs = adapters.outputs(adapted, name)
            assert apart(trainer.model, given, outputs) <= 1e-7
            whole = train.attach if "wte" in settings.get("target_modules", ()) else train.merge
            again = parameters(whole(model, trainer.adapter))
            for path, array in parameters(trainer.model).items():
                assert np.array_equal(array, again[path]), path


def quietly(model):
    """A model without dropout, also in training mode."""
    leaves, treedef = jax.tree.flatten(model)
    copy = jax.tree.unflatten(treedef, leaves)
    copy.set_attributes(rate=0.0)
    return copy


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_only_the_adapter_is_trained(name, tmp_path):
    adapters.base(name, tmp_path)
    model = oracle.ours(name, tmp_path)
    before = host(parameters(model))
    settings = train.LoRA(modules_to_save=None if "GPT2" in name else ["classifier"])
    trainer = train.Trainer(
        model, OBJECTIVES[name](model.config), train.adamw(1e-2), lora=settings, accumulate=2
    )
    for step in range(3):
        metrics = trainer.step(a_batch(name, step))
    assert np.isfinite(float(metrics["loss"]))
    after = parameters(trainer.model)
    targets = {f"{site.path}.kernel" for site in library.sites(model, settings)}
    saved = {path for path in before if path.startswith("classifier")}
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert changed == targets | (saved if "Bert" in name else set())
    assert all(np.array_equal(before[path], a) for path, a in parameters(model).items())
    for path, array in trainer.frozen.items():
        assert np.array_equal(array, before[path])


def test_a_fresh_adapter_changes_nothing(tmp_path):
    name = "BertForSequenceClassification"
    adapters.base(name, tmp_path)
    model = oracle.ours(name, tmp_path)
    adapter = train.init_adapter(model, train.LoRA(r=4), seed=3)
    merged = parameters(train.merge(model, adapter))
    assert all(np.array_equal(a, merged[path]) for path, a in parameters(model).items())
    drawn = {path: np.asarray(a) for path, a in adapter.params.items()}
    for path, array in drawn.items():
        if path.endswith("lora_A"):
            assert array.shape == (24, 4)
            assert 0.8 * 24**-0.5 < np.abs(array).max() <= 24**-0.5  # kaiming_uniform_(a=√5)
            assert abs(array.mean()) < 0.06
        else:
            assert array.shape == (4, 24)
            assert not array.any()
    again = train.init_adapter(model, train.LoRA(r=4, target_modules=["query"]), seed=3).params
    assert all(np.array_equal(drawn[path], array) for path, array in again.items())
    other = train.init_adapter(model, train.LoRA(r=4), seed=4).params
    assert not any(np.array_equal(drawn[p], a) for p, a in other.items() if p.endswith("A"))
    loud = train.init_adapter(model, train.LoRA(r=4, init_lora_weights=False)).params
    assert all(np.asarray(array).any() for array in loud.values())
    normal = train.init_adapter(model, train.LoRA(r=4, init_lora_weights="gaussian")).params
    stds = [np.std(array) for path, array in normal.items() if path.endswith("A")]
    assert all(abs(std - 1 / 4) < 0.08 for std in stds)


MISTAKES = {
    "scaling forgotten": lambda site: {"scaling": 1.0},
    "√r for r": lambda site: {"scaling": site.scaling * site.rank**0.5},
    "scaling inverted": lambda site: {"scaling": 1 / site.scaling},
}


@pytest.mark.parametrize("mistake", [*MISTAKES, "A and B swapped", "Conv1D transposed"])
def test_mistake_is_seen(mistake, tmp_path, monkeypatch):
    """Uses a square Conv1D, so that shapes do not reveal the mistake."""
    name, settings = (
        "GPT2LMHeadModel",
        {
            "target_modules": ["attn.c_proj"],
            "r": 4,
            "lora_alpha": 12,
            "fan_in_fan_out": True,
        },
    )
    with oracle.float64():
        model, adapter, adapted = ours_and_theirs(name, settings, tmp_path)
        given, expected = adapters.outputs(adapted, name)
        right = apart(train.merge(model, adapter), given, expected)
        places = library.sites(model, adapter.config)
        if mistake in MISTAKES:
            wrong = tuple(dataclasses.replace(s, **MISTAKES[mistake](s)) for s in places)
            monkeypatch.setattr(library, "sites", lambda *_: wrong)
        elif mistake == "A and B swapped":
            params = dict(adapter.params)
            for site in places:
                one, other = site.factors
                params[one], params[other] = params[other].T, params[one].T
            adapter = train.Adapter(adapter.config, params)
        else:
            monkeypatch.setattr(library, "_combined", transposed(library._combined))
        assert right <= FLOAT64
        assert apart(train.merge(model, adapter), given, expected) >= 1000 * FLOAT64


def transposed(combined):
    """Adds the update in the layout of PyTorch's linear layers."""

    def wrong(places, rows, params, frozen):
        arrays = combined(places, rows, params, frozen)
        for site in places:
            path = f"{site.path}.kernel"
            arrays[path] = frozen[path] + (arrays[path] - frozen[path]).T
        return arrays

    return wrong
