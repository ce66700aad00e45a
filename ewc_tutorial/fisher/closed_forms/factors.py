"""Kronecker factors of a layer's Fisher information, from the same parts as its squares.

The gradient of one sample by the weight of a layer is Σ_t g_t ⊗ a_t over the positions t at which
the weight was applied (one for a plain linear layer, tokens of a sequence, places of a
convolution). Of its second moment the factored form keeps (Martens and Grosse 2015; Grosse and
Martens 2016 for convolutions)

    F ≈ G ⊗ A,    A = E[mean_t a_t a_tᵀ],    G = E[Σ_t g_t g_tᵀ].

At one position it takes a and g for independent; at several also the products of different
positions for zero, which is the form that Eschenhagen et al. (2023) call KFAC-*expand*. With the
bias, a gets a 1 as its last entry.

In the eigenvectors of A and G, the columns of U_A and U_G, the factored form is diagonal, with the
products of their eigenvalues. The diagonal that is *right* in that basis is another one (George et
al. 2018, equation 9), the mean of the squared gradients there:

    E = E[(U_Gᵀ (Σ_t g_t a_tᵀ) U_A)²] = E[(Σ_t (U_Gᵀ g_t)(U_Aᵀ a_t)ᵀ)²],

which are squares of a layer's products again, with other parts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ewc_tutorial.fisher.closed_forms.calls import wide
from ewc_tutorial.fisher.closed_forms.layers import Product
from ewc_tutorial.precision import widest

#: The eigenvectors of A and of G, in columns.
Basis = tuple[Tensor, Tensor]


class LayerFactors:
    """Sums A and G of one layer over samples, G over backward passes as well.

    Args:
        parts: one for each call of the layer; several calls are further positions.
        with_bias: whether the bias belongs to the same block.
    """

    def __init__(self, parts: list[Product], with_bias: bool) -> None:
        self._parts = parts
        self._with_bias = with_bias
        self._G: Tensor | float = 0.0

    def add(self, gradients: list[Tensor]) -> None:
        """Take one backward pass in: the gradient by the output of each part's call."""
        for part, gradient in zip(self._parts, gradients, strict=True):
            g = _columns(part.left(gradient))
            self._G = self._G + g @ g.T

    def result(self) -> tuple[Tensor, Tensor | float]:
        """Return Σ_n mean_t a aᵀ, and Σ_n Σ_t g gᵀ, which is 0.0 without any backward pass."""
        positions = sum(part.right.shape[-1] for part in self._parts)
        total: Tensor | float = 0.0
        for part in self._parts:
            a = _columns(_inputs(part, self._with_bias))
            total = total + a @ a.T
        return total / positions, self._G


def rotated(parts: list[Product], with_bias: bool, basis: Basis) -> list[Product]:
    """Return the parts of the gradient in a basis, U_Gᵀ (Σ_t g_t a_tᵀ) U_A, as one of (O, I)."""
    U_A, U_G = basis

    def left(part: Product) -> Callable[[Tensor], Tensor]:
        return lambda gradient: _turned(part.left(gradient), U_G)

    return [Product(_turned(wide(_inputs(part, with_bias)), U_A), left(part)) for part in parts]


def eigenvectors(factor: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues of a factor, ascending, and their vectors, in columns.

    Where an eigenvalue is zero but for rounding, it and its column are zero: what rounding leaves
    of a direction that no input takes is not to become stiff at a large λ.
    """
    values, vectors = torch.linalg.eigh(factor.to(widest(factor.device)))
    kept = values > torch.finfo(factor.dtype).eps * values[-1].clamp(min=0)
    return (values * kept).to(factor), (vectors * kept).to(factor).contiguous()


def _inputs(part: Product, with_bias: bool) -> Tensor:
    """Return a of a part, (B, 1, I, T)."""
    a = part.right
    return torch.cat([a, torch.ones_like(a[:, :, :1])], dim=2) if with_bias else a


def _turned(columns: Tensor, basis: Tensor) -> Tensor:
    """Return basisᵀ columns, of (..., D, T), in one product of matrices."""
    return (columns.mT @ basis).mT


def _columns(factor: Tensor) -> Tensor:
    """Return (B, 1, D, T) as (D, B·T)."""
    return factor[:, 0].movedim(1, 0).flatten(1)
