"""Two small matrices per layer: the Fisher matrix of a layer as a Kronecker product.

The weight W (O × I) of a layer, with its bias as a last column, has a Fisher block of (OI)²
numbers. Martens and Grosse (2015) take it for G ⊗ A, with A (I × I) the second moment of the
layer's inputs and G (O × O) that of the gradients by its outputs. For Δ = W − W* the penalty is

    (λ/2) vec(Δ)ᵀ (G ⊗ A) vec(Δ) = (λ/2) Σ Δ ∘ (G Δ A),

which sees what the diagonal does not: that weights act together. In the eigenvectors of G and A it
is diagonal, with the products of their eigenvalues; the diagonal that the block has there is
another one, and can be kept instead (George et al. 2018).

A sum over tasks of Kronecker products is none. As Ritter, Botev and Barber (2018) do, the factors
are summed instead, here divided so that the scale stays right:

    Σ_t w_t G_t ⊗ A_t  ≈  W Ḡ ⊗ Ā,   W = Σ w_t,   Ḡ = Σ w_t G_t / W,   Ā = Σ w_t A_t / W,

around the last optimum. It is exact for one task, and for any number of them that share A or G. Of
the exact sum of three permuted digit tasks it has 0.99 along the way to the next task, of nine 0.96
(``experiments/kronecker_sums.py``, with the exact sum as a curvature of its own). Only tasks that
use a layer count in its sums: a head that one task has is exact as well. Exact eigenvalues are
carried from the basis of one task's means to that of the next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ewc_tutorial.curvature.base import (
    Curvature,
    Tensors,
    buffer_key,
    gradient_of,
    megabytes,
    with_rows,
)
from ewc_tutorial.curvature.blocks import Block, EigenBlock
from ewc_tutorial.curvature.diagonal import Diagonal
from ewc_tutorial.curvature.layers import find_layers
from ewc_tutorial.curvature.subproblem import solve
from ewc_tutorial.fisher import fisher_factors
from ewc_tutorial.fisher.diagonal import EIGENVALUES


class Kronecker(Curvature):
    """S is G ⊗ A for each linear layer and convolution, and diagonal for everything else.

    So have GPT-2's ``Conv1D``, a weight that several layers of one kind share, whose positions are
    those of all its uses, and the packed projections of ``nn.MultiheadAttention``. Where query, key
    and value are different tensors these are no one product, which :meth:`measure` says: name them
    in ``diagonal`` then.

    Everything else: normalisations, embeddings, biases without their weight, convolutions with
    groups, weights that another kind of module shares or multiplies with, and layers with more
    inputs or outputs than ``limit``. :meth:`explain` says which, and what the rest takes.

    Args:
        limit: the largest side of a factor. Memory per layer is that of the factors, as much for
            their eigenvectors, and, besides the anchor, two matrices of the weight's size and in
            :meth:`EWC.attach` a third. The eigenvectors, once per task, take time with the third
            power of the side: about a second for a thousand, minutes for 4096.
        diagonal: shell patterns of parameter names to leave to the diagonal as well.
        iterations: of conjugate gradients at most in a proximal step that has no closed form, as
            with Adam. Each costs half of what the closed form does, or as much with exact
            eigenvalues; what training ends at does not depend on how many there are.
        eigenvalues: ``product``, those of G ⊗ A; or ``exact``, the diagonal of the block itself in
            the eigenvectors of G ⊗ A (EKFAC), measured in a second pass over the data. The exact
            form is nearer to the true one, 0.75 of it where products have 0.65, along the way to
            the fourth permuted digit task, and takes a smaller λ; but at each one's own λ the
            accuracies after three tasks and after ten agree within 0.002, hence the default
            (``experiments/kronecker_sums.py``).
    """

    name = "kronecker"
    rules = ("latest", "online", "average")
    why_not = "a sum of Kronecker products around several optima is no Kronecker product around one"
    needs_start = True
    every = 20

    #: Whether the step has a closed form where all weights of a layer have one η/d.
    _closed: ClassVar[bool] = True

    def __init__(
        self,
        limit: int = 4096,
        diagonal: str | Sequence[str] = (),
        iterations: int = 10,
        eigenvalues: str = "product",
    ) -> None:
        if eigenvalues not in EIGENVALUES:
            raise ValueError(
                f"eigenvalues must be one of {', '.join(EIGENVALUES)}, not {eigenvalues!r}."
            )
        self.eigenvalues = eigenvalues
        for argument, value in (("limit", limit), ("iterations", iterations)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{argument} must be a whole number above zero, not {value!r}.")
        self.limit = limit
        self.diagonal = [diagonal] if isinstance(diagonal, str) else list(diagonal)
        self.iterations = iterations

    def protect(self, buffers: dict[str, Tensor], model: nn.Module, values: Tensors) -> None:
        layers, self._why = find_layers(model, values, self.limit, self.diagonal)
        kind = EigenBlock if self.eigenvalues == "exact" else Block
        self._blocks = [kind(layer, buffers) for layer in layers]
        self._inside = {name: block for block in self._blocks for name in block.layer.names}
        outside = {name: value for name, value in values.items() if name not in self._inside}
        self._rest = Diagonal()
        self._rest.protect(buffers, model, outside)
        super().protect(buffers, model, values)
        self.reset()

    @property
    def kind(self) -> dict[str, str]:
        return {"eigenvalues": self.eigenvalues}

    @property
    def importance(self) -> dict[str, Tensor]:
        found = self._rest.importance
        anchors = self.anchor
        for block in self._blocks:
            found |= block.layer.parts(self._diagonal(block), anchors)
        return {name: found[name] for name in self.names}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        found = self._rest.shapes()
        for block in self._blocks:
            found |= block.shapes()
        return found

    def stored(self) -> dict[str, Tensor]:
        found = self._rest.importance
        for block in self._blocks:
            found |= block.stored(self._strength[block.layer.weight])
        return found

    def explain(self) -> dict[str, str]:
        found = {name: f"diagonal: {self._why[name]}" for name in self._rest.names}
        words = "eigenvectors" + (", exact eigenvalues" if self.eigenvalues == "exact" else "")
        for block in self._blocks:
            A, G = block.tensors[:2]
            layer, size = block.layer, megabytes(*2 * (A.shape, G.shape, (len(G), len(A))))
            found[layer.weight] = f"Kronecker: A {len(A)}², G {len(G)}², {size} with {words}"
            if layer.bias is not None:
                found[layer.bias] = f"Kronecker: in the block of {layer.weight}"
        return {name: found[name] for name in self.names}

    def measure(
        self,
        model: nn.Module,
        data: Any,
        estimator: str,
        fisher: Callable[..., dict[str, Tensor]] | None,
        options: dict[str, Any],
    ) -> dict[str, Tensor]:
        """Return A and G of the layers, and the diagonal of the rest; see :func:`fisher_factors`.

        A ``fisher`` of another kind is called with further arguments ``layers`` and, for exact
        ones, ``eigenvalues``, as there.
        """
        layers = {block.layer.weight: block.layer.bias for block in self._blocks}
        if transposed := [b.layer.weight for b in self._blocks if b.layer.transposed]:
            options = options | {"transposed": transposed}
        if self.eigenvalues == "exact":
            options = options | {"eigenvalues": "exact"}
        return (fisher or fisher_factors)(
            model, data, estimator=estimator, layers=layers, **options
        )

    def merge(self, F: Tensors, weight: float, here: Tensors, rule: str, gamma: float) -> None:
        rest = self._rest.merged(F, weight, here, rule, gamma)
        updates = []
        for block in self._blocks:
            name, decay = block.layer.weight, gamma if rule == "online" else 1.0
            # Zeros in both means would thin out their product twice.
            used = weight if block.uses(F) else 0.0
            total, met = decay * self._total[name] + used, decay * self._met[name] + weight
            updates.append((block.merged(F, used / total if total else 0.0), total, met))
        self._rest.commit(*rest)
        anchors = self.anchor
        for block, (tensors, total, met) in zip(self._blocks, updates, strict=True):
            block.commit(tensors)
            for name in block.layer.names:
                anchors[name].copy_(here[name])
            name = block.layer.weight
            self._total[name], self._met[name] = total, met
            mean = total / met if met else 0.0
            self._strength[name] = mean if rule == "average" else total

    def quadratic(self, values: Tensors) -> Tensor:
        total = self._rest.quadratic(values)
        for block, offset in self._offsets(values):
            total = total + (offset * self._product(block, offset)).sum()
        return total

    def add_gradient_(self, values: Tensors, lam: float) -> None:
        if self._rest.names:
            self._rest.add_gradient_(values, lam)
        for block, offset in self._offsets(values):
            product = self._product(block, offset)
            for name, part in block.layer.parts(product, values).items():
                gradient_of(values[name]).add_(part, alpha=lam)

    def proximal_step_(
        self,
        values: Tensors,
        lam: float,
        rates: Mapping[str, float],
        scale: Mapping[str, float | Tensor],
        start: Tensors | None = None,
    ) -> None:
        """Take the step of each layer, in the eigenbasis of its block where that is exact.

        With one η/d for the whole layer, as gradient descent has it, the minimum is Δ with its
        coordinates in the eigenvectors of G and A divided by 1 + (η/d)λs, s being the products of
        eigenvalues: four products of small matrices. Otherwise see ``subproblem.py``.
        """
        if any(rates.get(name) for name in self._rest.names):
            self._rest.proximal_step_(values, lam, rates, scale)
        for block, offset in self._offsets(values):
            layer = block.layer
            moving = any(rates.get(name) for name in layer.names)
            if not moving or not self._strength[layer.weight]:
                continue
            steps = [_step(rates.get(name), scale.get(name, 1.0)) for name in layer.names]
            first = steps[0]
            if self._closed and first is not None and len({*steps}) == 1:
                move = block.pull(offset, first * lam * self._strength[layer.weight])
            else:
                move = self._solved(block, offset, values, lam, rates, scale, start)
            for name, part in layer.parts(move, values).items():
                if rates.get(name):
                    # Of a model in half precision the sum is rounded once.
                    values[name].copy_(values[name].to(part) + part)

    def minima(
        self, values: Tensors, F: Tensors, damping: float
    ) -> Callable[[float], dict[str, Tensor]]:
        if self.eigenvalues == "exact":
            raise ValueError(
                "Exact eigenvalues of two tasks are diagonal in no common basis: take "
                "Kronecker(eigenvalues='product') for a path."
            )
        rest = self._rest.minima({name: values[name] for name in self._rest.names}, F, damping)
        moves = [
            (block, block.minima(offset, F, self._strength[block.layer.weight], damping))
            for block, offset in self._offsets(values)
        ]

        def at(lam: float) -> dict[str, Tensor]:
            found = rest(lam)
            for block, move in moves:
                for name, part in block.layer.parts(move(lam), values).items():
                    found[name] = values[name].to(part) + part
            return found

        return at

    def grow_(self, rows: Mapping[str, int]) -> None:
        for layer in (block.layer for block in self._blocks):
            if layer.transposed and layer.weight in rows:
                raise RuntimeError(
                    f"Parameter {layer.weight!r}, stored as (inputs, outputs), has got "
                    "further inputs, which its factors cannot follow: make a new EWC for the new "
                    "shape."
                )
        self._rest.grow_({name: n for name, n in rows.items() if name not in self._inside})
        for name, extra in rows.items():
            block = self._inside.get(name)
            if block is None:
                continue
            key = buffer_key("anchor", name)
            self._buffers[key] = with_rows(self._buffers[key], extra)
            if name == block.layer.weight:
                block.grow_(extra)

    def reset(self) -> None:
        self._rest.reset()
        # Of each layer its own: one that joins later has not met the earlier tasks.
        self._total = {block.layer.weight: 0.0 for block in self._blocks}
        self._met, self._strength = dict(self._total), dict(self._total)

    def state(self) -> dict[str, Any]:
        return self._rest.state() | {
            "eigenvalues": self.eigenvalues,
            "weight_by_layer": dict(self._total),
            "met_by_layer": dict(self._met),
            "strength_by_layer": dict(self._strength),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        self._rest.load(state)
        for mine, saved in (
            (self._total, state["weight_by_layer"]),
            (self._met, state["met_by_layer"]),
            (self._strength, state["strength_by_layer"]),
        ):
            mine.update({name: saved[name] for name in mine if name in saved})

    def _layout(self, name: str, zeros: Tensor) -> dict[str, Tensor]:
        block = self._inside.get(name)
        if block is None:
            return self._rest._layout(name, zeros)
        return {} if name == block.layer.bias else block.layout(zeros)

    def _offsets(self, values: Tensors) -> list[tuple[Block, Tensor]]:
        """Return Δ = W − W* of each layer."""
        anchors = self.anchor
        return [
            (b, b.layer.matrix({name: values[name] - anchors[name] for name in b.layer.names}))
            for b in self._blocks
        ]

    def _product(self, block: Block, matrix: Tensor) -> Tensor:
        """Return S applied to a matrix (O, I)."""
        # Autocast would round the factors.
        with torch.autocast(matrix.device.type, enabled=False):
            return self._strength[block.layer.weight] * block.product(matrix)

    def _diagonal(self, block: Block) -> Tensor:
        """Return the diagonal of S, as a matrix."""
        return self._strength[block.layer.weight] * block.diagonal()

    def _solved(
        self,
        block: Block,
        offset: Tensor,
        values: Tensors,
        lam: float,
        rates: Mapping[str, float],
        scale: Mapping[str, float | Tensor],
        start: Tensors | None,
    ) -> Tensor:
        """Return the move of the layer whose weights have different η/d, as a matrix."""
        anchors, layer = self.anchor, block.layer
        metric = {}
        for name in layer.names:
            rate, d = rates.get(name), torch.as_tensor(scale.get(name, 1.0))
            # Infinite where nothing moves.
            metric[name] = (d.to(anchors[name]) / (rate or 0.0)).expand_as(anchors[name])
        first = None
        if start is not None:
            first = layer.matrix({name: start[name] - anchors[name] for name in layer.names})
        return (
            solve(
                lambda matrix: lam * self._product(block, matrix),
                lam * self._diagonal(block),
                layer.matrix(metric),
                offset,
                first,
                self.iterations,
            )
            - offset
        )


def _step(rate: float | None, scale: float | Tensor) -> float | None:
    """Return η/d where that is one number above zero."""
    return rate / scale if rate and not isinstance(scale, Tensor) else None
