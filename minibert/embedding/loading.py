"""From a folder or a repository to the parts of a sentence encoder."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from minibert.checkpoint.files import (
    BODY_CONFIGS,
    MODULES,
    TOKENIZER_FILES,
    TOP_CONFIG,
    check_settled,
)
from minibert.checkpoint.hub import model_folder
from minibert.checkpoint.sources import PICKLE, SAFETENSORS
from minibert.checkpoint.tokenizer import load_tokenizer
from minibert.embedding.folder import Entry, one_encoder_state, read_entries, read_module
from minibert.embedding.modules import Normalize, Pooling, SentenceModel, token_features
from minibert.embedding.settings import (
    SentenceSettings,
    checked_given,
    longest,
    merged_prompts,
    read_settings,
)
from minibert.errors import InputError, SourceError, shown
from minibert.models.registry import load_model, task_classes
from minibert.nn.layers import Module


def encoder_folder(
    source: str | os.PathLike[str], *, subfolder: str = "", allow_pickle: bool = False, **where: Any
) -> str:
    """Finds the folder of a sentence encoder, fetching what it needs.

    Args:
        source: a folder, or a repository of the Hub.
        subfolder: where in it the encoder is.
        allow_pickle: whether to fetch pickles where there is no safetensors file.
        where: what else `hub.model_folder` takes.

    Raises:
        SourceError: there is no such folder, repository or file.
        ConfigError: its modules.json is wrong.
    """
    if not isinstance(source, str | os.PathLike):
        raise SourceError(f"{shown(source)}: expected a folder or the name of a repository")
    path = os.path.expanduser(os.fspath(source))
    if os.path.isdir(path):
        folder = os.path.join(path, subfolder) if subfolder else path
        check_settled(folder)
        if not os.path.isfile(os.path.join(folder, MODULES)):
            model_folder(path, subfolder=subfolder)  # says what is wrong with it
        return folder
    prefix = f"{subfolder.strip('/')}/" if subfolder else ""
    if os.path.exists(path) or os.path.isabs(path) or path.count("/") > 1:
        model_folder(path)  # says what is wrong with it
    folder = os.path.join(
        _fetch(path, [f"{prefix}{name}" for name in (MODULES, TOP_CONFIG)], where), prefix
    )
    if not os.path.isfile(os.path.join(folder, MODULES)):
        _fetch(path, [f"{prefix}{name}" for name in TOKENIZER_FILES], where)
        return model_folder(path, subfolder=subfolder, allow_pickle=allow_pickle, **where)
    body, *others = read_entries(folder)
    files = (SAFETENSORS, PICKLE) if allow_pickle else (SAFETENSORS,)
    names = [_join(body.path, name) for name in (*TOKENIZER_FILES, *BODY_CONFIGS)]
    names += [_join(entry.path, name) for entry in others for name in ("config.json", *files)]
    _fetch(path, [f"{prefix}{name}" for name in names], where)
    inner = _join(prefix.rstrip("/"), body.path)
    model_folder(path, subfolder=inner, allow_pickle=allow_pickle, **where)
    return folder


def _join(folder: str, name: str) -> str:
    return "/".join(part for part in (folder, name) if part)


def _fetch(repository: str, names: list[str], where: dict[str, Any]) -> str:
    """Fetches those of the files that are there; returns the snapshot's folder."""
    from huggingface_hub import errors, snapshot_download

    try:
        return snapshot_download(repository, allow_patterns=names, **where)
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as reason:
        why = str(reason).strip().partition("\n")[0][:300]
        raise SourceError(
            f"{shown(repository)}: not a folder here, and not found on the Hub ({why})"
        ) from None


def load_encoder(
    source: str | os.PathLike[str],
    *,
    where: Mapping[str, Any],
    weights: Mapping[str, Any],
    pooling: str | Sequence[str] | None,
    normalize: bool | None,
    layers: str,
    settings: Mapping[str, Any],
) -> tuple[SentenceModel, Any, SentenceSettings]:
    """Loads the model, the tokenizer and the settings.

    Args:
        source: a folder, or a repository of the Hub.
        where: what else `hub.model_folder` takes.
        weights: `dtype`, `param_dtype` and `allow_pickle`.

    The rest, and what is raised, is as in `SentenceEncoder.from_pretrained`.
    """
    settings = checked_given(settings)
    folder = encoder_folder(source, allow_pickle=weights["allow_pickle"], **where)
    with one_encoder_state(folder) as entries:
        if not entries:
            return _load_plain(folder, weights, pooling, normalize, layers, settings)
        if pooling is not None or normalize is not None:
            name = "normalize" if pooling is None else "pooling"
            raise InputError(f"{name}: {folder} has its own ({MODULES}); leave it out")
        return _load_modules(folder, entries, weights, layers, settings)


def _load_modules(
    folder: str,
    entries: list[Entry],
    weights: Mapping[str, Any],
    layers: str,
    settings: Mapping[str, Any],
) -> tuple[SentenceModel, Any, SentenceSettings]:
    """A sentence-transformers folder: its modules in their order."""
    body, *others = entries
    home = os.path.join(folder, body.path)
    tokenizer, model = load_tokenizer(home), _load_trunk(home, weights)
    found = read_settings(folder, home, model.config, tokenizer, settings)
    chain: list[Module] = []
    width = token_features(model.config, layers)
    for entry in others:
        module = read_module(folder, entry, width, **weights)
        width = getattr(module, "out_features", width)
        chain.append(module)
    return SentenceModel(model, chain, layers), tokenizer, found


def _load_plain(
    folder: str,
    weights: Mapping[str, Any],
    pooling: str | Sequence[str] | None,
    normalize: bool | None,
    layers: str,
    settings: Mapping[str, Any],
) -> tuple[SentenceModel, Any, SentenceSettings]:
    """A model's folder that says nothing of vectors of texts: the caller does."""
    if pooling is None:
        raise InputError(
            f"pooling: {folder} has no {MODULES}, so it does not say how tokens become one vector; "
            "say it: pooling='mean' is what sentence-transformers would take"
        ).advising("pooling='mean'")
    tokenizer, model = load_tokenizer(folder), _load_trunk(folder, weights)
    given: dict[str, Any] = {"max_seq_length": longest(model.config, tokenizer), **settings}
    given["prompts"] = merged_prompts(settings.get("prompts", {}))
    chain: list[Module] = [Pooling(pooling, token_features(model.config, layers))]
    chain += [Normalize()] if normalize else []
    return SentenceModel(model, chain, layers), tokenizer, SentenceSettings(**given)


def _load_trunk(folder: str, weights: Mapping[str, Any]) -> Any:
    """The bare model of a checkpoint, whatever head it has."""
    classes = task_classes("feature-extraction")
    return load_model("a sentence encoder", classes, folder, **weights)
