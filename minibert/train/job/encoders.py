"""The sentence encoder that contrastive training starts from, and the one that it writes."""

import contextlib
import copy
import dataclasses
import os
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from minibert.embedding.folder import Entry, one_encoder_state, read_modules
from minibert.embedding.loading import encoder_folder
from minibert.embedding.modules import Pooling, SentenceModel, token_features
from minibert.embedding.saving import save_encoder
from minibert.embedding.settings import SentenceSettings, longest, read_settings
from minibert.errors import ConfigError, UnsupportedConfigError
from minibert.models.base import PretrainedModel
from minibert.nn.layers import Module
from minibert.text.tokenizer import make_lower_case
from minibert.train.objectives.base import Objective
from minibert.train.objectives.contrastive import contrastive

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class InitialModel(NamedTuple):
    """The pretrained model that a run starts from.

    Attributes:
        model: the folder or repository that holds the model and its tokenizer.
        folder: the sentence-transformers folder around it; None if there is none.
        entries: the modules that its modules.json lists.
    """

    model: str
    folder: str | None = None
    entries: Sequence[Entry] = ()


@dataclasses.dataclass(frozen=True)
class EncoderModules:
    """The modules and settings of a sentence encoder, apart from its transformer.

    Attributes:
        chain: the modules after the transformer, the pooling first; they are not trained.
        settings: the folder's own, or those of a new encoder.
    """

    chain: Sequence[Module]
    settings: SentenceSettings

    def objective(self, scale: float | None) -> Objective:
        """Returns the contrastive objective on the embeddings that the encoder will return."""
        pooling, *others = self.chain
        assert isinstance(pooling, Pooling)
        scaled = {} if scale is None else {"scale": scale}
        return contrastive(pooling=pooling.modes, modules=others, **scaled)

    def training_tokenizer(self, tokenizer: "PreTrainedTokenizerBase") -> Any:
        """Returns the tokenizer to train with; it lowercases texts if the encoder does."""
        if self.settings.do_lower_case:
            tokenizer = copy.deepcopy(tokenizer)
            make_lower_case(tokenizer.backend_tokenizer)
        return tokenizer

    def save(
        self, model: PretrainedModel, tokenizer: "PreTrainedTokenizerBase", folder: str
    ) -> None:
        """Writes a sentence-transformers folder, replacing the encoder that is in it."""
        save_encoder(
            SentenceModel(model, self.chain), tokenizer, self.settings, folder, overwrite=True
        )


@contextlib.contextmanager
def open_initial_model(source: str) -> Generator[InitialModel]:
    """Yields the model of a sentence-transformers folder or repository, or of a plain one.

    The block reads the folder as one state; see `one_encoder_state`.

    Raises:
        MinibertError: there is no such model, or the folder's modules are not implemented.
    """
    folder = encoder_folder(source)
    with one_encoder_state(folder) as entries:
        if entries:
            yield InitialModel(os.path.join(folder, entries[0].path), folder, entries)
        else:
            yield InitialModel(source)


def encoder_modules(
    start: InitialModel | None,
    pooling: str | None,
    model: PretrainedModel,
    tokenizer: "PreTrainedTokenizerBase",
) -> EncoderModules:
    """Reads the modules of the folder that a run starts from; a pooling alone for a plain model.

    Args:
        start: the model that the run starts from; None for one that is newly initialised.
        pooling: the pooling of a plain model, `mean` if it is None.
        model: the model.
        tokenizer: its tokenizer.

    Raises:
        ConfigError: `pooling` is not the folder's, or a file of the folder is wrong.
        InputError: there is no such pooling.
    """
    if start is None or start.folder is None:
        settings = SentenceSettings(max_seq_length=longest(model.config, tokenizer))
        width = token_features(model.config, "last")
        return EncoderModules([Pooling(pooling or "mean", width)], settings)
    chain = read_modules(start.folder, start.entries, model.config)
    if not isinstance(chain[0], Pooling):
        raise UnsupportedConfigError(
            f"{start.folder}: expected a Pooling directly after the Transformer, found a "
            f"{start.entries[1].kind}; training does not apply modules before the Pooling"
        )
    modes = chain[0].modes
    if pooling is not None and (pooling,) != modes:
        raise ConfigError(
            f"pooling: expected {', '.join(modes)} or nothing, because the other modules of "
            f"{start.folder} depend on its pooling; found {pooling}"
        )
    settings = read_settings(start.folder, start.model, model.config, tokenizer, {})
    return EncoderModules(chain, settings)
