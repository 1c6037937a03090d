"""Plots of model internals and training runs, with matplotlib.

Each function returns a new `Figure`, which can be saved with `savefig` or displayed in a notebook.
No windows and no global state are used. Colours are safe for colour-blind readers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minibert.core.checks import unmasked
from minibert.core.types import ArrayLike
from minibert.errors import InputError

BLUE, ORANGE, GREY, RED = "#0072b2", "#e69f00", "#8c8c8c", "#d55e00"  # Okabe and Ito's
COLOURS = (BLUE, ORANGE, "#009e73", RED, "#cc79a7", "#56b4e9", GREY, "black")
AMOUNTS, SIGNED = "cividis", "PuOr"  # colour maps of amounts, and of positive and negative numbers
TOKENS = 60  # maximum number of readable tick labels on an axis


def figure(width: float | int, height: float | int) -> Any:
    """Returns an empty figure of a size in inches.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(made)
    return made


def matrix(
    values: ArrayLike,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    *,
    title: str,
    label: str,
    row_name: str = "token",
    column_name: str = "token",
    limits: tuple[float, float] | None = None,
    numbers: bool = False,
) -> Any:
    """Plots a matrix as a heat map.

    Args:
        values: `(rows, columns)`. Positive and negative values without `limits` get a diverging
            colour map around 0.
        rows, columns: tick labels; `columns` defaults to `rows`. None for indices.
        title: the title.
        label: the label of the colour bar, with its unit.
        row_name, column_name: labels of the axes.
        limits: the values of the first and last colour; by default min and max.
        numbers: whether to print the values, with two digits.

    Raises:
        InputError: if `values` is not a matrix, or the number of names does not match.
    """
    values = np.asarray(unmasked("values", values))
    if values.ndim != 2 or not values.size:
        raise InputError(f"values: expected a matrix, found shape {values.shape}")
    rows = None if rows is None else list(rows)
    columns = rows if columns is None else list(columns)
    for name, names, count in zip(("rows", "columns"), (rows, columns), values.shape, strict=True):
        if names is not None and len(names) != count:
            raise InputError(f"{name}: expected {count} names, found {len(names)}")
    cell = 0.5 if numbers else 0.24  # inches
    letters = max(map(len, rows or [""])) * 0.075
    rows, columns = (names if names and len(names) <= TOKENS else None for names in (rows, columns))
    height = cell * values.shape[0] + 1.4 if rows else 4.8
    width = cell * values.shape[1] + letters + 2.0 if columns else 6.0
    made = figure(max(width, 4.2), max(height, 3.0))
    axes = made.subplots()
    low, high = limits or (float(values.min()), float(values.max()))
    signed = limits is None and low < 0 < high
    if signed:
        high = max(-low, high)
        low = -high
    image = axes.imshow(
        values,
        cmap=SIGNED if signed else AMOUNTS,
        vmin=low,
        vmax=high,
        aspect="equal" if rows and columns else "auto",
        interpolation="nearest",
    )
    axes.set(title=title, xlabel=column_name, ylabel=row_name)
    if rows:
        axes.set_yticks(range(len(rows)), rows)
    if columns:
        axes.set_xticks(range(len(columns)), columns, rotation=90)
    if numbers:
        for (row, column), value in np.ndenumerate(values):
            light = 0.2 < (value - low) / (high - low) < 0.8 if signed else value > (low + high) / 2
            color = "black" if light else "white"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=color)
    made.colorbar(image, ax=axes, label=label)
    return made


def violins(
    values: Sequence[ArrayLike] | ArrayLike,
    names: Sequence[str],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
) -> Any:
    """Plots the distribution of each group as a violin with median and quartiles.

    Args:
        values: `(groups, numbers)`.
        names: the names of the groups.
        title, xlabel, ylabel: the title and axis labels, with units.

    Raises:
        InputError: if the number of names does not match.
    """
    values = np.asarray(unmasked("values", values), float)
    if values.ndim != 2 or not values.size or len(names) != len(values):
        raise InputError(f"values: expected {len(names)} groups, found shape {values.shape}")
    made, axes = _chart(
        max(0.62 * len(names) + 1.6, 5.0), 4.2, title=title, xlabel=xlabel, ylabel=ylabel
    )
    positions = np.arange(len(names))
    parts = axes.violinplot(list(values), positions=positions, widths=0.8, showextrema=False)
    for body in parts["bodies"]:
        body.set(facecolor=BLUE, edgecolor="none", alpha=0.45)
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75], axis=1)
    axes.vlines(positions, low, high, color=BLUE, linewidth=3)
    axes.plot(positions, middle, "o", color="white", markeredgecolor=BLUE, markersize=5)
    axes.set_xticks(positions, names)
    return made


def attention_maps(
    weights: ArrayLike, tokens: Sequence[str], *, title: str, names: Sequence[str] | None = None
) -> Any:
    """Plots the attention weights of each head of a layer, with a shared colour scale.

    Args:
        weights: `(heads, tokens, tokens)`: rows attend to columns.
        tokens: the names of the tokens.
        title: the title.
        names: the names of the heads; `head 0`, … by default.

    Raises:
        InputError: if the number of tokens or names does not match.
    """
    weights = np.asarray(unmasked("weights", weights))
    if weights.ndim != 3 or weights.shape[1:] != (len(tokens),) * 2 or not weights.size:
        raise InputError(
            f"weights: expected (heads, {len(tokens)}, {len(tokens)}), found {weights.shape}"
        )
    heads = len(weights)
    if names is None:
        names = [f"head {head}" for head in range(heads)]
    if len(names) != heads:
        raise InputError(f"names: expected {heads}, found {len(names)}")
    across = min(heads, 4)
    down = -(-heads // across)
    side = max(0.17 * len(tokens), 1.7)
    made = figure(across * (side + 0.25) + 2.0, down * (side + 0.5) + 1.4)
    made.suptitle(title)
    grid = made.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[heads:]:
        axes.set_visible(False)
    for axes, one, name in zip(grid.flat, weights, names, strict=False):
        image = axes.imshow(one, vmin=0, vmax=float(weights.max()), cmap=AMOUNTS)
        axes.set_title(name, fontsize="medium")
        axes.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize="small")
        axes.set_yticks(range(len(tokens)), tokens, fontsize="small")
    made.supxlabel("key token")
    made.supylabel("query token")
    made.colorbar(image, ax=grid, label="attention weight", shrink=0.8)
    return made


