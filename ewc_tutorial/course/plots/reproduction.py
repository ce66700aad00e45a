"""Figures of notebook 12: our runs beside published ones. Its panels are those of notebook 04."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from ewc_tutorial.course.plots.description import described
from ewc_tutorial.course.plots.style import ESTIMATOR_STYLE, Look, axes_or_new, looks


@described
def forest(
    labels: Sequence[str],
    z: ArrayLike,
    notes: Sequence[str],
    limit: float = 2.0,
    ax: Axes | None = None,
) -> Axes:
    """Draw how many standard errors each of our means lies from the published one.

    Args:
        labels: one per row, from above.
        z: the differences in their standard errors; those within ``limit`` lie in the band.
        notes: what to write at the right of each row.
    """
    z = np.asarray(z, dtype=float)
    ax = axes_or_new(ax, (7.5, 0.8 + 0.38 * len(labels)))
    rows = np.arange(len(labels))[::-1]
    inside = np.abs(z) <= limit
    edge = 1.15 * max(2 * limit, np.abs(z).max())
    ax.axvspan(-limit, limit, color="C2", alpha=0.15, lw=0, label=f"within {limit:g}")
    ax.axvline(0, color="0.4", lw=1)
    ax.plot(z[inside], rows[inside], "o", color="C2", label="agrees")
    ax.plot(z[~inside], rows[~inside], "X", color="C3", ms=9, label="differs")
    for row, note in zip(rows, notes, strict=True):
        ax.annotate(
            note, (1.02, row), xycoords=("axes fraction", "data"), va="center", fontsize="small"
        )
    ax.set(xlim=(-edge, edge), ylim=(-0.7, len(labels) - 0.3))
    ax.set_yticks(rows, labels)
    ax.set_xlabel("ours − published, in standard errors of the difference")
    return ax


@described
def lambda_choice(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    published: Mapping[str, tuple[float, float]] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw accuracy over λ for some cells; the best of each is a large marker.

    Args:
        curves: name → λ and accuracies in %.
        published: name → the range of λ that was found best elsewhere, drawn below.
    """
    ax = axes_or_new(ax, (7.0, 3.8))
    drawn = {}
    styles: dict[str, Look] = {}
    for name in curves:  # the first that begins with an estimator has that one's look
        style = ESTIMATOR_STYLE.get(name.split(",")[0])
        if style is not None and style not in styles.values():
            styles[name] = style
    for (name, (lam, accuracy)), look in zip(curves.items(), looks(curves, styles), strict=True):
        lam, accuracy = np.asarray(lam, dtype=float), np.asarray(accuracy, dtype=float)
        ax.plot(lam, accuracy, ms=5, **look)
        best = accuracy.argmax()
        ax.plot(lam[best], accuracy[best], look["marker"], color=look["color"], ms=12)
        drawn[name] = look["color"]
    ax.set(xscale="log", xlabel="λ", ylabel="mean accuracy at the end (%)")
    low, high = ax.get_ylim()
    step = 0.07 * (high - low)
    for i, (name, (first, last)) in enumerate((published or {}).items()):
        y = low - (i + 0.3) * step
        ax.plot([first, last], [y, y], color=drawn[name], lw=4, solid_capstyle="round")
    if published:
        ax.plot([], [], color="0.5", lw=4, solid_capstyle="round", label="best λ, published")
        ax.set_ylim(low - (len(published) + 0.3) * step, high)
    ax.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax
