"""Two small matrices per layer: the Fisher matrix of a layer as a Kronecker product.

The weight W (O × I) of a layer, with its bias as a last column, has a Fisher block of (OI)²
numbers. Martens and Grosse (2015) take it for G ⊗ A, with A (I × I) the second moment of the
layer's inputs and G (O × O) that of the gradients by its outputs. For Δ = W − W* the penalty is

    (λ/2) vec(Δ)ᵀ (G ⊗ A) vec(Δ) = (λ/2) Σ Δ ∘ (G Δ A),

which sees what the diagonal does not: that weights act together.

A sum over tasks of Kronecker products is none. As Ritter, Botev and Barber (2018) do, the factors
are summed instead, here divided so that the scale stays right:

    Σ_t w_t G_t ⊗ A_t  ≈  W Ḡ ⊗ Ā,   W = Σ w_t,   Ḡ = Σ w_t G_t / W,   Ā = Σ w_t A_t / W,

around the last optimum. It is exact for one task, and for any number of them that share A or G.
Only tasks that use a layer count in its sums: a head that one task has is exact as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ewc_tutorial.curvature.base import (
    Curvature,
    Remembered,
    Tensors,
    buffer_key,
    checked,
    gradient_of,
    megabytes,
    with_rows,
)
from ewc_tutorial.curvature.diagonal import Diagonal
from ewc_tutorial.curvature.layers import Layer, find_layers
from ewc_tutorial.curvature.subproblem import solve
from ewc_tutorial.fisher import fisher_factors
from ewc_tutorial.precision import widest


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
            with Adam. Each costs half of what the closed form does; what training ends at does not
            depend on how many there are.
    """

    name = "kronecker"
    rules = ("latest", "online", "average")
    why_not = "a sum of Kronecker products around several optima is no Kronecker product around one"
    needs_start = True
    every = 10

    def __init__(
        self, limit: int = 4096, diagonal: str | Sequence[str] = (), iterations: int = 10
    ) -> None:
        for argument, value in (("limit", limit), ("iterations", iterations)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{argument} must be a whole number above zero, not {value!r}.")
        self.limit = limit
        self.diagonal = [diagonal] if isinstance(diagonal, str) else list(diagonal)
        self.iterations = iterations

    def protect(self, buffers: dict[str, Tensor], model: nn.Module, values: Tensors) -> None:
        self._layers, self._why = find_layers(model, values, self.limit, self.diagonal)
        inside = {name: layer for layer in self._layers for name in layer.names}
        self._rest = Diagonal()
        self._rest.protect(buffers, model, {n: v for n, v in values.items() if n not in inside})
        self._bases = {layer: Remembered() for layer in self._layers}
        self._pulls = {layer: Remembered() for layer in self._layers}
        self._block = inside
        super().protect(buffers, model, values)
        self.reset()

    @property
    def importance(self) -> dict[str, Tensor]:
        found = self._rest.importance
        anchors = self.anchor
        for layer in self._layers:
            A, G = self._factors(layer)
            strength = self._strength[layer.weight]
            found |= layer.parts(strength * torch.outer(G.diagonal(), A.diagonal()), anchors)
        return {name: found[name] for name in self.names}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        found = self._rest.shapes()
        for layer in self._layers:
            A, G = self._factors(layer)
            found |= {f"{layer.weight}:A": tuple(A.shape), f"{layer.weight}:G": tuple(G.shape)}
        return found

    def stored(self) -> dict[str, Tensor]:
        found = self._rest.importance
        for layer in self._layers:
            A, G = self._factors(layer)
            found |= {f"{layer.weight}:A": A, f"{layer.weight}:G": self._strength[layer.weight] * G}
        return found

    def explain(self) -> dict[str, str]:
        found = {name: f"diagonal: {self._why[name]}" for name in self._rest.names}
        for layer in self._layers:
            A, G = self._factors(layer)
            size = megabytes(*2 * (A.shape, G.shape, (len(G), len(A))))
            found[layer.weight] = f"Kronecker: A {len(A)}², G {len(G)}², {size} with eigenvectors"
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

        A ``fisher`` of another kind is called with a further argument ``layers``, as there.
        """
        layers = {layer.weight: layer.bias for layer in self._layers}
        if transposed := [layer.weight for layer in self._layers if layer.transposed]:
            options = options | {"transposed": transposed}
        return (fisher or fisher_factors)(
            model, data, estimator=estimator, layers=layers, **options
        )

    def merge(self, F: Tensors, weight: float, here: Tensors, rule: str, gamma: float) -> None:
        rest = self._rest.merged(F, weight, here, rule, gamma)
        updates = []
        for layer in self._layers:
            A, G = self._factors(layer)
            new = [
                _checked_factor(F, f"{layer.weight}:{k}", old)
                for k, old in zip("AG", (A, G), strict=True)
            ]
            # Zeros in both means would thin out their product twice.
            used = weight if all(factor.any() for factor in new) else 0.0
            decay = gamma if rule == "online" else 1.0
            total = decay * self._total[layer.weight] + used
            met = decay * self._met[layer.weight] + weight
            share = used / total if total else 0.0
            means = [
                old + share * (now.to(old) - old) for old, now in zip((A, G), new, strict=True)
            ]
            updates.append((layer, means, total, met))
        self._rest.commit(*rest)
        anchors = self.anchor
        for layer, means, total, met in updates:
            for old, mean in zip(self._factors(layer), means, strict=True):
                old.copy_(mean)
            for name in layer.names:
                anchors[name].copy_(here[name])
            self._total[layer.weight], self._met[layer.weight] = total, met
            mean = total / met if met else 0.0
            self._strength[layer.weight] = mean if rule == "average" else total

    def quadratic(self, values: Tensors) -> Tensor:
        total = self._rest.quadratic(values)
        for layer, offset in self._offsets(values):
            total = total + (offset * self._product(layer, offset)).sum()
        return total

    def add_gradient_(self, values: Tensors, lam: float) -> None:
        if self._rest.names:
            self._rest.add_gradient_(values, lam)
        for layer, offset in self._offsets(values):
            product = self._product(layer, offset)
            for name, part in layer.parts(product, values).items():
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
        for layer, offset in self._offsets(values):
            moving = any(rates.get(name) for name in layer.names)
            if not moving or not self._strength[layer.weight]:
                continue
            steps = [_step(rates.get(name), scale.get(name, 1.0)) for name in layer.names]
            first = steps[0]
            if first is not None and len({*steps}) == 1:
                move = self._pull(layer, offset, first * lam)
            else:
                move = self._solved(layer, offset, values, lam, rates, scale, start)
            for name, part in layer.parts(move, values).items():
                if rates.get(name):
                    # Of a model in half precision the sum is rounded once.
                    values[name].copy_(values[name].to(part) + part)

    def grow_(self, rows: Mapping[str, int]) -> None:
        for block in self._layers:
            if block.transposed and block.weight in rows:
                raise RuntimeError(
                    f"Parameter {block.weight!r}, stored as (inputs, outputs), has got further "
                    "inputs, which its factors cannot follow: make a new EWC for the new shape."
                )
        self._rest.grow_({name: n for name, n in rows.items() if name not in self._block})
        for name, extra in rows.items():
            layer = self._block.get(name)
            if layer is None:
                continue
            keys = [buffer_key("anchor", name)]
            if name == layer.weight:
                keys.append(buffer_key("G", name))
            for key in keys:
                self._buffers[key] = with_rows(self._buffers[key], extra)
            if name == layer.weight:
                self._buffers[keys[1]] = with_rows(self._buffers[keys[1]].T, extra).T.contiguous()

    def reset(self) -> None:
        self._rest.reset()
        # Of each layer its own: one that joins later has not met the earlier tasks.
        self._total = {layer.weight: 0.0 for layer in self._layers}
        self._met, self._strength = dict(self._total), dict(self._total)

    def state(self) -> dict[str, Any]:
        return self._rest.state() | {
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
        layer = self._block.get(name)
        if layer is None:
            return self._rest._layout(name, zeros)
        if name == layer.bias:
            return {}
        inputs, outputs = layer.sides(zeros)
        return {
            buffer_key("A", name): zeros.new_zeros(inputs, inputs),
            buffer_key("G", name): zeros.new_zeros(outputs, outputs),
        }

    def _factors(self, layer: Layer) -> tuple[Tensor, Tensor]:
        keys = [buffer_key(kind, layer.weight) for kind in "AG"]
        return self._buffers[keys[0]], self._buffers[keys[1]]

    def _offsets(self, values: Tensors) -> list[tuple[Layer, Tensor]]:
        """Return Δ = W − W* of each layer."""
        anchors = self.anchor
        return [
            (layer, layer.matrix({name: values[name] - anchors[name] for name in layer.names}))
            for layer in self._layers
        ]

    def _product(self, layer: Layer, matrix: Tensor) -> Tensor:
        """Return S applied to a matrix (O, I)."""
        A, G = self._factors(layer)
        # Autocast would round the factors.
        with torch.autocast(A.device.type, enabled=False):
            return self._strength[layer.weight] * (G @ matrix @ A)

    def _pull(self, layer: Layer, offset: Tensor, c: float) -> Tensor:
        """Return how far (1 + c S)⁻¹ moves ``offset``, in the eigenbasis of its block."""
        factors = list(self._factors(layer))

        def basis() -> list[Tensor]:
            (a, U_a), (g, U_g) = map(_eigenvectors, factors)
            return [U_g, U_a, torch.outer(g, a)]

        U_g, U_a, products = self._bases[layer].get((), factors, basis)
        c *= self._strength[layer.weight]
        # cs/(1 + cs), which is right for cs = 0 and where cs is infinite.
        (share,) = self._pulls[layer].get(
            (c,), [products], lambda: [1 / (1 + (c * products).reciprocal())]
        )
        with torch.autocast(U_g.device.type, enabled=False):
            return -(U_g @ (share * (U_g.T @ offset @ U_a)) @ U_a.T)

    def _solved(
        self,
        layer: Layer,
        offset: Tensor,
        values: Tensors,
        lam: float,
        rates: Mapping[str, float],
        scale: Mapping[str, float | Tensor],
        start: Tensors | None,
    ) -> Tensor:
        """Return the move of the layer whose weights have different η/d, as a matrix."""
        anchors = self.anchor
        metric = {}
        for name in layer.names:
            rate, d = rates.get(name), torch.as_tensor(scale.get(name, 1.0))
            # Infinite where nothing moves.
            metric[name] = (d.to(anchors[name]) / (rate or 0.0)).expand_as(anchors[name])
        A, G = self._factors(layer)
        stiffness = lam * self._strength[layer.weight]
        first = None
        if start is not None:
            first = layer.matrix({name: start[name] - anchors[name] for name in layer.names})
        return (
            solve(
                lambda matrix: lam * self._product(layer, matrix),
                stiffness * torch.outer(G.diagonal(), A.diagonal()),
                layer.matrix(metric),
                offset,
                first,
                self.iterations,
            )
            - offset
        )


def _checked_factor(F: Tensors, name: str, like: Tensor) -> Tensor:
    factor = checked(F, name, like.shape)
    if (factor.diagonal() < 0).any() or not torch.allclose(factor, factor.T, rtol=1e-3):
        raise ValueError(f"fisher[{name!r}] must be a symmetric matrix of second moments.")
    return factor


def _eigenvectors(factor: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues of a factor and their vectors, without those that are zero."""
    wide = factor.to(widest(factor.device))
    values, vectors = torch.linalg.eigh(wide)
    # What rounding leaves of a direction that no input takes is not to become stiff at a large λ.
    kept = values > torch.finfo(factor.dtype).eps * values[-1].clamp(min=0)
    return values[kept].to(factor), vectors[:, kept].to(factor).contiguous()


def _step(rate: float | None, scale: float | Tensor) -> float | None:
    """Return η/d where that is one number above zero."""
    return rate / scale if rate and not isinstance(scale, Tensor) else None
