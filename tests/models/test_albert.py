"""ALBERT beyond the contract: shared layers, files, text in and answers out, training, adapters."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the oracle is PyTorch")

import tokenizers  # noqa: E402
import transformers  # noqa: E402
from flax import nnx  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402

import adapters  # noqa: E402
import minibert  # noqa: E402
import oracle  # noqa: E402
from conftest import EMBEDDING, FLOAT32, FLOAT64  # noqa: E402
from minibert import analysis, train  # noqa: E402
from minibert.embedding.modules import Pooling, SentenceModel  # noqa: E402
from minibert.errors import ConfigError, InputError, UnsupportedConfigError  # noqa: E402
from minibert.inspection.capture import captured  # noqa: E402
from minibert.nn.tree import parameters  # noqa: E402
from minibert.pipelines import pipeline  # noqa: E402
from minibert.train.metrics import operations  # noqa: E402
from slowly import slow_but  # noqa: E402
from speaking import LONG, PAIRS, SCORE, SENTENCES, assert_same  # noqa: E402
from tiny import drawn  # noqa: E402

SPECIAL = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
UNEVEN = {"num_hidden_layers": 3, "num_hidden_groups": 2}  # layers 0 and 1 share a group
INNER = {"num_hidden_groups": 2, "inner_group_num": 2}
BLOCK = "albert.encoder.albert_layer_groups.{}.albert_layers.{}"


def masked(**config):
    return minibert.AlbertForMaskedLM(minibert.AlbertConfig.tiny(**config), rngs=nnx.Rngs(0)).eval()


def test_config():
    sizes = {name: getattr(minibert.AlbertConfig, name)() for name in ("base", "large", "xlarge")}
    assert [config.hidden_size for config in sizes.values()] == [768, 1024, 2048]
    assert minibert.AlbertConfig.xxlarge() == minibert.AlbertConfig()
    base = minibert.AlbertModel(sizes["base"], rngs=None)
    assert sum(leaf.size for leaf in jax.tree.leaves(base)) == 11_683_584
    junk = {"gap_size": 0, "num_memory_blocks": 0, "net_structure_type": 0, "down_scale_factor": 1}
    found = minibert.AlbertConfig.from_dict({"embedding_size": 5, **junk})
    assert (found.embedding_size, found.ignored_fields) == (5, tuple(sorted(junk)))
    assert found.to_dict().items() >= junk.items()
    for field, value in (
        ("position_embedding_type", "relative_key"),
        ("is_decoder", True),
        ("add_cross_attention", True),
        ("pruned_heads", {"0": [1]}),
    ):
        with pytest.raises(UnsupportedConfigError, match=f"{field}: "):
            minibert.AlbertConfig.from_dict({field: value})
    for field, value in (("num_hidden_groups", 0), ("inner_group_num", 1.5), ("hidden_size", 100)):
        with pytest.raises(ConfigError, match=f"{field}|num_attention_heads"):
            minibert.AlbertConfig.from_dict({field: value})


def test_more_groups_than_tensors(tmp_path):
    masked().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_groups": 10**9}))
    with pytest.raises(ConfigError, match="num_hidden_groups × inner_group_num: expected at most"):
        minibert.load(tmp_path)


def test_fewer_groups_of_several_blocks(tmp_path):
    """Those beyond the number that is passed are left in the file."""
    model = masked(**INNER | {"num_hidden_groups": 3, "num_hidden_layers": 3})
    model.save_pretrained(tmp_path)
    fewer = {"num_hidden_layers": 2, "num_hidden_groups": 2, "output_loading_info": True}
    found, info = minibert.load(tmp_path, **fewer)
    assert found.block_paths == model.block_paths[:4]
    assert len(info.left) == 2 * 16
    assert all(name.startswith("albert.encoder.albert_layer_groups.2.") for name in info.left)


def test_blocks():
    """The blocks that are executed, in order, and how often each one was before."""
    paths = [BLOCK.format(group, 0) for group in (0, 0, 1)]
    assert masked(**UNEVEN).block_paths == [
        f"{path}@{n}" for path, n in zip(paths, (0, 1, 0), strict=True)
    ]
    paths = [BLOCK.format(group, inner) for group in (0, 1) for inner in (0, 1)]
    assert masked(**INNER).block_paths == paths
    assert analysis.last_block(masked()) == BLOCK.format(0, 0) + "@1"


def hooked(model, given):
    """What each call of each of torch's modules returns, by path."""
    found, handles = {}, []
    for path, module in model.named_modules():

        def hook(module, args, output, path=path):
            output = output[0] if isinstance(output, tuple) else output
            found.setdefault(path, []).append(output.detach().numpy())

        if path.startswith("albert.encoder."):
            handles.append(module.register_forward_hook(hook))
    oracle.run_torch(model, given)
    for handle in handles:
        handle.remove()
    return {path: calls for path, calls in found.items() if not path.endswith("dropout")}


