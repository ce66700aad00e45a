"""S as a diagnosis takes it: a number per weight, or Kronecker factors of some layers' blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from ewc_tutorial.curvature.blocks import EigenBlock
from ewc_tutorial.curvature.layers import Layer, layer_of
from ewc_tutorial.diagnosis.report import Diagnosis, Finding, Tensors
from ewc_tutorial.fisher import fisher_diagonal, fisher_factors
from ewc_tutorial.precision import double

#: Relative size of what is no rounding error in a factor: asymmetry, or a negative eigenvalue.
ROUNDING = 1e-3


@dataclass(frozen=True)
class Pattern:
    """A Fisher information as numbers that do not change when a factor c moves from A to G.

    Of a block these are its partial traces, A tr G and G tr A.

    Attributes:
        entries: all of them, (P,), in float64 on the CPU.
        diagonals: those on diagonals: of all weights without factors, and of each A tr G, G tr A.
    """

    entries: Tensor
    diagonals: list[Tensor]

    @property
    def total(self) -> float:
        return sum(part.sum().item() for part in self.diagonals)

    def overlap(self, other: Pattern) -> float:
        """Return the least overlap of the diagonals (Kirkpatrick et al. 2017)."""
        pairs = zip(self.diagonals, other.diagonals, strict=True)
        return min((_overlap(a, b) for a, b in pairs if a.any() and b.any()), default=1.0)


@dataclass(frozen=True)
class Form:
    """Which weights have a number each, and which layers have factors.

    Attributes:
        names: of the weights with a number each.
        layers: the blocks.
    """

    names: Sequence[str]
    layers: Sequence[Layer] = ()

    @property
    def measure(self) -> Callable[..., dict[str, Tensor]]:
        """What measures in this form, called as :func:`fisher_diagonal`."""
        if not self.layers:
            return fisher_diagonal

        return partial(
            fisher_factors,
            layers={layer.weight: layer.bias for layer in self.layers},
            transposed=[layer.weight for layer in self.layers if layer.transposed],
        )

    def pattern(self, fisher: Tensors) -> Pattern:
        """Return the numbers of a measurement."""

        def joined(parts: list[Tensor]) -> Tensor:
            return torch.cat([torch.empty(0, dtype=torch.float64), *(p.flatten() for p in parts)])

        As, Gs = [], []
        for layer in self.layers:
            A, G = (_plain(fisher[f"{layer.weight}:{kind}"]) for kind in "AG")
            As.append(A * G.trace())
            Gs.append(G * A.trace())
        weights = joined([_plain(fisher[name]) for name in self.names])
        diagonals = [M.diagonal() for M in (*As, *Gs)]
        return Pattern(joined([weights, *As, *Gs]), [weights, *diagonals])


@dataclass(frozen=True)
class Block:
    """S of a layer: G ⊗ A, or with eigenvalues of its own (U_G ⊗ U_A) diag(E) (U_G ⊗ U_A)ᵀ.

    Attributes:
        A, G: its factors.
        eigen: U_A, U_G and E, if there are such.
    """

    A: Tensor
    G: Tensor
    eigen: tuple[Tensor, Tensor, Tensor] | None = None

    def product(self, matrix: Tensor) -> Tensor:
        """Return the block applied to a matrix (O, I), in float64."""
        if self.eigen is None:
            return double(self.G) @ double(matrix) @ double(self.A)
        U_A, U_G, E = map(double, self.eigen)
        return U_G @ (E * (U_G.T @ double(matrix) @ U_A)) @ U_A.T

    def diagonal(self) -> Tensor:
        """Return its diagonal, as a matrix."""
        if self.eigen is None:
            return torch.outer(self.G.diagonal(), self.A.diagonal())
        U_A, U_G, E = self.eigen
        return U_G.square() @ E @ U_A.square().T

    def largest(self) -> float:
        """Return its largest eigenvalue."""
        if self.eigen is None:
            A, G = (torch.linalg.eigvalsh(double(factor))[-1].item() for factor in (self.A, self.G))
            return A * G
        U_A, U_G, E = self.eigen
        return (E * torch.outer(U_G.any(0), U_A.any(0))).max().item()


@dataclass(frozen=True)
class Quadratic:
    """(θ − μ)ᵀ S (θ − μ).

    Attributes:
        diagonal: S of the weights with a number each.
        blocks: S of the layers with factors.
    """

    diagonal: Tensors
    blocks: Mapping[Layer, Block]

    @property
    def names(self) -> list[str]:
        """The names of all weights."""
        return [*self.diagonal, *(name for layer in self.blocks for name in layer.names)]

    @property
    def words(self) -> str:
        """The penalty, as a formula."""
        if any(block.eigen is not None for block in self.blocks.values()):
            return "λ/2 Σ E ∘ (U_Gᵀ Δ U_A)², Δ = θ − θ*"
        return "λ/2 Σ Δ ∘ (G Δ A), Δ = θ − θ*" if self.blocks else "λ/2 Σ F (θ − θ*)²"

    @property
    def form(self) -> Form:
        return Form(list(self.diagonal), list(self.blocks))

    def importance(self, shapes: Tensors) -> dict[str, Tensor]:
        """Return the diagonal of S, each in the shape of the tensor of its name."""
        found = dict(self.diagonal)
        for layer, block in self.blocks.items():
            found |= layer.parts(block.diagonal(), shapes)
        return found

    def over(self, weight: float) -> dict[str, Tensor]:
        """Return S / weight as the tensors of a measurement, of blocks their factors."""
        found = {name: F.detach() / weight for name, F in self.diagonal.items()}
        for layer, block in self.blocks.items():
            A, G = block.A.detach(), block.G.detach()
            found |= {f"{layer.weight}:A": A, f"{layer.weight}:G": G / weight}
        return found

    def only(self, names: list[str]) -> Quadratic:
        """Return the part of it whose weights are all among these."""
        return replace(
            self,
            diagonal={name: F for name, F in self.diagonal.items() if name in names},
            blocks={k: v for k, v in self.blocks.items() if set(k.names) <= set(names)},
        )

    def product(self, away: Tensors) -> dict[str, Tensor]:
        """Return S times a displacement of the weights, in float64."""
        found = {name: double(F) * double(away[name]) for name, F in self.diagonal.items()}
        for layer, block in self.blocks.items():
            matrix = layer.matrix({name: away[name] for name in layer.names})
            found |= layer.parts(block.product(matrix), away)
        return found

    def largest(self) -> tuple[float, str]:
        """Return the largest eigenvalue of S, and what to call it."""
        top = max((F.max().item() for F in self.diagonal.values() if F.numel()), default=0.0)
        words = "max F"
        for layer, block in self.blocks.items():
            if top < (own := block.largest()):
                top = own
                words = f"times the largest eigenvalue of S, that of {layer.weight!r},"
        return top, words


def quadratic_of(
    report: Diagnosis, model: nn.Module, values: Tensors, fisher: Tensors
) -> Quadratic:
    """Return S, given its tensors by name: ``NAME``, or ``NAME:A`` and ``NAME:G``, perhaps with
    ``NAME:UA``, ``NAME:UG`` and ``NAME:E``.

    Factors that are none of that weight, or no second moments, are reported and left out.
    """
    weights = list(dict.fromkeys(n[:-2] for n in fisher if n.endswith((":A", ":G"))))
    inside = {f"{weight}:{kind}" for weight in weights for kind in EigenBlock.kinds}
    diagonal = {name: F for name, F in fisher.items() if name not in inside}
    blocks = {}
    if weights:
        report.checked.append("factors")
    for weight in weights:
        A, G = fisher.get(f"{weight}:A"), fisher.get(f"{weight}:G")
        if weight not in values:
            diagonal[weight] = A if A is not None else G  # type: ignore[assignment]  # one is there
            continue
        layer = None if A is None else layer_of(model, weight, values, len(A))
        if layer is None or [*map(_sides, (A, G))] != [(n, n) for n in layer.sides(values[weight])]:
            report.findings.append(
                Finding(
                    "shape",
                    f"the factors of {weight!r} have the shapes {_sides(A)} and {_sides(G)}, the "
                    f"parameter {tuple(values[weight].shape)}",
                    "A has a row for each input, and one for the bias, G has one for each output",
                )
            )
            continue
        assert A is not None  # they have these shapes
        assert G is not None
        faults = [fault for kind, M in (("A", A), ("G", G)) if (fault := _fault(kind, weight, M))]
        given = [fisher.get(f"{weight}:{kind}") for kind in ("UA", "UG", "E")]
        eigen = None
        if any(tensor is not None for tensor in given):
            eigen, wrong = _eigen(weight, given, len(A), len(G))
            faults += wrong
        report.findings += faults
        if not faults:
            blocks[layer] = Block(A, G, eigen)
    inside = {name for layer in blocks for name in layer.names}
    return Quadratic({n: F for n, F in diagonal.items() if n not in inside}, blocks)


def _eigen(
    weight: str, given: Sequence[Tensor | None], inputs: int, outputs: int
) -> tuple[tuple[Tensor, Tensor, Tensor] | None, list[Finding]]:
    """Return U_A, U_G and E of a block with eigenvalues of its own, or what is wrong with them."""
    U_A, U_G, E = given
    if [*map(_sides, given)] != [(inputs, inputs), (outputs, outputs), (outputs, inputs)]:
        return None, [
            Finding(
                "shape",
                f"the eigenvectors and eigenvalues of {weight!r} have the shapes {_sides(U_A)}, "
                f"{_sides(U_G)} and {_sides(E)}, the factors {(inputs, inputs)} and "
                f"{(outputs, outputs)}",
                "UA has the shape of A, UG that of G, and E a row for each output",
            )
        ]
    assert U_A is not None  # they have these shapes
    assert U_G is not None
    assert E is not None
    if not all(tensor.isfinite().all() for tensor in (U_A, U_G, E)) or (E < 0).any():
        return None, [
            Finding(
                "negative F",
                f"E of {weight!r} has entries that are negative or not finite, or its eigenvectors "
                "have such as are not finite",
                "E is a mean of squares: square the gradients in the basis",
            )
        ]
    return (U_A, U_G, E), []


def _fault(kind: str, weight: str, M: Tensor) -> Finding | None:
    """Return what makes a matrix no second moment."""
    advice = f"{kind} is a mean of outer products {kind.lower()} {kind.lower()}ᵀ of single samples"
    if not M.isfinite().all():
        return Finding(
            "not finite",
            f"{kind} of {weight!r} has entries that are not finite",
            "look for NaN in the data, or a division by zero",
        )
    M = double(M)
    asymmetry = (M - M.T).norm().item() / max(M.norm().item(), 1e-300)
    if asymmetry > ROUNDING:
        return Finding(
            "no second moment",
            f"{kind} of {weight!r} is not symmetric ({kind} − {kind}ᵀ is {asymmetry:.2g} of it)",
            advice,
        )
    values = torch.linalg.eigvalsh(M)
    if values[0] < -ROUNDING * values.abs().max():
        return Finding(
            "no second moment",
            f"{kind} of {weight!r} has the eigenvalue {values[0].item():.2g}, its largest being "
            f"{values[-1].item():.2g}, so the penalty rewards leaving the anchor",
            advice,
        )
    return None


def _sides(M: Tensor | None) -> tuple[int, ...]:
    return () if M is None else tuple(M.shape)


def _plain(tensor: Tensor) -> Tensor:
    return double(tensor.detach()).cpu()


def _overlap(F: Tensor, G: Tensor) -> float:
    return ((F / F.sum()).clamp(min=0).sqrt() @ (G / G.sum()).clamp(min=0).sqrt()).item()
