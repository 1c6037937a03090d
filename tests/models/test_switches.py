"""JAX's own switches belong to the user: everything that computes works under each of them."""

import contextlib
import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax
import pytest
from flax import nnx

import minibert
import sentences
from conftest import FLOAT32
from minibert import train
from minibert.models import compilation
from minibert.models.compilation import compiled
from minibert.nn.tree import Structure, parameters
from minibert.train.objectives.base import Objective
from slowly import slow_but

pytestmark = pytest.mark.unoptimised

DRAW = np.random.default_rng(0)
IDS = DRAW.integers(5, 90, (3, 7))
MASK = np.arange(7) < np.array([[7], [4], [1]])
TEXTS = ["the of and to in", "a that it", "was for on are with as be by this at from"]
STILL = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}


@functools.cache
def model(name: str, **config: Any) -> Any:
    return sentences.model(name, **config)


def forward(name, **config):
    """A model in the caller's own program, of arrays that are on the device."""
    run = jax.jit(lambda model, ids, mask: model(ids, attention_mask=mask, **RECORDED))
    given = model(name, **config), *jax.device_put((IDS, MASK))
    return lambda: run(*given)


RECORDED = {"output_hidden_states": True, "output_attentions": True}


def fast(name, **options):
    run = compiled(model(name))
    return lambda: run(IDS, attention_mask=MASK, **options)


PENALTIES = {
    "repetition_penalty": 1.2,
    "no_repeat_ngram_size": 3,
    "sequence_bias": [[[7], 1.0], [[8, 9], -2.0]],
    "bad_words_ids": [[11], [12, 13]],
    "min_length": 9,
    "suppress_tokens": [14, 15],
    "begin_suppress_tokens": [16],
    "presence_penalty": 0.1,
    "frequency_penalty": 0.1,
    "encoder_repetition_penalty": 1.1,
    "encoder_no_repeat_ngram_size": 4,
    "forced_eos_token_id": 3,
    "eos_token_id": 3,
    "pad_token_id": 0,
    "exponential_decay_length_penalty": (2, 1.1),
    "forced_decoder_ids": [[9, 21]],
}
SAMPLED = {
    "do_sample": True,
    "temperature": 0.9,
    "top_k": 40,
    "top_p": 0.95,
    "typical_p": 0.9,
    "min_p": 0.01,
    "top_h": 0.9,
    "epsilon_cutoff": 1e-4,
    "eta_cutoff": 1e-4,
}


def generated(name="GPT2LMHeadModel", stream=False, config=None, **options):
    decoder = model(name, **config or {})
    options = {"max_new_tokens": 5, **options}
    if options.get("do_sample"):
        options["key"] = jax.random.key(3)
    if stream:
        return lambda: list(minibert.stream(decoder, IDS, **options))
    told = {"return_dict_in_generate": True, "output_scores": True}
    return lambda: minibert.generate(decoder, IDS, MASK[:, ::-1], **options, **told)


def encoded(name="BertModel", encoder=None, **options):
    made = sentences.encoder(name, **encoder or {})
    return lambda: made.encode(TEXTS, prompt="the", **options)


def answered(task, name, inputs=TEXTS, config=None, **options):
    family = name[:4].lower() if name.startswith("GPT2") else "bert"
    pipe = minibert.pipeline(
        task, model(name, **config or {}), tokenizer=sentences.tokenizer(family)
    )
    if options.get("do_sample"):
        options["key"] = jax.random.key(3)
    return lambda: pipe(inputs, **options)


def trained(name, objective, optimizer=None, config=None, batch=None, evaluated=False, **options):
    """Steps of arrays that are on the device, with dropout."""
    student = model(name, **config or {})
    if not isinstance(objective, Objective):
        objective = objective(student.config)
    trainer = train.Trainer(
        student,
        objective,
        optimizer or train.adamw(train.schedule(1e-2, 9, warmup=2)),
        **options,
    )
    given = jax.device_put(batch or {"input_ids": IDS, "attention_mask": MASK, "labels": IDS})
    if evaluated:
        return lambda: trainer.evaluate([given])
    return lambda: (trainer.step(given), trainer.state.params)


