"""Stages of pipelines, subclasses, lists and generators, folders."""

import json
import shutil
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import minibert
from minibert.errors import (
    ConfigError,
    InputError,
    MissingHeadError,
    SourceError,
    TargetError,
)
from minibert.pipelines import (
    FillMaskPipeline,
    TextClassificationPipeline,
    base,
    pipeline,
)

pytestmark = pytest.mark.unoptimised

BERT = {"vocab_size": 30522, "max_position_embeddings": 64}
MR_BERT = "Hello, Mr. Bert! How is it [MASK]?"


def test_the_course_tokenizes_as_printed(tokenizer):
    encoded = tokenizer("Hello world!", "Have a great day!")
    assert encoded["input_ids"] == [101, 7592, 2088, 999, 102, 2031, 1037, 2307, 2154, 999, 102]
    assert encoded["token_type_ids"] == [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]
    tokens = tokenizer.tokenize("large language models use subword tokenization")
    assert tokens == "large language models use sub ##word token ##ization".split()
    assert tokenizer.decode([101, 102]) == "[CLS] [SEP]"
    assert tokenizer.decode(0) == "[PAD]"
    assert tokenizer(" \t\n")["input_ids"] == [101, 102]


def test_the_course_pads_and_cuts(tokenizer):
    assert tokenizer.model_max_length == 512
    texts = ["What did I do then?", "Then I tried to find some way of embracing my mother's ghost."]
    longest = tokenizer(texts, padding="longest", return_tensors="np")
    assert longest["attention_mask"].sum(axis=1).tolist() == [8, longest["input_ids"].shape[1]]
    assert tokenizer(texts, padding="max_length", return_tensors="np")["input_ids"].shape[1] == 512
    long = "a " * 10_000
    assert len(tokenizer(long, truncation=True)["input_ids"]) == 512
    base = minibert.BertConfig.base()
    sizes = (base.vocab_size, base.hidden_size, base.intermediate_size)
    rest = (base.max_position_embeddings, base.num_attention_heads)
    assert sizes + rest == (30522, 768, 3072, 512, 12)
    model = minibert.BertModel(minibert.BertConfig.tiny(**BERT), rngs=nnx.Rngs(0)).eval()
    with pytest.raises(InputError, match=r"input_ids: 10002 positions; expected 1 to 64"):
        model(tokenizer(long, return_tensors="np", verbose=False)["input_ids"])


class Verbose(FillMaskPipeline):
    """A course's pipeline: every stage overridden, and what flows between them printed."""

    def __call__(self, string, verbose=True):
        tensors = self.preprocess(string)
        if verbose:
            print("preprocess:", tensors)  # noqa: T201
        outputs = self.forward(tensors)
        if verbose:
            print("forward:", outputs)  # noqa: T201
        return self.postprocess(outputs)

    def preprocess(self, string):
        string = [string] if isinstance(string, str) else string
        return dict(self.tokenizer(string, return_tensors="np"))

    def forward(self, tensors):
        return {**self.model(**tensors), **tensors}

    def postprocess(self, tensors):
        return super().postprocess({name: np.asarray(value) for name, value in tensors.items()})


def test_a_subclass_overrides_all_three_stages(masked, tokenizer, fill, capsys):
    expected = fill(MR_BERT)
    assert [list(answer) for answer in expected] == [
        ["score", "token", "token_str", "sequence"]
    ] * 5
    assert expected[0]["sequence"].startswith("hello, mr. bert! how is it ")
    found = Verbose(tokenizer=tokenizer, model=masked)(MR_BERT)
    for one, other in zip(found, expected, strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-7)
        assert {**one, "score": 0} == {**other, "score": 0}
    assert "preprocess: {'input_ids'" in capsys.readouterr().out


@pytest.mark.slow
def test_overridden_stages_serve_lists_too(masked, tokenizer, fill):
    class Loud(FillMaskPipeline):
        def preprocess(self, inputs, *, shout=False, **options):
            return super().preprocess(inputs.upper() if shout else inputs, **options)

        def forward(self, inputs):
            return {**self.model(**inputs), **inputs}

        def postprocess(self, outputs, **options):
            return [answer["token_str"] for answer in super().postprocess(outputs, **options)]

    loud = Loud(model=masked, tokenizer=tokenizer, top_k=2)
    texts = [MR_BERT, "the [MASK] of france", "x [MASK] " * 1]
    expected = [[answer["token_str"] for answer in fill(text, top_k=2)] for text in texts]
    assert loud(texts) == expected
    assert loud(texts, top_k=1) == [words[:1] for words in expected]
    assert loud(texts[1], shout=True) == expected[1]
    named = pipeline("fill-mask", masked, tokenizer=tokenizer, pipeline_class=Loud, shout=True)
    assert named(texts[1], top_k=2) == expected[1]
    with pytest.raises(InputError, match=r"shot: unknown option of fill-mask .*did you mean shout"):
        loud(texts, shot=True)


