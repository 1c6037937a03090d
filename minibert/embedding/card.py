"""The model card of a sentence encoder: a README.md that describes it and how to use it."""

import json

from minibert.embedding.modules import Pooling, SentenceModel
from minibert.embedding.settings import SentenceSettings

CARD = """---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags:
- sentence-transformers
- sentence-similarity
- feature-extraction
- minibert
---

# Sentence encoder

This encoder turns a text into a vector of {features} numbers, for semantic search, classification
and clustering. It is a folder of [sentence-transformers](https://sbert.net).

| | |
|---|---|
| architecture | `{architecture}`: {layers} layers, hidden size {hidden} |
| modules | {modules} |
| pooling | {pooling} |
| dimensions | {features} |
| maximum length | {longest} tokens |
| similarity function | {similarity} |
{prompts}
## Usage

With minibert, in JAX:

```python
import minibert

encoder = minibert.SentenceEncoder.from_pretrained({name})
vectors = encoder.encode(["The first text.", "The second text."])
print(encoder.similarity(vectors, vectors))
```

With sentence-transformers, in PyTorch:

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer({name})
vectors = model.encode(["The first text.", "The second text."])
print(model.similarity(vectors, vectors))
```
"""
PROMPTS = """
Texts are encoded with these prompts before them, by name; `encode_query` and `encode_document`
choose theirs:

```json
{prompts}
```
"""


def model_card(model: SentenceModel, settings: SentenceSettings, name: str) -> str:
    """Returns the text of the README.md of an encoder.

    Args:
        model: the model.
        settings: the settings.
        name: the folder or repository that the examples load.
    """
    config, features = model.config, model.out_features
    chain = [type(module).__name__ for module in model.chain]
    pooling = next(module for module in model.chain if isinstance(module, Pooling))
    prompts = ""
    if any(settings.prompts.values()):
        prompts = PROMPTS.format(
            prompts=json.dumps(dict(settings.prompts), indent=2, ensure_ascii=False)
        )
    return CARD.format(
        architecture=type(model.transformer).__name__,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        modules=", ".join(["Transformer", *chain]),
        pooling=", ".join(pooling.modes),
        features=min(settings.truncate_dim or features, features),
        longest=settings.max_seq_length,
        similarity=settings.similarity_fn_name,
        prompts=prompts,
        name=json.dumps(name),
    )
