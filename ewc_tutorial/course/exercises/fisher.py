"""Exercises of notebook 02."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from ewc_tutorial.course import reference
from ewc_tutorial.course.exercises.core import Exercise
from ewc_tutorial.course.models import mlp

Fisher = dict[str, Tensor]


def _networks(seed: int = 0) -> list[tuple[nn.Module, Tensor, Tensor]]:
    """Return three small networks, each with inputs and labels, some of which it gets wrong."""
    g = torch.Generator().manual_seed(seed)
    cases = []
    for n, features, hidden, classes in ((5, 4, [], 3), (8, 3, [6], 4), (6, 5, [4, 4], 2)):
        model = mlp(features, hidden, classes, activation=nn.Tanh, seed=10 * seed + classes)
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(2)
        x = torch.randn(n, features, generator=g)
        top = model(x).argmax(1)
        y = torch.where(torch.arange(n) % 2 == 0, top, (top + 1) % classes)
        cases.append((model, x, y))
    return cases


def _gradients(model: nn.Module, value: Tensor) -> Fisher:
    gradients = torch.autograd.grad(value, list(model.parameters()))
    return dict(zip(dict(model.named_parameters()), gradients, strict=True))


def _squared(gradients: Fisher) -> Fisher:
    return {name: g.square() for name, g in gradients.items()}


def _times(fisher: Fisher, factor: float) -> Fisher:
    return {name: factor * F for name, F in fisher.items()}


def _mean_over_samples(
    per_sample: Callable[[nn.Module, Tensor], Fisher],
) -> Callable[[nn.Module, Tensor], Fisher]:
    """Return the function that averages ``per_sample(model, x)`` over single samples."""

    def fisher(model: nn.Module, x: Tensor) -> Fisher:
        terms = [per_sample(model, xi) for xi in x]
        return {name: torch.stack([t[name] for t in terms]).mean(0) for name in terms[0]}

    return fisher


def _over_classes(
    term: Callable[[Tensor, Tensor], Tensor],
) -> Callable[[nn.Module, Tensor], Fisher]:
    """Return the function that averages ``term(p, G)`` over samples.

    p ``(C,)`` are one sample's probabilities and G ``(C, ...)`` its scores at every class.
    """

    def one(model: nn.Module, x: Tensor) -> Fisher:
        p = model(x.unsqueeze(0)).softmax(1)[0].detach()
        scores = [reference.score(model, x, c) for c in range(len(p))]
        return {name: term(p, torch.stack([s[name] for s in scores])) for name in scores[0]}

    return _mean_over_samples(one)


def _along(p: Tensor, G: Tensor) -> Tensor:
    return p.view(-1, *[1] * (G.ndim - 1))


def _through_the_weights(model: nn.Module, x: Tensor) -> Fisher:
    p = model(x.unsqueeze(0)).softmax(1)[0]
    return _squared(_gradients(model, (p * p.log()).sum()))


def _logits(seed: int = 0) -> list[tuple[Tensor]]:
    g = torch.Generator().manual_seed(seed)
    return [(1.5 * torch.randn(n, generator=g),) for n in (3, 2, 4)]


def _outer_sum(weights: Tensor, p: Tensor) -> Tensor:
    """Return Σ_y w_y s_y s_yᵀ with s_y = e_y − p."""
    s = torch.eye(len(p)) - p
    return s.T @ (weights.unsqueeze(1) * s)


def _batch_means(model: nn.Module, x: Tensor, y: Tensor, batch_size: int) -> Fisher:
    """The code of section 4: each batch counts the same."""
    parts = list(zip(x.split(batch_size), y.split(batch_size), strict=True))
    fisher = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for xs, ys in parts:
        for name, g in _gradients(model, functional.cross_entropy(model(xs), ys)).items():
            fisher[name] += g.square() / len(parts)
    return fisher


def _batch_sums(model: nn.Module, x: Tensor, y: Tensor, batch_size: int) -> Fisher:
    fisher = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for xs, ys in zip(x.split(batch_size), y.split(batch_size), strict=True):
        loss = functional.cross_entropy(model(xs), ys, reduction="sum")
        for name, g in _gradients(model, loss).items():
            fisher[name] += g.square() / len(x)
    return fisher


def _never_zeroed(model: nn.Module, x: Tensor, y: Tensor, batch_size: int = 1) -> Fisher:
    """Batch by batch, each gradient on top of those before it."""
    parts = list(zip(x.split(batch_size), y.split(batch_size), strict=True))
    fisher = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    so_far = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for xs, ys in parts:
        for name, g in _gradients(model, functional.cross_entropy(model(xs), ys)).items():
            so_far[name] += g
            fisher[name] += so_far[name].square() / len(parts)
    return fisher


def _in_batches(seed: int = 0) -> list[tuple[nn.Module, Tensor, Tensor, int]]:
    """Return the networks, each with a batch size; in one the last batch is a smaller one."""
    return [(*case, size) for case, size in zip(_networks(seed), (2, 4, 3), strict=True)]


EXERCISES: dict[str, Exercise] = {
    "logit_fisher": Exercise(
        answer=reference.logit_fisher,
        cases=_logits,
        mistakes={
            "That is diag(p), the second moment of the one-hot label: subtract p from e_y first.": (
                lambda z: torch.diag(z.softmax(0))
            ),
            "The sign is wrong: that is the Hessian of log p, and the Fisher is its negative.": (
                lambda z: torch.outer(z.softmax(0), z.softmax(0)) - torch.diag(z.softmax(0))
            ),
            "All classes count the same in that: weight each one by its probability.": (
                lambda z: _outer_sum(torch.full_like(z, 1 / len(z)), z.softmax(0))
            ),
            "That adds up all classes without weights: weight each one by its probability.": (
                lambda z: _outer_sum(torch.ones_like(z), z.softmax(0))
            ),
            "That looks at the likeliest class alone: the others occur, too, if more rarely.": (
                lambda z: _outer_sum(functional.one_hot(z.argmax(), len(z)).float(), z.softmax(0))
            ),
            "Those are the logits themselves: turn them into probabilities with softmax first.": (
                lambda z: torch.diag(z) - torch.outer(z, z)
            ),
            "That is only the diagonal: the result is a matrix, with −p_c p_d off the diagonal.": (
                lambda z: z.softmax(0) * (1 - z.softmax(0))
            ),
        },
    ),
    "fisher_empirical": Exercise(
        answer=reference.fisher_empirical,
        cases=_networks,
        mistakes={
            "This is the square of the batch mean: average the squares, do not square the average. "
            "On real data it is too small by about the batch size.": (
                lambda model, x, y: _squared(
                    _gradients(model, functional.cross_entropy(model(x), y))
                )
            ),
            "This is the square of the summed gradient: square each sample's gradient by itself.": (
                lambda model, x, y: _squared(
                    _gradients(model, functional.cross_entropy(model(x), y, reduction="sum"))
                )
            ),
            "This is the squared sum of all gradients divided by N: square before adding.": (
                lambda model, x, y: _times(
                    _squared(_gradients(model, functional.cross_entropy(model(x), y))), len(x)
                )
            ),
            "This is the sum over the samples: divide by their number, or λ will depend on it.": (
                lambda model, x, y: _times(reference.fisher_empirical(model, x, y), len(x))
            ),
            **{
                f"These are squared means of batches of {size}: the square comes first, and of "
                "single samples.": partial(_batch_means, batch_size=size)
                for size in (2, 3, 4)
            },
            "The gradients pile up: `backward()` adds to what is in `.grad`. Call "
            "`model.zero_grad()` before each sample.": _never_zeroed,
            "This takes the network's own top class as the label: the empirical Fisher takes the "
            "data's label y.": lambda model, x, y: reference.fisher_argmax(model, x),
            "This is the exact Fisher: here only the data's label counts.": (
                lambda model, x, y: reference.fisher_exact(model, x)
            ),
            "This is the gradient of the mean loss, without any square.": (
                lambda model, x, y: _gradients(model, functional.cross_entropy(model(x), y))
            ),
        },
    ),
    "fisher_exact": Exercise(
        answer=reference.fisher_exact,
        cases=lambda seed=0: [(model, x) for model, x, _ in _networks(seed)],
        mistakes={
            "All classes count the same in this: weight each one by its probability p(c).": (
                _over_classes(lambda p, G: G.square().mean(0))
            ),
            "This adds up all classes without weights: weight each one by its probability p(c).": (
                _over_classes(lambda p, G: G.square().sum(0))
            ),
            "This looks at the likeliest class alone: sum over all of them.": (
                lambda model, x: reference.fisher_argmax(model, x)
            ),
            "The weight got squared, too: it is p(c) times the square of the score. (Or it is the "
            "gradient of p: the score is that of log p.)": (
                _over_classes(lambda p, G: (_along(p, G) * G).square().sum(0))
            ),
            # The same with or without a square after the sum: rounding errors.
            "The classes cancel, as the mean score is zero: square each class's score.": (
                _over_classes(lambda p, G: (_along(p, G) * G).sum(0).square())
            ),
            "This differentiates the weights p(c), too (the gradient of the entropy): detach them, "
            "and take one gradient per class.": _mean_over_samples(_through_the_weights),
            "This is the sum over the samples: divide by their number.": (
                lambda model, x: _times(reference.fisher_exact(model, x), len(x))
            ),
        },
    ),
    "fisher_from_batches": Exercise(
        answer=reference.fisher_from_batches,
        cases=_in_batches,
        mistakes={
            "This still squares the mean of each batch: it is too small by about the batch size. "
            "Take one gradient for each sample, then square.": _batch_means,
            "This still squares the mean of each batch, now weighted with its size.": (
                reference.fisher_batched
            ),
            "Times the batch size is no repair: it puts back 1/B, but what the mean has cancelled "
            "is gone, and (E[g])² has become B times too large.": (
                lambda model, x, y, size: _times(_batch_means(model, x, y, size), size)
            ),
            "This squares the *sum* over each batch: the samples of a batch are still mixed.": (
                _batch_sums
            ),
            "The gradients pile up from batch to batch: `zero_grad()` belongs inside the loop. "
            "And a batch still gives one gradient, not one for each sample.": _never_zeroed,
            "Single samples now, but their gradients pile up: `backward()` adds to what is in "
            "`.grad`. Call `zero_grad()` before each of them.": (
                lambda model, x, y, size: _never_zeroed(model, x, y)
            ),
            "One gradient for each sample, right. But you divide by the number of batches: it is "
            "a mean over samples.": (
                lambda model, x, y, size: _times(
                    reference.fisher_empirical(model, x, y), len(x) / -(-len(x) // size)
                )
            ),
            "This is the sum over the samples: divide by their number, not by one.": (
                lambda model, x, y, size: _times(reference.fisher_empirical(model, x, y), len(x))
            ),
        },
    ),
}
