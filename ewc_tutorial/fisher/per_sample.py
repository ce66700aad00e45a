"""Squared per-sample gradients of any model: the fall-backs where no closed form applies.

Both ways treat a sample as a batch of one, so they are right whatever the model does with its
batch. :func:`squares_by_vmap` does a chunk of samples at a time through ``torch.func``;
:func:`squares_by_loop` goes one by one and needs nothing but a forward and a backward pass.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice

import torch
from torch import Tensor, nn
from torch.func import vjp, vmap

from ewc_tutorial.fisher.inputs import Inputs, apply, n_samples, take

#: Seeds that are held at a time, and their elements, so that memory does not grow with the number
#: of classes.
SEEDS_AT_A_TIME, SEED_ELEMENTS_AT_A_TIME = 16, 2**20

Squares = dict[str, Tensor]


def squares_by_vmap(
    model: nn.Module, names: list[str], x: Inputs, seeds: Iterable[Tensor], chunk: int
) -> Squares:
    """Return Σ_n Σ_k (J_nᵀ s_nk)² for the parameters ``names``.

    Args:
        model: in the mode that it is to be differentiated in.
        names: parameters of the model.
        x: inputs (B, ...).
        seeds: gradients by the outputs, each (B, ...) like the model's outputs.
        chunk: samples that are differentiated together; memory grows with it.

    Raises:
        RuntimeError: the model does something that ``torch.func`` cannot follow.
    """
    others = {name: p.detach() for name, p in model.named_parameters()}
    parameters = {name: others.pop(name) for name in names}

    def squares(xi: Inputs, seeds_i: Tensor) -> Squares:
        def forward(p: Squares) -> Tensor:
            with _replaced(model, others | p):
                return run(model, apply(lambda t: t.unsqueeze(0), xi)).squeeze(0)

        pull_back = vjp(forward, parameters)[1]
        total = _zeros(parameters)
        for seed in seeds_i:
            (gradient,) = pull_back(seed)
            total = {n: total[n] + gradient[n].to(total[n]).square() for n in names}
        return total

    sums = _zeros(parameters)
    with warnings.catch_warnings():
        # That torch.func goes through an operation sample by sample is why this is a fall-back.
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        for some in _stacked(seeds):
            for start in range(0, len(some), chunk):
                rows = slice(start, start + chunk)
                for name, value in vmap(squares)(take(x, rows), some[rows]).items():
                    sums[name] += value.sum(0)
    return sums


def squares_by_loop(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    x: Inputs,
    seeds: Iterable[Tensor],
    copies: int = 1,
) -> Squares:
    """Return Σ_n Σ_k (J_nᵀ s_nk)² for some parameters, by a forward pass per sample.

    Args:
        model: in the mode that it is to be differentiated in.
        parameters: leaves that the model's outputs depend on, by name.
        x: inputs (B, ...).
        seeds: gradients by the outputs, each (B, ...) like the model's outputs.
        copies: how many times the sample is in its batch. With 2 the first one's gradient is the
            same, but not if PyTorch is wrong for batches of one.
    """
    sums = _zeros(parameters)
    for some in _stacked(seeds):
        for i, seeds_i in enumerate(some):
            outputs = run(model, take(x, [i] * copies))[:1]
            for seed in seeds_i if outputs.requires_grad else ():
                _add_squares(sums, parameters, outputs, seed.reshape(outputs.shape))
    return sums


def outputs_one_by_one(model: nn.Module, x: Inputs) -> Tensor:
    """Return the outputs of every sample as the model gives them for a batch of that sample."""
    # With a graph: a model may keep a table for later that it makes of its parameters here.
    return torch.cat([run(model, take(x, [i])).detach() for i in range(n_samples(x))])


def run(model: nn.Module, x: Inputs) -> Tensor:
    """Return the model's outputs (B, ...) for inputs (B, ...).

    Raises:
        TypeError: the model returns something else than a tensor.
        ValueError: the outputs have no row for each sample.
    """
    batch = n_samples(x)
    x = apply(torch.clone, x)  # a model may change its inputs in place
    outputs = model(x) if isinstance(x, Tensor) else model(**x)
    if not isinstance(outputs, Tensor):
        raise TypeError(
            f"model must return a tensor of outputs, not a {type(outputs).__name__}: wrap it in a "
            "module that returns the logits."
        )
    if outputs.ndim == 0 and batch == 1:  # squeeze() took the samples' dimension, too
        outputs = outputs.reshape(1)
    if outputs.ndim == 0 or len(outputs) != batch:
        raise ValueError(
            f"model must return as many rows as it gets, but for {batch} inputs it returned "
            f"{tuple(outputs.shape)}."
        )
    return outputs


def _add_squares(
    sums: Squares, parameters: Mapping[str, Tensor], outputs: Tensor, seed: Tensor
) -> None:
    gradients = torch.autograd.grad(
        outputs, list(parameters.values()), seed, retain_graph=True, allow_unused=True
    )
    for name, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            gradient = gradient.to_dense() if gradient.is_sparse else gradient
            sums[name] += gradient.to(sums[name]).square()


@contextmanager
def _replaced(model: nn.Module, tensors: Squares) -> Iterator[None]:
    """Put tensors in the places of the model's parameters, by name, wherever these are used.

    This is ``torch.func.functional_call``, but for modules that occur more than once in a model:
    after these it leaves the tensors in place of the parameters (PyTorch issue 164759).
    """
    new = {parameter: tensors[name] for name, parameter in model.named_parameters()}
    places = [(module, name) for module in model.modules() for name in module._parameters]
    old = [module._parameters[name] for module, name in places]
    try:
        for (module, name), parameter in zip(places, old, strict=True):
            if parameter is not None:
                module._parameters[name] = new[parameter]  # type: ignore[assignment]
        yield
    finally:
        for (module, name), parameter in zip(places, old, strict=True):
            module._parameters[name] = parameter


def _zeros(parameters: Mapping[str, Tensor]) -> Squares:
    return {
        name: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32))
        for name, p in parameters.items()
    }


def _stacked(seeds: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield groups of seeds as (B, K, ...)."""
    iterator = iter(seeds)
    for first in iterator:
        size = max(1, min(SEEDS_AT_A_TIME, SEED_ELEMENTS_AT_A_TIME // max(1, first.numel())))
        group = [first, *islice(iterator, size - 1)]
        yield torch.stack(group, dim=1) if len(group) > 1 else first.unsqueeze(1)
