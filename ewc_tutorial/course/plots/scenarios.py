"""Figures of notebook 07: three scenarios, and where the class-incremental one goes wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from numpy.typing import ArrayLike, NDArray

from ewc_tutorial.course.plots.description import described
from ewc_tutorial.course.plots.style import METHOD_STYLE, axes_or_new, looks, standard_error


@described
def scenario_dots(
    ours: Mapping[str, Mapping[str, ArrayLike]],
    published: Mapping[str, Mapping[str, float]],
    axes: Sequence[Axes] | None = None,
) -> Sequence[Axes]:
    """Draw the final accuracy per scenario and method: ours on the left, published on the right.

    Args:
        ours: scenario → method → accuracies in [0, 1], one per seed; every seed is a small dot,
            the mean a large marker with its number.
        published: scenario → method → accuracy in [0, 1].
        axes: two.
    """
    if axes is None:
        axes = plt.subplots(1, 2, figsize=(9.5, 3.9), sharey=True)[1]
    for ax, table in zip(axes, (ours, published), strict=True):
        methods = list(next(iter(table.values())))
        for offset, method, look in zip(
            _offsets(len(methods), 0.24), methods, looks(methods, METHOD_STYLE), strict=True
        ):
            runs = [np.atleast_1d(np.asarray(row[method], dtype=float)) for row in table.values()]
            places = np.arange(len(runs)) + offset
            means = [values.mean() for values in runs]
            for x, values in zip(places, runs, strict=True):
                if len(values) > 1:
                    ax.plot(np.full(len(values), x), values, ".", color=look["color"], alpha=0.5)
            ax.plot(
                places, means, markersize=9, markeredgecolor="white", **look | {"linestyle": "none"}
            )
            for x, mean in zip(places, means, strict=True):
                ax.annotate(
                    f"{100 * mean:.0f}", (x, mean), xytext=(0, 9), textcoords="offset points",
                    ha="center", fontsize="small",
                )  # fmt: skip
        ax.set(xticks=range(len(table)), xlim=(-0.5, len(table) - 0.5), ylim=(0, 1.12))
        ax.set_xticklabels(table)
        ax.set_yticks(np.linspace(0, 1, 6))
        ax.set_xlabel("scenario (-incremental)")
        ax.grid(visible=False, axis="x")
    axes[0].set_ylabel("mean accuracy on all five tasks")
    axes[0].set_title("here: 8×8 digits")
    axes[1].set_title("published: Split MNIST")
    axes[0].legend(loc="lower left", fontsize="small")
    return axes


@described
def logit_paths(
    steps: ArrayLike,
    logits: Mapping[str, ArrayLike],
    ax: Axes | None = None,
    title: str = "",
) -> Axes:
    """Draw mean logits against training steps, one line per group of classes.

    Args:
        steps: ``(E,)`` training steps.
        logits: what the line is called → ``(E,)``.
        ax: where to draw.
        title: above the axes.
    """
    ax = axes_or_new(ax, (5.0, 3.4))
    every = max(1, len(np.asarray(steps)) // 8)
    for values, look in zip(logits.values(), looks(logits), strict=True):
        ax.plot(steps, values, markevery=every, **look)
    ax.set(xlabel="steps on the new task", ylabel="mean of the largest logit", title=title)
    ax.legend(title="among the classes", fontsize="small", loc="best")
    return ax


@described
def answered_tasks(
    confusion: ArrayLike,
    tasks: Sequence[str],
    ax: Axes | None = None,
    title: str = "",
    numbers: bool = True,
) -> Axes:
    """Draw how often the images of each task are given to a class of each task ``(T, T)``."""
    confusion = np.asarray(confusion, dtype=float)
    ax = axes_or_new(ax, (3.6, 3.4))
    sns.heatmap(
        confusion,
        vmin=0,
        vmax=1,
        cmap=LinearSegmentedColormap.from_list("share", ["white", "C0"]),
        annot=[[f"{100 * v:.0f}" if v >= 0.005 else "" for v in row] for row in confusion]
        if numbers
        else False,
        fmt="",
        annot_kws={"fontsize": "small"},
        cbar=False,
        square=True,
        linewidths=0.5,
        linecolor="0.9",
        xticklabels=tasks,
        yticklabels=tasks,
        ax=ax,
    )
    ax.set(xlabel="the answer is one of", ylabel="images of", title=title)
    ax.tick_params(axis="x", rotation=0)
    ax.tick_params(axis="y", rotation=0)
    return ax


@described
def recovery(
    shares: Mapping[str, Mapping[str, ArrayLike]],
    axes: Sequence[Axes] | None = None,
    joint: float | None = None,
    told: str = "task is told",
) -> Sequence[Axes]:
    """Draw accuracies of networks after repairs of growing size, one row of dots per repair.

    Args:
        shares: network → repair → accuracies in [0, 1], one per seed.
        axes: two; the second is for the easier question.
        joint: accuracy of joint training, as a vertical line.
        told: the row that answers an easier question than the others, where one of two classes is
            right and half of all guesses are.
    """
    repairs = list(next(iter(shares.values())))
    groups = [[r for r in repairs if r != told], [r for r in repairs if r == told]]
    if axes is None:
        ratios = {"height_ratios": [len(groups[0]), max(1, len(groups[1])) + 0.3]}
        axes = plt.subplots(2, 1, figsize=(7.5, 3.9), sharex=True, gridspec_kw=ratios)[1]
    networks = looks(shares, first=("C7", "C0", "C4", "C1"))
    for ax, rows in zip(axes, groups, strict=True):
        for shift, row, look in zip(
            _offsets(len(shares), 0.2), shares.values(), networks, strict=True
        ):
            values = [np.asarray(row[repair], dtype=float) for repair in rows]
            ax.errorbar(
                [v.mean() for v in values], np.arange(len(rows)) + shift,
                xerr=[float(standard_error(v)) for v in values],
                markersize=7, capsize=3, **look | {"linestyle": "none"},
            )  # fmt: skip
        ax.set(yticks=range(len(rows)), xlim=(0, 1.02))
        ax.set_ylim(max(1, len(rows)) - 0.5, -0.5)
        ax.set_yticklabels(rows)
        ax.grid(visible=False, axis="y")
    if joint is not None:
        axes[0].axvline(joint, color="C2", ls=":", label="joint training")
    axes[0].set_xlabel("accuracy among all ten digits")
    axes[1].axvline(0.5, color="0.4", lw=1)
    axes[1].annotate("guessing ", (0.5, 0.35), ha="right", fontsize="small", color="0.3")
    axes[1].set_xlabel("accuracy among the two digits of the told task")
    axes[0].tick_params(axis="x", labelbottom=True)
    axes[0].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
    return axes


def _offsets(count: int, most: float) -> NDArray[np.float64]:
    """Return places side by side around 0, from ``-most`` to ``most``."""
    return np.linspace(-most, most, count) if count > 1 else np.zeros(count)
