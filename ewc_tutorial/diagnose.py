"""Looks for the mistakes of notebook 08 in a reader's own set-up, without changing anything.

For the package's own class: ``print(diagnose(model, ewc, old_data))``. For any other program:
``diagnose(model, data=old_data, fisher=fisher, anchor=anchor, penalty=penalty, lam=100)``.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ewc_tutorial import fisher_origin
from ewc_tutorial.ewc import EWC, L2
from ewc_tutorial.fisher.samples import make_samples
from ewc_tutorial.fisher.undisturbed import undisturbed

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: printed as a sentence."""

    name: str
    measured: str
    advice: str

    def __str__(self) -> str:
        return f"{self.name}: {self.measured}; {self.advice}."


@dataclass(repr=False)
class Diagnosis:
    """What :func:`diagnose` found, what it looked at, and what it could not look at.

    Attributes:
        findings: empty if nothing was found.
        checked: names of the checks that were made.
        skipped: check → what it would need.
    """

    findings: list[Finding] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def __bool__(self) -> bool:
        """True if anything was found."""
        return bool(self.findings)

    def __repr__(self) -> str:
        lines = [f"✗ {finding}" for finding in self.findings]
        if not lines:
            lines = [f"✓ Nothing found. Checked: {', '.join(self.checked)}."]
        lines += [f"○ Not checked: {check} ({why})." for check, why in self.skipped.items()]
        return "\n".join(lines)


def diagnose(
    model: nn.Module,
    ewc: Any = None,
    data: Any = None,
    *,
    new_data: Any = None,
    fisher: Tensors | None = None,
    anchor: Tensors | None = None,
    penalty: Callable[..., Any] | None = None,
    backward: Callable[[], Any] | None = None,
    measure: Callable[..., Tensors] | None = None,
    checkpoint: Tensors | None = None,
    lam: float | None = None,
    lr: float | None = None,
    batch_size: int | None = None,
    n_samples: int | None = 2000,
    **options: Any,
) -> Diagnosis:
    """Look for known mistakes in an EWC set-up; nothing is changed, random states included.

    The best moment is right after the old task has been consolidated.

    Args:
        model: the network, as it is trained.
        ewc: an :class:`~ewc_tutorial.ewc.EWC`, or any object with mappings ``fisher`` (or
            ``importance``) and ``anchor``, and perhaps ``penalty`` and ``lam``.
        data: the old task's, in any form that :func:`~ewc_tutorial.fisher.fisher_diagonal` takes.
        new_data: the next task's, to tell whether F was measured on that.
        fisher, anchor: by parameter name, instead of those of ``ewc``.
        penalty: returns the penalty as it enters the loss, called as ``penalty()`` or
            ``penalty(model)``. If you multiply by λ outside of it, pass ``lam=1``.
        backward: does what your training does between ``zero_grad()`` and ``optimizer.step()``, on
            fixed samples. The anchor is shifted to see how strongly the springs pull, so it has to
            use the very tensors of ``anchor``.
        measure: your own function that measures F, called as ``measure(model, batches)`` with a
            list of batches (x, y). F must not change with the size of the batches, the model's mode
            or a second copy of the data.
        checkpoint: the weights as they were saved at the end of the old task, by parameter name.
        lam: λ, instead of that of ``ewc``.
        lr: the learning rate, if the penalty enters the loss or the gradient (not for proximal
            steps): tells whether training would diverge.
        batch_size: of training; default: the data loader's, or 32.
        n_samples: use so many samples of each data set. Where F was measured on all and this takes
            all, the scale of F is checked to 0.2 %, else only to a factor of about four.
        options: ``likelihood``, ``classes``, ``ignore_index`` or ``variance``, with which F was
            measured.

    Returns:
        The findings, which print as one sentence each.

    Raises:
        ValueError: neither ``ewc`` nor both of ``fisher`` and ``anchor`` are given.
    """
    fisher, anchor, penalty, lam = _parts(ewc, fisher, anchor, penalty, lam)
    if fisher is None or anchor is None:
        raise ValueError("give ewc, or both fisher and anchor as mappings by parameter name.")
    if isinstance(ewc, EWC) and not ewc.n_tasks:
        report = Diagnosis()
        report.findings.append(
            Finding(
                "nothing consolidated",
                "no task has been consolidated, so the penalty is zero",
                "call ewc.consolidate(old_data) after the old task",
            )
        )
        return report
    report = Diagnosis()
    parameters = dict(model.named_parameters())
    with _random_states():
        usable = _check_names(report, parameters, fisher, anchor)
        usable = _check_tensors(report, parameters, fisher, anchor, usable)
        live = _check_live(report, parameters, anchor, usable)
        S = {name: fisher[name] for name in usable}
        mu = {name: anchor[name] for name in usable}
        _check_fisher(
            report, model, ewc, data, new_data, S, mu, live, batch_size, n_samples, options
        )
        _check_measure(report, model, data, measure, options)
        _check_checkpoint(report, ewc, mu, checkpoint)
        factor = _check_penalty(report, model, parameters, S, penalty, lam, live)
        _check_backward(report, model, parameters, S, mu, backward, lam, live, factor)
        _check_step(report, S, lam, lr)
    return report


