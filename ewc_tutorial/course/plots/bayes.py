"""Figures of notebook 01, From Bayes to Fisher: the plane of two weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from ewc_tutorial.course.plots.description import described
from ewc_tutorial.course.plots.style import METHOD_STYLE, axes_or_new, looks, without_marker

#: What is kept of task A, and how it is drawn wherever it occurs in this notebook.
MEMORY_STYLE: dict[str, dict[str, Any]] = {
    "nothing": {"color": "C7", "linestyle": (0, (2, 2)), "label": "nothing (B alone)"},
    "isotropic": {**without_marker(METHOD_STYLE["L2"]), "label": "isotropic (L2)"},
    "diagonal": {**without_marker(METHOD_STYLE["EWC"]), "label": "diagonal (EWC)"},
    "full": {"color": "C4", "linestyle": (0, (7, 2)), "label": "full Laplace"},
}

#: Points in the plane of the weights.
MARK_STYLE: dict[str, dict[str, Any]] = {
    "anchor": {"marker": "o", "color": "black", "label": "optimum of A, θ*_A"},
    "nothing": {"marker": "X", "color": "C7", "label": "B alone"},
    "isotropic": {"marker": "s", "color": "C1", "label": "isotropic (L2)"},
    "diagonal": {"marker": "D", "color": "C0", "label": "diagonal (EWC)"},
    "full": {"marker": "^", "color": "C4", "label": "full Laplace"},
    "joint": {"marker": "*", "color": "C2", "label": "optimum of A and B", "markersize": 13},
}

#: Log density below the peak at one, two and three standard deviations of a Gaussian.
_LEVELS = (-4.5, -2.0, -0.5)


def contours(
    ax: Axes, points: ArrayLike, log_density: ArrayLike, filled: bool = False, **style: Any
) -> None:
    """Draw where a density has fallen as far as a Gaussian's has at 1, 2 and 3 standard deviations.

    Args:
        ax: where to draw.
        points: (G, G, 2), weights at the nodes of a grid.
        log_density: (G, G), up to a constant.
        filled: fill the areas instead of drawing lines.
        style: ``color`` and, for lines, ``linestyle`` and the like.
    """
    points, log_density = np.asarray(points), np.asarray(log_density)
    color = style.pop("color", "C0")
    style.pop("label", None)
    arrays = points[..., 0], points[..., 1], log_density - log_density.max()
    if filled:
        shades = [to_rgba(color, alpha) for alpha in (0.15, 0.32, 0.52)]
        ax.contourf(*arrays, levels=[*_LEVELS, 1.0], colors=shades)
    else:
        style = {"linestyles": [style.pop("linestyle", "-")], "linewidths": 1.6, **style}
        ax.contour(*arrays, levels=_LEVELS, colors=[color], **style)
    _name_axes(ax)


def marks(ax: Axes, points: Mapping[str, ArrayLike]) -> None:
    """Mark points of the plane, each in the style that ``MARK_STYLE`` gives its name."""
    for name, point in points.items():
        first, second = np.asarray(point)
        style = {"markersize": 9, "markeredgecolor": "white", **MARK_STYLE[name]}
        ax.plot(first, second, linestyle="none", zorder=5, **style)


@described
def task_and_plane(
    inputs: Mapping[str, tuple[ArrayLike, ArrayLike]],
    points: ArrayLike,
    log_density: ArrayLike,
    optima: Mapping[str, ArrayLike],
) -> Figure:
    """Draw the tasks' samples, and beside them one posterior with some optima.

    Args:
        inputs: name of a task → its inputs (N, 2) and labels (N,).
        points, log_density: as for :func:`contours`, of the first task's posterior.
        optima: as for :func:`marks`.
    """
    figure, axes = plt.subplots(1, len(inputs) + 1, figsize=(11, 3.7))
    limit = 1.05 * max(np.abs(np.asarray(x)).max() for x, _ in inputs.values())
    for ax, (name, (x, y)) in zip(axes[:-1], inputs.items(), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        for label, marker, color in ((0, "o", "C1"), (1, "^", "C0")):
            chosen = x[y == label]
            ax.plot(*chosen.T, marker, color=color, ms=5, alpha=0.7, mew=0, label=f"y = {label}")
        ax.set(title=f"{name}: {len(x)} samples", xlabel="input x₁", ylabel="input x₂")
        ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
        ax.legend(loc="upper left", fontsize="small", handletextpad=0.2)
    contours(axes[-1], points, log_density, filled=True, color="C4")
    marks(axes[-1], optima)
    axes[-1].set_title("what A says about the weights")
    axes[-1].legend(fontsize="x-small", loc="upper right")
    return figure


@described("densities over the plane of the two weights")
def posterior_panels(
    points: ArrayLike, log_densities: Mapping[str, ArrayLike], optima: Mapping[str, ArrayLike]
) -> Figure:
    """Draw densities over the same plane beside each other; each entry's name is its title."""
    figure, axes = plt.subplots(1, len(log_densities), figsize=(11, 3.6), sharex=True, sharey=True)
    panels = looks(log_densities, first=("C4", "C1", "C2"))
    for ax, (title, log_density), look in zip(axes, log_densities.items(), panels, strict=True):
        contours(ax, points, log_density, filled=True, color=look["color"])
        marks(ax, optima)
        ax.set_title(title)
    for ax in axes[1:]:
        ax.set_ylabel("")
    axes[-1].legend(fontsize="small", loc="lower right")
    return figure


