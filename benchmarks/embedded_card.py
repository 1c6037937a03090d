"""The model cards of the embedded models, with their figures."""

import textwrap

from benchmarks.embedded_text import HELD_OUT_FILE, PYTHON, SHA256, documents

CARD = """\
---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: {tag}
---

# {name}

{what} It is small and comes with the package: for trying things out, for tests, and for a first
look at how such a model works. It was trained only on Python's language reference.

```python
{use}
```

It loads into `transformers` unchanged.

## Data

The language reference that Python carries for `help()`: `pydoc_data/topics.py` of Python {python},
sha256 `{sha256}`,
© Python Software Foundation, under the PSF License (https://docs.python.org/3/license.html).
Wrapped lines are joined, rulings and tables left out, and a paragraph that stands in several topics
is taken once. Every ninth topic is held out: {held_out}.
None of its paragraphs is trained on, wherever else it stands.

## Recipe

{recipe} The command, from a checkout of the sources and with that Python:

```
python -m benchmarks.embedded --train out/embedded
```

## Figures

Each word of the held-out topics is predicted once, {asked}.
`python -m benchmarks.embedded` computes this table from `{file}`, which holds their
tokens, and the counts of the others for the unigrams.

| | top-1 accuracy | perplexity |
|---|---|---|
{rows}

## Limits

{words:,} words are very little: what it says is often wrong, and sometimes not Python.
"""

TEXTS = {
    "bert-pydoc": {
        "tag": "fill-mask",
        "what": "A BERT that finds masked words: {size}, lower case.",
        "use": """\
fill = minibert.pipeline("fill-mask", minibert.assets.BERT)
fill("An exception is [MASK] by the statement.")
encoder = minibert.SentenceEncoder.from_pretrained(minibert.assets.BERT)""",
        "recipe": """\
WordPiece tokens. Passages of 32, 64 and 128 tokens, each from the beginning of a sentence;
20 % of the tokens are to be found, of which 80 % are masked and 10 % replaced. {training}""",
        "asked": "behind a mask, every seventh masked at a time",
    },
    "gpt2-pydoc": {
        "tag": "text-generation",
        "what": "A GPT-2 that continues texts: {size}.",
        "use": """\
write = minibert.pipeline("text-generation", minibert.assets.GPT2)
write("The statement", max_new_tokens=60)""",
        "recipe": """\
Byte-level BPE tokens. Windows of 128 tokens, and an end token behind each topic. {training}""",
        "asked": "from the 65 to 128 tokens before it, or as many as there are",
    },
}


def card(name: str, size: str, training: str, found: dict[str, dict[str, float]]) -> str:
    """Returns the text of a model's README.md.

    Args:
        name: the model's name.
        size: its layers and width, in words.
        training: a description of its training.
        found: its figures.
    """
    texts = {key: text.format(size=size, training=training) for key, text in TEXTS[name].items()}
    training_texts, held_out = documents()
    rows = "\n".join(
        f"| {name if who == 'model' else who} | {figures(values)} |"
        for who, values in found.items()
    )
    filled = CARD.format(
        name=name,
        python=PYTHON,
        sha256=SHA256,
        held_out=", ".join(held_out),
        words=sum(len(text.split()) for texts in training_texts.values() for text in texts),
        file=HELD_OUT_FILE,
        rows=rows,
        **texts,
    )
    return "\n\n".join(map(wrapped, filled.split("\n\n")))


def wrapped(block: str) -> str:
    """Wraps a paragraph; code, tables and headings are kept."""
    if block.startswith(("---", "#", "|", "```")):
        return block
    return textwrap.fill(block, 100, break_long_words=False, break_on_hyphens=False)


def figures(values: dict[str, float]) -> str:
    """Formats accuracy and perplexity for the card's table."""
    return f"{values['accuracy']:.2%} | {values['perplexity']:,.1f}"
