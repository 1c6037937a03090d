"""Loading the tokenizer of a folder or repository with transformers."""

import contextlib
import os
from typing import Any

from minibert.checkpoint.files import unchanged
from minibert.checkpoint.hub import AnyPath, first_line
from minibert.errors import SourceError

HUB_OPTIONS = ("revision", "subfolder", "cache_dir", "token", "local_files_only")


def load_tokenizer(source: AnyPath, **place: Any) -> Any:
    """Loads the tokenizer of a folder or repository with transformers' `AutoTokenizer`.

    Args:
        source: a folder, or a repository of the Hub.
        place: `revision`, `subfolder`, `cache_dir`, `token`, `local_files_only`.

    Raises:
        SourceError: there is no tokenizer, or it cannot be loaded.
    """
    from transformers import AutoTokenizer  # imported here to keep `import minibert` fast

    source = os.fspath(source)
    if os.path.isdir(source) and place.get("subfolder"):
        source = os.path.join(source, place.pop("subfolder"))
    with unchanged(source) if os.path.isdir(source) else contextlib.nullcontext():
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **place)
        except Exception as reason:  # every tokenizer class raises its own types
            raise SourceError(
                f"{source}: its tokenizer cannot be loaded ({first_line(reason)})"
            ) from None
    # without files AutoTokenizer returns a tokenizer that has special tokens only
    if tokenizer.get_vocab().keys() <= set(tokenizer.all_special_tokens):
        raise SourceError(
            f"{source}: expected a tokenizer (tokenizer.json, vocab.txt, …), found none"
        )
    return tokenizer
