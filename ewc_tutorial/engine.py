"""Sums of squared per-sample scores for a batch, each parameter by the fastest rule that is right.

Three rules, in this order:

1. a closed form per layer (``layer_rules.py``), from hooks (``capture.py``);
2. ``torch.func`` over chunks of samples, for just the parameters that are left;
3. a loop over single samples.

Which one a parameter gets is not guessed but tried: :meth:`Engine.probe` computes the squared
gradients of a few samples one sample at a time, which is right by definition, and lets a faster
rule stand only if it gives the same. That finds everything that a closed form silently relies on:
that the first dimension counts samples, that samples do not influence each other, that a layer
computes what its type says and that hooks see all of it. Because a few samples may not reach every
branch of a model, each batch is also checked for uses of a parameter that no hook has seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

import torch
from torch import Tensor, nn

from ewc_tutorial.capture import Call, Graph, Recorder
from ewc_tutorial.layer_rules import RULES, Part, Product
from ewc_tutorial.per_sample import Squares, outputs_one_by_one, squares_by_loop, squares_by_vmap
from ewc_tutorial.reducers import Reducer, make_reducer

#: Samples of the probe: three, because mixing samples up or averaging them shows from two on.
PROBE_SIZE = 3

Uses = dict[str, list[tuple[Call, Part]]]


class Seeds(Protocol):
    """Gradients by the outputs; they can be counted, and gone through more than once."""

    def __iter__(self) -> Iterator[Tensor]: ...

    def __len__(self) -> int: ...


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
        self.parameters = {name: model.get_parameter(name) for name in names}
        self.batch_size = 1
        self.explanation: dict[str, str] = {}
        self.model = model
        self.device = self.parameters[names[0]].device
        self._names = {parameter: name for name, parameter in self.parameters.items()}
        self._closed: set[str] = set()
        self._by_loop: set[str] = set()
        self._interacting = False
        self._probed = 0
        self._recorder = Recorder(model)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self._recorder.close()

    def probe(self, x: Tensor) -> None:
        """Choose a rule for each parameter by what a few samples show, and a batch size.

        Args:
            x: inputs (B, ...) on the model's device, of which the first few are used.
        """
        x = x[:PROBE_SIZE]
        names = list(self.parameters)
        alone = outputs_one_by_one(self.model, x)
        # Any seed will do for a comparison; a random one leaves no gradient zero by symmetry.
        seed = torch.randn(alone.shape, generator=torch.Generator().manual_seed(0)).to(alone)
        expected = squares_by_loop(self.model, names, x, [seed])
        matches = _Comparison(expected, _resolution(alone))

        outputs, calls = self._forward(x)
        self._interacting = not matches.outputs(outputs, alone)
        uses: Uses = {} if self._interacting else self._uses(outputs, calls, len(x))
        self._closed = set(matches.names(self._closed_forms(outputs, uses, [seed])))
        rest = [name for name in names if name not in self._closed]
        self._by_loop = set(rest)
        if rest:
            # Whatever torch.func may raise, the loop has just shown that it can do the model.
            with suppress(Exception):
                by_vmap = squares_by_vmap(self.model, rest, x, [seed], len(x))
                self._by_loop -= set(matches.names(by_vmap))
        self._probed = len(x)
        self._set_sizes(calls, uses, rest, len(x))

    def squares(self, x: Tensor, make_seeds: Callable[[Tensor], Seeds]) -> Squares:
        """Return Σ_n Σ_k (J_nᵀ s_nk)² per parameter over the samples ``x``.

        Args:
            x: inputs (B, ...) on the model's device.
            make_seeds: returns the gradients s_k by the outputs, given the outputs, detached.
        """
        if self._probed < min(len(x), 2):  # one sample alone shows no mixing
            self.probe(x)
        outputs, calls = self._forward(x)
        uses: Uses = {}
        if self._interacting:
            outputs = outputs_one_by_one(self.model, x)
        else:
            uses = self._uses(outputs, calls, len(x))
        seeds = make_seeds(outputs.detach())
        closed = {name: seen for name, seen in uses.items() if name in self._closed}
        sums = self._closed_forms(outputs, closed, seeds)
        del outputs, calls, uses, closed  # the graph, before memory is needed for the others
        rest = [name for name in self.parameters if name not in sums]
        return sums | self._one_sample_at_a_time(rest, x, seeds)

    def _forward(self, x: Tensor) -> tuple[Tensor, list[Call]]:
        with self._recorder.recording() as calls:
            outputs = self.model(x)
        return outputs, calls

    def _uses(self, outputs: Tensor, calls: list[Call], batch: int) -> Uses:
        """Return the uses of each parameter, where hooks have seen all of them."""
        graph = Graph(outputs)
        found: Uses = {name: [] for name in self.parameters}
        for call in calls:
            # A call that no output depends on has no gradient.
            if call.edge.node in graph.nodes and call.intact and _has_rows(call.a, batch):
                for own_name, part in _layer_parts(call, batch).items():
                    name = self._names.get(call.layer._parameters.get(own_name))
                    if name is not None:
                        found[name].append((call, part))
        return {n: seen for n, seen in found.items() if graph.uses[self.parameters[n]] == len(seen)}

    def _closed_forms(self, outputs: Tensor, uses: Uses, seeds: Seeds) -> Squares:
        """Return the sums of the parameters whose uses are given."""
        calls = list({id(call): call for seen in uses.values() for call, _ in seen}.values())
        place = {id(call): i for i, call in enumerate(calls)}
        reducers = {
            name: (self._reducer(name, seen, len(seeds)), [place[id(call)] for call, _ in seen])
            for name, seen in uses.items()
            if seen
        }
        if calls:
            edges = [call.edge for call in calls]
            for seed in seeds:
                gradients = torch.autograd.grad(outputs, edges, seed, retain_graph=True)
                with _plain_arithmetic(self.device):
                    gradients = [_wide(g) for g in gradients]
                    for reducer, places in reducers.values():
                        reducer.add([gradients[i] for i in places])
        # A parameter without any use does not influence the outputs.
        sums = {name: torch.zeros_like(_wide(self.parameters[name].detach())) for name in uses}
        self.explanation.update({name: "not used" for name, seen in uses.items() if not seen})
        with _plain_arithmetic(self.device):
            for name, (reducer, _) in reducers.items():
                sums[name] += reducer.result().reshape(sums[name].shape)
        return sums

    def _reducer(self, name: str, seen: list[tuple[Call, Part]], passes: int) -> Reducer:
        parts = [part for _, part in seen]
        shape = self.parameters[name].shape
        reducer = make_reducer(parts, shape, passes, _products_at_a_time(self.device))
        layer = type(seen[0][0].layer).__name__
        self.explanation[name] = f"closed form of {layer}: {type(reducer).__name__}"
        return reducer

    def _one_sample_at_a_time(self, names: list[str], x: Tensor, seeds: Seeds) -> Squares:
        by_vmap = [name for name in names if name not in self._by_loop]
        sums: Squares = {}
        if by_vmap:
            try:
                sums = squares_by_vmap(self.model, by_vmap, x, seeds, self._chunk)
            except RuntimeError:
                self._by_loop.update(by_vmap)
            else:
                self.explanation.update(dict.fromkeys(by_vmap, "torch.func over samples"))
        by_loop = [name for name in names if name not in sums]
        if by_loop:
            sums |= squares_by_loop(self.model, by_loop, x, seeds)
            self.explanation.update(dict.fromkeys(by_loop, "loop over samples"))
        return sums

    def _set_sizes(self, calls: list[Call], uses: Uses, rest: list[str], n: int) -> None:
        """Choose how many samples are taken at a time, by what the probe of n samples held."""
        parts = [part for seen in uses.values() for _, part in seen]
        held = sum(part.right.numel() for part in parts if isinstance(part, Product))
        # For each recorded input about three more tensors: output, activation, gradient.
        held += 4 * sum(call.a.numel() for call in calls)
        per_sample = max(1, held // n)
        budget = _elements_at_a_time(self.device)
        self.batch_size = max(1, min(1024, budget // per_sample))
        weights = sum(self.parameters[name].numel() for name in rest)
        self._chunk = max(1, budget // (4 * per_sample + 2 * weights))


class _Comparison:
    """Compares with squared gradients that are right but for rounding."""

    def __init__(self, expected: Squares, eps: float) -> None:
        self._expected = expected
        self._rtol = eps**0.5
        # A gradient that is zero by symmetry (a bias before a normalisation) consists of rounding
        # errors, whose squares are of order eps² relative to the others.
        largest = max(value.max().item() for value in expected.values())
        self._floor = eps**1.5 * largest

    def outputs(self, actual: Tensor, expected: Tensor) -> bool:
        return actual.shape == expected.shape and self._agree(actual.detach(), expected, 0.0)

    def names(self, actual: Squares) -> list[str]:
        """Return the parameters whose squared gradients agree."""
        return [n for n, v in actual.items() if self._agree(v, self._expected[n], self._floor)]

    def _agree(self, actual: Tensor, expected: Tensor, floor: float) -> bool:
        bound = self._rtol * expected.abs().max().item() + floor
        return torch.allclose(actual.to(expected), expected, rtol=0.0, atol=bound, equal_nan=True)


def _layer_parts(call: Call, batch: int) -> dict[str, Part]:
    a = _wide(call.a) if call.a.is_floating_point() else call.a
    with _plain_arithmetic(call.a.device):
        return RULES[type(call.layer)](call.layer, a, batch)


def _has_rows(a: Tensor, batch: int) -> bool:
    return a.ndim > 0 and len(a) > 0 and len(a) % batch == 0


def _wide(t: Tensor) -> Tensor:
    """Return t in float32 at least, which is what squares are summed in."""
    return t.to(torch.promote_types(t.dtype, torch.float32))


@contextmanager
def _plain_arithmetic(device: torch.device) -> Iterator[None]:
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


def _resolution(outputs: Tensor) -> float:
    """Return the relative rounding error of the coarsest number format in the forward pass."""
    kind = outputs.device.type
    formats = [outputs.dtype]
    if torch.is_autocast_enabled(kind):
        formats.append(torch.get_autocast_dtype(kind))
    return max(torch.finfo(dtype).eps for dtype in formats)


def _products_at_a_time(device: torch.device) -> int:
    """Return how many elements of single samples' gradients to form at a time.

    On a CPU they had better stay in a core's cache until they are squared and summed.
    """
    return 2**18 if device.type == "cpu" else 2**26


def _elements_at_a_time(device: torch.device) -> int:
    """Return how many elements of activations and the like to hold at a time."""
    return 2**23 if device.type == "cpu" else 2**28
