"""Independent oracles for Kronecker factors: single samples, float64, matrices written out."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def score_terms(outputs: Tensor, likelihood: str, label=None, variance=1.0):
    """Yield (probability, log-likelihood) of one sample's labels, tokens one by one."""
    if likelihood == "gaussian":  # E[(y − f)²] = σ²: as if y were one deviation away
        for f in outputs.flatten():
            yield 1.0, -(f * variance**-0.5)
    elif likelihood == "bernoulli":
        for f in outputs.flatten():
            p = torch.sigmoid(f)
            yield p.item(), p.log()
            yield 1 - p.item(), (1 - p).log()
    elif label is not None:
        log_p = outputs.log_softmax(-1).reshape(-1, outputs.shape[-1])
        yield 1.0, sum(row[c] for row, c in zip(log_p, label.flatten(), strict=True))
    else:
        for row in outputs.log_softmax(-1).reshape(-1, outputs.shape[-1]):
            for log_p in row:
                yield log_p.exp().item(), log_p


def inputs_of(layer: nn.Module, a: Tensor) -> Tensor:
    """Return what one sample's weight is multiplied with, (positions, I)."""
    if isinstance(layer, nn.Conv2d):
        patches = F.unfold(a, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        return patches[0].T
    return a.reshape(-1, a.shape[-1])


def loop_factors(model, layer_name, x, bias=True, y=None, likelihood="categorical", variance=1.0):
    """Return A and G of a layer by their definition."""
    model = copy.deepcopy(model).double().eval()
    layer = model.get_submodule(layer_name)
    seen = []
    layer.register_forward_hook(lambda m, args, out: seen.append((args[0].detach(), out)))
    total_A, total_G = 0.0, 0.0
    x = x.double() if x.is_floating_point() else x
    for n in range(len(x)):
        seen.clear()
        outputs = model(x[n : n + 1])
        rows = torch.cat([inputs_of(layer, a) for a, _ in seen])
        if bias:
            rows = torch.cat([rows, torch.ones(len(rows), 1).double()], dim=1)
        for row in rows:
            total_A = total_A + torch.outer(row, row) / len(rows) / len(x)
        label = None if y is None else y[n : n + 1]
        for p, log_p in score_terms(outputs, likelihood, label, variance):
            gradients = torch.autograd.grad(log_p, [out for _, out in seen], retain_graph=True)
            for gradient in gradients:
                if isinstance(layer, nn.Conv2d):
                    gradient = gradient.flatten(2)[0].T
                for g in gradient.reshape(-1, gradient.shape[-1]):
                    total_G = total_G + p * torch.outer(g, g) / len(x)
    return total_A, total_G


def dense_fisher(model, names, x, y=None, likelihood="categorical", variance=1.0):
    """Return the true Fisher matrix of some parameters, flattened one after the other."""
    model = copy.deepcopy(model).double().eval()
    parameters = [model.get_parameter(name) for name in names]
    D = sum(p.numel() for p in parameters)
    total = torch.zeros(D, D, dtype=torch.float64)
    for n in range(len(x)):
        outputs = model(x[n : n + 1].double())
        label = None if y is None else y[n : n + 1]
        for p, log_p in score_terms(outputs, likelihood, label, variance):
            gradients = torch.autograd.grad(log_p, parameters, retain_graph=True)
            g = torch.cat([gradient.flatten() for gradient in gradients])
            total += p * torch.outer(g, g) / len(x)
    return total


def block(A: Tensor, G: Tensor, bias: bool) -> Tensor:
    """Return G ⊗ A, written out, for the weight (O, I) flattened and then its bias."""
    n, m = len(G), len(A)
    dense = torch.zeros(n, m, n, m, dtype=torch.float64)
    for o in range(n):
        for p in range(n):
            dense[o, :, p, :] = G[o, p] * A
    order = torch.arange(n * m).reshape(n, m)
    order = torch.cat([order[:, :-1].flatten(), order[:, -1]]) if bias else order.flatten()
    return dense.reshape(n * m, n * m)[order][:, order]


def eigenbasis(UA: Tensor, UG: Tensor, bias: bool) -> Tensor:
    """Return the vectors u_o ⊗ u_i written out as columns, in the order of the rows of E (O, I)."""
    columns = []
    for o in range(UG.shape[1]):
        for i in range(UA.shape[1]):
            vector = torch.outer(UG[:, o].double(), UA[:, i].double())
            parts = [vector[:, :-1].flatten(), vector[:, -1]] if bias else [vector.flatten()]
            columns.append(torch.cat(parts))
    return torch.stack(columns, dim=1)


def eigenblock(UA: Tensor, UG: Tensor, E: Tensor, bias: bool) -> Tensor:
    """Return the matrix with the eigenvalues E, written out."""
    V = eigenbasis(UA, UG, bias)
    return V @ E.double().flatten().diag() @ V.T


def diagonal_in(V: Tensor, F: Tensor) -> Tensor:
    """Return the diagonal of F in the basis of V's columns."""
    return torch.stack([v @ F @ v for v in V.T])


def flat(tensors) -> Tensor:
    return torch.cat([t.detach().double().flatten() for t in tensors])


def random_factors(shapes, seed: int, rank: int | None = None):
    """Return random second moments for the shapes of an EWC, of low rank if wanted.

    Of exact eigenvalues the basis is that of the factors, with zeros where they have none.
    """
    g = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in shapes.items():
        layer, _, kind = name.partition(":")
        if kind in ("UA", "UG"):
            values, vectors = torch.linalg.eigh(found[f"{layer}:{kind[1]}"])
            found[name] = vectors * (values > 1e-12)
            continue
        if kind == "E":
            used = (found[f"{layer}:U{side}"].any(0).double() for side in "GA")
            found[name] = torch.rand(shape, generator=g, dtype=torch.float64) * torch.outer(*used)
            continue
        if name.endswith((":A", ":G")):
            root = torch.randn(shape[0], rank or shape[0] + 2, generator=g, dtype=torch.float64)
            found[name] = root @ root.T / math.sqrt(shape[0])
        else:
            found[name] = torch.rand(shape, generator=g, dtype=torch.float64)
    return found