@described
def laplace_panel(
    ax: Axes, points: ArrayLike, log_exact: ArrayLike, log_laplace: ArrayLike, title: str = ""
) -> None:
    """Draw an exact posterior as areas and its Laplace approximation as lines over it.

    The axes show the part of the grid where either of them is above the last contour.
    """
    contours(ax, points, log_exact, filled=True, color="C4")
    contours(ax, points, log_laplace, color="black", linestyle="--", linewidths=1.3)
    _frame(ax, points, (log_exact, log_laplace))
    ax.set_title(title)


@described
def orders(
    sizes: ArrayLike,
    errors: Mapping[str, ArrayLike],
    slope: float,
    *,
    xlabel: str,
    ylabel: str,
    ax: Axes | None = None,
) -> Axes:
    """Draw errors against a size, both logarithmic, with a guide of the given slope.

    Args:
        sizes: (S,), what is varied.
        errors: name → (S,) or (runs, S); of several runs the mean and the range are drawn.
        slope: of the guide, which ends where the first curve does.
        xlabel, ylabel: with units.
        ax: where to draw; by default on a new figure.
    """
    ax = axes_or_new(ax)
    sizes = np.asarray(sizes, dtype=float)
    last = None
    for runs, look in zip(errors.values(), looks(errors), strict=True):
        runs = np.atleast_2d(np.asarray(runs, dtype=float))
        mean = runs.mean(0)
        (line,) = ax.plot(sizes, mean, **look)
        if len(runs) > 1:
            ends = runs.min(0), runs.max(0)
            ax.fill_between(sizes, *ends, color=line.get_color(), alpha=0.15, lw=0)
        last = mean[-1] if last is None else last
    guide = 1.6 * last * (sizes / sizes[-1]) ** slope
    ax.plot(sizes, guide, color="black", linestyle=":", lw=1.3, label=f"slope {slope:+g}")
    ax.set(xscale="log", yscale="log", xlabel=xlabel, ylabel=ylabel)
    ax.legend(fontsize="small")
    return ax


