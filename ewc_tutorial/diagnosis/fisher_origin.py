"""Where F comes from: compares it with what common programs would have measured.

Two measures are used. The *residual* ‖F − cG‖ / ‖F‖ at the best factor
c says whether F has the pattern of G: on the same samples it is rounding error, so that c is sharp,
too. An F of drawn labels or of a subset fits no candidate that well; then only gross differences
count: another pattern, or a total beyond every honest estimator's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ewc_tutorial.diagnosis.quadratic import Form, Pattern
from ewc_tutorial.diagnosis.report import Tensors
from ewc_tutorial.fisher.inputs import n_samples
from ewc_tutorial.fisher.samples import Batch

#: Residual below which two diagonals are the same but for a factor.
SAME = 0.01
#: Ratio of totals beyond which no noise explains the difference.
FAR = 4.0
#: Overlap (Kirkpatrick et al. 2017) below which two patterns are different.
OVERLAP = 0.75
#: What factors of such gradients are called, and what to do.
MEAN_LOSS = (
    "gradients of the mean loss",
    "take g from the sum of the losses, or multiply it by the batch size",
)


@dataclass(frozen=True)
class Candidate:
    """What an estimator gives, and how the tested F compares with it."""

    F: Pattern
    scale: float
    residual: float

    @classmethod
    def of(cls, tested: Pattern, F: Pattern) -> Candidate:
        a, b = tested.entries, F.entries
        scale = ((a @ b) / (b @ b)).item() if b.any() else math.nan
        residual = ((a - scale * b).norm() / a.norm()).item() if b.any() else math.inf
        return cls(F, scale, residual)

    @property
    def total(self) -> float:
        return self.F.total


def explain(
    form: Form,
    tested: Tensors,
    model: nn.Module,
    batches: list[Batch],
    new_batches: list[Batch] | None = None,
    batch_size: int = 32,
    **options: Any,
) -> list[tuple[str, str, str]]:
    """Return what is wrong with ``tested``: (name, what was measured, what to do) per finding.

    Args:
        form: a number per weight, or factors.
        tested: a Fisher information in this form, by name, not zero everywhere.
        model: at the weights at which it was measured.
        batches: the old task's samples.
        new_batches: the next task's.
        batch_size: that was used in training.
        options: for :func:`~ewc_tutorial.fisher.fisher_diagonal`.

    Raises:
        ValueError: the samples have no honest estimate of F, for instance for a label that is none.
    """
    F = form.pattern(tested)
    n = sum(n_samples(x) for x, _ in batches)
    why_not: list[ValueError] = []

    def measured(data: list[Batch], estimator: str, size: int | None = None) -> Candidate | None:
        try:
            if estimator == "mean loss":
                G = _of_mean_losses(form, model, data, options)
            else:
                G = form.measure(model, data, estimator=estimator, batch_size=size, **options)
        except ValueError as error:  # no labels, or a likelihood without such an estimator
            why_not.append(error)
            return None
        return Candidate.of(F, form.pattern(G))

    def several(data: list[Batch], *names: str) -> dict[str, Candidate]:
        found = {name: measured(data, name) for name in names}
        return {name: candidate for name, candidate in found.items() if candidate}

    def honest_ones(data: list[Batch]) -> dict[str, Candidate]:
        if found := several(data, "exact", "empirical"):
            return found
        raise why_not[-1]

    honest = honest_ones(batches)
    wrong = several(batches, "argmax")
    if form.layers:
        wrong |= several(batches, "mean loss")
    for name, size in (("batched", batch_size), ("summed", n)):
        if not form.layers and (n > size or (name == "summed" and n > 1)):
            wrong |= {k: v for k, v in {name: measured(batches, "batched", size)}.items() if v}
    best = min(honest.values(), key=lambda c: c.residual)
    name = min(wrong, key=lambda k: wrong[k].residual, default="")
    closest_wrong = wrong.get(name)
    findings = []

    if best.residual < SAME:
        if abs(best.scale - 1) > max(3e-4, best.residual):
            findings.append(_scaled(best.scale, n, batch_size, bool(form.layers)))
    elif closest_wrong is not None and closest_wrong.residual < SAME:
        findings.append(_known(name, closest_wrong, honest, batch_size))
    else:
        findings += _from_noisy(F, new_batches, honest, wrong, honest_ones, batch_size)

    return findings


def _of_mean_losses(
    form: Form, model: nn.Module, batches: list[Batch], options: dict[str, Any]
) -> dict[str, Tensor]:
    """Return factors with the gradients g / B that ``backward()`` of a batch's mean loss gives."""
    n = sum(n_samples(x) for x, _ in batches)
    sums: dict[str, Tensor] = {}
    for batch in batches:
        size = n_samples(batch[0])
        for name, F in form.measure(model, [batch], estimator="empirical", **options).items():
            share = size / n if name.endswith(":A") else 1 / (size * n)
            sums[name] = share * F + sums.get(name, 0.0)
    return sums


