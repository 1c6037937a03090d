"""The settings of a sentence encoder as attributes, and comparison by its similarity function."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Unpack, cast

import numpy as np

from minibert.core.checks import flag
from minibert.core.types import ArrayLike
from minibert.embedding.arguments import SearchOptions
from minibert.embedding.modules import Pooling, SentenceModel
from minibert.embedding.settings import SentenceSettings
from minibert.embedding.similarity import semantic_search, similarity, similarity_pairwise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class EncoderProperties:
    """The part of `SentenceEncoder` that needs only its settings."""

    model: SentenceModel
    tokenizer: "PreTrainedTokenizerBase"
    settings: SentenceSettings

    def _set_up(
        self, model: SentenceModel, tokenizer: "PreTrainedTokenizerBase", settings: SentenceSettings
    ) -> None:
        raise NotImplementedError

    @property
    def max_seq_length(self) -> int:
        """The maximum number of tokens of a text, special tokens included. It can be set."""
        return self.settings.max_seq_length

    @max_seq_length.setter
    def max_seq_length(self, length: int) -> None:
        settings = dataclasses.replace(self.settings, max_seq_length=length)
        self._set_up(self.model, self.tokenizer, settings)

    @property
    def prompts(self) -> Mapping[str, str]:
        """The prompts by name. The whole mapping can be set."""
        return self.settings.prompts

    @prompts.setter
    def prompts(self, prompts: Mapping[str, str | None]) -> None:
        self._change(prompts=prompts)

    @property
    def default_prompt_name(self) -> str | None:
        """The name of the prompt for calls that specify none. It can be set."""
        return self.settings.default_prompt_name

    @default_prompt_name.setter
    def default_prompt_name(self, name: str | None) -> None:
        self._change(default_prompt_name=name)

    @property
    def truncate_dim(self) -> int | None:
        """The number of dimensions of a vector to keep; None for all. It can be set."""
        return self.settings.truncate_dim

    @truncate_dim.setter
    def truncate_dim(self, dim: int | None) -> None:
        self._change(truncate_dim=dim)

    @property
    def similarity_fn_name(self) -> str:
        """The name of the similarity function. It can be set; None means cosine."""
        return self.settings.similarity_fn_name

    @similarity_fn_name.setter
    def similarity_fn_name(self, name: str | None) -> None:
        self._change(similarity_fn_name="cosine" if name is None else name)

    def _change(self, **fields: Any) -> None:
        """Replaces fields of the settings that do not concern the reading of texts."""
        settings = dataclasses.replace(self.settings, **fields)
        settings.check_fits(self.model.config.max_tokens, self.model.out_features)
        self.settings: SentenceSettings = settings

    def set_pooling_include_prompt(self, include_prompt: bool) -> None:
        """Sets whether the tokens of prompts are pooled too."""
        chain, place = list(cast(Any, self.model.chain)), self.model.pooling_place
        include = flag("include_prompt", include_prompt)
        chain[place] = Pooling(chain[place].modes, chain[place].in_features, include)
        model = SentenceModel(self.model.transformer, chain, self.model.layers)
        self._set_up(model, self.tokenizer, self.settings)

    def get_embedding_dimension(self) -> int:
        """Returns the number of dimensions of a vector."""
        dim = self.settings.truncate_dim
        return self.model.out_features if dim is None else min(dim, self.model.out_features)

    def get_sentence_embedding_dimension(self) -> int:
        """Returns the same as `get_embedding_dimension`, of which it is the older name."""
        return self.get_embedding_dimension()

    def similarity(self, one: ArrayLike, other: ArrayLike) -> np.ndarray:
        """Returns the similarity of each of the first vectors to each of the second."""
        return similarity(one, other, self.similarity_fn_name)

    def similarity_pairwise(self, one: ArrayLike, other: ArrayLike) -> np.ndarray:
        """Returns the similarity of each pair of vectors, `(texts,)`."""
        return similarity_pairwise(one, other, self.similarity_fn_name)

    def semantic_search(
        self, queries: ArrayLike, corpus: ArrayLike, **options: Unpack[SearchOptions]
    ) -> list[list[dict[str, int | float]]]:
        """The corpus vectors most similar to each query; see `similarity.semantic_search`."""
        options.setdefault("score_function", self.similarity_fn_name)
        return semantic_search(queries, corpus, **options)