@described
def step_against_kl(
    steps: ArrayLike, kl: Mapping[str, ArrayLike], quadratic: Mapping[str, ArrayLike], ax: Axes
) -> None:
    """Draw KL along some directions, as lines, with ½ δᵀFδ as crosses on them."""
    for (name, values), look in zip(kl.items(), looks(kl, markers=False), strict=True):
        ax.plot(steps, values, **look | {"label": f"KL, {name}"})
        ax.plot(steps, quadratic[name], "x", color=look["color"], ms=6, label=f"½ δᵀFδ, {name}")
    ax.set(xlabel="length of the step ‖δ‖ (weight units)", ylabel="change of predictions (nats)")
    ax.legend(fontsize="small")


@described
def memory_panels(
    points: ArrayLike,
    log_exact: ArrayLike,
    log_kept: Mapping[str, ArrayLike],
    ends: Mapping[str, ArrayLike],
    common: Mapping[str, ArrayLike],
) -> Figure:
    """Draw, per kind of memory, what it keeps of A's posterior and where B's training then ends.

    Args:
        points: (G, G, 2).
        log_exact: (G, G), A's exact posterior, drawn as areas in every panel.
        log_kept: kind of approximation → (G, G), drawn as lines.
        ends: kind of approximation → optimum (2,), with that memory, after task B.
        common: points to mark in every panel.
    """
    figure, axes = plt.subplots(1, len(log_kept), figsize=(9.5, 5.4), sharex=True, sharey=True)
    for ax, (kind, log_density) in zip(axes, log_kept.items(), strict=True):
        contours(ax, points, log_exact, filled=True, color="C7")
        style = MEMORY_STYLE[kind]
        contours(ax, points, log_density, color=style["color"], linestyle=style["linestyle"])
        start, end = np.asarray(common["anchor"]), np.asarray(ends[kind])
        arrow = {"arrowstyle": "->", "color": style["color"], "lw": 1.8}
        ax.annotate("", end, start, arrowprops=arrow)
        marks(ax, {kind: end, **common})
        ax.set(title=f"kept: {style['label']}", aspect="equal")
        _frame(ax, points, (log_exact, *log_kept.values()))
    for ax in axes[1:]:
        ax.set_ylabel("")

    def handle(name: str) -> Line2D:
        return Line2D([], [], linestyle="none", **{"markersize": 8, **MARK_STYLE[name]})

    figure.legend(
        [*map(handle, common), tuple(map(handle, log_kept))],
        [*(MARK_STYLE[name]["label"] for name in common), "where training on B ends"],
        handler_map={tuple: HandlerTuple(ndivide=None)},
        loc="outside lower center",
        ncols=len(common) + 1,
        fontsize="small",
    )
    return figure


@described
def rotation(angles: ArrayLike, distances: Mapping[str, ArrayLike], ax: Axes | None = None) -> Axes:
    """Draw how far from the joint optimum each memory ends, against the angle of the coordinates.

    Args:
        angles: (S,) degrees.
        distances: kind of memory → (S,) in standard deviations of the joint posterior.
        ax: where to draw; by default on a new figure.
    """
    ax = axes_or_new(ax)
    for kind, values in distances.items():
        ax.plot(angles, values, **{"lw": 2, **MEMORY_STYLE[kind]})
    ax.set(
        xlabel="angle between the weight axes and the axes of A's ellipse (degrees)",
        ylabel="distance to the joint optimum\n(posterior standard deviations)",
        xticks=np.arange(0, np.max(angles) + 1, 15),
    )
    ax.set_ylim(0, 1.4 * max(np.max(values) for values in distances.values()))
    ax.legend(fontsize="small", ncols=2, loc="upper center")
    return ax


