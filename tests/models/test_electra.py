"""ELECTRA beyond the contract: its two files, summaries, replaced tokens, generation, texts."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the oracle is PyTorch")

import tokenizers  # noqa: E402
import transformers  # noqa: E402
from flax import nnx  # noqa: E402

import minibert  # noqa: E402
import oracle  # noqa: E402
from conftest import EMBEDDING, FLOAT64, GRADIENT  # noqa: E402
from minibert import train  # noqa: E402
from minibert.errors import (  # noqa: E402
    CheckpointMismatchError,
    ConfigError,
    InputError,
    MissingHeadError,
    UnsupportedConfigError,
)
from minibert.pipelines import pipeline  # noqa: E402
from minibert.train.batches import checked_batch  # noqa: E402
from slowly import slow_but  # noqa: E402
from speaking import LONG, SENTENCES, assert_same  # noqa: E402

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXTS = SENTENCES[:12]
DISCRIMINATOR, GENERATOR = "ElectraForPreTraining", "ElectraForMaskedLM"
CHOICE = "ElectraForMultipleChoice"


@pytest.fixture(scope="module")
def tokenizer():
    """A WordPiece tokenizer, which is BERT's."""
    made = tokenizers.BertWordPieceTokenizer()
    made.train_from_iterator(SENTENCES, vocab_size=400, special_tokens=SPECIAL, show_progress=False)
    vocabulary = json.loads(made.to_str())["model"]["vocab"]
    return transformers.ElectraTokenizer(vocab=vocabulary, model_max_length=200)


@pytest.fixture
def folder(tokenizer, tmp_path):
    """Saves a model of a class, and the tokenizer beside it."""

    def save(name, **config):
        sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 200}
        oracle.saved(name, tmp_path / "model", **sizes | config)
        tokenizer.save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return save


def test_config():
    assert minibert.ElectraConfig() == minibert.ElectraConfig.small()
    for name, sizes in (("small", (128, 256)), ("base", (768, 768)), ("large", (1024, 1024))):
        config = getattr(minibert.ElectraConfig, name)()
        assert (config.embedding_size, config.hidden_size) == sizes
    with pytest.raises(ConfigError, match="summary_type: expected one of last, first, mean"):
        minibert.ElectraConfig.from_dict({"summary_type": "attn"})
    for field, value in (("summary_proj_to_labels", True), ("summary_first_dropout", 0.1)):
        with pytest.raises(UnsupportedConfigError, match=f"{field}: {value} is not implemented"):
            minibert.ElectraConfig.from_dict({field: value})
    model = minibert.ElectraModel(minibert.ElectraConfig.base(num_hidden_layers=1), rngs=None)
    assert model.embeddings_project is None


@pytest.mark.parametrize(
    ("name", "other"), [(DISCRIMINATOR, GENERATOR), (GENERATOR, DISCRIMINATOR)]
)
def test_one_file_in_the_class_of_the_other(name, other, tmp_path):
    """The head is left in the file, and the other one, which transformers makes up, is missing."""
    oracle.saved(name, tmp_path)
    assert type(minibert.load(tmp_path)).__name__ == name
    with pytest.raises(MissingHeadError, match="new_head=True"):
        oracle.ours(other, tmp_path)
    options = {"new_head": True, "rngs": nnx.Rngs(0), "output_loading_info": True}
    _, info = oracle.ours(other, tmp_path, **options)
    heads = {
        DISCRIMINATOR: {"discriminator_predictions"},
        GENERATOR: {"generator_predictions", "generator_lm_head"},
    }
    assert {path.partition(".")[0] for path in info.left} == heads[name]
    assert {path.partition(".")[0] for path in info.new} == heads[other]


