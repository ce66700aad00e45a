"""Sums of squared per-sample scores for a batch, each parameter by the fastest rule that is right.

Three rules, in this order:

1. a closed form per layer or product (``closed_forms``), on gradients by their outputs;
2. ``torch.func`` over chunks of samples (``per_sample.py``), for just the parameters that are left;
3. a loop over single samples.

Which one a parameter gets is tried on a few samples first (``probe.py``). Because these may not
reach every branch of a model, each batch is also checked for uses of a parameter that the probe did
not have, and a few rows of the first for an influence of samples on each other.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ewc_tutorial.fisher.closed_forms.calls import Recorder
from ewc_tutorial.fisher.closed_forms.factors import Basis
from ewc_tutorial.fisher.closed_forms.graph import Graph, Use, kinds, readings
from ewc_tutorial.fisher.closed_forms.layers import Product
from ewc_tutorial.fisher.closed_forms.squares import squares_by_closed_forms
from ewc_tutorial.fisher.inputs import Inputs, all_equal, n_elements, n_samples, take
from ewc_tutorial.fisher.likelihoods.base import Seeds
from ewc_tutorial.fisher.per_sample import (
    Squares,
    outputs_one_by_one,
    run,
    squares_by_loop,
    squares_by_vmap,
)
from ewc_tutorial.fisher.plans import kind_of, recall, remember, state_of
from ewc_tutorial.fisher.probe import RANDOM, Plan, outputs_agree, probe

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
        transposed: those of these weights that are stored as (I, O).

    Attributes:
        explanation: what each parameter got, in words.
        bases: eigenvectors of the factors of each layer, once they are known; from then on the
            squares in them are wanted, under ``weight:E``, and nothing else.
    """

    def __init__(
        self,
        model: nn.Module,
        names: list[str],
        layers: Mapping[str, str | None] | None = None,
        transposed: Collection[str] = (),
    ) -> None:
        self.model = model
        self.layers = dict(layers or {})
        self.transposed = transposed
        self.bases: dict[str, Basis] = {}
        self.parameters = {name: model.get_parameter(name) for name in names}
        self.device = self.parameters[names[0]].device
        self.explanation: dict[str, str] = {}
        self._budget = MEMORY_BUDGET.get(self.device.type, MEMORY_BUDGET_ELSEWHERE)
        self._plan: Plan | None = None
        self._recalled: dict[int, int] | None = None
        self._by_loop: set[str] = set()
        self._compared = False
        self._state = state_of(model)
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
            # A float16 has no room for squares: the small ones are zero, the large ones infinite.
            dtype = torch.promote_types(p.dtype, torch.float32)
            if name in self.bases:
                U_A, U_G = self.bases[name]
                found[f"{name}:E"] = (len(U_G), len(U_A)), dtype
            elif self.bases:
                continue
            elif name in self.layers:
                outputs, inputs = p.T.shape if name in self.transposed else p.flatten(1).shape
                inputs += self.layers[name] is not None
                found[f"{name}:A"] = (inputs, inputs), dtype
                found[f"{name}:G"] = (outputs, outputs), dtype
            elif name not in self.layers.values():
                found[name] = tuple(p.shape), dtype
        return found

    @property
    def _chosen(self) -> Plan:
        assert self._plan is not None  # prepare() has been called
        return self._plan

    def prepare(self, x: Inputs) -> None:
        """Choose a rule for each parameter, by what is remembered or a few of the samples show."""
        recalled = recall(self.model, (self._state, kind_of(x)))
        if recalled is None:
            self._probe(x)
        else:
            self._use(recalled.plan, recalled.graphs)

    def _use(self, plan: Plan, graphs: dict[int, int] | None = None) -> None:
        self._plan, self._recalled = plan, graphs
        self._by_loop = set(plan.by_loop)

    def _probe(self, x: Inputs) -> None:
        try:
            plan = probe(self.model, self.parameters, self._recorder, x)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ValueError(
                "a BatchNorm with track_running_stats=False has nothing to normalise by in a batch "
                "of one sample, and the Fisher information is that of single samples: take running "
                "statistics or a LayerNorm."
            ) from error
        self._use(plan)

    def batch_size(self, many_passes: bool) -> int:
        """Return how many samples, of the kind that :meth:`prepare` saw, fit the memory budget."""
        held = self._chosen.held + (self._chosen.held_between if many_passes else 0)
        return max(1, min(1024, self._budget // max(1, held)))

    def squares(self, x: Inputs, make_seeds: Callable[[Tensor], Seeds]) -> Squares:
        """Return Σ_n Σ_k (J_nᵀ s_nk)² per parameter over the samples ``x``.

        Args:
            x: inputs (B, ...) on the model's device.
            make_seeds: returns the gradients s_k by the outputs, given the outputs, detached.
        """
        batch = n_samples(x)
        if self._plan is None or self._plan.samples < min(batch, 2):
            self.prepare(x)  # one sample alone shows no mixing
        twice = batch == 1 and self._chosen.copies == 2
        outputs, uses = self._forward(take(x, [0, 0]) if twice else x)
        for weight, bias in self.layers.items():
            _check_products(weight, bias, uses, weight in self.transposed)
        if self.bases:
            uses = {name: uses[name] for name in self.bases}
        seeds = make_seeds(outputs[:batch].detach())
        padded = Seeds(lambda: map(_with_a_row_of_zeros, seeds), len(seeds)) if twice else seeds
        sums = squares_by_closed_forms(
            outputs, self.parameters, uses, padded, self.layers, self.bases
        )
        if self.bases:
            return sums
        if twice:  # the second copy has no gradient, but inputs
            sums |= {f"{name}:A": sums[f"{name}:A"] / 2 for name in self.layers}
        self.explanation |= {name: _description(seen) for name, seen in uses.items()}
        del outputs, uses  # the graph, before memory is needed for the others
        factored = {*self.layers, *self.layers.values()}
        rest = [name for name in self.parameters if name not in sums and name not in factored]
        return sums | self._one_sample_at_a_time(rest, x, seeds)

    def _forward(self, x: Inputs) -> tuple[Tensor, dict[str, list[Use]]]:
        """Return outputs, and the uses of parameters that are used as in the probe."""
        if self._chosen.interacting:
            return outputs_one_by_one(self.model, x), {}
        with self._recorder.recording() as calls:
            outputs = run(self.model, x)
        graph = Graph(outputs)
        if not self._compared:
            self._compare(x, outputs.detach(), graph)
        if self._chosen.interacting:
            return outputs_one_by_one(self.model, x), {}
        found: dict[str, list[Use]] = {}
        closed, elements = self._chosen.closed, n_elements(x)
        for uses in readings(graph, calls, self.parameters, n_samples(x), found) if closed else ():
            for name, seen in uses.items():
                if name in closed and kinds(seen, elements) <= closed[name]:
                    found[name] = seen
        return outputs, found

    def _compare(self, x: Inputs, outputs: Tensor, graph: Graph) -> None:
        """Compare a batch with what is remembered, and a few rows with these samples alone.

        Samples may influence each other only from some number of them on, or where they differ.
        """
        batch = n_samples(x)
        signature = graph.signature()
        if self._recalled is not None and self._recalled.get(batch) != signature:
            self._probe(x)
        if batch == 1:
            return
        rows = sorted({0, batch // 2, batch - 1})
        some = take(x, rows)
        self._compared = not all_equal(some)
        alone = outputs_one_by_one(self.model, some)
        if not outputs_agree(outputs[rows], alone):
            if not outputs_agree(outputs_one_by_one(self.model, some), alone):
                raise ValueError(RANDOM)
            self._plan = replace(self._chosen, interacting=True)
        elif not self._chosen.proven and self._compared:
            self._probe(some)
        if self._compared and self._chosen.verified and not self._chosen.interacting:
            remember(self.model, (self._state, kind_of(x)), self._chosen, batch, signature)

    def _one_sample_at_a_time(self, names: list[str], x: Inputs, seeds: Seeds) -> Squares:
        by_vmap = [name for name in names if name not in self._by_loop]
        sums: Squares = {}
        if by_vmap:
            # Besides the sample, of each weight: the gradient, its square and their sum.
            weights = sum(self.parameters[name].numel() for name in by_vmap)
            chunk = max(1, self._budget // 2 // (self._chosen.held + 12 * weights))
            try:
                sums = squares_by_vmap(self.model, by_vmap, x, seeds, chunk)
            except RuntimeError:
                self._by_loop.update(by_vmap)
            else:
                self.explanation |= dict.fromkeys(by_vmap, "torch.func over samples")
        by_loop = {name: p for name, p in self.parameters.items() if name in names}
        by_loop = {name: p for name, p in by_loop.items() if name not in sums}
        if by_loop:
            sums |= squares_by_loop(self.model, by_loop, x, seeds, self._chosen.copies)
            self.explanation |= dict.fromkeys(by_loop, "loop over samples")
        return sums


def check_model(model: nn.Module) -> None:
    """Raise TypeError or ValueError for a model that cannot be differentiated sample by sample."""
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(
                f"model must be an ordinary module, but {name or 'it'} is TorchScript, which does "
                "not show its layers: pass the model as it was before torch.jit."
            )
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            warnings.warn(
                f"the Fisher information is that of single samples, but the BatchNorm {name!r} has "
                "track_running_stats=False and normalises by the batch: take running statistics or "
                "a GroupNorm.",
                stacklevel=4,
            )
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.is_complex():
            raise TypeError(
                f"parameter {name!r} is complex, for which the diagonal Fisher information is not "
                "one number: hold it as real numbers and use torch.view_as_complex in forward."
            )
        if parameter.is_inference():
            raise ValueError(
                f"parameter {name!r} was made under torch.inference_mode() and cannot be "
                "differentiated: make the model outside of it."
            )


def _with_a_row_of_zeros(seed: Tensor) -> Tensor:
    return torch.cat([seed, torch.zeros_like(seed)])


def _description(uses: list[Use]) -> str:
    if not uses:
        return "zero: no output depends on it"
    return f"closed form: {', '.join(sorted({use.kind for use in uses}))}"


def _check_products(
    weight: str, bias: str | None, uses: dict[str, list[Use]], transposed: bool
) -> None:
    """Raise where a weight, or its bias, does something else than one layer's product."""
    seen = uses.get(weight)
    products = seen is not None and all(
        isinstance(use.part, Product)
        and use.part.transposed == transposed
        and use.part.right.shape[1] == 1
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