PAIRS = {
    f"{part}_{name}": array
    for part in ("anchor", "positive")
    for name, array in (("input_ids", IDS), ("attention_mask", MASK))
}
POOLED = {
    "pooling": ["mean", "max", "cls", "weightedmean", "lasttoken", "mean_sqrt_len_tokens"],
    "include_prompt": False,
    "normalize": True,
}
QUESTION = {"question": "what is it", "context": "it is what it was and they said so"}

OPERATIONS = {
    "forward of BERT": lambda: forward("BertModel"),
    "forward of GPT-2": lambda: forward("GPT2ForSequenceClassification", pad_token_id=0),
    "forward of RoBERTa": lambda: forward("RobertaForMaskedLM"),
    "forward of DistilBERT": lambda: forward("DistilBertForMaskedLM"),
    "compiled BERT": lambda: fast("BertForPreTraining"),
    "compiled GPT-2": lambda: fast("GPT2LMHeadModel", use_cache=True),
    "greedy": lambda: generated(**PENALTIES),
    "greedy of BERT": lambda: generated(
        "BertLMHeadModel", config={"is_decoder": True, "num_hidden_layers": 1}, max_new_tokens=2
    ),
    "sampled": lambda: generated(**SAMPLED, num_return_sequences=2),
    "beams": lambda: generated(num_beams=3, length_penalty=0.5, **PENALTIES),
    "sampled beams": lambda: generated(num_beams=2, do_sample=True, early_stopping=True),
    "stream": lambda: generated(stream=True, **SAMPLED),
    "encode": lambda: encoded(encoder=POOLED),
    "encode to JAX": lambda: encoded("GPT2Model", convert_to_tensor=True),
    "packed": lambda: encoded("RobertaModel", packing=16),
    "fill-mask": lambda: answered("fill-mask", "BertForMaskedLM", ["the [MASK] of", "[MASK] a"]),
    "text classification": lambda: answered("text-classification", "GPT2ForSequenceClassification"),
    "token classification": lambda: answered("token-classification", "BertForTokenClassification"),
    "question answering": lambda: answered(
        "question-answering", "BertForQuestionAnswering", QUESTION
    ),
    "features": lambda: answered("feature-extraction", "BertModel"),
    "text generation": lambda: answered(
        "text-generation", "GPT2LMHeadModel", max_new_tokens=4, do_sample=True
    ),
    # Adam would magnify what the gradients of keys' biases, which are 0, are by rounding
    "step": lambda: trained(
        "GPT2LMHeadModel", train.causal_lm, optax.sgd(1e-2), config={"n_layer": 1}
    ),
    "step of GPT-2": lambda: trained("GPT2LMHeadModel", train.causal_lm),
    "step of BERT": lambda: trained("BertForMaskedLM", train.masked_lm, config=STILL, accumulate=3),
    "step of an adapter": lambda: trained(
        "GPT2LMHeadModel", train.causal_lm, lora=train.LoRA(r=2), remat=True
    ),
    "step of a classifier": lambda: trained(
        "BertForSequenceClassification",
        train.classification,
        batch={"input_ids": IDS, "labels": np.array([0, 1, 1])},
    ),
    "evaluation": lambda: trained("BertForMaskedLM", train.masked_lm, evaluated=True),
    "contrastive step": lambda: trained("BertModel", train.contrastive(), batch=PAIRS),
}


QUICK = [
    "forward of BERT",
    "forward of GPT-2",
    "compiled BERT",
    "greedy",
    "encode",
    "fill-mask",
    "step",
]
# Operations of few primitives, each of which is computed alone without programs.
SHORT = [
    "forward of BERT",
    "forward of GPT-2",
    "forward of RoBERTa",
    "compiled BERT",
    "greedy of BERT",
    "encode to JAX",
    "features",
    "step",
]


@contextlib.contextmanager
def strict() -> Iterator[None]:
    """No implicit promotion, and no NaN."""
    with (
        jax.numpy_rank_promotion("raise"),
        jax.numpy_dtype_promotion("strict"),
        jax.debug_nans(True),
    ):
        yield


