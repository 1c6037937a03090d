"""The files of a model's folder: which of them belong to the model, and consistent reading.

Saving replaces or removes the paths that `model_paths`, `encoder_paths` or `adapter_paths` returns,
and nothing else (see `atomic_folder`); loading checks that none of these files changed during the
load.
"""

import contextlib
import os
import pathlib
import re
import time
from collections.abc import Generator, Mapping
from typing import Any

from minibert.core.atomic import is_unsettled, matching_files
from minibert.core.strict_json import read_json
from minibert.errors import (
    MinibertError,
    SourceError,
    TargetError,
    UnsupportedConfigError,
    shown,
)

GENERATION = "generation_config.json"  # next to the config.json of a decoder
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_TENSORS = "adapter_model.safetensors"
ADAPTER_PICKLE = "adapter_model.bin"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.model",
    "chat_template.jinja",
)
MOST_BYTES = 1 << 30  # of a file of a tokenizer or an encoder other than weights
# sentence-transformers' names of the file with a transformer's settings, the newest first.
BODY_CONFIGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
MODULES = "modules.json"
TOP_CONFIG = "config_sentence_transformers.json"
MODEL_CARD = "README.md"  # it belongs to the user: a save writes it only where there is none
SAVE_WAIT = 1.0  # seconds that loading waits for a save to exchange files, which takes milliseconds
MODULE_FOLDER = r"\d+_[A-Za-z]+"
# The modules of sentence-transformers that are read or written here.
MODULE_KINDS = (
    "Transformer",
    "WeightedLayerPooling",
    "Pooling",
    "Dense",
    "LayerNorm",
    "Dropout",
    "Normalize",
)
ORBAX = "orbax"
ORBAX_MARKERS = ("_METADATA", "_CHECKPOINT_METADATA")  # Orbax writes both into every checkpoint


def _any(names: tuple[str, ...]) -> str:
    return "|".join(map(re.escape, names))


# Variants (`model.fp16.safetensors`), shards and indices, as transformers names them.
_WEIGHTS = "|".join(
    rf"{stem}(\.[\w-]+)?(-\d{{5}}-of-\d{{5}})?\.{ending}|{stem}\.{ending}\.index(\.[\w-]+)?\.json"
    for stem, ending in (
        ("model", "safetensors"),
        ("pytorch_model", "bin"),
        ("tf_model", "h5"),
        ("flax_model", "msgpack"),
    )
)
_ADAPTER = rf"{re.escape(ADAPTER_CONFIG)}|adapter_model\.(safetensors|bin)"
# parity.json describes the weights next to it and is replaced with them.
_MODEL = rf"config\.json|generation_config\.json|parity\.json|{_ADAPTER}|{_WEIGHTS}"
_TOKENIZER = _any(TOKENIZER_FILES)
_BODY = rf"{_MODEL}|{_TOKENIZER}|{_any(BODY_CONFIGS)}"

_MODEL_PATHS, _ADAPTER_PATHS = re.compile(_MODEL), re.compile(_ADAPTER)
_ENCODER_PATHS = re.compile(rf"{_any((MODULES, TOP_CONFIG))}|({MODULE_FOLDER}/)?({_BODY})")
# Files that loading may read in a folder itself; shards may have any name.
_READ = re.compile(rf"{_any((MODULES, TOP_CONFIG))}|{_BODY}|{ORBAX}/|[^/]*\.(safetensors|bin)")
# SHA or ETag (the Hub's caches), MD5 without its first two digits (DVC), or a key of git-annex.
_CONTENT_ADDRESS = re.compile(r"([A-Z0-9_]+(-[sm]\d+)*--)?[0-9a-f]{30,128}(\.\w+)*")
# Text files that a later save writes back, unlike files of weights, which are parsed strictly.
_COPIED = re.compile(
    rf"{_any((MODULES, TOP_CONFIG, ADAPTER_CONFIG))}|(generation_)?config\.json|{_TOKENIZER}|"
    rf"{_any(BODY_CONFIGS)}"
)


def model_paths(folder: str) -> list[str]:
    """Returns the paths that transformers or this library loads as a folder's config and weights.

    Raises:
        TargetError: `orbax/` exists and is not an Orbax checkpoint.
    """
    return matching_files(folder, _MODEL_PATHS) + _orbax_paths(folder)


def adapter_paths(folder: str) -> list[str]:
    """Returns the paths that PEFT or this library loads as an adapter."""
    return matching_files(folder, _ADAPTER_PATHS)


def encoder_paths(folder: str) -> list[str]:
    """Returns the paths of a model, its tokenizer and the files of sentence-transformers.

    The folder of a module belongs to the encoder if modules.json names it. Without a readable
    modules.json, its name must be that of a module that this library reads or writes.

    Raises:
        TargetError: `orbax/` exists and is not an Orbax checkpoint.
    """
    try:
        entries = read_json(os.path.join(folder, MODULES))
        modules = {os.path.normpath(entry["path"]) for entry in entries}
    except (MinibertError, LookupError, TypeError):
        modules = None

    def is_module(name: str) -> bool:
        return name.partition("_")[2] in MODULE_KINDS if modules is None else name in modules

    found = [
        path
        for path in matching_files(folder, _ENCODER_PATHS)
        if "/" not in path or is_module(path.partition("/")[0])
    ]
    return found + _orbax_paths(folder)


