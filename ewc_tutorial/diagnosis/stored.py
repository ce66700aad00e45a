"""What the names and tensors of F and the anchor tell without running anything."""

from __future__ import annotations

import torch
from torch import Tensor

from ewc_tutorial.diagnosis.report import Diagnosis, Finding, Tensors
from ewc_tutorial.ewc import EWC


def check_names(
    report: Diagnosis, parameters: Tensors, fisher: Tensors, anchor: Tensors
) -> list[str]:
    """Return the names that model, F and anchor share."""
    report.checked.append("names")
    for kind, tensors in (("F", fisher), ("anchor", anchor)):
        unknown = [name for name in tensors if name not in parameters]
        if not unknown and tensors:
            continue
        guess = next(
            (
                f"{a!r} is called {b!r} there"
                for a in unknown
                for b in parameters
                if a.endswith(f".{b}") or b.endswith(f".{a}")
            ),
            "compare both lists of names",
        )
        report.findings.append(
            Finding(
                "names never match" if len(unknown) == len(tensors) else "names do not match",
                f"{len(unknown)} of {len(tensors)} names of {kind} are not in the model, so these "
                f"springs do not exist ({guess})",
                "store and look up the names of the same, unwrapped model",
            )
        )
    missing = [name for name in fisher if name in parameters and name not in anchor]
    if missing:
        report.findings.append(
            Finding(
                "no anchor",
                f"{len(missing)} parameters have an F and no anchor, such as {missing[0]!r}",
                "store both at the same moment",
            )
        )
    return [name for name in fisher if name in parameters and name in anchor]


def check_tensors(
    report: Diagnosis, parameters: Tensors, fisher: Tensors, anchor: Tensors, names: list[str]
) -> list[str]:
    """Return the names whose tensors are of the right shape."""
    report.checked += ["shapes", "values of F"]
    good = []
    for name in names:
        shape = parameters[name].shape
        for kind, tensor in (("F", fisher[name]), ("the anchor", anchor[name])):
            if tensor.shape != shape:
                report.findings.append(
                    Finding(
                        "shape",
                        f"{kind} of {name!r} has shape {tuple(tensor.shape)}, the parameter "
                        f"{tuple(shape)}, {_broadcast(tensor.shape, shape)}",
                        "hold only the rows that the old task had, or leave this parameter out",
                    )
                )
                break
        else:
            good.append(name)
    bad = [n for n in good if not fisher[n].isfinite().all() or not anchor[n].isfinite().all()]
    negative = [n for n in good if n not in bad and (fisher[n] < 0).any()]
    if bad:
        report.findings.append(
            Finding(
                "not finite",
                f"F or anchor of {bad[0]!r} has entries that are not finite",
                "look for NaN in the data, or a division by zero",
            )
        )
    if negative:
        report.findings.append(
            Finding(
                "negative F",
                f"F of {negative[0]!r} has negative entries",
                "F is a mean of squares: square the gradients",
            )
        )
    good = [n for n in good if n not in bad and n not in negative]
    if good and not any(fisher[n].any() for n in good):
        report.findings.append(
            Finding(
                "F is zero",
                "every entry of F is zero, so there are no springs",
                "read .grad after backward() and before zero_grad()",
            )
        )
    return good


def _broadcast(a: torch.Size, b: torch.Size) -> str:
    try:
        torch.broadcast_shapes(a, b)
    except RuntimeError:
        return "and their difference raises an error"
    return "and PyTorch stretches one over the other without a word"


def check_unfrozen(report: Diagnosis, ewc: EWC) -> None:
    report.checked.append("unfrozen layers")
    if names := ewc.unfrozen():
        report.findings.append(
            Finding(
                "unprotected",
                f"{len(names)} parameters are trained now that were frozen when the EWC was made, "
                f"so nothing protects them: {', '.join(names)}",
                "make the EWC after unfreezing, or name them in exclude",
            )
        )


def check_live(
    report: Diagnosis, parameters: Tensors, anchor: Tensors, names: list[str]
) -> list[str]:
    """Return the names whose anchor is the parameter itself."""
    report.checked.append("live anchor")
    live = [n for n in names if _memory(anchor[n]) & _memory(parameters[n])]
    if live:
        report.findings.append(
            Finding(
                "live reference",
                f"{len(live)} of {len(names)} anchors share their memory with the parameter, so "
                "they move along with it and their penalty is always zero",
                "store p.detach().clone()",
            )
        )
    return live


def _memory(tensor: Tensor) -> set[int]:
    return {tensor.untyped_storage().data_ptr()} - {0}
