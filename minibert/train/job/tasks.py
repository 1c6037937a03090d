"""Tasks of `minibert train`: their models, objectives and data, and configs of new models."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from minibert.checkpoint.config import Config
from minibert.checkpoint.leaves import needs_x64
from minibert.checkpoint.tokenizer import load_tokenizer
from minibert.core.fields import one_of
from minibert.core.strict_json import read_json
from minibert.data.records import Records, read_texts
from minibert.errors import ConfigError, InputError, shown
from minibert.models.base import load_pretrained
from minibert.models.registry import BY_TYPE, class_for_task, task_classes
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
    sentence_order_pretraining,
)
from minibert.train.objectives.heads import (
    classification,
    question_answering,
    token_classification,
    weighted,
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
    """Returns the config of a new model, from a preset or a file, for a tokenizer and labels.

    Args:
        name: a preset, or the path of a config.json.
        family: the family of a preset.
        classes: the task's model classes, by which the family of a file is found.
        tokenizer: the tokenizer, whose vocabulary and special tokens the config gets.
        labels: the config's fields for the labels of a head.

    Raises:
        ConfigError: there is no such preset, or the file does not fit the classes or tokenizer.
    """
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
    if ends:  # fields that only `generate` uses are in config.json and generation_config.json
        changes["extra"] = {**config.extra, **ends}
        changes["generation"] = {**(config.generation or {}), **ends}
    return config.replace(**changes)


def _config_of_file(path: str, classes: tuple[Any, ...], words: int, ends: dict[str, int]) -> Any:
    data = read_json(path)
    for cls in classes:
        if isinstance(data, dict) and data.get("model_type") == cls.config_class.model_type:
            config = cls.config_class.from_dict(data, path)
            if config.vocab_size < words:
                raise ConfigError(
                    f"{path}: vocab_size: expected at least {words}, the size of the tokenizer's "
                    f"vocabulary; found {config.vocab_size}"
                )
            for key, number in ends.items():
                if data.get(key) not in (None, number):
                    raise ConfigError(
                        f"{path}: {key}: expected {number}, as in the tokenizer; found "
                        f"{shown(data[key])}"
                    )
            return config
    known = " or ".join(cls.config_class.model_type for cls in classes)
    raise ConfigError(f"{path}: model_type: expected {known}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A task of `minibert train`.

    Attributes:
        model_task: the name in `Family.tasks` of the task whose model classes are used.
        objective: a function from settings and the model's config to the objective; None for a task
            whose result is a sentence encoder (`encoders`).
        dataset: a function from a source and a tokenizer to batches.
        options: the keys that `dataset` or `objective` use; keys of other tasks are errors.
        columns: the keys among `options` that are columns, with their defaults; None for no column.
        preset: the family of presets.
        adapted_as: PEFT's task type of adapters, if it makes the head be trained too.
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
        raise ConfigError(
            "filler: missing; continuation needs the id of a token that no text contains"
        )
    return continuation(settings.filler)


def _weighted(settings: Settings, config: Config, objective: Objective) -> Objective:
    """Returns the objective with the settings' smoothed labels and weighted classes."""
    smoothing, weights = settings.label_smoothing, settings.class_weights
    if smoothing is None and weights is None:
        return objective
    if weights is not None and len(weights) != config.num_labels:
        raise ConfigError(
            f"class_weights: expected {config.num_labels} weights, for the labels "
            f"{shown(list(config.id2label.values()))}; found {len(weights)}"
        )
    if settings.problem_type not in (None, "single_label_classification"):
        raise ConfigError(
            f"label_smoothing, class_weights: not implemented for {settings.problem_type}"
        )
    return weighted(objective, label_smoothing=smoothing or 0.0, class_weights=weights)


