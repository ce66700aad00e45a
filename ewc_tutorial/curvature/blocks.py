"""The Fisher block of one layer: how it is kept, merged and applied to a matrix (O, I)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ewc_tutorial.curvature.base import Remembered, Tensors, buffer_key, checked, with_rows
from ewc_tutorial.curvature.layers import Layer
from ewc_tutorial.fisher.closed_forms.factors import Basis, eigenvectors
from ewc_tutorial.precision import widest


class Block:
    """G ⊗ A of one layer; of several tasks the weighted means of their factors.

    Args:
        layer: whose weights it is for.
        buffers: where its tensors lie.
    """

    #: What is measured, merged and kept of it.
    kinds: ClassVar[tuple[str, ...]] = ("A", "G")

    def __init__(self, layer: Layer, buffers: dict[str, Tensor]) -> None:
        self.layer = layer
        self._buffers = buffers
        self._basis, self._shares = Remembered(), Remembered()

    def layout(self, zeros: Tensor) -> dict[str, Tensor]:
        """Return its buffers, given zeros of the weight's shape."""
        I, O = self.layer.sides(zeros)  # noqa: E741
        sides = {"A": (I, I), "G": (O, O), "UA": (I, I), "UG": (O, O), "E": (O, I)}
        return {self._key(kind): zeros.new_zeros(sides[kind]) for kind in self.kinds}

    @property
    def tensors(self) -> list[Tensor]:
        """Its tensors, in the order of :attr:`kinds`."""
        return [self._buffers[self._key(kind)] for kind in self.kinds]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor, by its name as measured."""
        return {
            self._name(kind): tuple(tensor.shape)
            for kind, tensor in zip(self.kinds, self.tensors, strict=True)
        }

    def stored(self, strength: float) -> dict[str, Tensor]:
        """Return its tensors by their names as measured, of ``strength`` times the block."""
        return {
            self._name(kind): strength * tensor if kind in ("G", "E") else tensor
            for kind, tensor in zip(self.kinds, self.tensors, strict=True)
        }

    def uses(self, F: Tensors) -> bool:
        """Return whether a task has used the layer: whether its factors are not zero."""
        factors = [F.get(self._name(kind)) for kind in "AG"]
        return all(factor is not None and bool(factor.any()) for factor in factors)

    def merged(self, F: Tensors, share: float) -> list[Tensor]:
        """Return its tensors with a further task, of which the means take ``share``.

        Raises:
            ValueError: a tensor of the task is missing, or is none of its kind.
        """
        return [
            old + share * (new - old)
            for old, new in zip(self.tensors[:2], self.factors(F), strict=True)
        ]

    def factors(self, F: Tensors) -> list[Tensor]:
        """Return A and G of a task, as they are kept.

        Raises:
            ValueError: one is missing, or is no matrix of second moments.
        """
        found = []
        for kind, old in zip("AG", self.tensors, strict=False):
            new = checked(F, self._name(kind), old.shape, signed=True)
            if (new.diagonal() < 0).any() or not torch.allclose(new, new.T, rtol=1e-3):
                raise ValueError(
                    f"fisher[{self._name(kind)!r}] must be a symmetric matrix of second moments."
                )
            found.append(new.to(old))
        return found

    def commit(self, tensors: Sequence[Tensor]) -> None:
        """Make what :meth:`merged` returned the present state."""
        for old, new in zip(self.tensors, tensors, strict=True):
            old.copy_(new)

    def product(self, matrix: Tensor) -> Tensor:
        """Return the block applied to a matrix."""
        A, G = self.tensors
        return G @ matrix @ A

    def diagonal(self) -> Tensor:
        """Return its diagonal, as a matrix."""
        A, G = self.tensors
        return torch.outer(G.diagonal(), A.diagonal())

    def pull(self, offset: Tensor, c: float) -> Tensor:
        """Return how far (1 + c G ⊗ A)⁻¹ moves ``offset``, in the eigenbasis."""
        U_A, U_G, E = self._eigenbasis()
        # cs/(1 + cs), which is right for cs = 0 and where cs is infinite.
        (share,) = self._shares.get((c,), [E], lambda: [1 / (1 + (c * E).reciprocal())])
        with torch.autocast(offset.device.type, enabled=False):
            return -(U_G @ (share * (U_G.T @ offset @ U_A)) @ U_A.T)

    def minima(
        self, offset: Tensor, F: Tensors, strength: float, damping: float
    ) -> Callable[[float], Tensor]:
        """Return λ ↦ how far the minimum of two quadratics lies from the second one's end.

        They are λ · ``strength`` times this block around zero, and a task's own around ``offset``.
        In the basis in which the factors of both are diagonal, the minimum is at the mean of both
        ends, weighed coordinate by coordinate. Each factor of the task gets √damping of its mean
        eigenvalue in every direction (Martens and Grosse 2015, section 6.3).
        """
        mine = self.tensors[:2]
        others = [
            factor + damping**0.5 * factor.diagonal().mean().expand(len(factor)).diag()
            for factor in self.factors(F)
        ]
        (a, b, P_A, Q_A), (g, h, P_G, Q_G) = map(common_basis, mine, others)
        old, new = strength * torch.outer(g, a), torch.outer(h, b)
        coordinates = Q_G @ offset.to(old) @ Q_A.T

        def move(lam: float) -> Tensor:
            total = lam * old + new
            share = torch.where(total > 0, lam * old / total, 0.0)
            return -(P_G @ (share * coordinates) @ P_A.T).to(offset)

        return move

    def grow_(self, rows: int) -> None:
        """Append so many further outputs, of which nothing is known."""
        for kind, tensor in zip(self.kinds, self.tensors, strict=True):
            if kind in ("G", "UG", "E"):
                tensor = with_rows(tensor, rows)
            if kind in ("G", "UG"):
                tensor = with_rows(tensor.T, rows).T.contiguous()
            self._buffers[self._key(kind)] = tensor

    def _eigenbasis(self) -> list[Tensor]:
        """Return U_A, U_G and the eigenvalues (O, I), but for columns that are zero."""

        def compute() -> list[Tensor]:
            (a, U_A), (g, U_G) = map(eigenvectors, self.tensors)
            return _without_zeros(U_A, U_G, torch.outer(g, a))

        return self._basis.get((), self.tensors, compute)

    def _name(self, kind: str) -> str:
        return f"{self.layer.weight}:{kind}"

    def _key(self, kind: str) -> str:
        return buffer_key(kind, self.layer.weight)


class EigenBlock(Block):
    """(U_G ⊗ U_A) diag(E) (U_G ⊗ U_A)ᵀ of one layer, with E of its own (George et al. 2018).

    The basis is kept and not found anew from the factors: E belongs to these very vectors, and
    where eigenvalues are equal or nearly so another computer finds others. Of several tasks the
    basis is that of the mean factors, and E the weighted mean of the diagonals that each task's
    matrix has in it; those of earlier tasks are carried from basis to basis.
    """

    kinds = ("A", "G", "UA", "UG", "E")

    def merged(self, F: Tensors, share: float) -> list[Tensor]:
        old_E, old = self.tensors[4], (self.tensors[2], self.tensors[3])
        E = checked(F, self._name("E"), old_E.shape).to(old_E)
        here = self._checked_basis(F, "UA", old[0]), self._checked_basis(F, "UG", old[1])
        means = super().merged(F, share)
        if share == 1:
            return [*means, *here, E]
        basis = eigenvectors(means[0])[1], eigenvectors(means[1])[1]
        E = share * reprojected(E, here, basis) + (1 - share) * reprojected(old_E, old, basis)
        return [*means, *basis, E]

    def product(self, matrix: Tensor) -> Tensor:
        U_A, U_G, E = self._eigenbasis()
        return U_G @ (E * (U_G.T @ matrix @ U_A)) @ U_A.T

    def diagonal(self) -> Tensor:
        U_A, U_G, E = self._eigenbasis()
        return U_G.square() @ E @ U_A.square().T

    def _checked_basis(self, F: Tensors, kind: str, old: Tensor) -> Tensor:
        U = checked(F, self._name(kind), old.shape, signed=True).to(old)
        gram = U.T @ U
        if not torch.allclose(gram, U.any(0).to(U).diag(), rtol=0, atol=1e-3):
            raise ValueError(
                f"fisher[{self._name(kind)!r}] must have columns that are orthonormal, or zero."
            )
        return U

    def _eigenbasis(self) -> list[Tensor]:
        tensors = self.tensors[2:]
        return self._basis.get((), tensors, lambda: _without_zeros(*tensors))


def common_basis(old: Tensor, new: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return o, n, P and its inverse with Pᵀ old P = diag(o) and Pᵀ new P = diag(n).

    Directions in which both are zero but for rounding are left out of P.
    """
    eps = torch.finfo(old.dtype).eps
    wide = [matrix.to(widest(matrix.device)) for matrix in (old, new)]
    # Neither is to drown in the other, so each is taken in its own unit.
    units = [float(matrix.trace()) or 1.0 for matrix in wide]
    old, new = (matrix / unit for matrix, unit in zip(wide, units, strict=True))
    s, U = torch.linalg.eigh(old + new)
    kept = s > eps * s[-1].clamp(min=0)
    root, U = s[kept].sqrt(), U[:, kept]
    share, V = torch.linalg.eigh((U / root).T @ old @ (U / root))
    share = torch.where(share < eps, 0.0, torch.where(share > 1 - eps, 1.0, share))
    return units[0] * share, units[1] * (1 - share), (U / root) @ V, (V.T * root) @ U.T


def reprojected(E: Tensor, old: Basis, new: Basis) -> Tensor:
    """Return the diagonal, in a new basis, of the matrix that E is the diagonal of in an old one.

    The old matrix is Σ_oi E_oi (u_o u_oᵀ) ⊗ (u_i u_iᵀ), so its entry at v_p ⊗ v_j is
    Σ_oi (v_p · u_o)² E_oi (u_i · v_j)².
    """
    in_A, in_G = ((V.T @ U).square() for U, V in zip(old, new, strict=True))
    return in_G @ E @ in_A.T


def _without_zeros(U_A: Tensor, U_G: Tensor, E: Tensor) -> list[Tensor]:
    """Leave out vectors that are zero, and the products with them."""
    A, G = U_A.any(0), U_G.any(0)
    if A.all() and G.all():
        return [U_A, U_G, E]
    return [U_A[:, A].contiguous(), U_G[:, G].contiguous(), E[G][:, A]]
