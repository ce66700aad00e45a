"""Sums of squared per-sample scores for a batch, each parameter by the fastest rule that is right.

Three rules, in this order:

1. a closed form per layer or product (``closed_forms``), on gradients by their outputs;
2. ``torch.func`` over chunks of samples (``per_sample.py``), for just the parameters that are left;
3. a loop over single samples.

Which one a parameter gets is tried on a few samples first (``probe.py``). Because these may not
reach every branch of a model, each batch is also checked for uses of a parameter that the probe did
not have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ewc_tutorial.fisher.closed_forms.calls import Recorder
from ewc_tutorial.fisher.closed_forms.graph import Graph, Use, kinds, readings
from ewc_tutorial.fisher.closed_forms.layers import Product
from ewc_tutorial.fisher.closed_forms.squares import squares_by_closed_forms
from ewc_tutorial.fisher.inputs import Inputs, n_samples
from ewc_tutorial.fisher.likelihoods.base import Seeds
from ewc_tutorial.fisher.per_sample import (
    Squares,
    outputs_one_by_one,
    run,
    squares_by_loop,
    squares_by_vmap,
)
from ewc_tutorial.fisher.probe import Plan, probe

#: Bytes that the samples of one pass may take, where a single one does not take more.
MEMORY_BUDGET = {"cpu": 2**26}
MEMORY_BUDGET_ELSEWHERE = 2**30


class Engine:
    """Squared per-sample gradients of one model.

    It holds hooks on the model until it is closed; use it as a context manager.

    Args:
        model: the network, in the mode that it is to be differentiated in.
        names: the parameters wanted.
        layers: weights among them, each with its bias or None, whose Kronecker factors are wanted
            in place of squares, under ``weight:A`` and ``weight:G`` (see ``factors.py``).

    Attributes:
        explanation: what each parameter got, in words.
    """

    def __init__(
        self, model: nn.Module, names: list[str], layers: Mapping[str, str | None] | None = None
    ) -> None:
        self.model = model
        self.layers = dict(layers or {})
        self.parameters = {name: model.get_parameter(name) for name in names}
        self.device = self.parameters[names[0]].device
        self.explanation: dict[str, str] = {}
        self._budget = MEMORY_BUDGET.get(self.device.type, MEMORY_BUDGET_ELSEWHERE)
        self._plan: Plan | None = None
        self._by_loop: set[str] = set()
        self._recorder = Recorder(model)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self._recorder.close()

    @property
    def results(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and precision of each of the results, by name."""
        found: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        for name, p in self.parameters.items():
            if name in self.layers:
                dtype = torch.promote_types(p.dtype, torch.float32)
                inputs = p[0].numel() + (self.layers[name] is not None)
                found[f"{name}:A"] = (inputs, inputs), dtype
                found[f"{name}:G"] = (len(p), len(p)), dtype
            elif name not in self.layers.values():
                found[name] = tuple(p.shape), p.dtype
        return found

    def prepare(self, x: Inputs) -> None:
        """Choose a rule for each parameter by what a few of the samples ``x`` show."""
        self._plan = probe(self.model, self.parameters, self._recorder, x)
        self._by_loop = set(self._plan.by_loop)

    def batch_size(self, many_passes: bool) -> int:
        """Return how many samples, of the kind that :meth:`prepare` saw, fit the memory budget."""
        held = self._plan.held + (self._plan.held_between if many_passes else 0)
        return max(1, min(1024, self._budget // max(1, held)))

    def squares(self, x: Inputs, make_seeds: Callable[[Tensor], Seeds]) -> Squares:
        """Return Σ_n Σ_k (J_nᵀ s_nk)² per parameter over the samples ``x``.

        Args:
            x: inputs (B, ...) on the model's device.
            make_seeds: returns the gradients s_k by the outputs, given the outputs, detached.
        """
        if self._plan is None or self._plan.samples < min(n_samples(x), 2):
            self.prepare(x)  # one sample alone shows no mixing
        outputs, uses = self._forward(x)
        for weight, bias in self.layers.items():
            _check_products(weight, bias, uses)
        seeds = make_seeds(outputs.detach())
        sums = squares_by_closed_forms(outputs, self.parameters, uses, seeds, self.layers)
        self.explanation |= {name: _description(seen) for name, seen in uses.items()}
        del outputs, uses  # the graph, before memory is needed for the others
        factored = {*self.layers, *self.layers.values()}
        rest = [name for name in self.parameters if name not in sums and name not in factored]
        return sums | self._one_sample_at_a_time(rest, x, seeds)

    def _forward(self, x: Inputs) -> tuple[Tensor, dict[str, list[Use]]]:
        """Return outputs, and the uses of parameters that are used as in the probe."""
        found: dict[str, list[Use]] = {}
        if self._plan.interacting:
            return outputs_one_by_one(self.model, x), found
        with self._recorder.recording() as calls:
            outputs = run(self.model, x)
        if closed := self._plan.closed:
            for uses in readings(Graph(outputs), calls, self.parameters, n_samples(x), found):
                for name, seen in uses.items():
                    if name in closed and kinds(seen) <= closed[name]:
                        found[name] = seen
        return outputs, found

    def _one_sample_at_a_time(self, names: list[str], x: Inputs, seeds: Seeds) -> Squares:
        by_vmap = [name for name in names if name not in self._by_loop]
        sums: Squares = {}
        if by_vmap:
            # Besides the sample, of each weight: the gradient, its square and their sum.
            weights = sum(self.parameters[name].numel() for name in by_vmap)
            chunk = max(1, self._budget // 2 // (self._plan.held + 12 * weights))
            try:
                sums = squares_by_vmap(self.model, by_vmap, x, seeds, chunk)
            except RuntimeError:
                self._by_loop.update(by_vmap)
            else:
                self.explanation |= dict.fromkeys(by_vmap, "torch.func over samples")
        by_loop = {name: p for name, p in self.parameters.items() if name in names}
        by_loop = {name: p for name, p in by_loop.items() if name not in sums}
        if by_loop:
            sums |= squares_by_loop(self.model, by_loop, x, seeds)
            self.explanation |= dict.fromkeys(by_loop, "loop over samples")
        return sums


def _description(uses: list[Use]) -> str:
    if not uses:
        return "zero: no output depends on it"
    return f"closed form: {', '.join(sorted(kinds(uses)))}"


def _check_products(weight: str, bias: str | None, uses: dict[str, list[Use]]) -> None:
    """Raise where a weight, or its bias, does something else than one layer's product."""
    seen = uses.get(weight)
    products = seen is not None and all(
        isinstance(use.part, Product) and not use.part.transposed and use.part.right.shape[1] == 1
        for use in seen
    )
    places = {use.edge for use in seen or ()}
    together = bias is None or (bias in uses and {use.edge for use in uses[bias]} == places)
    if not products or not together:
        name = weight if not products else bias
        raise ValueError(
            f"Parameter {name!r} has no Kronecker factors in this model: samples influence each "
            "other, or it is used in another way than its layer's type says. Leave its layer to "
            f"the diagonal, curvature=Kronecker(diagonal={weight!r})."
        )
