"""The look that every figure of the course shares."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from numpy.typing import ArrayLike, NDArray

#: A method keeps its colour and its line style in every figure of the course.
METHOD_STYLE: dict[str, dict[str, Any]] = {
    "plain": {"color": "C7", "linestyle": "--", "label": "plain fine-tuning"},
    "L2": {"color": "C1", "linestyle": "-.", "label": "L2"},
    "EWC": {"color": "C0", "linestyle": "-", "label": "EWC"},
    "joint": {"color": "C2", "linestyle": ":", "label": "joint training"},
}

#: An estimator of the Fisher information, likewise.
ESTIMATOR_STYLE: dict[str, dict[str, Any]] = {
    "exact": {"color": "C0", "linestyle": "-", "marker": "o"},
    "sampled": {"color": "C1", "linestyle": "--", "marker": "s"},
    "empirical": {"color": "C2", "linestyle": "-.", "marker": "^"},
    "argmax": {"color": "C4", "linestyle": ":", "marker": "D"},
    "batched": {"color": "C3", "linestyle": (0, (5, 1, 1, 1, 1, 1)), "marker": "X"},
}


def set_style() -> None:
    """Set the course's look: seaborn's ``colorblind`` palette on a light grid, moderate PNGs."""
    sns.set_theme(
        context="notebook",
        style="whitegrid",
        palette="colorblind",
        rc={
            "figure.dpi": 90,
            "savefig.dpi": 90,
            "figure.constrained_layout.use": True,
            "axes.titlesize": "medium",
            "legend.frameon": True,
            "legend.framealpha": 0.9,
            "grid.linewidth": 0.6,
        },
    )


def axes_or_new(ax: Axes | None, figsize: tuple[float, float] = (6.0, 3.6)) -> Axes:
    """Return ``ax``, or the axes of a new figure of the given size in inches."""
    return plt.subplots(figsize=figsize)[1] if ax is None else ax


def line_looks(*colors: str) -> Iterator[dict[str, Any]]:
    """Yield a look per line of a figure; they differ without their colours, too."""
    for linestyle, marker, color in zip(("-", "--", "-.", ":"), "osD^", colors, strict=True):
        yield {"linestyle": linestyle, "marker": marker, "color": color}


def standard_error(runs: ArrayLike) -> NDArray[np.float64] | None:
    """Return the standard error of the mean of ``runs`` ``(seeds, ...)``; None for a single one."""
    runs = np.asarray(runs, dtype=float)
    return runs.std(axis=0, ddof=1) / np.sqrt(len(runs)) if len(runs) > 1 else None


def curve_with_band(ax: Axes, x: ArrayLike, runs: ArrayLike, **style: Any) -> None:
    """Draw the mean of ``runs`` ``(seeds, points)`` over ``x`` with a band of ± 1 standard error.

    A single run is drawn without a band.
    """
    runs = np.atleast_2d(np.asarray(runs, dtype=float))
    mean = runs.mean(axis=0)
    (line,) = ax.plot(x, mean, **style)
    error = standard_error(runs)
    if error is not None:
        ax.fill_between(x, mean - error, mean + error, color=line.get_color(), alpha=0.2, lw=0)


def label_panels(axes: Sequence[Axes]) -> None:
    """Write A, B, C … at the upper left corner of each panel."""
    for letter, ax in zip("ABCDEFGHIJ", axes, strict=False):
        ax.set_title(letter, loc="left", fontweight="bold")
