"""The `minibert` command: the library's functions for texts and files.

The commands only parse arguments and print results.

Exit status: 0 success; 1 error, with a one-line message; 2 wrong usage; 130 interrupted.
"""

import dataclasses
import io
import sys
from typing import Annotated, Any

import jax
import typer

import minibert
from minibert.cli.convert import convert, verify
from minibert.cli.demo import demo
from minibert.cli.embed import embed, similar
from minibert.cli.shared import (
    AsJson,
    Compute,
    Device,
    Model,
    TopK,
    Truncate,
    output,
    print_answers,
    print_json,
    print_rows,
    settings,
)
from minibert.cli.train import train
from minibert.core.terminal import visible
from minibert.data.files import read_text

app: typer.Typer = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    epilog="Exit status: 0 success; 1 error; 2 wrong usage; 3 not PyTorch's; 130 interrupted.",
)


def _version(asked: bool | None) -> bool | None:
    if asked:
        output.print(f"minibert {minibert.__version__}")
        raise typer.Exit
    return asked


@app.callback()
def command(
    version: Annotated[
        bool | None,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = None,
) -> None:
    """Text encoders and GPT-2: convert, inspect, embed, fill masks, answer, generate, train."""


@app.command()
def inspect(model: Model, as_json: AsJson = False, device: Device = None) -> None:
    """Shows a checkpoint's module tree, number of parameters and loading report."""
    with settings(device):
        loaded, info = minibert.load(model, output_loading_info=True)
        leaves = jax.tree.leaves(loaded)
        parameters = sum(leaf.size for leaf in leaves)
        if as_json:
            print_json(
                {
                    "model": type(loaded).__name__,
                    "parameters": parameters,
                    "bytes": sum(leaf.nbytes for leaf in leaves),
                    "config": loaded.config.to_dict(),
                    "loading": dataclasses.asdict(info),
                }
            )
            return
        output.print(visible(f"{loaded}\n\n{parameters:,} parameters\n{info}"))


for other in (demo, embed, similar, train, convert, verify):
    app.command()(other)


@app.command("fill-mask")
def fill_mask(
    model: Model,
    text: Annotated[str, typer.Argument(help="A text with the tokenizer's mask token.")],
    top_k: Annotated[
        int | None,
        typer.Option(min=1, help="Number of answers; by default 5, or all targets."),
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="Score only this word; may be repeated.")
    ] = None,
    truncate: Truncate = False,
    device: Device = None,
    dtype: Compute = None,
    as_json: AsJson = False,
) -> None:
    """Predicts words for masks: `minibert fill-mask MODEL "Paris is in [MASK]."`."""
    with settings(device):
        run = minibert.pipeline("fill-mask", model, dtype=dtype)
        top_k = top_k or (len(target) if target else 5)
        found = run(text, top_k=top_k, targets=target or None, truncation=truncate)
        if as_json:
            print_json(found)
            return
        for one in found if isinstance(found[0], list) else [found]:
            print_rows(
                [{key: row[key] for key in ("score", "token_str", "sequence")} for row in one]
            )


@app.command()
def classify(
    model: Model,
    text: Annotated[str, typer.Argument(help="A text.")],
    pair: Annotated[str | None, typer.Option(help="A second text, for models of pairs.")] = None,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Number of labels; all by default.")
    ] = None,
    truncate: Truncate = False,
    device: Device = None,
    dtype: Compute = None,
    as_json: AsJson = False,
) -> None:
    """Prints the labels of a text with their probabilities."""
    with settings(device):
        run = minibert.pipeline("text-classification", model, dtype=dtype)
        given = text if pair is None else {"text": text, "text_pair": pair}
        print_answers(run(given, top_k=top_k, truncation=truncate), as_json)


@app.command()
def answer(
    model: Model,
    question: Annotated[str, typer.Argument(help="The question.")],
    context: Annotated[str | None, typer.Option(help="The text to find the answer in.")] = None,
    context_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="A file with that text.")
    ] = None,
    top_k: TopK = 1,
    impossible: Annotated[
        bool, typer.Option("--impossible", help="Allow for texts without an answer.")
    ] = False,
    device: Device = None,
    dtype: Compute = None,
    as_json: AsJson = False,
) -> None:
    """Finds the part of a text that answers a question."""
    if (context is None) == (context_file is None):
        raise typer.BadParameter("expected either --context or --context-file")
    with settings(device):
        if context is None:
            context = read_text(str(context_file))
        run = minibert.pipeline("question-answering", model, dtype=dtype)
        given = {"question": question, "context": context}
        print_answers(run(given, top_k=top_k, handle_impossible_answer=impossible), as_json)


@app.command()
def generate(
    model: Model,
    prompt: Annotated[str, typer.Argument(help="The text to continue.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum number of tokens.")] = 64,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=2**32 - 1,  # JAX silently ignores higher bits
            help="Sample with this seed; by default choose the most probable tokens.",
        ),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Sampling temperature (with --seed).")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Sample from the k most probable tokens (with --seed).")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Nucleus sampling: probability to keep (with --seed).")
    ] = None,
    beams: Annotated[int | None, typer.Option(min=2, help="Beam search with n beams.")] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Penalise repetition with a number above 1.")
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="Stop at this text; may be repeated.")
    ] = None,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Truncate long prompts on the left.")
    ] = False,
    device: Device = None,
    dtype: Compute = None,
    as_json: AsJson = False,
) -> None:
    """Continues a text and prints it as it is generated."""
    if beams is not None and stop:
        raise typer.BadParameter("--beams and --stop cannot be combined; expected only one of them")
    with settings(device):
        options: dict[str, Any] = {
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "num_beams": beams,
            "repetition_penalty": repetition_penalty,
            "stop_strings": stop,
        }
        asked = {n: value for n, value in options.items() if value is not None}
        if seed is not None:
            asked |= {"do_sample": True, "key": jax.random.key(seed)}
        run = minibert.pipeline("text-generation", model, dtype=dtype)
        streamed = not as_json and beams is None
        waiting = [prompt]  # printed with the first piece: before that, an error may occur

        def show(piece: str) -> None:
            sys.stdout.write(visible("".join([*waiting, piece])))
            sys.stdout.flush()
            waiting.clear()

        if streamed:
            asked["callback"] = show
        found = run(prompt, max_new_tokens=max_new_tokens, truncation=truncate, **asked)
        if as_json:
            print_json(found)
        elif streamed:
            show("\n")
        else:
            output.print(visible(found[0]["generated_text"]))


def main() -> None:
    """Runs the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="backslashreplace"
            )  # for characters that the terminal cannot show
    app(prog_name="minibert")


if __name__ == "__main__":
    main()
