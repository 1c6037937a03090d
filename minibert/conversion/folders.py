"""The folder of a conversion's source, and the files that are copied along with the weights."""

import os
import re
import stat
from collections.abc import Iterator

from minibert.checkpoint.files import (
    BODY_CONFIGS,
    GENERATION,
    MODULE_FOLDER,
    MODULES,
    MOST_BYTES,
    TOKENIZER_FILES,
    TOP_CONFIG,
    check_link,
)
from minibert.checkpoint.hub import AnyPath, model_folder
from minibert.checkpoint.sources import FLAX, has_flax
from minibert.errors import SourceError, TargetError, reading, writing

# Tokenizer and sentence-transformers files, at the top of a model folder …
COMPANIONS = frozenset((*TOKENIZER_FILES, MODULES, *BODY_CONFIGS, TOP_CONFIG))
# … and in the folders of a sentence-transformers module, such as 1_Pooling or 2_Dense.
MODULE_FILES = frozenset({"config.json", "model.safetensors"})
BLOCK = 1 << 20


def locate(source: AnyPath, *, revision: str | None, allow_pickle: bool) -> str:
    """Finds the folder of a source, fetching from the Hub what a conversion needs.

    Raises:
        SourceError: there is no such model.
    """
    if not isinstance(source, str) or os.path.isdir(source):
        return model_folder(source)
    from huggingface_hub import errors, snapshot_download

    try:
        folder = model_folder(source, revision=revision, allow_pickle=allow_pickle)
    except SourceError as reason:
        names = ["config.json", FLAX, f"{FLAX}.index.json", "flax_model-*-of-*.msgpack"]
        try:
            folder = snapshot_download(source, revision=revision, allow_patterns=names)
        except (errors.HfHubHTTPError, errors.HFValidationError, OSError):
            raise reason from None
        if not has_flax(folder):
            raise
    wanted = [GENERATION, *COMPANIONS, *(f"[0-9]*_*/{name}" for name in MODULE_FILES)]
    try:
        snapshot_download(source, revision=revision, allow_patterns=wanted)
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError) as reason:
        raise SourceError(f"{source}: its tokenizer files cannot be fetched ({reason})") from None
    return folder


def companions(folder: str) -> list[str]:
    """Returns the paths, inside a folder, of the files that a conversion copies."""
    names = sorted(os.listdir(folder))
    found = [name for name in names if name in COMPANIONS]
    for name in names:
        inner = os.path.join(folder, name)
        if re.fullmatch(MODULE_FOLDER, name) and os.path.isdir(inner):
            found += [
                f"{name}/{file}" for file in sorted(os.listdir(inner)) if file in MODULE_FILES
            ]
    return found


def check_links(source: str) -> None:
    """Refuses a source in which a file that is copied or written back is a link out of the folder.

    Raises:
        SourceError: there is such a link.
    """
    for path in ["config.json", GENERATION, *companions(source)]:
        check_link(source, path)


def copy_companions(source: str, target: str) -> list[str]:
    """Copies a folder's companions into another; returns their paths.

    Raises:
        SourceError: a file is a link out of the folder, is not a regular file, or is too large.
        TargetError: a file cannot be written.
    """
    paths = companions(source)
    for path in paths:
        destination = os.path.join(target, path)
        blocks = _blocks(check_link(source, path), os.path.join(source, path))
        with writing(destination):
            os.makedirs(os.path.dirname(destination), exist_ok=True)
            with open(destination, "xb") as file:
                file.writelines(blocks)
    return paths


def _blocks(path: str, where: str) -> Iterator[bytes]:
    """Reads a regular file of at most `MOST_BYTES` block by block."""
    left = MOST_BYTES
    with reading(where):
        # O_NONBLOCK: opening a FIFO must not block
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        with open(file, "rb") as source:
            state = os.fstat(file)
            if not stat.S_ISREG(state.st_mode):
                raise SourceError(f"{where}: expected a regular file")
            if state.st_size > left:
                raise SourceError(f"{where}: {state.st_size:,} bytes; at most {left:,} are copied")
            while left > 0 and (block := source.read(min(BLOCK, left))):
                left -= len(block)
                yield block


def refuse_nested(source: str, target: str) -> None:
    """Refuses a target that is its source, is inside it, or contains it.

    Raises:
        TargetError: it is one of these.
    """
    one, other = os.path.realpath(source), os.path.realpath(target)
    if os.path.commonpath([one, other]) in (one, other):
        raise TargetError(f"{target}: is the source {source}, is inside it, or contains it")
