"""The last exercise: a design for EWC of one's own, and a report whose numbers are recomputed.

A :class:`Design` says which network learns which two tasks with which EWC; :meth:`Design.run` is
the experiment. :class:`Report` is what the reader claims of it, and :func:`audit` recomputes that.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache

from torch import nn

from ewc_tutorial.course.tasks import Task
from ewc_tutorial.course.training import accuracies, train
from ewc_tutorial.ewc import EWC

#: λ is chosen on these seeds, and reported on others.
SEARCH_SEEDS = (100, 101)
REPORT_SEEDS = (0, 1, 2)
#: By how much a claimed accuracy may differ from the recomputed one.
TOLERANCE = 0.005


@dataclass(frozen=True)
class Design:
    """Everything that was chosen but λ.

    Attributes:
        network: returns an untrained network for a seed.
        tasks: returns two tasks for a seed.
        estimator: of F, as for :meth:`~ewc_tutorial.ewc.EWC.consolidate`.
        curvature, rule, gamma: as for :class:`~ewc_tutorial.ewc.EWC`.
        epochs, lr: of each task's training.
    """

    network: Callable[[int], nn.Module]
    tasks: Callable[[int], Sequence[Task]]
    estimator: str = "exact"
    curvature: str = "diagonal"
    rule: str | None = None
    gamma: float = 1.0
    epochs: int = 10
    lr: float = 0.2

    def run(self, lam: float, seed: int) -> tuple[float, float, float]:
        """Learn the first task, then the second.

        Args:
            lam: λ while the second is learned; 0 is plain fine-tuning.
            seed: of network, tasks and batches.

        Returns:
            Test accuracies: on the first task before the second was learned, and on the first and
            the second after it.
        """
        return _run(self, float(lam), seed)

    def mean_after(self, lam: float, seeds: Iterable[int]) -> float:
        """Return the mean accuracy on both tasks, over seeds."""
        return statistics.mean(sum(self.run(lam, seed)[1:]) / 2 for seed in seeds)

    def gain(self, lam: float) -> tuple[float, float]:
        """Return by how much λ beats λ = 0 on the report seeds, paired, and its standard error."""
        differences = [
            self.mean_after(lam, [seed]) - self.mean_after(0.0, [seed]) for seed in REPORT_SEEDS
        ]
        error = statistics.stdev(differences) / math.sqrt(len(differences))
        return statistics.mean(differences), error


@lru_cache(maxsize=256)
def _run(design: Design, lam: float, seed: int) -> tuple[float, float, float]:
    first, second = design.tasks(seed)
    model = design.network(seed)
    budget = {"epochs": design.epochs, "lr": design.lr}
    tests = [task.test.tensors for task in (first, second)]
    train(model, first, generator=seed, **budget)
    before = accuracies(model, tests)[0]
    ewc = None
    if lam:
        ewc = EWC(model, lam, design.rule, design.gamma, curvature=design.curvature)
        ewc.consolidate(first, design.estimator, generator=seed)
    train(model, second, ewc=ewc, generator=seed + 1000, **budget)
    return (before, *accuracies(model, tests))


@dataclass(frozen=True)
class Report:
    """What a reader claims; ``...`` stands where nothing was entered yet.

    Attributes:
        lam: the λ that was chosen.
        searched: the mean accuracy on both tasks over :data:`SEARCH_SEEDS` for each λ that was
            tried, at least three.
        before: accuracy on the first task before the second, mean over :data:`REPORT_SEEDS`.
        first, second: accuracies on both tasks after it, likewise.
        gain, error: over plain fine-tuning: mean of the paired differences of the mean accuracy
            on both tasks, and its standard error.
        because: a sentence each on estimator, curvature, rule and λ.
    """

    lam: float = ...
    searched: Mapping[float, float] = field(default=...)
    before: float = ...
    first: float = ...
    second: float = ...
    gain: float = ...
    error: float = ...
    because: Mapping[str, str] = field(default=...)


#: What has to be defended.
CHOICES = ("estimator", "curvature", "rule", "λ")


def is_empty(report: Report) -> bool:
    """Tell whether nothing was entered."""
    return all(getattr(report, f.name) is ... for f in fields(report))


def audit(design: Design, report: Report) -> list[str]:
    """Recompute a report, and return a sentence for everything in it that does not hold."""
    if missing := [f.name for f in fields(report) if getattr(report, f.name) is ...]:
        return [f"Still to enter: {', '.join(missing)}."]
    found = []
    if len(report.searched) < 3 or report.lam not in report.searched:
        found.append("`searched` must hold at least three λ, and `lam` must be one of them.")
    else:
        real = {lam: design.mean_after(lam, SEARCH_SEEDS) for lam in report.searched}
        for lam, value in report.searched.items():
            found += _off(f"searched, λ = {lam:g}", value, real[lam])
        best = max(real, key=real.get)
        if real[best] > real[report.lam] + TOLERANCE:
            found.append(f"On the search seeds λ = {best:g} is better than λ = {report.lam:g}.")
    runs = [design.run(report.lam, seed) for seed in REPORT_SEEDS]
    for name, values in zip(("before", "first", "second"), zip(*runs, strict=True), strict=True):
        found += _off(name, getattr(report, name), statistics.mean(values))
    for name, value in zip(("gain", "error"), design.gain(report.lam), strict=True):
        found += _off(name, getattr(report, name), value)
    if undefended := [c for c in CHOICES if len(report.because.get(c, "").split()) < 5]:
        found.append(f"A sentence is missing in `because` on {', '.join(undefended)}.")
    return found


def _off(name: str, claimed: float, real: float) -> list[str]:
    if abs(claimed - real) <= TOLERANCE:
        return []
    return [f"{name}: you say {claimed:.3f}, recomputed it is {real:.3f}."]