@pytest.mark.parametrize("config", [UNEVEN, INNER], ids=["uneven", "inner"])
def test_every_call_of_every_submodule(config, tmp_path):
    """Each call returns what torch's does, and can be replaced alone."""
    theirs = oracle.saved("AlbertForMaskedLM", tmp_path, **config).double()
    given = oracle.arguments("AlbertForMaskedLM")
    mask = given["attention_mask"] == 1
    expected = hooked(theirs, given)
    expected.pop("albert.encoder", None)
    expected = {path: calls for path, calls in expected.items() if path.count(".") != 3}
    assert max(map(len, expected.values())) == (2 if config == UNEVEN else 1)
    with oracle.float64():
        model = oracle.ours("AlbertForMaskedLM", tmp_path, param_dtype=jnp.float64)
        calls = [f"{path}@{n}" for path, outputs in expected.items() for n in range(len(outputs))]
        found = captured(model, [*calls, *expected], **given)
        for path, outputs in expected.items():
            for number, output in enumerate(outputs):
                error = np.abs(found[f"{path}@{number}"] - output)[mask].max()
                assert error <= FLOAT64, (path, number)
            np.testing.assert_array_equal(found[path], found[f"{path}@{len(outputs) - 1}"])
        states = captured(model, model.block_paths, **given, output_hidden_states=True)
        for path, state in zip(model.block_paths, states.outputs.hidden_states[1:], strict=True):
            np.testing.assert_array_equal(states[path], state)


@pytest.mark.slow
def test_one_call_is_replaced():
    model, ids = masked(**UNEVEN), np.arange(12).reshape(2, 6)
    blocks = model.block_paths
    plain = captured(model, blocks, ids)
    edits = {blocks[1]: jnp.zeros_like}
    found = captured(model, blocks, ids, replace=edits)
    np.testing.assert_array_equal(found[blocks[0]], plain[blocks[0]])
    assert not np.any(found[blocks[1]])
    assert np.abs(found.outputs.logits - plain.outputs.logits).max() > 1e-3
    path = BLOCK.format(0, 0)
    both = captured(model, blocks, ids, replace={path: jnp.zeros_like})
    assert not np.any(both[blocks[0]])
    with pytest.raises(InputError, match=r"albert_layers.0@2.: is not executed by this call"):
        captured(model, f"{path}@2", ids)


def test_logits_after_each_layer(tmp_path):
    """Those of a model that has only as many layers, which needs no other file."""
    model, ids = masked(num_hidden_layers=3, initializer_range=0.2), np.arange(12).reshape(2, 6)
    model.save_pretrained(tmp_path)
    lens = analysis.logit_lens(model, ids)
    assert len(lens) == 4
    for layers in (1, 2, 3):
        fewer = minibert.load(tmp_path, num_hidden_layers=layers)
        np.testing.assert_allclose(lens[layers], fewer(ids).logits, rtol=0, atol=1e-5)
    drops = analysis.knocked_out(model, lambda out: out.logits[0, 0, 5], ids)
    assert drops.shape == (3, 3)
    assert np.all(drops[0] != drops[1])


def test_layers_that_share_blocks():
    def kept(layers, **config):
        model = masked(**config)
        model.keep_layers(layers)
        used = (model.config.num_hidden_layers, model.config.num_hidden_groups)
        assert len(model.albert.encoder.albert_layer_groups) == used[1]
        return used

    assert kept([0, 2], **UNEVEN) == (2, 2)
    assert kept([1], **UNEVEN) == (1, 1)
    assert kept([2, 0], **UNEVEN) == (2, 2)
    assert kept([0, 1, 2], **UNEVEN) == (3, 2)
    assert kept([1, 0, 3], num_hidden_layers=4, num_hidden_groups=2) == (3, 2)
    model = masked(num_hidden_layers=4, num_hidden_groups=2)
    before = model(np.arange(6)[None]).logits
    with pytest.raises(InputError, match=r"layers: expected layers of which .* found \[0, 2, 3\]"):
        model.keep_layers([0, 2, 3])
    np.testing.assert_array_equal(model(np.arange(6)[None]).logits, before)