@contextlib.contextmanager
def strict_64_bits() -> Iterator[None]:
    """The default dtypes are others then."""
    with strict(), jax.enable_x64(True):
        yield


@contextlib.contextmanager
def leaks() -> Iterator[None]:
    """Only what is traced meanwhile is checked."""
    compilation.program.cache_clear()
    with jax.checking_leaks():
        yield


SWITCHES: dict[str, Any] = {
    "64 bits": strict_64_bits,
    "leaks": leaks,
    "precision": lambda: jax.default_matmul_precision("bfloat16"),  # the same on a CPU
}


def results(name: str, around: Any = contextlib.nullcontext, warm: Any = None) -> Any:
    """What an operation returns at its first call, and at its second, which compiles nothing."""
    with around():
        run = OPERATIONS[name]()
        first = jax.device_get(run())
        with (warm or contextlib.nullcontext)():
            second = run()
        return first, jax.device_get(second)


@functools.cache
def expected(name: str) -> Any:
    return results(name)


def check_close(found: Any, name: str, atol: float = 0.0) -> None:
    found, (leaves, tree) = jax.tree.flatten(found), jax.tree.flatten(expected(name))
    assert found[1] == tree
    for one, other in zip(found[0], leaves, strict=True):
        if isinstance(other, str):
            assert one == other
        else:
            np.testing.assert_allclose(one, other, rtol=0, atol=atol)


def no_transfers() -> Any:
    return jax.transfer_guard("disallow")


@pytest.mark.parametrize("name", slow_but(OPERATIONS, *QUICK))
def test_nothing_implicit(name):
    """Nothing is promoted and, in programs that are compiled already, nothing transferred."""
    check_close(results(name, strict, no_transfers), name)


@pytest.mark.parametrize("part", ["norm", "kernel", "bias", "embedding", "position", "key"])
@pytest.mark.parametrize("name", ["BertForPreTraining", "GPT2DoubleHeadsModel"])
def test_parameters_of_several_dtypes(name, part):
    """Some are in bfloat16: outputs and gradients have the same dtypes as with promotions."""
    made = getattr(minibert, name)
    model = made(made.config_class.tiny(), rngs=nnx.Rngs(0)).eval()
    names = {"norm": ("LayerNorm", "ln_"), "position": ("position", "wpe"), "key": (".key.", "wte")}
    mixed = Structure(model).build(
        {
            path: array.astype("bfloat16") if any(one in path for one in chosen) else array
            for chosen in (names.get(part, (part,)),)
            for path, array in parameters(model).items()
        }
    )
    ids = np.array([[[1, 2, 3]]]) if name.startswith("GPT2") else np.array([[1, 2, 3]])

    def loss(model):
        return sum(array.astype(np.float32).sum() for array in model(ids).to_tuple()[:2])

    def shapes():
        out = jax.eval_shape(lambda model: model(ids), mixed)
        return out, jax.eval_shape(jax.grad(loss), mixed)

    with strict():
        found = shapes()
    assert jax.tree.leaves(found) == jax.tree.leaves(shapes())


@pytest.mark.slow
@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_each_switch(name, switch):
    # learning rates are computed in the default dtype
    atol = 1e-5 if (switch, "step" in name) == ("64 bits", True) else 0.0
    check_close(results(name, SWITCHES[switch]), name, atol)


@pytest.mark.parametrize("name", slow_but(SHORT, "greedy of BERT"))
def test_without_programs(name):
    """One primitive after another is computed, in an order that rounds differently."""
    check_close(results(name, jax.disable_jit), name, FLOAT32)


def main() -> None:
    """Compares all results on the second of two devices with those on the first."""
    for name in SHORT:
        with jax.default_device(jax.devices()[1]):
            check_close(results(name, warm=no_transfers), name)
        model.cache_clear()
        with jax.default_device(jax.devices()[1]):
            found = results(name, warm=no_transfers)  # with a model that was made there
        check_close(found, name)
        check_close(results(name, warm=no_transfers), name)  # which is used elsewhere


@pytest.mark.slow
def test_another_device():
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    subprocess.run([sys.executable, "-W", "error", __file__], env=environment, check=True)


if __name__ == "__main__":
    main()
