"""Sentence embeddings: vectors of texts, as sentence-transformers computes them.

Reimers & Gurevych, "Sentence-BERT", arXiv:1908.10084. Names, arguments and folders are those of
sentence-transformers' `SentenceTransformer`. A text's vector does not depend on other texts: rows
are padded on the right, even if the tokenizer pads on the left.
"""

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack, cast, overload

import jax
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from minibert.checkpoint.files import MODEL_CARD
from minibert.checkpoint.hub import push_folder
from minibert.core.checks import flag, whole
from minibert.core.types import ArrayLike, Texts
from minibert.embedding.arguments import (
    ELSEWHERE,
    EncodeOptions,
    Settings,
    device_of,
)
from minibert.embedding.encoding import EncodeRequest, Run
from minibert.embedding.loading import load_encoder
from minibert.embedding.modules import Dense, Normalize, Pooling, SentenceModel, token_features
from minibert.embedding.properties import EncoderProperties
from minibert.embedding.saving import save_encoder
from minibert.embedding.settings import (
    DOCUMENT_PROMPTS,
    QUERY_PROMPTS,
    SentenceSettings,
    new_settings,
)
from minibert.errors import InputError, shown
from minibert.models.base import PretrainedModel
from minibert.models.compilation import Programs, check_evaluation
from minibert.nn.layers import Module
from minibert.sharding.placement import committed_device
from minibert.text.batching import check_budget, check_width
from minibert.text.tokenizer import TokenReader, sentence_list

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Encoder = TypeVar("Encoder", bound="SentenceEncoder")
Call = TypeVar("Call")


def typed_as(call: Call) -> Callable[[Callable[..., Any]], Call]:
    """Gives a function the type of another one with the same arguments, for type checkers."""
    return lambda own: cast(Call, own)


