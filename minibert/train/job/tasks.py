"""The tasks of `minibert train`: models, objectives and data of each, and configs of new models."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from flax import nnx

from minibert.checkpoint.config import Config
from minibert.checkpoint.tokenizer import load_tokenizer
from minibert.core.fields import one_of
from minibert.core.strict_json import read_json
from minibert.data.records import Records, read_texts
from minibert.errors import ConfigError, InputError, shown
from minibert.models.registry import BY_TYPE, load_model, task_classes
from minibert.sharding.mesh import Sharding
from minibert.train import data as datasets
from minibert.train.data.next_sentence import read_documents
from minibert.train.job.settings import Settings
from minibert.train.objectives.base import (
    Objective,
    causal_lm,
    continuation,
    masked_lm,
    pretraining,
)
from minibert.train.objectives.heads import (
    classification,
    question_answering,
    token_classification,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def fresh_config(
    name: str,
    family: str,
    classes: tuple[Any, ...],
    tokenizer: "PreTrainedTokenizerBase",
    labels: dict[str, Any],
) -> Any:
    """Of a family's preset, or of a file; with room for the tokenizer's words."""
    names = ("pad_token_id", "bos_token_id", "eos_token_id")
    ends = {key: found for key in names if (found := getattr(tokenizer, key)) is not None}
    if name.endswith(".json"):
        config = _config_of_file(name, classes, len(tokenizer), ends)
    else:
        preset = getattr(BY_TYPE[family].config, name, None)
        if name not in ("tiny", "small", "base", "medium", "large", "xl") or preset is None:
            raise ConfigError(f"config: expected a config.json or a preset, found {shown(name)}")
        config = preset(vocab_size=len(tokenizer))
    changes = dict(labels)
    if "pad_token_id" in ends:
        changes["pad_token_id"] = ends.pop("pad_token_id")
    if ends:  # what only `generate` asks for stands in two files
        changes["extra"] = {**config.extra, **ends}
        changes["generation"] = {**(config.generation or {}), **ends}
    return config.replace(**changes)


def _config_of_file(path: str, classes: tuple[Any, ...], words: int, ends: dict[str, int]) -> Any:
    data = read_json(path)
    for cls in classes:
        if isinstance(data, dict) and data.get("model_type") == cls.config_class.model_type:
            config = cls.config_class.from_dict(data, path)
            if config.vocab_size < words:
                raise ConfigError(f"{path}: vocab_size: the tokenizer has {words} words")
            for key, number in ends.items():
                if data.get(key) not in (None, number):
                    raise ConfigError(f"{path}: {key}: the tokenizer's is {number}")
            return config
    known = " or ".join(cls.config_class.model_type for cls in classes)
    raise ConfigError(f"{path}: model_type: expected {known}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A task.

    Attributes:
        model_task: whose classes it takes, as `Family.tasks` names it.
        objective: from settings and the model's config to what is minimised; None for a task
            whose result is a sentence encoder (`encoders`).
        dataset: from a source and a tokenizer to batches.
        options: the keys that `dataset` or `objective` take; those of other tasks are refused.
        columns: of `options`, those that are columns, each with its default; None for no column.
        preset: the family of a config that is a preset.
        adapted_as: PEFT's task type of an adapter, where it decides what is trained: the head too.
    """

    model_task: str
    objective: Callable[[Settings, Any], Objective] | None
    dataset: Callable[..., Any]
    options: tuple[str, ...]
    columns: dict[str, str | None] = dataclasses.field(default_factory=dict)
    preset: str = "bert"
    adapted_as: str | None = None


def _windows(
    source: Any, tokenizer: "PreTrainedTokenizerBase", *, column: str | None = None, **options: Any
) -> Any:
    ids = source
    if not isinstance(source, np.ndarray):
        ids = datasets.token_ids(source, tokenizer, column=column)
    return datasets.windows(ids, **options)