def _scaled(scale: float, n: int, batch_size: int, factors: bool) -> tuple[str, str, str]:
    n_batches = math.ceil(n / batch_size)
    known = {
        "it looks like a sum: divide by the number of samples": n,
        "it looks divided by the number of batches: divide by the number of samples": n / n_batches,
        "it looks divided by the last index: divide by the number of samples": n / max(1, n - 1),
        "it looks divided by the last index of the batches: divide by the number of samples": n
        / max(1, n_batches - 1),
    }
    if factors:
        if abs(scale * batch_size**2 - 1) < 0.1:
            return _of_mean_loss(f"{scale:.2g} of the exact", batch_size)
        known["it looks as if A and G were sums: divide both by the number of samples"] = n**2
        known["g looks taken from the mean loss of a batch: multiply it by the batch size"] = (
            1 / batch_size
        )
    advice, factor = min(known.items(), key=lambda item: abs(math.log(abs(scale) / item[1])))
    if abs(scale / factor - 1) > min(0.02, abs(factor - 1) / 10):
        advice = "take the factor out, or it becomes a part of λ"
    what = f"G ⊗ A is {scale:.4g}" if factors else f"F is {scale:.4f}"
    return "scale of F", f"{what} times the mean over the samples", advice


def _share(total: float, honest: dict[str, Candidate]) -> str:
    """Say how large a total is beside the exact one, or where there is none the empirical one."""
    name, candidate = next(iter(honest.items()))
    return f"{total / candidate.total:.2g} of the {name}"


def _of_mean_loss(share: str, batch_size: int) -> tuple[str, str, str]:
    name, advice = MEAN_LOSS
    return (
        name,
        f"G ⊗ A is {share} one in total, as with gradients of the mean loss of "
        f"batches of {batch_size}, which are {batch_size} times too small",
        advice,
    )


def _known(
    name: str, candidate: Candidate, honest: dict[str, Candidate], batch_size: int
) -> tuple[str, str, str]:
    share = _share(candidate.scale * candidate.total, honest)
    if name == "argmax":
        return (
            "argmax labels",
            f"F is the squared score at the model's own top class, {share} F in total",
            "use all classes weighted by their probability, or one drawn label",
        )
    if name == "summed":
        return (
            "squared sum",
            f"F is the square of the gradient over all samples together, {share} F in total",
            "square each sample's gradient before adding",
        )
    if name == "mean loss":
        return _of_mean_loss(share, batch_size)
    return _batched(share, batch_size)


def _batched(share: str, batch_size: int) -> tuple[str, str, str]:
    return (
        "squared batch mean",
        f"F is {share} F in total, as the square of the mean gradient of batches "
        f"of {batch_size} would be",
        "square each sample's gradient, then average",
    )


def _from_noisy(
    F: Pattern,
    new_batches: list[Batch] | None,
    honest: dict[str, Candidate],
    wrong: dict[str, Candidate],
    honest_ones: Callable[[list[Batch]], dict[str, Candidate]],
    batch_size: int,
) -> list[tuple[str, str, str]]:
    """Judge an F that is no candidate's exactly, by its pattern and its total."""
    nearest = min(c.residual for c in honest.values())
    if new_batches is not None:
        new = min(c.residual for c in honest_ones(new_batches).values())
        if new < nearest / 2:
            return [
                (
                    "F of the new task",
                    f"F has the pattern of the new task's data (residual {new:.2g}, on the old "
                    f"task's {nearest:.2g})",
                    "measure F on the old task's data, before the new task begins",
                )
            ]
    overlap = max(F.overlap(c.F) for c in honest.values())
    if overlap < OVERLAP:
        return [
            (
                "F of other data",
                f"F does not have the pattern of these data at this anchor (overlap {overlap:.2f} "
                "instead of nearly 1)",
                "measure F on the old task's data at the weights that become the anchor",
            )
        ]
    ratios = [F.total / c.total for c in honest.values()]
    if max(ratios) * FAR < 1 and "batched" in wrong:
        return [_batched(_share(F.total, honest), batch_size)]
    if "mean loss" in wrong and 1 / FAR < F.total / wrong["mean loss"].total < FAR:
        return [_of_mean_loss(_share(F.total, honest), batch_size)]
    if max(ratios) * FAR < 1 or min(ratios) > FAR:
        return [
            (
                "scale of F",
                f"F is {_share(F.total, honest)} F in total",
                "check what F is divided by, and that each sample's gradient is squared by itself",
            )
        ]
    return []
