"""Figures of notebook 11: forgetting on purpose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from ewc_tutorial.course.plots.description import described
from ewc_tutorial.course.plots.style import Look, axes_or_new, looks, standard_error

#: Colours of lines, that of the forgotten task first.
_FORGOTTEN_FIRST = ("C3", "C0", "C4", "C1")

#: A network keeps its colour, marker and line in all figures of the notebook.
NETWORK_STYLE: dict[str, Look] = {
    "learned": {"color": "C7", "marker": "s", "linestyle": "--", "label": "before"},
    "subtracted": {"color": "C3", "marker": "o", "linestyle": "-", "label": "update subtracted"},
    "repaired": {"color": "C0", "marker": "^", "linestyle": "-.", "label": "… and repaired"},
    "retrained": {"color": "C2", "marker": "D", "linestyle": ":", "label": "retrained without it"},
    "other batches": {
        "color": "C2",
        "marker": "D",
        "linestyle": ":",
        "label": "retrained, other batches",
    },
    "other weights": {
        "color": "C4",
        "marker": "X",
        "linestyle": (0, (5, 1, 1, 1)),
        "label": "retrained, other first weights",
    },
    "from scratch": {
        "color": "C1",
        "marker": "v",
        "linestyle": (0, (1, 3)),
        "label": "untrained, same repair",
    },
}


@described
def before_and_after(
    positions: Sequence[str],
    accuracies: Mapping[str, Mapping[str, ArrayLike]],
    axes: Sequence[Axes] | None = None,
) -> Sequence[Axes]:
    """Draw the accuracy on the forgotten task (left) and on the kept ones (right).

    Args:
        positions: what the forgotten task is called, one tick each.
        accuracies: network (a key of ``NETWORK_STYLE``) → ``"forgotten"`` and ``"kept"`` → one
            accuracy per position.
        axes: two.
    """
    if axes is None:
        axes = plt.subplots(1, 2, figsize=(9.5, 3.6), sharey=True)[1]
    for ax, part in zip(axes, ("forgotten", "kept"), strict=True):
        for shift, (network, values) in zip(
            np.linspace(-0.22, 0.22, len(accuracies)), accuracies.items(), strict=True
        ):
            look = {k: v for k, v in NETWORK_STYLE[network].items() if k != "linestyle"}
            x = np.arange(len(positions)) + shift
            ax.plot(x, values[part], linestyle="none", markersize=8, **look)
            for at, value in zip(x, values[part], strict=True):
                ax.annotate(
                    f"{100 * value:.0f}",
                    (at, value),
                    xytext=(0, 7),
                    textcoords="offset points",
                    ha="center",
                    fontsize="x-small",
                )
        ax.set(xlim=(-0.5, len(positions) - 0.5), ylim=(0, 1.12), xlabel="forgotten task")
        ax.set_xticks(range(len(positions)), positions)
        ax.grid(visible=False, axis="x")
    axes[0].set(ylabel="test accuracy", title="on the forgotten task")
    axes[1].set_title("mean over the kept tasks")
    axes[0].axhline(0.1, color="0.4", lw=1)
    axes[0].annotate("guessing", (0.5, 0.11), ha="center", fontsize="x-small", color="0.3")
    axes[1].legend(loc="lower right", fontsize="small")
    return axes


@described
def bowl_paths(
    x: ArrayLike,
    y: ArrayLike,
    loss: ArrayLike,
    paths: Mapping[str, ArrayLike],
    points: Mapping[str, ArrayLike],
    ax: Axes | None = None,
    title: str = "",
) -> Axes:
    """Draw contours of the later task's loss over two weights, descents and what subtraction gives.

    Args:
        x, y: ``(X,)`` and ``(Y,)``, values of the two weights.
        loss: ``(Y, X)``, of the later task.
        paths: ``"learned"`` and ``"retrained"`` → ``(K + 1, 2)``.
        points: name → ``(2,)``; ``"subtracted"`` gets its style and an arrow from the end of the
            path ``"learned"``, others are small and named.
        ax: where to draw.
        title: above the axes.
    """
    ax = axes_or_new(ax, (4.2, 3.8))
    loss = np.asarray(loss)
    levels = loss.max() * np.array([0.01, 0.05, 0.15, 0.35, 0.7])
    ax.contour(x, y, loss, levels=levels, colors="0.75", linewidths=0.8)
    for name, path in paths.items():
        path, look = np.asarray(path), NETWORK_STYLE[name]
        ax.plot(*path.T, color=look["color"], linestyle=look["linestyle"], lw=1.8)
        label = {"learned": "A, then B", "retrained": "B alone"}[name]
        ax.plot(*path[-1], look["marker"], color=look["color"], ms=8, label=label, zorder=4)
    for name, point in points.items():
        if name == "subtracted":
            look = NETWORK_STYLE[name]
            ax.plot(*point, look["marker"], color=look["color"], ms=8, label=name, zorder=5)
            arrow = {"arrowstyle": "->", "color": look["color"], "shrinkA": 5, "shrinkB": 5}
            ax.annotate("", point, np.asarray(paths["learned"])[-1], arrowprops=arrow)
            continue
        ax.plot(*point, ".", color="black", ms=6)
        ax.annotate(
            name, point, xytext=(-5, -3), textcoords="offset points", ha="right", fontsize="small"
        )
    ax.set(xlabel="weight 1", ylabel="weight 2", title=title, aspect="equal")
    ax.set(xlim=(np.min(x), np.max(x)), ylim=(np.min(y), np.max(y)))
    return ax


@described
def returning(
    steps: ArrayLike,
    curves: Mapping[str, ArrayLike],
    ax: Axes | None = None,
    title: str = "",
    xlabel: str = "steps",
) -> Axes:
    """Draw accuracies over steps that are taken after a task was unlearned.

    Args:
        steps: ``(K,)``.
        curves: label → ``(K,)``. A key of ``NETWORK_STYLE`` gets that look; of other labels the
            first is drawn as the forgotten task.
        ax: where to draw.
        title, xlabel: of the axes.
    """
    ax = axes_or_new(ax, (4.8, 3.4))
    every = max(1, len(np.asarray(steps)) // 7)
    lines = looks(curves, NETWORK_STYLE, first=_FORGOTTEN_FIRST)
    for values, look in zip(curves.values(), lines, strict=True):
        ax.plot(steps, values, markevery=every, **look)
    ax.set(xlabel=xlabel, ylabel="test accuracy", ylim=(0, 1.02), title=title)
    return ax


@described
def by_position(
    positions: ArrayLike,
    runs: Mapping[str, ArrayLike],
    ax: Axes | None = None,
    ylabel: str = "",
) -> Axes:
    """Draw means over seeds with bars of ± 1 standard error against the forgotten task's place.

    Args:
        positions: ``(T,)``, 1 is the first task.
        runs: network (a key of ``NETWORK_STYLE``) → ``(seeds, T)``.
        ax: where to draw.
        ylabel: of the axes.
    """
    ax = axes_or_new(ax, (4.6, 3.4))
    positions = np.asarray(positions, dtype=float)
    for shift, (network, values) in zip(
        np.linspace(-0.12, 0.12, len(runs)), runs.items(), strict=True
    ):
        values = np.atleast_2d(np.asarray(values, dtype=float))
        ax.errorbar(
            positions + shift, values.mean(axis=0), yerr=standard_error(values), capsize=3, ms=6,
            **NETWORK_STYLE[network],
        )  # fmt: skip
    ax.set(xlabel="place of the forgotten task", ylabel=ylabel, xticks=positions)
    return ax
