"""Training of the embedded models: tokenizers, data, optimisation, folders."""

import dataclasses
import itertools
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizer, GPT2Tokenizer

import minibert
from benchmarks.embedded_text import HELD_OUT_FILE, Documents, documents
from minibert.train import Trainer, adamw, causal_lm, data, masked_lm, schedule
from minibert.train.loop import fit

VOCAB_SIZE, POSITIONS, HIDDEN, LAYERS = 2048, 128, 128, 3
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
END = "<|endoftext|>"
BERT_TOKENS, GPT2_TOKENS = 512, 1024  # of a batch
WIDE = 0.08  # initial scale of the BERT, about 1 / √hidden; with 0.02 attention learns late
LENGTHS = (32, 64, 128)  # of the BERT's batches, in turn
PASSAGE = 700  # characters, more than 128 tokens
MASKED = 0.2  # fraction of masked tokens

SENTENCE = re.compile(r"(?:^|\n\s*|(?<=[.:?!])\s+)(?=\S)")


def joined(documents: Documents) -> list[str]:
    """Returns the documents as texts."""
    return ["\n\n".join(paragraphs) for paragraphs in documents.values()]


def bert_tokenizer(texts: list[str]) -> BertTokenizer:
    """Trains a lower-casing WordPiece tokenizer.

    Pieces of one character are passed explicitly: the trainer would number them in an order that
    changes from run to run, and break ties by it.
    """
    normalizer = normalizers.BertNormalizer(lowercase=True)
    letters = sorted(set("".join(map(normalizer.normalize_str, texts))) - set(" \n"))
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    given = [*SPECIAL, *(f"##{letter}" for letter in letters)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=given, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return BertTokenizer(vocab=tokenizer.get_vocab(), model_max_length=POSITIONS)


def gpt2_tokenizer(texts: list[str]) -> GPT2Tokenizer:
    """Trains a byte-level BPE tokenizer."""
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = bytes_
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END],
        initial_alphabet=bytes_.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return GPT2Tokenizer(
        vocab=tokenizer.get_vocab(), merges=list(map(tuple, merges)), model_max_length=POSITIONS
    )


def bert_batches(texts: list[str], tokenizer: Any) -> Iterator[dict[str, np.ndarray]]:
    """Yields masked passages of three lengths in turn, each starting with a sentence."""
    passages = [
        text[start.end() :][:PASSAGE] for text in texts for start in SENTENCE.finditer(text)
    ]
    sources = [
        data.masked_lm(
            passages,
            tokenizer,
            max_length=length,
            batch_size=BERT_TOKENS // length,
            pack=False,
            truncation=True,
            probability=MASKED,
            shuffle=True,
            drop_last=True,
            epochs=None,
            seed=length,
        )
        for length in LENGTHS
    ]
    return itertools.chain.from_iterable(zip(*sources, strict=True))


def gpt2_batches(texts: list[str], tokenizer: Any) -> Any:
    """Returns batches of windows over the texts, with EOS after each text."""
    ids = data.token_ids(texts, tokenizer)
    rows = GPT2_TOKENS // POSITIONS
    return data.windows(
        ids,
        max_length=POSITIONS,
        stride=8,
        batch_size=rows,
        shuffle=True,
        drop_last=True,
        epochs=None,
    )


def bert(dropout: float) -> minibert.BertForMaskedLM:
    """Returns the untrained BERT."""
    config = minibert.BertConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        intermediate_size=4 * HIDDEN,
        max_position_embeddings=POSITIONS,
        initializer_range=WIDE,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return minibert.BertForMaskedLM(config, rngs=nnx.Rngs(0))


