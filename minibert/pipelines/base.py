"""What all pipelines share: three stages, batches by length, options, and whose error it is.

The stages are those of transformers' `pipelines/base.py`: `preprocess` makes arrays `(1, seq)` of
one input, `forward` takes a batch of them through the model, `postprocess` makes the answer to one
input of its row. Each may be called by itself, and overridden.
"""

import abc
import contextlib
import dataclasses
import itertools
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from minibert.core.checks import check_text, elements, whole
from minibert.core.progress import LONG, progress_bar
from minibert.errors import InputError, NotFiniteError, shown
from minibert.models.base import PretrainedModel
from minibert.models.compilation import Compiled, compiled
from minibert.nn.numerics import cause, quoted, scores_defined
from minibert.pipelines.batches import MODEL_INPUTS, Arrays, collated, length, on_host, separated
from minibert.pipelines.options import routed
from minibert.text.batching import Batch, check_budget, plan

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

CHUNK = 512  # inputs that are read, sorted by length and answered together
FASTER = 8  # by how much the first chunks of an iterable grow: the first answer needs one input

# Held by every call of a tokenizer, as two pipelines, or two tokenizers, may share a backend.
TOKENIZING = threading.RLock()

Shares = Mapping[str, Mapping[str, Any]]


@dataclasses.dataclass
class _Job:
    """An input and, row by row, what the model makes of it.

    Attributes:
        item: the input.
        number: its number.
        named: whether an error names it: it is one of several.
        windows: whether it has a list of rows, not one.
        outputs: the rows' outputs, None for one that is not computed yet.
        missing: how many rows are not computed yet.
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
        """Adds to an error to which input it belongs; nothing if there is but one."""
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
    """Text in, answers out, in three stages.

    Called with one input it returns its answer; with a list, the list of answers; with a generator
    or another iterable, an iterator that reads it as answers are taken. Inputs of like length are
    computed together; answers come in the inputs' order.

    An option is a keyword argument of a stage. Those of the constructor are defaults, those of a
    call count before them.

    Several threads may call a pipeline, or several pipelines of one tokenizer, at the same time.
    A thread that calls the tokenizer itself meanwhile needs a copy of it (`copy.deepcopy`).

    Args:
        model: a model of one of the classes in `models`, in evaluation mode.
        tokenizer: a tokenizer of transformers.
        token_budget: rows × positions that are computed at once; by default what suits the device.
        show_progress: whether long inputs have a progress bar; by default those that are lists of
            a thousand or more, on a terminal.
        options: of the stages.

    Attributes:
        task: the task's name.
        models: the classes that fit, one for each family.
        by_token: the outputs of `forward` with an axis of positions, the second.
        open_stage: the stage that takes all options nobody names; None if there is none.
        compiled: the model, as a compiled callable.

    Raises:
        InputError: the model or the tokenizer does not fit the task, or an option is unknown.
    """

    task: ClassVar[str]
    models: ClassVar[tuple[type[PretrainedModel], ...]]
    by_token: ClassVar[tuple[str, ...]] = ("logits",)
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
        show_progress: bool | None = None,
        **options: Any,
    ):
        if not isinstance(model, self.models):
            wanted = " or a ".join(cls.__name__ for cls in self.models)
            found = shown(model) if isinstance(model, str) else type(model).__name__
            raise InputError(f"model: {self.task} wants a {wanted}, found {found}")
        if not callable(tokenizer):
            raise InputError(f"tokenizer: expected a tokenizer, found {shown(tokenizer)}")
        self.model, self.tokenizer, self.compiled = model, tokenizer, compiled(model)
        self.token_budget: int | None = None if token_budget is None else check_budget(token_budget)
        self.show_progress = show_progress
        self._defaults = options
        self._shares({})  # refuses an unknown one now

    @abc.abstractmethod
    def preprocess(self, inputs: object) -> Any:
        """One input as arrays `(1, seq)`, by name; or a list of such, if it is cut into windows.

        What else is in it, `postprocess` finds again.
        """

    def forward(self, inputs: Arrays) -> dict[str, Any]:
        """A batch through the model: the model's outputs and the inputs, by name."""
        given = {name: inputs[name] for name in MODEL_INPUTS if name in inputs}
        return {**inputs, **self.compiled(**given)}

    @abc.abstractmethod
    def postprocess(self, outputs: Any) -> Any:
        """The answer to one input, of its row of `forward`'s outputs, or of a list of such."""

    def __call__(self, inputs: object, *, show_progress: bool | None = None, **options: Any) -> Any:
        """Answers one input, a list of them, or, as they are asked for, those of an iterable.

        Raises:
            NotFiniteError: what the model computed for an input, which is named, is NaN or
                infinite.
            InputError: an option is unknown or impossible; or an input is, which is then named:
                no text, no tokens, or more than the model can take and `truncation=True` not said.
        """
        shares = self._shares(options)
        show = self.show_progress if show_progress is None else show_progress
        if isinstance(inputs, list):
            return list(self._answers(inputs, shares, len(inputs), show))
        if isinstance(inputs, str | bytes | tuple | Mapping):
            return next(self._answers([inputs], shares, 1, False, several=False))
        return self._answers(elements("inputs", inputs), shares, None, show)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.model).__name__})"

    def encoded(
        self,
        text: object,
        text_pair: object = None,
        *,
        truncation: bool | str | None = False,
        **options: Any,
    ) -> dict[str, np.ndarray]:
        """A text, or a pair of them, as the tokenizer's arrays `(1, seq)`.

        Args:
            text: the text.
            text_pair: the second text.
            truncation: whether a longer one is cut to what tokenizer and model can take, or to
                `max_length`; or one of transformers' strategies.
            options: what else the tokenizer takes.

        Raises:
            InputError: it is no text, or the tokenizer refuses it.
        """
        check_text(text)
        if text_pair is not None:
            check_text(text_pair)
        if truncation not in (False, None, "do_not_truncate"):
            options["max_length"] = self.cut_at(options.get("max_length"), text_pair is not None)
        elif options.get("max_length") is not None and not options.get("padding"):
            raise InputError("max_length: cuts nothing by itself; say truncation=True too")
        rows = self.tokenized(text, text_pair, truncation=truncation or False, **options)
        return {name: np.asarray(row)[None] for name, row in rows.items()}

    def tokenized(self, text: object, text_pair: object = None, **options: Any) -> Any:
        """Returns what the tokenizer returns; its own errors are `InputError`s here.

        Only here do pipelines call a tokenizer: it keeps the truncation and padding of a call as
        its own state, so one thread at a time may set and use them.
        """
        try:
            with TOKENIZING:
                return self.tokenizer(text, text_pair, verbose=False, **options)
        except Exception as reason:  # tokenizers raises Exception itself
            raise InputError(f"the tokenizer refuses it ({shown(str(reason))})") from None

    def cut_at(self, max_length: int | None, pair: bool = False) -> int:
        """To how many tokens a text or pair is cut.

        Raises:
            InputError: they are no number, or leave out special tokens: then nothing is cut.
        """
        if max_length is None:
            return self.longest_cut
        least = max(1, self.tokenizer.num_special_tokens_to_add(pair))
        return whole("max_length", max_length, least)

    def logits(self, outputs: Arrays, name: str = "logits") -> np.ndarray:
        """The scores `(1, …)` of one input, on the host, half precision as float32.

        Raises:
            NotFiniteError: no probabilities can be made of them along the last axis. A score of
                -inf rules an outcome out, and is none of the model's faults.
        """
        scores = on_host(outputs[name])
        if not scores_defined(scores):
            raise self.not_finite(name)
        return scores

    def not_finite(self, name: str) -> NotFiniteError:
        """The error for an output of the model that is NaN or infinite."""
        return NotFiniteError(f"{name}: the model computed NaN or infinity: {cause(self.model)}")

    @property
    def positions(self) -> int:
        """How many tokens the model can take."""
        return self.model.config.max_tokens

    @property
    def longest_cut(self) -> int:
        """To how many tokens `truncation=True` cuts."""
        longest = getattr(self.tokenizer, "model_max_length", self.positions)
        if not isinstance(longest, int | float) or longest < 1:  # it is 1e30 if there is no limit
            raise InputError(
                f"tokenizer: model_max_length: expected a number from 1, found {shown(longest)}"
            )
        return int(min(self.positions, longest))

    def _shares(self, options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        return routed(type(self), {**self._defaults, **options})

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
        owners: list[tuple[_Job, int]] = []  # of each row, and its place among the job's
        for job in jobs:
            with job.naming():
                made = self.preprocess(job.item, **shares["preprocess"])
                job.windows = not isinstance(made, Mapping)
                windows = list(made) if job.windows else [made]
                for window in windows:
                    self._check_length(length(window))
            job.outputs, job.missing = [None] * len(windows), len(windows)
            owners += [(job, place) for place in range(len(windows))]
            rows += windows
        for batch in self._plan(rows, shares):
            chosen = [rows[index] for index in batch.indices]
            own = [owners[index] for index in batch.indices]
            arrays = collated(chosen, batch, self._pad, self._left)
            computed = self._through(arrays, [job.number for job, _ in own], shares["forward"])
            parts = separated(computed, chosen, batch, self.by_token, self._left)
            for (job, place), part in zip(own, parts, strict=True):
                job.outputs[place] = part
                job.missing -= 1
                if not job.missing:
                    outputs, job.outputs = job.outputs, []  # which are large
                    with job.naming():
                        given = outputs if job.windows else outputs[0]
                        job.answer = self.postprocess(given, **shares["postprocess"])
                    tick(1)

    def _plan(self, rows: Sequence[Arrays], shares: Shares) -> list[Batch]:
        return plan([length(row) for row in rows], self.positions, self._budget)

    @property
    def _budget(self) -> int:
        return check_budget(self.token_budget)

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
            raise InputError("no tokens; expected at least one")
        if tokens > self.positions:
            name = self.model.config.max_tokens_name
            raise InputError(
                f"{tokens} tokens; expected at most {self.positions} ({name}); "
                "truncation=True cuts what is too much"
            ).advising("truncation=True")


class WindowPipeline(Pipeline):
    """A pipeline that reads texts in windows, whose tokenizer knows characters' places."""

    def __init__(
        self,
        model: PretrainedModel | None = None,
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        **options: Any,
    ):
        super().__init__(model, tokenizer, **options)
        if not getattr(tokenizer, "is_fast", False):
            raise InputError("tokenizer: expected a fast one, which knows characters' places")

    def _arrays(self, encoding: "Encoding") -> dict[str, np.ndarray]:
        """What the model reads of a window, as arrays `(1, seq)`."""
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
