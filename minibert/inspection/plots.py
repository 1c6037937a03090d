"""Pictures of what goes on inside models, and of runs, by matplotlib.

Each function returns a `Figure` of its own, which `savefig` writes and a notebook shows; no window
and no global state. Colours are told apart by readers who do not see all of them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minibert.core.checks import unmasked
from minibert.core.types import ArrayLike
from minibert.errors import InputError

BLUE, ORANGE, GREY, RED = "#0072b2", "#e69f00", "#8c8c8c", "#d55e00"  # Okabe and Ito's
COLOURS = (BLUE, ORANGE, "#009e73", RED, "#cc79a7", "#56b4e9", GREY, "black")
AMOUNTS, SIGNED = "cividis", "PuOr"  # of shares and amounts; of numbers on both sides of 0
TOKENS = 60  # more of them cannot be read on an axis


def figure(width: float | int, height: float | int) -> Any:
    """An empty figure, in inches.

    Raises:
        ImportError: matplotlib is not installed.
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
    """A matrix as colours, its rows and columns named.

    Args:
        values: `(rows, columns)`; with numbers on both sides of 0 the colours are too, if there are
            no limits.
        rows, columns: their names; the columns are the rows by default. None for numbers.
        title: above it.
        label: what the colours say, with its unit.
        row_name, column_name: of the axes.
        limits: the numbers of the first and last colour; by default the least and the largest.
        numbers: whether they are written too, with two digits.

    Raises:
        InputError: it is no matrix, or has not as many names.
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
    """How the numbers of each group are spread: a violin each, with the median and the quartiles.

    Args:
        values: `(groups, numbers)`.
        names: of the groups.
        title, xlabel, ylabel: with units.

    Raises:
        InputError: there are not as many names as groups.
    """
    values = np.asarray(unmasked("values", values), float)
    if values.ndim != 2 or not values.size or len(names) != len(values):
        raise InputError(f"values: expected {len(names)} groups, found shape {values.shape}")
    made, axes = _chart(
        max(0.62 * len(names) + 1.6, 5.0), 4.2, title=title, xlabel=xlabel, ylabel=ylabel
    )
    places = np.arange(len(names))
    parts = axes.violinplot(list(values), positions=places, widths=0.8, showextrema=False)
    for body in parts["bodies"]:
        body.set(facecolor=BLUE, edgecolor="none", alpha=0.45)
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75], axis=1)
    axes.vlines(places, low, high, color=BLUE, linewidth=3)
    axes.plot(places, middle, "o", color="white", markeredgecolor=BLUE, markersize=5)
    axes.set_xticks(places, names)
    return made


def attention_maps(
    weights: ArrayLike, tokens: Sequence[str], *, title: str, names: Sequence[str] | None = None
) -> Any:
    """Where each head of a layer looks, a map each, all with the same colours.

    Args:
        weights: `(heads, tokens, tokens)`: rows look at columns.
        tokens: their names.
        title: above all.
        names: of the heads; `head 0`, … by default.

    Raises:
        InputError: there are not as many tokens.
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
    for place in grid.flat[heads:]:
        place.set_visible(False)
    for place, one, name in zip(grid.flat, weights, names, strict=False):
        image = place.imshow(one, vmin=0, vmax=float(weights.max()), cmap=AMOUNTS)
        place.set_title(name, fontsize="medium")
        place.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize="small")
        place.set_yticks(range(len(tokens)), tokens, fontsize="small")
    made.supxlabel("token looked at")
    made.supylabel("token that looks")
    made.colorbar(image, ax=grid, label="attention weight (share of 1)", shrink=0.8)
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
    """Numbers by layer or step, a line for each series.

    Args:
        series: the numbers by name.
        title, xlabel, ylabel: with units.
        start: what the first number is called on the axis.
        log: whether the numbers' axis is logarithmic.

    Raises:
        InputError: there are no series.
    """
    if not series:
        raise InputError("series: there are none")
    scale = "log" if log else "linear"
    made, axes = _chart(8, 4, title=title, xlabel=xlabel, ylabel=ylabel, yscale=scale)
    axes.set_prop_cycle(color=COLOURS, marker=list("os^Dv*PX"))
    for name, values in series.items():
        axes.plot(np.arange(len(values)) + start, values, markersize=5, label=name)
    axes.xaxis.get_major_locator().set_params(integer=True)
    made.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False)
    return made


