"""Figures of notebook 00."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from ewc_tutorial.course.plots.description import described
from ewc_tutorial.course.plots.style import axes_or_new, looks


@described
def learning_in_sequence(
    steps: ArrayLike,
    curves: ArrayLike,
    boundaries: ArrayLike,
    tasks: Sequence[str],
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Draw the test accuracy on each task while one network learns them one after the other.

    Args:
        steps: ``(E,)`` training steps.
        curves: ``(E, T)`` accuracies; a task is drawn from the moment its training begins.
        boundaries: ``(T,)`` step at which each task's training ends.
        tasks: ``T`` names.
    """
    ax = axes_or_new(ax)
    steps, curves = np.asarray(steps), np.asarray(curves)
    starts = np.concatenate([[0], np.asarray(boundaries)[:-1]])
    lines = looks([f"test accuracy on {name}" for name in tasks], markers=False)
    for j, (name, start, end) in enumerate(zip(tasks, starts, boundaries, strict=True)):
        seen = steps >= start
        ax.plot(steps[seen], curves[seen, j], lw=2.2, **lines[j])
        ax.text((start + end) / 2, 1.06, f"training on {name}", ha="center", va="center")
        if start:
            ax.axvline(start, color="0.4", lw=1)
    ax.set(xlabel="training step", ylabel="test accuracy", ylim=(0, 1.12), title=title)
    ax.set_xlim(0, steps[-1])
    ax.set_yticks(np.linspace(0, 1, 6))
    ax.legend(loc="lower right")
    return ax


@described
def image_row(
    axes: Sequence[Axes], images: ArrayLike, labels: Sequence[int], name: str = ""
) -> None:
    """Show grey images ``(n, H, W)``, 0 black and 1 white, in a row of axes, each under its label.

    ``name`` is written to the left of the row.
    """
    for ax, image, label in zip(axes, np.asarray(images), labels, strict=True):
        ax.imshow(image, cmap="gray", vmin=0, vmax=1)
        ax.set_title(str(label), pad=2)
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
    axes[0].set_ylabel(name)
