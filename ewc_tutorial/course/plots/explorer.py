"""Figures of notebook 05: what one knob, λ, makes of a trained network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike, NDArray

from ewc_tutorial.course.plots.description import described
from ewc_tutorial.course.plots.style import (
    ESTIMATOR_STYLE,
    METHOD_STYLE,
    axes_or_new,
    curve_with_band,
    looks,
)
from ewc_tutorial.course.plots.words import name_places

_STYLES = ESTIMATOR_STYLE | METHOD_STYLE
#: Of what a figure without methods or estimators shows first, often an average.
_INK = ("0.13",)


def lambda_positions(lambdas: ArrayLike) -> NDArray[np.float64]:
    """Return where each λ stands on the axis: log₁₀ λ, and λ = 0 one decade left of the others."""
    lambdas = np.asarray(lambdas, dtype=float)
    positive = lambdas[lambdas > 0]
    zero = np.log10(positive.min()) - 1 if len(positive) else 0.0
    return np.where(lambdas > 0, np.log10(np.where(lambdas > 0, lambdas, 1.0)), zero)


def lambda_text(lam: float) -> str:
    """Return λ with two digits, as people write it: ``0.032``, ``3,200``."""
    return f"{float(f'{lam:.2g}'):,.12g}"


def power_of_ten(exponent: int) -> str:
    """Return 10 to the ``exponent`` as an axis writes it: ``0.01``, ``1,000``, ``10⁴``."""
    if -2 <= exponent <= 3:
        return f"{10.0**exponent:,g}"
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


@described
def lambda_curves(
    lambdas: ArrayLike,
    series: Mapping[str, ArrayLike],
    ax: Axes | None = None,
    *,
    bayes: float | None = None,
    at: float | None = None,
    best: bool = False,
    ylabel: str = "final test accuracy",
    ylim: tuple[float, float] | None = (0, 1.02),
    title: str = "",
) -> Axes:
    """Draw quantities against λ, with λ = 0 at the left end of the logarithmic axis.

    Args:
        lambdas: ``(L,)`` ascending.
        series: what a line is called → ``(L, S)`` values of S seeds; the name of an estimator or a
            method gives the line that one's look.
        ax: where to draw.
        bayes: the value N_A / N_B that Bayes' rule gives, marked with a vertical line.
        at: a λ to mark with a vertical line.
        best: mark the best mean of each line with a star.
        ylabel, ylim: of the vertical axis; None for limits that fit.
        title: above the axes.
    """
    ax = axes_or_new(ax, (6.5, 3.8))
    lambdas = np.asarray(lambdas, dtype=float)
    x = lambda_positions(lambdas)
    for runs, look in zip(series.values(), looks(series, _STYLES, first=_INK), strict=True):
        runs = np.asarray(runs, dtype=float)
        curve_with_band(ax, x, runs.T, markersize=4, **look)
        if best:
            top = runs.mean(axis=1).argmax()
            ax.plot(
                x[top], runs[top].mean(), "*", ms=15, color=look["color"], mec="white", zorder=5
            )
    if bayes is not None:
        ax.axvline(np.log10(bayes), color="0.4", lw=1.2, ls=":")
        ax.annotate(
            "Bayes ", (np.log10(bayes), 0.02), xycoords=("data", "axes fraction"), ha="right",
            va="bottom", fontsize="small", color="0.3",
        )  # fmt: skip
    if at is not None:
        ax.axvline(np.interp(at, lambdas, x), color="0.5", lw=1)
    _lambda_ticks(ax, lambdas, x)
    name_places(ax, lambda at: lambda_text(np.interp(at, x, lambdas)))
    ax.set(xlabel="λ", ylabel=ylabel, title=title)
    if ylim is not None:
        ax.set_ylim(*ylim)
    ax.legend(fontsize="small")
    return ax


@described
def frontier(
    lambdas: ArrayLike,
    paths: Mapping[str, tuple[ArrayLike, ArrayLike]],
    ax: Axes | None = None,
    *,
    at: float | None = None,
    ends: bool = True,
) -> Axes:
    """Draw what is learned of the last task against what is kept of the earlier ones, along λ.

    Args:
        lambdas: ``(L,)`` ascending, shared by all paths.
        paths: what a path is called → accuracies ``(L, S)`` on the earlier and on the last task.
        ax: where to draw.
        at: a λ to mark with a large dot.
        ends: write the first and the last λ at the ends of the first path.
    """
    ax = axes_or_new(ax, (5.0, 4.0))
    lambdas = np.asarray(lambdas, dtype=float)
    lines = looks(paths, _STYLES, first=_INK)
    for index, (pair, look) in enumerate(zip(paths.values(), lines, strict=True)):
        old, new = (np.asarray(v, dtype=float).mean(axis=1) for v in pair)
        ax.plot(old, new, markersize=4, **look)
        if at is not None:
            x = lambda_positions(lambdas)
            where = np.interp(at, lambdas, x)
            ax.plot(np.interp(where, x, old), np.interp(where, x, new), "o", ms=11, color="C3")
        if index == 0 and ends:
            for i, up in ((0, True), (-1, False)):
                ax.annotate(
                    f"λ = {lambda_text(lambdas[i])}", (old[i], new[i]), xytext=(0, 8 if up else -8),
                    textcoords="offset points", fontsize="small", color="0.3",
                    ha="center", va="bottom" if up else "top",
                )  # fmt: skip
    ax.margins(0.15)
    ax.set(xlabel="accuracy on the earlier tasks", ylabel="accuracy on the last task")
    if any(paths):
        ax.legend(fontsize="small")
    return ax


@described
def curves_at(
    steps: ArrayLike,
    curves: ArrayLike,
    boundaries: ArrayLike,
    tasks: Sequence[str],
    ax: Axes | None = None,
    *,
    legend: bool = True,
) -> Axes:
    """Draw the forgetting curves of one λ: every task in one panel, with bands over the seeds.

    Args:
        steps: ``(E,)`` training steps.
        curves: ``(S, E, T)`` test accuracies.
        boundaries: ``(T,)`` the step at which each task's training ended.
        tasks: their names.
        ax: where to draw.
        legend: whether the panel gets one.
    """
    ax = axes_or_new(ax)
    steps, curves = np.asarray(steps), np.asarray(curves, dtype=float)
    starts = [0, *list(boundaries)[:-1]]
    lines = looks([f"on {name}" for name in tasks], markers=False)
    for t, (name, start, end) in enumerate(zip(tasks, starts, boundaries, strict=True)):
        seen = steps >= start
        curve_with_band(ax, steps[seen], curves[:, seen, t], **lines[t])
        if start:
            ax.axvline(start, color="0.4", lw=1)
        if len(tasks) <= 5:
            ax.text((start + end) / 2, 1.02, name, ha="center", va="bottom", fontsize="small")
    ax.set(xlabel="training step", ylabel="test accuracy", ylim=(0, 1.1), xlim=(0, steps[-1]))
    ax.set_yticks(np.linspace(0, 1, 6))
    ax.grid(visible=False, axis="x")
    if legend:
        ax.legend(fontsize="small", loc="lower right")
    return ax


@described("forgetting curves, one panel per λ")
def curves_by_lambda(
    lambdas: ArrayLike,
    steps: ArrayLike,
    curves: ArrayLike,
    boundaries: ArrayLike,
    tasks: Sequence[str],
    columns: int = 3,
) -> NDArray[Any]:
    """Draw small multiples of the forgetting curves, one panel per λ; return the axes.

    Args:
        lambdas: ``(L,)``.
        steps: ``(E,)`` training steps.
        curves: ``(L, S, E, T)`` test accuracies.
        boundaries: ``(T,)`` the step at which each task's training ended.
        tasks: their names.
        columns: panels in a row.
    """
    lambdas, curves = np.asarray(lambdas, dtype=float), np.asarray(curves, dtype=float)
    rows = -(-len(lambdas) // columns)
    _, axes = plt.subplots(
        rows, columns, figsize=(3.5 * columns, 0.4 + 2.5 * rows), sharex=True, sharey=True,
        squeeze=False,
    )  # fmt: skip
    for index, ax in enumerate(axes.flat):
        if index >= len(lambdas):
            ax.set_visible(False)
            continue
        curves_at(steps, curves[index], boundaries, tasks, ax, legend=index == 0)
        ax.set_title(f"λ = {lambda_text(lambdas[index])}")
        ax.label_outer()
    return axes


@described
def best_lambda_chart(
    rows: Mapping[str, tuple[float, ArrayLike, float]], ax: Axes | None = None
) -> Axes:
    """Draw where the best λ lies in each of several settings, with all λ that are nearly as good.

    Args:
        rows: what a setting is called → (its best λ, the λ whose mean is within 0.02 of the best,
            the Bayes value).
        ax: where to draw.
    """
    ax = axes_or_new(ax, (6.5, 0.7 + 0.45 * len(rows)))
    for y, (best, close, bayes) in enumerate(rows.values()):
        ax.plot([min(close), max(close)], [y, y], lw=5, color="C0", alpha=0.35,
                solid_capstyle="round", label="within 0.02 of the best")  # fmt: skip
        ax.plot(best, y, "*", ms=14, color="C0", mec="white", label="best")
        ax.plot(bayes, y, "|", ms=16, mew=2, color="0.3", label="Bayes: $N_A/N_B$")
    ax.set(xscale="log", xlabel="λ", ylim=(len(rows) - 0.5, -0.5))
    ax.set_yticks(range(len(rows)), list(rows))
    ax.grid(visible=False, axis="y")
    handles, labels = ax.get_legend_handles_labels()
    ax.legend(
        handles[:3], labels[:3], fontsize="small", ncols=3, loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
    )  # fmt: skip
    return ax


def _lambda_ticks(ax: Axes, lambdas: NDArray[np.float64], x: NDArray[np.float64]) -> None:
    """Write powers of ten on the axis, as many as have room, and 0 at the place of λ = 0."""
    low, high = int(np.ceil(x[lambdas > 0].min())), int(np.floor(x.max()))
    inches = ax.figure.get_figwidth() * ax.get_position().width
    step = max(1, int(np.ceil(0.5 * (x.max() - x.min()) / inches)))
    exponents = [e for e in range(low, high + 1) if e % step == 0]
    names = [power_of_ten(e) for e in exponents]
    if lambdas[0] == 0:
        exponents, names = [x[0], *exponents], ["0", *names]
    ax.set_xticks(exponents, names)
    ax.grid(visible=False, axis="x")
