"""Plots: their labels, and that they are not blank at 72 dots per inch."""

import io

import numpy as np
import pytest

from minibert import plots
from minibert.errors import InputError

image = pytest.importorskip("matplotlib.image")

RANDOM = np.random.default_rng(0)
WORDS = ["the", "name", "of", "a", "class"]


def labels(axes):
    return [
        [text.get_text() for text in texts]
        for texts in (axes.get_xticklabels(), axes.get_yticklabels())
    ]


def visible(figure):
    """A figure that was drawn, and is not blank."""
    file = io.BytesIO()
    figure.savefig(file, dpi=72)
    file.seek(0)
    pixels = image.imread(file)[..., :3]
    assert min(pixels.shape[:2]) >= 200
    assert pixels.std() > 0.05
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
    return figure


def test_a_matrix():
    values = RANDOM.random((5, 5))
    figure = visible(plots.matrix(values, WORDS, title="Likeness", label="cosine"))
    axes, bar = figure.axes
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == (
        "Likeness",
        "token",
        "token",
    )
    assert labels(axes) == [WORDS, WORDS]
    assert bar.get_ylabel() == "cosine"
    (shown,) = axes.images
    np.testing.assert_array_equal(shown.get_array(), values)
    assert shown.get_clim() == (values.min(), values.max())
    assert shown.get_cmap().name == plots.AMOUNTS


def test_a_matrix_of_both_signs():
    values = np.array([[-1.0, 0.25], [0.5, 3.0]])
    figure = visible(
        plots.matrix(
            values,
            ["one", "two"],
            ["three", "four"],
            title="Both",
            label="nats",
            row_name="layer",
            column_name="head",
            numbers=True,
        )
    )
    axes = figure.axes[0]
    assert labels(axes) == [["three", "four"], ["one", "two"]]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("head", "layer")
    assert axes.images[0].get_clim() == (-3, 3)
    assert axes.images[0].get_cmap().name == plots.SIGNED
    assert [text.get_text() for text in axes.texts] == ["-1.00", "0.25", "0.50", "3.00"]
    given = plots.matrix(values, title="Given", label="nats", limits=(-2.0, 2.0)).axes[0]
    assert given.images[0].get_clim() == (-2, 2)
    assert given.images[0].get_cmap().name == plots.AMOUNTS
    even = plots.matrix(np.ones((2, 2)), ["a", "b"], title="Even", label="share", numbers=True)
    assert visible(even).axes[0].texts[0].get_text() == "1.00"


def test_a_large_matrix_has_numbers_on_its_axes():
    axes = visible(plots.matrix(RANDOM.random((128, 128)), title="Large", label="cosine")).axes[0]
    assert "100" in labels(axes)[0]


def test_violins():
    values = RANDOM.random((3, 40))
    figure = visible(
        plots.violins(values, ["1", "2", "3"], title="Spread", xlabel="layer", ylabel="cosine")
    )
    (axes,) = figure.axes
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == ("Spread", "layer", "cosine")
    assert labels(axes)[0] == ["1", "2", "3"]
    dots = axes.lines[0].get_ydata()
    np.testing.assert_allclose(dots, np.median(values, axis=1))


def test_attention_maps():
    weights = RANDOM.dirichlet(np.ones(5), (6, 5))
    figure = visible(plots.attention_maps(weights, WORDS, title="Layer 0"))
    assert figure.get_suptitle() == "Layer 0"
    maps = [axes for axes in figure.axes if axes.images and axes.get_label() != "<colorbar>"]
    assert [axes.get_title() for axes in maps] == [f"head {head}" for head in range(6)]
    for axes, one in zip(maps, weights, strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), one)
        assert axes.images[0].get_clim() == (0, weights.max())
    assert (figure.get_supxlabel(), figure.get_supylabel()) == (
        "key token",
        "query token",
    )
    assert labels(maps[4])[0] == WORDS
    assert labels(maps[0])[1] == WORDS


def test_lines():
    series = {"ours": [3.0, 2.0, 1.0], "theirs": [30.0, 20.0, 10.0]}
    figure = visible(
        plots.lines(series, title="Steps", xlabel="layer", ylabel="nats", start=1, log=True)
    )
    (axes,) = figure.axes
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == ("Steps", "layer", "nats")
    assert axes.get_yscale() == "log"
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), [1, 2, 3])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["ours", "theirs"]
    many = plots.lines(
        {str(number): [number] * 3 for number in range(8)}, title="", xlabel="", ylabel=""
    )
    looks = {(line.get_color(), line.get_marker()) for line in many.axes[0].lines}
    assert len(looks) == 8


def test_words():
    found = [{"text": "a [MASK]", "words": {"name": 0.6, "class": 0.3}}] * 2
    figure = visible(plots.words(found, title="Gaps"))
    assert figure.get_suptitle() == "Gaps"
    assert labels(figure.axes[0])[1] == ["class", "name"]
    assert figure.axes[0].get_title(loc="left") == "a [MASK]"
    assert figure.axes[1].get_xlabel() == "probability"


def test_parity():
    found = {"bert": {"ours": [0.0, 2e-6], "torch": [1e-7, 1e-6]}}
    figure = visible(plots.parity(found, 2e-5))
    (axes,) = figure.axes
    assert "PyTorch" in figure.get_suptitle()
    assert (axes.get_title(), axes.get_xlabel(), axes.get_yscale()) == (
        "bert",
        "hidden state",
        "log",
    )
    assert [text.get_text() for text in axes.texts] == ["0"]
    assert labels(axes)[0] == ["0", "1"]


def test_a_running_mean_does_not_lag():
    history = [{"step": step, "loss": 100.0 - step} for step in range(1, 101)]
    axes = visible(plots.loss_curve(history)).axes[0]
    np.testing.assert_allclose(axes.lines[1].get_ydata(), axes.lines[0].get_ydata())
    noisy = [{"step": step, "loss": step % 2} for step in range(1, 201)]
    middle = plots.loss_curve(noisy).axes[0].lines[1].get_ydata()[20:-20]
    assert np.ptp(middle) < 0.2


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.matrix(np.ones(3), title="", label=""), "values: expected a matrix"),
        (
            lambda: plots.matrix(np.ones((2, 3)), ["a", "b"], title="", label=""),
            "columns: expected 3 names, found 2",
        ),
        (
            lambda: plots.violins(np.ones((2, 3)), ["a"], title="", xlabel="", ylabel=""),
            "values: expected 1 groups",
        ),
        (lambda: plots.attention_maps(np.ones((2, 3, 3)), ["a"], title=""), "weights: expected"),
        (
            lambda: plots.attention_maps(np.ones((2, 1, 1)), ["a"], title="", names=["one"]),
            "names: expected 2, found 1",
        ),
        (lambda: plots.words([], title=""), "found: expected at least one text"),
        (lambda: plots.lines({}, title="", xlabel="", ylabel=""), "series: expected at least one"),
        (lambda: plots.loss_curve([{"step": 1}]), "history: expected metrics"),
    ],
)
def test_what_cannot_be_drawn(draw, message):
    with pytest.raises(InputError, match=message):
        draw()
