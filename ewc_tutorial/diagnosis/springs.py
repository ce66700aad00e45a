"""The penalty at the end of a training: what it costs, layer by layer, and what it holds back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ewc_tutorial.diagnosis.quadratic import Quadratic, quadratic_of
from ewc_tutorial.diagnosis.report import NOTHING_CONSOLIDATED, Diagnosis, Tensors
from ewc_tutorial.diagnosis.stored import check_live, check_names, check_tensors, check_unfrozen
from ewc_tutorial.ewc import EWC
from ewc_tutorial.fisher.inputs import apply, n_samples
from ewc_tutorial.fisher.per_sample import run
from ewc_tutorial.fisher.samples import Samples
from ewc_tutorial.fisher.undisturbed import undisturbed
from ewc_tutorial.precision import double


@dataclass(frozen=True)
class Springs:
    """The penalty λ/2 (θ − μ)ᵀ S (θ − μ), as it is at the present weights.

    Attributes:
        S: what names and shapes allow of it.
        values: what it is a function of, by name.
        away: θ − μ.
        lam: λ.
        tasks: of how many tasks S is the sum.
    """

    S: Quadratic
    values: Tensors
    away: Tensors
    lam: float
    tasks: float

    def energies(self) -> dict[str, float]:
        """Return the penalty of each name, in nats."""
        return {
            name: 0.5 * self.lam * (double(self.away[name]) * pull).sum().item()
            for name, pull in self.S.product(self.away).items()
        }

    @property
    def penalty(self) -> float:
        return sum(self.energies().values())

    @property
    def foretold(self) -> float:
        """The rise of the old tasks' mean loss that the springs foretell, in nats."""
        return self.penalty / self.lam / self.tasks if self.lam else 0.0

    def engaged(self, model: nn.Module, new: Samples) -> float | None:
        """Return ‖λS(θ − μ)‖ / ‖g‖, g being the gradient of the new task's loss.

        At the end of a training whose springs decide this is about 1, as both cancel there; the
        last batches, of which each is answered by the springs, leave noise in the direction and
        little in the length. It is far below 1 as long as training could go on as if there were no
        springs. A weight with a spring so stiff that g cannot move its last binary digit is held.

        None where what is protected are no parameters.
        """
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if any(self.values[name] is not trained.get(name) for name in self.S.names):
            return None
        gradients = {name: double(g) for name, g in _gradient(model, trained, new).items()}
        importance, squares = self.S.importance(self.away), 0.0
        for name, pull in self.S.product(self.away).items():
            g, p = gradients[name], trained[name].detach()
            digit = double(p.abs() * torch.finfo(p.dtype).eps)
            fixed = self.lam * double(importance[name]) * digit >= g.abs()
            squares += torch.where(fixed, g, self.lam * pull).square().sum().item()
        everything = sum(g.square().sum().item() for g in gradients.values())
        return (squares / everything) ** 0.5 if everything else None


def springs_of(
    report: Diagnosis, model: nn.Module, ewc: Any, fisher: Tensors, anchor: Tensors, lam: float
) -> Springs | None:
    """Return the springs that there are, and report what is wrong with how they were stored."""
    if isinstance(ewc, EWC):
        if not ewc.n_tasks:
            report.findings.append(NOTHING_CONSOLIDATED)
            return None
        check_unfrozen(report, ewc)
        values, tasks = ewc.values(), ewc.summed
    else:
        values, tasks = dict(model.named_parameters()), 1.0
    S = quadratic_of(report, model, values, fisher)
    importance = S.importance(values)
    usable = check_names(report, values, importance, anchor)
    usable = check_tensors(report, values, importance, anchor, usable)
    check_live(report, values, anchor, usable)
    away = {name: values[name].detach() - anchor[name].to(values[name].device) for name in usable}
    return Springs(S.only(usable), values, away, lam, tasks)


def _gradient(model: nn.Module, trained: Tensors, new: Samples) -> dict[str, Tensor]:
    """Return the gradient of the mean loss of a classifier, in evaluation mode."""
    device = next(iter(trained.values())).device
    sums = {name: torch.zeros_like(p) for name, p in trained.items()}
    count = 0
    with undisturbed(model):
        for x, y in new.batches(256):
            assert y is not None  # it has been evaluated
            logits = run(model, apply(lambda t: t.to(device), x))
            loss = functional.cross_entropy(logits, y.to(device).long(), reduction="sum")
            found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
            for name, g in zip(trained, found, strict=True):
                if g is not None:
                    sums[name] += g
            count += n_samples(x)
    return {name: total / count for name, total in sums.items()}
