"""Figures of notebook 03, The penalty term."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from ewc_tutorial.course.plots.description import described
from ewc_tutorial.course.plots.style import (
    ESTIMATOR_STYLE,
    METHOD_STYLE,
    Look,
    axes_or_new,
    looks,
    without_marker,
)

_TASK_STYLE: dict[str, dict[str, Any]] = {
    "A": {"colors": "C4", "linestyles": "solid"},
    "B": {"colors": "C5", "linestyles": "dashed"},
}
_PATH_STYLE: dict[str, Look] = {
    "L2": METHOD_STYLE["L2"],
    "EWC": METHOD_STYLE["EWC"],
    "full": {**METHOD_STYLE["joint"], "label": "full curvature (exact)"},
}
_UPDATE_STYLE: dict[str, Look] = {
    "gradient": {"color": "C3", "linestyle": "--", "marker": "X"},
    "proximal": {"color": "C0", "linestyle": "-", "marker": "o"},
}


@described
def stiffness_histogram(fisher: ArrayLike, ax: Axes | None = None) -> Axes:
    """Draw how many weights have which Fisher information F, on a logarithmic axis.

    Args:
        fisher: ``(P,)``, F ≥ 0 of every weight; zeros are counted in the legend.
    """
    ax = axes_or_new(ax)
    fisher = np.asarray(fisher, dtype=float)
    positive = fisher[fisher > 0]
    # A handful of far smaller values would only squeeze the rest together.
    lowest = np.quantile(positive, 0.001)
    bins = np.logspace(np.floor(np.log10(lowest)), np.ceil(np.log10(positive.max())), 60)
    ax.hist(
        positive.clip(bins[0]),
        bins=bins,
        color="C0",
        alpha=0.8,
        label=f"F > 0: {len(positive)} weights",
    )
    ax.plot([], [], " ", label=f"F = 0: {len(fisher) - len(positive)} weights")
    median = np.median(fisher)
    for value, text, style in ((median, "median", "--"), (fisher.max(), "stiffest", ":")):
        ax.axvline(value, color="C3", linestyle=style, label=f"{text}: F = {value:.1g}")
    ax.set(xscale="log", xlabel="Fisher information F of a weight", ylabel="number of weights")
    ax.legend(loc="upper left")
    return ax


@described
def two_bowls(
    x: ArrayLike,
    y: ArrayLike,
    losses: Mapping[str, ArrayLike],
    minima: Mapping[str, ArrayLike],
    paths: Mapping[str, ArrayLike],
    ax: Axes | None = None,
    *,
    mark: int | None = None,
    levels: Sequence[float] = (0.05, 0.2, 0.5, 1, 2, 4),
) -> Axes:
    """Draw contours of two tasks' losses over two weights, and how the optimum moves with λ.

    Args:
        x, y: ``(X,)`` and ``(Y,)``, values of the two weights.
        losses: for the tasks ``"A"`` and ``"B"`` the loss ``(Y, X)``.
        minima: for ``"A"`` and ``"B"`` the optimum ``(2,)``.
        paths: for ``"L2"``, ``"EWC"`` or ``"full"`` the optima ``(L, 2)`` as λ grows.
        mark: index of the λ to mark on every path.
        levels: of the contours, the same for both tasks.
    """
    ax = axes_or_new(ax, (5.2, 4.4))
    for task, loss in losses.items():
        ax.contour(x, y, loss, levels=levels, linewidths=0.9, alpha=0.8, **_TASK_STYLE[task])
        colour = _TASK_STYLE[task]["colors"]
        ax.plot(*minima[task], marker="*", markersize=14, color=colour, markeredgecolor="white")
        ax.annotate(
            f"best for {task}",
            minima[task],
            xytext=(8, -16) if task == "A" else (8, 6),
            textcoords="offset points",
            color=colour,
            fontweight="bold",
        )
    for path, look in zip(paths.values(), looks(paths, _PATH_STYLE), strict=True):
        path = np.asarray(path)
        ax.plot(*path.T, lw=2.5, **without_marker(look))
        if mark is not None:
            ax.plot(*path[mark], look["marker"], color=look["color"], ms=8)
    ax.set(xlabel="weight 1", ylabel="weight 2", aspect="equal")
    ax.legend(loc="best")
    return ax


@described("the loss on A over the loss on B along each path of the optimum")
def trade_off(
    losses: Mapping[str, ArrayLike], ax: Axes | None = None, *, mark: int | None = None
) -> Axes:
    """Draw the loss on A over the loss on B along each path of :func:`two_bowls`.

    Args:
        losses: for ``"L2"``, ``"EWC"`` or ``"full"`` the losses ``(L, 2)`` on A and on B.
        mark: index of the λ to mark.
    """
    ax = axes_or_new(ax, (4.6, 4.0))
    for values, look in zip(losses.values(), looks(losses, _PATH_STYLE), strict=True):
        loss_a, loss_b = np.asarray(values).T
        ax.plot(loss_b, loss_a, lw=2.5, **without_marker(look))
        if mark is not None:
            ax.plot(loss_b[mark], loss_a[mark], look["marker"], color=look["color"])
    ax.set(xlabel="loss on B above its minimum", ylabel="loss on A above its minimum")
    ax.legend()
    return ax


@described
def penalised_bowl(
    x: ArrayLike,
    y: ArrayLike,
    objective: ArrayLike,
    minima: Mapping[str, ArrayLike],
    optimum: ArrayLike,
    ax: Axes | None = None,
    *,
    title: str = "",
) -> Axes:
    """Draw the objective on B, penalty included, with its minimum between those of A and B.

    Args:
        x, y: ``(X,)`` and ``(Y,)``, values of the two weights.
        objective: ``(Y, X)``.
        minima: for ``"A"`` and ``"B"`` the optimum ``(2,)``.
        optimum: ``(2,)``, the minimum of the objective.
        title: of the panel.
    """
    ax = axes_or_new(ax, (3.6, 3.2))
    above = np.asarray(objective) - np.min(objective)
    ax.contour(x, y, above, levels=(0.05, 0.2, 0.5, 1, 2, 4), colors="0.55", linewidths=0.9)
    for task, point in minima.items():
        colour = _TASK_STYLE[task]["colors"]
        ax.plot(*point, marker="*", markersize=12, color=colour, markeredgecolor="white")
        ax.annotate(task, point, xytext=(6, -12), textcoords="offset points", color=colour)
    ax.plot(*np.asarray(optimum), "o", color="black", ms=7, label="minimum")
    ax.set(xlabel="weight 1", ylabel="weight 2", aspect="equal", title=title)
    return ax


@described
def pull_share(
    x: ArrayLike, gradient: ArrayLike, proximal: ArrayLike, ax: Axes | None = None
) -> Axes:
    """Draw which share of the way back to the anchor one step takes, for both kinds of step.

    Args:
        x: ``(K,)``, the product ηλF.
        gradient, proximal: ``(K,)``, the shares; 1 lands on the anchor, 2 on its far side.
    """
    ax = axes_or_new(ax, (4.6, 3.6))
    for name, share in (("gradient", gradient), ("proximal", proximal)):
        ax.plot(x, share, lw=2.2, label=f"{name} step", **without_marker(_UPDATE_STYLE[name]))
    ax.axhline(1, color="0.3", lw=1)
    ax.text(3.95, 1.05, "lands on the anchor", color="0.3", fontsize="small", ha="right")
    ax.axhspan(2, 1e9, color="C3", alpha=0.12, lw=0)
    ax.text(0.05, 2.15, "diverges", color="C3", fontsize="small")
    ax.set(
        xlim=(0, 4), ylim=(0, 3), xlabel="η λ F", ylabel="share of the way back", title="One step"
    )
    ax.legend(loc="center right")
    return ax


@described
def spring_steps(trajectories: Mapping[str, ArrayLike], ax: Axes | None = None) -> Axes:
    """Draw the stretch θ − θ* of one weight over the steps, one line per label.

    Args:
        trajectories: label → ``(K,)``, starting at step 0.
    """
    ax = axes_or_new(ax, (4.6, 3.6))
    for values, look in zip(trajectories.values(), looks(trajectories), strict=True):
        ax.plot(values, ms=4, **look)
    ax.axhline(0, color="0.3", lw=1)
    lowest, highest = ax.get_ylim()
    ax.set(
        ylim=(lowest, highest + 0.5 * (highest - lowest)),  # room for the legend
        xlabel="step",
        ylabel="stretch θ − θ* (start = 1)",
        title="The penalty alone",
    )
    ax.legend(fontsize="small", loc="upper left")
    return ax


@described
def stretch_over_steps(runs: Mapping[str, ArrayLike], ax: Axes | None = None) -> Axes:
    """Draw how far the stiffest weight is from its anchor over the training steps.

    Args:
        runs: label → ``(K,)``, the distances after steps 1 to K.
    """
    ax = axes_or_new(ax, (6.4, 3.4))
    for values, look in zip(runs.values(), looks(runs, markers=False), strict=True):
        ax.plot(np.arange(1, len(values) + 1), values, **look)
    ax.set(yscale="log", xlabel="training step on B", ylabel="|θ − θ*| of the stiffest weight")
    ax.legend()
    return ax


@described
def accuracy_by_lambda(
    lambdas: ArrayLike | Mapping[str, ArrayLike],
    curves: Mapping[str, ArrayLike],
    ax: Axes | None = None,
    *,
    bayes: float | None = None,
    xlabel: str = "λ",
) -> Axes:
    """Draw test accuracies on the old task and the new one over λ, one pair of lines per estimator.

    Args:
        lambdas: ``(L,)`` shared by all curves, or a mapping from estimator to its own.
        curves: estimator → ``(L, 2)``, accuracy on A (filled markers) and on B (hollow markers).
        bayes: the value N_A / N_B, marked with a vertical line.
        xlabel: what λ is multiplied by, if anything.
    """
    ax = axes_or_new(ax)
    for (name, values), look in zip(curves.items(), looks(curves, ESTIMATOR_STYLE), strict=True):
        x = lambdas[name] if isinstance(lambdas, Mapping) else lambdas
        old, new = np.asarray(values).T
        on_b = {"label": f"B, F {name}", "markerfacecolor": "white", "alpha": 0.8}
        ax.plot(x, old, ms=6, **look | {"label": f"A, F {name}"})
        ax.plot(x, new, ms=6, **look | on_b)
    if bayes is not None:
        ax.axvline(bayes, color="0.3", lw=1, linestyle=":", label="N_A / N_B")
    # The range of the course's own figure, and whatever lies below.
    lowest = min([0.3, *(np.nanmin(values) - 0.05 for values in curves.values())])
    ax.set(xscale="log", xlabel=xlabel, ylabel="test accuracy", ylim=(max(lowest, 0.0), 1.02))
    return ax


@described
def stability(
    lambdas: ArrayLike,
    gradient: ArrayLike,
    proximal: ArrayLike,
    critical: float,
    ax: Axes | None = None,
    *,
    bayes: float | None = None,
) -> Axes:
    """Draw the accuracy on the old task over λ for gradient and proximal steps.

    Args:
        lambdas: ``(L,)``.
        gradient, proximal: ``(L,)``, accuracies on A; not-a-number where training diverged, drawn
            as a cross at the bottom.
        critical: the λ at which η λ max F = 2.
        bayes: the value N_A / N_B, marked with a vertical line.
    """
    ax = axes_or_new(ax, (6.6, 3.6))
    lambdas = np.asarray(lambdas, dtype=float)
    bottom = 0.6
    for name, values in (("proximal", proximal), ("gradient", gradient)):
        values = np.asarray(values, dtype=float)
        size = 6 if name == "proximal" else 9  # where both agree, both are seen
        ax.plot(
            lambdas, values, ms=size, mfc="none", mew=2, label=f"{name} step", **_UPDATE_STYLE[name]
        )
        lost = np.isnan(values)
        ax.plot(lambdas[lost], np.full(lost.sum(), bottom + 0.02), "x", ms=9, mew=2, color="C3")
        if lost.any():
            middle = float(np.sqrt(lambdas[lost][0] * lambdas[lost][-1]))
            ax.text(middle, bottom + 0.04, f"{name} step: diverged", color="C3", ha="center")
    ax.axvline(critical, color="C3", lw=1.2, linestyle=":", label="η λ max F = 2")
    if bayes is not None:
        ax.axvline(bayes, color="0.3", lw=1, linestyle=":", label="N_A / N_B")
    ax.set(
        xscale="log", xlabel="λ", ylabel="test accuracy on A\nafter training on B", ylim=(bottom, 1)
    )
    ax.legend(loc="center right")
    return ax


@described
def fisher_along_training(
    steps: ArrayLike, totals: Mapping[str, ArrayLike], ax: Axes | None = None
) -> Axes:
    """Draw the sum of all F over the training steps, for several estimators.

    Args:
        steps: ``(K,)``.
        totals: estimator → ``(K,)``.
    """
    ax = axes_or_new(ax)
    for values, look in zip(totals.values(), looks(totals, ESTIMATOR_STYLE), strict=True):
        ax.plot(steps, values, **look)
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="training steps on task A",
        ylabel="sum of F over weights",
    )
    ax.legend()
    return ax


@described
def published_lambdas(
    labels: Sequence[str], published: ArrayLike, converted: ArrayLike, ax: Axes | None = None
) -> Axes:
    """Draw published λ and the same in the course's convention, one row per source.

    Args:
        labels: ``R`` names.
        published, converted: ``(R,)``.
    """
    ax = axes_or_new(ax, (9.5, 0.45 * len(labels) + 1.0))
    rows = np.arange(len(labels))[::-1]
    published, converted = np.asarray(published), np.asarray(converted)
    ax.hlines(rows, published, converted, color="0.6", lw=2)
    ax.plot(published, rows, "o", color="C1", ms=12, mfc="none", mew=2, label="λ as published")
    ax.plot(converted, rows, "D", color="C0", ms=7, label="converted to the course's convention")
    ax.axvline(1, color="0.3", lw=1, linestyle=":", label="N_A / N_B (equal tasks)")
    ax.set(xscale="log", xlabel="λ", yticks=rows, yticklabels=labels)
    ax.set_ylim(-0.7, len(labels) - 0.3)
    ax.legend(loc="lower left", fontsize="small")
    return ax


@described
def collapsed_springs(
    theta: ArrayLike,
    terms: ArrayLike,
    minimum: tuple[float, float],
    ax: Axes | None = None,
) -> Axes:
    """Draw the quadratic penalty of each task over one weight, and their sum.

    Args:
        theta: ``(K,)``.
        terms: ``(T, K)``, one parabola per task.
        minimum: μ and the constant c, the lowest point of the sum.
    """
    ax = axes_or_new(ax)
    terms = np.asarray(terms)
    names = [f"task {letter}" for letter in ascii_uppercase[: len(terms)]]
    for term, look in zip(terms, looks(names, markers=False), strict=True):
        ax.plot(theta, term, **look)
    ax.plot(theta, terms.sum(axis=0), color="black", lw=2.5, label="sum")
    ax.plot(*minimum, "o", color="black", ms=8)
    ax.annotate("(μ, c)", minimum, xytext=(0, 12), textcoords="offset points", ha="center")
    ax.set(xlabel="weight θ", ylabel="Σ F (θ − θ*)²")
    ax.legend()
    return ax
