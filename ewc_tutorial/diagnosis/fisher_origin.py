"""Where a Fisher diagonal comes from: compares it with what common programs would have measured.

Two measures are used. The *residual* ‖F − cG‖ / ‖F‖ at the best factor
c says whether F has the pattern of G: on the same samples it is rounding error, so that c is sharp,
too. An F of drawn labels or of a subset fits no candidate that well; then only gross differences
count: another pattern, or a total beyond every honest estimator's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ewc_tutorial.fisher import fisher_diagonal
from ewc_tutorial.fisher.inputs import Inputs, n_samples
from ewc_tutorial.fisher.undisturbed import undisturbed
from ewc_tutorial.precision import double

Batch = tuple[Inputs, Tensor | None]

#: Residual below which two diagonals are the same but for a factor.
SAME = 0.01
#: Ratio of totals beyond which no noise explains the difference.
FAR = 4.0
#: Overlap (Kirkpatrick et al. 2017) below which two patterns are different.
OVERLAP = 0.75
#: Samples on which a reader's own function is tried, and the size of its batches.
PROBE, PROBE_BATCH = 64, 16


@dataclass(frozen=True)
class Candidate:
    """What an estimator gives, ``(P,)``, and how the tested F compares with it."""

    F: Tensor
    scale: float
    residual: float

    @classmethod
    def of(cls, tested: Tensor, F: Tensor) -> Candidate:
        scale = ((tested @ F) / (F @ F)).item() if F.any() else math.nan
        residual = ((tested - scale * F).norm() / tested.norm()).item() if F.any() else math.inf
        return cls(F, scale, residual)

    @property
    def total(self) -> float:
        return self.F.sum().item()


def explain(
    tested: dict[str, Tensor],
    model: nn.Module,
    batches: list[Batch],
    new_batches: list[Batch] | None = None,
    batch_size: int = 32,
    **options: Any,
) -> list[tuple[str, str, str]]:
    """Return what is wrong with ``tested``: (name, what was measured, what to do) per finding.

    Args:
        tested: a Fisher diagonal by parameter name, not zero everywhere.
        model: at the weights at which it was measured.
        batches: the old task's samples.
        new_batches: the next task's.
        batch_size: that was used in training.
        options: for :func:`~ewc_tutorial.fisher.fisher_diagonal`.
    """
    F = flat(tested, list(tested))
    n = sum(n_samples(x) for x, _ in batches)

    def measured(data: list[Batch], estimator: str, size: int | None = None) -> Candidate | None:
        try:
            G = fisher_diagonal(model, data, estimator, batch_size=size, **options)
        except ValueError:  # no labels, or a likelihood without such an estimator
            return None
        return Candidate.of(F, flat(G, list(tested)))

    def several(data: list[Batch], *names: str) -> dict[str, Candidate]:
        found = {name: measured(data, name) for name in names}
        return {name: candidate for name, candidate in found.items() if candidate}

    honest = several(batches, "exact", "empirical")
    wrong = several(batches, "argmax")
    for name, size in (("batched", batch_size), ("summed", n)):
        if n > size or (name == "summed" and n > 1):
            wrong |= {k: v for k, v in {name: measured(batches, "batched", size)}.items() if v}
    best = min(honest.values(), key=lambda c: c.residual)
    name = min(wrong, key=lambda k: wrong[k].residual, default="")
    closest_wrong = wrong.get(name)
    findings = []

    if best.residual < SAME:
        if abs(best.scale - 1) > max(3e-4, best.residual):
            findings.append(_scaled(best.scale, n, batch_size))
    elif closest_wrong is not None and closest_wrong.residual < SAME:
        findings.append(_known(name, closest_wrong, honest, batch_size))
    else:
        findings += _from_noisy(F, new_batches, honest, wrong, several, batch_size)

    return findings


def _scaled(scale: float, n: int, batch_size: int) -> tuple[str, str, str]:
    n_batches = math.ceil(n / batch_size)
    known = {
        "it looks like a sum: divide by the number of samples": n,
        "it looks divided by the number of batches: divide by the number of samples": n / n_batches,
        "it looks divided by the last index: divide by the number of samples": n / max(1, n - 1),
        "it looks divided by the last index of the batches: divide by the number of samples": n
        / max(1, n_batches - 1),
    }
    advice, factor = min(known.items(), key=lambda item: abs(math.log(abs(scale) / item[1])))
    if abs(scale / factor - 1) > min(0.02, (factor - 1) / 10):
        advice = "take the factor out, or it becomes a part of λ"
    return "scale of F", f"F is {scale:.4f} times the mean over the samples", advice


def _known(
    name: str, candidate: Candidate, honest: dict[str, Candidate], batch_size: int
) -> tuple[str, str, str]:
    ratio = candidate.scale * candidate.total / honest["exact"].total
    if name == "argmax":
        return (
            "argmax labels",
            "F is the squared score at the model's own top class, "
            f"{ratio:.2g} of the exact F in total",
            "use all classes weighted by their probability, or one drawn label",
        )
    if name == "summed":
        return (
            "squared sum",
            f"F is the square of the gradient over all samples together, {ratio:.2g} of the exact "
            "F in total",
            "square each sample's gradient before adding",
        )
    return _batched(ratio, batch_size)


def _batched(ratio: float, batch_size: int) -> tuple[str, str, str]:
    return (
        "squared batch mean",
        f"F is {ratio:.2g} of the exact F in total, as the square of the mean gradient of batches "
        f"of {batch_size} would be",
        "square each sample's gradient, then average",
    )


def _from_noisy(
    F: Tensor,
    new_batches: list[Batch] | None,
    honest: dict[str, Candidate],
    wrong: dict[str, Candidate],
    several: Callable[..., dict[str, Candidate]],
    batch_size: int,
) -> list[tuple[str, str, str]]:
    """Judge an F that is no candidate's exactly, by its pattern and its total."""
    nearest = min(c.residual for c in honest.values())
    if new_batches is not None:
        new = min(c.residual for c in several(new_batches, "exact", "empirical").values())
        if new < nearest / 2:
            return [
                (
                    "F of the new task",
                    f"F has the pattern of the new task's data (residual {new:.2g}, on the old "
                    f"task's {nearest:.2g})",
                    "measure F on the old task's data, before the new task begins",
                )
            ]
    overlap = max(_overlap(F, c.F) for c in honest.values())
    if overlap < OVERLAP:
        return [
            (
                "F of other data",
                f"F does not have the pattern of these data at this anchor (overlap {overlap:.2f} "
                "instead of nearly 1)",
                "measure F on the old task's data at the weights that become the anchor",
            )
        ]
    ratios = [F.sum().item() / c.total for c in honest.values()]
    if max(ratios) * FAR < 1 and "batched" in wrong:
        return [_batched(F.sum().item() / honest["exact"].total, batch_size)]
    if max(ratios) * FAR < 1 or min(ratios) > FAR:
        return [
            (
                "scale of F",
                f"F is {F.sum().item() / honest['exact'].total:.2g} of the exact F in total",
                "check what F is divided by, and that each sample's gradient is squared by itself",
            )
        ]
    return []


