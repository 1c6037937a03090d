"""Training data: from texts, files and records to batches, on Grain.

Each function returns Grain's `IterDataset` of batches: dictionaries of numpy arrays, the batch
first, with the names that the objectives and models know (`input_ids` `(batch, seq)`, …), and
`example` `(batch,)`: which records, blocks or windows they are, to name a bad batch by. `windows`
is for `causal_lm` and `continuation`; the others have their objective's name.

All take the arguments of `batches` (`batch_size`, `shuffle`, `drop_last`, `epochs`, `seed`,
`workers`, …). Those that read texts also take

- `max_length`: how many tokens an example may have, special tokens included;
- `truncation`: whether a longer text is cut; else it is an error that names it;
- `pad_to`: a length or some, to the first of which that suffices a batch is padded on the right;
  `max_length` alone by default. There is one compiled program for each;
- `show_progress`: whether there is a bar while texts are read; by default if they are many and
  stderr is a terminal.

Sources are paths or Python's own: texts, or mappings by column. Of a table of pandas, polars or
pyarrow pass a column where texts are read, and its rows as mappings elsewhere. A file ends in
`.jsonl` (or `.ndjson`), `.csv` or `.parquet`; where texts are read, also in `.txt`. All is read and
checked at once, so that nothing is found wrong in the middle of a run.
"""

from minibert.train.data_batches import batches
from minibert.train.data_labels import label_ids
from minibert.train.data_tasks import (
    classification,
    contrastive,
    question_answering,
    token_classification,
)
from minibert.train.data_text import masked_lm, pretraining, windows
from minibert.train.data_tokens import token_ids

__all__ = [
    "batches",
    "classification",
    "contrastive",
    "label_ids",
    "masked_lm",
    "pretraining",
    "question_answering",
    "token_classification",
    "token_ids",
    "windows",
]
