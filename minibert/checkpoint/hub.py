"""Models in repositories of the Hugging Face Hub: from a name to a local folder, and uploading.

Downloads, the cache, tokens and the offline switches (`HF_HOME`, `HF_HUB_OFFLINE`, …) are those of
huggingface_hub.
"""

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, TypedDict

from minibert.checkpoint.files import (
    ADAPTER_CONFIG,
    ADAPTER_PICKLE,
    ADAPTER_TENSORS,
    GENERATION,
    check_settled,
)
from minibert.checkpoint.sources import PICKLE, SAFETENSORS, read_index
from minibert.core.paths import path_text
from minibert.errors import SourceError, TargetError, shown, suggest

AnyPath = str | os.PathLike[str]


class HubOptions(TypedDict, total=False):
    """The arguments of `model_folder` that say where in the Hub a model is."""

    revision: str | None
    subfolder: str
    cache_dir: AnyPath | None
    token: str | bool | None
    local_files_only: bool


PLACE = "a folder or the name of a repository"  # what a source may be, for messages
_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w.-]+")  # of a user; no adapter has a name without one


def model_folder(
    source: AnyPath,
    *,
    revision: str | None = None,
    subfolder: str = "",
    cache_dir: AnyPath | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    allow_pickle: bool = False,
    weights: bool = True,
) -> str:
    """Returns the folder that contains a model's config and weights, after downloading if needed.

    Args:
        source: a folder, or a repository such as `google-bert/bert-base-uncased`.
        revision: a branch, tag or commit of the repository.
        subfolder: the path of the model in the folder or repository.
        cache_dir: a folder to use instead of the Hub's default cache.
        token: access token for private repositories; True for the one stored by `hf auth login`.
        local_files_only: whether to use only the cache.
        allow_pickle: whether to download `pytorch_model.bin` if there is no safetensors file.
        weights: whether to download weights too.

    Raises:
        SourceError: there is no such folder, repository, revision or file.
        InputError: `source`, `subfolder` or `cache_dir` is not a path.
    """
    source = path_text("source", source, PLACE)
    for name, path in (("subfolder", subfolder), ("cache_dir", cache_dir)):
        if path:
            path_text(name, path)
    if os.path.isfile(source):
        raise SourceError(f"{shown(source)}: expected a folder, found a file; pass its folder")
    if os.path.isdir(source):
        folder = os.path.join(source, subfolder) if subfolder else source
        check_settled(folder)
        if not os.path.isfile(os.path.join(folder, "config.json")):
            if os.path.isfile(os.path.join(folder, ADAPTER_CONFIG)):
                raise SourceError(
                    f"{folder}: expected a model, found an adapter (no config.json); load its base "
                    "model and call minibert.train.load_adapter(model, folder), or call "
                    "minibert.train.load_merged(folder)"
                )
            raise SourceError(f"{folder}: expected a model folder, found no config.json in it")
        return folder
    looks_like_path = (
        os.path.isabs(source) or source.startswith((".", "~")) or source.count("/") > 1
    )
    if looks_like_path or os.path.exists(source):
        raise SourceError(
            f"{shown(source)}: expected a folder or a repository of the Hub, found no such folder"
            f"{similar_folders(source)}"
        )
    options = {
        "revision": revision,
        "subfolder": subfolder or None,
        "cache_dir": cache_dir,
        "token": token,
        "local_files_only": local_files_only,
    }
    kinds = (SAFETENSORS, PICKLE) if allow_pickle else (SAFETENSORS,)
    return _fetch(source, kinds if weights else (), options)


def adapter_folder(
    source: AnyPath, *, subfolder: str = "", allow_pickle: bool = False, **options: Any
) -> str:
    """Returns the folder that contains an adapter, after downloading if needed.

    The arguments and errors are those of `model_folder`.
    """
    if isinstance(source, str) and not os.path.exists(source) and _REPOSITORY.fullmatch(source):
        kinds = (ADAPTER_TENSORS, ADAPTER_PICKLE) if allow_pickle else (ADAPTER_TENSORS,)
        options["subfolder"] = subfolder or None
        return _fetch(source, kinds, options, ADAPTER_CONFIG, ())
    if not isinstance(source, str | os.PathLike):
        raise SourceError(f"{shown(source)}: expected a folder or the name of a repository")
    return os.path.join(source, subfolder) if subfolder else os.fspath(source)