def gpt2(dropout: float) -> minibert.GPT2LMHeadModel:
    """Returns the untrained GPT-2."""
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    config = minibert.GPT2Config(
        vocab_size=VOCAB_SIZE,
        n_embd=HIDDEN,
        n_layer=LAYERS,
        n_head=4,
        n_positions=POSITIONS,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout),
        extra=ends,
        generation=ends,
    )
    return minibert.GPT2LMHeadModel(config, rngs=nnx.Rngs(0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """The training settings of a model.

    Attributes:
        model: returns the untrained model, given the dropout.
        tokenizer: trains its tokenizer on texts.
        batches: returns an infinite iterator of batches, given texts and tokenizer.
        objective: the objective to minimise.
        dropout: the dropout rate.
        tokens: the number of tokens of a batch.
        steps: the number of steps, with warm-up in the first tenth and then decay to 0.
        rate: the peak learning rate.
        weight_decay: AdamW's weight decay.
    """

    model: Callable[[float], Any]
    tokenizer: Callable[[list[str]], Any]
    batches: Callable[[list[str], Any], Iterable[dict[str, np.ndarray]]]
    objective: Any
    dropout: float
    tokens: int
    steps: int
    rate: float
    weight_decay: float


RECIPES = {
    "bert-pydoc": Recipe(
        model=bert,
        tokenizer=bert_tokenizer,
        batches=bert_batches,
        objective=masked_lm,
        dropout=0.0,
        tokens=BERT_TOKENS,
        steps=16_000,
        rate=1e-3,
        weight_decay=0.01,
    ),
    "gpt2-pydoc": Recipe(
        model=gpt2,
        tokenizer=gpt2_tokenizer,
        batches=gpt2_batches,
        objective=causal_lm,
        dropout=0.1,
        tokens=GPT2_TOKENS,
        steps=2000,
        rate=2e-3,
        weight_decay=0.1,
    ),
}


SIZE = f"{LAYERS} layers of {HIDDEN}, {VOCAB_SIZE:,} tokens, texts up to {POSITIONS} tokens"


def described(recipe: Recipe, steps: int) -> str:
    """Returns a description of a model's training."""
    deviation = recipe.model(0.0).config.initializer_range
    return f"""\
AdamW, {steps:,} steps of {recipe.tokens:,} tokens; learning rate up to {recipe.rate} in the first
tenth, then linearly to 0; weight decay {recipe.weight_decay} of kernels and embeddings; gradients
clipped to a norm of 1; dropout {recipe.dropout}; weights drawn with a standard deviation of
{deviation}; seed 0. They are float32 with bfloat16's digits."""


def make(name: str, folder: pathlib.Path, steps: int | None = None) -> str:
    """Trains a model, writes its folder except the card, and returns a description of the training.

    Args:
        name: one of `RECIPES`.
        folder: the target, which must not exist.
        steps: overrides the recipe's number of steps, for a trial.
    """
    recipe = RECIPES[name]
    training, held_out = documents()
    texts = joined(training)
    tokenizer = recipe.tokenizer(texts)
    steps = recipe.steps if steps is None else steps
    rates = schedule(recipe.rate, steps, warmup=steps // 10)
    trainer = Trainer(
        recipe.model(recipe.dropout),
        recipe.objective,
        adamw(rates, weight_decay=recipe.weight_decay),
    )
    result = fit(trainer, recipe.batches(texts, tokenizer), steps=steps, log_every=100)
    rounded(result.model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if name.startswith("bert"):
        write_pooling(folder)
    write_held_out(folder / HELD_OUT_FILE, tokenizer, texts, joined(held_out))
    return described(recipe, steps)


def rounded(model: Any) -> Any:
    """Rounds float32 parameters to bfloat16 values, whose zero bytes compress well."""
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(x.dtype), model)


def write_pooling(folder: pathlib.Path) -> None:
    """Adds mean pooling, which makes a BERT's folder one of sentence-transformers."""
    kinds = {"": "Transformer", "1_Pooling": "Pooling"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds.items())
    ]
    pooling = {"word_embedding_dimension": HIDDEN, "pooling_mode_mean_tokens": True}
    files = {
        "modules.json": modules,
        "1_Pooling/config.json": pooling | {"pooling_mode_cls_token": False},
        "sentence_bert_config.json": {"max_seq_length": POSITIONS, "do_lower_case": False},
    }
    (folder / "1_Pooling").mkdir()
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def write_held_out(
    path: pathlib.Path, tokenizer: Any, training: list[str], held_out: list[str]
) -> None:
    """Writes the tokens of held-out topics, and the frequencies of tokens in the others."""
    topics = [data.token_ids([text], tokenizer, end=False) for text in held_out]
    counts = np.bincount(data.token_ids(training, tokenizer), minlength=VOCAB_SIZE)
    np.savez_compressed(
        path,
        ids=np.concatenate(topics).astype(np.uint16),
        lengths=np.array(list(map(len, topics)), np.int32),
        unigrams=counts.astype(np.int32),
    )