class SentenceEncoder(EncoderProperties):
    """A sentence encoder: a model, its tokenizer, and the modules that pool tokens to one vector.

    Args:
        model: a bare model, such as a `BertModel`, in evaluation mode.
        tokenizer: a tokenizer of transformers.
        pooling: one or more names of `pooling.POOLINGS`; the results of several are concatenated.
        include_prompt: whether to pool the tokens of prompts too.
        dense: one or more `Dense` layers, applied after pooling.
        normalize: whether to scale vectors to length 1.
        layers: the hidden states from which token vectors are computed, a name of
            `pooling.LAYERS`.
        modules: all modules after the transformer, in order, in place of `pooling`,
            `include_prompt`, `dense` and `normalize`; see `SentenceModel`. They are switched to
            evaluation mode.
        settings: fields of `SentenceSettings`: `prompts`, `default_prompt_name`, …. Texts are
            truncated to `max_seq_length` tokens, by default the maximum of tokenizer and model.

    Attributes:
        model: the `SentenceModel`.
        tokenizer: the tokenizer.
        settings: a `SentenceSettings`.
        truncated: the number of texts that the last `encode` truncated to `max_seq_length`.

    Raises:
        InputError: if an argument is invalid, or arguments do not fit each other.
    """

    def __init__(
        self,
        model: PretrainedModel,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        pooling: str | Sequence[str] = "mean",
        include_prompt: bool = True,
        dense: Dense | Sequence[Dense] = (),
        normalize: bool = False,
        layers: str = "last",
        modules: Sequence[Module] | None = None,
        **settings: Unpack[Settings],
    ):
        dense = (dense,) if isinstance(dense, Dense) else tuple(dense)
        if not getattr(model, "is_trunk", False):
            found = shown(type(model).__name__)
            raise InputError(f"model: expected a bare model, such as a BertModel; found {found}")
        width = token_features(model.config, layers)
        chain = [Pooling(pooling, width, include_prompt), *dense, *[Normalize()] * bool(normalize)]
        if modules is not None:
            if (pooling, include_prompt, len(chain)) != ("mean", True, 1):
                raise InputError(
                    "modules: expected None with pooling, include_prompt, dense or normalize, "
                    "which it replaces"
                )
            listed = isinstance(modules, list | tuple)
            if not listed or not all(isinstance(module, Module) for module in modules):
                raise InputError(f"modules: expected a list of modules, found {shown(modules)}")
            chain = [module.eval() for module in modules]
        found = new_settings(model.config, tokenizer, settings)
        self._set_up(SentenceModel(model, chain, layers), tokenizer, found)

    def _set_up(
        self, model: SentenceModel, tokenizer: "PreTrainedTokenizerBase", settings: SentenceSettings
    ) -> None:
        check_evaluation(model)
        settings.check_fits(model.config.max_tokens, model.out_features)
        self._reader = TokenReader(tokenizer, settings.max_seq_length, settings.do_lower_case)
        self._programs = Programs(model)
        self._device = committed_device(self._programs.leaves[0])
        self.model: SentenceModel = model
        self.tokenizer: PreTrainedTokenizerBase = tokenizer
        self.settings: SentenceSettings = settings
        self.truncated = 0

    def _move(self, device: jax.Device) -> None:
        """Moves the parameters to a device, unless they are there."""
        if any(len(leaf.sharding.device_set) > 1 for leaf in self._programs.leaves):
            raise InputError("device: expected None for an encoder distributed over devices")
        if device != self._device:
            self._set_up(jax.device_put(self.model, device), self.tokenizer, self.settings)

    @classmethod
    def from_pretrained(
        cls: type[Encoder],
        source: str | os.PathLike[str],
        *,
        revision: str | None = None,
        subfolder: str = "",
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike | None = None,
        allow_pickle: bool = False,
        pooling: str | Sequence[str] | None = None,
        normalize: bool | None = None,
        layers: str = "last",
        **settings: Unpack[Settings],
    ) -> Encoder:
        """Loads a sentence-transformers folder, or a plain model folder with a given pooling.

        Args:
            source: a folder, or a repository of the Hub.
            revision: a branch, tag or commit of the repository.
            subfolder: the encoder's path inside the folder or repository.
            cache_dir: a folder to use in place of the Hub's default cache.
            token: an access token for private repositories.
            local_files_only: whether to use only the Hub's cache.
            dtype: the dtype of computation; None for the parameters' dtype.
            param_dtype: the dtype of parameters; None to keep each as stored in the file.
            allow_pickle: whether weights may be pickles.
            pooling: for a folder without modules.json, where it is required.
            normalize: for a folder without modules.json: whether to scale vectors to length 1.
            layers: the hidden states from which token vectors are computed, a name of
                `pooling.LAYERS`.
            settings: fields of `SentenceSettings` that override the folder's: `max_seq_length`,
                `prompts` (added to the folder's), `default_prompt_name`, `similarity_fn_name`,
                `truncate_dim`.

        Raises:
            SourceError: if there is no such encoder, or one of its files is missing.
            ConfigError: if a field is invalid.
            UnsupportedConfigError: if a field requests a feature that is not implemented.
            InputError: if an argument is invalid, or contradicts the folder.

        All other errors are those of `BertModel.from_pretrained`.
        """
        encoder = cls.__new__(cls)
        encoder._set_up(
            *load_encoder(
                source,
                where={
                    "revision": revision,
                    "subfolder": subfolder,
                    "cache_dir": cache_dir,
                    "token": token,
                    "local_files_only": local_files_only,
                },
                weights={"dtype": dtype, "param_dtype": param_dtype, "allow_pickle": allow_pickle},
                pooling=pooling,
                normalize=normalize,
                layers=layers,
                settings=settings,
            )
        )
        return encoder

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        create_model_card: bool = True,
    ) -> None:
        """Writes a folder that sentence-transformers reads; complete and checked, or not at all.

        Args:
            folder: where to. It may exist; it must not hold files of a model, tokenizer or encoder
                unless `overwrite`. All other files stay.
            overwrite: whether to replace such files.
            create_model_card: whether to write a README.md that describes the encoder, unless the
                folder has one.

        Raises:
            TargetError: the folder holds such files, or cannot be written.
            CheckpointMismatchError: the transformer or a Dense is not as its config describes it.
            InputError: the encoder is one that such a folder cannot hold.
        """
        card = "path/of/this/folder" if flag("create_model_card", create_model_card) else None
        parts = self.model, self.tokenizer, self.settings
        save_encoder(*parts, folder, overwrite=overwrite, card=card)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        token: str | None = None,
        private: bool | None = None,
        commit_message: str = "Add new SentenceTransformer model",
        exist_ok: bool = False,
        replace_model_card: bool = False,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Saves the encoder and uploads its files to a repository of the Hub.

        Args:
            repo_id: the repository, such as `acme/my-encoder`, which is created if necessary.
            token: an access token; None for the one stored by `hf auth login`.
            private: whether a new repository is private.
            commit_message: the message of the commit.
            exist_ok: whether the repository may exist already.
            replace_model_card: whether to replace a README.md of the repository.
            revision: the branch to write to, which is created if necessary.
            create_pr: whether to open a pull request instead.

        Returns:
            The URL of the commit or the pull request.

        Raises:
            TargetError: the Hub does not accept the files, or cannot be reached.
        """
        parts = self.model, self.tokenizer, self.settings
        place = repo_id, token, private, commit_message, revision, create_pr
        keep = () if flag("replace_model_card", replace_model_card) else (MODEL_CARD,)
        return push_folder(
            lambda folder: save_encoder(*parts, folder, card=repo_id),
            *place,
            exist_ok=flag("exist_ok", exist_ok),
            keep=keep,
        )

    @overload
    def encode(
        self,
        inputs: Texts,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        *,
        output_value: Literal["sentence_embedding"] = "sentence_embedding",
        convert_to_numpy: Literal[True] = True,
        convert_to_tensor: Literal[False] = False,
        **options: Unpack[EncodeOptions],
    ) -> np.ndarray: ...

    @overload
    def encode(
        self,
        inputs: Texts,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        *,
        output_value: Literal["sentence_embedding"] = "sentence_embedding",
        convert_to_numpy: bool = True,
        convert_to_tensor: Literal[True],
        **options: Unpack[EncodeOptions],
    ) -> Array: ...

    @overload
    def encode(
        self,
        inputs: Texts,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        *,
        output_value: Literal["sentence_embedding"] = "sentence_embedding",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        **options: Unpack[EncodeOptions],
    ) -> np.ndarray | Array | list[Array]: ...

    @overload
    def encode(
        self,
        inputs: Texts,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        *,
        output_value: Literal["token_embeddings"],
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        **options: Unpack[EncodeOptions],
    ) -> np.ndarray | list[np.ndarray]: ...

    @overload
    def encode(
        self,
        inputs: Texts,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        *,
        output_value: str | None,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        **options: Unpack[EncodeOptions],
    ) -> Any: ...

    def encode(
        self,
        inputs: Texts | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        output_value: str | None = "sentence_embedding",
        precision: str | None = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: jax.Device | str | None = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        *,
        token_budget: int | None = None,
        packing: int | None = None,
        ranges: ArrayLike | None = None,
        show_progress: bool = False,
        **others: object,
    ) -> Any:
        """Returns the vectors of texts, in input order.

        A text longer than `max_seq_length` tokens is truncated, as in sentence-transformers; the
        attribute `truncated` counts such texts.

        The order of the arguments is that of sentence-transformers.

        Args:
            inputs: a text; or a list or another iterable of texts. Also accepted as `sentences`.
            prompt_name: the name of the prompt that is prepended to each text.
            prompt: a text that is prepended to each text, in place of a named prompt.
            batch_size: the maximum number of rows of a batch; by default only `token_budget` limits
                it.
            show_progress_bar: whether to show a progress bar on stderr.
            output_value: `sentence_embedding`; `token_embeddings`, the vectors of each text's
                tokens; or None, a dictionary of all outputs for each text.
            precision: one of `quantization.PRECISIONS`; None for `float32`.
            convert_to_numpy: whether to return a NumPy array; otherwise a list of JAX arrays.
            convert_to_tensor: whether to return one JAX array, whatever `convert_to_numpy` is.
            device: a device of JAX or its name, such as `gpu` or `cpu:1`, to which the encoder is
                moved first; None to leave it where it is.
            normalize_embeddings: whether to scale vectors to length 1, after `truncate_dim`.
            truncate_dim: the number of dimensions to keep; None for the settings' value.
            token_budget: rows × positions of a batch; by default chosen for the device.
            packing: length of rows that short texts share, rounded up to one of a few; None puts
                one text in each row. It does not change vectors, and cannot be combined with token
                vectors.
            ranges: `(2, dim)`, the min and max of each feature for `int8` and `uint8`; by default
                those of these texts' vectors.
            show_progress: the same as `show_progress_bar`.
            others: not accepted: other arguments of sentence-transformers raise an error that
                explains the alternative.

        Returns:
            `(texts, dim)`, or `(dim,)` for a single text. Token vectors and dictionaries are
            returned as a list, or alone for a single text.

        Raises:
            InputError: if an argument or a text is invalid.
            TextNotFiniteError: if the vector of a text is NaN or infinite, because a parameter is
                or float16 overflowed.
        """
        if "sentences" in others:
            if inputs is not None:
                raise InputError("sentences: an alias of inputs; expected only one of them")
            inputs = cast(Any, others.pop("sentences"))
        for name in others:
            raise InputError(
                f"{name}: not an argument of encode: {ELSEWHERE.get(name, 'see its help')}"
            )
        if device is not None:
            self._move(device_of(device))
        dim = self.settings.truncate_dim if truncate_dim is None else truncate_dim
        features = self.model.out_features
        request = EncodeRequest(
            output_value=output_value,
            precision="float32" if precision is None else precision,
            ranges=ranges,
            normalize_embeddings=normalize_embeddings,
            truncate_dim=dim,
            features=features,
        )
        prefix = self.settings.prompt(prompt, prompt_name)
        texts = [f"{prefix}{text}" for text in sentence_list(inputs)]
        reader = self._reader  # another thread may set max_seq_length during the call
        width = check_width(packing, reader.longest, request.tokens)
        run = Run(
            model=self.model,
            programs=self._programs,
            device=self._device,
            with_tokens=request.tokens,
            reader=reader,
            texts=texts,
            prompt_length=reader.prompt_length(prefix),
            budget=check_budget(token_budget),
            most=None if batch_size is None else whole("batch_size", batch_size, 1),
            packing=width,
            show_progress=bool(show_progress or show_progress_bar),
        )
        found = request.outputs(run)
        self.truncated: int = run.truncated
        if isinstance(inputs, str):
            found = found[0]
        if request.tokens or (convert_to_numpy and not convert_to_tensor):
            return found
        array = jax.device_put(found, self._device)
        return array if convert_to_tensor or array.ndim == 1 else list(array)

    @typed_as(encode)
    def encode_query(self, *args: object, **options: object) -> Any:
        """Calls `encode` with the prompt named `query`, unless the arguments specify another.

        An empty `query` prompt is used as well: then nothing is prepended. The default prompt is
        used only if `prompts` has no `query`.
        """
        return self._encode_as(QUERY_PROMPTS, args, options)

    @typed_as(encode)
    def encode_document(self, *args: object, **options: object) -> Any:
        """Calls `encode` with the first existing prompt of `document`, `passage` and `corpus`.

        Every encoder has a `document` prompt, empty by default; assign `prompts` to remove it.
        """
        return self._encode_as(DOCUMENT_PROMPTS, args, options)

    def _encode_as(self, names: Sequence[str], args: Sequence[Any], options: dict[str, Any]) -> Any:
        given = dict(zip(("inputs", "prompt_name", "prompt"), args, strict=False))
        chosen = {**given, **options}
        if chosen.get("prompt") is None and chosen.get("prompt_name") is None:
            name = next((name for name in names if name in self.prompts), None)
            if "prompt_name" in given:
                args = (args[0], name, *args[2:])
            else:
                options["prompt_name"] = name
        return self.encode(*args, **options)

    def tokenize(self, sentences: Texts) -> dict[str, np.ndarray]:
        """Returns texts as host arrays `(texts, longest)`: ids, mask and, if any, segments.

        Truncation and padding are those of the tokenizer; no prompt is prepended.
        """
        return self._reader.arrays(sentence_list(sentences))

    def __repr__(self) -> str:
        return f"SentenceEncoder({self.settings}, layers={self.model.layers!r}, {self.model})"