def _fetch(
    repository: str,
    kinds: tuple[str, ...],
    options: dict[str, Any],
    config: str = "config.json",
    others: tuple[str, ...] = (GENERATION, ADAPTER_CONFIG),  # `open_source` refuses an adapter
) -> str:
    from huggingface_hub import errors, hf_hub_download

    def fetch(name: str) -> str:
        return hf_hub_download(repository, name, **options)

    unreachable: list[errors.LocalEntryNotFoundError] = []

    def fetch_if_there(name: str) -> str | None:
        try:
            return fetch(name)
        except errors.LocalEntryNotFoundError as reason:  # an EntryNotFoundError without an answer
            unreachable.append(reason)
        except errors.EntryNotFoundError:
            pass
        return None

    try:
        folder = os.path.dirname(fetch(config))
        for name in others:
            fetch_if_there(name)
        unreachable.clear()  # most models have neither file, and the cache need not record that
        if not kinds:
            return folder
        for kind in kinds:
            if fetch_if_there(kind):
                return folder
            if index := fetch_if_there(f"{kind}.index.json"):
                for shard in sorted(set(read_index(index, kind)["weight_map"].values())):
                    fetch(shard)
                return folder
        if os.path.lexists(os.path.join(folder, PICKLE)):
            return folder  # `open_source` raises the error
    except errors.LocalEntryNotFoundError as reason:
        raise SourceError(
            f"{no_folder(repository)} As a repository of the Hub, it is not in the cache, and the "
            f"Hub cannot be reached ({first_line(reason)})"
        ) from None
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as reason:
        raise SourceError(
            f"{no_folder(repository)} It was not found on the Hub either ({first_line(reason)})"
        ) from None
    if unreachable:
        raise SourceError(
            f"{shown(repository)}: its weights are not in the cache, and the Hub cannot be reached "
            f"({first_line(unreachable[0])})"
        )
    raise SourceError(
        f"{shown(repository)}: expected {' or '.join(kinds)} in this repository, found no such "
        "file; to load a pickle pass allow_pickle=True"
    )


def push_folder(
    save: Callable[[str], None],
    repo_id: str,
    token: str | None,
    private: bool | None,
    commit_message: str,
    revision: str | None,
    create_pr: bool,
    *,
    exist_ok: bool = True,
    keep: Sequence[str] = (),
) -> str:
    """Uploads a folder to a repository of the Hub, in one commit.

    Args:
        save: writes the folder at a path.
        repo_id: the repository, which is created if necessary.
        token: an access token; None for the one stored by `hf auth login`.
        private: whether a new repository is private.
        commit_message: the message of the commit.
        revision: the branch to write to, which is created if necessary; None for the main one.
        create_pr: whether to open a pull request instead.
        exist_ok: whether the repository may exist already.
        keep: files of the repository that are not replaced.

    Returns:
        The URL of the commit or the pull request.

    Raises:
        TargetError: the Hub does not accept the files, or cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as home:
        folder = os.path.join(home, "model")
        save(folder)
        try:
            known = exist_ok or create_pr
            repo_id = api.create_repo(repo_id, private=private, exist_ok=known).repo_id
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            kept = [name for name in keep if api.file_exists(repo_id, name, revision=revision)]
            done = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message,
                revision=revision,
                create_pr=create_pr,
                ignore_patterns=kept,
            )
        except Exception as reason:  # huggingface_hub and its libraries raise types of their own
            raise TargetError(
                f"{shown(repo_id)}: cannot be uploaded to the Hub ({first_line(reason)})"
            ) from reason
    return done.pr_url or done.commit_url


def no_folder(source: str) -> str:
    """Returns the sentence about a source that is not a folder, and so the name of a repository."""
    return f"{shown(source)}: there is no such folder here{similar_folders(source)}."


def similar_folders(source: str) -> str:
    """Returns a hint at the existing folders whose paths are most similar; "" if there are none."""
    parent = os.path.dirname(source)
    near = []
    with contextlib.suppress(OSError), os.scandir(parent or os.curdir) as entries:
        near = [os.path.join(parent, entry.name) for entry in entries if entry.is_dir()]
    return suggest(source, near)


def first_line(reason: Exception) -> str:
    """Returns the first line of an error of another library, at most 300 characters."""
    return str(reason).strip().partition("\n")[0][:300]
