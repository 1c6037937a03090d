"""The sentence encoder that contrastive training starts from, and the one that it writes."""

import contextlib
import copy
import dataclasses
import os
from collections.abc import Generator, Sequence
from typing import Any

from minibert.errors import ConfigError
from minibert.layers import Module
from minibert.sentence_folder import Entry, one_encoder_state, read_module
from minibert.sentence_hub import encoder_folder
from minibert.sentence_modules import Pooling, SentenceModel, token_features
from minibert.sentence_saving import save_encoder
from minibert.sentence_settings import SentenceSettings, longest, read_settings
from minibert.token_ids import make_lower_case
from minibert.train.objectives import Objective
from minibert.train.ranking import contrastive


@dataclasses.dataclass(frozen=True)
class Start:
    """What a run starts from.

    Attributes:
        model: the folder or repository of the model and its tokenizer.
        folder: the sentence-transformers folder around it; None if there is none.
        entries: the modules that its modules.json lists.
    """

    model: str
    folder: str | None = None
    entries: Sequence[Entry] = ()


@dataclasses.dataclass(frozen=True)
class Vectors:
    """How the encoder makes vectors of texts, besides its model.

    Attributes:
        chain: the modules after the model, the pooling first; they are not trained.
        settings: the folder's own, or those of a new encoder.
    """

    chain: Sequence[Module]
    settings: SentenceSettings

    def objective(self, scale: float | None) -> Objective:
        """The objective that trains the vectors that the encoder will return."""
        pooling, *others = self.chain
        assert isinstance(pooling, Pooling)
        scaled = {} if scale is None else {"scale": scale}
        return contrastive(pooling=pooling.modes, modules=others, **scaled)

    def reading(self, tokenizer: Any) -> Any:
        """The tokenizer that texts are read with; it makes them lower-case if the encoder does."""
        if self.settings.do_lower_case:
            tokenizer = copy.deepcopy(tokenizer)
            make_lower_case(tokenizer.backend_tokenizer)
        return tokenizer

    def save(self, model: Any, tokenizer: Any, folder: str) -> None:
        """Writes a sentence-transformers folder, in place of one that is there."""
        whole = SentenceModel(model, self.chain)
        save_encoder(whole, tokenizer, self.settings, folder, overwrite=True)


@contextlib.contextmanager
def open_start(source: str) -> Generator[Start]:
    """Finds the model in a sentence-transformers folder or repository, or in a plain one.

    What the block reads of it is of one state of the folder; see `one_encoder_state`.

    Raises:
        MinibertError: there is no such model, or the folder's modules are not implemented.
    """
    folder = encoder_folder(source)
    with one_encoder_state(folder) as entries:
        if entries:
            yield Start(os.path.join(folder, entries[0].path), folder, entries)
        else:
            yield Start(source)


def vectors_of(start: Start | None, pooling: str | None, model: Any, tokenizer: Any) -> Vectors:
    """How vectors are made: as the folder says; of a plain model, by a pooling alone.

    Args:
        start: what the run starts from; None for a model that is newly initialised.
        pooling: the pooling of a plain model, `mean` if it is None.
        model: the model.
        tokenizer: its tokenizer.

    Raises:
        ConfigError: a folder's pooling is contradicted, or a file of it is wrong.
        InputError: there is no such pooling.
    """
    width = token_features(model.config, "last")
    if start is None or start.folder is None:
        settings = SentenceSettings(max_seq_length=longest(model.config, tokenizer))
        return Vectors([Pooling(pooling or "mean", width)], settings)
    chain: list[Module] = []
    for entry in start.entries[1:]:
        chain.append(read_module(start.folder, entry, width))
        width = getattr(chain[-1], "out_features", width)
    modes = chain[0].modes if isinstance(chain[0], Pooling) else ()
    if pooling is not None and (pooling,) != modes:
        raise ConfigError(
            f"pooling: {pooling}, but {start.folder} pools by {', '.join(modes)}, which is what "
            "its other modules are for; leave it out"
        )
    settings = read_settings(start.folder, start.model, model.config, tokenizer, {})
    return Vectors(chain, settings)
