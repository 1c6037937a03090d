"""Loading the tokenizer of a folder or repository with transformers."""

import contextlib
import importlib.util
import os
from typing import Any

from minibert.checkpoint.files import MOST_BYTES, TOKENIZER_FILES, unchanged
from minibert.checkpoint.hub import PLACE, AnyPath, first_line
from minibert.core.paths import open_file, path_text
from minibert.errors import SourceError, shown
from minibert.text.tokenizer import panics_as_errors

HUB_OPTIONS = ("revision", "subfolder", "cache_dir", "token", "local_files_only")


def load_tokenizer(source: AnyPath, **place: Any) -> Any:
    """Loads the tokenizer of a folder or repository with transformers' `AutoTokenizer`.

    Args:
        source: a folder, or a repository of the Hub.
        place: `revision`, `subfolder`, `cache_dir`, `token`, `local_files_only`.

    Raises:
        InputError: `source` is not a path.
        SourceError: there is no tokenizer, or it cannot be loaded, or its ids cannot be those of a
            text.
    """
    from transformers import AutoTokenizer  # imported here to keep `import minibert` fast

    source = path_text("source", source, PLACE)
    if os.path.isdir(source) and place.get("subfolder"):
        source = os.path.join(source, place.pop("subfolder"))
    with unchanged(source) if os.path.isdir(source) else contextlib.nullcontext():
        _check_files(source)
        try:
            with panics_as_errors():
                tokenizer: Any = AutoTokenizer.from_pretrained(
                    source, trust_remote_code=False, **place
                )
        except Exception as reason:  # every tokenizer class raises its own types
            why = _of_sentencepiece(reason) or first_line(reason)
            raise SourceError(f"{source}: its tokenizer cannot be loaded ({why})") from None
    # without files AutoTokenizer returns a tokenizer that has special tokens only
    if tokenizer.get_vocab().keys() <= set(tokenizer.all_special_tokens):
        raise SourceError(
            f"{source}: expected a tokenizer (tokenizer.json, vocab.txt, …), found none"
        )
    _check_encoding(tokenizer, source)
    return tokenizer


def _of_sentencepiece(reason: Exception) -> str:
    """Returns what is wrong with a SentencePiece model; empty if that is not the reason.

    Without the packages, and if it is damaged, transformers takes it for a file of tiktoken.
    """
    if not any(name in f"{reason}" for name in ("SentencePiece", "sentencepiece", "tiktoken")):
        return ""
    with contextlib.suppress(ModuleNotFoundError):  # of `google`
        if all(importlib.util.find_spec(name) for name in ("sentencepiece", "google.protobuf")):
            return "its SentencePiece model is damaged" if "tiktoken" in f"{reason}" else ""
    return (
        "a SentencePiece model needs sentencepiece and protobuf; "
        "pip install 'minibert-jax[sentencepiece]'"
    )


def _check_files(folder: str) -> None:
    """Refuses a file that transformers would wait for, or that does not fit in memory."""
    for path in (os.path.join(folder, name) for name in TOKENIZER_FILES):
        if os.path.exists(path):
            with open_file(path) as file:
                size = os.fstat(file.fileno()).st_size
            if size > MOST_BYTES:
                raise SourceError(f"{path}: {size:,} bytes; expected at most {MOST_BYTES:,}")


def _check_encoding(tokenizer: Any, source: str) -> None:
    """Encodes a text, and checks the ids and segments that the tokenizer adds to it."""
    if not tokenizer.is_fast:
        return
    try:
        with panics_as_errors():
            found = tokenizer.backend_tokenizer.encode("a")
    except ValueError as reason:
        raise SourceError(
            f"{source}: its tokenizer cannot encode a text ({first_line(reason)})"
        ) from None
    except Exception:  # a vocabulary may lack this text
        return
    unknown = [i for i in found.ids if tokenizer.backend_tokenizer.id_to_token(i) is None]
    if unknown:
        raise SourceError(
            f"{source}: its tokenizer adds the id {unknown[0]} to a text; expected one of its "
            f"{tokenizer.backend_tokenizer.get_vocab_size():,} tokens"
        )
    if any(found.type_ids):
        raise SourceError(
            f"{source}: its tokenizer gives a single text the segments {shown(found.type_ids)}; "
            "expected 0 only"
        )