def _parts(ewc: Any, fisher: Any, anchor: Any, penalty: Any, lam: Any) -> tuple[Any, ...]:
    def first(*names: str) -> Any:
        return next((getattr(ewc, n) for n in names if hasattr(ewc, n)), None)

    if ewc is not None:
        fisher = first("importance", "fisher") if fisher is None else fisher
        anchor = first("anchor", "params") if anchor is None else anchor
        penalty = first("penalty") if penalty is None else penalty
        lam = first("lam") if lam is None else lam
    return fisher, anchor, penalty, lam


# --- What the dicts alone tell ----------------------------------------------------------------


def _check_names(
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


def _check_tensors(
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


def _check_live(
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


# --- What the data tell -----------------------------------------------------------------------


def _check_fisher(
    report: Diagnosis,
    model: nn.Module,
    ewc: Any,
    data: Any,
    new_data: Any,
    fisher: Tensors,
    anchor: Tensors,
    live: list[str],
    batch_size: int | None,
    n_samples: int | None,
    options: dict[str, Any],
) -> None:
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    names = [name for name in fisher if name in trainable]
    moved = any(not torch.equal(anchor[n].to(trainable[n]), trainable[n].detach()) for n in names)
    weight = 1.0
    why = None
    if data is None:
        why = "needs the old task's data"
    elif isinstance(ewc, L2):
        why = "an L2 penalty has none"
    elif isinstance(ewc, EWC) and ewc.n_tasks != 1:
        why = f"{ewc.n_tasks} tasks are consolidated in it: diagnose after the first"
    elif not names or not any(fisher[n].any() for n in names):
        why = "there is no F to compare"
    elif moved and len(names) < len(trainable):
        why = "the parameters without anchor may have moved: diagnose right after consolidating"
    elif moved and any(True for _ in model.buffers()):
        why = "the model's buffers may have moved: diagnose right after consolidating"
    if why is not None:
        report.skipped["where F comes from"] = why
        return
    if isinstance(ewc, EWC) and ewc.rule != "average":
        weight = ewc.get_extra_state()["total_weight"]
    size = batch_size or getattr(data, "batch_size", None) or 32
    tested = {name: fisher[name].detach() / weight for name in names}
    with _at(trainable, anchor):
        found = fisher_origin.explain(
            tested,
            model,
            _gathered(data, n_samples, size),
            None if new_data is None else _gathered(new_data, n_samples, size),
            size,
            **options,
        )
    report.checked.append("where F comes from")
    report.findings += [Finding(*parts) for parts in found]


def _check_measure(
    report: Diagnosis,
    model: nn.Module,
    data: Any,
    measure: Callable[..., Tensors] | None,
    options: dict[str, Any],
) -> None:
    if measure is None or data is None:
        report.skipped["how F is measured"] = "needs measure and data"
        return
    report.checked.append("how F is measured")
    saved = [(p, p.grad) for p in model.parameters()]
    try:
        for p, _ in saved:
            p.grad = None
        batches = _gathered(data, fisher_origin.PROBE, fisher_origin.PROBE)
        found = fisher_origin.probe(measure, model, batches, **options)
    finally:
        for p, grad in saved:
            p.grad = grad
    known = {finding.name for finding in report}
    report.findings += [Finding(*parts) for parts in found if parts[0] not in known]


def _check_checkpoint(
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
        (anchor[n].double().cpu() - checkpoint[n].detach().double().cpu()).norm().item()
        for n in common
    ]
    size = sum(checkpoint[n].detach().double().norm().item() ** 2 for n in common) ** 0.5
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


def _gathered(data: Any, n_samples: int | None, size: int) -> list[fisher_origin.Batch]:
    samples = make_samples(data, n_samples, torch.Generator().manual_seed(0))
    return list(samples.batches(size))


# --- What moving the weights tells ------------------------------------------------------------


def _check_penalty(
    report: Diagnosis,
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    fisher: Tensors,
    penalty: Callable[..., Any] | None,
    lam: float | None,
    live: list[str],
) -> float | None:
    """Return how many times too large the penalty is, from its second difference."""
    if penalty is None:
        report.skipped["size of the penalty"] = "needs penalty"
        return None
    if live or not fisher or lam == 0:
        report.skipped["size of the penalty"] = "λ is zero" if lam == 0 else "see above"
        return None
    here = {name: parameters[name].detach().clone() for name in fisher}
    delta = {name: _shift(p) for name, p in here.items()}

    def value(sign: int) -> float:
        moved = {name: here[name] + sign * delta[name] for name in here}
        with undisturbed(model), _at(parameters, moved):
            found = _call(penalty, model)
            return float(found.detach() if isinstance(found, Tensor) else found)

    curvature = value(1) + value(-1) - 2 * value(0)
    expected = sum((fisher[n].double() * delta[n].double() ** 2).sum().item() for n in fisher)
    report.checked.append("size of the penalty")
    if not expected:
        return None
    if abs(curvature) < 1e-6 * expected * (lam or 1):
        report.findings.append(
            Finding(
                "penalty is zero",
                "the penalty does not change when the weights move",
                "look for names that never match, an anchor that follows the weights, or "
                "detached parameters",
            )
        )
        return None
    if lam is None:
        report.skipped["the ½"] = "needs lam"
        return None
    factor = curvature / (lam * expected)
    if abs(factor - 1) > 0.05:
        report.findings.append(
            Finding(
                "missing ½" if abs(factor - 2) < 0.1 else "size of the penalty",
                f"the penalty is {factor:.3g} times λ/2 Σ F (θ − θ*)²",
                "write λ/2, or divide λ by this factor when you compare with others",
            )
        )
    return factor


def _check_backward(
    report: Diagnosis,
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    fisher: Tensors,
    anchor: Tensors,
    backward: Callable[[], Any] | None,
    lam: float | None,
    live: list[str],
    factor: float | None,
) -> None:
    """See how the gradient of one optimizer step answers to a shift of the anchor."""
    if backward is None:
        report.skipped["pull per optimizer step"] = "needs backward"
        return
    if live or not fisher or not lam:
        report.skipped["pull per optimizer step"] = "needs lam > 0" if not lam else "see above"
        return
    here = {name: tensor.detach().clone() for name, tensor in anchor.items()}
    delta = {name: _shift(tensor) for name, tensor in here.items()}

    def gradient(sign: int) -> dict[str, Tensor]:
        saved = [(p, p.grad) for p in model.parameters()]
        moved = {name: here[name] + sign * delta[name] for name in here}
        try:
            for p, _ in saved:
                p.grad = None
            with undisturbed(model), _at(anchor, moved):
                torch.manual_seed(0)
                backward()
            zero = torch.zeros(())
            return {n: (zero if parameters[n].grad is None else parameters[n].grad) for n in here}
        finally:
            for p, grad in saved:
                p.grad = grad

    plus, minus = gradient(1), gradient(-1)
    expected = {n: -2 * lam * fisher[n].double() * delta[n].double() for n in here}
    norm = sum(e.square().sum().item() for e in expected.values())
    dot = sum(((plus[n].double() - minus[n].double()) * expected[n]).sum().item() for n in here)
    report.checked.append("pull per optimizer step")
    if not norm:
        return
    pull = dot / norm
    if abs(pull) < 1e-4:
        report.findings.append(
            Finding(
                "no pull",
                "the gradient of a step does not change when the anchor is moved",
                "add the penalty to the loss, and let it use the anchor that you passed here",
            )
        )
    elif abs(pull / (factor or 1) - 1) > 0.05:
        times = pull / (factor or 1)
        report.findings.append(
            Finding(
                "pull per optimizer step",
                f"one step adds {times:.3g} times the gradient of the penalty",
                "add the penalty once per optimizer step, not once per micro-batch or task loss",
            )
        )


def _check_step(report: Diagnosis, fisher: Tensors, lam: float | None, lr: float | None) -> None:
    if lr is None or lam is None or not fisher:
        report.skipped["stability"] = "needs lr and lam"
        return
    report.checked.append("stability")
    top = max(F.max().item() for F in fisher.values())
    if lr * lam * top > 2:
        report.findings.append(
            Finding(
                "λ too large for gradient steps",
                f"η λ max F is {lr * lam * top:.3g}, and above 2 the penalty alone diverges",
                f"take λ below {2 / (lr * top):.2g}, convert it from its convention, or use "
                "proximal steps",
            )
        )


def _call(penalty: Callable[..., Any], model: nn.Module) -> Any:
    try:
        wanted = [
            p
            for p in inspect.signature(penalty).parameters.values()
            if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
    except (TypeError, ValueError):
        wanted = []
    return penalty(model) if wanted else penalty()


def _shift(tensor: Tensor) -> Tensor:
    """Return a random displacement of a tenth of the tensor's own size."""
    generator = torch.Generator().manual_seed(tensor.numel())
    noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32).to(tensor)
    return noise * max(0.01, 0.1 * tensor.float().square().mean().sqrt().item())


@contextmanager
def _at(tensors: Mapping[str, Tensor], values: Tensors) -> Iterator[None]:
    """Put ``values`` into the tensors of these names, and their own values back afterwards."""
    saved = {name: tensors[name].detach().clone() for name in values if name in tensors}
    try:
        with torch.no_grad():
            for name in saved:
                tensors[name].copy_(values[name])
        yield
    finally:
        with torch.no_grad():
            for name, value in saved.items():
                tensors[name].copy_(value)


@contextmanager
def _random_states() -> Iterator[None]:
    """Leave the random states of Python, NumPy and PyTorch as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    cuda = torch.cuda.device_count() if torch.cuda.is_initialized() else 0
    try:
        with torch.random.fork_rng(devices=range(cuda)):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
