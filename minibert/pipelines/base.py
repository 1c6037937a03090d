"""The base class of all pipelines: three stages, batching by length, options, and error context.

The stages are those of transformers' `pipelines/base.py`: `preprocess` converts one input to arrays
`(1, seq)`, `forward` runs the model on a batch of them, and `postprocess` converts one input's row
of the outputs to its answer. Each may be called separately, and overridden.
"""

import abc
import contextlib
import dataclasses
import itertools
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from minibert.checkpoint.saving import save_model
from minibert.core.checks import check_text, elements, whole
from minibert.core.progress import LONG, progress_bar
from minibert.core.types import Path
from minibert.errors import InputError, NotFiniteError, shown
from minibert.models.base import PretrainedModel
from minibert.models.compilation import Compiled, compiled
from minibert.models.inputs import known_inputs
from minibert.nn.numerics import cause, quoted, scores_defined
from minibert.pipelines.batches import MODEL_INPUTS, Arrays, collated, length, on_host, separated
from minibert.pipelines.options import BATCHING, routed
from minibert.text.batching import Batch, check_budget, default_budget, plan
from minibert.text.tokenizer import panics_as_errors

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

CHUNK = 512  # inputs that are read, sorted by length and answered together
FASTER = 8  # factor by which an iterable's first chunks grow: the first answer needs one input

# Held during every call of a tokenizer, as pipelines and tokenizers may share a backend.
TOKENIZING = threading.RLock()

Shares = Mapping[str, Mapping[str, Any]]


@dataclasses.dataclass
class _Job:
    """An input and the outputs of its rows.

    Attributes:
        item: the input.
        number: its index.
        named: whether errors name the input, because it is one of several.
        windows: whether `preprocess` returned a list of rows.
        outputs: the rows' outputs; None for rows that are not computed yet.
        missing: the number of rows that are not computed yet.
        answer: the answer.
    """

    item: Any
    number: int
    named: bool
    windows: bool = False
    outputs: list[Any] = dataclasses.field(default_factory=list)
    missing: int = 0
    answer: Any = None

    @contextlib.contextmanager
    def naming(self) -> Generator[None]:
        """Adds the input to the message of an error, if there are several inputs."""
        try:
            yield
        except (InputError, NotFiniteError) as reason:
            if not self.named:
                raise
            error, item = InputError, ""
            if isinstance(reason, NotFiniteError):
                error, item = NotFiniteError, f" ({quoted(self.item)})"
            named = error(f"input {self.number}{item}: {reason}")
            raise named.advising(*reason.arguments) from None


