"""Adapters beside a model's layers, combined, and loaded with their base; compared with PEFT."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
peft = pytest.importorskip("peft")

from test_lora import OBJECTIVES, a_batch, apart, as_torch, ours_and_theirs, quietly  # noqa: E402

import adapters  # noqa: E402
import losses  # noqa: E402
import minibert  # noqa: E402
import oracle  # noqa: E402
from conftest import FLOAT32, FLOAT64, GRADIENT  # noqa: E402
from families import CLASSES  # noqa: E402
from minibert import train  # noqa: E402
from minibert.errors import (  # noqa: E402
    ConfigError,
    InputError,
    MissingHeadError,
    SourceError,
    UnsupportedConfigError,
)
from minibert.nn.tree import Structure, parameters, submodules  # noqa: E402
from minibert.train.lora import adapter as library  # noqa: E402
from minibert.train.lora.layers import AdaptedLinear, with_keys  # noqa: E402

TIED = {"target_modules": ["wte", "c_attn"], "fan_in_fan_out": True}


class Masked(torch.nn.Module):
    """A dropout with a given mask."""

    def __init__(self, mask):
        super().__init__()
        self.mask = torch.tensor(np.asarray(mask))

    def forward(self, x):
        return x * self.mask


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        pytest.param(
            "BertForSequenceClassification",
            {"lora_dropout": 0.4, "target_modules": ["query", "output.dense"], "lora_bias": True},
            marks=pytest.mark.slow,
        ),
        (
            "GPT2LMHeadModel",
            {"lora_dropout": 0.3, "use_dora": True, "fan_in_fan_out": True, "r": 3},
        ),
        pytest.param("GPT2LMHeadModel", {"lora_dropout": 0.3, **TIED}, marks=pytest.mark.slow),
    ],
)
def test_dropout(name, settings, tmp_path):
    """With the same masks, losses and gradients are the same."""
    with oracle.float64(), losses.wide_losses():
        model, adapter, adapted = ours_and_theirs(name, settings, tmp_path)
        batch, objective = a_batch(name), OBJECTIVES[name](model.config)
        form = library.forms(quietly(model), adapter)[0]
        structure = Structure(form.model.train())
        frozen = {p: a for p, a in parameters(model).items() if p not in adapter.params}
        masks = {
            path: layer.lora_dropout(
                jnp.ones((*batch["input_ids"].shape, layer.in_features)),
                nnx.Rngs(dropout=layer.key),
            )
            for path, layer in submodules(with_keys(form.model, nnx.Rngs(dropout=7)))
            if isinstance(layer, AdaptedLinear)
        }
        adapted.train()
        for path, module in adapted.named_modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            path = path.removeprefix("base_model.model.")
            if path in masks:
                module.lora_dropout["default"] = Masked(masks[path])

        def loss(params):
            whole = structure.build(form.combine(params, frozen))
            return objective(objective.apply(whole, batch, nnx.Rngs(dropout=7)), batch)

        value, gradients = jax.jit(jax.value_and_grad(loss))(adapter.params)
        theirs = adapted(**losses.tensors(batch)).loss
        theirs.backward()
        assert abs(float(value) - theirs.item()) <= FLOAT64
        expected = {p: a.grad.numpy() for p, a in adapted.named_parameters() if a.requires_grad}
        assert losses.distance(as_torch(adapter, model, gradients), expected) <= GRADIENT


@pytest.fixture(scope="module")
def bert():
    config = minibert.BertConfig.tiny(num_labels=5)
    return minibert.BertForSequenceClassification(config, rngs=nnx.Rngs(0)).eval()


def test_masks_of_dropout(bert):
    """They differ by layer, row and call; without keys there is an error."""
    adapter = train.init_adapter(bert, train.LoRA(lora_dropout=0.25))
    attached = library.forms(bert, adapter)[0].model.train()
    drops = []
    for seed in (0, 1):
        for _, layer in submodules(with_keys(attached, nnx.Rngs(dropout=seed))):
            if isinstance(layer, AdaptedLinear):
                ones = jnp.ones((8, 16, layer.in_features))
                drops.append(np.asarray(layer.lora_dropout(ones, nnx.Rngs(dropout=layer.key))))
    assert all(abs((drop == 0).mean() - 0.25) < 0.05 for drop in drops)
    assert len({row.tobytes() for drop in drops for row in drop}) == 8 * len(drops)
    with pytest.raises(InputError, match=r"^rngs: "):
        attached(np.arange(5, 13)[None], rngs=nnx.Rngs(dropout=0))


@pytest.mark.slow
def test_dropout_in_training(bert):
    """Losses differ by step and seed; evaluation and the result have no dropout."""
    adapter = train.init_adapter(bert, train.LoRA(lora_dropout=0.5, init_lora_weights=False))
    quiet = quietly(bert)
    batch = {"input_ids": np.tile(np.arange(5, 13), (4, 1)), "labels": np.zeros(4, np.int32)}

    def first_losses(adapter, **options):
        objective = train.classification(bert.config)
        trainer = train.Trainer(quiet, objective, train.adamw(0.0), lora=adapter, **options)
        before = trainer.evaluate([batch])["loss"]
        found = [float(trainer.step(batch)["loss"]) for _ in range(3)]
        assert trainer.evaluate([batch])["loss"] == pytest.approx(before, abs=1e-6)
        merged = parameters(train.merge(quiet, trainer.adapter))
        for path, array in parameters(trainer.model).items():
            assert np.array_equal(array, merged[path]), path
        return found

    found = first_losses(adapter)
    assert len(set(found)) == 3
    assert first_losses(adapter, remat=True) == pytest.approx(found, abs=1e-6)
    assert first_losses(adapter, seed=1) != found
    assert len(set(first_losses(adapter, accumulate=2))) == 3
    still = train.Adapter(train.LoRA(), adapter.params)
    assert np.ptp(first_losses(still)) < 1e-6


@pytest.mark.parametrize(
    "settings", [TIED, pytest.param({**TIED, "use_dora": True}, marks=pytest.mark.slow)]
)
def test_embeddings_to_which_the_output_is_tied(settings, tmp_path):
    """As in PEFT, an adapter changes how tokens are looked up, and not the logits' matrix."""
    name = "GPT2LMHeadModel"
    with oracle.float64():
        model, adapter, adapted = ours_and_theirs(name, settings, tmp_path)
        given, expected = adapters.outputs(adapted, name)
        before = {path: np.array(array) for path, array in parameters(model).items()}
        assert apart(train.attach(model, adapter), given, expected) <= FLOAT64
        assert apart(model, given, expected) > 1000 * FLOAT64
        assert all(np.array_equal(before[path], a) for path, a in parameters(model).items())