def _continuation(settings: Settings, config: Config) -> Objective:
    if settings.filler is None:
        raise ConfigError("filler: continuation needs it: the id of a token that no text has")
    return continuation(settings.filler)


OF_OBJECTIVES = {"filler", "pooling", "scale"}
TASKS = {
    "causal-lm": Task(
        model_task="text-generation",
        preset="gpt2",
        objective=lambda settings, config: causal_lm,
        dataset=_windows,
        options=("text", "stride"),
    ),
    "continuation": Task(
        model_task="continuation",
        preset="gpt2",
        objective=_continuation,
        dataset=_windows,
        options=("text", "stride", "filler"),
    ),
    "masked-lm": Task(
        model_task="fill-mask",
        objective=lambda settings, config: masked_lm,
        dataset=datasets.masked_lm,
        options=("text", "truncation", "pad_to", "probability", "whole_words", "pack"),
    ),
    "pretraining": Task(
        model_task="pretraining",
        objective=lambda settings, config: pretraining,
        dataset=datasets.pretraining,
        options=("text", "truncation", "pad_to", "probability", "whole_words"),
    ),
    "classification": Task(
        model_task="text-classification",
        objective=lambda settings, config: classification(config),
        dataset=datasets.classification,
        options=("text", "text_pair", "label", "problem_type", "truncation", "pad_to"),
        columns={"text": "text", "text_pair": None, "label": "label"},
        adapted_as="SEQ_CLS",
    ),
    "token-classification": Task(
        model_task="token-classification",
        objective=lambda settings, config: token_classification,
        dataset=datasets.token_classification,
        options=("words", "label", "truncation", "pad_to"),
        columns={"words": "tokens", "label": "labels"},
        adapted_as="TOKEN_CLS",
    ),
    "question-answering": Task(
        model_task="question-answering",
        objective=lambda settings, config: question_answering,
        dataset=datasets.question_answering,
        options=("question", "context", "answers", "doc_stride", "pad_to"),
        columns={"question": "question", "context": "context", "answers": "answers"},
        adapted_as="QUESTION_ANS",
    ),
    "contrastive": Task(
        model_task="feature-extraction",
        objective=None,  # that of the encoder's vectors
        dataset=datasets.contrastive,
        options=("anchor", "positive", "negative", "truncation", "pad_to", "pooling", "scale"),
        columns={"anchor": "anchor", "positive": "positive", "negative": None},
    ),
}
OF_DATA = {name for task in TASKS.values() for name in task.options}


def task_of(settings: Settings) -> Task:
    """The settings' task.

    Raises:
        ConfigError: there is no such task, or a key is of another.
    """
    one_of(TASKS).check("task", settings.task)
    task = TASKS[settings.task]
    foreign = settings.given & (OF_DATA - set(task.options))
    if foreign:
        raise ConfigError(f"{min(foreign)}: not a key of {settings.task}; its are {task.options}")
    return task


def tokenizer_of(settings: Settings) -> Any:
    """The tokenizer; for words of their own, a byte-level one puts a space before each."""
    source: Any = settings.tokenizer or settings.model
    tokenizer = load_tokenizer(source)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    byte_level = type(getattr(backend, "pre_tokenizer", None)).__name__ == "ByteLevel"
    if byte_level and settings.task == "token-classification":
        tokenizer = load_tokenizer(source, add_prefix_space=True)
    if tokenizer.pad_token is None:  # GPT-2 has none: its end follows a text anyhow
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def new_labels(settings: Settings) -> dict[str, Any]:
    """A new head's labels, as a config has them; empty if there are none, or the model's own."""
    task = TASKS[settings.task]
    if "label" not in task.options or not (settings.new_head or settings.config):
        return {}
    column: Any = settings.label or task.columns["label"]
    if settings.problem_type == "regression":
        return {"num_labels": np.size(Records(settings.data, [column])[0][column])}
    ids = datasets.label_ids(settings.data, column, problem_type=settings.problem_type)
    return {"id2label": {number: name for name, number in ids.items()}}