def _orbax_paths(folder: str) -> list[str]:
    path = os.path.join(folder, ORBAX)
    if not os.path.isdir(path) or os.path.islink(path):
        return []
    if not any(os.path.isfile(os.path.join(path, name)) for name in ORBAX_MARKERS):
        raise TargetError(
            f"{path}: expected an Orbax checkpoint, found a folder without "
            f"{' or '.join(ORBAX_MARKERS)}; move it elsewhere, or choose another target"
        )
    return [ORBAX]


@contextlib.contextmanager
def unchanged(folder: str) -> Generator[None]:
    """Ensures that the block reads a folder in one state, that of a single save.

    Subfolders are not included, except for `orbax`. A snapshot in the Hub's cache never changes.

    Raises:
        SourceError: a file that loading may read was written, replaced, added or removed in the
            block; this replaces any other error of the block, which may be a consequence. Or a text
            file is a link out of the folder that `check_link` refuses.
    """
    home = pathlib.Path(os.path.realpath(folder))
    check_settled(folder)
    for path in matching_files(folder, _COPIED) if home.is_dir() else []:
        check_link(folder, path, loading=True)
    if (blobs := hub_blobs(home)) is not None and blobs.is_dir():
        yield
        return
    before = _state(folder)
    try:
        yield
    except MinibertError as reason:
        _compare(folder, before, reason)
        raise
    _compare(folder, before, None)


@contextlib.contextmanager
def one_state(source: object, place: Mapping[str, Any]) -> Generator[None]:
    """Ensures that the block loads a model and its tokenizer in one state of their folder."""
    folder = ""
    if isinstance(source, str | os.PathLike):
        folder = os.path.join(os.fspath(source), place.get("subfolder") or "")
    with unchanged(folder) if os.path.isdir(folder) else contextlib.nullcontext():
        yield


def check_settled(folder: str) -> None:
    """Waits until no save is exchanging the files of a folder.

    Raises:
        SourceError: a save does not finish in time; it was probably interrupted.
    """
    end = time.monotonic() + SAVE_WAIT
    while is_unsettled(folder):
        if time.monotonic() < end:
            time.sleep(0.01)
            continue
        raise SourceError(
            f"{folder}: expected a complete folder, found one that is being saved or whose last "
            "save was interrupted; load it again. If no process is saving, save into it again: "
            "that first restores the files in .minibert-old-… or completes those in "
            ".minibert-put-…"
        )


State = dict[str, tuple[int, ...] | None]


def _state(folder: str) -> State:
    """Returns the identity of each file by its path inside the folder; None if it is missing."""
    check_settled(folder)
    found: State = {}
    with contextlib.suppress(OSError):
        for path in matching_files(folder, _READ):
            whole = os.path.join(folder, path)
            inner = [
                os.path.join(root, name) for root, _, names in os.walk(whole) for name in names
            ]
            for file in inner if os.path.isdir(whole) else [whole]:
                found[os.path.relpath(file, folder)] = _identity(file)
    return found


def _identity(path: str) -> tuple[int, ...] | None:
    try:
        state = os.stat(path)
    except OSError:
        return None
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns


def _compare(folder: str, before: State, reason: Exception | None) -> None:
    after = _state(folder)
    if after != before:
        names = sorted(n for n in before | after if before.get(n, ()) != after.get(n, ()))
        few = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        raise SourceError(
            f"{folder}: {few} changed while the folder was read, so that files of two saves may "
            "have been mixed; load it again"
        ) from reason


def refuse_adapter(folder: str) -> None:
    """Refuses a folder that contains an adapter next to a model.

    Raises:
        UnsupportedConfigError: there is an adapter. transformers with PEFT installed applies it.
    """
    path = os.path.join(folder, ADAPTER_CONFIG)
    if os.path.lexists(path):
        raise UnsupportedConfigError(
            f"{path}: expected no adapter next to the weights (transformers applies it, minibert "
            f"does not). Move {ADAPTER_CONFIG} and {ADAPTER_TENSORS} to a folder of their own, "
            "load the model, and call minibert.train.load_adapter(model, folder) and "
            "minibert.train.merge"
        )


def check_link(folder: str, path: str, *, loading: bool = False) -> str:
    """Resolves a file that may be a link, and refuses a link out of its folder.

    The files of a snapshot in the Hub's cache are links to its `blobs`, which are accepted.

    Args:
        folder: the model's folder.
        path: the path of the file inside it.
        loading: whether to accept links out of the folder that are common for model files: to a
            file of the same name, or to a content-addressed one. A link to a file of any other
            name could copy a file unrelated to the model into the next save.

    Returns:
        The path of the file itself.

    Raises:
        SourceError: the link points out of the folder.
    """
    home = pathlib.Path(os.path.realpath(folder))
    whole = os.path.join(folder, path)
    real = pathlib.Path(os.path.realpath(whole))
    inside = real.is_relative_to(home) or real.parent == hub_blobs(home)
    same_name = real.name == os.path.basename(path)
    if inside or (loading and (same_name or is_content_addressed(real))):
        return str(real)
    raise SourceError(
        f"{whole}: is a link to {shown(str(real))}, outside of the folder, which is not followed; "
        "replace the link with the file itself"
    )


def is_content_addressed(real: pathlib.Path) -> bool:
    """Returns whether a path is a regular file in a store that names files by their digests."""
    return _CONTENT_ADDRESS.fullmatch(real.name) is not None and real.is_file()


def hub_blobs(home: pathlib.Path) -> pathlib.Path | None:
    """Returns the folder to which the files of a snapshot in the Hub's cache link; else None."""
    for revision in (home, *home.parents):
        if revision.parent.name == "snapshots":
            return revision.parent.parent / "blobs"
    return None