def test_an_attached_adapter(bert, tmp_path):
    """It shares the model's arrays, and a program with others."""
    lora = train.LoRA(r=4, init_lora_weights=False, task_type="SEQ_CLS")
    one, other = (train.init_adapter(bert, lora, seed=seed) for seed in (1, 2))
    ids, traces = np.arange(5, 13)[None], []

    @jax.jit
    def call(model, ids):
        traces.append(ids)
        return model(ids).logits

    for adapter in (one, other):
        attached = train.attach(bert, adapter)
        assert type(attached) is type(bert)
        expected = call(train.merge(bert, adapter), ids)
        np.testing.assert_allclose(call(attached, ids), expected, atol=FLOAT32)
    assert len(traces) == 2  # merged and attached
    shared = parameters(attached)
    assert all(
        shared[path] is array
        for path, array in parameters(bert).items()
        if "classifier" not in path
    )
    with pytest.raises(minibert.errors.CheckpointMismatchError, match=r"lora_A"):
        attached.save_pretrained(tmp_path / "model")


@pytest.mark.slow
def test_generation_with_an_attached_adapter():
    ids = np.arange(5, 13)[None]
    gpt2 = minibert.GPT2LMHeadModel(minibert.GPT2Config.tiny(), rngs=nnx.Rngs(0)).eval()
    adapter = train.init_adapter(gpt2, train.LoRA(r=4, init_lora_weights=False), seed=1)
    given = {"max_new_tokens": 6, "do_sample": False}
    expected = minibert.generate(train.merge(gpt2, adapter), ids, **given)
    assert np.array_equal(minibert.generate(train.attach(gpt2, adapter), ids, **given), expected)