def test_stages_by_hand_are_the_whole(fill, classify):
    for pipe, text in ((fill, MR_BERT), (classify, "a text")):
        answer = pipe.postprocess(pipe.forward(pipe.preprocess(text)))
        whole = pipe(text)
        whole = whole[0] if pipe is classify else whole
        assert json.dumps(answer)[:40] == json.dumps(whole)[:40]


def test_answers_keep_the_order_of_texts_of_all_lengths(classify, monkeypatch):
    monkeypatch.setattr(base, "CHUNK", 7)
    texts = [f"number {n} " + "long " * (0, 40, 3, 15)[n % 4] for n in range(30)]
    alone = [classify(text)[0] for text in texts]
    for found in (classify(texts), list(classify(iter(texts))), list(classify(np.array(texts)))):
        assert [answer["label"] for answer in found] == [answer["label"] for answer in alone]
        for one, other in zip(found, alone, strict=True):
            assert one["score"] == pytest.approx(other["score"], abs=1e-6)
    assert classify([]) == []
    assert list(classify(iter([]))) == []


def test_a_generator_is_read_as_answers_are_taken(classify, monkeypatch):
    """It is read only as far as the first answer needs, then in growing chunks."""
    monkeypatch.setattr(base, "CHUNK", 20)
    read = []

    def texts():
        for number in range(1000):
            read.append(number)
            yield f"text {number}"

    answers = classify(texts())
    assert not read
    found = []
    for _ in range(31):
        next(answers)
        found.append(len(read))
    assert found == [1] + [9] * 8 + [29] * 20 + [49] * 2


class Indexed:
    """A dataset as of PyTorch: texts with a length and indices, any of which is accepted."""

    def __init__(self, texts):
        self.texts = texts

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, index):
        return {"text": self.texts[index % len(self.texts)]}


def test_datasets(classify):
    texts = ["a", "long " * 20, "b"]
    answers = classify(Indexed(texts))
    assert next(answers) == pytest.approx(classify(texts)[0])
    assert len(list(answers)) == 2
    keyed = pytest.importorskip("transformers.pipelines.pt_utils").KeyDataset(
        Indexed(texts), "text"
    )
    found = [answer["label"] for answer in classify(keyed)]
    assert found == [answer["label"] for answer in classify(texts)]
    rows = [{"text": "a"}, {"text": 5}]
    with pytest.raises(InputError, match=r"input 1: expected a text, or a pair .* found 5"):
        list(classify(type(keyed)(rows, "text")))


def test_shapes_are_few(classifier, tokenizer):
    class Counting(TextClassificationPipeline):
        shapes = set()

        def forward(self, inputs):
            self.shapes.add(inputs["input_ids"].shape)
            return super().forward(inputs)

    pipe = Counting(model=classifier, tokenizer=tokenizer, token_budget=256)
    texts = ["word " * (number % 30) for number in range(400)]
    assert len(pipe(texts)) == 400
    lengths = {length for _, length in pipe.shapes}
    assert lengths <= set(range(8, 65, 8))
    assert len(pipe.shapes) <= len(lengths) + 1
    assert all(rows * length <= 256 for rows, length in pipe.shapes)


def test_batches_of_at_most_so_many_rows(classifier, tokenizer):
    class Counting(TextClassificationPipeline):
        rows = []

        def forward(self, inputs):
            self.rows.append(len(inputs["input_ids"]))
            return super().forward(inputs)

    pipe = Counting(model=classifier, tokenizer=tokenizer, batch_size=3)
    texts = ["word " * (2, 20)[number % 2] for number in range(14)]
    expected, (most, *_) = pipe(texts), sorted(pipe.rows, reverse=True)
    assert most == 3
    pipe.rows.clear()
    found = pipe(texts, batch_size=5, token_budget=512, show_progress=False)
    assert max(pipe.rows) == 5
    pipe.rows.clear()
    pipe(texts, batch_size=None, token_budget=64)
    assert max(pipe.rows) == 3  # None is the pipeline's own
    for one, other in zip(found, expected, strict=True):
        assert one["label"] == other["label"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-6)


def test_the_task_of_a_model(masked, classifier, tokenizer, minilm):
    for model, task in ((masked, "fill-mask"), (classifier, "text-classification")):
        assert pipeline(model=model, tokenizer=tokenizer).task == task
    assert pipeline(model=masked.base_model, tokenizer=tokenizer).task == "feature-extraction"
    run = pipeline(model=minilm, param_dtype=jnp.bfloat16)  # its config names a bare model
    assert run.task == "feature-extraction"
    assert {leaf.dtype for leaf in jax.tree.leaves(run.model)} == {jnp.dtype(jnp.bfloat16)}
    write = pipeline(model=minibert.assets.GPT2, max_new_tokens=2)
    assert write.task == "text-generation"
    assert len(write("The value")[0]["generated_text"]) > len("The value")
    with pytest.raises(InputError, match="topk: unknown option of fill-mask"):
        pipeline(model=masked, tokenizer=tokenizer, topk=3)


def test_a_text_does_not_depend_on_its_neighbours(fill):
    texts = ["the [MASK] of", f"[MASK] {'far ' * 50}", "a [MASK]"]
    for one, other in zip(fill(texts), [fill(text) for text in texts], strict=True):
        assert [a["token"] for a in one] == [a["token"] for a in other]


