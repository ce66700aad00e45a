"""What one sample adds to the Fisher information: for the student version of notebook 02, where
the cell that works it out would answer an exercise."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap


def expected_squares(model: nn.Module, x: Tensor) -> Tensor:
    """Return Σ_c p(c | x_n) (∂ log p(c | x_n))², a row per sample: ``(N, number of weights)``.

    Its mean over the samples is the exact Fisher diagonal, in the order of the parameters.

    Args:
        model: takes inputs ``(N, …)`` to logits ``(N, C)``.
        x: the inputs.
    """
    theta = {name: p.detach() for name, p in model.named_parameters()}
    p = model(x).softmax(1).detach()

    def log_p(weights: dict[str, Tensor], one: Tensor, label: Tensor) -> Tensor:
        return functional_call(model, weights, (one[None],)).log_softmax(1)[0][label]

    scores = vmap(jacrev(log_p), in_dims=(None, 0, None))
    total = torch.zeros(len(x), sum(w.numel() for w in theta.values()), dtype=p.dtype)
    for label in range(p.shape[1]):
        found = scores(theta, x, torch.tensor(label)).values()
        total += p[:, [label]] * torch.cat([g.flatten(1) for g in found], dim=1).square()
    return total
