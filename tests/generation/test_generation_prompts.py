"""Guidance, embeddings, token types and no prompt at all: the tokens of transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the oracle is PyTorch")

import minibert  # noqa: E402
import oracle  # noqa: E402
from generating import PAD, same_texts, tiny  # noqa: E402
from minibert.errors import InputError, NotFiniteError  # noqa: E402

LM = "GPT2LMHeadModel"
IDS = np.array([[3, 40, 7, 7, 91], [22, 9, 60, 3, 5]])
NEGATIVE = np.array([[8, 15, 2], [4, 4, 33]])
OPTIONS = {"max_new_tokens": 8, "eos_token_id": [50, 60], "pad_token_id": PAD}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """PyTorch's model in float64, and ours."""
    folder = tmp_path_factory.mktemp("model")
    with oracle.float64():
        theirs = oracle.saved(LM, folder).double()
        yield theirs, oracle.ours(LM, folder, param_dtype=jnp.float64)


def expected(model, ids=None, **options):
    with torch.no_grad():
        given = {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
        ids = None if ids is None else torch.tensor(ids)
        return model.generate(ids, do_sample=False, **{**OPTIONS, **given})


def near(found, tensors):
    for ours, theirs in zip(found, tensors, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("negative", [False, True], ids=["last token", "prompts"])
def test_guidance(both, negative):
    theirs, model = both
    options = {"negative_prompt_ids": NEGATIVE} if negative else {}
    records = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    for scale in (2.5, -0.5):
        known = expected(theirs, IDS, guidance_scale=scale, **options, **records)
        found = minibert.generate(model, IDS, guidance_scale=scale, **options, **records, **OPTIONS)
        np.testing.assert_array_equal(found.sequences, known.sequences)
        near(found.scores, known.scores)
        near(found.logits, known.logits)


@pytest.mark.slow
def test_guidance_does_not_depend_on_padding_or_other_rows(both):
    _, model = both
    options = {"guidance_scale": 2.0, "do_sample": True, "num_return_sequences": 2, **OPTIONS}
    options |= {"eos_token_id": None, "key": jax.random.key(0)}
    rows, negative = [IDS[0].tolist(), IDS[1, :2].tolist()], [[8, 15, 2], [4]]
    found = minibert.generate(model, rows, negative_prompt_ids=negative, **options)
    first = minibert.generate(model, IDS[:1], negative_prompt_ids=NEGATIVE[:1], **options)
    np.testing.assert_array_equal(found[:2, 5:], first[:, 5:])
    padded = np.array([[PAD, PAD, 8, 15, 2]])
    mask = (padded != PAD).astype(int)
    again = minibert.generate(
        model,
        IDS[:1],
        negative_prompt_ids=padded,
        negative_prompt_attention_mask=mask,
        **options,
    )
    np.testing.assert_array_equal(again, first)
    streamed = minibert.stream(model, rows, negative_prompt_ids=negative, **options)
    np.testing.assert_array_equal(np.stack(list(streamed), axis=1), found[:, 5:])
    one = minibert.generate(model, IDS, negative_prompt_ids=NEGATIVE[:1], **options)
    np.testing.assert_array_equal(one[:2], first)


def test_embeddings(both):
    theirs, model = both
    embeds = np.random.default_rng(0).normal(size=(2, 5, 24))
    mask = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    options = {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "min_length": 9}
    with pytest.warns(UserWarning, match="newly generated tokens"):
        first = expected(theirs, inputs_embeds=embeds[:1, 2:], **options).numpy()
    with pytest.warns(UserWarning, match="newly generated tokens"):
        second = expected(theirs, inputs_embeds=embeds[1:], **options).numpy()
    options |= OPTIONS
    found = minibert.generate(model, inputs_embeds=embeds, attention_mask=mask, **options)
    assert same_texts(found, [first[0], second[0]])


@pytest.mark.slow
def test_embeddings_of_tokens(both):
    _, model = both
    words = model.transformer.wte(jnp.asarray(IDS))
    plain = minibert.generate(model, IDS, **OPTIONS)[:, 5:]
    np.testing.assert_array_equal(minibert.generate(model, inputs_embeds=words, **OPTIONS), plain)
    streamed = minibert.stream(model, inputs_embeds=words, **OPTIONS)
    np.testing.assert_array_equal(np.stack(list(streamed), axis=1), plain)


@pytest.mark.parametrize("beams", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_token_types(both, beams):
    theirs, model = both
    options = {"num_beams": beams, "eos_token_id": None}
    types = np.array([[2, 2, 9, 9, 9], [1, 1, 1, 1, 70]])
    known = expected(theirs, IDS, token_type_ids=types, **options)
    options = OPTIONS | options
    found = minibert.generate(model, IDS, token_type_ids=types, **options)
    np.testing.assert_array_equal(found, known)
    types[:, -1] = 0  # the type of all generated tokens
    assert (minibert.generate(model, IDS, token_type_ids=types, **options) != found).any()


def test_from_nothing(both):
    theirs, model = both
    known = expected(theirs, bos_token_id=5)
    np.testing.assert_array_equal(minibert.generate(model, bos_token_id=5, **OPTIONS), known)


def test_a_penalty_without_the_prompt(both):
    theirs, model = both

    def penalized(ids, ignored):
        processors = [transformers_penalty(1.8, ignored)]
        options = {"logits_processor": processors, "eos_token_id": None}
        return expected(theirs, ids, **options).numpy()[:, ids.shape[1] :]

    options = {"repetition_penalty": 1.8, **OPTIONS, "eos_token_id": None}
    ids = np.array([[1, 2, 3, *range(0, 96, 2)][:12], [4, 5, 6, *range(1, 97, 2)][:12]])
    found = {}
    for ignored in (12, 3):
        found[ignored] = minibert.generate(model, ids, prompt_ignore_length=ignored, **options)
        np.testing.assert_array_equal(found[ignored][:, 12:], penalized(ids, ignored))
    assert (found[12] != found[3]).any()
    rows = [ids[0].tolist(), ids[1, 4:].tolist()]  # of a ragged batch, each without its prompt
    known = np.concatenate([penalized(np.array([row]), len(row)) for row in rows])
    ragged = minibert.generate(model, rows, prompt_ignore_length=12, **options)[:, 12:]
    np.testing.assert_array_equal(ragged, known)


def transformers_penalty(*arguments):
    from transformers import RepetitionPenaltyLogitsProcessor

    return RepetitionPenaltyLogitsProcessor(*arguments)


STATES = np.zeros((2, 3, 24))
TYPES = np.zeros((2, 5), int)
WRONG = {
    "both": ({"input_ids": IDS, "inputs_embeds": STATES}, "input_ids, inputs_embeds: expected one"),
    "nothing": ({}, "input_ids: expected prompts, or a bos_token_id to begin with"),
    "width": ({"inputs_embeds": STATES[..., :5]}, "inputs_embeds: expected shape (batch, seq, 24)"),
    "no positions": ({"inputs_embeds": STATES[:, :0]}, "inputs_embeds: expected shape (batch, seq"),
    "integers": ({"inputs_embeds": STATES.astype(int)}, "inputs_embeds: expected floating-point"),
    "a mask": (
        {"inputs_embeds": STATES, "attention_mask": TYPES},
        "attention_mask: expected shape (2, 3), found (2, 5)",
    ),
    "many": (
        {"inputs_embeds": np.zeros((1, 30, 24)), "max_new_tokens": 11},
        "30 tokens and 11 new",
    ),
    "types": (
        {"input_ids": IDS, "token_type_ids": TYPES[:, :4]},
        "token_type_ids: expected shape (2, 5), found (2, 4)",
    ),
    "large types": (
        {"input_ids": IDS, "token_type_ids": TYPES + 97},
        "token_type_ids: 97 is out of range; expected 0 to 96 (vocab_size 97)",
    ),
    "no guidance": (
        {"input_ids": IDS, "negative_prompt_ids": IDS},
        "negative_prompt_ids: needs a guidance_scale other than 1",
    ),
    "rows": (
        {"input_ids": IDS, "negative_prompt_ids": np.vstack([IDS, IDS]), "guidance_scale": 2},
        "negative_prompt_ids: expected 1 or 2 rows, found 4",
    ),
    "large ids": (
        {"input_ids": IDS, "negative_prompt_ids": IDS + 90, "guidance_scale": 2},
        "negative_prompt_ids: 181 is out of range",
    ),
    "padding": (
        {
            "input_ids": IDS,
            "negative_prompt_ids": IDS,
            "negative_prompt_attention_mask": TYPES,
            "guidance_scale": 2,
        },
        "negative_prompt_ids: row 0 is all padding",
    ),
    "long": (
        {"input_ids": IDS, "negative_prompt_ids": np.ones((1, 30), int), "guidance_scale": 2},
        "negative_prompt_ids: a prompt of 30 tokens and 20 new ones make 50",
    ),
    "guided embeddings": (
        {"inputs_embeds": STATES, "guidance_scale": 2},
        "inputs_embeds: not supported with guidance_scale; expected None",
    ),
    "guided types": (
        {"input_ids": IDS, "token_type_ids": TYPES, "guidance_scale": 2},
        "token_type_ids: not supported with guidance_scale; expected None",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_refused(both, name):
    given, message = WRONG[name]
    for generate in (minibert.generate, minibert.stream):
        with pytest.raises(InputError) as caught:
            generate(both[1], **given)
        assert message in str(caught.value)


@pytest.mark.slow
def test_negative_prompts_that_are_not_finite():
    with oracle.float64():
        model = tiny()
        model.transformer.wte.embedding[...] = (
            model.transformer.wte.embedding[...].at[2].set(np.nan)
        )
        options = {"negative_prompt_ids": [[2]], "guidance_scale": 2.0, "max_new_tokens": 2}
        with pytest.raises(NotFiniteError, match="row 0 of input_ids are not finite"):
            minibert.generate(model, [[1, 3]], **options)