def parity(found: Mapping[str, Mapping[str, Any]], bound: float) -> Any:
    """The error of each hidden state beside PyTorch's own, and the bound, a panel for each model.

    Args:
        found: by model `ours` and `torch`, the largest differences of each state.
        bound: what they must not pass.
    """
    made = figure(4 * len(found) + 1, 3.8)
    made.suptitle("Hidden states: largest difference from PyTorch in float64")
    panels = made.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for place, (name, errors) in zip(panels, found.items(), strict=True):
        layers = np.arange(len(errors["ours"]))
        place.bar(layers - 0.2, errors["ours"], 0.4, color=BLUE, label="minibert, float32")
        place.bar(layers + 0.2, errors["torch"], 0.4, color=GREY, label="PyTorch, float32")
        for layer, error in enumerate(errors["ours"]):
            if error == 0:  # which a logarithmic axis has no place for
                place.text(layer, bound, "0", ha="center", va="top")
        place.axhline(bound, color=RED, linestyle="--", label=f"bound, {bound:.0e}")
        place.set(title=name, xlabel="hidden state", yscale="log", xticks=layers)
    panels[0].set_ylabel("largest difference")
    made.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return made


def words(found: Sequence[Mapping[str, Any]], *, title: str) -> Any:
    """The likeliest words of each text's gap, as bars.

    Args:
        found: `text`, and `words` with their probabilities, the likeliest first.
        title: above all.

    Raises:
        InputError: there are no texts.
    """
    if not found:
        raise InputError("found: there are none")
    made = figure(8, 0.9 + 0.28 * sum(len(one["words"]) + 2 for one in found))
    made.suptitle(title)
    panels = made.subplots(len(found), 1, sharex=True, squeeze=False)[:, 0]
    for place, one in zip(panels, found, strict=True):
        names = list(one["words"])[::-1]
        place.barh(names, [one["words"][name] for name in names], color=BLUE)
        place.set_title(one["text"], fontsize="medium", loc="left")
        place.set_ylabel("word")
    panels[-1].set(xlabel="probability", xlim=(0, 1))
    return made


def loss_curve(history: Sequence[Mapping[str, Any]]) -> Any:
    """The loss by step, of training and of evaluations.

    Args:
        history: metrics, as `train.Result.history` has them.

    Raises:
        InputError: there are no metrics.
        ImportError: matplotlib is not installed.
    """
    steps, losses = _logged(history, "loss")
    if not steps:
        raise InputError("history: expected metrics with a loss, found none")
    made, axes = _chart(7, 4.2, title="Loss", xlabel="step", ylabel="loss (nats a target)")
    axes.plot(steps, losses, color="0.75", linewidth=0.8, label="training, as logged")
    axes.plot(steps, _averaged(losses), color=BLUE, linewidth=1.8, label="training, running mean")
    places, values = _logged(history, "eval_loss")
    if places:
        axes.plot(places, values, "o-", color=ORANGE, markersize=4, label="evaluation")
    axes.legend(frameon=False)
    return made


def _logged(history: Sequence[Mapping[str, Any]], name: str) -> tuple[list[Any], list[Any]]:
    """The steps at which a metric was logged, and its values."""
    lines = [line for line in history if name in line]
    return [line["step"] for line in lines], [line[name] for line in lines]


def _chart(width: float | int, height: float | int, **labels: str) -> tuple[Any, Any]:
    """A figure and its one panel, which has a grid and no frame at the top and the right."""
    made = figure(width, height)
    axes = made.subplots()
    axes.set(**labels)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return made, axes


def _averaged(values: Sequence[float]) -> np.ndarray:
    """The mean of each and of what is near it, over about a twentieth of the run."""
    reach = len(values) // 40
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    near = np.minimum(reach, np.minimum(places, places[::-1]))  # as far to one side as to the other
    return (sums[places + near + 1] - sums[places - near]) / (2 * near + 1)