@described
def lambda_scan(
    lambdas: ArrayLike,
    distances: Mapping[str, ArrayLike],
    bayes: float,
    alone: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw how far from the joint optimum each memory ends, against λ.

    Args:
        lambdas: (S,).
        distances: kind of memory → (S,) in standard deviations of the joint posterior.
        bayes: N_A / N_B, marked by a line.
        alone: the distance with no memory at all, drawn as a level.
        ax: where to draw; by default on a new figure.
    """
    ax = axes_or_new(ax)
    for kind, values in distances.items():
        values = np.asarray(values)
        (line,) = ax.plot(lambdas, values, **{"lw": 2, **MEMORY_STYLE[kind]})
        best = values.argmin()
        ax.plot(np.asarray(lambdas)[best], values[best], "o", color=line.get_color(), ms=7)
    if alone is not None:
        ax.axhline(alone, **MEMORY_STYLE["nothing"], lw=1.5)
    ax.axvline(bayes, color="black", lw=1.2, linestyle=(0, (1, 1)), label="λ = N_A / N_B")
    ax.set(
        xscale="log",
        xlabel="strength of the penalty λ (no unit)",
        ylabel="distance to the joint optimum\n(posterior standard deviations)",
    )
    ax.set_ylim(bottom=0)
    ax.legend(fontsize="small")
    return ax


@described
def best_lambdas(ratios: Mapping[str, Mapping[str, ArrayLike]]) -> Figure:
    """Draw over many pairs of tasks which λ ended nearest to the joint optimum.

    Median (tick), quartiles (bar) and 5th to 95th percentile (line).

    Args:
        ratios: title of a panel → kind of memory → (pairs,) best λ divided by N_A / N_B.
    """
    figure, axes = plt.subplots(1, len(ratios), figsize=(11, 2.9), sharex=True, sharey=True)
    for ax, (title, by_kind) in zip(np.atleast_1d(axes), ratios.items(), strict=True):
        for row, (kind, values) in enumerate(by_kind.items()):
            low, first, median, third, high = np.percentile(values, (5, 25, 50, 75, 95))
            style = {"color": MEMORY_STYLE[kind]["color"], "solid_capstyle": "butt"}
            ax.plot([low, high], [-row, -row], lw=2, **style)
            ax.plot([first, third], [-row, -row], lw=12, alpha=0.7, **style)
            ax.plot(median, -row, "|", color="black", ms=16, mew=2.5, label="median")
        names = [MEMORY_STYLE[kind]["label"] for kind in by_kind]
        ax.set_yticks([-row for row in range(len(names))], names)
        ax.axvline(1, color="black", lw=1.2, linestyle=(0, (1, 1)))
        ax.set(xscale="log", title=title, xlabel="best λ divided by N_A / N_B (no unit)")
        ax.set_ylim(-len(names) + 0.4, 0.6)
        ax.grid(axis="y", visible=False)
    return figure


@described
def matrices(entries: Mapping[str, ArrayLike]) -> Figure:
    """Draw square matrices as pictures with one colour scale, symmetric around zero."""
    figure, axes = plt.subplots(1, len(entries), figsize=(11, 3.4))
    limit = max(np.abs(np.asarray(m)).max() for m in entries.values())
    picture = None
    for ax, (title, matrix) in zip(axes, entries.items(), strict=True):
        picture = ax.imshow(np.asarray(matrix), cmap="RdBu_r", vmin=-limit, vmax=limit)
        ax.set(title=title, xlabel="weight i", ylabel="weight j")
        ax.grid(visible=False)
    figure.colorbar(picture, ax=axes, label="entry (nats per squared weight unit)", shrink=0.85)
    return figure


def _frame(ax: Axes, points: ArrayLike, log_densities: Iterable[ArrayLike]) -> None:
    """Show the part of the plane where some density is above its last contour."""
    inside = np.any(
        [np.asarray(d) - np.asarray(d).max() > _LEVELS[0] for d in log_densities], axis=0
    )
    for values, limit in zip(np.asarray(points)[inside].T, (ax.set_xlim, ax.set_ylim), strict=True):
        margin = 0.08 * np.ptp(values)
        limit(values.min() - margin, values.max() + margin)


def _name_axes(ax: Axes) -> None:
    ax.set(xlabel="weight θ₁", ylabel="weight θ₂")
