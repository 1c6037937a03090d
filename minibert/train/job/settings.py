"""Settings of `minibert train`, from a TOML file or flags: keys, types and descriptions."""

import dataclasses
import tomllib
from collections.abc import Mapping
from typing import Any

from minibert.core.fields import (
    BELOW_1,
    NON_NEGATIVE,
    NUMBER,
    POSITIVE,
    SWITCH,
    TEXT,
    Rule,
    checked,
    field,
    key,
    number,
    one_of,
    whole,
)
from minibert.core.paths import open_file
from minibert.errors import ConfigError, reading, shown, suggest
from minibert.train.optimizers import KINDS, MOST
from minibert.train.wrappers import RATIO

WHOLE, INDEX, COUNT = whole(-MOST, MOST), whole(0, MOST), whole(1, MOST)
DTYPES = ("float32", "bfloat16", "float16", "float64")
SEED = whole(0, 2**32 - 1)
FILE = Rule("a path without NUL characters", lambda v: isinstance(v, str) and "\0" not in v)
WHOLES = Rule(
    "a list of whole numbers", lambda v: isinstance(v, list) and all(map(WHOLE.allows, v))
)
TEXTS = Rule("a list of texts", lambda v: isinstance(v, list) and all(map(TEXT.allows, v)))
WEIGHTS = Rule(
    "a list of positive numbers", lambda v: isinstance(v, list) and all(map(POSITIVE.allows, v))
)
FRACTION = number("a number between 0 and 1", lambda value: 0 < value < 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a run. Keys without a default are required."""

    task: str = field(
        TEXT,
        about="causal-lm, instruction, continuation, masked-lm, pretraining, "
        "sentence-order-pretraining, classification, token-classification, question-answering or "
        "contrastive.",
    )
    data: str = field(
        FILE, about="File to train on: txt, jsonl, json, csv, tsv (also with .gz) or parquet."
    )
    output: str = field(FILE, about="Folder for model/, log.jsonl, loss.png and checkpoints/.")
    model: str | None = key("Pretrained model: a folder, or a repository of the Hub.", FILE)
    config: str | None = key("For a new model: a config.json, or a preset such as tiny.", FILE)
    tokenizer: str | None = key("Folder of the tokenizer; the model's own by default.", FILE)
    new_head: bool = key("Whether to newly initialise a head that is missing.", SWITCH, False)
    filler: int | None = key("continuation: id of the token for the second half.", WHOLE)
    pooling: str | None = key(
        "contrastive: mean, cls, ...; by default a sentence-transformers folder's own, or mean."
    )
    scale: float | None = key("contrastive: factor of the cosines; 20 by default.", POSITIVE)

    text: str | None = key("Column of the texts; text by default.")
    text_pair: str | None = key("classification: column of the second texts, if any.")
    label: str | None = key("Column of the labels; by default label, or labels for tokens.")
    problem_type: str | None = key(
        "classification: single_label_classification (the default), multi_label_classification "
        "(lists of labels) or regression (numbers)."
    )
    label_smoothing: float | None = key(
        "Classification, of tokens too: part of a label that is spread over all classes; "
        "0 by default.",
        BELOW_1,
    )
    class_weights: list[float] | None = key(
        "Classification, of tokens too: weights of the labels in the loss, by id; 1 by default.",
        WEIGHTS,
    )
    words: str | None = key(
        "token-classification: column of the lists of words; tokens by default."
    )
    question: str | None = key("Column of the questions; question by default.")
    context: str | None = key("Column of the contexts; context by default.")
    answers: str | None = key("Column of the answers; answers by default.")
    anchor: str | None = key("contrastive: column of the texts; anchor by default.")
    positive: str | None = key("contrastive: column of similar texts; positive by default.")
    negative: str | None = key("contrastive: column of dissimilar texts, if any.")
    prompt: str | None = key("instruction: column of the prompts; prompt by default.")
    completion: str | None = key("instruction: column of what follows; completion by default.")
    max_length: int = key("Max number of tokens of an example.", COUNT, 128)
    stride: int | None = key(
        "Distance between the starts of windows; max_length by default.", WHOLE
    )
    doc_stride: int | None = key(
        "question-answering: tokens by which windows overlap; 128 by default.", WHOLE
    )
    truncation: bool = key("Whether to truncate long texts.", SWITCH, False)
    pad_to: list[int] | None = key("Lengths to pad to; max_length by default.", WHOLES)
    probability: float | None = key(
        "Masking: probability that a token is a target; 0.15 by default.", NUMBER
    )
    whole_words: bool | None = key("Masking: whether to mask whole words; no by default.", SWITCH)
    pack: bool | None = key(
        "masked-lm: whether to concatenate texts into full blocks; yes by default.", SWITCH
    )
    workers: int = key("Processes that make batches; 0 for a thread.", INDEX, 0)

    steps: int | None = key("Total number of steps; or specify epochs.", COUNT)
    epochs: int | None = key("Number of passes over the data.", COUNT)
    batch_size: int = key("Examples per step.", COUNT, 32)
    learning_rate: float = key("Max learning rate.", NON_NEGATIVE, 5e-5)
    schedule: str = key("Decay: linear, cosine or constant.", one_of(KINDS), "linear")
    warmup: int = key("Warm-up steps.", INDEX, 0)
    weight_decay: float = key("Weight decay of AdamW.", NON_NEGATIVE, 0.01)
    max_grad_norm: float = key("Max global norm of the gradients.", POSITIVE, 1.0)
    layer_decay: float | None = key(
        "Learning rate of each layer, as part of that of the layer above it; 1 by default.", RATIO
    )
    ema_decay: float | None = key(
        "Evaluate and write a moving average of the parameters with this decay.", BELOW_1
    )
    accumulate: int = key("Parts of a batch, whose gradients are accumulated.", COUNT, 1)
    remat: bool = key("Whether to recompute activations instead of storing them.", SWITCH, False)
    fsdp: list[int] | None = key("All devices: shards of each parameter, by axis.", WHOLES)
    tensor: int | None = key("All devices: shards of heads and features.", COUNT)
    dtype: str | None = key(
        "Dtype of the computation, such as bfloat16; float32 by default.", one_of(DTYPES)
    )
    trainable: list[str] | None = key(
        "Paths to train, such as classifier.*; all by default.", TEXTS
    )
    lora_rank: int | None = key("Train LoRA adapters of this rank.", COUNT)
    lora_alpha: float | None = key("LoRA's alpha; the rank by default.", POSITIVE)
    lora_targets: list[str] | None = key("Layers to adapt; the family's by default.", TEXTS)
    lora_save: list[str] | None = key("Modules to train whole; a task's head always is.", TEXTS)
    seed: int = key("Seed of order, masks, dropout and initialisation.", SEED, 0)

    evaluation: str | None = key("File to evaluate on.", FILE)
    evaluation_fraction: float | None = key("Or: fraction of the data to hold out.", FRACTION)
    evaluate_every: int | None = key(
        "Steps between evaluations; by default only at the end.", COUNT
    )
    patience: int | None = key("Stop after this many evaluations without improvement.", COUNT)
    best: bool = key("Whether to write the best model instead of the last.", SWITCH, False)
    log_every: int = key("Steps between lines of metrics.", COUNT, 1)
    checkpoint_every: int = key("Steps between checkpoints.", COUNT, 1000)
    keep: int = key("Number of last checkpoints to keep.", COUNT, 3)

    @property
    def given(self) -> set[str]:
        """The keys whose value is not None, False or 0."""
        return {name for name, value in vars(self).items() if value not in (None, False)}


FIELDS = {field.name: field for field in dataclasses.fields(Settings)}
# Keys that are not compared when a run is resumed: those that may differ (of files, the contents
# are compared), and those that set what every run compares: the arguments of the optimiser, of the
# objective and of the trainer, and the data's batch size and workers.
FREE = (
    *("output", "data", "evaluation", "tokenizer", "steps", "epochs", "fsdp", "tensor", "remat"),
    *("evaluate_every", "patience", "best", "log_every", "checkpoint_every", "keep"),
    *("learning_rate", "schedule", "warmup", "weight_decay", "max_grad_norm"),
    *("layer_decay", "ema_decay"),
    *("label_smoothing", "class_weights", "filler", "pooling", "scale"),
    *("accumulate", "seed", "dtype", "batch_size", "workers"),
)


def read_settings(path: str | None, given: Mapping[str, Any]) -> Settings:
    """Returns the settings of a TOML file, overridden by further values.

    Args:
        path: the path of the file; None for no file.
        given: the further values, by key.

    Raises:
        ConfigError: the file cannot be read; a key is unknown or missing, or a value is invalid.
    """
    found, where = {}, ""
    if path is not None:
        where = f"{path}: "
        try:
            with open_file(path, ConfigError) as file, reading(path, ConfigError):
                found = tomllib.load(file)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as reason:
            raise ConfigError(f"{where}not TOML ({reason})") from None
    for name in found:
        if name not in FIELDS:
            raise ConfigError(f"{where}unknown key: {shown(name)}{suggest(name, FIELDS)}")
    found = checked(Settings, found, where=where) | checked(Settings, given)
    absent = [one for name, one in FIELDS.items() if name not in found]
    if missing := [one.name for one in absent if one.default is dataclasses.MISSING]:
        raise ConfigError(f"{where}missing keys: {', '.join(missing)}")
    settings = Settings(**found)
    _check_choices(settings)
    return settings


def _check_choices(settings: Settings) -> None:
    if settings.batch_size % settings.accumulate:
        raise ConfigError(
            f"accumulate: {settings.batch_size} rows (batch_size) cannot be split into "
            f"{settings.accumulate} equal parts"
        )
    given = settings.given
    for one, other in (("model", "config"), ("steps", "epochs")):
        if (one in given) == (other in given):
            raise ConfigError(f"{one}, {other}: expected one of them")
    if "config" in given and "tokenizer" not in given:
        raise ConfigError("tokenizer: expected a folder, because a new model has no tokenizer")
    if given >= {"evaluation", "evaluation_fraction"}:
        raise ConfigError("evaluation, evaluation_fraction: expected one of them")
    for names, enabling, needed in (
        (
            ("evaluate_every", "patience", "best"),
            {"evaluation", "evaluation_fraction"},
            "evaluation or evaluation_fraction",
        ),
        (
            ("patience", "best"),
            {"evaluate_every"},
            "evaluate_every: without it, there is only one evaluation, at the end",
        ),
        (("lora_alpha", "lora_targets", "lora_save"), {"lora_rank"}, "lora_rank"),
    ):
        for name in names:
            if name in given and given.isdisjoint(enabling):
                raise ConfigError(f"{name}: needs {needed}")
