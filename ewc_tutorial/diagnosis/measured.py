"""What the data tell: whether F and the anchor are those of the old task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ewc_tutorial.diagnosis import fisher_origin, own_function
from ewc_tutorial.diagnosis.moving import values_at
from ewc_tutorial.diagnosis.quadratic import Quadratic
from ewc_tutorial.diagnosis.report import Diagnosis, Finding, Tensors
from ewc_tutorial.ewc import EWC
from ewc_tutorial.fisher.samples import Batch, make_samples
from ewc_tutorial.fisher.undisturbed import only_trainable
from ewc_tutorial.precision import double


def check_fisher(
    report: Diagnosis,
    model: nn.Module,
    ewc: Any,
    data: Any,
    new_data: Any,
    S: Quadratic,
    anchor: Tensors,
    live: list[str],
    batch_size: int | None,
    n_samples: int | None,
    options: dict[str, Any],
) -> None:
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    values = ewc.values() if isinstance(ewc, EWC) else trainable
    measurable = dict(model.named_parameters())
    names = [name for name in S.names if name in values and name in measurable]
    moved = any(not _same(anchor[name], values[name]) for name in names)
    why = None
    if data is None:
        why = "needs the old task's data"
    elif isinstance(ewc, EWC) and ewc.curvature == "identity":
        why = "an L2 penalty has none"
    elif isinstance(ewc, EWC) and ewc.n_tasks != 1:
        why = f"{ewc.n_tasks} tasks are consolidated in it: diagnose after the first"
    elif not names or not any(F.any() for F in S.importance(anchor).values()):
        why = "there is no F to compare"
    elif moved and any(values[name] is not measurable[name] for name in names):
        why = "what is protected may have moved: diagnose right after consolidating"
    elif moved and len(names) < len(trainable):
        why = "the parameters without anchor may have moved: diagnose right after consolidating"
    elif moved and any(True for _ in model.buffers()):
        why = "the model's buffers may have moved: diagnose right after consolidating"
    if why is not None:
        report.skipped["where F comes from"] = why
        return
    size = batch_size or getattr(data, "batch_size", None) or 32
    tested = S.only(names)
    there = anchor if moved else {}
    with only_trainable(model, names), values_at(trainable, there):
        found = fisher_origin.explain(
            tested.form,
            tested.over(ewc.summed if isinstance(ewc, EWC) else 1.0),
            model,
            _gathered(data, n_samples, size),
            None if new_data is None else _gathered(new_data, n_samples, size),
            size,
            **options,
        )
    report.checked.append("where F comes from")
    report.findings += [Finding(*parts) for parts in found]


def check_measure(
    report: Diagnosis,
    model: nn.Module,
    data: Any,
    measure: Callable[..., Tensors] | None,
    options: dict[str, Any],
) -> None:
    if measure is None or data is None:
        report.skipped["how F is measured"] = "needs measure and data"
        return
    batches = _gathered(data, own_function.PROBE, own_function.PROBE)
    if not all(isinstance(x, Tensor) and y is not None for x, y in batches):
        report.skipped["how F is measured"] = "needs inputs in one tensor, and labels"
        return
    report.checked.append("how F is measured")
    saved = [(p, p.grad) for p in model.parameters()]
    try:
        for p, _ in saved:
            p.grad = None
        found = own_function.probe(measure, model, batches, **options)
    finally:
        for p, grad in saved:
            p.grad = grad
    known = {finding.name for finding in report}
    report.findings += [Finding(*parts) for parts in found if parts[0] not in known]


def check_checkpoint(
    report: Diagnosis, ewc: Any, anchor: Tensors, checkpoint: Tensors | None
) -> None:
    if checkpoint is None:
        report.skipped["place of the anchor"] = "needs checkpoint"
        return
    if isinstance(ewc, EWC) and ewc.rule == "separate" and ewc.n_tasks > 1:
        report.skipped["place of the anchor"] = "several tasks: it is a mean of their optima"
        return
    report.checked.append("place of the anchor")
    common = [n for n in anchor if n in checkpoint and anchor[n].shape == checkpoint[n].shape]
    moved = [
        (double(anchor[n]).cpu() - double(checkpoint[n].detach()).cpu()).norm().item()
        for n in common
    ]
    size = sum(double(checkpoint[n].detach()).norm().item() ** 2 for n in common) ** 0.5
    distance = sum(d**2 for d in moved) ** 0.5
    if distance > 1e-3 * size:
        report.findings.append(
            Finding(
                "anchor moved",
                f"the anchor is not at the weights of the checkpoint (distance {distance:.2g}, "
                f"where the weights have the length {size:.2g})",
                "make the anchor once, after the last step on the old task, and never again",
            )
        )


def _same(anchor: Tensor, value: Tensor) -> bool:
    """Whether a value is still at its anchor; one that is computed anew differs by rounding."""
    here = value.detach()
    if value.is_leaf:
        return torch.equal(anchor.to(here), here)
    size = float(here.abs().max()) if here.numel() else 0.0
    return torch.allclose(anchor.to(here), here, rtol=1e-4, atol=1e-6 * size)


def _gathered(data: Any, n_samples: int | None, size: int) -> list[Batch]:
    samples = make_samples(data, n_samples, torch.Generator().manual_seed(0))
    return list(samples.batches(size))
