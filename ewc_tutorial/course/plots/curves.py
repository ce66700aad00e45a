"""Figures of notebook 04: what a network remembers while it goes on learning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from numpy.typing import ArrayLike

from ewc_tutorial.course.plots.description import described
from ewc_tutorial.course.plots.style import (
    METHOD_STYLE,
    axes_or_new,
    curve_with_band,
    curves_over_tasks,
    looks,
)

#: Drawn behind the time in which a row's own task is trained.
_OWN_PHASE = "0.92"


@described
def forgetting_curves(
    steps: ArrayLike,
    curves: Mapping[str, ArrayLike],
    boundaries: ArrayLike,
    tasks: Sequence[str],
    axes: Sequence[Axes] | None = None,
) -> Sequence[Axes]:
    """Draw test accuracy on each task while the tasks are learned one after the other.

    One row per task, one line per method with a band of ± 1 standard error over its runs, a
    vertical line where the training goes on to the next task, and a shaded background while the
    row's own task is trained: the form of figure 2A of Kirkpatrick et al. 2017.

    Args:
        steps: ``(E,)`` training steps at which accuracies were measured.
        curves: per method ``(runs, E, T)`` accuracies in [0, 1]; a name in ``METHOD_STYLE`` gets
            that method's look. Stack the ``curves`` of one :class:`History` per run.
        boundaries: ``(T,)`` the step at which each task's training ended.
        tasks: their names, T of them.
        axes: one per task, from top to bottom.
    """
    steps, boundaries = np.asarray(steps), np.asarray(boundaries)
    if axes is None:
        size = (7.5, 0.8 + 1.5 * len(tasks))
        axes = plt.subplots(len(tasks), 1, figsize=size, sharex=True, squeeze=False)[1][:, 0]
    starts = np.concatenate([[0], boundaries[:-1]])
    for row, (ax, name) in enumerate(zip(axes, tasks, strict=True)):
        shown = steps >= starts[row]
        ax.axvspan(starts[row], boundaries[row], color=_OWN_PHASE, lw=0, zorder=0)
        lines = looks(curves, METHOD_STYLE, markers=False)
        for runs, look in zip(curves.values(), lines, strict=True):
            curve_with_band(ax, steps[shown], np.asarray(runs)[:, shown, row], **look)
        for boundary in boundaries[:-1]:
            ax.axvline(boundary, color="0.4", lw=1)
        ax.set(ylabel=f"accuracy on {name}", ylim=(0, 1.02), xlim=(0, boundaries[-1]))
        ax.grid(visible=False, axis="x")
    for start, end, name in zip(starts, boundaries, tasks, strict=True):
        axes[0].annotate(
            f"train {name}",
            ((start + end) / 2, 1),
            xytext=(0, 4),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
        )
    axes[-1].set_xlabel("training steps")
    # The last row has an empty corner: its task is trained last.
    if len(tasks) > 1:
        axes[-1].legend(loc="center left")
    else:
        axes[-1].legend()
    return axes


@described
def mean_accuracy(
    means: Mapping[str, ArrayLike], ax: Axes | None = None, single: float | None = None
) -> Axes:
    """Draw the mean accuracy over all tasks learned so far against their number.

    The form of figure 2B of Kirkpatrick et al. 2017.

    Args:
        means: per method ``(runs, T)``, the mean over tasks 1 … t after learning task t.
        ax: where to draw.
        single: accuracy of a network that learns one task only, as a horizontal line.
    """
    ax = axes_or_new(ax, (6.5, 3.8))
    n_tasks = curves_over_tasks(ax, means.values(), looks(means, METHOD_STYLE))
    if single is not None:
        ax.axhline(single, color="0.3", lw=1, label="one task alone")
    ax.set(
        xlabel="number of tasks learned",
        ylabel="mean accuracy on them",
        ylim=(0, 1.02),
        xticks=range(1, n_tasks + 1),
    )
    ax.legend(loc="lower left")
    return ax


@described("the accuracy on each task learned so far")
def accuracy_per_task(
    accuracies: Mapping[str, ArrayLike], learned: int, ax: Axes | None = None
) -> Axes:
    """Draw the accuracy on each of the first ``learned`` tasks at that moment.

    Args:
        accuracies: per method ``(runs, T)``, one row of each run's accuracy matrix.
        learned: number of tasks learned so far; the others are not drawn.
        ax: where to draw.
    """
    ax = axes_or_new(ax, (6.0, 3.2))
    n_tasks = 0
    for runs, look in zip(accuracies.values(), looks(accuracies, METHOD_STYLE), strict=True):
        runs = np.atleast_2d(np.asarray(runs, dtype=float))
        n_tasks = runs.shape[1]
        curve_with_band(ax, np.arange(1, learned + 1), runs[:, :learned], markersize=5, **look)
    ax.set(
        xlabel="task, in the order of learning",
        ylabel="test accuracy",
        title=f"after {learned} task{'s' if learned > 1 else ''}",
        ylim=(0, 1.3),
        yticks=np.linspace(0, 1, 6),
        xlim=(0.5, n_tasks + 0.5),
        xticks=range(1, n_tasks + 1),
    )
    # Above 1 there is no data.
    ax.legend(loc="upper center", ncols=len(accuracies), fontsize="small")
    return ax


@described
def accuracy_matrix(
    R: ArrayLike, tasks: Sequence[str], ax: Axes | None = None, colorbar: bool = True
) -> Axes:
    """Draw the accuracy matrix ``(T, T)`` with its numbers; the diagonal is framed."""
    R = np.asarray(R, dtype=float)
    ax = axes_or_new(ax, (0.8 * len(R) + 2.2, 0.6 * len(R) + 1.4))
    light_to_dark = LinearSegmentedColormap.from_list("accuracy", ["white", "C0"])
    sns.heatmap(
        R,
        vmin=0,
        vmax=1,
        annot=len(R) <= 5,
        fmt=".2f",
        cmap=light_to_dark,
        cbar=colorbar,
        cbar_kws={"label": "test accuracy"},
        xticklabels=tasks,
        yticklabels=tasks,
        linewidths=0.5,
        ax=ax,
    )
    for i in range(len(R)):
        ax.add_patch(plt.Rectangle((i, i), 1, 1, fill=False, edgecolor="0.2", lw=1.5))
    ax.set(xlabel="tested on task $j$", ylabel="after learning task $i$")
    ax.tick_params(axis="y", rotation=0)
    return ax


@described
def overlap_by_layer(
    overlaps: Mapping[str, ArrayLike], layers: Sequence[str], ax: Axes | None = None
) -> Axes:
    """Draw the Fisher overlap of two tasks per layer, one line per pair of tasks.

    The form of figure 2C of Kirkpatrick et al. 2017.

    Args:
        overlaps: what the line is called → ``(runs, layers)`` overlaps in [0, 1].
        layers: their names, from input to output.
        ax: where to draw.
    """
    ax = axes_or_new(ax, (6.0, 3.6))
    for runs, look in zip(overlaps.values(), looks(overlaps), strict=True):
        curve_with_band(ax, np.arange(len(layers)), runs, **look)
    ax.set(xlabel="layer", ylabel="Fisher overlap", ylim=(0, 1.02), xticks=range(len(layers)))
    ax.set_xticklabels(layers)
    ax.legend(title="permuted", loc="lower right")
    return ax


@described
def lambda_ladder(
    lambdas: ArrayLike,
    accuracies: Mapping[str, ArrayLike],
    ax: Axes | None = None,
    bayes: float | None = None,
    chosen: float | None = None,
) -> Axes:
    """Draw accuracies against λ on a logarithmic axis.

    Args:
        lambdas: ``(L,)`` values of λ > 0.
        accuracies: what the line is called → ``(runs, L)``.
        ax: where to draw.
        bayes: the value N_A / N_B that Bayes' rule gives; marked if given.
        chosen: the value that the protocol uses; marked if given.
    """
    ax = axes_or_new(ax, (7.0, 3.8))
    for runs, look in zip(accuracies.values(), looks(accuracies), strict=True):
        curve_with_band(ax, lambdas, runs, markersize=5, **look)
    ax.set(xscale="log", xlabel="λ", ylabel="test accuracy", ylim=(0, 1.02))
    for value, text in ((bayes, "Bayes: $N_A/N_B$"), (chosen, "chosen")):
        if value is not None:
            ax.axvline(value, color="0.4", lw=1, ls=(0, (1, 1)))
            ax.annotate(
                text,
                (value, 0),
                xytext=(3, 4),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                rotation=90,
                fontsize="small",
                color="0.3",
            )
    ax.legend(loc="best")
    return ax
