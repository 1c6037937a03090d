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
    key,
    number,
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
FRACTION = number("a number between 0 and 1", lambda value: 0 < value < 1)


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
    model: str | None = key("To begin with: a model folder, or a repository.")
    config: str | None = key("To begin afresh: a config.json, or a preset (tiny).")
    tokenizer: str | None = key("Folder of the tokenizer; the model's own by default.")
    new_head: bool = key("Whether a head that the model lacks is begun afresh.", SWITCH, False)
    filler: int | None = key("Of continuation: id of what stands for the second half.", WHOLE)
    pooling: str | None = key(
        "Of contrastive: mean, cls, ...; a sentence-transformers folder has its own, else mean."
    )
    scale: float | None = key("Of contrastive: what cosines are multiplied with; 20.", POSITIVE)

    text: str | None = key("Column of the texts.")
    text_pair: str | None = key("Of classification: column of the second texts.")
    label: str | None = key("Column of the labels.")
    problem_type: str | None = key(
        "Of classification: single_label_classification (the default), multi_label_classification "
        "(lists of labels) or regression (numbers)."
    )
    words: str | None = key("Of token-classification: column of the lists of words.")
    question: str | None = key("Column of the questions.")
    context: str | None = key("Column of the contexts.")
    answers: str | None = key("Column of the answers.")
    anchor: str | None = key("Of contrastive: column of the texts.")
    positive: str | None = key("Of contrastive: column of the texts like them.")
    negative: str | None = key("Of contrastive: column of the texts unlike them.")
    max_length: int = key("Tokens of an example, at most.", COUNT, 128)
    stride: int | None = key("Of windows: from one's beginning to the next.", WHOLE)
    doc_stride: int | None = key("Of question-answering: how far windows overlap.", WHOLE)
    truncation: bool = key("Whether a text too long is cut.", SWITCH, False)
    pad_to: list[int] | None = key("Lengths to pad to; max_length by default.", WHOLES)
    probability: float | None = key("Of masks: how likely a token is a target.", NUMBER)
    whole_words: bool | None = key("Of masks: whether whole words are targets.", SWITCH)
    pack: bool | None = key("Of masked-lm: whether texts are joined into full blocks.", SWITCH)
    workers: int = key("Processes that make batches; 0 for a thread.", INDEX, 0)

    steps: int | None = key("Steps in all; or give epochs.", COUNT)
    epochs: int | None = key("How often all data are gone through.", COUNT)
    batch_size: int = key("Examples of a step.", COUNT, 32)
    learning_rate: float = key("The largest one.", NON_NEGATIVE, 5e-5)
    schedule: str = key("How it comes down: linear, cosine, constant.", one_of(KINDS), "linear")
    warmup: int = key("Steps in which it goes up.", INDEX, 0)
    weight_decay: float = key("AdamW's.", NON_NEGATIVE, 0.01)
    max_grad_norm: float = key("The largest norm of all gradients together.", POSITIVE, 1.0)
    accumulate: int = key("Parts that a batch is taken in.", COUNT, 1)
    remat: bool = key("Whether to compute layers again in place of keeping them.", SWITCH, False)
    fsdp: list[int] | None = key("Over all devices: in how many parts to store, by axis.", WHOLES)
    tensor: int | None = key("Over all devices: in how many parts to take heads.", COUNT)
    dtype: str | None = key("What to compute in, such as bfloat16.")
    trainable: list[str] | None = key("Paths to train, such as classifier.*", TEXTS)
    lora_rank: int | None = key("Train LoRA adapters of this rank.", COUNT)
    lora_alpha: float | None = key("LoRA's scale, over the rank; the rank by default.", POSITIVE)
    lora_targets: list[str] | None = key("Layers with adapters; the usual by default.", TEXTS)
    lora_save: list[str] | None = key("Modules trained whole, as a task's head is.", TEXTS)
    seed: int = key("Of order, masks, dropout and what begins afresh.", INDEX, 0)

    evaluation: str | None = key("File to evaluate on.")
    evaluation_fraction: float | None = key("Or: what part of the data is held out.", FRACTION)
    evaluate_every: int | None = key("Steps between evaluations; else the last alone.", COUNT)
    patience: int | None = key("Evaluations without a better one before it stops.", COUNT)
    best: bool = key("Whether to write the best evaluation's model, not the last.", SWITCH, False)
    log_every: int = key("Steps between lines of metrics.", COUNT, 1)
    checkpoint_every: int = key("Steps between checkpoints.", COUNT, 1000)
    keep: int = key("How many of the last checkpoints are kept.", COUNT, 3)

    @property
    def given(self) -> set[str]:
        """The keys whose value is not None, False or 0."""
        return {name for name, value in vars(self).items() if value not in (None, False)}


FIELDS = {field.name: field for field in dataclasses.fields(Settings)}
# What may differ between a run and one that resumes it. Of files, the contents may not; the number
# of steps may where the optimiser's schedule does not depend on it, which is compared too.
FREE = (
    "output",
    "data",
    "evaluation",
    "tokenizer",
    "steps",
    "epochs",
    "fsdp",
    "log_every",
    "checkpoint_every",
    "keep",
    "best",
)


def read_settings(path: str | None, given: Mapping[str, Any]) -> Settings:
    """The settings of a TOML file, and what is given besides, which counts more.

    Args:
        path: of the file; None for none.
        given: values by key.

    Raises:
        ConfigError: the file cannot be read; a key is unknown, missing or impossible.
    """
    found, where = {}, ""
    if path is not None:
        where = f"{path}: "
        try:
            with reading(path, ConfigError), open(path, "rb") as file:
                found = tomllib.load(file)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as reason:
            raise ConfigError(f"{where}not TOML ({reason})") from None
    for name in found:
        if name not in FIELDS:
            raise ConfigError(f"{where}no such key: {shown(name)}{suggest(name, FIELDS)}")
    found = checked(Settings, found, where=where) | checked(Settings, given)
    absent = [one for name, one in FIELDS.items() if name not in found]
    if missing := [one.name for one in absent if one.default is dataclasses.MISSING]:
        raise ConfigError(f"{where}missing: {', '.join(missing)}")
    settings = Settings(**found)
    _check_choices(settings)
    return settings


def _check_choices(settings: Settings) -> None:
    if settings.batch_size % settings.accumulate:
        raise ConfigError(
            f"accumulate: {settings.batch_size} rows (batch_size) cannot be taken in "
            f"{settings.accumulate} equal parts"
        )
    given = settings.given
    for one, other in (("model", "config"), ("steps", "epochs")):
        if (one in given) == (other in given):
            raise ConfigError(f"{one}, {other}: expected one of them")
    if "config" in given and "tokenizer" not in given:
        raise ConfigError("tokenizer: a model that is begun afresh has none; name a folder")
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
            "evaluate_every: there is one evaluation else, the last",
        ),
        (("lora_alpha", "lora_targets", "lora_save"), {"lora_rank"}, "lora_rank"),
    ):
        for name in names:
            if name in given and given.isdisjoint(enabling):
                raise ConfigError(f"{name}: needs {needed}")
