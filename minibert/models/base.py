"""The base class of all models; loading and saving of pretrained models."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, TypedDict, TypeVar, Unpack, overload

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Integer

from minibert.checkpoint.config import Config
from minibert.checkpoint.hub import AnyPath, push_folder
from minibert.checkpoint.loading import load_pretrained
from minibert.checkpoint.matching import LoadingInfo
from minibert.checkpoint.saving import save_model
from minibert.core.checks import whole
from minibert.core.types import AnyArray, Dtype, Rngs, Size
from minibert.errors import InputError, shown
from minibert.models.arguments import explained
from minibert.models.resizing import NewRows, drawn_rows, keep_layers, mean_rows, resize
from minibert.nn.cache import KVCache
from minibert.nn.layers import Embed, Module, TiedLinear
from minibert.nn.tree import submodules
from minibert.sharding.mesh import Sharding
from minibert.text.batching import numbered

Names = tuple[str, ...]
Table = Mapping[str, str]
Dimensions = Mapping[str, tuple[str | int | None, ...]]
Model = TypeVar("Model", bound="PretrainedModel")


class LoadingOptions(TypedDict, total=False):
    """The arguments of `PretrainedModel.from_pretrained` that have a default."""

    revision: str | None
    subfolder: str
    cache_dir: AnyPath | None
    token: str | bool | None
    local_files_only: bool
    dtype: Dtype
    param_dtype: Dtype
    new_head: bool
    rngs: Rngs
    num_labels: int | None
    id2label: Mapping[int, str] | None
    config: Config | None
    allow_pickle: bool
    sharding: Sharding | None


class PretrainedModel(Module):
    """Base class of all models; facts about their checkpoints are class attributes.

    Attributes:
        config_class: the class of the config.
        trunk: the name of the bare model inside a model with a head, and its tensors' prefix.
        is_trunk: whether this class is the bare model, whose own files have no such prefix.
        submodules: names of the trunk's submodules, by which a checkpoint saved without the prefix
            is recognised.
        heads: all heads of the family, as prefixes of tensor names.
        parts: heads that are parts of one; a checkpoint has all of them or none.
        optional: submodules of this class that a checkpoint may lack.
        tied: tensors that are copies of another unless the checkpoint says otherwise.
        generates: whether the model returns next-token logits, which `generate` needs.
        objective: the objective in `minibert.train` of the loss that transformers' model computes
            from its labels; None if it computes none.
        lora_targets: the layers that LoRA adapts by default, as in PEFT.
        buffers: tensors that are never read, each with the reason; `#` is any layer's number.
        blocks: the path of the list of blocks in the trunk.
        dimensions: rules of `Sharding`: which dimensions of the parameters are heads and features.
        segments: the field of the config that limits `token_type_ids`; empty if there are none.
        has_choices: whether the arguments have an axis of choices, the second.
        needs_padding_id: whether several rows need the config's `pad_token_id`.
        token_embeddings: the path of the token embeddings in the bare model.
    """

    config_class: ClassVar[type[Config]]
    trunk: ClassVar[str]
    is_trunk: ClassVar[bool] = False
    submodules: ClassVar[Names]
    heads: ClassVar[Names]
    parts: ClassVar[Names] = ()
    optional: ClassVar[Names] = ()
    tied: ClassVar[Table] = {}
    generates: ClassVar[bool] = False
    objective: ClassVar[str | None] = None
    lora_targets: ClassVar[Names]
    buffers: ClassVar[Table]
    blocks: ClassVar[str]
    dimensions: ClassVar[Dimensions]
    segments: ClassVar[str] = ""
    has_choices: ClassVar[bool] = False
    needs_padding_id: ClassVar[bool] = False
    token_embeddings: ClassVar[str]
    config: Any
    __call__: Callable[..., Any]

    def __init__(
        self,
        config: Any,
        *,
        rngs: Rngs,
        dtype: Dtype = None,
        param_dtype: DTypeLike = jnp.float32,
    ):
        raise TypeError(f"{type(self).__name__} is an abstract base class; use a subclass")

    def __init_subclass__(cls, **options: bool) -> None:
        super().__init_subclass__(**options)
        if "__call__" in vars(cls):
            cls.__call__ = explained(cls.__call__)  # ty: ignore[invalid-assignment]

    @property
    def base_model(self) -> Any:
        """The bare model inside a model with a head; the model itself if it has no head."""
        return self if self.is_trunk else getattr(self, self.trunk)

    def positions(
        self,
        input_ids: AnyArray | None,
        tokens: AnyArray | None = None,
        *,
        seq: Size = 0,
        past: int | Array = 0,
        segments: Array | None = None,
    ) -> Integer[Array, "#batch seq"]:
        """Returns the default `position_ids`: 0, 1, 2, ….

        Args:
            input_ids: `(batch, seq)`, for families whose positions depend on them; or None.
            tokens: `(batch, seq)`, False for padding, which is not counted; by default every
                position is counted.
            seq: the number of positions, used only if no other argument determines it.
            past: the number of tokens in the cache, `(batch, 1)` or a scalar.
            segments: `(batch, seq)`, the index of the text within its row that a token belongs to;
                positions of each text start at 0.
        """
        if tokens is None and segments is not None:
            tokens = jnp.ones_like(segments, bool)
        if tokens is None:
            seq = seq if input_ids is None else input_ids.shape[1]
            return past + jnp.arange(seq, dtype=jnp.int32)[None]
        return past + jnp.maximum(numbered(jnp.asarray(tokens), segments) - 1, 0)

    def init_cache(self, batch_size: int, max_length: int) -> KVCache:
        """Returns an empty cache, made by the bare model."""
        return self.base_model.init_cache(batch_size, max_length)

    @property
    def tensor_prefix(self) -> str:
        """The prefix that canonical tensor names have and those in this class's files lack."""
        return f"{self.trunk}." if self.is_trunk else ""

    @property
    def blocks_path(self) -> str:
        """The path of the list of blocks in this model."""
        return self.blocks if self.is_trunk else f"{self.trunk}.{self.blocks}"

    @property
    def block_paths(self) -> list[str]:
        """The paths of the blocks that are executed, in order, as `captured` takes them.

        If blocks are executed several times, `@` and the number of the call follow each path.
        """
        names = self.base_model.config.layer_paths
        shared = len(set(names)) < len(names)
        calls = [f"@{names[:number].count(name)}" for number, name in enumerate(names)]
        return [
            f"{self.blocks_path}.{name}{call if shared else ''}"
            for name, call in zip(names, calls, strict=True)
        ]

    def get_input_embeddings(self) -> Embed:
        """Returns the module that embeds token ids."""
        return functools.reduce(getattr, self.token_embeddings.split("."), self.base_model)

    def set_input_embeddings(self, value: Embed) -> None:
        """Replaces the module that embeds token ids by one of the same shape.

        Raises:
            InputError: the shape is different; `resize_token_embeddings` changes the number of
                tokens.
        """
        shape = self.config.vocab_size, self.config.embedding_size
        found = value.embedding.shape if isinstance(value, Embed) else type(value).__name__
        if found != shape:
            raise InputError(
                f"value: expected an Embed of shape {shape}, found {shown(found)}; "
                "resize_token_embeddings changes the number of tokens"
            )
        *parents, last = self.token_embeddings.split(".")
        setattr(functools.reduce(getattr, parents, self.base_model), last, value)

    def get_output_embeddings(self) -> TiedLinear | None:
        """Returns the module that computes vocabulary logits; None if there is none.

        If it is tied, its `kernel` is None: it uses the token embeddings.
        """
        found = (module for _, module in submodules(self) if isinstance(module, TiedLinear))
        return next(found, None)

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
        *,
        rngs: Rngs = None,
    ) -> Embed:
        """Changes the number of tokens in place, in the embeddings, the head and the config.

        The first rows are kept. Compiled models and encoders made earlier keep the old sizes.

        Args:
            new_num_tokens: the new size of the vocabulary, such as `len(tokenizer)`; None to keep
                the size.
            pad_to_multiple_of: the size is rounded up to a multiple of this.
            mean_resizing: whether a new row is the mean of the old ones, to which transformers adds
                noise of about 3e-5 of their standard deviation. Otherwise it is drawn as the
                initialisation does. The bias of a new token is 0, or, in a head that is not tied,
                the mean too.
            rngs: random keys, needed only if rows are added with `mean_resizing=False`.

        Returns:
            The token embeddings.

        Raises:
            InputError: an argument is invalid, or the model is sharded.
            CheckpointMismatchError: the model is not the one that its config describes.
        """
        size = self.config.vocab_size
        if new_num_tokens is not None:
            size = whole("new_num_tokens", new_num_tokens, 1)
        if pad_to_multiple_of is not None:
            size += -size % whole("pad_to_multiple_of", pad_to_multiple_of, 1)
        if size != self.config.vocab_size:
            # a tied head's bias gets zeros in transformers
            rows = functools.partial(mean_rows, mean_of_bias=not self.config.tie_word_embeddings)
            if size > self.config.vocab_size and not mean_resizing:
                rows = drawn_rows(self.config.initializer_range, rngs)
            resize(self, "vocab_size", size, rows)
        return self.get_input_embeddings()

    def resize_position_embeddings(
        self, new_num_position_embeddings: int, *, rngs: Rngs = None
    ) -> None:
        """Changes the number of positions, `max_position_embeddings`, in place.

        The first rows are kept. Compiled models and encoders made earlier keep the old sizes.

        Args:
            new_num_position_embeddings: the new number.
            rngs: random keys, needed if rows are added, which are drawn as the initialisation does.

        Raises:
            InputError: an argument is invalid, or the model is sharded.
            CheckpointMismatchError: the model is not the one that its config describes.
        """
        name, field = "new_num_position_embeddings", "max_position_embeddings"
        size, now = whole(name, new_num_position_embeddings, 1), getattr(self.config, field)
        if size != now:
            resize(self, field, size, self._new_positions(rngs) if size > now else mean_rows)

    def _new_positions(self, rngs: Rngs) -> NewRows:
        """Returns a function that returns the embeddings of additional positions."""
        return drawn_rows(self.config.initializer_range, rngs)

    def keep_layers(self, layers: Sequence[int]) -> None:
        """Keeps some layers in the given order, in place, and changes `num_hidden_layers`.

        Args:
            layers: the indices of the layers, such as `range(6)` or `[0, 2, 4]`.

        Raises:
            InputError: an index is out of range or repeated; or the layers share parameters in a
                way that no config describes.
            CheckpointMismatchError: a layer depends on its index
                (`scale_attn_by_inverse_layer_idx`) and would change it; or the model is not the one
                that its config describes.
        """
        keep_layers(self, layers)

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether the backward pass recomputes the activations inside blocks, to save memory."""
        return self.base_model.execution.remat

    def gradient_checkpointing_enable(self) -> None:
        """Makes the backward pass recompute the activations inside blocks."""
        self._set_remat(True)

    def gradient_checkpointing_disable(self) -> None:
        """Stores the activations inside blocks for the backward pass, which is the default."""
        self._set_remat(False)

    def _set_remat(self, remat: bool) -> None:
        base = self.base_model
        base.execution = dataclasses.replace(base.execution, remat=remat)

    @overload
    @classmethod
    def from_pretrained(
        cls: type[Model],
        source: AnyPath,
        *,
        output_loading_info: Literal[False] = False,
        **options: Unpack[LoadingOptions],
    ) -> Model: ...

    @overload
    @classmethod
    def from_pretrained(
        cls: type[Model],
        source: AnyPath,
        *,
        output_loading_info: Literal[True],
        **options: Unpack[LoadingOptions],
    ) -> tuple[Model, LoadingInfo]: ...

    @overload
    @classmethod
    def from_pretrained(
        cls: type[Model],
        source: AnyPath,
        *,
        output_loading_info: Literal[False] = False,
        **options: object,
    ) -> Model: ...

    @classmethod
    def from_pretrained(
        cls: type[Model],
        source: AnyPath,
        *,
        revision: str | None = None,
        subfolder: str = "",
        cache_dir: AnyPath | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        dtype: Dtype = None,
        param_dtype: Dtype = None,
        new_head: bool = False,
        rngs: Rngs = None,
        num_labels: int | None = None,
        id2label: Mapping[int, str] | None = None,
        config: Config | None = None,
        allow_pickle: bool = False,
        sharding: Sharding | None = None,
        output_loading_info: bool = False,
        **fields: object,
    ) -> Model | tuple[Model, LoadingInfo]:
        """Loads a model strictly, in evaluation mode, from a folder or the Hugging Face Hub.

        Args:
            source: a folder with config.json and weights, or a repository of the Hub.
            revision: a branch, tag or commit of the repository.
            subfolder: the path of the model in the folder or repository.
            cache_dir: a folder to use instead of the Hub's default cache.
            token: access token for private repositories.
            local_files_only: whether to use only the Hub's cache.
            dtype: the dtype of computations; None for the dtype of the parameters.
            param_dtype: the dtype of the parameters; None for that of each tensor in the file.
            new_head: whether a head that the checkpoint lacks is newly initialised.
            rngs: random keys for a new head.
            num_labels: the number of labels; overrides the config.
            id2label: the names of the labels; overrides the config.
            config: the config to use instead of the checkpoint's; it may have fewer layers.
            allow_pickle: whether a `pytorch_model.bin` may be opened.
            sharding: how parameters are distributed over devices; no device and no host ever holds
                the whole model.
            output_loading_info: whether to return a `LoadingInfo` too.
            fields: fields of the config that override the checkpoint's, such as
                `hidden_dropout_prob=0.0`. With a smaller `num_hidden_layers` the tensors of the
                other layers are left in the file.

        Raises:
            InputError: an argument is invalid.
            SourceError: there is no such model, or its files were replaced during loading.
            UnsupportedConfigError: the folder contains an adapter next to the weights.
            ConfigError: config.json is invalid, or requests something that is not implemented.
            WeightsFileError: a weights file is damaged, or is a pickle and `allow_pickle` is off.
            CheckpointMismatchError: tensors and leaves do not correspond one to one.
            MissingHeadError: the checkpoint lacks this class's head.
        """
        model, info = load_pretrained(
            lambda data, tensors, where: cls,
            source,
            revision=revision,
            subfolder=subfolder,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
            dtype=dtype,
            param_dtype=param_dtype,
            new_head=new_head,
            rngs=rngs,
            num_labels=num_labels,
            id2label=id2label,
            config=config,
            allow_pickle=allow_pickle,
            sharding=sharding,
            fields=fields,
        )
        return (model, info) if output_loading_info else model

    def save_pretrained(
        self,
        folder: AnyPath,
        *,
        max_shard_size: str | int = "5GB",
        overwrite: bool = False,
        config: Config | None = None,
    ) -> None:
        """Writes a Hugging Face folder: config.json and safetensors that transformers reads.

        The write is atomic: even if the process is killed, either all files are there, flushed and
        verified, or none is. Other files in the folder, such as a tokenizer's, are left alone. Tied
        copies are omitted, as in transformers.

        Args:
            folder: the target folder. It may exist, but must not contain model files unless
                `overwrite` is True.
            max_shard_size: larger models are split into shards with an index.
            overwrite: whether to replace model files in the folder: config.json,
                generation_config.json, weights in any format, and adapters.
            config: the config to write instead of `model.config`, for a model whose layers, heads
                or embeddings were changed by hand. It must describe the model as it is.

        Raises:
            TargetError: the folder contains a model, or cannot be written; or a parameter is NaN or
                infinite.
            CheckpointMismatchError: the config does not describe the model: parameters are missing,
                extra, or of a different shape.
            InputError: the config is of a different class, or `folder` is not a path.
        """
        save_model(self, folder, max_shard_size, overwrite, config)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Upload model",
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Saves the model and uploads its files to a repository of the Hub, in one commit.

        Args:
            repo_id: the repository, such as `acme/my-bert`, which is created if necessary.
            commit_message: the message of the commit.
            private: whether a new repository is private.
            token: an access token; None for the one stored by `hf auth login`.
            revision: the branch to write to, which is created if necessary.
            create_pr: whether to open a pull request instead.

        Returns:
            The URL of the commit or the pull request.

        Raises:
            TargetError: the Hub does not accept the files, or cannot be reached.
        """
        place = repo_id, token, private, commit_message, revision, create_pr
        return push_folder(self.save_pretrained, *place)


ModelClass = type[PretrainedModel]
