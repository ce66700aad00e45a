"""Figures of notebook 06: four rules for many tasks, and what room they leave."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from string import ascii_uppercase

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Ellipse
from numpy.typing import ArrayLike

from ewc_tutorial.course.plots.description import described
from ewc_tutorial.course.plots.style import (
    Look,
    axes_or_new,
    curve_with_band,
    curves_over_tasks,
    looks,
    standard_error,
)

#: A rule keeps its colour, line style and marker in every figure of the chapter.
RULE_STYLE: dict[str, Look] = {
    "separate": {"color": "C0", "linestyle": "-", "marker": "o"},
    "latest": {"color": "C1", "linestyle": "--", "marker": "s"},
    "online": {"color": "C2", "linestyle": "-.", "marker": "^"},
    "average": {"color": "C4", "linestyle": ":", "marker": "D"},
}


@described
def anchor_panels(
    optima: ArrayLike,
    fishers: ArrayLike,
    runs: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]],
    exact: ArrayLike,
    axes: Sequence[Axes] | None = None,
) -> Sequence[Axes]:
    """Draw, for each rule, the way of two weights through quadratic tasks and the memory left.

    Args:
        optima: ``(T, 2)`` each task's own optimum.
        fishers: ``(T, 2)`` each task's curvatures; its ellipse is drawn around its optimum.
        runs: rule → path ``(T, 2)`` of the weights after each task, importance S ``(2,)`` and
            anchor μ ``(2,)`` after the last.
        exact: ``(2,)`` the lowest point of the sum of all losses.
        axes: one per rule.
    """
    optima, fishers = np.asarray(optima, dtype=float), np.asarray(fishers, dtype=float)
    if axes is None:
        size = (3.0 * len(runs) + 0.4, 3.3)
        axes = plt.subplots(1, len(runs), figsize=size, sharex=True, sharey=True)[1]
    for ax, (rule, (path, S, anchor)) in zip(axes, runs.items(), strict=True):
        path, S, anchor = (np.asarray(a, dtype=float) for a in (path, S, anchor))
        for letter, m, F in zip(ascii_uppercase[: len(optima)], optima, fishers, strict=True):
            ax.add_patch(Ellipse(m, *(1.1 / np.sqrt(F)), fc="0.9", ec="0.6", lw=1, zorder=0))
            ax.annotate(letter, m, ha="center", va="center", color="0.35", zorder=1)
        color = RULE_STYLE[rule]["color"]
        ax.add_patch(Ellipse(anchor, *(1.1 / np.sqrt(S)), fc="none", ec=color, lw=2, zorder=3))
        ax.plot(*path.T, "-", color="0.2", lw=1.2, marker="o", markersize=4, zorder=2)
        ax.plot(*np.asarray(exact, dtype=float), "*", color="C3", markersize=15, zorder=4)
        ax.plot(*anchor, "x", color=color, markersize=10, mew=2.5, zorder=5)
        ax.set(title=rule, xlabel="weight $θ_1$")
        ax.set_aspect("equal")
    axes[0].set_ylabel("weight $θ_2$")
    return axes


@described
def paths_of_programs(
    paths: ArrayLike, optima: ArrayLike, axes: Sequence[Axes] | None = None
) -> Sequence[Axes]:
    """Draw one weight of several programs after each task, beside the tasks' own optima.

    Args:
        paths: ``(programs, T)`` the weight after each task.
        optima: ``(programs, T)`` where each task alone would put it.
        axes: one per program.
    """
    paths, optima = np.asarray(paths, dtype=float), np.asarray(optima, dtype=float)
    if axes is None:
        axes = plt.subplots(1, len(paths), figsize=(3.3 * len(paths), 3.0), sharey=True)[1]
    for number, (ax, path, own) in enumerate(zip(axes, paths, optima, strict=True)):
        x = range(1, len(path) + 1)
        ax.plot(x, own, "o", color="0.6", mfc="white", label="the task's own optimum")
        ax.plot(x, path, color="C0", marker=".", label="weight after the task")
        ax.set(title=f"run {number}", xlabel="task", xticks=x)
    axes[0].set_ylabel("weight $θ_1$")
    axes[-1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return axes


@described
def task_weights(
    weights: Mapping[str, ArrayLike], ax: Axes | None = None, fair: bool = True
) -> Axes:
    """Draw what each task counts for in the final weights, ``(T,)`` per rule, summing to one."""
    ax = axes_or_new(ax, (6.5, 3.6))
    n_tasks = 0
    for values, look in zip(weights.values(), _looks(weights), strict=True):
        n_tasks = len(np.asarray(values))
        ax.plot(range(1, n_tasks + 1), values, **look)
    if fair:
        ax.axhline(1 / n_tasks, color="0.4", lw=1, label="equal shares")
    ax.set(
        xlabel="task, in the order of learning",
        ylabel="its weight in the last optimum",
        xticks=range(1, n_tasks + 1),
        ylim=(0, None),
    )
    ax.legend(fontsize="small")
    return ax


@described
def accuracy_by_task(
    accuracies: Mapping[str, ArrayLike], ax: Axes | None = None, joint: float | None = None
) -> Axes:
    """Draw the accuracy on each task after the last one, one line per rule.

    Args:
        accuracies: rule → ``(runs, T)``; the band is ± 1 standard error.
        ax: where to draw.
        joint: mean accuracy of joint training, as a horizontal line.
    """
    ax = axes_or_new(ax, (6.5, 3.6))
    n_tasks = curves_over_tasks(ax, accuracies.values(), _looks(accuracies))
    if joint is not None:
        ax.axhline(joint, color="0.3", lw=1, ls=(0, (1, 1)), label="joint training")
    ax.set(
        xlabel="task, in the order of learning",
        ylabel="test accuracy at the end",
        xticks=range(1, n_tasks + 1),
        ylim=(0, 1.02),
    )
    ax.legend(fontsize="small")
    return ax


@described
def difference_by_task(
    differences: ArrayLike, predicted: ArrayLike, ax: Axes | None = None
) -> Axes:
    """Draw how much more one rule keeps of each task than another, beside a predicted difference.

    Args:
        differences: ``(runs, T)`` accuracy under the one less that under the other, paired; the
            bars are ± 1 standard error.
        predicted: ``(T,)`` difference of the shares in the last optimum.
        ax: where to draw.
    """
    ax = axes_or_new(ax, (5.5, 3.6))
    runs = np.asarray(differences, dtype=float)
    x = np.arange(1, runs.shape[1] + 1)
    ax.axhline(0, color="0.4", lw=1)
    ax.plot(x, predicted, color="0.4", ls="--", marker="x", label="share, predicted")
    ax.errorbar(
        x, runs.mean(0), yerr=standard_error(runs), color="C0", fmt="o", capsize=3,
        label="accuracy, measured",
    )  # fmt: skip
    ax.set(xlabel="task, in the order of learning", ylabel="separate − latest", xticks=x)
    ax.legend(fontsize="small")
    return ax


@described
def paired_dots(
    rows: Mapping[str, Mapping[str, ArrayLike]], ax: Axes | None = None, xlabel: str = ""
) -> Axes:
    """Draw means with standard errors, one row per setting, one marker per rule; runs are dots.

    Args:
        rows: what the row is called → rule → one value per run. A name that begins with a rule has
            its colour; one that says "anchor" is drawn hollow.
        ax: where to draw.
        xlabel: what the values are.
    """
    ax = axes_or_new(ax, (9.0, 0.8 + 0.48 * len(rows)))
    names = list(dict.fromkeys(name for values in rows.values() for name in values))
    by_name = dict(zip(names, _looks(names), strict=True))
    seen: set[str] = set()
    for y, values in enumerate(rows.values()):
        shifts = np.linspace(-0.14, 0.14, len(values)) if len(values) > 1 else [0.0]
        for shift, (rule, runs) in zip(shifts, values.items(), strict=True):
            runs, look = np.asarray(runs, dtype=float), by_name[rule]
            ax.plot(runs, np.full(len(runs), y + shift), ".", color=look["color"], alpha=0.45)
            ax.errorbar(
                runs.mean(),
                y + shift,
                xerr=standard_error(runs),
                fmt=look["marker"],
                color=look["color"],
                markerfacecolor="white" if "anchor" in rule else look["color"],
                capsize=3,
                label=None if rule in seen else rule,
            )
            seen.add(rule)
    ax.set(yticks=range(len(rows)), xlabel=xlabel, ylim=(len(rows) - 0.5, -0.5))
    ax.set_yticklabels(rows)
    ax.grid(visible=False, axis="y")
    if len(seen) > 1:
        ax.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


@described
def free_by_layer(
    shares: Mapping[str, ArrayLike],
    layers: Sequence[str],
    axes: Sequence[Axes] | None = None,
    newest: Mapping[str, ArrayLike] | None = None,
) -> Sequence[Axes]:
    """Draw the share of free weights per layer after each task, one panel per rule.

    Args:
        shares: title of the panel → ``(runs, T, layers)``.
        layers: their names, from input to output.
        axes: one per panel.
        newest: title → ``(runs, T)`` accuracy on the newest task after learning it, in grey.
    """
    if axes is None:
        size = (2.9 * len(shares) + 0.6, 3.2)
        axes = plt.subplots(1, len(shares), figsize=size, sharey=True)[1]
    for ax, (title, runs) in zip(axes, shares.items(), strict=True):
        runs = np.asarray(runs, dtype=float)
        x = np.arange(1, runs.shape[1] + 1)
        for layer, look in enumerate(looks(layers)):
            curve_with_band(ax, x, runs[:, :, layer], markersize=4, **look)
        if newest is not None:
            style = {"color": "0.4", "linestyle": ":", "marker": "x", "markersize": 4}
            curve_with_band(ax, x, newest[title], label="accuracy on\nthe newest task", **style)
        ax.set(
            title=title, xlabel="tasks so far", ylim=(0, 1.02), xticks=x[:: 2 if len(x) > 6 else 1]
        )
    axes[0].set_ylabel("share of free weights")
    axes[-1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return axes


def _looks(names: Iterable[str]) -> list[Look]:
    """Return looks in which a name has that of the rule it begins with."""
    rules = {name: name.split(",")[0].split()[0] for name in names}
    own = {name: RULE_STYLE[rule] for name, rule in rules.items() if rule in RULE_STYLE}
    return looks(rules, RULE_STYLE | own)