COMBINED = {
    "exact": ("cat", [0.7, -0.4], {}),
    "the best of a rank": ("svd", [0.5, 0.25], {}),  # PEFT rounds these weights to float32
    "of a smaller rank": ("svd", [0.5, -0.25], {"svd_rank": 2}),
    "of factors": ("linear", [0.25, -0.25], {}),  # and the roots of these
}


@pytest.mark.parametrize(
    "name",
    ["BertModel", pytest.param("GPT2ForSequenceClassification", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize(("kind", "weights", "options"), COMBINED.values(), ids=list(COMBINED))
def test_several_adapters(name, kind, weights, options, tmp_path):
    turned = {"fan_in_fan_out": "GPT2" in name}
    embedded = ["wte"] if "GPT2" in name else ["word_embeddings"]
    layers = [["c_attn", "mlp.c_fc"], ["c_attn"]] if "GPT2" in name else [["query"], ["key"]]
    settings = [
        {"r": 3, "lora_alpha": 12, "target_modules": layers[0] + embedded, **turned},
        {"r": 3, "lora_alpha": 3, "target_modules": layers[1] + embedded, **turned},
    ]
    theirs = adapters.base(name, tmp_path / "base")
    adapted = adapters.peft_model(theirs, settings[0])
    draw = torch.Generator().manual_seed(3)
    with adapters.quiet(), torch.no_grad():
        adapted.add_adapter("other", peft.LoraConfig(**settings[1]))
        adapted.double()
        for path, parameter in adapted.named_parameters():
            if ".other" in path:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=draw).double())
        adapted.save_pretrained(tmp_path / "ours")
        adapted.add_weighted_adapter(
            ["default", "other"], weights, "sum", combination_type=kind, **options
        )
        adapted.double()
        adapted.set_adapter("sum")
    given, expected = adapters.outputs(adapted.eval(), name)
    with oracle.float64():
        model = oracle.ours(name, tmp_path / "base", param_dtype=jnp.float64)
        folders = [tmp_path / "ours", tmp_path / "ours" / "other"]
        ours = [train.load_adapter(model, folder) for folder in folders]
        found = train.weighted_adapter(model, ours, weights, combination_type=kind, **options)
        assert apart(train.attach(model, found), given, expected) <= FLOAT64
        train.save_adapter(model, found, tmp_path / "sum")
        again = train.load_adapter(model, tmp_path / "sum")
        assert apart(train.merge(model, again), given, expected) <= FLOAT64


def test_adapters_that_cannot_be_combined(bert):
    plain = train.init_adapter(bert, train.LoRA(r=4))
    with pytest.raises(InputError, match=r"^combination_type: expected one of cat, svd, linear"):
        train.weighted_adapter(bert, [plain], [1.0], combination_type="ties")
    with pytest.raises(InputError, match=r"^weights: expected one for each of the 1 adapters"):
        train.weighted_adapter(bert, [plain], [1.0, 2.0])
    with pytest.raises(InputError, match=r"^weights: expected a number"):
        train.weighted_adapter(bert, [plain], [np.nan])
    small = train.init_adapter(bert, train.LoRA(r=2))
    with pytest.raises(
        InputError, match=r"query: expected equal ranks for 'linear', found \[4, 2\]"
    ):
        train.weighted_adapter(bert, [plain, small], [1, 1], combination_type="linear")
    for settings in ({"use_dora": True}, {"lora_bias": True}, {"task_type": "SEQ_CLS"}):
        other = train.init_adapter(bert, train.LoRA(**settings))
        with pytest.raises(UnsupportedConfigError, match=r"^adapters: .*only products"):
            train.weighted_adapter(bert, [plain, other], [1, 1])


def test_a_pickle(tmp_path):
    name = "BertForSequenceClassification"
    with oracle.float64():
        model, _, adapted = ours_and_theirs(name, {"task_type": "SEQ_CLS"}, tmp_path)
        with adapters.quiet():
            adapted.save_pretrained(tmp_path / "pickle", safe_serialization=False)
        assert (tmp_path / "pickle" / "adapter_model.bin").exists()
        adapter = train.load_adapter(model, tmp_path / "pickle", allow_pickle=True)
        given, expected = adapters.outputs(adapted, name)
        assert apart(train.merge(model, adapter), given, expected) <= FLOAT64


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("BertModel", {"init_lora_weights": "pissa", "r": 4, "use_rslora": True}),
        ("BertModel", {"init_lora_weights": "olora", "r": 4, "rank_pattern": {"value": 3}}),
        *(
            pytest.param(name, settings, marks=pytest.mark.slow)
            for name, settings in (
                ("GPT2Model", {"init_lora_weights": "pissa", "r": 4, "fan_in_fan_out": True}),
                ("BertModel", {"init_lora_weights": "orthogonal", "r": 4}),
            )
        ),
    ],
)
def test_other_initialisations(name, settings, tmp_path):
    """Of PEFT, which computes them in single precision."""
    with adapters.quiet():
        theirs = oracle.saved(name, tmp_path / "base", **CLASSES[name])
        adapted = peft.get_peft_model(theirs, peft.LoraConfig(**settings)).eval()
        draw = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for path, parameter in adapted.named_parameters():
                if "lora_" in path:
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
        adapted.save_pretrained(tmp_path / "adapter")
    given, expected = adapters.outputs(adapted, name)
    model = oracle.ours(name, tmp_path / "base")
    adapter = train.load_adapter(model, tmp_path / "adapter")
    assert apart(train.merge(model, adapter), given, expected) <= FLOAT32
    train.save_adapter(model, adapter, tmp_path / "ours")
    again = train.load_adapter(model, tmp_path / "ours")
    assert apart(train.attach(model, again), given, expected) <= FLOAT32


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("BertForSequenceClassification", {"task_type": "SEQ_CLS"}),
        pytest.param(
            *("GPT2ForTokenClassification", {"task_type": "TOKEN_CLS", "fan_in_fan_out": True}),
            marks=pytest.mark.slow,
        ),
        ("BertForMaskedLM", {}),
    ],
)
def test_a_base_model_and_its_adapter(name, settings, tmp_path):
    """The class is that of the task, or of the adapter; a head may be the adapter's."""
    theirs = adapters.base(name, tmp_path / "base")
    theirs.base_model.save_pretrained(tmp_path / "base")
    if not settings:  # a head that is in the base model
        theirs.save_pretrained(tmp_path / "base")
    theirs.config._name_or_path = theirs.name_or_path = str(tmp_path / "base")
    adapted = adapters.peft_model(theirs, settings)
    with adapters.quiet():
        adapted.save_pretrained(tmp_path / "adapter")
    given, expected = adapters.outputs(adapted, name)
    labels = {"num_labels": theirs.config.num_labels} if settings else {}
    with oracle.float64():
        model = train.load_merged(tmp_path / "adapter", **labels)
        assert type(model).__name__ == name
        assert apart(model, given, expected) <= FLOAT64
        cls = getattr(minibert, name)
        again = train.load_merged(
            tmp_path / "adapter", cls, base=tmp_path / "base", param_dtype="float64", **labels
        )
        assert apart(again, given, expected) <= FLOAT64


