"""A choice of λ as a sentence: what was found, how sure that is, and what is not known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ewc_tutorial.choice.result import Choice, Curve, lam_text
from ewc_tutorial.choice.trainings import Run

#: How much larger the true rise of the old loss was than the one foretold (lessons 05 and 13).
BIAS = (
    "in the course's networks the loss truly rose 7 to 80 times as much as a diagonal foretold, "
    "and 3 to 7 times as much as Kronecker factors did"
)


def choice_of(
    best: float,
    unclear: Sequence[float],
    at_edge: bool,
    runs: Sequence[Run],
    combine: Callable[[float, float], float],
    bayes: float,
    margin: float,
) -> Choice:
    """Return the choice with its curves and its sentence.

    Args:
        best, unclear: as a rule has found them.
        at_edge: whether better values may lie beyond the grid.
        runs: all trainings.
        combine: old and new metric → what was compared, if there are old ones.
        bayes: N_old / N_new.
        margin: what the new task may lose, which matters without old metrics only.
    """

    def curve(value: Callable[[Run], float]) -> Curve:
        values: dict[float, list[float]] = {}
        for run in runs:
            values.setdefault(run.lam, []).append(value(run))
        return Curve.of(values)

    with_old = runs[0].old is not None
    curves = {"new": curve(lambda run: run.new)}
    if with_old:
        curves["old"] = curve(lambda run: run.old)  # type: ignore[arg-type, return-value]
        curves["score"] = curve(lambda run: combine(run.old, run.new))  # type: ignore[arg-type]
    else:
        curves["score"] = curves["new"]
    if all(run.predicted is not None for run in runs):
        curves["predicted"] = curve(lambda run: run.predicted)  # type: ignore[arg-type, return-value]
    sentences = [
        _what(best, curves) if with_old else _what_without_old(best, curves, margin),
        _how_sure(best, unclear, curves, with_old),
    ]
    if at_edge:
        sentences.append(
            "Better ones may lie beyond the grid, which the budget did not suffice to extend."
        )
    if lost := sorted({run.lam for run in runs if not _finite(run)}):
        sentences.append(f"Trainings diverged at λ = {_list(lost)}.")
    if not with_old:
        sentences += _what_is_not_known(best, curves)
    sure = not unclear and not at_edge
    return Choice(best, sure, tuple(unclear), " ".join(sentences), tuple(runs), curves, bayes)


def _what(best: float, curves: dict[str, Curve]) -> str:
    old, new, score = (curves[name] for name in ("old", "new", "score"))
    tried = f"the best of {len(new.lams)} values from 0 to {lam_text(new.lams[-1])}"
    seeds = _seeds(best, new)
    if best == 0:
        return (
            f"No λ above zero scores higher than none at all: λ = 0 is {tried}, with old "
            f"{old.at(0)}, new {new.at(0)}, together {score.at(0)} ({seeds}). Either nothing is "
            "forgotten, or the springs do not hold it: see diagnose."
        )
    return (
        f"λ = {lam_text(best)} is {tried}: old {old.at(best)}, new {new.at(best)}, together "
        f"{score.at(best)} ({seeds}), where no penalty gives {score.at(0)}."
    )


def _what_without_old(best: float, curves: dict[str, Curve], margin: float) -> str:
    new = curves["new"]
    if best == 0:
        return (
            f"Every λ above zero costs the new task more than {margin:g}: it has {new.at(0)} "
            f"without a penalty and {new.at(new.lams[1])} at λ = {lam_text(new.lams[1])} "
            f"({_seeds(0.0, new)})."
        )
    tried = f"the largest of {len(new.lams)} values from 0 to {lam_text(new.lams[-1])}"
    return (
        f"λ = {lam_text(best)} is {tried} that costs the new task no more than {margin:g}: it has "
        f"{new.at(best)} with it and {new.at(0)} without ({_seeds(best, new)})."
    )


def _how_sure(
    best: float, unclear: Sequence[float], curves: dict[str, Curve], with_old: bool
) -> str:
    score = curves["score"]
    if score.n.max() == 1:
        return "With one seed each nothing can be said of how sure that is."
    if not unclear:
        i = list(score.lams).index(best)
        near = (*score.lams[max(0, i - 1) : i], *score.lams[i + 1 : i + 2])
        return (
            f"That is sure at 95 % confidence{', all others being worse' if with_old else ''}; "
            f"between its neighbours {_list(near)} nothing was tried."
        )
    means = [score.mean[list(score.lams).index(lam)] for lam in (best, *unclear)]
    return (
        f"That is not sure: λ = {_list(unclear)} cannot be told from it at 95 % confidence. Their "
        f"means lie within {max(means) - min(means):.2g}; if that matters, give a larger budget."
    )


def _what_is_not_known(best: float, curves: dict[str, Curve]) -> list[str]:
    found = ["How much of the old task is kept is not known, as there is no old validation data."]
    if "predicted" in curves:
        rise = curves["predicted"]
        found.append(
            f"The penalty foretells that the old loss rises by {rise.at(best)} nats, and by "
            f"{rise.at(0)} without it; {BIAS}."
        )
    return found


def _seeds(lam: float, curve: Curve) -> str:
    n = curve.n[list(curve.lams).index(lam)]
    return f"mean ± standard error of {n} seeds" if n > 1 else "one seed"


def _list(lams: Sequence[float]) -> str:
    *first, last = map(lam_text, lams)
    return f"{', '.join(first)} and {last}" if first else last


def _finite(run: Run) -> bool:
    return math.isfinite(run.new) and (run.old is None or math.isfinite(run.old))