def lines(
    series: Mapping[str, Any],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    start: int = 0,
    log: bool = False,
) -> Any:
    """Plots numbers by layer or step, a line for each series.

    Args:
        series: the numbers by name.
        title, xlabel, ylabel: the title and axis labels, with units.
        start: the x value of the first number.
        log: whether the y axis is logarithmic.

    Raises:
        InputError: if there are no series.
    """
    if not series:
        raise InputError("series: expected at least one, found none")
    scale = "log" if log else "linear"
    made, axes = _chart(8, 4, title=title, xlabel=xlabel, ylabel=ylabel, yscale=scale)
    axes.set_prop_cycle(color=COLOURS, marker=list("os^Dv*PX"))
    for name, values in series.items():
        axes.plot(np.arange(len(values)) + start, values, markersize=5, label=name)
    axes.xaxis.get_major_locator().set_params(integer=True)
    made.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False)
    return made


def parity(found: Mapping[str, Mapping[str, Any]], bound: float) -> Any:
    """Plots the error of each hidden state next to PyTorch's, a panel for each model.

    Args:
        found: by model, `ours` and `torch`, the maximum absolute difference of each state.
        bound: the maximum allowed difference.
    """
    made = figure(4 * len(found) + 1, 3.8)
    made.suptitle("Hidden states: maximum difference from PyTorch in float64")
    panels = made.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for axes, (name, errors) in zip(panels, found.items(), strict=True):
        layers = np.arange(len(errors["ours"]))
        axes.bar(layers - 0.2, errors["ours"], 0.4, color=BLUE, label="minibert, float32")
        axes.bar(layers + 0.2, errors["torch"], 0.4, color=GREY, label="PyTorch, float32")
        for layer, error in enumerate(errors["ours"]):
            if error == 0:  # a logarithmic axis cannot show it
                axes.text(layer, bound, "0", ha="center", va="top")
        axes.axhline(bound, color=RED, linestyle="--", label=f"bound, {bound:.0e}")
        axes.set(title=name, xlabel="hidden state", yscale="log", xticks=layers)
    panels[0].set_ylabel("maximum difference")
    made.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return made


def words(found: Sequence[Mapping[str, Any]], *, title: str) -> Any:
    """Plots the most probable words for each text's mask as bars.

    Args:
        found: `text`, and `words` with their probabilities, the most probable first.
        title: the title.

    Raises:
        InputError: if there are no texts.
    """
    if not found:
        raise InputError("found: expected at least one text, found none")
    made = figure(8, 0.9 + 0.28 * sum(len(one["words"]) + 2 for one in found))
    made.suptitle(title)
    panels = made.subplots(len(found), 1, sharex=True, squeeze=False)[:, 0]
    for axes, one in zip(panels, found, strict=True):
        names = list(one["words"])[::-1]
        axes.barh(names, [one["words"][name] for name in names], color=BLUE)
        axes.set_title(one["text"], fontsize="medium", loc="left")
        axes.set_ylabel("word")
    panels[-1].set(xlabel="probability", xlim=(0, 1))
    return made


def loss_curve(history: Sequence[Mapping[str, Any]]) -> Any:
    """Plots the training and evaluation loss by step.

    Args:
        history: metrics, as in `train.Result.history`.

    Raises:
        InputError: if no metrics have a loss.
        ImportError: if matplotlib is not installed.
    """
    steps, losses = _logged(history, "loss")
    if not steps:
        raise InputError("history: expected metrics with a loss, found none")
    made, axes = _chart(7, 4.2, title="Loss", xlabel="step", ylabel="loss (nats per target)")
    axes.plot(steps, losses, color="0.75", linewidth=0.8, label="training, as logged")
    axes.plot(steps, _averaged(losses), color=BLUE, linewidth=1.8, label="training, running mean")
    evaluated, values = _logged(history, "eval_loss")
    if evaluated:
        axes.plot(evaluated, values, "o-", color=ORANGE, markersize=4, label="evaluation")
    axes.legend(frameon=False)
    return made


def _logged(history: Sequence[Mapping[str, Any]], name: str) -> tuple[list[Any], list[Any]]:
    """Returns the steps at which a metric was logged, and its values."""
    lines = [line for line in history if name in line]
    return [line["step"] for line in lines], [line[name] for line in lines]


def _chart(width: float | int, height: float | int, **labels: str) -> tuple[Any, Any]:
    """Returns a figure and its axes, with a grid and without top and right spines."""
    made = figure(width, height)
    axes = made.subplots()
    axes.set(**labels)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return made, axes


def _averaged(values: Sequence[float]) -> np.ndarray:
    """Returns the centred running mean over about a twentieth of the run."""
    reach = len(values) // 40
    sums = np.concatenate([[0.0], np.cumsum(values)])
    indices = np.arange(len(values))
    near = np.minimum(reach, np.minimum(indices, indices[::-1]))  # symmetric near the ends
    return (sums[indices + near + 1] - sums[indices - near]) / (2 * near + 1)