def label_map(settings: Settings, config: Config) -> dict[str, int] | None:
    """The ids of a model's labels, by name; None if its task has none."""
    if "label" not in TASKS[settings.task].options or settings.problem_type == "regression":
        return None
    return {name: number for number, name in config.id2label.items()}


def model_of(
    settings: Settings, tokenizer: "PreTrainedTokenizerBase", sharding: Sharding | None
) -> Any:
    """The model to begin with: loaded, or begun afresh.

    Raises:
        ConfigError: the task has no such model.
        MissingHeadError: it lacks its head, and `new_head` is not given.
    """
    task, rngs = TASKS[settings.task], nnx.Rngs(settings.seed)
    classes: Any = task_classes(task.model_task)
    labels = new_labels(settings)
    if settings.model is not None:
        model: Any = load_model(
            settings.task,
            classes,
            settings.model,
            dtype=settings.dtype,
            param_dtype="float32",
            new_head=settings.new_head,
            rngs=rngs,
            sharding=sharding,
            **labels,
        )
    else:
        config = fresh_config(str(settings.config), task.preset, classes, tokenizer, labels)
        cls = next(cls for cls in classes if cls.config_class is type(config))
        model = cls(config, rngs=rngs, dtype=settings.dtype)
    if settings.problem_type is not None:
        model.config = model.config.replace(problem_type=settings.problem_type)
    if model.config.pad_token_id is None and tokenizer.pad_token_id is not None:
        model.config = model.config.replace(pad_token_id=tokenizer.pad_token_id)
    return model


def sharding_of(settings: Settings) -> Sharding | None:
    """How the devices share the work; None for one device."""
    if settings.fsdp is None and settings.tensor is None:
        return None
    return Sharding.of_devices(fsdp=tuple(settings.fsdp or [1]), tensor=settings.tensor or 1)


def sources_of(settings: Settings, tokenizer: "PreTrainedTokenizerBase") -> tuple[Any, Any]:
    """What to train on, and what to evaluate on or None: files, or the parts of one."""
    task, fraction = TASKS[settings.task], settings.evaluation_fraction
    if fraction is None:
        return settings.data, settings.evaluation
    if task.dataset is _windows:  # the end of a text: a part of the middle would be half known
        ids = datasets.token_ids(settings.data, tokenizer, column=settings.text)
        cut = len(ids) - round(fraction * len(ids))
        return ids[:cut], ids[cut:]
    if settings.task == "pretraining":
        rows = read_documents(settings.data, settings.text)[0]
    elif task.columns:
        columns = [getattr(settings, name) or default for name, default in task.columns.items()]
        rows = Records(settings.data, filter(None, columns))
    else:
        rows = read_texts(settings.data, settings.text)[0]
    held = round(fraction * len(rows))
    if not 0 < held < len(rows):
        raise InputError(f"evaluation_fraction: {fraction} of {len(rows)} records are {held}")
    order = np.random.default_rng(settings.seed).permutation(len(rows))
    return [rows[i] for i in sorted(order[held:])], [rows[i] for i in sorted(order[:held])]


def dataset_of(
    settings: Settings,
    source: Any,
    tokenizer: "PreTrainedTokenizerBase",
    label2id: Mapping[str, int] | None,
    **options: Any,
) -> Any:
    """Batches of a source, as the settings have them."""
    task = TASKS[settings.task]
    wanted = set(task.options) - OF_OBJECTIVES
    given = {k: v for k, v in vars(settings).items() if k in wanted and v is not None}
    if not task.columns and "text" in given:  # of a file; the parts of one have none
        column = given.pop("text")
        if isinstance(source, str):
            given["column"] = column
    if "label" in task.options:
        given["label2id"] = label2id
    return task.dataset(
        source,
        tokenizer,
        max_length=settings.max_length,
        batch_size=settings.batch_size,
        seed=settings.seed,
        **given,
        **options,
    )