def _overlap(F: Tensor, G: Tensor) -> float:
    return ((F / F.sum()).clamp(min=0).sqrt() @ (G / G.sum()).sqrt()).item()


def flat(fisher: dict[str, Tensor], names: list[str]) -> Tensor:
    """Return the entries of these parameters as one vector ``(P,)`` in float64 on the CPU."""
    return torch.cat([double(fisher[name].detach()).flatten().cpu() for name in names])


# --- A reader's own function --------------------------------------------------------------------


def probe(
    measure: Callable[[nn.Module, list[Batch]], Mapping[str, Tensor]],
    model: nn.Module,
    batches: list[Batch],
    **options: Any,
) -> list[tuple[str, str, str]]:
    """Return what is wrong with the function ``measure``: how F must and must not change.

    Args:
        measure: takes the model and a list of batches (x, y) to a Fisher diagonal.
        model: the network.
        batches: the old task's samples.
        options: for :func:`~ewc_tutorial.fisher.fisher_diagonal`.
    """
    x = torch.cat([x for x, _ in batches if isinstance(x, Tensor)])[:PROBE]
    y = torch.cat([y for _, y in batches if y is not None])[:PROBE]
    names: list[str] = []

    def run(x: Tensor, y: Tensor, size: int, mode: bool = False, seed: int = 0) -> Tensor:
        data = list(zip(x.split(size), y.split(size), strict=True))
        with undisturbed(model):
            model.train(mode)
            torch.manual_seed(seed)
            found = measure(model, data)
        names[:] = names or [n for n, p in model.named_parameters() if n in found]
        return flat(dict(found), names)

    F = run(x, y, PROBE_BATCH)
    if not F.any():
        return [
            ("F is zero", "your function returns zero for every entry", "look at its gradients")
        ]
    findings = []
    in_train_mode = Candidate.of(run(x, y, PROBE_BATCH, mode=True), F)
    if in_train_mode.residual > SAME or abs(in_train_mode.scale - 1) > SAME:
        ratio = in_train_mode.scale
        findings.append(
            (
                "train mode",
                f"F is another one ({ratio:.2g} times as large) when the model comes in train mode",
                "call model.eval() before measuring, and restore the mode after it",
            )
        )
    # Where labels are drawn, only a gross change is one.
    others = run(x, y, PROBE_BATCH, seed=1), run(x.flip(0), y.flip(0), PROBE_BATCH)
    drawn = any(Candidate.of(other, F).residual > SAME for other in others)
    tolerance = math.log(FAR) if drawn else 2e-3
    half = len(x) // 2

    small = run(x, y, PROBE_BATCH // 4)
    growth = math.log(F.sum() / small.sum())
    if growth < -tolerance:
        findings.append(
            (
                "squared batch mean",
                f"batches of {PROBE_BATCH} give {math.exp(growth):.2g} of the F that batches of "
                f"{PROBE_BATCH // 4} give",
                "square each sample's gradient, then average",
            )
        )
    elif growth > min(tolerance, math.log(3)):
        findings.append(
            (
                "divided by the batches",
                f"batches of {PROBE_BATCH} give {math.exp(growth):.2g} times the F that batches of "
                f"{PROBE_BATCH // 4} give",
                "divide by the number of samples",
            )
        )
    if not drawn and len(x) > 1:
        parts = run(x[:half], y[:half], PROBE_BATCH) + run(x[half:], y[half:], PROBE_BATCH)
        twice = Candidate.of(run(torch.cat([x, x]), torch.cat([y, y]), PROBE_BATCH), F)
        if Candidate.of(parts, F).residual > SAME:
            findings.append(
                (
                    "squared sum",
                    "F of all samples is not the mean of F of their two halves",
                    "square each sample's gradient before adding",
                )
            )
        elif abs(twice.scale - 1) > 2e-3:
            findings.append(
                (
                    "scale of F",
                    f"F becomes {twice.scale:.3g} times as large when each sample is there twice",
                    "divide by the number of samples",
                )
            )
    if not drawn and not y.is_floating_point() and "likelihood" not in options:
        findings += _argmax_labels(run, model, x, y, names, options)
    return findings


def _argmax_labels(
    run: Callable[..., Tensor],
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    names: list[str],
    options: dict[str, Any],
) -> list[tuple[str, str, str]]:
    # Other labels than the data's: F at the data's labels would change.
    F = run(x, y.flip(0), 1)
    residual = {
        name: Candidate.of(
            F, flat(fisher_diagonal(model, (x, y.flip(0)), name, **options), names)
        ).residual
        for name in ("argmax", "exact", "empirical")
    }
    if residual["argmax"] < SAME < min(residual["exact"], residual["empirical"]):
        return [
            (
                "argmax labels",
                "F does not change with the labels and is that of the model's own top class",
                "use all classes weighted by their probability, or one drawn label",
            )
        ]
    return []
