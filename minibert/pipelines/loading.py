"""The model and the tokenizer of a task, from one folder or repository."""

import contextlib
import inspect
import os
from collections.abc import Generator, Iterable, Mapping
from typing import Any

from minibert.auto import FAMILIES, class_by_tensors
from minibert.errors import ConfigError, SourceError, shown
from minibert.model_files import unchanged
from minibert.pretrained import PretrainedModel, load_pretrained

OPTIONS = frozenset(inspect.signature(PretrainedModel.from_pretrained).parameters) - {
    "source",
    "output_loading_info",
}
PLACE = ("revision", "subfolder", "cache_dir", "token", "local_files_only")


@contextlib.contextmanager
def one_state(source: Any, place: Mapping[str, Any]) -> Generator[None]:
    """Loads a model and its tokenizer within the block from one state of their folder, if any."""
    folder = ""
    if isinstance(source, str | os.PathLike):
        folder = os.path.join(os.fspath(source), place.get("subfolder") or "")
    with unchanged(folder) if os.path.isdir(folder) else contextlib.nullcontext():
        yield


def load_model(
    task: str, classes: tuple[type[PretrainedModel], ...], source: Any, **options: Any
) -> PretrainedModel:
    """Loads a checkpoint, whatever class it names, into the task's class of its family.

    Raises:
        ConfigError: the task has no class of that family.
        MissingHeadError: the checkpoint lacks the head.

    What else is raised is as in `PretrainedModel.from_pretrained`.
    """

    def choose(data: Any, names: Iterable[str], where: str) -> type[PretrainedModel]:
        kind = data.get("model_type") if isinstance(data, dict) else None
        found = FAMILIES.get(kind) if kind is not None else class_by_tensors(data, names)
        for cls in classes:
            if found is not None and cls.config_class is found.config_class:
                return cls
        known = " or ".join(repr(cls.config_class.model_type) for cls in classes)
        raise ConfigError(f"{where}: model_type: {task} is for {known}, found {shown(kind)}")

    return load_pretrained(choose, source, **options)[0]


def load_tokenizer(source: str | os.PathLike[str], **place: Any) -> Any:
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
    local = unchanged(source) if os.path.isdir(source) else contextlib.nullcontext()
    with local:
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **place)
        except Exception as reason:  # of whatever kind: every tokenizer class has its own
            first = str(reason).strip().partition("\n")[0][:300]
            raise SourceError(f"{source}: its tokenizer cannot be loaded ({first})") from None
    # without files AutoTokenizer makes one up, of special tokens alone
    if tokenizer.get_vocab().keys() <= set(tokenizer.all_special_tokens):
        raise SourceError(f"{source}: no tokenizer in it (tokenizer.json, vocab.txt, …)")
    return tokenizer
