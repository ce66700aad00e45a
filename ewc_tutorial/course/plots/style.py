"""The look that every figure of the course shares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from numpy.typing import ArrayLike, NDArray

Look = dict[str, Any]

#: What lines that have no look of their own take in turn. Red is kept for warnings, as long as
#: there are others.
COLORS = ("C0", "C1", "C2", "C4", "C5", "C9", "C7", "C8", "C6", "C3")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "X", "v", "P")

#: A method keeps its colour, line style and marker in every figure of the course.
METHOD_STYLE: dict[str, Look] = {
    "plain": {"color": "C7", "linestyle": "--", "marker": "s", "label": "plain fine-tuning"},
    "L2": {"color": "C1", "linestyle": "-.", "marker": "^", "label": "L2"},
    "EWC": {"color": "C0", "linestyle": "-", "marker": "o", "label": "EWC"},
    "joint": {"color": "C2", "linestyle": ":", "marker": "D", "label": "joint training"},
}

#: An estimator of the Fisher information, likewise.
ESTIMATOR_STYLE: dict[str, Look] = {
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


def looks(
    names: Iterable[str],
    styles: Mapping[str, Look] | None = None,
    *,
    first: Sequence[str] = (),
    markers: bool = True,
) -> list[Look]:
    """Return a look for each line of a figure: ``color``, ``linestyle``, ``marker``, ``label``.

    No two of up to thirty lines look alike, with markers or without; the first few differ
    without their colours, too.

    Args:
        names: what the lines are called, which becomes their label.
        styles: the look of some names, which nobody else gets, label included if it has one.
        first: colours that the other names take before those of the course.
        markers: whether points are marked.
    """
    names, styles = list(names), styles or {}
    taken = [styles[name] for name in names if name in styles]

    def spare_first(key: str, values: Sequence[Any]) -> list[Any]:
        """Return first what no style has, then what none in this figure has."""
        # A figure in which no name has a style is about something else.
        here, known = ([s.get(key) for s in g] for g in (taken, styles.values() if taken else ()))
        return sorted(values, key=lambda value: (value in here, value in known))

    colors = dict.fromkeys((*first, *spare_first("color", COLORS)))
    here = [style["color"] for style in taken]
    free = {"color": [color for color in colors if color not in here] or list(colors)}
    free["linestyle"] = spare_first("linestyle", LINES)
    if markers:
        free["marker"] = spare_first("marker", MARKERS)
    found, others = [], 0
    for name in names:
        look = styles.get(name)
        if look is None:
            # When the colours begin again, the rest is one ahead of where it was with them before.
            turn, place = divmod(others, len(free["color"]))
            look = {"color": free["color"][place]}
            look |= {k: v[(place + turn) % len(v)] for k, v in free.items() if k != "color"}
            others += 1
        found.append({"label": name} | (look if markers else without_marker(look)))
    return found


def without_marker(look: Look) -> Look:
    """Return a look for a line alone."""
    return {key: value for key, value in look.items() if key != "marker"}


def standard_error(runs: ArrayLike, axis: int = 0) -> NDArray[np.float64]:
    """Return the standard error of the mean over the axis of the seeds; 0 for a single one."""
    runs = np.asarray(runs, dtype=float)
    seeds = runs.shape[axis]
    if seeds < 2:
        return np.zeros_like(runs.mean(axis=axis))
    return runs.std(axis=axis, ddof=1) / np.sqrt(seeds)


def curves_over_tasks(ax: Axes, runs: Iterable[ArrayLike], styles: Iterable[Look]) -> int:
    """Draw each ``(seeds, T)`` over tasks 1 … T with :func:`curve_with_band`, and return T."""
    n_tasks = 0
    for values, look in zip(runs, styles, strict=True):
        n_tasks = np.atleast_2d(np.asarray(values)).shape[1]
        curve_with_band(ax, np.arange(1, n_tasks + 1), values, markersize=5, **look)
    return n_tasks


def curve_with_band(ax: Axes, x: ArrayLike, runs: ArrayLike, **style: Any) -> None:
    """Draw the mean of ``runs`` ``(seeds, points)`` over ``x`` with a band of ± 1 standard error.

    Of two runs the band goes from one to the other, as a standard error of two would pretend to
    know more. A single run is drawn without a band.
    """
    runs = np.atleast_2d(np.asarray(runs, dtype=float))
    mean = runs.mean(axis=0)
    (line,) = ax.plot(x, mean, **style)
    if len(runs) > 1:
        error = standard_error(runs)
        ends = (mean - error, mean + error) if len(runs) > 2 else (runs.min(0), runs.max(0))
        ax.fill_between(x, *ends, color=line.get_color(), alpha=0.2, lw=0)
