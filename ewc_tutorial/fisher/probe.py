"""Finds out from a few samples which rule each parameter may get.

Nothing is guessed: the squared gradients of the samples are computed one sample at a time, which is
right by definition, and a faster rule stands only if it gives the same. That finds everything that
a closed form silently relies on: that the first dimension counts samples, that samples do not
influence each other, that a layer computes what its type says and that hooks see all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ewc_tutorial.fisher.closed_forms.calls import Recorder
from ewc_tutorial.fisher.closed_forms.graph import Graph, Use, kinds, readings
from ewc_tutorial.fisher.closed_forms.layers import Product
from ewc_tutorial.fisher.closed_forms.squares import squares_by_closed_forms
from ewc_tutorial.fisher.closed_forms.sums import pairs_bytes
from ewc_tutorial.fisher.inputs import Inputs, n_samples, take
from ewc_tutorial.fisher.likelihoods.base import Seeds
from ewc_tutorial.fisher.per_sample import (
    Squares,
    outputs_one_by_one,
    run,
    squares_by_loop,
    squares_by_vmap,
)

#: Samples of the probe: three, because mixing samples up or averaging them shows from two on.
PROBE_SIZE = 3


@dataclass(frozen=True)
class Plan:
    """How the parameters of a model are to be treated.

    Attributes:
        closed: for each parameter with a closed form, the kinds of use that it is right for.
        by_loop: the parameters that ``torch.func`` is not right for either.
        interacting: whether samples influence each other.
        samples: how many samples this was found out with.
        held: bytes that one sample takes until its last backward pass.
        held_between: what comes on top of that where there are many backward passes.
    """

    closed: Mapping[str, frozenset[str]]
    by_loop: frozenset[str]
    interacting: bool
    samples: int
    held: int
    held_between: int


def probe(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], recorder: Recorder, x: Inputs
) -> Plan:
    """Return a plan that is right for the first few of the samples ``x``.

    Args:
        model: in the mode that it is to be differentiated in.
        parameters: by name; all that are trainable.
        recorder: of the model's layers.
        x: inputs (B, ...) on the model's device.
    """
    x = take(x, slice(0, PROBE_SIZE))
    batch = n_samples(x)
    saved = _saved_bytes(model, take(x, slice(0, 1)))
    alone = outputs_one_by_one(model, x)
    with recorder.recording() as calls:
        outputs = run(model, x)
    interacting = not outputs_agree(outputs, alone)
    del alone

    # Any seed will do for a comparison; a random one leaves no gradient zero by symmetry.
    seed = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0)).to(outputs)
    seeds = Seeds(lambda: iter([seed]), 1)
    expected = squares_by_loop(model, parameters, x, seeds)
    matches = _Comparison(expected, resolution(outputs))
    closed: dict[str, frozenset[str]] = {}
    parts_bytes, between = 0, 0
    if not interacting:
        for uses in readings(Graph(outputs), calls, parameters, batch, closed):
            actual = _tried(outputs, parameters, uses, seeds)
            for name in matches.names(actual):
                # A gradient that is zero, behind a closed gate, agrees with every assumption.
                if expected[name].any() or not any(use.assumed for use in uses[name]):
                    closed[name] = kinds(uses[name])
                    parts = [use.part for use in uses[name]]
                    parts_bytes += _bytes([p.right for p in parts if isinstance(p, Product)])
                    between += pairs_bytes(parts, parameters[name].shape)

    rest = [name for name in parameters if name not in closed]
    by_loop = set(rest)
    if rest:
        # Whatever torch.func may raise, the loop has just shown that it can do the model.
        with suppress(Exception):
            by_loop -= set(matches.names(squares_by_vmap(model, rest, x, seeds, batch)))
    # For each saved tensor about two more, the gradients by it and by what was made of it; of the
    # outputs their logarithms, probabilities and seeds.
    held = 3 * saved + parts_bytes // batch + 6 * outputs[0].numel() * 4
    return Plan(closed, frozenset(by_loop), interacting, batch, held, between)


def outputs_agree(actual: Tensor, expected: Tensor) -> bool:
    """Return whether outputs are the same but for rounding."""
    return actual.shape == expected.shape and _agree(
        actual.detach(), expected, resolution(expected) ** 0.5 * _largest(expected)
    )


def resolution(outputs: Tensor) -> float:
    """Return the relative rounding error of the coarsest number format in the forward pass."""
    kind = outputs.device.type
    formats = [outputs.dtype]
    if torch.is_autocast_enabled(kind):
        formats.append(torch.get_autocast_dtype(kind))
    return max(torch.finfo(dtype).eps for dtype in formats)


class _Comparison:
    """Compares with squared gradients that are right but for rounding.

    Args:
        expected: the squared gradients.
        eps: the relative rounding error of the numbers that they were computed from.
    """

    def __init__(self, expected: Squares, eps: float) -> None:
        self._expected = expected
        self._rtol = eps**0.5
        # A gradient that is zero by symmetry (a bias before a normalisation) consists of rounding
        # errors, whose squares are of order eps² relative to the others.
        self._floor = eps**1.5 * max(_largest(value) for value in expected.values())

    def names(self, actual: Squares) -> list[str]:
        """Return the parameters whose squared gradients agree."""
        return [name for name, value in actual.items() if self._agrees(name, value)]

    def _agrees(self, name: str, actual: Tensor) -> bool:
        expected = self._expected[name]
        return _agree(actual, expected, self._rtol * _largest(expected) + self._floor)


def _agree(actual: Tensor, expected: Tensor, bound: float) -> bool:
    actual = actual.to(expected)
    error = _max((actual - expected).abs_())
    # What is not finite in both is reported at the end.
    undecided = error != error
    return torch.allclose(actual, expected, 0.0, bound, True) if undecided else error <= bound


def _max(t: Tensor) -> float:
    return t.max().item() if t.numel() else 0.0


def _largest(t: Tensor) -> float:
    """Return the largest finite magnitude."""
    largest = _max(t.abs())
    if largest < float("inf"):
        return largest
    return _max(t.abs().nan_to_num(nan=0.0, posinf=0.0))


def _tried(
    outputs: Tensor, parameters: Mapping[str, Tensor], uses: dict[str, list[Use]], seeds: Seeds
) -> Squares:
    """Return what the closed forms give, of those that can be computed at all."""
    try:
        return squares_by_closed_forms(outputs, parameters, uses, seeds)
    except Exception:
        # A rule met shapes that it is not made for: leave out the parameters concerned.
        sums: Squares = {}
        for name in uses if len(uses) > 1 else ():
            sums |= _tried(outputs, parameters, {name: uses[name]}, seeds)
        return sums


def _saved_bytes(model: nn.Module, sample: Inputs) -> int:
    """Return how much one sample's forward pass keeps for the backward pass."""
    storages: dict[int, int] = {}

    def count_storage(t: Tensor) -> Tensor:
        with suppress(NotImplementedError, RuntimeError):  # it has no storage of its own
            storage = t.untyped_storage()
            # Inputs may be a view of all data, and what is expanded fills less than it shows.
            size = min(storage.nbytes(), t.numel() * t.element_size())
            storages[storage.data_ptr()] = max(size, storages.get(storage.data_ptr(), 0))
        return t

    with saved_tensors_hooks(count_storage, lambda t: t):
        outputs = run(model, sample)
    own = {t.data_ptr() for t in (*model.parameters(), *model.buffers())}
    del outputs
    return sum(size for place, size in storages.items() if place not in own)


def _bytes(tensors: list[Tensor]) -> int:
    """Return how much tensors hold together, counting views of one tensor once."""
    return sum({t.data_ptr(): t.numel() * t.element_size() for t in tensors}.values())
