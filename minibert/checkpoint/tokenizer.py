"""A folder's or repository's tokenizer, by transformers."""

import contextlib
import os
from typing import Any

from minibert.checkpoint.files import unchanged
from minibert.checkpoint.hub import AnyPath, first_line
from minibert.errors import SourceError

HUB_OPTIONS = ("revision", "subfolder", "cache_dir", "token", "local_files_only")


def load_tokenizer(source: AnyPath, **place: Any) -> Any:
    """Loads a folder's or repository's tokenizer, by transformers' `AutoTokenizer`.

    Args:
        source: a folder, or a repository of the Hub.
        place: `revision`, `subfolder`, `cache_dir`, `token`, `local_files_only`.

    Raises:
        SourceError: there is none, or it cannot be loaded.
    """
    from transformers import AutoTokenizer  # not earlier: `import minibert` stays light

    source = os.fspath(source)
    if os.path.isdir(source) and place.get("subfolder"):
        source = os.path.join(source, place.pop("subfolder"))
    with unchanged(source) if os.path.isdir(source) else contextlib.nullcontext():
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **place)
        except Exception as reason:  # of whatever kind: every tokenizer class has its own
            raise SourceError(
                f"{source}: its tokenizer cannot be loaded ({first_line(reason)})"
            ) from None
    # without files AutoTokenizer makes one up, of special tokens alone
    if tokenizer.get_vocab().keys() <= set(tokenizer.all_special_tokens):
        raise SourceError(f"{source}: no tokenizer in it (tokenizer.json, vocab.txt, …)")
    return tokenizer
