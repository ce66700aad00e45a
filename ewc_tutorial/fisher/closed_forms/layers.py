"""What the per-sample gradients of a layer's parameters are made of.

One call of a layer on a batch gives, for a parameter of the layer, a *part*: what the gradient of
each sample is made of, given the layer's input a and, later, the gradient g of the summed loss by
the layer's output. There are four kinds:

* :class:`Product`: the gradient is Σ_t g_t ⊗ a_t over the positions t at which the weight was
  applied (tokens, pixels): linear layers and convolutions.
* :class:`Direct`: the gradient is about as small as g itself: biases and normalisation weights.
* :class:`Rows`: a few rows of a table: embeddings.
* :class:`Broadcast`: the parameter is added to, or multiplied with, every sample: position tables.

A parameter that is used several times has several parts; ``sums.py`` sums their squares.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge


@dataclass(frozen=True)
class Product:
    """Per-sample gradients Σ_t left[n, :, :, t] ⊗ right[n, :, :, t] of a weight.

    Attributes:
        right: from the layer's input, (B, G, I, T) for G groups, I inputs and T positions.
        left: makes (B, G, O, T) of the gradient by the layer's output.
        transposed: whether the weight is stored as (I, O).
    """

    right: Tensor
    left: Callable[[Tensor], Tensor]
    transposed: bool = False


@dataclass(frozen=True)
class Direct:
    """Per-sample gradients that one cheap operation gives.

    Attributes:
        gradient: makes (B, *shape of the parameter) of the gradient by the layer's output.
    """

    gradient: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Rows:
    """Per-sample gradients that are zero but for the rows that a sample looked up.

    Attributes:
        ids: the rows, (B, T).
        values: makes (B, T, D), the gradient of each look-up.
    """

    ids: Tensor
    values: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Broadcast:
    """Per-sample gradients of a tensor that is broadcast over the samples.

    Attributes:
        parameter: the parameter that the tensor is made of.
        shape: of the tensor.
        chain: where the tensor comes from in the graph, or None if it is the parameter itself.
        factor: what it is multiplied with, (B, ...), or None where it is added.
    """

    parameter: nn.Parameter
    shape: tuple[int, ...]
    chain: GradientEdge | None
    factor: Tensor | None

    def gradient(self, g: Tensor, rows: slice) -> Tensor:
        """Return the gradients of some samples, (b, *shape of the parameter)."""
        g = g[rows] if self.factor is None else g[rows] * self.factor[rows]
        # What broadcasting repeated is summed, but for the samples.
        shape = (1,) * (g.ndim - len(self.shape)) + self.shape
        repeated = [d for d in range(1, g.ndim) if shape[d] == 1 and g.shape[d] > 1]
        if repeated:
            g = g.sum(repeated, keepdim=True)
        g = g.reshape(-1, *self.shape)
        if self.chain is None:
            return g
        (gradient,) = torch.autograd.grad(
            self.chain, [self.parameter], g, retain_graph=True, is_grads_batched=True
        )
        return gradient


Part = Product | Direct | Rows | Broadcast


def linear(layer: nn.Linear, a: Tensor, batch: int) -> dict[str, Part]:
    """Parts of y = a Wᵀ + b on (B, in), (B, T, in), (B, ..., in) or (B·T, in), batch-major."""
    right = a.reshape(batch, 1, -1, layer.in_features).mT

    def left(g: Tensor) -> Tensor:
        return g.reshape(batch, 1, -1, layer.out_features).mT

    return {"weight": Product(right, left), "bias": Direct(lambda g: left(g).sum((1, 3)))}


def convolution(layer: nn.Module, a: Tensor, batch: int) -> dict[str, Part]:
    """Parts of a convolution over 1, 2 or 3 dimensions: a linear layer on unfolded patches."""
    if a.ndim != 2 + len(layer.kernel_size):
        return {}  # a single image without a batch dimension

    G = layer.groups

    def by_sample(t: Tensor, channels: int) -> Tensor:
        # Several images of one sample (a video's frames) are further positions.
        return t.reshape(batch, len(a) // batch, G, channels // G, -1).movedim(1, 3).flatten(3)

    def left(g: Tensor) -> Tensor:
        return by_sample(g, layer.out_channels)

    right = by_sample(_unfold(layer, a), layer.weight[0].numel() * G)
    return {"weight": Product(right, left), "bias": Direct(lambda g: left(g).sum(3).flatten(1))}


def embedding(layer: nn.Embedding, ids: Tensor, batch: int) -> dict[str, Part]:
    """Parts of a table look-up; the row ``padding_idx`` gets no gradient, as in PyTorch."""
    ids = ids.reshape(batch, -1)

    def values(g: Tensor) -> Tensor:
        g = g.reshape(*ids.shape, layer.embedding_dim)
        if layer.padding_idx is None:
            return g
        return g * (ids != layer.padding_idx).unsqueeze(-1)

    return {"weight": Rows(ids, values)}


def layer_norm(layer: nn.LayerNorm, a: Tensor, batch: int) -> dict[str, Part]:
    """Parts of y = â · w + b, with â normalised over the last dimensions."""
    shape = layer.normalized_shape
    return _affine(F.layer_norm(a, shape, eps=layer.eps), (batch, -1, *shape), (1,))


def rms_norm(layer: nn.Module, a: Tensor, batch: int) -> dict[str, Part]:
    """Parts of y = â · w, with â divided by its root mean square over the last dimensions."""
    shape = layer.normalized_shape
    return _affine(F.rms_norm(a, shape, eps=layer.eps), (batch, -1, *shape), (1,))


def group_norm(layer: nn.GroupNorm, a: Tensor, batch: int) -> dict[str, Part]:
    """Parts of y = â · w + b per channel, with â normalised over groups of channels."""
    normalised = F.group_norm(a, layer.num_groups, eps=layer.eps)
    return _affine(normalised, (batch, len(a) // batch, layer.num_channels, -1), (1, 3))


def batch_norm(layer: nn.Module, a: Tensor, batch: int) -> dict[str, Part]:
    """Parts of y = â · w + b per channel, with â normalised by the running statistics."""
    normalised = F.batch_norm(a, layer.running_mean, layer.running_var, eps=layer.eps)
    return _affine(normalised, (batch, len(a) // batch, layer.num_features, -1), (1, 3))


def _affine(normalised: Tensor, view: tuple[int, ...], summed: tuple[int, ...]) -> dict[str, Part]:
    normalised = normalised.reshape(view)
    return {
        "weight": Direct(lambda g: (g.reshape(view) * normalised).sum(summed)),
        "bias": Direct(lambda g: g.reshape(view).sum(summed)),
    }


#: The layers that have a closed form, by their exact type: a subclass may compute something else.
RULES: dict[type[nn.Module], Callable[[nn.Module, Tensor, int], dict[str, Part]]] = {
    nn.Linear: linear,
    nn.Conv1d: convolution,
    nn.Conv2d: convolution,
    nn.Conv3d: convolution,
    nn.Embedding: embedding,
    nn.LayerNorm: layer_norm,
    nn.RMSNorm: rms_norm,
    nn.GroupNorm: group_norm,
    nn.BatchNorm1d: batch_norm,
    nn.BatchNorm2d: batch_norm,
    nn.BatchNorm3d: batch_norm,
}


def has_rule(layer: nn.Module) -> bool:
    """Return whether the layer as configured has a closed form."""
    if isinstance(layer, nn.Embedding) and (layer.max_norm or layer.scale_grad_by_freq):
        return False
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
        # Without running statistics it normalises by the batch, which mixes the samples.
        return type(layer) in RULES and layer.running_mean is not None
    return type(layer) in RULES


def _unfold(layer: nn.Module, a: Tensor) -> Tensor:
    """Return a view (B, C, *kernel, *positions) of what the kernel sees at each position.

    A strided view of the padded input, for any number of dimensions; the caller's reshape copies
    it once, which on a CPU takes a fraction of the time of ``F.unfold``.
    """
    dims = len(layer.kernel_size)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    if any(padding := _padding(layer)):
        a = F.pad(a, padding, mode=mode)
    for d in range(dims):
        reach = layer.dilation[d] * (layer.kernel_size[d] - 1) + 1
        a = a.unfold(2 + d, reach, layer.stride[d])[..., :: layer.dilation[d]]
    # Now (B, C, *positions, *kernel).
    return a.permute(0, 1, *range(2 + dims, 2 + 2 * dims), *range(2, 2 + dims))


def _padding(layer: nn.Module) -> list[int]:
    """Return the padding in the order of ``F.pad``: last dimension first, before and after."""
    pads: list[int] = []
    for d in reversed(range(len(layer.kernel_size))):
        if layer.padding == "same":
            total = layer.dilation[d] * (layer.kernel_size[d] - 1)
            pads += [total // 2, total - total // 2]
        else:
            pads += [0, 0] if layer.padding == "valid" else [layer.padding[d]] * 2
    return pads
