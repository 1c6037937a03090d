"""From the name of a sentence encoder to its folder here, with every file its modules need."""

import os
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
from minibert.embedding.folder import read_entries
from minibert.errors import SourceError, shown


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
