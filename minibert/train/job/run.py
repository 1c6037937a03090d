"""A run of `minibert train`: from settings to a folder with model, log and loss plot."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import re
import shutil
from os.path import exists, isdir, join
from typing import TYPE_CHECKING, Any

from minibert.checkpoint.files import adapter_paths, encoder_paths, one_state
from minibert.checkpoint.saving import save_model
from minibert.core.atomic import remove_files
from minibert.core.atomic_file import new_file
from minibert.errors import ConfigError, InputError, TargetError, shown, writing
from minibert.models.base import PretrainedModel
from minibert.sharding.mesh import Sharding
from minibert.train.checkpoints import (
    ELSEWHERE,
    RUN_LOCK,
    Checkpoints,
    checkpoint_paths,
    one_run,
    restore,
)
from minibert.train.job.encoders import EncoderModules, encoder_modules, open_initial_model
from minibert.train.job.settings import FREE, Settings
from minibert.train.job.tasks import (
    TASKS,
    Task,
    dataset_of,
    label_map,
    model_of,
    sharding_of,
    sources_of,
    task_of,
    tokenizer_of,
)
from minibert.train.loop import Evaluation, Result, fit
from minibert.train.lora.config import LoRA
from minibert.train.lora.files import save_adapter
from minibert.train.objectives.base import Objective
from minibert.train.optimizers import adamw, schedule
from minibert.train.trainer import Trainer
from minibert.train.wrappers import averaged, layerwise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The folders that a run writes into its output folder, each with a function that returns the paths
# in it that are a run's,
FOLDERS = {"model": encoder_paths, "adapter": adapter_paths, "checkpoints": checkpoint_paths}
# and its files, including those that a killed run was writing, and logs that were moved.
FILES = re.compile(
    r"(log\.jsonl|loss\.png|settings\.json)(\.[0-9a-f]{8}\.new)?|log\.jsonl\.[1-9]\d*"
)
STAGED = re.compile(r"\.minibert-new-(model|adapter)-[0-9a-f]{8}")
SHARD = 5 * 10**9  # bytes


def run(settings: Settings, *, resume: bool | str = False, overwrite: bool = False) -> Result:
    """Trains according to the settings, and writes the results.

    The output folder gets `model`, a Hugging Face folder with the tokenizer; `adapter`, in PEFT's
    format, if there is one; `log.jsonl`; `loss.png`, if matplotlib is installed; `checkpoints`; and
    `settings.json`. After an interruption, the model and the plot are not written.

    For contrastive training, `model` is a sentence-transformers folder: with the modules, prompts
    and settings of the one that it started from, or with the pooling that was trained.

    Args:
        settings: the task, the model, the data and the hyperparameters.
        resume: whether to resume the run in the output folder; "elsewhere" to do so with other data
            or settings (see `Checkpoints`).
        overwrite: whether to remove an earlier run from the output folder.

    Raises:
        MinibertError: settings, files or data are wrong, or a loss is not finite.
    """
    if resume and overwrite:
        raise InputError("--resume, --overwrite: expected one of them")
    task = task_of(settings)
    with one_run(settings.output):
        check_output(settings.output, resume, overwrite)
        return _run(settings, task, resume, overwrite)


def _run(settings: Settings, task: Task, resume: bool | str, overwrite: bool) -> Result:
    """Trains and writes the results; builds model, data and trainer before changing any file."""
    sharding = sharding_of(settings)
    model, tokenizer, modules, new = _load(settings, task, sharding)
    if task.objective is not None:
        training_tokenizer, objective = tokenizer, task.objective(settings, model.config)
    else:
        assert modules is not None
        training_tokenizer = modules.training_tokenizer(tokenizer)
        objective = modules.objective(settings.scale)
    positions = model.config.max_tokens
    if settings.max_length > positions:
        raise ConfigError(f"max_length: {settings.max_length}; the model has {positions} positions")
    source, held = sources_of(settings, training_tokenizer)
    dataset = functools.partial(
        dataset_of,
        settings,
        tokenizer=training_tokenizer,
        label2id=label_map(settings, model.config),
        share=None if sharding is None else sharding.share,
    )
    steps = _steps(settings, dataset, source)
    trainer = _trainer(settings, model, objective, sharding, steps, new)
    evaluation = None
    if held is not None:
        every = settings.evaluate_every or steps
        evaluation = Evaluation(batches=dataset(held), every=every, patience=settings.patience)
    checkpoints = Checkpoints(
        folder=join(settings.output, "checkpoints"),
        every=settings.checkpoint_every,
        keep=settings.keep,
        resume=resume,
        about=_about(settings),
    )
    batches = dataset(source, shuffle=True, drop_last=True, epochs=None, workers=settings.workers)
    if overwrite:
        clear(settings.output)
    result = fit(
        trainer,
        batches,
        steps=steps,
        evaluation=evaluation,
        checkpoints=checkpoints,
        log=join(settings.output, "log.jsonl"),
        log_every=settings.log_every,
        on_train_begin=lambda: _write_settings(settings, replace=resume == ELSEWHERE),
    )
    if result.stopped != "interrupted":
        if settings.best and result.best_step != result.step:
            restore(trainer, checkpoints.folder, result.best_step)
        _write(settings, trainer, model, tokenizer, modules)
    return result


def _load(
    settings: Settings, task: Task, sharding: Sharding | None
) -> tuple[Any, Any, EncoderModules | None, list[str]]:
    """Loads the model, its tokenizer and an encoder's other modules from one state of a folder.

    Returns them, and the paths of the modules of a new head.
    """
    with contextlib.ExitStack() as stack:
        start = None
        if task.objective is None and settings.model is not None:
            start = stack.enter_context(open_initial_model(settings.model))
            settings = dataclasses.replace(settings, model=start.model)
        for source in (settings.model, settings.tokenizer):
            stack.enter_context(one_state(source, {}))
        tokenizer = tokenizer_of(settings)
        model, new = model_of(settings, tokenizer, sharding)
        if task.objective is not None:
            return model, tokenizer, None, new
        return model, tokenizer, encoder_modules(start, settings.pooling, model, tokenizer), new


def check_output(folder: str, resume: bool | str, overwrite: bool) -> None:
    """Checks that the output folder can be used: empty, or a run's to resume or to replace.

    Raises:
        TargetError: the folder is not empty, and neither `resume` nor `overwrite` is set; or it
            holds files that no run has written.
    """
    found = sorted(set(os.listdir(folder)) - {RUN_LOCK})
    if found and not resume and not overwrite:
        raise TargetError(
            f"{folder}: exists and is not empty; --resume continues the run in it, --overwrite "
            "replaces that run"
        )
    if foreign := [name for name in found if not _is_own(folder, name)]:
        raise TargetError(
            f"{folder}: expected only what a training run writes; found {shown(foreign)}; move it "
            "away, or choose another folder"
        )
    for name, owned in FOLDERS.items():
        if name in found:
            owned(join(folder, name))


def _is_own(folder: str, name: str) -> bool:
    """Returns whether a file or folder has a name that a run writes into its output folder."""
    if isdir(join(folder, name)):
        return name in FOLDERS or STAGED.fullmatch(name) is not None
    return FILES.fullmatch(name) is not None


def clear(folder: str) -> None:
    """Removes only the files of a run from an output folder."""
    with writing(folder):
        for name in filter(functools.partial(_is_own, folder), os.listdir(folder)):
            path = join(folder, name)
            if name in FOLDERS:
                remove_files(path, FOLDERS[name])
            else:
                shutil.rmtree(path) if isdir(path) else os.remove(path)


def _steps(settings: Settings, dataset: Any, source: Any) -> int:
    if settings.steps is not None:
        return settings.steps
    # packing and windows determine the number of batches, so one pass over the data counts them
    return int(settings.epochs or 0) * sum(1 for _ in dataset(source, drop_last=True))


def _trainer(
    settings: Settings,
    model: PretrainedModel,
    objective: Objective,
    sharding: Sharding | None,
    steps: int,
    new: list[str],
) -> Trainer:
    optimizer = adamw(
        schedule(settings.learning_rate, steps, warmup=settings.warmup, kind=settings.schedule),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
    )
    if settings.layer_decay is not None:
        optimizer = layerwise(optimizer, model, settings.layer_decay)
    if settings.ema_decay is not None:
        optimizer = averaged(optimizer, settings.ema_decay)
    lora = None
    if settings.lora_rank is not None:
        task_type, saved = TASKS[settings.task].adapted_as, settings.lora_save or []
        lora = LoRA(
            r=settings.lora_rank,
            lora_alpha=settings.lora_alpha or settings.lora_rank,  # None or positive
            target_modules=settings.lora_targets,
            modules_to_save=saved if task_type else [*saved, *new],  # a task type names its head
            task_type=task_type,
            base_model_name_or_path=settings.model,
        )
    return Trainer(
        model,
        objective,
        optimizer,
        trainable=settings.trainable,
        lora=lora,
        accumulate=settings.accumulate,
        remat=settings.remat,
        seed=settings.seed,
        sharding=sharding,
    )


def _plain(settings: Settings) -> dict[str, Any]:
    return {name: value for name, value in vars(settings).items() if value is not None}


def _write_settings(settings: Settings, *, replace: bool) -> None:
    path = join(settings.output, "settings.json")
    if replace or not exists(path):
        with writing(path), new_file(path) as file:
            file.write(json.dumps(_plain(settings), indent=2, sort_keys=True).encode() + b"\n")


def _about(settings: Settings) -> dict[str, Any]:
    """Returns the settings and file contents in which a resumed run must equal its checkpoint."""
    found = {name: value for name, value in _plain(settings).items() if name not in FREE}
    for name in ("data", "evaluation"):
        if (path := getattr(settings, name)) is not None:
            with open(path, "rb") as file:
                found[f"{name}_sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _write(
    settings: Settings,
    trainer: Trainer,
    model: PretrainedModel,
    tokenizer: "PreTrainedTokenizerBase",
    modules: EncoderModules | None,
) -> None:
    trained = trainer.model
    folder = join(settings.output, "model")
    if modules is not None:
        modules.save(trained, tokenizer, folder)
    else:
        save_model(trained, folder, SHARD, overwrite=True, tokenizer=tokenizer)
    if settings.lora_rank is not None:
        folder = join(settings.output, "adapter")
        save_adapter(model, trainer.adapter, folder, overwrite=True)
