"""Sums of squared per-sample scores for a batch, each parameter by the fastest rule that is right.

Three rules, in this order:

1. a closed form per layer or product (``closed_forms.py``), on gradients by their outputs;
2. ``torch.func`` over chunks of samples (``per_sample.py``), for just the parameters that are left;
3. a loop over single samples.

Which one a parameter gets is not guessed but tried: :meth:`Engine.probe` computes the squared
gradients of a few samples one sample at a time, which is right by definition, and lets a faster
rule stand only if it gives the same. That finds everything that a closed form silently relies on:
that the first dimension counts samples, that samples do not influence each other, that a layer
computes what its type says and that hooks see all of it. Because a few samples may not reach every
branch of a model, each batch is also checked for uses of a parameter that the probe did not have.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import suppress
from functools import partial

import torch
from torch import Tensor, nn

from ewc_tutorial.fisher.closed_forms.calls import Call, Recorder
from ewc_tutorial.fisher.closed_forms.graph import (
    Graph,
    Use,
    broadcast_uses,
    layer_uses,
    product_uses,
)
from ewc_tutorial.fisher.closed_forms.layers import Product
from ewc_tutorial.fisher.closed_forms.squares import squares_by_closed_forms
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


class Engine:
    """Squared per-sample gradients of one model.

    It holds hooks on the model until it is closed; use it as a context manager.

    Args:
        model: the network, in the mode that it is to be differentiated in.
        names: the parameters wanted.

    Attributes:
        batch_size: samples per pass that fit the memory budget, known after :meth:`probe`.
        explanation: what each parameter got, in words.
    """

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        self.model = model
        self.parameters = {name: model.get_parameter(name) for name in names}
        self.device = self.parameters[names[0]].device
        self.batch_size = 1
        self.explanation: dict[str, str] = {}
        # Per parameter with a closed form, the kinds of use that it was found right for.
        self._closed: dict[str, set[str]] = {}
        self._by_loop: set[str] = set()
        self._interacting = False
        self._probed = 0
        self._recorder = Recorder(model)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self._recorder.close()

    def probe(self, x: Inputs) -> None:
        """Choose a rule for each parameter by what a few samples show, and a batch size.

        Args:
            x: inputs (B, ...) on the model's device, of which the first few are used.
        """
        x = take(x, slice(PROBE_SIZE))
        alone = outputs_one_by_one(self.model, x)
        # Any seed will do for a comparison; a random one leaves no gradient zero by symmetry.
        seed = torch.randn(alone.shape, generator=torch.Generator().manual_seed(0)).to(alone)
        seeds = Seeds(lambda: iter([seed]), 1)
        expected = squares_by_loop(self.model, list(self.parameters), x, seeds)
        matches = _Comparison(expected, _resolution(alone))

        outputs, calls = self._forward(x)
        self._interacting = not matches.outputs(outputs, alone)
        self._closed = {}
        recorded = [call.a for call in calls]
        unfolded: list[Tensor] = []
        readings = self._readings(outputs, calls, n_samples(x), self._closed)
        for uses in () if self._interacting else readings:
            actual = self._tried(outputs, uses, seeds)
            for name in matches.names(actual):
                # A gradient that is zero, behind a closed gate, agrees with every assumption.
                if expected[name].any() or not any(use.assumed for use in uses[name]):
                    self._closed[name] = _kinds(uses[name])
            parts = [use.part for seen in uses.values() for use in seen]
            unfolded += [part.right for part in parts if isinstance(part, Product)]

        rest = [name for name in self.parameters if name not in self._closed]
        self._by_loop = set(rest)
        if rest:
            # Whatever torch.func may raise, the loop has just shown that it can do the model.
            with suppress(Exception):
                actual = squares_by_vmap(self.model, rest, x, seeds, n_samples(x))
                self._by_loop -= set(matches.names(actual))
        self._probed = n_samples(x)
        # For each recorded input about three more tensors: output, activation, gradient.
        held = 3 * _elements(recorded) + _elements(recorded + unfolded)
        self._set_sizes(held // n_samples(x), rest)

    def squares(self, x: Inputs, make_seeds: Callable[[Tensor], Seeds]) -> Squares:
        """Return Σ_n Σ_k (J_nᵀ s_nk)² per parameter over the samples ``x``.

        Args:
            x: inputs (B, ...) on the model's device.
            make_seeds: returns the gradients s_k by the outputs, given the outputs, detached.
        """
        if self._probed < min(n_samples(x), 2):  # one sample alone shows no mixing
            self.probe(x)
        if self._interacting:
            outputs, calls = outputs_one_by_one(self.model, x), []
        else:
            outputs, calls = self._forward(x)
        seeds = make_seeds(outputs.detach())
        uses = self._closed_uses(outputs, calls, n_samples(x))
        sums = squares_by_closed_forms(outputs, self.parameters, uses, seeds)
        self.explanation |= {name: _description(seen) for name, seen in uses.items()}
        del outputs, calls, uses  # the graph, before memory is needed for the others
        rest = [name for name in self.parameters if name not in sums]
        return sums | self._one_sample_at_a_time(rest, x, seeds)

    def _tried(self, outputs: Tensor, uses: dict[str, list[Use]], seeds: Seeds) -> Squares:
        """Return what the closed forms give, of those that can be computed at all."""
        try:
            return squares_by_closed_forms(outputs, self.parameters, uses, seeds)
        except Exception:
            # A rule met shapes that it is not made for: leave out the parameters concerned.
            sums: Squares = {}
            for name in uses if len(uses) > 1 else ():
                sums |= self._tried(outputs, {name: uses[name]}, seeds)
            return sums

    def _forward(self, x: Inputs) -> tuple[Tensor, list[Call]]:
        with self._recorder.recording() as calls:
            outputs = run(self.model, x)
        return outputs, calls

    def _readings(
        self, outputs: Tensor, calls: list[Call], batch: int, done: Container[str]
    ) -> Iterator[dict[str, list[Use]]]:
        """Yield readings of the graph: each gives the uses of the parameters that it can read.

        Parameters that are in ``done`` by then are left out.
        """
        graph = Graph(outputs)
        yield layer_uses(graph, calls, self.parameters, batch)
        for read in (
            broadcast_uses,
            partial(product_uses, positions_first=False),
            partial(product_uses, positions_first=True),
        ):
            left = {name: p for name, p in self.parameters.items() if name not in done}
            found = {name: read(graph, p, batch) for name, p in left.items()}
            yield {name: uses for name, uses in found.items() if uses is not None}

    def _closed_uses(self, outputs: Tensor, calls: list[Call], batch: int) -> dict[str, list[Use]]:
        """Return the uses of the parameters that are used as they were in the probe."""
        found: dict[str, list[Use]] = {}
        for uses in self._readings(outputs, calls, batch, found) if self._closed else ():
            for name, seen in uses.items():
                if name in self._closed and _kinds(seen) <= self._closed[name]:
                    found[name] = seen
        return found

    def _one_sample_at_a_time(self, names: list[str], x: Inputs, seeds: Seeds) -> Squares:
        by_vmap = [name for name in names if name not in self._by_loop]
        sums: Squares = {}
        if by_vmap:
            try:
                sums = squares_by_vmap(self.model, by_vmap, x, seeds, self._chunk)
            except RuntimeError:
                self._by_loop.update(by_vmap)
            else:
                self.explanation |= dict.fromkeys(by_vmap, "torch.func over samples")
        by_loop = [name for name in names if name not in sums]
        if by_loop:
            sums |= squares_by_loop(self.model, by_loop, x, seeds)
            self.explanation |= dict.fromkeys(by_loop, "loop over samples")
        return sums

    def _set_sizes(self, held: int, rest: list[str]) -> None:
        """Choose how many samples are taken at a time, by the elements that one sample holds."""
        budget = 2**24 if self.device.type == "cpu" else 2**28
        self.batch_size = max(1, min(1024, budget // max(1, held)))
        weights = sum(self.parameters[name].numel() for name in rest)
        self._chunk = max(1, budget // max(1, 4 * held + 2 * weights))


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

    def outputs(self, actual: Tensor, expected: Tensor) -> bool:
        return actual.shape == expected.shape and self._agree(actual.detach(), expected, 0.0)

    def names(self, actual: Squares) -> list[str]:
        """Return the parameters whose squared gradients agree."""
        return [n for n, v in actual.items() if self._agree(v, self._expected[n], self._floor)]

    def _agree(self, actual: Tensor, expected: Tensor, floor: float) -> bool:
        bound = self._rtol * _largest(expected) + floor
        return torch.allclose(actual.to(expected), expected, rtol=0.0, atol=bound, equal_nan=True)


def _largest(t: Tensor) -> float:
    """Return the largest finite magnitude; what is not finite is reported at the end."""
    return t.abs().nan_to_num(nan=0.0, posinf=0.0).max().item()


def _kinds(uses: list[Use]) -> set[str]:
    return {use.kind for use in uses}


def _description(uses: list[Use]) -> str:
    if not uses:
        return "zero: no output depends on it"
    return f"closed form: {', '.join(sorted(_kinds(uses)))}"


def _elements(tensors: Iterable[Tensor]) -> int:
    """Return how many elements tensors hold together, counting views of one tensor once."""
    return sum({t.data_ptr(): t.numel() for t in tensors}.values())


def _resolution(outputs: Tensor) -> float:
    """Return the relative rounding error of the coarsest number format in the forward pass."""
    kind = outputs.device.type
    formats = [outputs.dtype]
    if torch.is_autocast_enabled(kind):
        formats.append(torch.get_autocast_dtype(kind))
    return max(torch.finfo(dtype).eps for dtype in formats)
