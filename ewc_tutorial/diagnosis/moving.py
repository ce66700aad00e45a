"""What moving the weights tells: whether the springs pull as strongly as they should."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ewc_tutorial.diagnosis.quadratic import Quadratic
from ewc_tutorial.diagnosis.report import Diagnosis, Finding, Tensors
from ewc_tutorial.fisher.undisturbed import undisturbed
from ewc_tutorial.precision import double


def check_penalty(
    report: Diagnosis,
    model: nn.Module,
    weights: Tensors,
    values: Callable[[], Tensors],
    S: Quadratic,
    anchor: Tensors,
    penalty: Callable[..., Any] | None,
    lam: float | None,
    live: list[str],
) -> float | None:
    """Return how many times too large the penalty is, from second differences.

    The weights are moved, and the penalty is compared with ½ (v − v*)ᵀ S (v − v*) of the values v
    that they stand for: in a quadratic, only S decides how much a second difference is.
    """
    if penalty is None:
        report.skipped["size of the penalty"] = "needs penalty"
        return None
    if live or not S.names or lam == 0:
        report.skipped["size of the penalty"] = "λ is zero" if lam == 0 else "see above"
        return None
    if all(name in weights for name in S.names):
        weights = {name: weights[name] for name in S.names}
    here = {name: p.detach().clone() for name, p in weights.items()}
    delta = {name: _shift(p) for name, p in here.items()}

    def both(sign: int) -> tuple[float, float]:
        moved = {name: here[name] + sign * delta[name] for name in here}
        with undisturbed(model), values_at(weights, moved):
            found = _call(penalty, model)
            there = values()
            away = {n: double(there[n].detach() - anchor[n]) for n in S.names}
            textbook = sum(0.5 * (away[n] * pull).sum() for n, pull in S.product(away).items())
            return float(found.detach() if isinstance(found, Tensor) else found), float(textbook)

    (up, up0), (down, down0), (now, now0) = both(1), both(-1), both(0)
    curvature, expected = up + down - 2 * now, up0 + down0 - 2 * now0
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
                f"the penalty is {factor:.3g} times {S.words}",
                "write λ/2, or divide λ by this factor when you compare with others",
            )
        )
    return factor


def check_backward(
    report: Diagnosis,
    model: nn.Module,
    weights: Tensors,
    S: Quadratic,
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
    if live or not S.names or not lam:
        report.skipped["pull per optimizer step"] = "needs lam > 0" if not lam else "see above"
        return
    if any(name not in weights for name in S.names):
        report.skipped["pull per optimizer step"] = "what is protected is made of other weights"
        return
    here = {name: anchor[name].detach().clone() for name in S.names}
    delta = {name: _shift(tensor) for name, tensor in here.items()}

    def gradient(sign: int) -> dict[str, Tensor]:
        saved = [(p, p.grad) for p in model.parameters()]
        moved = {name: here[name] + sign * delta[name] for name in here}
        try:
            for p, _ in saved:
                p.grad = None
            with undisturbed(model), values_at(anchor, moved):
                torch.manual_seed(0)
                backward()
            none = torch.zeros(())
            gradients = {name: weights[name].grad for name in here}
            return {name: none if g is None else g for name, g in gradients.items()}
        finally:
            for p, grad in saved:
                p.grad = grad

    plus, minus = gradient(1), gradient(-1)
    expected = {n: -2 * lam * pull for n, pull in S.product(delta).items()}
    norm = sum(e.square().sum().item() for e in expected.values())
    dot = sum(((double(plus[n]) - double(minus[n])) * expected[n]).sum().item() for n in here)
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


def check_step(report: Diagnosis, S: Quadratic, lam: float | None, lr: float | None) -> None:
    if lr is None or lam is None or not S.names:
        report.skipped["stability"] = "needs lr and lam"
        return
    report.checked.append("stability")
    top, words = S.largest()
    if lr * lam * top > 2:
        report.findings.append(
            Finding(
                "λ too large for gradient steps",
                f"η λ {words} is {lr * lam * top:.3g}, and above 2 the penalty alone diverges",
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
def values_at(tensors: Mapping[str, Tensor], values: Tensors) -> Iterator[None]:
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
