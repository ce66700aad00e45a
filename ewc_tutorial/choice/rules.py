"""Which λ is best, and which cannot be told from it.

Scores are higher for better, and compared in pairs with equal seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

#: λ → seed → score. A score that is not finite belongs to a training that diverged.
Scores = Mapping[float, Mapping[int, float]]

CONFIDENCE = 0.95


class Rule(Protocol):
    """What makes a λ the best one."""

    #: With fewer values than these there is nothing to compare.
    least: ClassVar[int]

    def best(self, scores: Scores, lams: Sequence[float]) -> float:
        """Return the best, given those λ that have as many seeds as any."""

    def order(self, scores: Scores, lams: Sequence[float], best: float) -> list[float]:
        """Return λ, the ones most like the best first."""

    def unclear(self, scores: Scores, best: float) -> list[float]:
        """Return those of all λ that may as well be the best, at :data:`CONFIDENCE`."""

    def edge(self, lams: Sequence[float], best: float, unclear: Sequence[float]) -> int:
        """Return −1 or 1 if better ones may lie below or above all these, else 0."""


@dataclass(frozen=True)
class HighestMean:
    """The best λ has the highest mean score."""

    least: ClassVar[int] = 2

    def best(self, scores: Scores, lams: Sequence[float]) -> float:
        return max(lams, key=lambda lam: _mean(scores[lam]))

    def order(self, scores: Scores, lams: Sequence[float], best: float) -> list[float]:
        return sorted(lams, key=lambda lam: _loss(scores, best, lam))

    def unclear(self, scores: Scores, best: float) -> list[float]:
        """As in Gupta's selection of a subset that contains the best (1965, *On some multiple
        decision rules*), with Bonferroni's correction: the truly best λ is clearly worse than one
        of K − 1 others with a probability of at most 5 %, if each pair is tested at 5 / (K − 1) %.
        """
        others = [lam for lam in scores if lam != best]
        p = tail_probabilities({lam: paired(scores[best], scores[lam]) for lam in others})
        return [lam for lam in others if p[lam] >= (1 - CONFIDENCE) / len(others)]

    def edge(self, lams: Sequence[float], best: float, unclear: Sequence[float]) -> int:
        least = min(lam for lam in lams if lam)
        if best == 0:  # there may be a better one below the least as long as that is clearly worse
            return 0 if least in unclear else -1
        return -1 if best == least else int(best == max(lams))


@dataclass(frozen=True)
class WithinMargin:
    """The best λ is the largest whose score is, in the mean, within a margin of that at λ = 0."""

    margin: float
    least: ClassVar[int] = 3

    def best(self, scores: Scores, lams: Sequence[float]) -> float:
        # Of all λ, as one with fewer seeds that is larger gets more when it is the best.
        return max(lam for lam in scores if lam == 0 or self._over(scores, lam).mean() <= 0)

    def order(self, scores: Scores, lams: Sequence[float], best: float) -> list[float]:
        # Zero stays, as all others are compared with it.
        away = {lam: abs(self._over(scores, lam).mean()) for lam in {0.0, *lams}}
        return sorted(away, key=lambda lam: (lam != 0, lam != best, away[lam]))

    def unclear(self, scores: Scores, best: float) -> list[float]:
        over = {lam: self._over(scores, lam) for lam in scores if lam}
        p = tail_probabilities({k: np.sign(d.mean()) * d for k, d in over.items()})
        return [lam for lam in over if lam != best and p[lam] >= (1 - CONFIDENCE) / len(over)]

    def edge(self, lams: Sequence[float], best: float, unclear: Sequence[float]) -> int:
        return int(best == max(lams)) - int(best == 0)

    def _over(self, scores: Scores, lam: float) -> np.ndarray:
        """Return by how much the score is worse than it may be, per common seed."""
        return paired(scores[0.0], scores[lam]) - self.margin


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> np.ndarray:
    """Return a − b for the seeds of both; infinite where b has diverged."""
    return np.array([a[s] - b[s] if math.isfinite(b[s]) else math.inf for s in a if s in b])


def tail_probabilities(differences: Mapping[float, np.ndarray]) -> dict[float, float]:
    """Return for each λ how likely a mean difference as large as its own is if the truth is zero.

    That is Student's t test of paired differences, one-sided. The variance of a few differences is
    itself uncertain; so none is taken to be smaller than the median over all λ, and the degrees of
    freedom are those of all of them. (The median of a variance of ν degrees of freedom is smaller
    than its mean, by a factor of (1 − 2/9ν)³: Wilson and Hilferty 1931.)
    """
    finite = [d for d in differences.values() if len(d) > 1 and np.isfinite(d).all()]
    variances = [d.var(ddof=1) / (1 - 2 / (9 * (len(d) - 1))) ** 3 for d in finite]
    typical = float(np.median(variances)) if variances else math.inf
    freedom = sum(len(d) - 1 for d in finite)
    found = {}
    for lam, d in differences.items():
        mean = d.mean()
        if not math.isfinite(mean):
            found[lam] = 0.0
            continue
        variance = max(typical, d.var(ddof=1)) if len(d) > 1 else typical
        error = math.sqrt(variance / len(d))
        if error == 0:
            found[lam] = 0.0 if mean > 0 else 1.0
        else:
            found[lam] = student_tail(mean / error, freedom) if freedom else 0.5
    return found


def student_tail(t: float, freedom: int) -> float:
    """Return P(T > t) for Student's t with ν degrees of freedom: with T = √ν tan φ, φ has the
    density cos^(ν−1) φ on (−π/2, π/2)."""
    phi = (np.arange(20_000) + 0.5) * (math.pi / 2 / 20_000)
    density = np.cos(phi) ** (freedom - 1)
    beyond = density[phi > math.atan(abs(t) / math.sqrt(freedom))].sum() / density.sum() / 2
    return float(beyond if t >= 0 else 1 - beyond)


def _mean(runs: Mapping[int, float]) -> float:
    values = list(runs.values())
    return float(np.mean(values)) if np.isfinite(values).all() else -math.inf


def _loss(scores: Scores, best: float, lam: float) -> float:
    return float(paired(scores[best], scores[lam]).mean())