OBJECTIVE_KEYS = {"filler", "pooling", "scale", "label_smoothing", "class_weights"}
TASKS = {
    "causal-lm": Task(
        model_task="text-generation",
        preset="gpt2",
        objective=lambda settings, config: causal_lm,
        dataset=_windows,
        options=("text", "stride"),
    ),
    "instruction": Task(
        model_task="text-generation",
        preset="gpt2",
        objective=lambda settings, config: causal_lm,
        dataset=datasets.instruction,
        options=("prompt", "completion", "truncation", "pad_to"),
        columns={"prompt": "prompt", "completion": "completion"},
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
    "sentence-order-pretraining": Task(
        model_task="sentence-order-pretraining",
        preset="albert",
        objective=lambda settings, config: sentence_order_pretraining,
        dataset=functools.partial(datasets.pretraining, sentence_order=True),
        options=("text", "truncation", "pad_to", "probability", "whole_words"),
    ),
    "classification": Task(
        model_task="text-classification",
        objective=lambda settings, config: _weighted(settings, config, classification(config)),
        dataset=datasets.classification,
        options=(
            *("text", "text_pair", "label", "problem_type", "truncation", "pad_to"),
            *("label_smoothing", "class_weights"),
        ),
        columns={"text": "text", "text_pair": None, "label": "label"},
        adapted_as="SEQ_CLS",
    ),
    "token-classification": Task(
        model_task="token-classification",
        objective=lambda settings, config: _weighted(settings, config, token_classification),
        dataset=datasets.token_classification,
        options=("words", "label", "truncation", "pad_to", "label_smoothing", "class_weights"),
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
        objective=None,  # see `EncoderModules.objective`
        dataset=datasets.contrastive,
        options=("anchor", "positive", "negative", "truncation", "pad_to", "pooling", "scale"),
        columns={"anchor": "anchor", "positive": "positive", "negative": None},
    ),
}
TASK_KEYS = {name for task in TASKS.values() for name in task.options}


def task_of(settings: Settings) -> Task:
    """Returns the task of the settings.

    Raises:
        ConfigError: there is no such task, or a key belongs to another task.
    """
    one_of(TASKS).check("task", settings.task)
    task = TASKS[settings.task]
    foreign = settings.given & (TASK_KEYS - set(task.options))
    if foreign:
        raise ConfigError(
            f"{min(foreign)}: not a key of {settings.task}; expected one of {task.options}"
        )
    return task


def tokenizer_of(settings: Settings) -> Any:
    """Returns the tokenizer; a byte-level one puts a space before each word of a list of words."""
    source: Any = settings.tokenizer or settings.model
    tokenizer = load_tokenizer(source)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    byte_level = type(getattr(backend, "pre_tokenizer", None)).__name__ == "ByteLevel"
    if byte_level and settings.task == "token-classification":
        tokenizer = load_tokenizer(source, add_prefix_space=True)
    if tokenizer.pad_token is None:  # as GPT-2's; padding follows a text, as EOS does
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def new_labels(settings: Settings) -> dict[str, Any]:
    """Returns the config's fields for a new head's labels; empty if the labels are not new."""
    task = TASKS[settings.task]
    if "label" not in task.options or not (settings.new_head or settings.config):
        return {}
    column: Any = settings.label or task.columns["label"]
    if settings.problem_type == "regression":
        return {"num_labels": np.size(Records(settings.data, [column])[0][column])}
    ids = datasets.label_ids(settings.data, column, problem_type=settings.problem_type)
    return {"id2label": {number: name for name, number in ids.items()}}


def label_map(settings: Settings, config: Config) -> dict[str, int] | None:
    """Returns the ids of a model's labels by name; None if its task has no labels."""
    if "label" not in TASKS[settings.task].options or settings.problem_type == "regression":
        return None
    return {name: number for number, name in config.id2label.items()}


def model_of(
    settings: Settings, tokenizer: "PreTrainedTokenizerBase", sharding: Sharding | None
) -> tuple[Any, list[str]]:
    """Returns the model to train, pretrained or newly initialised, and the modules of a new head.

    Modules with a tied parameter, such as a decoder, are not among these.

    Raises:
        ConfigError: the task has no such model, or JAX would narrow its dtype.
        MissingHeadError: the model lacks the head, and `new_head` is not set.
    """
    remedy = ", or set JAX_ENABLE_X64=1"
    if settings.dtype and (narrowed := needs_x64(jnp.dtype(settings.dtype), remedy)):
        raise ConfigError(f"dtype: {narrowed}")
    task, rngs = TASKS[settings.task], nnx.Rngs(settings.seed)
    classes: Any = task_classes(task.model_task)
    labels, new = new_labels(settings), []
    if settings.model is not None:
        model: Any
        model, info = load_pretrained(
            class_for_task(settings.task, classes),
            settings.model,
            dtype=settings.dtype,
            param_dtype="float32",
            new_head=settings.new_head,
            rngs=rngs,
            sharding=sharding,
            **labels,
        )
        modules = dict.fromkeys(name.rpartition(".")[0] for name in info.new)
        new = [path for path in modules if not any(n.startswith(f"{path}.") for n in model.tied)]
    else:
        config = fresh_config(str(settings.config), task.preset, classes, tokenizer, labels)
        cls = next(cls for cls in classes if cls.config_class is type(config))
        model = cls(config, rngs=rngs, dtype=settings.dtype)
    if settings.problem_type is not None:
        model.config = model.config.replace(problem_type=settings.problem_type)
    if model.config.pad_token_id is None and tokenizer.pad_token_id is not None:
        model.config = model.config.replace(pad_token_id=tokenizer.pad_token_id)
    return model, new


def sharding_of(settings: Settings) -> Sharding | None:
    """Returns the sharding over all devices; None if the settings have none."""
    if settings.fsdp is None and settings.tensor is None:
        return None
    return Sharding.of_devices(fsdp=tuple(settings.fsdp or [1]), tensor=settings.tensor or 1)


def sources_of(settings: Settings, tokenizer: "PreTrainedTokenizerBase") -> tuple[Any, Any]:
    """Returns the sources of training and of evaluation (or None): files, or parts of one file."""
    task, fraction = TASKS[settings.task], settings.evaluation_fraction
    if fraction is None:
        return settings.data, settings.evaluation
    # hold out the end of the text, which has no training text after it
    if task.dataset is _windows:
        ids = datasets.token_ids(settings.data, tokenizer, column=settings.text)
        cut = len(ids) - round(fraction * len(ids))
        return ids[:cut], ids[cut:]
    if settings.task in ("pretraining", "sentence-order-pretraining"):
        rows = read_documents(settings.data, settings.text)[0]
    elif task.columns:
        columns = [getattr(settings, name) or default for name, default in task.columns.items()]
        rows = Records(settings.data, filter(None, columns))
    else:
        rows = read_texts(settings.data, settings.text)[0]
    held = round(fraction * len(rows))
    if not 0 < held < len(rows):
        raise InputError(
            f"evaluation_fraction: expected a fraction that leaves records on both sides, found "
            f"{fraction}, which is {held} of {len(rows)} records"
        )
    order = np.random.default_rng(settings.seed).permutation(len(rows))
    return [rows[i] for i in sorted(order[held:])], [rows[i] for i in sorted(order[:held])]


def dataset_of(
    settings: Settings,
    source: Any,
    tokenizer: "PreTrainedTokenizerBase",
    label2id: Mapping[str, int] | None,
    **options: Any,
) -> Any:
    """Returns batches of a source, according to the settings."""
    task = TASKS[settings.task]
    keys = set(task.options) - OBJECTIVE_KEYS
    given = {k: v for k, v in vars(settings).items() if k in keys and v is not None}
    if not task.columns and "text" in given:  # the parts of a file have no columns
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
