"""What `minibert train` is told, in a TOML file or by flags: keys, their types and meanings."""

import dataclasses
import tomllib
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any

from minibert.core.checks import number, whole
from minibert.errors import ConfigError, reading, shown, suggest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The keys. One without a default must be given."""

    task: Annotated[
        str,
        "causal-lm, continuation, masked-lm, pretraining, classification, token-classification, "
        "question-answering or contrastive.",
    ]
    data: Annotated[str, "File to train on: txt, jsonl, csv or parquet."]
    output: Annotated[str, "Folder for model/, log.jsonl, loss.png and checkpoints/."]
    model: Annotated[str | None, "To begin with: a model folder, or a repository."] = None
    config: Annotated[str | None, "To begin afresh: a config.json, or a preset (tiny)."] = None
    tokenizer: Annotated[str | None, "Folder of the tokenizer; the model's own by default."] = None
    new_head: Annotated[bool, "Whether a head that the model lacks is begun afresh."] = False
    filler: Annotated[int | None, "Of continuation: id of what stands for the second half."] = None
    pooling: Annotated[
        str | None,
        "Of contrastive: mean, cls, ...; a sentence-transformers folder has its own, else mean.",
    ] = None
    scale: Annotated[float | None, "Of contrastive: what cosines are multiplied with; 20."] = None

    text: Annotated[str | None, "Column of the texts."] = None
    text_pair: Annotated[str | None, "Of classification: column of the second texts."] = None
    label: Annotated[str | None, "Column of the labels."] = None
    problem_type: Annotated[
        str | None,
        "Of classification: single_label_classification (the default), multi_label_classification "
        "(lists of labels) or regression (numbers).",
    ] = None
    words: Annotated[str | None, "Of token-classification: column of the lists of words."] = None
    question: Annotated[str | None, "Column of the questions."] = None
    context: Annotated[str | None, "Column of the contexts."] = None
    answers: Annotated[str | None, "Column of the answers."] = None
    anchor: Annotated[str | None, "Of contrastive: column of the texts."] = None
    positive: Annotated[str | None, "Of contrastive: column of the texts like them."] = None
    negative: Annotated[str | None, "Of contrastive: column of the texts unlike them."] = None
    max_length: Annotated[int, "Tokens of an example, at most."] = 128
    stride: Annotated[int | None, "Of windows: from one's beginning to the next."] = None
    doc_stride: Annotated[int | None, "Of question-answering: how far windows overlap."] = None
    truncation: Annotated[bool, "Whether a text too long is cut."] = False
    pad_to: Annotated[list[int] | None, "Lengths to pad to; max_length by default."] = None
    probability: Annotated[float | None, "Of masks: how likely a token is a target."] = None
    whole_words: Annotated[bool | None, "Of masks: whether whole words are targets."] = None
    pack: Annotated[bool | None, "Of masked-lm: whether texts are joined into full blocks."] = None
    workers: Annotated[int, "Processes that make batches; 0 for a thread."] = 0

    steps: Annotated[int | None, "Steps in all; or give epochs."] = None
    epochs: Annotated[int | None, "How often all data are gone through."] = None
    batch_size: Annotated[int, "Examples of a step."] = 32
    learning_rate: Annotated[float, "The largest one."] = 5e-5
    schedule: Annotated[str, "How it comes down: linear, cosine, constant."] = "linear"
    warmup: Annotated[int, "Steps in which it goes up."] = 0
    weight_decay: Annotated[float, "AdamW's."] = 0.01
    max_grad_norm: Annotated[float, "The largest norm of all gradients together."] = 1.0
    accumulate: Annotated[int, "Parts that a batch is taken in."] = 1
    remat: Annotated[bool, "Whether to compute layers again in place of keeping them."] = False
    fsdp: Annotated[list[int] | None, "Over all devices: in how many parts to store, by axis."] = (
        None
    )
    tensor: Annotated[int | None, "Over all devices: in how many parts to take heads."] = None
    dtype: Annotated[str | None, "What to compute in, such as bfloat16."] = None
    trainable: Annotated[list[str] | None, "Paths to train, such as classifier.*"] = None
    lora_rank: Annotated[int | None, "Train LoRA adapters of this rank."] = None
    lora_alpha: Annotated[float | None, "LoRA's scale, over the rank; the rank by default."] = None
    lora_targets: Annotated[list[str] | None, "Layers with adapters; the usual by default."] = None
    lora_save: Annotated[list[str] | None, "Modules trained whole, as a task's head is."] = None
    seed: Annotated[int, "Of order, masks, dropout and what begins afresh."] = 0

    evaluation: Annotated[str | None, "File to evaluate on."] = None
    evaluation_fraction: Annotated[float | None, "Or: what part of the data is held out."] = None
    evaluate_every: Annotated[int | None, "Steps between evaluations; else the last alone."] = None
    patience: Annotated[int | None, "Evaluations without a better one before it stops."] = None
    best: Annotated[bool, "Whether to write the best evaluation's model, not the last."] = False
    log_every: Annotated[int, "Steps between lines of metrics."] = 1
    checkpoint_every: Annotated[int, "Steps between checkpoints."] = 1000
    keep: Annotated[int, "How many of the last checkpoints are kept."] = 3


FIELDS = {field.name: field for field in dataclasses.fields(Settings)}
HINTS = typing.get_type_hints(Settings, include_extras=True)
TYPES = {name: typing.get_args(hint)[0] for name, hint in HINTS.items()}
MEANINGS = {name: hint.__metadata__[0] for name, hint in HINTS.items()}
NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
# What may differ between a run and one that resumes it. Of files, the contents may not; the number
# of steps may where the optimiser's schedule does not depend on it, which is compared too.
FREE = ("output", "data", "evaluation", "tokenizer", "steps", "epochs", "fsdp", "log_every")
FREE += ("checkpoint_every", "keep", "best")
LEAST = {"max_length": 1, "workers": 0, "steps": 1, "epochs": 1, "batch_size": 1, "warmup": 0}
LEAST |= {"accumulate": 1, "tensor": 1, "lora_rank": 1, "seed": 0, "evaluate_every": 1}
LEAST |= {"patience": 1, "log_every": 1, "checkpoint_every": 1, "keep": 1}


def read_settings(path: str | None, given: Mapping[str, Any]) -> Settings:
    """The settings of a TOML file, and what is given besides, which counts more.

    Args:
        path: of the file; None for none.
        given: values by key.

    Raises:
        ConfigError: the file cannot be read; a key is unknown, missing or of the wrong type.
        InputError: a number is out of range.
    """
    found = {} if path is None else _read(path)
    where = f"{path}: " if path else ""
    for name, value in found.items():
        if name not in FIELDS:
            raise ConfigError(f"{where}no such key: {shown(name)}{suggest(name, FIELDS)}")
        found[name] = _checked(f"{where}{name}", TYPES[name], value)
    found |= {name: _checked(name, TYPES[name], value) for name, value in given.items()}
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


def _checked(name: str, kind: Any, value: Any) -> Any:
    kind = plain(kind)
    if typing.get_origin(kind) is list:
        (inner,) = typing.get_args(kind)
        if isinstance(value, list):
            return [_checked(f"{name}: item {n}", inner, one) for n, one in enumerate(value)]
        raise ConfigError(f"{name}: expected a list, found {shown(value)}")
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ConfigError(f"{name}: expected {NAMES[kind]}, found {shown(value)}")
    return value


def plain(kind: Any) -> Any:
    """A type without its None."""
    if isinstance(kind, types.UnionType):
        return next(one for one in typing.get_args(kind) if one is not types.NoneType)
    return kind


def _check_choices(settings: Settings) -> None:
    for name, least in LEAST.items():
        if (value := getattr(settings, name)) is not None:
            whole(name, value, least)
    for name in ("learning_rate", "weight_decay"):
        number(name, getattr(settings, name))
    for name in ("max_grad_norm", "lora_alpha", "scale"):
        if (value := getattr(settings, name)) is not None:
            number(name, value, above=0)
    from minibert.train.optimizers import KINDS  # not earlier: it brings in JAX

    if settings.schedule not in KINDS:
        raise ConfigError(
            f"schedule: expected {', '.join(KINDS)}; found {shown(settings.schedule)}"
        )
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
    fraction = settings.evaluation_fraction
    if fraction is not None and not 0 < fraction < 1:
        raise ConfigError(f"evaluation_fraction: expected between 0 and 1, found {fraction}")
    for name in ("lora_alpha", "lora_targets", "lora_save"):
        if getattr(settings, name) is not None and settings.lora_rank is None:
            raise ConfigError(f"{name}: needs lora_rank")