class Pipeline(abc.ABC):
    """Computes answers for texts in three stages.

    A pipeline called with one input returns its answer; with a list, the list of answers; with a
    generator or another iterable, an iterator that reads inputs lazily. Inputs of similar length
    are computed together; answers are in input order.

    Options are keyword arguments of the stages. Those of the constructor are defaults; those of a
    call override them.

    Several threads may call a pipeline, or pipelines that share a tokenizer, at the same time. A
    thread that calls the tokenizer directly at the same time needs a copy (`copy.deepcopy`).

    Args:
        model: a model of one of the classes in `models`, in evaluation mode.
        tokenizer: a tokenizer of transformers.
        token_budget: rows × positions computed at once; by default chosen for the device.
        batch_size: the maximum number of rows computed at once; by default only `token_budget`
            limits it.
        show_progress: whether to show a progress bar; by default for lists of a thousand or more
            inputs, on a terminal.
        options: options of the stages.

    Attributes:
        task: the task's name.
        models: the accepted model classes, one for each family.
        by_token: the outputs of `forward` whose second axis is that of positions.
        decoder: whether the model must be a decoder.
        open_stage: the stage that receives options which no stage names; None if there is none.
        compiled: the model, as a compiled callable.

    Raises:
        InputError: if the model or the tokenizer does not fit the task, or an option is unknown.
    """

    task: ClassVar[str]
    models: ClassVar[tuple[type[PretrainedModel], ...]]
    by_token: ClassVar[tuple[str, ...]] = ("logits",)
    decoder: ClassVar[bool] = False
    open_stage: ClassVar[str | None] = None

    model: PretrainedModel
    tokenizer: "PreTrainedTokenizerBase"
    compiled: Compiled[..., Any]

    def __init__(
        self,
        model: PretrainedModel | None = None,
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        *,
        token_budget: int | None = None,
        batch_size: int | None = None,
        show_progress: bool | None = None,
        **options: Any,
    ):
        if not isinstance(model, self.models):
            expected = " or a ".join(cls.__name__ for cls in self.models)
            found = shown(model) if isinstance(model, str) else type(model).__name__
            raise InputError(f"model: {self.task} expects a {expected}, found {found}")
        if self.decoder and not model.config.is_decoder:
            raise InputError(
                "model: expected a decoder, found config.is_decoder=False; an encoder cannot "
                "continue texts, but may fill masks (fill-mask)"
            )
        if not callable(tokenizer):
            raise InputError(f"tokenizer: expected a tokenizer, found {shown(tokenizer)}")
        self.model, self.tokenizer, self.compiled = model, tokenizer, compiled(model)
        self.token_budget: int | None = token_budget
        self.batch_size: int | None = batch_size
        self.show_progress = show_progress
        self._defaults = options
        self._shares({})  # raises an error for an unknown or invalid option

    @abc.abstractmethod
    def preprocess(self, inputs: object) -> Any:
        """Returns one input as arrays `(1, seq)` by name, or a list of such for windows.

        All other entries are passed on to `postprocess`.
        """

    def forward(self, inputs: Arrays) -> dict[str, Any]:
        """Runs the model on a batch and returns its outputs and the inputs, by name."""
        given = {name: inputs[name] for name in MODEL_INPUTS if name in inputs}
        return {**inputs, **self.compiled(**known_inputs(self.model, given))}

    @abc.abstractmethod
    def postprocess(self, outputs: Any) -> Any:
        """Returns the answer to one input, given its row or rows of `forward`'s outputs."""

    def __call__(
        self,
        inputs: object,
        *,
        show_progress: bool | None = None,
        token_budget: int | None = None,
        batch_size: int | None = None,
        **options: Any,
    ) -> Any:
        """Answers one input, a list of inputs, or lazily those of another iterable.

        Args:
            inputs: the inputs.
            show_progress, token_budget, batch_size: as in the constructor, whose values are used
                where these are None.
            options: options of the stages.

        Raises:
            NotFiniteError: if the model's outputs for an input are NaN or infinite.
            InputError: if an option is unknown or invalid; or an input is not a text, has no tokens
                or, without `truncation=True`, more than the model accepts. Errors about one of
                several inputs name it.
        """
        batching = {"show_progress": show_progress, "token_budget": token_budget}
        shares = self._shares({**options, **batching, "batch_size": batch_size})
        show = shares["batching"]["show_progress"]
        if isinstance(inputs, list):
            return list(self._answers(inputs, shares, len(inputs), show))
        if isinstance(inputs, str | bytes | tuple | Mapping):
            return next(self._answers([inputs], shares, 1, False, several=False))
        return self._answers(elements("inputs", inputs), shares, None, show)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.model).__name__})"

    def save_pretrained(
        self, folder: Path, *, max_shard_size: str | int = "5GB", overwrite: bool = False
    ) -> None:
        """Writes the model and the tokenizer into a Hugging Face folder, which `pipeline` loads.

        The write is atomic, as that of `PretrainedModel.save_pretrained`. Options are not written.

        Args:
            folder: the target folder. It may exist, but must not contain files of a model or a
                tokenizer unless `overwrite` is True. Other files are left alone.
            max_shard_size: larger models are split into shards with an index.
            overwrite: whether to replace such files.

        Raises:
            TargetError: the folder contains such files, or cannot be written; or a parameter is NaN
                or infinite.
            CheckpointMismatchError: the config does not describe the model.
            InputError: `folder` is not a path.
        """
        with TOKENIZING:
            self.tokenized("")  # otherwise the truncation of the last call would be written
            save_model(self.model, folder, max_shard_size, overwrite, tokenizer=self.tokenizer)

    def encoded(
        self,
        text: object,
        text_pair: object = None,
        *,
        truncation: bool | str | None = False,
        **options: Any,
    ) -> dict[str, np.ndarray]:
        """Returns a text, or a pair of texts, as the tokenizer's arrays `(1, seq)`.

        Args:
            text: the text.
            text_pair: the second text.
            truncation: whether to truncate to `max_length`, by default the maximum of tokenizer
                and model; or one of transformers' strategies.
            options: other arguments of the tokenizer.

        Raises:
            InputError: if it is not a text, or the tokenizer raises an error.
        """
        check_text(text)
        if text_pair is not None:
            check_text(text_pair)
        if truncation not in (False, None, "do_not_truncate"):
            options["max_length"] = self.cut_at(options.get("max_length"), text_pair is not None)
        elif options.get("max_length") is not None and not options.get("padding"):
            raise InputError("max_length: has no effect alone; pass truncation=True too")
        rows = self.tokenized(text, text_pair, truncation=truncation or False, **options)
        return {name: np.asarray(row)[None] for name, row in rows.items()}

    def tokenized(self, text: object, text_pair: object = None, **options: Any) -> Any:
        """Calls the tokenizer; its errors become `InputError`s.

        Pipelines call the tokenizer only here: it stores the truncation and padding of a call as
        state, so only one thread at a time may set and use them.
        """
        try:
            with TOKENIZING, panics_as_errors():
                return self.tokenizer(text, text_pair, verbose=False, **options)
        except Exception as reason:  # tokenizers raises Exception itself
            raise InputError(f"the tokenizer rejects it ({shown(str(reason))})") from None

    def cut_at(self, max_length: int | None, pair: bool = False) -> int:
        """Returns the number of tokens to which a text or pair is truncated.

        Raises:
            InputError: if it is not a number, or below the number of special tokens, in which case
                tokenizers would not truncate.
        """
        if max_length is None:
            return self.longest_cut
        least = max(1, self.tokenizer.num_special_tokens_to_add(pair))
        return whole("max_length", max_length, least)

    def logits(self, outputs: Arrays, name: str = "logits") -> np.ndarray:
        """Returns the scores `(1, …)` of one input on the host, half precision as float32.

        Raises:
            NotFiniteError: if their softmax along the last axis is undefined. A score of -inf is
                valid: it excludes an outcome.
        """
        scores = on_host(outputs[name])
        if not scores_defined(scores):
            raise self.not_finite(name)
        return scores

    def not_finite(self, name: str) -> NotFiniteError:
        """Returns the error for an output of the model that is NaN or infinite."""
        return NotFiniteError(f"{name}: the model computed NaN or infinity: {cause(self.model)}")

    @property
    def positions(self) -> int:
        """The maximum number of tokens of the model."""
        return self.model.config.max_tokens

    @property
    def longest_cut(self) -> int:
        """The number of tokens to which `truncation=True` truncates."""
        longest = getattr(self.tokenizer, "model_max_length", self.positions)
        if not isinstance(longest, int | float) or longest < 1:  # it is 1e30 if there is no limit
            raise InputError(
                f"tokenizer: model_max_length: expected a number from 1, found {shown(longest)}"
            )
        return int(min(self.positions, longest))

    def _shares(self, options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Returns the options of each stage, and those of batching, of which none is missing."""
        given = {**self._defaults, **options}
        batching = {name: given.pop(name, None) for name in BATCHING}
        for name in BATCHING:
            if batching[name] is None:
                batching[name] = getattr(self, name)
        if batching["batch_size"] is not None:
            whole("batch_size", batching["batch_size"], 1)
        check_budget(batching["token_budget"])
        return {**routed(type(self), given), "batching": batching}

    def _answers(
        self,
        inputs: Iterable[Any],
        shares: Shares,
        total: int | None,
        show: bool | None,
        several: bool = True,
    ) -> Iterator[Any]:
        with progress_bar(self.task, total, show, least=LONG) as tick:
            jobs = (_Job(item, number, several) for number, item in enumerate(inputs))
            size = 1 if total is None else CHUNK
            while chunk := list(itertools.islice(jobs, size)):
                self._compute(chunk, shares, tick)
                yield from (job.answer for job in chunk)
                size = min(FASTER * size, CHUNK)

    def _compute(self, jobs: list[_Job], shares: Shares, tick: Callable[[int], None]) -> None:
        """Answers jobs, each as soon as all its rows are computed."""
        rows: list[Arrays] = []
        owners: list[tuple[_Job, int]] = []  # the job of each row, and the row's index in the job
        for job in jobs:
            with job.naming():
                made = self.preprocess(job.item, **shares["preprocess"])
                job.windows = not isinstance(made, Mapping)
                windows = list(made) if job.windows else [made]
                for window in windows:
                    self._check_length(length(window))
            job.outputs, job.missing = [None] * len(windows), len(windows)
            owners += [(job, index) for index in range(len(windows))]
            rows += windows
        for batch in self._plan(rows, shares):
            chosen = [rows[index] for index in batch.indices]
            own = [owners[index] for index in batch.indices]
            arrays = collated(chosen, batch, self._pad, self._left)
            computed = self._through(arrays, [job.number for job, _ in own], shares["forward"])
            parts = separated(computed, chosen, batch, self.by_token, self._left)
            for (job, index), part in zip(own, parts, strict=True):
                job.outputs[index] = part
                job.missing -= 1
                if not job.missing:
                    outputs, job.outputs = job.outputs, []  # frees them early
                    with job.naming():
                        given = outputs if job.windows else outputs[0]
                        job.answer = self.postprocess(given, **shares["postprocess"])
                    tick(1)

    def _plan(self, rows: Sequence[Arrays], shares: Shares) -> list[Batch]:
        return self._batches([length(row) for row in rows], shares)

    def _batches(self, lengths: Sequence[int], shares: Shares) -> list[Batch]:
        """Returns batches of rows of some lengths, as large as a call's options allow."""
        budget, most = (shares["batching"][name] for name in ("token_budget", "batch_size"))
        budget = self._default_budget if budget is None else budget
        return plan(lengths, self.positions, budget, most)

    @property
    def _default_budget(self) -> int:
        return default_budget()

    def _through(
        self, arrays: dict[str, Any], numbers: Sequence[int], options: Mapping[str, Any]
    ) -> Arrays:
        return self.forward(arrays, **options)

    @property
    def _pad(self) -> int:
        for pad in (self.model.config.pad_token_id, getattr(self.tokenizer, "pad_token_id", None)):
            if pad is not None and 0 <= pad < self.model.config.vocab_size:
                return pad
        return 0

    @property
    def _left(self) -> bool:
        return False

    def _check_length(self, tokens: int) -> None:
        if not tokens:
            raise InputError("expected at least one token, found none")
        if tokens > self.positions:
            name = self.model.config.max_tokens_name
            raise InputError(
                f"expected at most {self.positions} tokens ({name}), found {tokens}; "
                "truncation=True truncates the input"
            ).advising("truncation=True")


class WindowPipeline(Pipeline):
    """A pipeline that splits texts into windows; it needs a tokenizer with character offsets."""

    def __init__(
        self,
        model: PretrainedModel | None = None,
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        **options: Any,
    ):
        super().__init__(model, tokenizer, **options)
        if not getattr(tokenizer, "is_fast", False):
            raise InputError("tokenizer: expected a fast tokenizer, which has character offsets")

    def _arrays(self, encoding: "Encoding") -> dict[str, np.ndarray]:
        """Returns the model inputs of a window as arrays `(1, seq)`."""
        rows = {
            "input_ids": encoding.ids,
            "token_type_ids": encoding.type_ids,
            "attention_mask": encoding.attention_mask,
        }
        return {
            name: np.asarray(row)[None]
            for name, row in rows.items()
            if name in self.tokenizer.model_input_names
        }
