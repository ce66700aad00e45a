"""Kronecker factors of a layer's Fisher information, from the same parts as its squares.

The gradient of one sample by the weight of a layer is Σ_t g_t ⊗ a_t over the positions t at which
the weight was applied (one for a plain linear layer, tokens of a sequence, places of a
convolution). Of its second moment the factored form keeps (Martens and Grosse 2015; Grosse and
Martens 2016 for convolutions)

    F ≈ G ⊗ A,    A = E[mean_t a_t a_tᵀ],    G = E[Σ_t g_t g_tᵀ].

At one position it takes a and g for independent; at several also the products of different
positions for zero, which is the form that Eschenhagen et al. (2023) call KFAC-*expand*. With the
bias, a gets a 1 as its last entry.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ewc_tutorial.fisher.closed_forms.layers import Product


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
            a = _columns(part.right)
            if self._with_bias:
                a = torch.cat([a, a.new_ones(1, a.shape[1])])
            total = total + a @ a.T
        return total / positions, self._G


def _columns(factor: Tensor) -> Tensor:
    """Return (B, 1, D, T) as (D, B·T)."""
    return factor[:, 0].movedim(1, 0).flatten(1)