@pytest.mark.parametrize("name", [DISCRIMINATOR, GENERATOR, CHOICE])
def test_files_without_architectures(name, tmp_path):
    oracle.saved(name, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert type(minibert.load(tmp_path)).__name__ == name


@pytest.mark.parametrize(
    "config",
    [
        {"summary_type": "last"},
        {"summary_type": "mean"},
        {"summary_type": "cls_index"},
        {"summary_use_proj": False},
        {"summary_activation": "tanh"},
        {"summary_activation": "prelu"},
        {"summary_last_dropout": 0.0},
    ],
    ids=lambda config: "-".join(map(str, *config.items())),
)
def test_summaries(config, tmp_path):
    theirs = oracle.saved(CHOICE, tmp_path, **config)
    assert oracle.worst(CHOICE, tmp_path, theirs, oracle.arguments(CHOICE)) <= FLOAT64


def test_a_config_with_another_summary(tmp_path):
    """It does not describe the model, although the parameters are the same."""
    model = minibert.ElectraForMultipleChoice(minibert.ElectraConfig.tiny(), rngs=nnx.Rngs(0))
    other = model.config.replace(summary_type="mean")
    with pytest.raises(CheckpointMismatchError, match="kind: expected 'mean', found 'first'"):
        model.save_pretrained(tmp_path / "saved", config=other)
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("masked", slow_but([True, False], True), ids=["padded", "no mask"])
def test_replaced_tokens(masked, tmp_path):
    """The loss and every gradient are PyTorch's; padding is no target."""
    theirs = oracle.saved(DISCRIMINATOR, tmp_path).double()
    given = oracle.arguments(DISCRIMINATOR)
    given["labels"] = np.random.default_rng(0).integers(0, 2, given["input_ids"].shape)
    if not masked:
        del given["attention_mask"]
    outputs = theirs(**{key: torch.as_tensor(array) for key, array in given.items()})
    tokens = torch.as_tensor(given.get("attention_mask", np.ones_like(given["labels"]))) == 1
    labels = torch.as_tensor(given["labels"])[tokens].double()  # transformers takes float32
    loss = torch.nn.functional.binary_cross_entropy_with_logits(outputs.logits[tokens], labels)
    assert abs(loss.item() - outputs.loss.item()) <= 1e-6
    loss.backward()
    with oracle.float64():
        model = oracle.ours(DISCRIMINATOR, tmp_path, param_dtype=jnp.float64)
        inputs = {key: array for key, array in given.items() if key != "labels"}

        def value(model):
            return train.replaced_tokens(model(**inputs), given)

        found, gradient = jax.value_and_grad(value)(model)
        arrays = oracle.named_arrays(gradient)
    assert abs(float(found) - loss.item()) <= FLOAT64
    for path, parameter in theirs.named_parameters():
        scale = max(np.abs(parameter.grad.numpy()).max(), 1e-3)
        assert np.abs(arrays[path] - parameter.grad.numpy()).max() <= GRADIENT * scale, path


@pytest.mark.slow
def test_pretraining(tmp_path):
    """For the same drawn tokens, the loss and every gradient of both models are PyTorch's."""
    sizes = {"hidden_size": 12, "num_attention_heads": 2, "intermediate_size": 28}
    generator = oracle.saved(GENERATOR, tmp_path / "generator", **sizes).double()
    discriminator = oracle.saved(DISCRIMINATOR, tmp_path / "discriminator", seed=1).double()
    generator.electra.embeddings = discriminator.electra.embeddings
    generator.tie_weights()
    given = oracle.arguments(GENERATOR)
    drawn = np.random.default_rng(0).integers(0, 97, given["input_ids"].shape)
    batch = given | {"labels": np.where(given["attention_mask"] * (drawn < 40), drawn, -100)}
    objective = train.electra_pretraining(weight=7)
    with oracle.float64():
        parts = [
            oracle.ours(name, tmp_path / folder, param_dtype=jnp.float64)
            for name, folder in ((GENERATOR, "generator"), (DISCRIMINATOR, "discriminator"))
        ]
        pair = train.ElectraPair(*parts)

        def value(pair):
            outputs = objective.apply(pair, batch, None)
            return objective(outputs, batch), outputs

        (found, outputs), gradient = jax.value_and_grad(value, has_aux=True)(pair)
        gradients = [oracle.named_arrays(part) for part in gradient.models()]
    masked = batch["labels"] != -100
    filled = np.array(outputs.input_ids)
    assert (filled == given["input_ids"])[~masked].all()
    assert (np.asarray(outputs.replaced) == masked & (filled != batch["labels"])).all()
    assert np.asarray(outputs.replaced).any()
    tensors = {key: torch.as_tensor(array) for key, array in given.items()}
    logits = generator(**tensors).logits[torch.as_tensor(masked)]
    loss = torch.nn.functional.cross_entropy(logits, torch.as_tensor(batch["labels"][masked]))
    scores = discriminator(**tensors | {"input_ids": torch.as_tensor(filled)}).logits
    tokens = tensors["attention_mask"] == 1
    replaced = torch.as_tensor(np.array(outputs.replaced)).double()
    loss = loss + 7 * torch.nn.functional.binary_cross_entropy_with_logits(
        scores[tokens], replaced[tokens]
    )
    loss.backward()
    assert abs(float(found) - loss.item()) <= FLOAT64
    for theirs, ours in zip((generator, discriminator), gradients, strict=True):
        for path, parameter in theirs.named_parameters():
            expected = parameter.grad.numpy()
            scale = max(np.abs(expected).max(), 1e-3)
            assert np.abs(ours[path] - expected).max() <= GRADIENT * scale, path


IDS = np.random.default_rng(0).integers(5, 97, (8, 12))
LABELS = (IDS > 50).astype(int)
BATCH = {"input_ids": IDS, "attention_mask": np.ones_like(IDS), "labels": LABELS}


@pytest.mark.slow
def test_training_on_replaced_tokens():
    config = minibert.ElectraConfig.tiny(hidden_dropout_prob=0.0, num_hidden_layers=1)
    model = minibert.ElectraForPreTraining(config, rngs=nnx.Rngs(0))
    trainer = train.Trainer(model, train.replaced_tokens, train.adamw(1e-2))
    lines = [trainer.step(BATCH) for _ in range(25)]
    assert float(lines[-1]["loss"]) < 0.5 * float(lines[0]["loss"])
    assert trainer.evaluate([BATCH])["replaced_tokens_accuracy"] > 0.9


def pair(**changes):
    configs = [minibert.ElectraConfig.tiny(num_hidden_layers=1, **one) for one in (changes, {})]
    classes = (minibert.ElectraForMaskedLM, minibert.ElectraForPreTraining)
    return [cls(one, rngs=nnx.Rngs(0)) for cls, one in zip(classes, configs, strict=True)]


@pytest.mark.slow
def test_training_of_both(tmp_path):
    """Both learn, from other tokens in every step, and each is saved with the shared embeddings."""
    generator, discriminator = pair(hidden_size=12, num_attention_heads=2)
    before = np.array(generator.electra.embeddings.word_embeddings.embedding[...])
    objective = train.electra_pretraining()
    both = train.ElectraPair(generator, discriminator)
    trainer = train.Trainer(both, objective, train.adamw(2e-2))
    batch = BATCH | {"labels": np.where(LABELS, IDS, -100), "input_ids": IDS * (1 - LABELS) + 4}
    lines = [trainer.step(batch) for _ in range(15)]
    assert float(lines[-1]["masked_lm"]) < 0.8 * float(lines[0]["masked_lm"])
    assert trainer.evaluate([batch])["replaced_tokens_accuracy"] > 0.8
    for model in trainer.model.models():
        model.save_pretrained(tmp_path / type(model).__name__)
    again = [minibert.load(tmp_path / name) for name in (GENERATOR, DISCRIMINATOR)]
    one, other = (model.electra.embeddings.word_embeddings.embedding[...] for model in again)
    np.testing.assert_array_equal(one, other)
    assert np.abs(one - before).max() > 0.01
    np.testing.assert_array_equal(
        generator.electra.embeddings.word_embeddings.embedding[...], before
    )  # the models that were passed are as they were


def test_wrong_pairs():
    generator, discriminator = pair(embedding_size=16)
    with pytest.raises(InputError, match="generator: embedding_size: expected 20, as the discrim"):
        train.ElectraPair(generator, discriminator)
    with pytest.raises(InputError, match="generator: expected an ElectraForMaskedLM, found 'Elec"):
        train.ElectraPair(discriminator, discriminator)
    generator, discriminator = pair(layer_norm_eps=1e-5)  # with which it would be saved
    with pytest.raises(InputError, match="generator: layer_norm_eps: expected 1e-12, as the discr"):
        train.ElectraPair(generator, discriminator)
    generator, discriminator = pair(tie_word_embeddings=False)
    with pytest.raises(InputError, match="generator: expected a decoder that is tied"):
        train.ElectraPair(generator, discriminator)
    with pytest.raises(InputError, match="weight: expected a number of at least 0"):
        train.electra_pretraining(-1)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"labels": LABELS * 2}, "labels: expected only 0 and 1, found 2"),
        ({"labels": LABELS[:, :5]}, r"labels: expected shape \(8, 12\), found \(8, 5\)"),
        ({"attention_mask": IDS * 0}, "attention_mask: no target: every position is padding"),
        ({"attention_mask": np.ones((8, 12, 12), int)}, r"attention_mask: expected shape \(8, 12"),
    ],
    ids=["a number", "a shape", "only padding", "a mask by query"],
)
def test_wrong_labels(wrong, why):
    with pytest.raises(InputError, match=why):
        checked_batch(minibert.ElectraConfig.tiny(), train.replaced_tokens, BATCH | wrong, 1)


