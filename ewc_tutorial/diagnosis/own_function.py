"""A reader's own function that measures F: how its result must and must not change."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ewc_tutorial.diagnosis.fisher_origin import FAR, MEAN_LOSS, SAME, Candidate
from ewc_tutorial.diagnosis.quadratic import Form, Pattern, quadratic_of
from ewc_tutorial.diagnosis.report import Diagnosis
from ewc_tutorial.fisher.samples import Batch
from ewc_tutorial.fisher.undisturbed import undisturbed

#: Samples on which the function is tried, and the size of its batches.
PROBE, PROBE_BATCH = 64, 16


def probe(
    measure: Callable[[nn.Module, list[Batch]], Mapping[str, Tensor]],
    model: nn.Module,
    batches: list[Batch],
    **options: Any,
) -> list[tuple[str, str, str]]:
    """Return what is wrong with the function ``measure``: how F must and must not change.

    Args:
        measure: takes the model and a list of batches (x, y) to a Fisher diagonal, or to factors.
        model: the network.
        batches: the old task's samples.
        options: for :func:`~ewc_tutorial.fisher.fisher_diagonal`.
    """
    x = torch.cat([x for x, _ in batches if isinstance(x, Tensor)])[:PROBE]
    y = torch.cat([y for _, y in batches if y is not None])[:PROBE]

    def measured(x: Tensor, y: Tensor, size: int, mode: bool, seed: int) -> Mapping[str, Tensor]:
        data = list(zip(x.split(size), y.split(size), strict=True))
        with undisturbed(model):
            model.train(mode)
            torch.manual_seed(seed)
            return measure(model, data)

    first, faults = measured(x, y, PROBE_BATCH, False, 0), Diagnosis()
    parameters = dict(model.named_parameters())
    S = quadratic_of(faults, model, parameters, first)
    form = Form([name for name in S.diagonal if name in parameters], list(S.blocks))

    def run(x: Tensor, y: Tensor, size: int, mode: bool = False, seed: int = 0) -> Pattern:
        return form.pattern(measured(x, y, size, mode, seed))

    F = form.pattern(first)
    findings = [(fault.name, fault.measured, fault.advice) for fault in faults]
    if not F.entries.any():
        return findings or [
            ("F is zero", "your function returns zero for every entry", "look at its gradients")
        ]
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
    growth = math.log(F.total / small.total)
    if growth < -tolerance:
        name, advice = "squared batch mean", "square each sample's gradient, then average"
        if form.layers:
            name, advice = MEAN_LOSS
        findings.append(
            (
                name,
                f"batches of {PROBE_BATCH} give {math.exp(growth):.2g} of the F that batches of "
                f"{PROBE_BATCH // 4} give",
                advice,
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
        twice = Candidate.of(run(torch.cat([x, x]), torch.cat([y, y]), PROBE_BATCH), F)
        halves = [run(x[rows], y[rows], PROBE_BATCH) for rows in (slice(half), slice(half, None))]
        whole = Pattern(sum((part.entries for part in halves), torch.zeros(())), [])
        # Of factors the halves differ in A, and the mean of products is none of means.
        if not form.layers and Candidate.of(whole, F).residual > SAME:
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
        findings += _argmax_labels(run, form, model, x, y, options)
    return findings


def _argmax_labels(
    run: Callable[..., Pattern],
    form: Form,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    options: dict[str, Any],
) -> list[tuple[str, str, str]]:
    # Other labels than the data's: F at the data's labels would change.
    F = run(x, y.flip(0), 1)
    residual = {
        name: Candidate.of(
            F, form.pattern(form.measure(model, (x, y.flip(0)), estimator=name, **options))
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