def test_operations():
    """A block's parameters are multiplied as often as it is executed."""
    config = minibert.AlbertConfig.base()
    model = minibert.AlbertForMaskedLM(config, rngs=None)
    layer = 4 * 768 * 768 + 2 * 768 * 3072
    ends = 2 * 128 * 768 + 30000 * 128
    found = operations(parameters(model), config, over_vocabulary=True)
    assert found == (6.0 * (12 * layer + ends), 12.0 * 12 * 768)


def rewrite(folder, change):
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "name",
    slow_but(["AlbertForPreTraining", "AlbertForMaskedLM", "AlbertModel"], "AlbertForMaskedLM"),
)
def test_a_file_as_published(name, tmp_path):
    """With copies of what is tied, buffers, old names of norms, and without architectures."""
    oracle.saved(name, tmp_path)
    expected = minibert.load(tmp_path)

    def published(tensors):
        found = {
            key.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            ): array
            for key, array in tensors.items()
        }
        trunk = "" if name == "AlbertModel" else "albert."
        found[f"{trunk}embeddings.position_ids"] = np.arange(40)[None]
        if trunk:
            words = tensors["albert.embeddings.word_embeddings.weight"]
            found["predictions.decoder.weight"] = words.copy()
            found["predictions.decoder.bias"] = tensors["predictions.bias"].copy()
        return found

    rewrite(tmp_path, published)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    model, info = minibert.load(tmp_path, output_loading_info=True)
    assert type(model).__name__ == name
    assert len(info.tied) == (0 if name == "AlbertModel" else 2)
    assert len(info.ignored) == 1
    given = oracle.arguments(name)
    np.testing.assert_array_equal(model(**given)[0], expected(**given)[0])


@pytest.mark.slow
@pytest.mark.parametrize("right", [True, False], ids=["right", "one text for all"])
def test_packing(right):
    with jax.enable_x64(True):
        model = SentenceModel(drawn("AlbertModel", **UNEVEN), [Pooling("mean", 24)])
        texts = [np.array([5, 1, 6, 7, 8, 9]), np.array([10, 11, 12])]
        ids, segments = np.zeros((1, 24), int), np.zeros((1, 24), int)
        ids[0, :6], ids[0, 6:9] = texts
        segments[0, :6], segments[0, 6:9] = 1, 2 if right else 1
        alone = [model(text[None], jnp.ones((1, len(text)), bool))[1][0] for text in texts]
        packed = np.asarray(model.packed(ids, jnp.asarray(segments))[0])
        distance = np.abs(packed[:1] - np.asarray(alone[:1])).max()
    assert distance <= FLOAT64 if right else distance > 1000 * FLOAT64


@pytest.fixture(scope="module")
def tokenizer():
    """A tokenizer of ALBERT's kind: Unigram over lower case without accents."""
    normalizers, before = tokenizers.normalizers, tokenizers.pre_tokenizers
    made = tokenizers.Tokenizer(tokenizers.models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents()])
    made.pre_tokenizer = before.Sequence([before.WhitespaceSplit(), before.Metaspace()])
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=400, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator([text.lower() for text in SENTENCES], trainer)
    vocabulary = json.loads(made.to_str())["model"]["vocab"]
    vocabulary = [tuple(entry) for entry in vocabulary]
    return transformers.AlbertTokenizer(vocab=vocabulary, model_max_length=200)


@pytest.fixture
def folder(tokenizer, tmp_path):
    """Saves a model of a class, and the tokenizer beside it."""

    def save(name, **config):
        sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 200}
        oracle.saved(name, tmp_path / "model", **sizes | UNEVEN | config)
        tokenizer.save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return save


MASKED = [f"{text[: len(text) // 2]} [MASK] {text[len(text) // 2 :]}" for text in SENTENCES]
WORDS = [text.split() for text in SENTENCES]
CUT = {"tokenizer_kwargs": {"truncation": True}}


