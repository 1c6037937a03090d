"""Tiny sentence encoders, made without PyTorch, and texts for them."""

import string
from typing import Any

import jax.numpy as jnp
import numpy as np

from checkout import ROOT
from minibert.embedding.encoder import SentenceEncoder
from minibert.embedding.modules import Dense
from tiny import drawn

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = """the of and to in a is that it was for on are with as be by this at from or have an they
you not but all one we which would their there what when your can said each about how up out them
""".split()
VOCABULARY = [*SPECIAL, *WORDS[: 97 - 5 - 26 - 10], *string.ascii_lowercase]
VOCABULARY += [f"##{letter}" for letter in string.ascii_lowercase[: 97 - len(VOCABULARY)]]


def tokenizer(family: str = "bert", **options: Any) -> Any:
    """A fast tokenizer of 97 pieces, of BERT's kind with [CLS] and [SEP], of GPT-2's without."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {piece: index for index, piece in enumerate(VOCABULARY)}
    backend = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=family == "bert")
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = ["input_ids", "attention_mask"]
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
    if family == "bert":
        names.insert(1, "token_type_ids")
        special |= {"cls_token": "[CLS]", "sep_token": "[SEP]"}
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{"model_max_length": 40, "model_input_names": names, **special, **options},
    )


def model(name: str = "BertModel", seed: int = 0, **config: Any) -> Any:
    """A tiny bare model of random float32 weights."""
    import jax

    config = {"vocab_size": len(VOCABULARY), **config}
    with jax.enable_x64(True):
        made = drawn(name, seed, **config)
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float32)), made).eval()


def dense(inputs: int, outputs: int, seed: int = 0, **options: Any) -> Dense:
    """A Dense layer of random weights."""
    from flax import nnx

    made = Dense(inputs, outputs, rngs=nnx.Rngs(seed), **options)
    if options.get("bias", True):
        draw = np.random.default_rng(seed)
        made.linear.bias[...] = jnp.asarray(draw.standard_normal(outputs), jnp.float32)
    return made


def encoder(name: str = "BertModel", side: str = "right", **options: Any) -> SentenceEncoder:
    """A tiny encoder."""
    family = name[:4].lower()
    return SentenceEncoder(model(name), tokenizer(family, padding_side=side), **options)


def texts(count: int, longest: int, seed: int = 0) -> list[str]:
    """Texts of 1 to `longest` words, the short ones more frequent."""
    draw = np.random.default_rng(seed)
    sizes = np.exp(draw.uniform(0, np.log(longest + 1), count)).astype(int)
    return [" ".join(draw.choice(WORDS, size)) for size in sizes]


# Of few lengths, so that few shapes are compiled.
FEW = ["", "the", "Of And to", "it is what it was, and they said so they did", "a b", "from " * 19]
FIXTURE = ROOT / "tests" / "fixtures" / "sentence"
