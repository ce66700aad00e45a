"""Exercises of notebook 00."""

from __future__ import annotations

import torch
from torch import Tensor

from ewc_tutorial.course import reference
from ewc_tutorial.course.exercises.core import Exercise, Prediction


def _logits_and_labels(seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Return three cases, none of them all right or all wrong, in which no share is a round one."""
    g = torch.Generator().manual_seed(seed)
    cases = []
    for n, n_classes in ((7, 3), (23, 5), (13, 5)):
        logits = torch.randn(n, n_classes, generator=g)
        others = torch.randint(1, n_classes, (n,), generator=g)
        others[torch.randperm(n, generator=g)[: int(torch.randint(1, n, (1,), generator=g))]] = 0
        cases.append((logits, (logits.argmax(1) + others) % n_classes))
    return cases


def _images_and_order(seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1 + seed)
    return [
        (torch.rand(n, d, generator=g), torch.randperm(d, generator=g))
        for n, d in ((3, 4), (6, 6), (5, 64))
    ]


def _another_order_for_each_image(x: Tensor, order: Tensor) -> Tensor:
    return torch.stack([row[order.roll(i)] for i, row in enumerate(x)])


EXERCISES = {
    "accuracy": Exercise(
        answer=reference.accuracy,
        cases=_logits_and_labels,
        mistakes={
            "That is the number of right answers: divide by the number of samples.": (
                lambda logits, y: (logits.argmax(1) == y).sum()
            ),
            "That is the share of wrong answers, the error rate.": (
                lambda logits, y: (logits.argmax(1) != y).float().mean()
            ),
            "That takes the smallest logit: the network's answer is the largest.": (
                lambda logits, y: (logits.argmin(1) == y).float().mean()
            ),
            "That is rounded: return the share itself, and round it where it is printed.": (
                lambda logits, y: round((logits.argmax(1) == y).double().mean().item(), 2)
            ),
            "In percent that is right; the course gives accuracies as shares between 0 and 1.": (
                lambda logits, y: 100 * (logits.argmax(1) == y).float().mean()
            ),
        },
    ),
    "permute_pixels": Exercise(
        answer=reference.permute_pixels,
        cases=_images_and_order,
        mistakes={
            "That is the inverse permutation: pixel j of the result comes from pixel order[j].": (
                lambda x, order: x[:, order.argsort()]
            ),
            "That puts the images in another order, not the pixels: index the second dimension.": (
                lambda x, order: x[order[order < len(x)]]
            ),
            "Every image needs the same order, or there is nothing to learn.": (
                _another_order_for_each_image
            ),
            "These are still the original images.": lambda x, order: x,
        },
    ),
    "slow_and_long": Prediction(
        "Ten times smaller steps, ten times as many of them: the way that the weights go is the "
        "same, and so is what it costs A.",
        within=0.1,
    ),
}