@pytest.mark.parametrize(
    ("task", "name", "inputs", "ours", "options"),
    [
        ("fill-mask", "MaskedLM", MASKED, CUT, CUT),
        ("fill-mask", "MaskedLM", f"the [MASK] of {LONG}", CUT, CUT),
        ("text-classification", "SequenceClassification", list(SENTENCES), {}, {}),
        (
            "text-classification",
            "SequenceClassification",
            [{"text": one, "text_pair": two} for one, two in PAIRS],
            {"truncation": True},
            {"truncation": True},
        ),
        (
            "text-classification",
            "SequenceClassification",
            LONG,
            {"truncation": True},
            {"truncation": True},
        ),
        ("token-classification", "TokenClassification", list(SENTENCES), {}, {}),
        (
            "token-classification",
            "TokenClassification",
            WORDS,
            {"is_split_into_words": True},
            {"is_split_into_words": True},
        ),
    ],
    ids=["masks", "a long mask", "texts", "pairs", "a long text", "tokens", "words"],
)
@pytest.mark.slow
def test_pipelines(task, name, inputs, ours, options, folder):
    place = folder(f"AlbertFor{name}")
    theirs = transformers.pipeline(task, str(place), device="cpu")
    assert_same(pipeline(task, place)(inputs, **ours), theirs(inputs, **options))


@pytest.mark.slow
def test_answers(folder):
    """The most probable span of the context, by PyTorch's scores."""
    place = folder("AlbertForQuestionAnswering")
    answer = pipeline("question-answering", place)
    model = transformers.AlbertForQuestionAnswering.from_pretrained(place).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(place)
    question = "Where do I live?"
    for context in SENTENCES[:12]:
        found = answer(question=question, context=context, max_answer_len=200, align_to_words=False)
        given = tokens(question, context, return_tensors="pt")
        inside = np.array([part == 1 for part in given.sequence_ids(0)])
        with torch.no_grad():
            out = model(**given)
        start, end = (
            np.where(inside, np.exp(scores[0] - scores[0].max()), 0)
            for scores in (out.start_logits.numpy(), out.end_logits.numpy())
        )
        spans = np.triu(np.outer(start / start.sum(), end / end.sum()))
        first, last = np.unravel_index(spans.argmax(), spans.shape)
        spot = given.token_to_chars(int(first)).start, given.token_to_chars(int(last)).end
        assert (found["start"], found["end"]) == spot, context


@pytest.mark.slow
def test_sentences(folder, tmp_path):
    """Vectors of texts, alone and sharing rows, beside sentence-transformers'."""
    library = pytest.importorskip("sentence_transformers")
    place = folder("AlbertModel")
    encoder = minibert.SentenceEncoder.from_pretrained(place, pooling="mean")
    texts = [*SENTENCES, LONG]
    vectors = encoder.encode(texts)
    encoder.save_pretrained(tmp_path / "saved")
    theirs = library.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    np.testing.assert_allclose(vectors, theirs.encode(texts), rtol=0, atol=EMBEDDING)
    packed = encoder.encode(texts, packing=64)
    np.testing.assert_allclose(packed, vectors, rtol=0, atol=SCORE)
    again = minibert.SentenceEncoder.from_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(again.encode(texts), vectors)


@pytest.mark.slow
def test_features(folder):
    place = folder("AlbertModel")
    theirs = transformers.pipeline("feature-extraction", str(place), device="cpu")
    texts = list(SENTENCES[:9])
    for one, other in zip(pipeline("feature-extraction", place)(texts), theirs(texts), strict=True):
        np.testing.assert_allclose(one, other, atol=SCORE, rtol=SCORE)


@pytest.mark.slow
def test_an_adapter(tmp_path):
    """One adapter serves all layers that share a block, as with PEFT, which reads its file."""
    peft = pytest.importorskip("peft")
    name = "AlbertForSequenceClassification"
    theirs = oracle.saved(name, tmp_path / "in", **UNEVEN)
    model = oracle.ours(name, tmp_path / "in")
    lora = train.LoRA(r=2, lora_alpha=4, task_type="SEQ_CLS", init_lora_weights=False)
    adapter = train.init_adapter(model, lora, seed=1)
    targets = {path.rpartition(".lora")[0] for path in adapter.params if ".lora" in path}
    assert len(targets) == 4
    assert {path.rpartition(".")[2] for path in targets} == {"query", "value"}
    train.save_adapter(model, adapter, tmp_path / "adapter")
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert sorted(written["target_modules"]) == ["query", "value"]
    given = oracle.arguments(name)
    with adapters.quiet():
        adapted = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
        expected = oracle.run_torch(adapted, given)
    plain, found = model(**given).logits, train.merge(model, adapter)(**given).logits
    np.testing.assert_allclose(found, expected.logits, rtol=0, atol=FLOAT32)
    assert np.abs(found - plain).max() > 1e-2
