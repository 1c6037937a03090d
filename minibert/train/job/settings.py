"""What `minibert train` is told, in a TOML file or by flags: keys, their types and meanings."""

import dataclasses
import tomllib
from collections.abc import Mapping
from typing import Any

from minibert.core.fields import (
    COUNT,
    NON_NEGATIVE,
    NUMBER,
    POSITIVE,
    SWITCH,
    TEXT,
    Rule,
    checked,
    field,
    is_number,
    one_of,
    whole,
)
from minibert.errors import ConfigError, reading, shown, suggest
from minibert.train.optimizers import KINDS

WHOLE, INDEX = whole(), whole(0)
WHOLES = Rule(
    "a list of whole numbers", lambda v: isinstance(v, list) and all(map(WHOLE.allows, v))
)
TEXTS = Rule("a list of texts", lambda v: isinstance(v, list) and all(map(TEXT.allows, v)))
FRACTION = Rule("between 0 and 1", lambda v: is_number(v) and 0 < v < 1, float)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The keys. One without a default must be given."""

    task: str = field(
        TEXT,
        about="causal-lm, continuation, masked-lm, pretraining, classification, "
        "token-classification, question-answering or contrastive.",
    )
    data: str = field(TEXT, about="File to train on: txt, jsonl, csv or parquet.")
    output: str = field(TEXT, about="Folder for model/, log.jsonl, loss.png and checkpoints/.")
    model: str | None = field(TEXT, None, "To begin with: a model folder, or a repository.")
    config: str | None = field(TEXT, None, "To begin afresh: a config.json, or a preset (tiny).")
    tokenizer: str | None = field(
        TEXT, None, "Folder of the tokenizer; the model's own by default."
    )
    new_head: bool = field(SWITCH, False, "Whether a head that the model lacks is begun afresh.")
    filler: int | None = field(
        WHOLE, None, "Of continuation: id of what stands for the second half."
    )
    pooling: str | None = field(
        TEXT,
        None,
        "Of contrastive: mean, cls, ...; a sentence-transformers folder has its own, else mean.",
    )
    scale: float | None = field(
        POSITIVE, None, "Of contrastive: what cosines are multiplied with; 20."
    )

    text: str | None = field(TEXT, None, "Column of the texts.")
    text_pair: str | None = field(TEXT, None, "Of classification: column of the second texts.")
    label: str | None = field(TEXT, None, "Column of the labels.")
    problem_type: str | None = field(
        TEXT,
        None,
        "Of classification: single_label_classification (the default), multi_label_classification "
        "(lists of labels) or regression (numbers).",
    )
    words: str | None = field(TEXT, None, "Of token-classification: column of the lists of words.")
    question: str | None = field(TEXT, None, "Column of the questions.")
    context: str | None = field(TEXT, None, "Column of the contexts.")
    answers: str | None = field(TEXT, None, "Column of the answers.")
    anchor: str | None = field(TEXT, None, "Of contrastive: column of the texts.")
    positive: str | None = field(TEXT, None, "Of contrastive: column of the texts like them.")
    negative: str | None = field(TEXT, None, "Of contrastive: column of the texts unlike them.")
    max_length: int = field(COUNT, 128, "Tokens of an example, at most.")
    stride: int | None = field(WHOLE, None, "Of windows: from one's beginning to the next.")
    doc_stride: int | None = field(WHOLE, None, "Of question-answering: how far windows overlap.")
    truncation: bool = field(SWITCH, False, "Whether a text too long is cut.")
    pad_to: list[int] | None = field(WHOLES, None, "Lengths to pad to; max_length by default.")
    probability: float | None = field(NUMBER, None, "Of masks: how likely a token is a target.")
    whole_words: bool | None = field(SWITCH, None, "Of masks: whether whole words are targets.")
    pack: bool | None = field(
        SWITCH, None, "Of masked-lm: whether texts are joined into full blocks."
    )
    workers: int = field(INDEX, 0, "Processes that make batches; 0 for a thread.")

    steps: int | None = field(COUNT, None, "Steps in all; or give epochs.")
    epochs: int | None = field(COUNT, None, "How often all data are gone through.")
    batch_size: int = field(COUNT, 32, "Examples of a step.")
    learning_rate: float = field(NON_NEGATIVE, 5e-5, "The largest one.")
    schedule: str = field(one_of(KINDS), "linear", "How it comes down: linear, cosine, constant.")
    warmup: int = field(INDEX, 0, "Steps in which it goes up.")
    weight_decay: float = field(NON_NEGATIVE, 0.01, "AdamW's.")
    max_grad_norm: float = field(POSITIVE, 1.0, "The largest norm of all gradients together.")
    accumulate: int = field(COUNT, 1, "Parts that a batch is taken in.")
    remat: bool = field(SWITCH, False, "Whether to compute layers again in place of keeping them.")
    fsdp: list[int] | None = field(
        WHOLES, None, "Over all devices: in how many parts to store, by axis."
    )
    tensor: int | None = field(COUNT, None, "Over all devices: in how many parts to take heads.")
    dtype: str | None = field(TEXT, None, "What to compute in, such as bfloat16.")
    trainable: list[str] | None = field(TEXTS, None, "Paths to train, such as classifier.*")
    lora_rank: int | None = field(COUNT, None, "Train LoRA adapters of this rank.")
    lora_alpha: float | None = field(
        POSITIVE, None, "LoRA's scale, over the rank; the rank by default."
    )
    lora_targets: list[str] | None = field(
        TEXTS, None, "Layers with adapters; the usual by default."
    )
    lora_save: list[str] | None = field(TEXTS, None, "Modules trained whole, as a task's head is.")
    seed: int = field(INDEX, 0, "Of order, masks, dropout and what begins afresh.")

    evaluation: str | None = field(TEXT, None, "File to evaluate on.")
    evaluation_fraction: float | None = field(
        FRACTION, None, "Or: what part of the data is held out."
    )
    evaluate_every: int | None = field(
        COUNT, None, "Steps between evaluations; else the last alone."
    )
    patience: int | None = field(COUNT, None, "Evaluations without a better one before it stops.")
    best: bool = field(SWITCH, False, "Whether to write the best evaluation's model, not the last.")
    log_every: int = field(COUNT, 1, "Steps between lines of metrics.")
    checkpoint_every: int = field(COUNT, 1000, "Steps between checkpoints.")
    keep: int = field(COUNT, 3, "How many of the last checkpoints are kept.")


FIELDS = {field.name: field for field in dataclasses.fields(Settings)}
# What may differ between a run and one that resumes it. Of files, the contents may not; the number
# of steps may where the optimiser's schedule does not depend on it, which is compared too.
FREE = ("output", "data", "evaluation", "tokenizer", "steps", "epochs", "fsdp", "log_every")
FREE += ("checkpoint_every", "keep", "best")


def read_settings(path: str | None, given: Mapping[str, Any]) -> Settings:
    """The settings of a TOML file, and what is given besides, which counts more.

    Args:
        path: of the file; None for none.
        given: values by key.

    Raises:
        ConfigError: the file cannot be read; a key is unknown, missing or impossible.
    """
    found = {} if path is None else _read(path)
    where = f"{path}: " if path else ""
    for name in found:
        if name not in FIELDS:
            raise ConfigError(f"{where}no such key: {shown(name)}{suggest(name, FIELDS)}")
    found = checked(Settings, found, where=where) | checked(Settings, given)
    required = [name for name, f in FIELDS.items() if f.default is dataclasses.MISSING]
    if missing := [name for name in required if name not in found]:
        raise ConfigError(f"{where}missing: {', '.join(missing)}")
    settings = Settings(**found)
    _check_choices(settings)
    return settings


def _read(path: str) -> dict[str, Any]:
    try:
        with reading(path, ConfigError), open(path, "rb") as file:
            return tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as reason:
        raise ConfigError(f"{path}: not TOML ({reason})") from None


def _check_choices(settings: Settings) -> None:
    if settings.batch_size % settings.accumulate:
        raise ConfigError(
            f"accumulate: {settings.batch_size} rows (batch_size) cannot be taken in "
            f"{settings.accumulate} equal parts"
        )
    for one, other in (("model", "config"), ("steps", "epochs")):
        if (getattr(settings, one) is None) == (getattr(settings, other) is None):
            raise ConfigError(f"{one}, {other}: expected one of them")
    if settings.config is not None and settings.tokenizer is None:
        raise ConfigError("tokenizer: a model that is begun afresh has none; name a folder")
    if settings.evaluation is not None and settings.evaluation_fraction is not None:
        raise ConfigError("evaluation, evaluation_fraction: expected one of them")
    evaluated = settings.evaluation is not None or settings.evaluation_fraction is not None
    for name in ("evaluate_every", "patience", "best"):
        if getattr(settings, name) not in (None, False) and not evaluated:
            raise ConfigError(f"{name}: needs evaluation or evaluation_fraction")
    for name in ("patience", "best"):
        if getattr(settings, name) not in (None, False) and settings.evaluate_every is None:
            raise ConfigError(
                f"{name}: needs evaluate_every: there is one evaluation else, the last"
            )
    for name in ("lora_alpha", "lora_targets", "lora_save"):
        if getattr(settings, name) is not None and settings.lora_rank is None:
            raise ConfigError(f"{name}: needs lora_rank")
