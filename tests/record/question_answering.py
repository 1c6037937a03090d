"""Records what the last question-answering pipeline of transformers answered.

transformers 4.57.6 was the last release line that had one. Run from the repository's root, in an
environment of its own:

    pip install transformers==4.57.6 torch==2.13.0
    python tests/record/question_answering.py

Writes `tests/fixtures/question_answering/{bert,gpt2}`: a tiny re-randomised model as
`save_pretrained` left it, with a tokenizer made of the texts below, and `answers.json`: for each
case a question, a context and how often it is repeated, the options and the answers; and in
`answers_left.json` the answers with a tokenizer that pads on the left.
"""

import json
import pathlib
import warnings
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

FOLDER = pathlib.Path(__file__).parents[1] / "fixtures" / "question_answering"
POSITIONS = 64
SHAPE = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}

TEXTS = (
    "My name is Wolfgang and I live in Berlin.",
    "The Amazon rainforest, also called Amazonia, covers most of the Amazon basin of South America."
    " The basin is 7,000,000 square kilometres large, of which 5,500,000 are forest. It belongs to "
    "nine nations: most of it lies in Brazil, with 60%, then Peru with 13% and Colombia with 10%.",
    "Ada Lovelace wrote the first program, for a machine that was never built; Charles Babbage had "
    "designed it in 1837. She was twenty-seven.",
    "A lighthouse keeper's log, the 3rd of March: fog until noon; two ships passed; the lamp's oil "
    "is low. The 4th: no fog. The boat came at last, with oil, bread and a letter from Marit.",
    "Zürich liegt an der Limmat. Die Limmat fließt aus dem Zürichsee.",
    "القاهرة هي عاصمة مصر وأكبر مدنها.",
    "东京是日本的首都。",
    "She said 🙂 and then 🎉🎉, and nobody knew why 🤷.",
    "one",
    "An internationalization unbelievably long antidisestablishmentarianism word.",
)
QUESTIONS = (
    "Where do I live?",
    "Which name is also used for the Amazon rainforest?",
    "Who designed the machine?",
    "When did the boat come?",
    "Woran liegt Zürich?",
    "ما هي عاصمة مصر؟",
    "日本的首都?",
    "Why 🙂?",
    "what?",
    "Which word is unbelievably long?",
)
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"top_k": 3},
    {"top_k": 3, "align_to_words": False},
    {"handle_impossible_answer": True},
    {"top_k": 4, "handle_impossible_answer": True, "max_answer_len": 3},
    {"max_seq_len": 40, "doc_stride": 10, "top_k": 2},
    {"max_seq_len": 48, "doc_stride": 4, "max_answer_len": 30},
)
LONG = 200  # how often a text of 50 words is repeated for 10,000


def cases() -> list[dict[str, Any]]:
    """Questions, contexts and options."""
    found = []
    for number, (question, context) in enumerate(zip(QUESTIONS, TEXTS, strict=True)):
        for options in OPTIONS:
            found.append((question, context, 1, options))
        other = TEXTS[(number + 1) % len(TEXTS)]
        found.append((question, other, 1, {"top_k": 2}))
    found.append((QUESTIONS[0], "My house stands in Berlin. ", 40, {"top_k": 2}))
    found.append((QUESTIONS[1], TEXTS[1] + " ", LONG, {}))
    found.append((QUESTIONS[3], TEXTS[3] + "\n\n", 12, {"max_seq_len": 50, "top_k": 5}))
    names = ("question", "context", "repeat", "options")
    return [dict(zip(names, case, strict=True)) for case in found]


def bert_tokenizer(folder: pathlib.Path) -> Any:
    """Returns the short words of the texts, and every letter."""
    plain = transformers.BasicTokenizer(do_lower_case=True)
    words = [word for text in TEXTS + QUESTIONS for word in plain.tokenize(text)]
    letters = sorted({letter for word in words for letter in word} - set("🎉"))
    short = sorted({word for word in words if 1 < len(word) < 9})
    pieces = ["##ly", "##ing", "##ation", "##able", "##tion", "##ist", "##er"]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = special + letters + [f"##{letter}" for letter in letters] + pieces + short
    file = folder / "vocab.txt"
    file.write_text("".join(f"{word}\n" for word in vocabulary))
    tokenizer = transformers.BertTokenizerFast(str(file), model_max_length=POSITIONS)
    file.unlink()
    return tokenizer


