"""From what was measured after a training to what is wrong and what to do."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ewc_tutorial.diagnosis.intervals import Interval
from ewc_tutorial.diagnosis.report import Finding
from ewc_tutorial.diagnosis.springs import Springs

if TYPE_CHECKING:
    from ewc_tutorial.diagnosis.retention import Retention

#: Springs that pull with so many times the new task's gradient hold it back. In networks on the
#: digits it was 0.8 and more where λ was far too large, and below 0.3 where the rate was too small.
ENGAGED = 0.5
#: If the old loss rose so many times more than foretold, it is not that springs are too soft, by 7
#: to 80 in the course's networks, but weights that have none, as those of units that were silent.
FREE = 200.0


def verdicts(
    found: Retention,
    *,
    statistics: Interval,
    left: Interval,
    springs: Springs | None,
    engaged: float | None,
    may_lose: float,
) -> list[Finding]:
    """Return what is wrong, causes first.

    Args:
        found: the measurements, and what is wrong with the names and tensors of the penalty.
        statistics: what the old task's accuracy gains if the old buffers are put back.
        left: its change by the training, with the old buffers.
        springs: the penalty, if there was one.
        engaged: how strongly the springs pull, in units of the new task's gradient, if known.
        may_lose: accuracy that the old task may lose.
    """
    if not any(layer.relative for layer in found.moved.values()):
        return [
            Finding(
                "not trained",
                "every parameter is what it was before",
                "give the optimizer the parameters of this very model, and not of a copy",
            )
        ]
    old = found.old.change
    faults = [_unused(found, springs)]
    if statistics.low > 0 and statistics.value >= -old.value / 2 > may_lose / 2:
        faults.append(
            Finding(
                "running statistics",
                f"the old task's accuracy changed by {old}, and by {left} with the buffers of "
                "before: the rest is BatchNorm's running statistics, which no penalty holds",
                "keep BatchNorm in eval mode while you train on the next task, or put the old "
                "statistics back for the old task",
            )
        )
        old = left
    stiff = _too_stiff(found, springs, engaged)
    if old.high < 0 and -old.value > may_lose:
        faults.append(_forgotten(found, old, springs, stiff is not None))
    elif old.low < -may_lose:
        faults.append(_unclear(found, old, may_lose))
    faults.append(stiff or _nothing_learned(found, engaged, may_lose))
    return [fault for fault in faults if fault is not None]


def _unused(found: Retention, springs: Springs | None) -> Finding | None:
    """At the end loss plus penalty is no higher than at the start, where it was the loss alone."""
    if springs is None or springs.penalty <= found.new.loss[0]:
        return None
    return Finding(
        "penalty not used",
        f"the penalty is {springs.penalty:.2g} nats at the end, where the new loss was "
        f"{found.new.loss[0]:.2g} in the beginning, so no training that had both in its objective "
        "ends here",
        "call ewc.attach(optimizer), or add ewc.penalty() to the loss and take a small enough "
        "learning rate",
    )


def _forgotten(found: Retention, old: Interval, springs: Springs | None, stiff: bool) -> Finding:
    rise = found.old.loss[1] - found.old.loss[0]
    measured = f"the old task's accuracy changed by {old}, its loss by {rise:+.2g} nats"
    if found.findings:
        advice = "mend what is named first, then train again"
    elif springs is None or not springs.lam:
        advice = (
            "train with a penalty: ewc.consolidate(old_data) before, ewc.attach(optimizer) while "
            "training, and let choose_lambda find λ"
        )
    elif stiff:
        advice = (
            "a larger λ will not help, as the new task is held back already: give the network more "
            "free weights, take curvature='kronecker', or mix some old samples into the batches"
        )
    else:
        measured += f", where the springs foretell {springs.foretold:.2g}"
        times = rise / springs.foretold if springs.foretold > 0 else math.inf
        more = springs.lam * min(max(times, 2.0), 10.0)
        advice = (
            f"take a larger λ, {more:.3g} next, or curvature='kronecker'; choose_lambda compares"
        )
        if times > FREE:
            advice = (
                "a larger λ will help little, as what moved is all but free of springs: protect "
                "with F + ε (lesson 04), or mix some old samples into the batches"
            )
    return Finding("forgotten", measured, advice)


def _unclear(found: Retention, old: Interval, may_lose: float) -> Finding:
    n = found.old.n
    return Finding(
        "not clear",
        f"the old task's accuracy changed by {old}, so with {n} samples a loss of more than "
        f"{may_lose:g} cannot be ruled out",
        "evaluate on more old samples, or give a larger may_lose",
    )


def _too_stiff(found: Retention, springs: Springs | None, engaged: float | None) -> Finding | None:
    new, floor = found.new, max(found.new.before.value, found.new.commonest)
    if springs is None or engaged is None or engaged < ENGAGED:
        return None
    if new.after.value - floor >= (1 - floor) / 2 or _only_frequencies(found):
        return None
    return Finding(
        "too stiff",
        f"{_of_the_new(found)}; the springs pull with {engaged:.2g} times its gradient",
        f"take a smaller λ than {springs.lam:g}, by powers of ten; choose_lambda compares",
    )


def _nothing_learned(found: Retention, engaged: float | None, may_lose: float) -> Finding | None:
    new = found.new
    if 1 - new.before.value <= may_lose:
        return None  # it was known before
    if new.change.low > 0 and new.change.value > may_lose and new.after.low > new.commonest:
        return None
    if _only_frequencies(found):
        return Finding(
            "nothing learned",
            f"{_of_the_new(found)}, which the frequencies of the labels alone give "
            f"({new.commonest:.3f}, {new.entropy:.2g})",
            "see whether inputs and labels belong together",
        )
    pulls = "" if engaged is None else f"; the springs pull with {engaged:.2g} times its gradient"
    return Finding(
        "nothing learned",
        f"{_of_the_new(found)}{pulls}",
        "it is not λ: look at the learning rate and the number of steps",
    )


def _only_frequencies(found: Retention) -> bool:
    """Whether the answers are no better than the frequencies of the labels, in either measure."""
    new = found.new
    return new.after.low <= new.commonest and 0.9 < new.loss[1] / max(new.entropy, 1e-9) < 1.1


def _of_the_new(found: Retention) -> str:
    before, after = found.new.loss
    return (
        f"the new task's accuracy changed by {found.new.change}, to {found.new.after.value:.3f}, "
        f"and its loss from {before:.2g} to {after:.2g}"
    )
