"""Which model may be served after a training, and how far it may go.

A training may cost the old voices so many points of word error rate, its budget. Whether it does is
a question about all old speech, asked of a few held-out recordings; so it is answered with a paired
test. The costs of the recordings, the same ones for both models, are drawn anew with replacement
many times (the bootstrap of Bisani and Ney 2004, section 3), and the model is within budget if 95 %
of these draws are.

Over budget, there is a way back: the straight line from the old weights to the new
(:func:`ewc_tutorial.path.between`). Weights on it have often lost much less of the old and most of
what is new (Wortsman et al. 2022).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jiwer
import numpy as np
from torch import Tensor

#: With fewer recordings of old voices the test says nothing.
MIN_OLD_TESTS = 5
#: Points on the way from the old (0) to the new weights (1) that are tried.
FRACTIONS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
CONFIDENCE = 0.95
_DRAWS = 2000


@dataclass(frozen=True)
class Heard:
    """What a model made of some recordings.

    Attributes:
        errors, words: word errors and words of the right text, (recordings,).
        silent: whether it wrote nothing at all.
    """

    errors: np.ndarray
    words: np.ndarray
    silent: bool

    @classmethod
    def of(cls, texts: Sequence[str], heard: Sequence[str]) -> Heard:
        """Count the errors of ``heard`` where ``texts`` are right."""
        errors = []
        for text, found in zip(texts, heard, strict=True):
            counts = jiwer.process_words(text, found)
            errors.append(counts.substitutions + counts.deletions + counts.insertions)
        words = [len(text.split()) for text in texts]
        return cls(np.array(errors, int), np.array(words, int), not any(heard))

    @property
    def rate(self) -> float:
        """The word error rate, not a number without recordings."""
        return self.errors.sum() / self.words.sum() if len(self.words) else math.nan


def most_it_costs(before: Heard, after: Heard, seed: int = 0) -> float:
    """Return how many points of word error rate the change costs, at most, with 95 % confidence.

    Args:
        before, after: of the same recordings, in the same order.
        seed: of the draws.
    """
    n = len(before.words)
    draws = np.random.default_rng(seed).integers(n, size=(_DRAWS, n))
    costs = (after.errors - before.errors)[draws].sum(axis=1) / before.words[draws].sum(axis=1)
    return 100 * float(np.quantile(costs, CONFIDENCE))


@dataclass(frozen=True)
class Point:
    """A model on the way: what it hears, and the points that it costs the old voices at most."""

    fraction: float
    old: Heard
    new: Heard
    cost: float

    @property
    def silent(self) -> bool:
        """Whether it writes nothing, whatever it hears."""
        return self.old.silent and self.new.silent


@dataclass(frozen=True)
class Verdict:
    """What is to be served.

    Attributes:
        chosen: the point on the way, or None if nothing is to be served.
        sentence: why.
        tried: all points that were measured.
    """

    chosen: Point | None
    sentence: str
    tried: tuple[Point, ...]


def judge(
    at: Callable[[float], tuple[Heard, Heard]],
    references: Sequence[Heard],
    rival: Heard,
    budget: float,
) -> Verdict:
    """Find the best model on the way from the old to the new weights that may be served.

    It must be within budget of every reference on the old voices, and make fewer errors than the
    rival on the new one. The end of the training is taken if it is such a model; else the best of
    :data:`FRACTIONS`, which is the one with the fewest errors on the new voice.

    Args:
        at: measures the weights at a fraction of the way, on old and on new recordings.
        references: on the old recordings, of the model before all corrections and the served one.
        rival: on the new recordings, of the served model.
        budget: points of word error rate, 0 or more.
    """
    tried: list[Point] = []
    for fraction in FRACTIONS:
        old, new = at(fraction)
        cost = max(most_it_costs(before, old) for before in references)
        tried.append(Point(fraction, old, new, cost))
        if fraction == 1.0 and (tried[0].silent or _may_be_served(tried[0], rival, budget)):
            break
    good = [point for point in tried if _may_be_served(point, rival, budget)]
    if not good:
        return Verdict(None, _complaint(tried, rival, budget), tuple(tried))
    chosen = min(good, key=lambda point: (point.new.errors.sum(), point.cost))
    return Verdict(chosen, _praise(chosen, tried[0], rival, budget), tuple(tried))


def _may_be_served(point: Point, rival: Heard, budget: float) -> bool:
    better = point.new.errors.sum() < rival.errors.sum()
    return better and point.cost <= budget and not point.silent


def _praise(chosen: Point, whole: Point, rival: Heard, budget: float) -> str:
    gain = f"the new voice goes from {rival.rate:.1%} of words wrong to {chosen.new.rate:.1%}"
    cost = f"costs the old voices at most {max(0.0, chosen.cost):.1f} of {budget:g} points"
    if chosen is whole:
        return f"It {cost}; {gain}."
    return (
        f"The whole training would cost the old voices up to {whole.cost:.1f} points, so "
        f"{chosen.fraction:.0%} of the way from the old weights is served: it {cost}; {gain}."
    )


def _complaint(tried: Sequence[Point], rival: Heard, budget: float) -> str:
    if tried[0].silent:
        return "The trained model writes nothing, whatever it hears."
    within = [point for point in tried if point.cost <= budget]
    if not within:
        least = min(point.cost for point in tried)
        return (
            f"Every point on the way to the trained weights may cost the old voices more than the "
            f"budget of {budget:g} points, the best one {least:.1f}."
        )
    best = min(point.new.rate for point in within)
    return (
        f"What is within the budget of {budget:g} points is no better on the new voice than the "
        f"served model: {best:.1%} of words wrong, after {rival.rate:.1%}."
    )


def fault_of(losses: Sequence[float], weights: Mapping[str, Tensor]) -> str | None:
    """Return why a training has failed, whatever its model hears, or None.

    Args:
        losses: on the corrections, in the order of the steps; they must not have risen from the
            first tenth to the last by more than two standard errors.
        weights: what came out; they must be finite.
    """
    for name, weight in weights.items():
        if not weight.isfinite().all():
            return f"{name} of the trained model has values that are no finite numbers."
    tenth = len(losses) // 10
    if tenth > 1:
        first, last = np.array(losses[:tenth]), np.array(losses[-tenth:])
        noise = math.sqrt((first.var(ddof=1) + last.var(ddof=1)) / tenth)
        if last.mean() - first.mean() > 2 * noise:
            return (
                f"The loss rose, from {first.mean():.3g} to {last.mean():.3g}: a smaller learning "
                "rate may help."
            )
    return None
