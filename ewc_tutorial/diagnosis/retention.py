"""What a training kept and what it learned, what moved, and what to do next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ewc_tutorial.console import printable
from ewc_tutorial.diagnosis.forms import by_name, parts_of, random_states_kept
from ewc_tutorial.diagnosis.intervals import Interval, change, proportion
from ewc_tutorial.diagnosis.moving import values_at
from ewc_tutorial.diagnosis.report import Diagnosis, Finding, Tensors
from ewc_tutorial.diagnosis.springs import Springs, springs_of
from ewc_tutorial.diagnosis.verdicts import verdicts
from ewc_tutorial.evaluation import PerSample, per_sample
from ewc_tutorial.fisher.samples import Samples, make_samples


@dataclass(frozen=True)
class Change:
    """A task before and after a training, on the same samples.

    Attributes:
        before, after: accuracy, with Wilson's intervals of 95 %.
        change: after − before, with Newcombe's interval for pairs.
        loss: mean loss before and after, in nats.
        n: samples.
        commonest: the accuracy of always answering the commonest label.
        entropy: the loss of answering with the frequencies of the labels, in nats.
    """

    before: Interval
    after: Interval
    change: Interval
    loss: tuple[float, float]
    n: int
    commonest: float
    entropy: float

    @classmethod
    def of(cls, before: PerSample, after: PerSample) -> Change:
        shares = np.unique(after.labels, return_counts=True)[1] / len(after.labels)
        return cls(
            proportion(before.correct),
            proportion(after.correct),
            change(before.correct, after.correct),
            (float(before.loss.mean()), float(after.loss.mean())),
            len(before.correct),
            float(shares.max()),
            float(-(shares * np.log(shares)).sum()),
        )


@dataclass(frozen=True)
class Moved:
    """How far a layer's parameters moved.

    Attributes:
        relative: ‖θ − θ_before‖ / ‖θ_before‖, infinite if that was zero.
        penalty: λ/2 (θ − μ)ᵀ S (θ − μ) of this layer, in nats; None without a penalty.
    """

    relative: float
    penalty: float | None


@dataclass(repr=False)
class Retention:
    """What :func:`retention_report` found. It is true if the old task was kept and the new learned.

    Attributes:
        old, new: the tasks.
        moved: by layer, in the model's order.
        findings: what is wrong, the cause that is to be mended first at the beginning.
        action: what to do next, in a sentence.
    """

    old: Change
    new: Change
    moved: dict[str, Moved]
    findings: list[Finding] = field(default_factory=list)

    def __bool__(self) -> bool:
        return not self.findings

    @property
    def action(self) -> str:
        if not self.findings:
            return "Nothing to do: the old task is kept and the new one learned."
        return f"{self.findings[0].name}: {self.findings[0].advice}."

    def __repr__(self) -> str:
        lines = [f"{'':5}{'accuracy before':>22}{'after':>23}{'change':>26}{'loss':>16}"]
        for name, task in (("old", self.old), ("new", self.new)):
            loss = f"{task.loss[0]:.3g} → {task.loss[1]:.3g}"
            parts = f"{task.before!s:>22}{task.after!s:>23}{task.change!s:>26}{loss:>16}"
            lines.append(f"{name:5}{parts}")
        wide = max(map(len, self.moved), default=0)
        for name, layer in self.moved.items():
            penalty = "" if layer.penalty is None else f", penalty {layer.penalty:.2g} nats"
            lines.append(f"{name:{wide}} moved by {layer.relative:.2g} of its norm{penalty}")
        lines += [f"✗ {finding}" for finding in self.findings]
        return printable("\n".join([*lines, f"Next: {self.action}"]))


def retention_report(
    model: nn.Module,
    before: Mapping[str, Any],
    old: Any,
    new: Any,
    ewc: Any = None,
    *,
    fisher: Tensors | None = None,
    anchor: Tensors | None = None,
    lam: float | None = None,
    may_lose: float = 0.02,
    n_samples: int | None = 2000,
) -> Retention:
    """Say what a training kept and learned, and why; nothing is changed.

    Which fault it is, is measured: forgetting that goes when the old running statistics are put
    back is BatchNorm's; a new task that is not learned is held back by the springs if they pull as
    strongly as its gradient does, else by something else; and a penalty that exceeds what there was
    to learn cannot have been in the objective.

    Args:
        model: after the training; it returns logits ``(B, C)``.
        before: a copy of its ``state_dict()`` before the training, such as a checkpoint's.
        old, new: validation data with class numbers as labels, in any form that
            :func:`~ewc_tutorial.fisher.fisher_diagonal` takes.
        ewc: the :class:`~ewc_tutorial.EWC` of the training, or what
            :func:`~ewc_tutorial.diagnose` takes in its place; None if there was no penalty.
        fisher, anchor, lam: as for :func:`~ewc_tutorial.diagnose`; λ is 1 if nothing tells it.
        may_lose: accuracy that the old task may lose.
        n_samples: of each data set, drawn at random; all for None.

    Raises:
        ValueError: ``before`` is no state of this model or shares its memory, ``may_lose`` is out
            of range, or the data fit no classifier.
    """
    if isinstance(may_lose, bool) or not 0 <= may_lose < 1:
        raise ValueError(f"may_lose must be at least 0 and below 1, not {may_lose!r}.")
    state = {name: t for name, t in model.state_dict().items() if isinstance(t, Tensor)}
    _check_state(state, before)
    report = Diagnosis()
    with random_states_kept():
        tasks = [_repeatable(data, n_samples) for data in (old, new)]
        after = [per_sample(model, data()) for data in tasks]
        with values_at(state, before):
            earlier = [per_sample(model, data()) for data in tasks]
        fisher, anchor, _, lam = parts_of(ewc, fisher, anchor, None, lam)
        springs = None
        if fisher is not None and anchor is not None:
            fisher, anchor = by_name(model, "fisher", fisher), by_name(model, "anchor", anchor)
            springs = springs_of(report, model, ewc, fisher, anchor, 1.0 if lam is None else lam)
        buffers = {n: t for n, t in state.items() if n not in dict(model.named_parameters())}
        with values_at(buffers, before):
            repaired = per_sample(model, tasks[0]()) if buffers else after[0]
        found = Retention(
            Change.of(earlier[0], after[0]),
            Change.of(earlier[1], after[1]),
            _moved(model, before, springs),
        )
        found.findings += report.findings
        engaged = None if springs is None else springs.engaged(model, tasks[1]())
    found.findings += verdicts(
        found,
        statistics=change(after[0].correct, repaired.correct),
        left=change(earlier[0].correct, repaired.correct),
        springs=springs,
        engaged=engaged,
        may_lose=may_lose,
    )
    return found


def _check_state(state: Mapping[str, Tensor], before: Mapping[str, Any]) -> None:
    for name, tensor in state.items():
        was = before.get(name)
        if not isinstance(was, Tensor) or was.shape != tensor.shape:
            shape = tuple(was.shape) if isinstance(was, Tensor) else None
            raise ValueError(
                f"before must be a state_dict() of this model, but its {name!r} has shape {shape}, "
                f"and the model's {tuple(tensor.shape)}."
            )
        if tensor.numel() and was.data_ptr() == tensor.data_ptr() and was.device == tensor.device:
            raise ValueError(
                f"before shares the memory of {name!r} with the model, so it holds the weights of "
                "now: keep copy.deepcopy(model.state_dict()) before you train."
            )


def _repeatable(data: Any, n_samples: int | None) -> Any:
    """Return a function that gives the same samples each time."""
    samples: Samples = make_samples(data, n_samples, torch.Generator().manual_seed(0))
    return samples.repeatable()


def _moved(
    model: nn.Module, before: Mapping[str, Tensor], springs: Springs | None
) -> dict[str, Moved]:
    squares: dict[str, list[float]] = {}
    for name, p in model.named_parameters():
        layer = squares.setdefault(name.rpartition(".")[0] or name, [0.0, 0.0])
        was = before[name].to(p.device, torch.float32)
        layer[0] += (p.detach().float() - was).square().sum().item()
        layer[1] += was.square().sum().item()
    penalties: dict[str, float] = {}
    for name, energy in ({} if springs is None else springs.energies()).items():
        layer_name = name.rpartition(".")[0] or name
        penalties[layer_name] = penalties.get(layer_name, 0.0) + energy
    return {
        name: Moved(
            (moved / size) ** 0.5 if size else (float("inf") if moved else 0.0),
            None if springs is None else penalties.get(name, 0.0),
        )
        for name, (moved, size) in squares.items()
    }
