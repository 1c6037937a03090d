"""Training data: from texts, files and records to batches, on Grain.

Each function returns Grain's `IterDataset` of batches: dictionaries of NumPy arrays `(batch, …)`
with the names that objectives and models take (`input_ids` `(batch, seq)`, …), and `example`
`(batch,)`, the indices of the records, blocks or windows, by which errors name a batch. `windows`
is for `causal_lm` and `continuation`, `instruction` for `causal_lm`; the others have their
objective's name.

All take the arguments of `batches` (`batch_size`, `shuffle`, `drop_last`, `epochs`, `seed`,
`workers`, …). Those that read texts also take

- `max_length`: the max number of tokens of an example, including special tokens;
- `truncation`: whether to truncate longer texts; otherwise they are errors;
- `pad_to`: one or more lengths; a batch is padded on the right to the first that is long enough; by
  default to `max_length`. Each length compiles one more program;
- `show_progress`: whether to show a progress bar while texts are tokenized; by default if they are
  many and stderr is a terminal.

Sources are paths, or iterables of texts or of mappings by column. Of a table of pandas, polars or
pyarrow, pass a column for texts, and its rows as mappings for records. A file ends in `.jsonl` (or
`.ndjson`), `.json` (an array of objects), `.csv`, `.tsv` or `.parquet`; a file of texts also in
`.txt`. All but parquet files may be compressed: `.jsonl.gz`. Everything is read and checked before
training, so that no error occurs in the middle of a run.
"""

from minibert.train.data.batching import batches
from minibert.train.data.encoding import token_ids
from minibert.train.data.labels import label_ids
from minibert.train.data.tasks import (
    classification,
    contrastive,
    instruction,
    question_answering,
    token_classification,
)
from minibert.train.data.text import masked_lm, pretraining, windows

__all__ = [
    "batches",
    "classification",
    "contrastive",
    "instruction",
    "label_ids",
    "masked_lm",
    "pretraining",
    "question_answering",
    "token_classification",
    "token_ids",
    "windows",
]
