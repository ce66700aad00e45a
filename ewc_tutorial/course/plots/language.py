"""Figures of notebook 09: a language model that learns one list of facts after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from ewc_tutorial.course.plots.description import described
from ewc_tutorial.course.plots.style import METHOD_STYLE, Look, axes_or_new, looks, standard_error

#: Methods that only this notebook has; the others look as everywhere in the course.
_STYLE: dict[str, Look] = {
    **METHOD_STYLE,
    "average": {
        "color": "C4",
        "linestyle": (0, (5, 1, 1, 1)),
        "marker": "^",
        "label": "EWC, mean of Fishers",
    },
    "source": {"color": "C3", "linestyle": ":", "marker": "X", "label": "published program"},
    "LoRA": {"color": "C5", "linestyle": "--", "marker": "P"},
    "LoRA + EWC on A and B": {"color": "C1", "linestyle": "-.", "marker": "v"},
    "LoRA + EWC on the weights": {"color": "C9", "linestyle": "-", "marker": "h"},
}


@described
def perplexity_over_time(
    runs: Mapping[str, Mapping[str, Sequence[float]]],
    boundaries: Sequence[int],
    unseen: float | None = None,
    axes: Sequence[Axes] | None = None,
) -> Sequence[Axes]:
    """Draw the perplexity of each instance over the training of all, one panel per instance.

    Args:
        runs: method → ``step`` and, per instance, the perplexity at these steps.
        boundaries: the steps at which the next instance begins.
        unseen: the perplexity of an instance of which the model has seen nothing but the form.
        axes: one per instance.
    """
    names = [name for name in next(iter(runs.values())) if name != "step"]
    if axes is None:
        width = 3.3 * len(names)
        axes = plt.subplots(1, len(names), figsize=(width, 3.4), sharey=True)[1]
    for i, (name, ax) in enumerate(zip(names, axes, strict=True)):
        for run, look in zip(runs.values(), looks(runs, _STYLE, markers=False), strict=True):
            ax.plot(run["step"], run[name], **look)
        for step in boundaries:
            ax.axvline(step, color="0.6", linewidth=0.8)
        if unseen is not None:
            ax.axhline(unseen, color="0.3", linewidth=0.9, linestyle=":")
        edges = [0, *boundaries, next(iter(runs.values()))["step"][-1]]
        ax.axvspan(edges[i], edges[i + 1], color="C8", alpha=0.15, linewidth=0)
        ax.set(title=f"instance {name}", xlabel="optimizer steps", yscale="log", ylim=(1, 40))
        ax.set_yticks([1, 2, 5, 10, 30], labels=["1", "2", "5", "10", "30"])
        ax.minorticks_off()
    axes[0].set_ylabel("perplexity per character")
    axes[-1].legend(fontsize="small", loc="lower left")
    return axes


@described
def protection(
    points: Mapping[str, tuple[ArrayLike, ArrayLike, Sequence[float]]],
    axes: Sequence[Axes] | None = None,
    learned: float = 1.65,
) -> Sequence[Axes]:
    """Draw what is kept against what is learned: one curve over λ per method, lower left is best.

    On the right once more the part in which the newest instance is learned, with λ at the points.

    Args:
        points: method → (perplexity of the last instance, of the earlier ones, λ); the first two
            have shape (seeds, λ). Crosses show ± 1 standard error.
        axes: two.
        learned: perplexity of the newest instance at which the right panel ends.
    """
    if axes is None:
        axes = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True)[1]
    lines = looks(points, _STYLE)
    curves = [(np.atleast_2d(np.asarray(new)), np.atleast_2d(np.asarray(old)), lambdas)
              for new, old, lambdas in points.values()]  # fmt: skip
    for ax, (new, old, lambdas), look in (
        (ax, *pair) for ax in axes for pair in zip(curves, lines, strict=True)
    ):
        one = len(lambdas) == 1
        ax.errorbar(
            new.mean(0),
            old.mean(0),
            xerr=standard_error(new),
            yerr=standard_error(old),
            markersize=9 if one else 6,
            elinewidth=0.8,
            **(look | ({"linestyle": "none"} if one else {})),
        )
    # Curves that run side by side have their numbers on different sides.
    sides = cycle((((5, 3), "left"), ((-6, -9), "right"), ((5, -10), "left")))
    for (new, old, lambdas), look in zip(curves, lines, strict=True):
        if len(lambdas) == 1:
            continue
        offset, align = next(sides)
        for x, y, lam in zip(new.mean(0), old.mean(0), lambdas, strict=True):
            (axes[1] if x < learned else axes[0]).annotate(
                f"{lam:,g}" if lam < 1 else f"{lam:,.0f}", (x, y), xytext=offset, ha=align,
                textcoords="offset points", fontsize="x-small", color=look["color"],
            )  # fmt: skip
    for ax in axes:
        ax.set(xscale="log", yscale="log", xlabel="perplexity of the newest instance")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(plt.FixedLocator([1.25, 1.3, 1.4, 1.5, 2, 3, 4, 5]))
            axis.set_major_formatter(plt.FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_locator(plt.NullLocator())
    axes[0].xaxis.set_major_locator(plt.FixedLocator([1.25, 1.5, 2, 3, 4, 5]))
    axes[0].yaxis.set_major_locator(plt.FixedLocator([1.25, 1.5, 2, 3, 4, 5]))
    lowest = min(float(new.mean(0).min()) for new, _, _ in curves)
    axes[1].set_xlim(0.985 * lowest, max(learned, 1.01 * lowest))
    axes[0].axvspan(*axes[1].get_xlim(), color="0.93", lw=0, zorder=0)
    axes[0].set(ylabel="perplexity of the earlier instances", title="all λ; grey: the right panel")
    axes[1].set_title("where the newest instance is learned, with λ")
    axes[1].legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return axes


@described
def factor_by_batch(
    sizes: Sequence[int], measured: ArrayLike, predicted: ArrayLike, ax: Axes | None = None
) -> Axes:
    """Draw by how much a squared batch mean of token means is smaller than the Fisher information.

    Args:
        sizes: batch sizes b.
        measured: total of F over the total of the squared batch means, per size.
        predicted: b T², per size.
    """
    ax = axes_or_new(ax, (5.6, 3.4))
    ax.plot(sizes, predicted, color="0.4", linestyle="--", label="b T²")
    ax.plot(sizes, measured, color="C3", marker="X", linestyle="none", label="measured")
    ax.set(xscale="log", yscale="log", xlabel="batch size b (sentences)")
    ax.set_xticks(list(sizes), labels=[str(size) for size in sizes])
    ax.set_yticks([300, 1000, 3000], labels=["300", "1,000", "3,000"])
    ax.minorticks_off()
    ax.set_ylabel("F / squared batch mean")
    ax.legend()
    return ax
