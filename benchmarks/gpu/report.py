"""The report of the GPU benchmark: environment, Markdown table, and saving."""

import contextlib
import json
import os
import subprocess
from typing import Any

from benchmarks import reporting
from benchmarks.environments import ROOT
from benchmarks.gpu.steps import STEPS

PACKAGES = (
    *("jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda12-plugin", "flax", "optax", "numpy"),
    *("torch", "triton", "transformers", "tokenizers", "sentence-transformers"),
    *("nvidia-cudnn-cu13", "nvidia-cublas", "nvidia-cudnn-cu12"),
)
CARD = ("name", "driver_version", "memory.total", "power.limit", "clocks.max.sm")
Report = dict[str, Any]


def taken_on() -> Report:
    """Returns the machine, the versions, nvidia-smi's description of the card, and the commit."""
    rows = _printed("nvidia-smi", f"--query-gpu={','.join(CARD)}", "--format=csv,noheader")
    cards = [dict(zip(CARD, row.split(", "), strict=False)) for row in (rows or "").splitlines()]
    changed = _printed("git", "status", "--porcelain", "--untracked-files=no")
    return {
        **reporting.taken_on(*PACKAGES),
        "cards": cards,
        "commit": _printed("git", "rev-parse", "HEAD"),
        "changed since": None if changed is None else bool(changed),
    }


def _printed(*command: str) -> str | None:
    """Returns the output of a command; None if it is missing or fails."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        options: dict[str, Any] = {"cwd": ROOT, "capture_output": True, "text": True}
        return subprocess.run(command, check=True, timeout=20, **options).stdout.strip()
    return None


def save(folder: str, name: str, report: Report) -> None:
    """Writes the report as JSON and as a table; each file is replaced atomically."""
    text = json.dumps(report, indent=1, allow_nan=False)
    for ending, written in (("json", text), ("md", markdown(report))):
        path = os.path.join(folder, f"{name}.{ending}")
        with open(f"{path}.new", "w", encoding="utf-8") as file:
            file.write(written)
            file.flush()
            os.fsync(file.fileno())
        os.replace(f"{path}.new", path)


def markdown(report: Report) -> str:
    """Returns the report in Markdown."""
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    cards = "; ".join(", ".join(card.values()) for card in report["cards"])
    commit = report["commit"] or "unknown"
    lines = [
        "# minibert on a GPU" + (" (dry run: sizes are tiny)" if report["dry_run"] else ""),
        "",
        f"- card: {cards or 'nvidia-smi finds none'}",
        f"- machine: {report['machine']}",
        f"- versions: {versions}",
        f"- commit: {commit}{', with changes' if report['changed since'] else ''}",
        f"- started: {report['started']}, {report['seconds']:.0f} of {report['limit']:.0f} s",
    ]
    if report["cached"]:
        lines.append("- JAX's compilation cache had programs in it: first calls are too fast")
    for name, step in report["steps"].items():
        lines += ["", f"## {STEPS[name].title}", "", *_section(name, step)]
    return "\n".join(lines) + "\n"


def _section(name: str, step: Report) -> list[str]:
    lines = [f"`{name}`: {step['status']}, {step['seconds']:.0f} s of at most {step['limit']:.0f}"]
    lines += [f"{fact}: {_shown(value)}" for fact, value in step["notes"].items()]
    lines += [
        f"**error**, {error['at'] or name}: {_line(error['error'])}" for error in step["errors"]
    ]
    lines += [
        f"error of {each}, {row}: {_line(text)}"
        for row, found in step["rows"].items()
        for each, text in found.get("errors", {}).items()
    ]
    lines += [f"skipped: {what}: {_line(why)}" for what, why in step["skipped"].items()]
    if step["left_out"]:
        lines.append(f"skipped for lack of time: {'; '.join(step['left_out'])}")
    text = [f"- {line}" for line in lines]
    if not step["rows"]:
        return text
    figures = {row: found["figures"] for row, found in step["rows"].items()}
    columns = list(dict.fromkeys(column for found in figures.values() for column in found))
    titles = (column.replace("|", "\\|") for column in columns)
    table = ["| | " + " | ".join(titles) + " |", "|---" * (1 + len(columns)) + "|"]
    table += [
        f"| {row} | " + " | ".join(_shown(found.get(column, "")) for column in columns) + " |"
        for row, found in figures.items()
    ]
    return [*text, "", *table]


def _line(text: str) -> str:
    return " ".join(text.split())[:300]


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