def test_a_base_model_that_cannot_be_loaded(bert, tmp_path):
    trunk = bert.base_model
    trunk.save_pretrained(tmp_path / "base")
    lora = train.LoRA(base_model_name_or_path=str(tmp_path / "base"))
    train.save_adapter(trunk, train.init_adapter(trunk, lora), tmp_path / "adapter")
    assert type(train.load_merged(tmp_path / "adapter")).__name__ == "BertModel"
    path = tmp_path / "adapter" / "adapter_config.json"
    fields = json.loads(path.read_text())
    for named, error in ((None, ConfigError), (str(tmp_path / "no"), SourceError)):
        path.write_text(json.dumps(fields | {"base_model_name_or_path": named}))
        with pytest.raises(error, match=r"adapter_config.json: base_model_name_or_path: .*base="):
            train.load_merged(tmp_path / "adapter")
        train.load_merged(tmp_path / "adapter", base=tmp_path / "base")
    adapter = train.init_adapter(bert, train.LoRA(r=2))
    train.save_adapter(bert, adapter, tmp_path / "headless")
    with pytest.raises(MissingHeadError, match=r"classifier.*neither in the base .* adapter"):
        train.load_merged(
            tmp_path / "headless",
            minibert.BertForSequenceClassification,
            base=tmp_path / "base",
            num_labels=5,
        )
