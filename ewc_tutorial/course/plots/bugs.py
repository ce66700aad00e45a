"""Figures of notebook 08, Bugs in the wild."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from ewc_tutorial.course.plots.description import described
from ewc_tutorial.course.plots.style import METHOD_STYLE, axes_or_new, looks


@described
def program_chart(
    labels: Sequence[str],
    accuracies: ArrayLike,
    right: float,
    plain: float,
    ax: Axes | None = None,
) -> Axes:
    """Draw the accuracies of several programs, one row each.

    Args:
        labels: R names of the rows, from the top.
        accuracies: ``(R, 2)``, on the old task and on the new one; not a number where it diverged.
        right: accuracy on the old task without a mistake, marked with a line.
        plain: the same without any penalty.
    """
    ax = axes_or_new(ax, (9.5, 0.32 * len(labels) + 1.2))
    rows = np.arange(len(labels))[::-1]
    old, new = np.asarray(accuracies, dtype=float).T
    ax.hlines(rows, old, new, color="0.8", lw=2, zorder=1)
    ax.plot(old, rows, "o", color="C0", ms=8, label="accuracy on A, the old task")
    ax.plot(new, rows, "s", color="C1", ms=7, mfc="white", mew=2, label="on B, the new task")
    for row in rows[np.isnan(old)]:
        ax.text(
            (right + plain) / 2,
            row,
            "the loss became infinite",
            color="C3",
            va="center",
            ha="center",
        )
    ax.axvline(right, lw=1.5, color=METHOD_STYLE["EWC"]["color"], label="A, correct EWC")
    ax.axvline(
        plain, lw=1.5, ls="--", color=METHOD_STYLE["plain"]["color"], label="A, without a penalty"
    )
    ax.set(yticks=rows, yticklabels=labels, xlabel="test accuracy after training on B")
    ax.set_ylim(-0.7, len(labels) - 0.3)
    ax.grid(axis="y", visible=False)
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return ax


@described
def penalty_traces(traces: Mapping[str, ArrayLike], epoch: int, ax: Axes | None = None) -> Axes:
    """Draw the penalty over the steps on the new task, one line per program.

    Args:
        traces: label → ``(K,)``.
        epoch: steps per epoch, marked by ticks.
    """
    ax = axes_or_new(ax, (7.0, 3.4))
    for values, look in zip(traces.values(), looks(traces, markers=False), strict=True):
        ax.plot(np.asarray(values), lw=2.2, **look)
    steps = max(len(v) for v in traces.values())
    ax.set(
        xticks=np.arange(0, steps + 1, epoch),
        xlabel="training step on B (a tick for each epoch)",
        ylabel="penalty in the loss",
    )
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return ax


@described
def old_against_new(
    curves: Mapping[str, ArrayLike], ax: Axes | None = None, *, plain: ArrayLike | None = None
) -> Axes:
    """Draw the accuracy on the old task over that on the new one, a line through all λ.

    Args:
        curves: label → ``(L, 2)``, accuracy on the old task and on the new one as λ grows.
        plain: ``(2,)``, the same without a penalty.
    """
    ax = axes_or_new(ax, (5.6, 3.8))
    for values, look in zip(curves.values(), looks(curves), strict=True):
        old, new = np.asarray(values, dtype=float).T
        ax.plot(new, old, lw=2, **look)
    if plain is not None:
        ax.plot(plain[1], plain[0], "*", ms=14, color="0.3", ls="none", label="no penalty")
    ax.set(xlabel="test accuracy on B, the new task", ylabel="test accuracy on A, the old task")
    ax.legend(loc="lower left")
    return ax
