"""Extractive question answering, with the semantics of transformers 4.57.6."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from scipy.special import softmax

from minibert.core.checks import check_text, text_list, whole
from minibert.errors import InputError, shown
from minibert.models.base import ModelClass, Names
from minibert.models.registry import task_classes
from minibert.pipelines.base import WindowPipeline
from minibert.pipelines.batches import Arrays
from minibert.text.tokenizer import question_first

if TYPE_CHECKING:
    from tokenizers import Encoding

OUT = -10000.0  # the score of a token that cannot be part of an answer


def probabilities(scores: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Returns the softmax `(seq,)` over the allowed tokens."""
    return softmax(np.where(allowed, scores, np.float32(OUT)))


def best_spans(
    start: np.ndarray, end: np.ndarray, count: int, longest: int
) -> Iterator[tuple[int, int, float]]:
    """Yields the first token, last token and probability of spans, the most probable first.

    Spans exclude the first token, which stands for "no answer", and tokens that are not allowed,
    whose probability is 0.

    Args:
        start, end: `(seq,)` probabilities of each token to be the first, and the last.
        count: maximum number of spans.
        longest: maximum number of tokens of a span.
    """
    start, end = start.copy(), end.copy()
    start[0] = end[0] = 0
    chances = np.tril(np.triu(np.outer(start, end)), longest - 1)
    flat = chances.ravel()
    best = np.argpartition(-flat, count)[:count] if count < flat.size else np.arange(flat.size)
    best = best[np.argsort(-flat[best], kind="stable")]
    for index in best[flat[best] > 0]:
        first, last = divmod(int(index), chances.shape[1])
        yield first, last, float(flat[index])


def characters(
    encoding: "Encoding", first: int, last: int, sequence: int, whole_words: bool
) -> tuple[int, int]:
    """Returns the character offsets of a span of tokens in text number `sequence` of a pair."""
    if whole_words:
        begin, end = encoding.token_to_word(first), encoding.token_to_word(last)
        begin = None if begin is None else encoding.word_to_chars(begin, sequence)
        end = None if end is None else encoding.word_to_chars(end, sequence)
        if begin is not None and end is not None:
            return begin[0], end[1]
    return encoding.offsets[first][0], encoding.offsets[last][1]


LONGEST_WINDOW = 384
OVERLAP = 128


class QuestionAnsweringPipeline(WindowPipeline):
    """Finds the part of a context that answers a question.

    The inputs are `question=` and `context=`, texts or lists of texts; two texts;
    `{"question": …, "context": …}`; or a list or an iterable of such dicts. An answer is a dict of
    `score`, `start` and `end` (character offsets in the context) and `answer`; with `top_k`, if
    there is more than one, a list of them, the most probable first.

    Options: `top_k`, 1 by default; `max_seq_len`, the length of a window in tokens, 384 by
    default; `doc_stride`, the overlap of windows in tokens, by default 128 or half a window;
    `max_question_len`, the maximum number of tokens of a question; `max_answer_len`, the maximum
    number of tokens of an answer, 15 by default; `handle_impossible_answer`, whether "" may be the
    answer; `align_to_words`, whether answers consist of whole words.

    The question is the first text of the model's input, or, if the tokenizer pads on the left, the
    second, as in transformers. In both cases answers are spans of the context; in the latter,
    transformers 4.57.6 also considers the tokens of the question, and reads their characters from
    the context.
    """

    task = "question-answering"
    models: ClassVar[tuple[ModelClass, ...]] = task_classes("question-answering")
    by_token: ClassVar[Names] = ("start_logits", "end_logits")

    def __call__(
        self,
        *args: object,
        question: str | Sequence[str] | None = None,
        context: str | Sequence[str] | None = None,
        **options: Any,
    ) -> Any:
        """Answers a question, a list of them, or those of an iterable."""
        inputs = _arguments(args, question, context)
        alone = isinstance(inputs, list) and len(inputs) == 1
        return super().__call__(inputs[0] if alone else inputs, **options)

    def preprocess(
        self,
        inputs: object,
        *,
        max_seq_len: int | None = None,
        doc_stride: int | None = None,
        max_question_len: int | None = None,
    ) -> list[dict[str, Any]]:
        """Returns the context's windows, each with the question, as arrays `(1, seq)`.

        A window also contains `encoding`, the tokenizer's encoding; `answerable` `(1, seq)`, True
        for tokens of the context and [CLS]; `context`; and `context_index`, 0 or 1.
        """
        question, context = _texts(inputs)
        longest = min(self.longest_cut, LONGEST_WINDOW) if max_seq_len is None else max_seq_len
        longest = whole("max_seq_len", longest, 1, self.positions)
        if max_question_len is not None:
            most, words = whole("max_question_len", max_question_len, 1), self._words(question)
            if len(words) > most:
                question = question[: words.offsets[most - 1][1]]
        if doc_stride is not None:
            doc_stride = whole("doc_stride", doc_stride, 0, longest)
        space = longest - self.tokenizer.num_special_tokens_to_add(pair=True)
        space -= len(self._words(question))
        stride = min(longest // 2, OVERLAP) if doc_stride is None else doc_stride
        if stride >= space:  # tokenizers would panic
            if space < 1:
                raise InputError(
                    f"question: leaves no space for a context in windows of {longest} tokens; "
                    "shorten it with max_question_len, or increase max_seq_len"
                )
            if doc_stride is not None and len(self._words(context)) > space:
                raise InputError(
                    f"doc_stride: windows cannot overlap by {doc_stride} tokens, as the question "
                    f"leaves space for only {space} tokens of the context in {longest}"
                )
            stride = space // 2
        index = int(question_first(self.tokenizer))
        encoded = self.tokenized(
            *((question, context) if index else (context, question)),
            truncation="only_second" if index else "only_first",
            max_length=longest,
            stride=stride,
            return_overflowing_tokens=True,
        )
        return [self._window(encoding, context, index) for encoding in encoded.encodings]

    def postprocess(
        self,
        outputs: Sequence[Arrays],
        *,
        top_k: int = 1,
        max_answer_len: int = 15,
        handle_impossible_answer: bool = False,
        align_to_words: bool = True,
    ) -> Any:
        """Returns the answers, given the windows' `start_logits` and `end_logits` `(1, seq)`."""
        top_k = whole("top_k", top_k, 1)
        max_answer_len = whole("max_answer_len", max_answer_len, 1)
        # aligned to words, several spans may become the same
        count = 2 * top_k + 10 if align_to_words else top_k
        by_words: dict[str, dict[str, Any]] = {}
        nothing = 1.0
        for window in outputs:
            allowed = np.asarray(window["answerable"])[0]
            start = probabilities(self.logits(window, "start_logits")[0], allowed)
            end = probabilities(self.logits(window, "end_logits")[0], allowed)
            nothing = min(nothing, float(start[0] * end[0]))
            for first, last, score in best_spans(start, end, count, max_answer_len):
                begin, stop = characters(
                    window["encoding"], first, last, window["context_index"], align_to_words
                )
                text = window["context"][begin:stop]
                new = {"score": 0.0, "start": begin, "end": stop, "answer": text}
                by_words.setdefault(text.lower(), new)["score"] += score
        answers = list(by_words.values())
        if handle_impossible_answer or not answers:
            score = nothing if handle_impossible_answer else 0.0
            answers.append({"score": score, "start": 0, "end": 0, "answer": ""})
        answers = sorted(answers, key=lambda answer: answer["score"], reverse=True)[:top_k]
        return answers if len(answers) > 1 else answers[0]

    def _window(self, encoding: "Encoding", context: str, index: int) -> dict[str, Any]:
        answerable = np.array([sequence == index for sequence in encoding.sequence_ids])
        if self.tokenizer.cls_token_id is not None:  # it stands for "no answer"
            answerable |= np.array(encoding.ids) == self.tokenizer.cls_token_id
        return {
            **self._arrays(encoding),
            "answerable": answerable[None],
            "encoding": encoding,
            "context": context,
            "context_index": index,
        }

    def _words(self, text: str) -> Any:
        return self.tokenized(text, add_special_tokens=False).encodings[0]


def _arguments(
    args: Sequence[Any], question: str | Sequence[str] | None, context: str | Sequence[str] | None
) -> Any:
    if args and (question is not None or context is not None):
        raise InputError("question, context: passed twice, by name and by position")
    if len(args) == 1:
        return args[0]
    if len(args) > 2:
        raise InputError(f"expected a question and a context, found {len(args)} arguments")
    if args:
        question, context = args
    if question is None or context is None:
        raise InputError("question, context: expected both")
    if isinstance(question, str):
        return {"question": question, "context": context}
    questions = text_list("question", question)
    contexts = [context] * len(questions) if isinstance(context, str) else context
    contexts = text_list("context", contexts)
    if len(contexts) != len(questions):
        raise InputError(
            f"question, context: expected as many contexts as questions, {len(questions)}, found "
            f"{len(contexts)}"
        )
    return [{"question": q, "context": c} for q, c in zip(questions, contexts, strict=True)]


def _texts(inputs: object) -> tuple[str, str]:
    if not isinstance(inputs, Mapping) or inputs.keys() != {"question", "context"}:
        expected = '{"question": …, "context": …}'
        raise InputError(f"expected {expected}, found {shown(inputs)}")
    for name in ("question", "context"):
        check_text(inputs[name])
        if not inputs[name]:
            raise InputError(f"{name}: expected a non-empty text, found an empty one")
    return inputs["question"], inputs["context"]