def test_progress_is_shown_when_asked_for(classify, capsys):
    assert len(classify(["a"] * 3)) == 3
    assert not capsys.readouterr().err
    assert len(classify(["a"] * 3, show_progress=True)) == 3
    assert "3/3" in capsys.readouterr().err


def test_half_precision(tokenizer, minilm):
    pipe = pipeline("feature-extraction", minilm, param_dtype=jnp.bfloat16, return_tensors=True)
    states = pipe("Half as precise.")
    assert states.dtype == np.float32
    exact = pipeline("feature-extraction", minilm, return_tensors=True)("Half as precise.")
    assert 0 < np.abs(states - exact).max() < 0.1


@pytest.fixture(scope="module")
def folder(masked, minilm, tmp_path_factory):
    place = tmp_path_factory.mktemp("masked") / "model"
    masked.save_pretrained(place)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(f"{minilm}/{name}", place)
    return place


def test_a_folder_is_loaded_into_the_tasks_class(folder, fill, tmp_path):
    assert pipeline("fill-mask", folder)(MR_BERT) == fill(MR_BERT)
    states = pipeline("feature-extraction", folder)
    assert type(states.model) is minibert.BertModel
    assert repr(states) == "FeatureExtractionPipeline(BertModel)"
    for task in ("text-classification", "ner", "question-answering", "next-sentence-prediction"):
        with pytest.raises(MissingHeadError):
            pipeline(task, folder)
    fresh = pipeline("sentiment-analysis", folder, new_head=True, rngs=nnx.Rngs(0), num_labels=3)
    assert isinstance(fresh, TextClassificationPipeline)
    assert fresh.model.config.num_labels == 3
    assert fresh.tokenizer.vocab_size == 30522


def test_a_pipeline_is_saved(folder, fill, tmp_path):
    fill("a [MASK]", truncation=True, tokenizer_kwargs={"max_length": 5})
    fill.save_pretrained(tmp_path / "saved", max_shard_size="1MB")
    files = {path.name for path in (tmp_path / "saved").iterdir()}
    assert {"config.json", "tokenizer.json", "model.safetensors.index.json"} <= files
    again = pipeline(model=tmp_path / "saved")
    assert again.task == "fill-mask"
    assert again(MR_BERT) == fill(MR_BERT)
    assert json.loads((tmp_path / "saved" / "tokenizer.json").read_text())["truncation"] is None
    with pytest.raises(TargetError, match=r"saved: already holds config\.json"):
        again.save_pretrained(tmp_path / "saved")
    again.save_pretrained(str(tmp_path / "saved"), overwrite=True)
    assert (tmp_path / "saved" / "model.safetensors").exists()


def test_what_is_no_folder_with_a_tokenizer_is_refused(masked, tmp_path):
    masked.save_pretrained(tmp_path / "model")
    with pytest.raises(SourceError, match=r"model: expected a tokenizer \(tokenizer.json"):
        pipeline("fill-mask", tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text("{")
    with pytest.raises(SourceError, match=r"model: its tokenizer cannot be loaded"):
        pipeline("fill-mask", str(tmp_path / "model"))
    with pytest.raises(SourceError, match="no such folder"):
        pipeline("fill-mask", tmp_path / "nothing")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(ConfigError, match=r"fill-mask is for 'bert' or .*, found 't5'"):
        pipeline("fill-mask", tmp_path / "model")


def test_a_repository_has_its_tokenizer_too(folder, fill, tmp_path):
    repository = tmp_path / "models--acme--masked"
    snapshot = repository / "snapshots" / ("a" * 40)
    shutil.copytree(folder, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    place = {"cache_dir": str(tmp_path), "local_files_only": True}
    assert pipeline("fill-mask", "acme/masked", **place)(MR_BERT) == fill(MR_BERT)
    other = pipeline("fill-mask", "acme/masked", tokenizer=folder, top_k=1, **place)
    assert other(MR_BERT) == fill(MR_BERT, top_k=1)


def test_subfolders(folder, fill, tmp_path):
    shutil.copytree(folder, tmp_path / "models" / "deep")
    assert pipeline("fill-mask", tmp_path / "models", subfolder="deep")(MR_BERT) == fill(MR_BERT)


def test_threads_do_not_share_truncation(fill, classify):
    """Calls of two pipelines of one tokenizer, each cut at its own length, without interference."""
    text = "the [MASK] of " + "lighthouse keeper " * 40

    def length(pipe, cut):
        options = {"truncation": True, "max_length": cut} if cut else {}
        return pipe.preprocess(text, **options)["input_ids"].shape[1]

    cuts = [5, 9, 14, 21, 30, 44, 60, None]
    expected = [length(fill, cut) for cut in cuts]
    found: list[set[int]] = [set() for _ in cuts]
    failures = []

    def ask(number):
        try:
            for turn in range(150):
                found[number].add(length((fill, classify)[turn % 2], cuts[number]))
        except Exception as reason:
            failures.append(reason)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(cuts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not failures
    assert found == [{length} for length in expected]
