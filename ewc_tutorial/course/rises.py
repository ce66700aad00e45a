"""What a step of the weights costs an old task: in truth, by its Fisher matrix, by the diagonal.

The whole matrix of a network is too large to write down, but ½ vᵀFv is not: with J the Jacobian of
the logits, F = E[Jᵀ(diag(p) − ppᵀ)J], so vᵀFv is the mean variance of the logits' movement Jv under
the network's own probabilities (Martens 2020, section 9).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn import functional


class Rises(NamedTuple):
    """The rise of a mean loss in nats, and what two quadratics around the start say of it."""

    true: float
    whole: float
    diagonal: float


def half_quadratic(model: nn.Module, x: Tensor, step: Mapping[str, Tensor]) -> Tensor:
    """Return ½ vᵀFv with the exact Fisher matrix at the model's weights, a mean over ``x``.

    It can be differentiated by the step.

    Args:
        model: maps inputs ``(N, …)`` to logits ``(N, C)``; in the mode in which it is to be used.
        x: inputs of the task that F belongs to.
        step: v, one tensor for each parameter, by name.
    """
    weights = {name: p.detach() for name, p in model.named_parameters()}
    logits, Jv = jvp(lambda w: functional_call(model, w, (x,)), (weights,), (dict(step),))
    p = logits.softmax(1)
    return 0.5 * ((p * Jv**2).sum(1) - (p * Jv).sum(1) ** 2).mean()


@torch.no_grad()
def rises(
    before: nn.Module, after: nn.Module, x: Tensor, y: Tensor, fisher: Mapping[str, Tensor]
) -> Rises:
    """Return by how much the loss on ``(x, y)`` rises from one network to another of its kind.

    Args:
        before: the network at the optimum of this task.
        after: the same after it has learned something else.
        x, y: ``(N, …)`` and ``(N,)``, the task's samples.
        fisher: its Fisher diagonal at ``before``, by parameter name.
    """
    losses = [functional.cross_entropy(model(x), y).item() for model in (before, after)]
    pairs = zip(before.named_parameters(), after.parameters(), strict=True)
    step = {name: new.detach() - old.detach() for (name, old), new in pairs}
    return Rises(
        losses[1] - losses[0],
        half_quadratic(before, x, step).item(),
        0.5 * sum((fisher[name] * v**2).sum().item() for name, v in step.items()),
    )
