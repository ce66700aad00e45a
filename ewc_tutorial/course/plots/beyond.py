"""Figures of notebook 13: what the diagonal cannot see, and what two small matrices do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from numpy.typing import ArrayLike

from ewc_tutorial.course.plots.description import described
from ewc_tutorial.course.plots.style import (
    METHOD_STYLE,
    Look,
    axes_or_new,
    curve_with_band,
    curves_over_tasks,
    looks,
)

#: What a prediction or a penalty is made of keeps its look in every figure of the chapter.
CURVATURE_STYLE: dict[str, Look] = {
    "true loss": {"color": "0.15", "linestyle": "-", "marker": "o"},
    "whole": {"color": "C2", "linestyle": (0, (5, 1)), "marker": "D"},
    "kronecker": {"color": "C4", "linestyle": "-.", "marker": "X"},
    "diagonal": METHOD_STYLE["EWC"] | {"linestyle": ":"},
    "identity": METHOD_STYLE["L2"],
    "plain": METHOD_STYLE["plain"],
    "joint": METHOD_STYLE["joint"],
}
_NAMES = {
    "true loss": "A's true loss",
    "whole": "whole Fisher matrix",
    "kronecker": "Kronecker factors",
    "diagonal": "diagonal",
    "identity": "identity (L2)",
    "plain": "plain fine-tuning",
    "joint": "joint training",
}


def _looks(names: Sequence[str]) -> list[Look]:
    styles = {n: look | {"label": _NAMES[n]} for n, look in CURVATURE_STYLE.items()}
    return looks(names, styles)


@described
def stiffness_by_direction(
    angles: ArrayLike,
    curves: Mapping[str, ArrayLike],
    marks: Mapping[str, float],
    ax: Axes | None = None,
) -> Axes:
    """Draw what matrices say of steps of length one, over the direction of the step.

    Args:
        angles: ``(K,)`` in degrees.
        curves: matrix → ``(K,)`` vᵀMv.
        marks: what to write at some angle → the angle.
        ax: where to draw.
    """
    ax = axes_or_new(ax, (6.5, 3.6))
    for values, look in zip(curves.values(), _looks(list(curves)), strict=True):
        ax.plot(angles, values, lw=2, **{k: v for k, v in look.items() if k != "marker"})
    top = max(np.max(values) for values in curves.values())
    for text, angle in marks.items():
        ax.axvline(angle, color="0.6", lw=1, zorder=0)
        ax.annotate(text, (angle, 1.08 * top), ha="center", va="bottom", fontsize="small")
    ax.set(
        xlabel="direction of the step (degrees from the axis of weight 1)",
        ylabel="stiffness along it",
        xlim=(np.min(angles), np.max(angles)),
        ylim=(0, 1.25 * top),
        xticks=np.arange(np.min(angles), np.max(angles) + 1, 30),
    )
    ax.legend(fontsize="small", loc="upper right")
    return ax


@described
def rise_along(
    fractions: ArrayLike,
    panels: Mapping[str, Mapping[str, ArrayLike]],
    axes: Sequence[Axes] | None = None,
) -> Sequence[Axes]:
    """Draw by how much A's loss rises along a step, and what each curvature predicts.

    Args:
        fractions: ``(K,)`` of the step.
        panels: title → what → ``(K,)`` rises in nats, positive where they are drawn.
        axes: one per panel.
    """
    if axes is None:
        axes = plt.subplots(1, len(panels), figsize=(4.1 * len(panels), 3.7), sharey=True)[1]
    for ax, (title, curves) in zip(axes, panels.items(), strict=True):
        for values, look in zip(curves.values(), _looks(list(curves)), strict=True):
            values = np.asarray(values, dtype=float)
            ax.plot(fractions, np.where(values > 0, values, np.nan), markersize=5, **look)
        ax.set(title=title, xlabel="fraction of the step", yscale="log")
    axes[0].set_ylabel("rise of the loss on A (nats)")
    axes[0].legend(fontsize="small", loc="lower right")
    return axes


@described
def same_matrix(matrices: Mapping[str, ArrayLike], axes: Sequence[Axes] | None = None) -> None:
    """Draw the sizes of the entries of a matrix in several bases, on one logarithmic scale.

    Args:
        matrices: name of the basis → ``(P, P)``.
        axes: one per matrix.
    """
    if axes is None:
        axes = plt.subplots(1, len(matrices), figsize=(4.3 * len(matrices), 4.1))[1]
    sizes = [np.abs(np.asarray(m, dtype=float)) for m in matrices.values()]
    top = max(m.max() for m in sizes)
    image = None
    for ax, name, size in zip(axes, matrices, sizes, strict=True):
        image = ax.imshow(np.maximum(size, 1e-5 * top), norm=LogNorm(1e-5 * top, top), cmap="magma")
        ax.set(title=name, xlabel="column", ylabel="row")
        ax.grid(False)
    axes[0].figure.colorbar(image, ax=list(axes), shrink=0.8, label="size of the entry")


@described
def accuracy_by_curvature(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    lines: Mapping[str, float],
    ax: Axes | None = None,
    title: str = "",
) -> Axes:
    """Draw the mean accuracy over λ for each curvature, and those without a λ as lines.

    Args:
        curves: curvature → λ ``(K,)`` and accuracies ``(runs, K)``; the band is ± 1 standard error.
        lines: method → mean accuracy.
        ax: where to draw.
        title: of the panel.
    """
    ax = axes_or_new(ax, (6.0, 3.8))
    for (lambdas, runs), look in zip(curves.values(), _looks(list(curves)), strict=True):
        curve_with_band(ax, lambdas, runs, markersize=5, **look)
    for value, look in zip(lines.values(), _looks(list(lines)), strict=True):
        ax.axhline(value, lw=1.5, **{k: v for k, v in look.items() if k != "marker"})
    ax.axvline(1, color="0.6", lw=1, zorder=0)
    ax.annotate(" Bayes: 1", (1, 0.25), xycoords=("data", "axes fraction"), fontsize="small")
    ax.set(xscale="log", xlabel="λ", ylabel="mean accuracy at the end", title=title)
    return ax


@described
def total_loss_by_lambda(
    panels: Mapping[str, Mapping[str, tuple[ArrayLike, ArrayLike]]],
    axes: Sequence[Axes] | None = None,
) -> Sequence[Axes]:
    """Draw the loss on both tasks over λ for each curvature; the lowest point has a ring.

    Args:
        panels: title → curvature → λ ``(K,)`` and losses ``(runs, K)``.
        axes: one per panel.
    """
    if axes is None:
        axes = plt.subplots(1, len(panels), figsize=(4.8 * len(panels), 3.8))[1]
    for ax, (title, curves) in zip(axes, panels.items(), strict=True):
        for (lambdas, runs), look in zip(curves.values(), _looks(list(curves)), strict=True):
            curve_with_band(ax, lambdas, runs, markersize=4, **look)
            mean = np.mean(runs, axis=0)
            best = mean.argmin()
            ax.plot(
                np.asarray(lambdas)[best],
                mean[best],
                "o",
                ms=12,
                mfc="none",
                mec=look["color"],
                mew=2,
            )
        ax.axvline(1, color="0.6", lw=1, zorder=0)
        ax.annotate(" Bayes: 1", (1, 0.02), xycoords=("data", "axes fraction"), fontsize="small")
        ax.set(xscale="log", xlabel="λ", ylabel="loss on A and B (nats)", title=title)
        ax.set_ylim(0)
    axes[0].legend(fontsize="x-small", loc="lower right")
    return axes


@described
def tasks_by_curvature(
    accuracies: Mapping[str, ArrayLike], joint: float, ax: Axes | None = None
) -> Axes:
    """Draw the accuracy on each task after the last one, one line per curvature.

    Args:
        accuracies: curvature → ``(runs, T)``; the band is ± 1 standard error.
        joint: mean accuracy of joint training, as a horizontal line.
        ax: where to draw.
    """
    ax = axes_or_new(ax, (6.5, 3.6))
    n_tasks = curves_over_tasks(ax, accuracies.values(), _looks(list(accuracies)))
    (look,) = _looks(["joint"])
    ax.axhline(joint, lw=1.5, **{k: v for k, v in look.items() if k != "marker"})
    ax.set(
        xlabel="task, in the order of learning",
        ylabel="test accuracy at the end",
        xticks=range(1, n_tasks + 1),
        ylim=(0, 1.02),
    )
    ax.legend(fontsize="small", loc="lower right")
    return ax


@described
def mean_by_curvature(means: Mapping[str, ArrayLike], ax: Axes | None = None) -> Axes:
    """Draw the mean accuracy over all tasks learned so far against their number.

    Args:
        means: curvature or method → ``(runs, T)``; the band is ± 1 standard error.
        ax: where to draw.
    """
    ax = axes_or_new(ax, (7.5, 4.0))
    styles = [
        look | {"label": f"EWC, {look['label']}"} if name in ("kronecker", "diagonal") else look
        for name, look in zip(means, _looks(list(means)), strict=True)
    ]
    curves_over_tasks(ax, means.values(), styles)
    ax.set(
        xlabel="number of tasks learned, one after the other",
        ylabel="mean accuracy on all of them",
        ylim=(0.2, 1.0),
    )
    ax.legend(fontsize="small", loc="lower left")
    return ax