def gpt2_tokenizer() -> Any:
    """Bytes, and the pairs that are most frequent in the texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS + QUESTIONS, trainer)
    end = "<|endoftext|>"
    return transformers.GPT2TokenizerFast(
        tokenizer_object=tokenizer, model_max_length=POSITIONS, eos_token=end, bos_token=end
    )


def randomise(model: Any, seed: int) -> None:
    """Draws every parameter anew, norms around one and everything else around zero."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=draw)
            norm = path.endswith(("LayerNorm.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight"))
            parameter.copy_(1 + 0.3 * noise if norm else 0.3 * noise)


def record(folder: pathlib.Path, model: Any, tokenizer: Any, seed: int) -> None:
    """Saves a model, its tokenizer and its answers to all cases."""
    randomise(model.eval(), seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name in ("special_tokens_map.json", "vocab.txt", "vocab.json", "merges.txt"):
        (folder / name).unlink(missing_ok=True)  # tokenizer.json has it all
    answer = transformers.QuestionAnsweringPipeline(model=model, tokenizer=tokenizer)
    answers(folder / "answers.json", answer, cases())
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # theirs needs one then
    short = [case for case in cases() if case["repeat"] < LONG]
    answers(folder / "answers_left.json", OfContexts(model=model, tokenizer=tokenizer), short)


class OfContexts(transformers.QuestionAnsweringPipeline):
    """With the mask that is meant where the context comes first.

    The mask of `tok != 1 if question_first else 0` is 0 everywhere then, so that tokens of the
    question are candidates too, and the answer is what has their characters in the context.
    """

    def preprocess(self, *args: Any, **kwargs: Any) -> Any:
        """Masks what is no token of the context and no [CLS]."""
        for window in super().preprocess(*args, **kwargs):
            parts = zip(window["encoding"].ids, window["encoding"].sequence_ids, strict=True)
            cls = self.tokenizer.cls_token_id
            window["p_mask"] = [int(part != 0 and (cls is None or id != cls)) for id, part in parts]
            yield window


def answers(file: pathlib.Path, answer: Any, asked: list[dict[str, Any]]) -> None:
    """Writes a pipeline's answers to cases."""
    recorded = []
    for case in asked:
        context = case["context"] * case["repeat"]
        found = answer(question=case["question"], context=context, **case["options"])
        recorded.append({**case, "answers": found if isinstance(found, list) else [found]})
    lines = [json.dumps(case, ensure_ascii=False) for case in recorded]
    file.write_text("[\n" + ",\n".join(lines) + "\n]\n")


def main() -> None:
    """Records both families."""
    warnings.simplefilter("ignore")
    for kind in ("bert", "gpt2"):
        (FOLDER / kind).mkdir(parents=True, exist_ok=True)
    tokenizer = bert_tokenizer(FOLDER / "bert")
    config = transformers.BertConfig(
        **SHAPE,
        vocab_size=len(tokenizer),
        intermediate_size=80,
        max_position_embeddings=POSITIONS,
        attn_implementation="eager",
    )
    record(FOLDER / "bert", transformers.BertForQuestionAnswering(config), tokenizer, 0)
    tokenizer = gpt2_tokenizer()
    config = transformers.GPT2Config(
        n_embd=24,
        n_layer=2,
        n_head=3,
        n_inner=80,
        vocab_size=len(tokenizer),
        n_positions=POSITIONS,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="eager",
    )
    record(FOLDER / "gpt2", transformers.GPT2ForQuestionAnswering(config), tokenizer, 1)


if __name__ == "__main__":
    main()
