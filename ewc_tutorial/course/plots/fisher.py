"""Figures of notebook 02."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from numpy.typing import ArrayLike

from ewc_tutorial.course.plots.description import described
from ewc_tutorial.course.plots.style import ESTIMATOR_STYLE, axes_or_new

_LAYER_STYLES = (
    {"color": "C0", "linestyle": "-"},
    {"color": "C1", "linestyle": "--"},
    {"color": "C2", "linestyle": "-."},
    {"color": "C4", "linestyle": ":"},
)


@described("one number per pixel of an image")
def pixel_map(
    values: ArrayLike,
    title: str = "",
    vmax: float | None = None,
    cmap: str = "magma",
    ax: Axes | None = None,
    colorbar: bool = True,
) -> Axes:
    """Show one number per pixel, ``(H, W)``, on a scale from zero to ``vmax``.

    Args:
        vmax: value of the brightest colour; ``None`` takes the largest of ``values``.
        colorbar: draw the scale beside the picture.
    """
    ax = axes_or_new(ax, figsize=(3.0, 3.0))
    picture = ax.imshow(np.asarray(values), cmap=cmap, vmin=0, vmax=vmax)
    ax.set(xticks=[], yticks=[], title=title)
    ax.grid(False)
    if colorbar:
        ax.figure.colorbar(picture, ax=ax, shrink=0.75)
    return ax


@described
def unit_maps(
    maps: ArrayLike, rows: int, title: str = "", floor: float = 1e-6, ax: Axes | None = None
) -> Axes:
    """Draw the Fisher information of the weights into each hidden unit as a picture of its own.

    The pictures stand in ``rows`` rows, in descending order of their sums, on one logarithmic
    colour scale. Exact zeros are grey.

    Args:
        maps: ``(units, H, W)``.
        floor: lower end of the scale; smaller values have its colour.
    """
    maps = np.asarray(maps, dtype=float)
    units, height, width = maps.shape
    columns = -(-units // rows)
    order = np.argsort(-maps.sum(axis=(1, 2)), kind="stable")
    sheet = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1), np.nan)
    for place, unit in enumerate(order):
        top, left = (height + 1) * (place // columns), (width + 1) * (place % columns)
        sheet[top : top + height, left : left + width] = maps[unit]
    ax = axes_or_new(ax, figsize=(0.62 * columns + 1.2, 0.62 * rows + 0.5))
    ax.set_facecolor("white")
    ax.imshow(np.where(sheet == 0, 1.0, np.nan), cmap="gray", vmin=0, vmax=1.6)
    shown = np.where(sheet > 0, np.maximum(sheet, floor), np.nan)
    picture = ax.imshow(shown, cmap="magma", norm=LogNorm(floor, maps.max()))
    ax.figure.colorbar(picture, ax=ax, label="$F$ of a weight", pad=0.01)
    ax.set(xticks=[], yticks=[], title=title)
    ax.grid(False)
    sns.despine(ax=ax, left=True, bottom=True)
    return ax


@described
def importance_histograms(layers: Mapping[str, ArrayLike], ax: Axes | None = None) -> Axes:
    """Draw how log₁₀F is distributed in each layer; the legend gives the share of exact zeros."""
    ax = axes_or_new(ax)
    layers = {name: np.ravel(np.asarray(F)) for name, F in layers.items()}
    everything = np.concatenate([F[F > 0] for F in layers.values()])
    bins = np.linspace(np.log10(everything.min()), np.log10(everything.max()), 41)
    for i, (name, F) in enumerate(layers.items()):
        counts, _ = np.histogram(np.log10(F[F > 0]), bins)
        label = f"{name}: {np.mean(F == 0):.0%} are exactly 0"
        style = _LAYER_STYLES[i % len(_LAYER_STYLES)]
        ax.stairs(100 * counts / len(F), bins, lw=2, label=label, **style)
    ax.set(xlabel="$\\log_{10} F$ of a weight", ylabel="share of the layer's weights (%)")
    ax.legend(loc="upper left")
    return ax


@described
def fisher_scatter(
    F: ArrayLike,
    other: ArrayLike,
    estimator: str = "empirical",
    ratio: float | None = None,
    ratio_label: str = "",
    xlabel: str = "$F$",
    ylabel: str = "estimate",
    title: str = "",
    ax: Axes | None = None,
    most: int = 2000,
) -> Axes:
    """Draw one dot per parameter: an estimate of its Fisher information against another one.

    The thick line is where both are equal. Entries that are zero in either are left out, as the
    axes are logarithmic.

    Args:
        F, other: arrays of one shape.
        estimator: whose colour and marker ``other`` has.
        ratio: draw the line ``other = ratio · F``, too, with ``ratio_label``.
        most: draw about this many dots, evenly picked.
    """
    ax = axes_or_new(ax, figsize=(3.6, 3.4))
    F, other = np.ravel(np.asarray(F)), np.ravel(np.asarray(other))
    drawn = np.flatnonzero((F > 0) & (other > 0))
    drawn = drawn[:: max(1, len(drawn) // most)]
    color = ESTIMATOR_STYLE[estimator]["color"]
    ax.plot(F[drawn], other[drawn], ".", ms=3, alpha=0.4, color=color, mec="none")
    ends = np.array([1e-9, 1.0])
    ax.plot(ends, ends, color="0.2", lw=1.5, label="equal")
    if ratio is not None:
        ax.plot(ends, ratio * ends, color="0.2", lw=1.5, ls="--", label=ratio_label)
    ax.set(xscale="log", yscale="log", xlim=(1e-7, 0.3), ylim=(1e-9, 1.0))
    ax.minorticks_off()
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
    return ax


@described
def batch_trap(
    batch_sizes: ArrayLike,
    measured: ArrayLike,
    mean_squared: float,
    n_samples: int,
    ax: Axes | None = None,
) -> Axes:
    """Draw what squaring the mean of a batch makes of the empirical Fisher, by batch size.

    Args:
        batch_sizes: ``(K,)``.
        measured: ``(K,)`` total of ``batched`` divided by the total of ``empirical``.
        mean_squared: Σ (E[g])² / Σ E[g²] over all parameters, which fixes the two derived curves.
        n_samples: N, the size of the data set that the batches divide.
    """
    ax = axes_or_new(ax)
    B = np.geomspace(1, n_samples, 200)
    independent = 1 / B + (1 - 1 / B) * mean_squared
    divided = mean_squared + (1 - mean_squared) / B * (n_samples - B) / (n_samples - 1)
    ax.plot(B, 1 / B, color="0.4", ls=":", lw=2, label="$1/B$")
    ax.plot(B, independent, color="C0", ls="-", label="derived, independent samples")
    ax.plot(B, divided, color="C1", ls="--", label="derived, data divided into batches")
    ax.axhline(mean_squared, color="0.6", lw=1)
    ax.text(1, mean_squared * 0.93, "$(E[g])^2 / E[g^2]$", va="top", fontsize=10)
    ax.plot(batch_sizes, measured, "X", color="C3", ms=8, label="measured")
    ax.set(xscale="log", yscale="log", xlabel="batch size $B$ (samples)")
    ax.set_ylabel("total of batched / total of empirical")
    ax.legend()
    return ax


@described
def certainty_cloud(
    unsure: ArrayLike, totals: Mapping[str, ArrayLike], ax: Axes | None = None
) -> Axes:
    """Draw the squared score of single samples against 1 − p(y), for several estimators.

    Args:
        unsure: ``(N,)`` 1 − p(y) of each sample.
        totals: by estimator ``(N,)``, the squared score summed over all parameters.
    """
    ax = axes_or_new(ax)
    unsure = np.asarray(unsure)
    for name, total in totals.items():
        style = ESTIMATOR_STYLE[name]
        ax.plot(
            unsure, total, ls="", marker=style["marker"], ms=4, alpha=0.5, color=style["color"],
            mec="none", label=name,
        )  # fmt: skip
    return _certainty_axes(ax, "each dot: one training image")


@described
def certainty_path(
    unsure: ArrayLike,
    totals: Mapping[str, ArrayLike],
    what: str,
    hollow: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """Draw how a summary of the squared scores moves along training, against that of 1 − p(y).

    Args:
        unsure: ``(K,)`` at K moments of the training.
        totals: by estimator ``(K,)``.
        what: names the summary in the legend.
        hollow: draw hollow markers and thin lines, to tell two summaries apart.
    """
    ax = axes_or_new(ax)
    for name, total in totals.items():
        look = {"mfc": "white", "lw": 1} if hollow else {"lw": 2}
        ax.plot(unsure, total, ms=7, label=f"{name}, {what}", **look, **ESTIMATOR_STYLE[name])
    return _certainty_axes(ax, "moments of the training")


def _certainty_axes(ax: Axes, title: str) -> Axes:
    """Set the axes of both figures of certainty, which run from unsure to sure."""
    ax.set(xscale="log", yscale="log", title=title)
    ax.set(xlabel="$1 - p(y)$", ylabel="squared score, all weights")
    if not ax.xaxis_inverted():
        ax.invert_xaxis()
    ax.legend(loc="lower left")
    return ax


def guide_slope(ax: Axes, x: Sequence[float], y: float, slope: int, text: str) -> None:
    """Draw a thin line of the given slope on logarithmic axes, starting at ``(x[0], y)``."""
    x = np.asarray(x, dtype=float)
    ax.plot(x, y * (x / x[0]) ** slope, color="0.3", lw=1, ls=(0, (6, 3)))
    middle = np.sqrt(x[0] * x[-1])
    ax.text(middle, 1.6 * y * (middle / x[0]) ** slope, text, fontsize=9, color="0.2")


@described
def sampling_error(
    n: ArrayLike,
    errors: Mapping[str, ArrayLike],
    predicted: Mapping[str, float],
    n_total: int,
    ax: Axes | None = None,
) -> Axes:
    """Draw the relative error of F against the number of samples it was measured on.

    Args:
        n: ``(K,)`` numbers of samples.
        errors: by estimator ``(K,)`` root mean square over random subsets of ‖F_n − F‖ / ‖F‖.
        predicted: by estimator the constant c of the law c / √n, drawn as a thin line, and with
            the factor of sampling without replacement as a thick one.
        n_total: N, the number of samples there are.
    """
    ax = axes_or_new(ax, figsize=(7.0, 4.2))
    grid = np.geomspace(np.min(n), n_total * 0.999, 200)
    for name, error in errors.items():
        style = ESTIMATOR_STYLE[name]
        ax.plot(n, error, ls="", marker=style["marker"], color=style["color"], ms=7, label=name)
        if name in predicted:
            law = predicted[name] / np.sqrt(grid)
            finite = np.sqrt((n_total - grid) / (n_total - 1))
            ax.plot(grid, law, color=style["color"], lw=1, ls=":")
            ax.plot(grid, law * finite, color=style["color"], lw=1.8, ls=style["linestyle"])
    ax.plot([], [], color="0.3", lw=1, ls=":", label="law $c / \\sqrt{n}$")
    ax.plot([], [], color="0.3", lw=1.8, label="... without replacement")
    ax.axvline(n_total, color="0.4", lw=1)
    ax.text(n_total * 0.97, ax.get_ylim()[1], "all samples ", rotation=90, ha="right", va="top")
    ax.set(xscale="log", yscale="log", xlabel="number of samples $n$")
    ax.set(ylabel="relative error of $F$", ylim=(0.03, None))
    ax.legend(loc="lower left", fontsize=10)
    return ax
