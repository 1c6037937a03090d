"""Loading of sentence encoders from a folder or a repository of the Hub."""

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
from minibert.checkpoint.hub import PLACE, first_line, model_folder, no_folder
from minibert.checkpoint.sources import PICKLE, SAFETENSORS
from minibert.checkpoint.tokenizer import load_tokenizer
from minibert.core.paths import path_text
from minibert.embedding.folder import one_encoder_state, read_entries, read_modules
from minibert.embedding.modules import Normalize, Pooling, SentenceModel, token_features
from minibert.embedding.settings import (
    SentenceSettings,
    checked_given,
    new_settings,
    read_settings,
)
from minibert.errors import InputError, SourceError
from minibert.models.registry import load_model, task_classes
from minibert.nn.layers import Module


def encoder_folder(
    source: str | os.PathLike[str], *, subfolder: str = "", allow_pickle: bool = False, **where: Any
) -> str:
    """Returns the folder of a sentence encoder, downloading its files if necessary.

    Args:
        source: a folder, or a repository of the Hub.
        subfolder: the encoder's path inside it.
        allow_pickle: whether to fetch pickles where there is no safetensors file.
        where: other arguments of `hub.model_folder`.

    Raises:
        InputError: if `source` is not a path.
        SourceError: if there is no such folder, repository or file.
        ConfigError: if its modules.json is invalid.
    """
    path = os.path.expanduser(path_text("source", source, PLACE))
    if os.path.isdir(path):
        folder = os.path.join(path, subfolder) if subfolder else path
        check_settled(folder)
        if not os.path.isfile(os.path.join(folder, MODULES)):
            model_folder(path, subfolder=subfolder)  # raises an error if it is no model folder
        return folder
    prefix = f"{subfolder.strip('/')}/" if subfolder else ""
    if os.path.exists(path) or os.path.isabs(path) or path.count("/") > 1:
        model_folder(path)  # raises the error
    folder = _fetch(path, prefix, (MODULES, TOP_CONFIG), where)
    if not os.path.isfile(os.path.join(folder, MODULES)):
        _fetch(path, prefix, TOKENIZER_FILES, where)
        return model_folder(path, subfolder=subfolder, allow_pickle=allow_pickle, **where)
    body, *others = read_entries(folder)
    files = (SAFETENSORS, PICKLE) if allow_pickle else (SAFETENSORS,)
    names = [os.path.join(body.path, name) for name in (*TOKENIZER_FILES, *BODY_CONFIGS)]
    names += [os.path.join(one.path, name) for one in others for name in ("config.json", *files)]
    _fetch(path, prefix, names, where)
    inner = f"{prefix}{body.path}".rstrip("/")
    model_folder(path, subfolder=inner, allow_pickle=allow_pickle, **where)
    return folder


def _fetch(repository: str, prefix: str, names: Sequence[str], where: dict[str, Any]) -> str:
    """Fetches the files that exist and returns the folder `prefix` of the snapshot."""
    from huggingface_hub import errors, snapshot_download

    try:
        patterns = [f"{prefix}{name}" for name in names]
        return os.path.join(snapshot_download(repository, allow_patterns=patterns, **where), prefix)
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as reason:
        raise SourceError(
            f"{no_folder(repository)} It was not found on the Hub either ({first_line(reason)})"
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
        where: other arguments of `hub.model_folder`.
        weights: `dtype`, `param_dtype` and `allow_pickle`.

    The other arguments and the errors are those of `SentenceEncoder.from_pretrained`.
    """
    settings = checked_given(settings)
    folder = encoder_folder(source, allow_pickle=weights["allow_pickle"], **where)
    with one_encoder_state(folder) as entries:
        if not entries and pooling is None:
            raise InputError(
                f"pooling: required, as {folder} has no {MODULES} that specifies it; "
                "pooling='mean' is the default of sentence-transformers"
            ).advising("pooling='mean'")
        if entries and (pooling is not None or normalize is not None):
            name = "normalize" if pooling is None else "pooling"
            raise InputError(f"{name}: expected None, as {folder} specifies it in {MODULES}")
        home = os.path.join(folder, entries[0].path) if entries else folder
        tokenizer, classes = load_tokenizer(home), task_classes("feature-extraction")
        model: Any = load_model("a sentence encoder", classes, home, **weights)
        if pooling is not None:
            width = token_features(model.config, layers)
            found = new_settings(model.config, tokenizer, settings)
            chain: list[Module] = [Pooling(pooling, width), *[Normalize()] * bool(normalize)]
            return SentenceModel(model, chain, layers), tokenizer, found
        found = read_settings(folder, home, model.config, tokenizer, settings)
        chain = read_modules(folder, entries, model.config, layers=layers, **weights)
        return SentenceModel(model, chain, layers), tokenizer, found
