"""The diagonal Fisher information of any ``nn.Module``, from exact per-sample gradients.

    F = 1/N Σ_n E_y[(∂ log p(y | x_n, θ) / ∂θ)²]

The square is of one sample's gradient. Squaring the gradient of a batch, as ``backward()`` would
give it, is another and much smaller quantity (the estimator ``batched``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ewc_tutorial.likelihoods import ESTIMATORS, Draws, Likelihood, make_likelihood
from ewc_tutorial.per_sample import squares_by_loop, squares_by_vmap
from ewc_tutorial.samples import make_samples

#: The seed of the random numbers when no generator is given.
DEFAULT_SEED = 0


def fisher_diagonal(
    model: nn.Module,
    data: Any,
    estimator: str = "exact",
    n_samples: int | None = None,
    batch_size: int | None = None,
    likelihood: str = "categorical",
    generator: torch.Generator | None = None,
    progress: bool = False,
    *,
    classes: Sequence[int] | Tensor | None = None,
    ignore_index: int = -100,
    variance: float = 1.0,
    distributed: bool = True,
) -> dict[str, Tensor]:
    """Return the diagonal of the Fisher information: the mean over samples of the squared score.

    Args:
        model: the network, differentiated in evaluation mode; its mode, gradients, buffers and the
            global random state are afterwards as before.
        data: a ``Task`` (its ``train`` part), a pair (x, y) of tensors, a ``Dataset`` of items
            (x, y), or an iterable of batches (x, y) such as a ``DataLoader``, gone through once.
            y may be None where no labels are needed.
        estimator: the label that the score is taken at.
            ``exact``: the expectation over all labels under the model.
            ``sampled``: one label per output drawn from the model.
            ``empirical``: the data's label.
            ``argmax``: the model's own top class.
            ``batched``: the data's label, the gradient *averaged over a batch before squaring*: the
            widespread mistake, for comparison only.
        n_samples: use a random subset of so many samples, without replacement (all, if there are
            fewer); of an iterable, the first so many.
        batch_size: samples per pass. It bounds memory and does not change the result, but for
            ``batched``, where it is the size of the batch that is averaged (default: 32, or the
            iterable's own batches).
        likelihood: how the outputs are read.
            ``categorical``: logits (B, C) with labels (B,); or (B, T, C) with labels (B, T), where
            a sample is one sequence and its score the gradient of the summed log-likelihoods of
            its tokens. Given the inputs the tokens' labels are independent, so the cross terms of
            their scores vanish in the expectation: ``exact`` is then the sum over tokens of each
            token's expected squared score, in T·(C − 1) backward passes. ``sampled`` estimates the
            same in one.
            ``bernoulli``: logits (B,) or (B, K) of independent labels 0 or 1.
            ``gaussian``: means (B,) or (B, K) with a fixed variance.
        generator: draws the subset and the labels; None starts one from a fixed seed, so that two
            calls agree. The global random state is never used.
        progress: show a progress bar if it takes longer than about a second.
        classes: the active classes, as numbers or as a mask (C,): the softmax is over these alone.
        ignore_index: tokens of this label do not count.
        variance: of the likelihood ``gaussian``.
        distributed: if ``torch.distributed`` is initialised, sum over all processes, each of which
            must then call this with its share of the data.

    Returns:
        One tensor per trainable parameter, by its name in ``model.named_parameters()``, of its
        shape, dtype and device.

    Raises:
        TypeError: ``data`` or its labels have a type that does not fit.
        ValueError: an argument is unknown or out of range, the data is empty, labels are missing or
            do not fit the outputs, the model has no trainable parameter, or a result is not finite.
    """
    _check_choice("estimator", estimator, ESTIMATORS)
    _check_count("n_samples", n_samples)
    _check_count("batch_size", batch_size)
    rule = make_likelihood(likelihood, classes, ignore_index, variance)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    if not names:
        raise ValueError("model must have at least one trainable parameter, but it has none.")
    if generator is None:
        generator = torch.Generator().manual_seed(DEFAULT_SEED)

    with undisturbed(model):
        samples = make_samples(data, n_samples, generator)
        draws = Draws(generator)
        parameters = {name: model.get_parameter(name) for name in names}
        device = parameters[names[0]].device
        sums = {
            name: torch.zeros_like(p, dtype=torch.float64 if device.type != "mps" else None)
            for name, p in parameters.items()
        }
        count = 0
        if estimator == "batched":
            size = batch_size or (None if samples.own_batches else 32)
        else:
            size = batch_size or 64
        for x, y in samples.batches(size, merge=estimator == "batched"):
            x, y = x.to(device), None if y is None else y.to(device)
            if estimator == "batched":
                squares = _squared_batch_mean(model, names, x, y, rule, draws)
            else:
                with torch.no_grad():
                    outputs = model(x)
                seeds = rule.seeds(estimator, outputs, y, draws)
                try:
                    squares = squares_by_vmap(model, names, x, list(seeds), len(x))
                except RuntimeError:
                    squares = squares_by_loop(model, names, x, list(seeds))
            for name, value in squares.items():
                sums[name] += value
            count += len(x)
    if not count:
        raise ValueError("data must have at least one sample, but it is empty.")
    return {name: _finished(name, sums[name] / count, p) for name, p in parameters.items()}


def _finished(name: str, mean: Tensor, parameter: Tensor) -> Tensor:
    result = mean.to(parameter.dtype)
    if not result.isfinite().all():
        raise ValueError(
            f"the Fisher information of parameter {name!r} is not finite: look for NaN or infinity "
            "in the data and the weights."
        )
    return result


def _squared_batch_mean(
    model: nn.Module,
    names: list[str],
    x: Tensor,
    y: Tensor | None,
    likelihood: Likelihood,
    draws: Draws,
) -> dict[str, Tensor]:
    """Return the squared mean gradient of one batch, times its number of samples."""
    outputs = model(x)
    (seed,) = likelihood.seeds("batched", outputs.detach(), y, draws)
    parameters = [model.get_parameter(name) for name in names]
    gradients = torch.autograd.grad(outputs, parameters, seed / len(x), materialize_grads=True)
    return {n: g.square() * len(x) for n, g in zip(names, gradients, strict=True)}


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Differentiate in evaluation mode and leave the model and the random state as they were."""
    training = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, None if buffer is None else buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
    ]
    devices = {t.device for t in model.parameters() if t.device.type == "cuda"}
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.random.fork_rng(devices=[device.index for device in devices]),
    ):
        try:
            model.eval()
            yield
        finally:
            for module, was_training in training:
                module.training = was_training
            with torch.no_grad():
                for module, name, buffer, value in buffers:
                    module._buffers[name] = buffer
                    if buffer is not None and not torch.equal(buffer, value):
                        buffer.copy_(value)


def _check_choice(argument: str, value: Any, choices: Iterable[str]) -> None:
    if value not in choices:
        raise ValueError(f"{argument} must be one of {', '.join(choices)}, not {value!r}.")


def _check_count(argument: str, value: int | None) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{argument} must be a whole number or None, not {value!r}.")
    if value < 1:
        raise ValueError(f"{argument} must be at least 1, not {value!r}.")
