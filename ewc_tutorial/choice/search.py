"""Looks for the best λ with a given number of trainings."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from numbers import Real
from pathlib import Path
from typing import Any

from ewc_tutorial.choice.result import Choice
from ewc_tutorial.choice.rules import HighestMean, Rule, Scores, WithinMargin
from ewc_tutorial.choice.trainings import Run, Trainings, Trial
from ewc_tutorial.choice.words import choice_of

#: How many seeds a λ gets first, if the budget allows.
_SEEDS = 2


def mean_of_both(old: float, new: float) -> float:
    """Return the mean of the old and the new metric, for instance the average accuracy."""
    return (old + new) / 2


def choose_lambda(
    train: Callable[[float, int], Any],
    new: Any,
    old: Any = None,
    *,
    budget: int,
    bayes: float = 1.0,
    softness: float = 10.0,
    factor: float = 10**0.5,
    combine: Callable[[float, float], float] = mean_of_both,
    lower_is_better: bool = False,
    new_may_lose: float = 0.02,
    first_seed: int = 0,
    executor: Executor | None = None,
    file: str | Path | None = None,
) -> Choice:
    """Choose λ by training with several values, and say how sure the choice is.

    The grid is logarithmic. It begins with λ = 0 and the values from Bayes' N_old / N_new to that
    times ``softness``, with one more at each end; an end that turns out best is moved on. All λ are
    first trained with few seeds. Then the better half of those that may still be the best gets
    twice as many, again and again: sequential halving (Karnin, Koren and Somekh 2013, *Almost
    optimal exploration in multi-armed bandits*), with seeds as what is spent. (To spend shorter
    trainings instead would answer another question, as with fewer steps less is forgotten.) λ are
    compared in pairs, on the seeds that both have. It ends when all others are clearly worse, or
    with the budget.

    **Without old data** (``old=None``) nobody can see what is forgotten. The penalty foretells a
    rise of the old loss, but by far too little (:func:`~ewc_tutorial.choice.predicted_rise`). Nor
    can it choose λ: the new loss plus c times the foretold rise is by construction least at λ = c,
    whatever the truth. What *can* be measured is what λ costs the new task. So the largest λ is
    chosen that costs it no more than ``new_may_lose`` against λ = 0, as De Lange et al. (2021, *A
    continual learning survey*, section 4) propose, and the sentence says what is not known.

    Args:
        train: called as ``train(lam, seed)``; starts from the model as it was after the old task,
            trains it on the new one with this λ, and returns it, or its :class:`~ewc_tutorial.EWC`,
            which then also tells the rise of the old loss that it foretells. Two calls with equal
            arguments must do the same. For a pool of processes it must be a function of a module.
        new: validation data of the new task, in any form that
            :func:`~ewc_tutorial.fisher.fisher_diagonal` takes, of which the accuracy is measured;
            or a metric, called with the model and returning a number.
        old: the same for the old tasks; None if there is nothing left of them.
        budget: trainings in all, those found in ``file`` included.
        bayes: N_old / N_new, the numbers of training samples: λ by Bayes' rule (lesson 01).
        softness: how many times larger the best λ may be, since springs know little of how weights
            act together: :func:`~ewc_tutorial.choice.softness` measures it.
        factor: between neighbours on the grid.
        combine: old and new metric → what is to be high; the mean by default.
        lower_is_better: metrics are losses or error rates, and what ``combine`` makes of them.
        new_may_lose: without old data, by how much the new metric may be worse than at λ = 0.
        first_seed: seeds are this and the following. Report results on others.
        executor: any of ``concurrent.futures``, or Dask's ``client.get_executor()``; None to train
            in this process. If workers are lost, their trainings are repeated in this process.
        file: a CSV file with a row per finished training. With it, a search that was interrupted
            goes on where it was. It belongs to this ``train`` and these data: take another one
            when they change.

    Raises:
        ValueError: an argument is out of range, the budget is smaller than the grid, or ``file``
            holds something else; nothing has been trained then.
        RuntimeError: a training failed, or all have diverged.
    """
    _check(bayes=bayes, softness=softness)
    if not (isinstance(factor, Real) and 1 < factor < math.inf):
        raise ValueError(f"factor must be a finite number above 1, not {factor!r}.")
    if not (isinstance(new_may_lose, Real) and 0 <= new_may_lose < math.inf):
        raise ValueError(
            f"new_may_lose must be a finite number that is not negative, not {new_may_lose!r}."
        )
    ends = sorted(round(math.log(s, factor), 9) for s in (1, softness))
    powers = [*range(math.floor(ends[0]) - 1, math.ceil(ends[1]) + 2)]
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < len(powers) + 1:
        raise ValueError(
            f"budget must be a whole number of at least {len(powers) + 1}, one training for each λ "
            f"that the grid begins with, not {budget!r}."
        )
    try:
        first_seed = operator.index(first_seed)  # of NumPy's numbers a file would not be read again
    except TypeError:
        raise ValueError(f"first_seed must be a whole number, not {first_seed!r}.") from None
    trial = Trial(train, new, old, isinstance(executor, ProcessPoolExecutor))
    trainings = Trainings(trial, executor, None if file is None else Path(file))
    search = _Search(
        trainings,
        WithinMargin(new_may_lose) if old is None else HighestMean(),
        lambda run: _score(run, combine, lower_is_better),
        lambda power: float(f"{bayes * factor**power:.3g}"),
        budget,
        first_seed,
    )
    search.run(powers)
    return choice_of(
        search.best,
        search.unclear,
        search.at_edge,
        list(trainings.runs.values()),
        combine,
        bayes,
        new_may_lose,
    )


class _Search:
    """The course of one search.

    Attributes:
        best, unclear: as the rule sees the scores.
        at_edge: whether better values may lie beyond the grid.
    """

    def __init__(
        self,
        trainings: Trainings,
        rule: Rule,
        score: Callable[[Run], float],
        lam: Callable[[int], float],
        budget: int,
        first_seed: int,
    ) -> None:
        self._trainings, self._rule, self._score, self._lam = trainings, rule, score, lam
        self._budget, self._first_seed = budget, first_seed

    def run(self, powers: list[int]) -> None:
        alive, low, high = [0.0, *map(self._lam, powers)], powers[0], powers[-1]
        seeds = min(_SEEDS, self._budget // len(alive))
        while True:
            self._train(alive, seeds)
            while side := self._judge(alive):
                low, high = low - (side < 0), high + (side > 0)
                if self._cost([further := self._lam(low if side < 0 else high)], seeds) > 0:
                    return
                alive.append(further)
                self._train([further], seeds)
            if not self.unclear:
                return
            candidates = self._rule.order(self._scores(), [self.best, *self.unclear], self.best)
            alive = candidates[: max(self._rule.least, math.ceil(len(alive) / 2))]
            more = next((n for n in range(seeds, 0, -1) if self._cost(alive, seeds + n) <= 0), 0)
            if not more:
                return
            seeds += more

    def _judge(self, alive: list[float]) -> int:
        """Find the best, and return in which direction better ones may lie."""
        scores = self._scores()
        if all(not math.isfinite(s) for runs in scores.values() for s in runs.values()):
            raise RuntimeError("Every training diverged: its metrics are no finite numbers.")
        self.best = self._rule.best(scores, alive)
        self.unclear = sorted(self._rule.unclear(scores, self.best))
        side = self._rule.edge(list(scores), self.best, self.unclear)
        self.at_edge = side != 0
        return side

    def _scores(self) -> Scores:
        scores: dict[float, dict[int, float]] = {}
        for (lam, seed), run in self._trainings.runs.items():
            scores.setdefault(lam, {})[seed] = self._score(run)
        return scores

    def _wanted(self, lams: list[float], seeds: int) -> list[tuple[float, int]]:
        return [(lam, self._first_seed + i) for i in range(seeds) for lam in lams]

    def _cost(self, lams: list[float], seeds: int) -> int:
        """Return by how much these trainings would exceed the budget."""
        more = self._trainings.missing(self._wanted(lams, seeds))
        return len(self._trainings.runs) + more - self._budget

    def _train(self, lams: list[float], seeds: int) -> None:
        self._trainings.ensure(self._wanted(lams, seeds))


def _score(run: Run, combine: Callable[[float, float], float], lower_is_better: bool) -> float:
    value = run.new if run.old is None else combine(run.old, run.new)
    return -float(value) if lower_is_better else float(value)


def _check(**numbers: Any) -> None:
    for name, value in numbers.items():
        if (
            isinstance(value, bool)
            or not isinstance(value, Real)
            or not 0 < float(value) < math.inf
        ):
            raise ValueError(f"{name} must be a finite number above zero, not {value!r}.")