@pytest.mark.parametrize(
    ("mask", "why"),
    [
        (np.ones((8, 12, 12), int), r"attention_mask: expected shape \(8, 12\), found \(8, 12, 12"),
        (IDS * 0, "attention_mask: no target: every position is padding"),
    ],
    ids=["by query", "only padding"],
)
def test_wrong_masks_of_both(mask, why):
    """The discriminator's targets are the tokens of the mask."""
    batch = {"input_ids": IDS, "labels": np.where(LABELS, IDS, -100), "attention_mask": mask}
    with pytest.raises(InputError, match=why):
        checked_batch(minibert.ElectraConfig.tiny(), train.electra_pretraining(), batch, 1)


@pytest.mark.slow
def test_generation(tmp_path):
    """Each token is the one PyTorch's forward pass finds most probable, whatever the padding."""
    theirs = oracle.saved("ElectraForCausalLM", tmp_path, is_decoder=True)
    ours = minibert.load(tmp_path)
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12]]
    found = minibert.generate(ours, prompts, max_new_tokens=4, eos_token_id=None)
    for row, prompt in zip(found, prompts, strict=True):
        text = list(prompt)
        for _ in range(4):
            with torch.no_grad():
                text.append(int(theirs(torch.tensor([text])).logits[0, -1].argmax()))
        assert row[-len(text) :].tolist() == text


