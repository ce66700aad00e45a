"""What the λ lab says: the line above its picture, and the verdict on a reader's guess."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ewc_tutorial.course.plots.explorer import lambda_text
from ewc_tutorial.course.plots.style import standard_error
from ewc_tutorial.course.sweep.result import SweepResult


def readouts(result: SweepResult) -> list[str]:
    """Return for each λ the line above the picture."""
    average, error = result.average_accuracy, standard_error(result.average_accuracy, axis=1)
    old, new = earlier_accuracy(result), result.new_accuracy
    spread = [f" ± {e:.3f}" if len(result.seeds) > 1 else "" for e in error]
    return [
        f"λ = {lambda_text(lam)}:   average accuracy {average[i].mean():.3f}{spread[i]}"
        f"   (earlier tasks {old[i].mean():.3f}, last task {new[i].mean():.3f})"
        for i, lam in enumerate(result.lambdas)
    ]


def verdicts(result: SweepResult) -> list[str]:
    """Return for each λ what the lab says to a reader who guessed that it is the best."""
    average = result.average_accuracy
    mean, error = average.mean(axis=1), standard_error(average, axis=1)
    best = int(mean.argmax())
    top = f"The best λ is {lambda_text(result.lambdas[best])} (average accuracy {mean[best]:.3f})"
    sentences = []
    for i, lam in enumerate(result.lambdas):
        if i == best:
            sentences.append(f"{top}: exactly your guess.")
            continue
        if lam == 0 or result.lambdas[best] == 0:
            distance = "0 and a positive λ are no factor apart"
        else:
            factor = max(lam, result.lambdas[best]) / min(lam, result.lambdas[best])
            side = "small" if lam < result.lambdas[best] else "large"
            distance = f"{lambda_text(factor)} times too {side}"
        cost = 100 * (mean[best] - mean[i])
        close = ", within one standard error" if mean[i] >= mean[best] - error[best] else ""
        sentences.append(
            f"{top}. Your guess {lambda_text(lam)}: {distance}, {cost:.1f} points below{close}."
        )
    return sentences


def earlier_accuracy(result: SweepResult) -> NDArray[np.float64]:
    """Return ``(L, S)`` final accuracies on the earlier tasks; of a single task, on that one."""
    return result.old_accuracy if len(result.tasks) > 1 else result.new_accuracy
