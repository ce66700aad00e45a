"""How a classifier does on each single sample."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from ewc_tutorial.fisher.inputs import apply
from ewc_tutorial.fisher.per_sample import run
from ewc_tutorial.fisher.samples import make_samples
from ewc_tutorial.fisher.undisturbed import undisturbed


class PerSample(NamedTuple):
    """What a model made of N samples, in their order.

    Attributes:
        correct: ``(N,)``, whether the likeliest class is the label.
        loss: ``(N,)``, −log p of the label, in nats.
        labels: ``(N,)``.
    """

    correct: NDArray[np.bool_]
    loss: NDArray[np.float64]
    labels: NDArray[np.int64]


def per_sample(
    model: nn.Module, data: Any, n_samples: int | None = None, batch_size: int = 256
) -> PerSample:
    """Evaluate a classifier in evaluation mode; nothing is changed, random states included.

    Args:
        model: returns logits ``(B, C)``.
        data: with class numbers as labels, in any form that
            :func:`~ewc_tutorial.fisher.fisher_diagonal` takes.
        n_samples: of which so many are used, drawn at random but the same ones each time; all of
            them for None.
        batch_size: that are computed at a time.

    Raises:
        ValueError: ``data`` is empty or has no labels, or the model is no such classifier.
    """
    samples = make_samples(data, n_samples, torch.Generator().manual_seed(0))
    device = next(model.parameters()).device
    correct, losses, all_labels = [], [], []
    with undisturbed(model), torch.no_grad():
        for x, y in samples.batches(batch_size):
            logits = run(model, apply(lambda t: t.to(device), x)).float().cpu()
            if logits.ndim != 2 or y is None or y.shape != logits.shape[:1]:
                raise ValueError(
                    "Accuracy needs logits (B, C) and labels (B,), not "
                    f"{tuple(logits.shape)} and {None if y is None else tuple(y.shape)}: give a "
                    "function of the model that returns your own metric."
                )
            labels = y.cpu().long()
            all_labels.append(labels)
            correct.append(logits.argmax(1) == labels)
            losses.append(functional.cross_entropy(logits, labels, reduction="none"))
    if not losses:
        raise ValueError("data must hold at least one sample, but it is empty.")
    return PerSample(
        torch.cat(correct).numpy(),
        torch.cat(losses).double().numpy(),
        torch.cat(all_labels).numpy(),
    )
