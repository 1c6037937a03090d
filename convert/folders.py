"""What surrounds the weights: where a source is, and which of its files come along."""

import os
import re

from minibert.config import GENERATION
from minibert.errors import SourceError, TargetError
from minibert.hub import model_folder
from minibert.sources import FLAX

# Tokenizer and sentence-transformers files, at the top of a model folder …
COMPANIONS = frozenset(
    """
    tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json vocab.txt
    vocab.json merges.txt sentencepiece.bpe.model chat_template.jinja
    modules.json sentence_bert_config.json config_sentence_transformers.json
    """.split()
)
# … and in the folders of a sentence-transformers module, such as 1_Pooling or 2_Dense.
MODULE_FOLDER = re.compile(r"\d+_[A-Za-z]+")
MODULE_FILES = frozenset({"config.json", "model.safetensors"})


def locate(source: str, *, revision: str | None, allow_pickle: bool) -> str:
    """Finds the folder of a source, fetching from the Hub what a conversion needs.

    Raises:
        SourceError: there is no such model.
    """
    if os.path.isdir(source):
        return model_folder(source)
    try:
        folder = model_folder(source, revision=revision, allow_pickle=allow_pickle)
    except SourceError:
        folder = _fetch_flax(source, revision)
        if folder is None:
            raise
    _fetch_companions(source, revision)
    return folder


def _fetch_flax(repository: str, revision: str | None) -> str | None:
    from huggingface_hub import errors, hf_hub_download

    try:
        return os.path.dirname(hf_hub_download(repository, FLAX, revision=revision))
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError):
        return None


def _fetch_companions(repository: str, revision: str | None) -> None:
    from huggingface_hub import errors, snapshot_download

    wanted = [GENERATION, *COMPANIONS, *(f"[0-9]*_*/{name}" for name in MODULE_FILES)]
    try:
        snapshot_download(repository, revision=revision, allow_patterns=wanted)
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError) as reason:
        raise SourceError(
            f"{repository}: its tokenizer files cannot be fetched ({reason})"
        ) from None


def companions(folder: str) -> list[str]:
    """The files of a folder that a conversion copies, by their paths inside it."""
    found = [name for name in sorted(os.listdir(folder)) if name in COMPANIONS]
    for name in sorted(os.listdir(folder)):
        inner = os.path.join(folder, name)
        if MODULE_FOLDER.fullmatch(name) and os.path.isdir(inner):
            found += [
                f"{name}/{file}" for file in sorted(os.listdir(inner)) if file in MODULE_FILES
            ]
    return [path for path in found if os.path.isfile(os.path.join(folder, path))]


def copy_companions(source: str, target: str) -> list[str]:
    """Copies a folder's companions into another; returns their paths."""
    paths = companions(source)
    for path in paths:
        destination = os.path.join(target, path)
        os.makedirs(os.path.dirname(destination), exist_ok=True)
        with open(destination, "wb") as file:
            file.write(_contents(os.path.join(source, path)))
    return paths


def _contents(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as reason:
        raise SourceError(f"{path}: cannot be read ({reason.strerror})") from None


def refuse_nested(source: str, target: str) -> None:
    """Refuses a target that is its source, or inside it, or around it.

    Raises:
        TargetError: it is.
    """
    one, other = os.path.realpath(source), os.path.realpath(target)
    if os.path.commonpath([one, other]) in (one, other):
        raise TargetError(f"{target}: is the source {source}, or inside it, or around it")
