"""Finds out from a few samples which rule each parameter may get.

Nothing is guessed: the squared gradients of the samples are computed one sample at a time, which is
right by definition, and a faster rule stands only if it gives the same. That finds everything that
a closed form silently relies on: that the first dimension counts samples, that samples do not
influence each other, that a layer computes what its type says and that hooks see all of it.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ewc_tutorial.fisher.closed_forms.calls import Recorder
from ewc_tutorial.fisher.closed_forms.graph import Graph, Kinds, Use, kinds, readings
from ewc_tutorial.fisher.closed_forms.layers import Product
from ewc_tutorial.fisher.closed_forms.squares import squares_by_closed_forms
from ewc_tutorial.fisher.closed_forms.sums import pairs_bytes
from ewc_tutorial.fisher.inputs import Inputs, all_equal, n_elements, n_samples, take
from ewc_tutorial.fisher.likelihoods.base import Seeds
from ewc_tutorial.fisher.per_sample import (
    Squares,
    outputs_one_by_one,
    run,
    squares_by_loop,
    squares_by_vmap,
)

RANDOM = (
    "the model gives different outputs for the same inputs in evaluation mode: switch off what is "
    "random, such as F.dropout(x) without training=self.training, which never stops."
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
        copies: how many times a sample has to be in a batch of its own for its gradients to be
            right.
        proven: whether other samples would not give more closed forms: these differed, and gave
            every parameter without one a gradient.
        verified: whether the samples differed and all gradients were large enough to be compared.
        samples: how many samples this was found out with.
        held: bytes that one sample takes until its last backward pass.
        held_between: what comes on top of that where there are many backward passes.
    """

    closed: Mapping[str, Kinds]
    by_loop: frozenset[str]
    interacting: bool
    copies: int
    proven: bool
    verified: bool
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
    samples = n_samples(x)
    equal = samples > 1 and all_equal(x)  # then the order of samples does not show
    if samples == 1:
        x = take(x, [0, 0])  # PyTorch may be wrong for batches of one
    batch = n_samples(x)
    first, saved = _measured(model, take(x, [0]))
    alone = outputs_one_by_one(model, x)
    if not outputs_agree(first, alone[:1]):
        raise ValueError(RANDOM)
    with recorder.recording() as calls:
        outputs = run(model, x)
    interacting = not outputs_agree(outputs, alone)
    del alone

    # Any seed will do for a comparison; a random one leaves no gradient zero by symmetry.
    seed = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0)).to(outputs)
    seeds = Seeds(lambda: iter([seed]), 1)
    expected = squares_by_loop(model, parameters, x, seeds)
    if not outputs.requires_grad and not any(value.any() for value in expected.values()):
        raise ValueError(
            "the model's outputs depend on no trainable parameter: look for detach(), no_grad() or "
            "numpy in its forward."
        )
    graph = Graph(outputs)
    closed: dict[str, list[Use]] = {}

    def try_closed_forms() -> list[str]:
        """Add to ``closed`` what gives the expected squares; return the parameters left."""
        for uses in () if interacting else readings(graph, calls, parameters, batch, closed):
            left = {name: seen for name, seen in uses.items() if name not in closed}
            actual = _tried(outputs, parameters, left, seeds)
            assumed = {name for name, seen in left.items() if any(use.rows > 1 for use in seen)}
            shown = set(matches.names(actual, assumed)) - (assumed if equal else set())
            closed.update((name, left[name]) for name in shown)
        return [name for name in parameters if name not in closed]

    matches = _Comparison(expected, resolution(outputs))
    rest, copies = try_closed_forms(), 1
    if rest and not interacting:
        # Is it the closed form that is wrong, or PyTorch with a batch of one?
        left = {name: parameters[name] for name in rest}
        twice = squares_by_loop(model, left, x, seeds, copies=2)
        if len(matches.names(twice, ())) < len(rest):
            matches, copies = _Comparison(expected | twice, resolution(outputs)), 2
            rest = try_closed_forms()
    by_loop = set(rest)
    if rest:
        # Whatever torch.func may raise, the loop has just shown that it can do the model.
        with suppress(Exception):
            by_loop -= set(matches.names(squares_by_vmap(model, rest, x, seeds, batch), ()))

    parts = {name: [use.part for use in uses] for name, uses in closed.items()}
    rights = [p.right for some in parts.values() for p in some if isinstance(p, Product)]
    return Plan(
        closed={name: kinds(uses, n_elements(x)) for name, uses in closed.items()},
        by_loop=frozenset(by_loop),
        interacting=interacting,
        copies=copies,
        proven=not equal and all(expected[name].any() for name in rest),
        verified=not equal and all(matches.shows(n) for n in parameters if closed.get(n) != []),
        samples=samples,
        # For each saved tensor about two more, the gradients by it and by what was made of it; of
        # the outputs their logarithms, probabilities and seeds.
        held=3 * saved + _bytes(rights) // batch + 6 * outputs[0].numel() * 4,
        held_between=sum(pairs_bytes(some, parameters[n].shape) for n, some in parts.items()),
    )


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

    def names(self, actual: Squares, assumed: Container[str]) -> list[str]:
        """Return the parameters whose squared gradients agree.

        Those that are ``assumed`` to be used in one of several ways must show it: zero agrees with
        every assumption, and so does what drowns in rounding errors.
        """
        return [n for n, v in actual.items() if self._agrees(n, v, n in assumed)]

    def shows(self, name: str) -> bool:
        """Return whether a parameter has gradients above the rounding errors of others."""
        return _largest(self._expected[name]) > self._floor

    def _agrees(self, name: str, actual: Tensor, assumed: bool) -> bool:
        expected = self._expected[name]
        largest = _largest(expected)
        if assumed or not actual.any():
            return (largest > 0 or not assumed) and _agree(actual, expected, self._rtol * largest)
        return _agree(actual, expected, self._rtol * largest + self._floor)


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


def _measured(model: nn.Module, sample: Inputs) -> tuple[Tensor, int]:
    """Return one sample's outputs, and how many bytes are kept for its backward pass."""
    storages: dict[int, int] = {}

    def measure(t: Tensor) -> Tensor:
        with suppress(NotImplementedError, RuntimeError):  # it has no storage of its own
            storage = t.untyped_storage()
            # Inputs may be a view of all data, and what is expanded fills less than it shows.
            size = min(storage.nbytes(), t.numel() * t.element_size())
            storages[storage.data_ptr()] = max(size, storages.get(storage.data_ptr(), 0))
        return t.detach()  # an output of its own would keep the whole graph alive

    with saved_tensors_hooks(measure, lambda t: t):
        outputs = run(model, sample)
    own = {t.data_ptr() for t in (*model.parameters(), *model.buffers())}
    return outputs.detach(), sum(n for place, n in storages.items() if place not in own)


def _bytes(tensors: list[Tensor]) -> int:
    """Return how much tensors hold together, counting views of one tensor once."""
    return sum({t.data_ptr(): t.numel() * t.element_size() for t in tensors}.values())
