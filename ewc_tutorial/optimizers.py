"""How an optimizer scales its steps: what the proximal step has to know of it.

An optimizer whose moments have settled on a constant gradient g moves a weight by −(η/d)·g.
Gradient descent has d = 1 for every weight, momentum β makes its η an η/(1 − β), and Adam's d is
its running scale of that weight's gradient, √v̂ + ε. The proximal step in the same scale minimises

    (λ/2) S (θ − μ)²  +  d (θ − θ_now)² / 2η,    so    θ ← (d·θ_now + ηλS·μ) / (d + ηλS).

One after the other, the two steps rest only where −(η/d)·(g + λS(θ − μ)) = 0: where loss plus
penalty has no gradient. With another d in the second step they rest elsewhere, as if each weight
had a λ of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Step:
    """A step −(lr/scale)·g; ``scale`` is one number, or a tensor of the parameter's shape.

    It is computed anew each time it is asked for, so that no more than one parameter's has to be
    in memory.
    """

    lr: float
    _scale: Callable[[], float | Tensor] = lambda: 1.0

    @property
    def scale(self) -> float | Tensor:
        return self._scale()


def steps_of(optimizer: torch.optim.Optimizer) -> dict[Tensor, Step]:
    """Return η and d for each parameter of an optimizer, as they are after its latest step.

    A parameter that has never had a gradient counts as one whose gradient is zero.

    Raises:
        ValueError: the optimizer is none of SGD, Adam, AdamW, RMSprop and Adagrad.
    """
    rule = _rule_of(optimizer)
    return {
        parameter: rule(group, optimizer.state.get(parameter))
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def known_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """Return an optimizer whose steps are known, taken out of what wraps it (as Accelerate does).

    Raises:
        TypeError: it is no optimizer.
        ValueError: how it scales its steps is not known.
    """
    if type(optimizer) not in _RULES and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be one of torch.optim's, not {type(optimizer).__name__}.")
    _rule_of(optimizer)
    return optimizer


def _sgd(group: dict[str, Any], state: dict[str, Any] | None) -> Step:
    lr, momentum = float(group["lr"]), group["momentum"]
    return Step(lr * (1 - group["dampening"]) / (1 - momentum) if momentum else lr)


def _adam(group: dict[str, Any], state: dict[str, Any] | None) -> Step:
    lr, eps = float(group["lr"]), _above_zero(group["eps"])
    if not state:
        return Step(lr, lambda: eps)
    square = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
    correction = 1 - group["betas"][1] ** float(state["step"])
    return Step(lr, lambda: square.sqrt().mul_(correction**-0.5).add_(eps))


def _rmsprop(group: dict[str, Any], state: dict[str, Any] | None) -> Step:
    lr, eps = float(group["lr"]) / (1 - group["momentum"]), _above_zero(group["eps"])
    if not state:
        return Step(lr, lambda: eps)

    def scale() -> Tensor:
        square = state["square_avg"]
        if group["centered"]:
            mean = state["grad_avg"]
            square = square.addcmul(mean, mean, value=-1).clamp_min_(0)
        return square.sqrt().add_(eps)

    return Step(lr, scale)


def _adagrad(group: dict[str, Any], state: dict[str, Any] | None) -> Step:
    assert state is not None  # Adagrad makes its state when it is made
    lr = float(group["lr"]) / (1 + max(float(state["step"]) - 1, 0) * group["lr_decay"])
    total, eps = state["sum"], _above_zero(group["eps"])
    return Step(lr, lambda: total.sqrt().add_(eps))


def _above_zero(eps: float) -> float:
    # A weight without a gradient and without an ε would be divided by zero.
    return max(float(eps), torch.finfo(torch.float32).tiny)


_Rule = Callable[[dict[str, Any], dict[str, Any] | None], Step]
_RULES: dict[type, _Rule] = {
    torch.optim.SGD: _sgd,
    torch.optim.Adam: _adam,
    torch.optim.AdamW: _adam,
    torch.optim.RMSprop: _rmsprop,
    torch.optim.Adagrad: _adagrad,
}


def _rule_of(optimizer: torch.optim.Optimizer) -> _Rule:
    try:
        return _RULES[type(optimizer)]
    except KeyError:
        known = ", ".join(kind.__name__ for kind in _RULES)
        raise ValueError(
            f"How {type(optimizer).__name__} scales its steps is not known, and with a wrong scale "
            f"training would end at another λ than asked for: take one of {known}, or add the "
            "penalty with add_gradient_() or penalty()."
        ) from None