@pytest.mark.parametrize(
    ("task", "name", "inputs", "options"),
    slow_but(
        [
            ("fill-mask", GENERATOR, [f"{text} [MASK]" for text in TEXTS], {}),
            (
                "text-classification",
                "ElectraForSequenceClassification",
                [*TEXTS, LONG, {"text": TEXTS[1], "text_pair": TEXTS[2]}],
                {"truncation": True},
            ),
            ("token-classification", "ElectraForTokenClassification", list(TEXTS), {}),
        ],
        ("fill-mask", GENERATOR, [f"{text} [MASK]" for text in TEXTS], {}),
    ),
)
def test_pipelines(task, name, inputs, options, folder):
    place = folder(name)
    theirs = transformers.pipeline(task, str(place), device="cpu")
    assert_same(pipeline(task, place)(inputs, **options), theirs(inputs, **options))


@pytest.mark.slow
def test_sentences(folder, tmp_path):
    """Vectors of texts, alone, together and sharing rows, beside sentence-transformers'."""
    library = pytest.importorskip("sentence_transformers")
    encoder = minibert.SentenceEncoder.from_pretrained(folder("ElectraModel"), pooling="mean")
    texts = [*SENTENCES, LONG]
    vectors = encoder.encode(texts)
    np.testing.assert_allclose(encoder.encode(texts, packing=200), vectors, rtol=0, atol=EMBEDDING)
    encoder.save_pretrained(tmp_path / "saved")
    theirs = library.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    np.testing.assert_allclose(theirs.encode(texts), vectors, rtol=0, atol=EMBEDDING)


def test_an_adapter():
    """LoRA's default targets are PEFT's."""
    config = minibert.ElectraConfig.tiny(num_labels=3)
    model = minibert.ElectraForSequenceClassification(config, rngs=None)
    mapping = pytest.importorskip("peft.utils").TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    assert list(model.lora_targets) == mapping["electra"]
