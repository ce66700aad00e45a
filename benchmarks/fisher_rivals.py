"""Other ways to the diagonal Fisher information: plain PyTorch, torch.func, and other packages.

Each takes a model, inputs and labels and returns the *mean over samples* of the (expected) squared
score per parameter, or None where it has something else to compute.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

Fisher = dict[str, Tensor]
Method = Callable[[nn.Module, Tensor, Tensor], Fisher | None]

BATCH = 128


def plain_pass(model: nn.Module, x: Tensor, y: Tensor, batch: int = BATCH) -> None:
    """Go forward and backward over the data once: the limit for whatever looks at every sample."""
    for x_part, y_part in zip(x.split(batch), y.split(batch), strict=True):
        model.zero_grad()
        F.cross_entropy(model(x_part), y_part).backward()


def loop_empirical(model: nn.Module, x: Tensor, y: Tensor) -> Fisher:
    parameters = dict(model.named_parameters())
    sums = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for n in range(len(x)):
        loss = F.cross_entropy(model(x[n : n + 1]), y[n : n + 1])
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        for name, gradient in zip(parameters, gradients, strict=True):
            sums[name] += gradient.square()
    return {name: value / len(x) for name, value in sums.items()}


def loop_exact(model: nn.Module, x: Tensor, y: Tensor) -> Fisher:
    parameters = dict(model.named_parameters())
    sums = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for n in range(len(x)):
        log_p = model(x[n : n + 1]).log_softmax(-1)[0]
        for log_p_c in log_p:
            gradients = torch.autograd.grad(log_p_c, list(parameters.values()), retain_graph=True)
            for name, gradient in zip(parameters, gradients, strict=True):
                sums[name] += log_p_c.detach().exp() * gradient.square()
    return {name: value / len(x) for name, value in sums.items()}


def vmap_empirical(model: nn.Module, x: Tensor, y: Tensor, chunk: int = 32) -> Fisher:
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(p: Fisher, x_n: Tensor, y_n: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, p, (x_n[None],)), y_n[None])

    per_sample = vmap(grad(loss), in_dims=(None, 0, 0))
    sums = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for x_part, y_part in zip(x.split(chunk), y.split(chunk), strict=True):
        for name, gradient in per_sample(parameters, x_part, y_part).items():
            sums[name] += gradient.square().sum(0)
    return {name: value / len(x) for name, value in sums.items()}


def vmap_exact(model: nn.Module, x: Tensor, y: Tensor, chunk: int = 4) -> Fisher:
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def log_p(p: Fisher, x_n: Tensor) -> tuple[Tensor, Tensor]:
        log_p = functional_call(model, p, (x_n[None],)).log_softmax(-1)[0]
        return log_p, log_p

    scores = vmap(jacrev(log_p, has_aux=True), in_dims=(None, 0))
    sums = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for x_part in x.split(chunk):
        per_class, log_p_part = scores(parameters, x_part)
        weights = log_p_part.exp().flatten()
        for name, score in per_class.items():
            sums[name] += torch.tensordot(weights, score.flatten(0, 1).square(), dims=1)
    return {name: value / len(x) for name, value in sums.items()}


def _backpack(model: nn.Module, x: Tensor, y: Tensor, quantity: str) -> Fisher:
    from backpack import backpack, extend, extensions

    name = {"empirical": "sum_grad_squared", "exact": "diag_ggn_exact"}[quantity]
    extension = {"empirical": extensions.SumGradSquared, "exact": extensions.DiagGGNExact}[quantity]
    model = extend(copy.deepcopy(model))
    loss_function = extend(nn.CrossEntropyLoss(reduction="sum"))
    sums = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for x_part, y_part in zip(x.split(BATCH), y.split(BATCH), strict=True):
        model.zero_grad()
        with backpack(extension()):
            loss_function(model(x_part), y_part).backward()
        for n, p in model.named_parameters():
            sums[n] += getattr(p, name)
    return {n: value / len(x) for n, value in sums.items()}


def backpack_empirical(model: nn.Module, x: Tensor, y: Tensor) -> Fisher:
    return _backpack(model, x, y, "empirical")


def backpack_exact(model: nn.Module, x: Tensor, y: Tensor) -> Fisher:
    return _backpack(model, x, y, "exact")


def nngeometry_exact(model: nn.Module, x: Tensor, y: Tensor) -> Fisher:
    from nngeometry.layercollection import LayerCollection
    from nngeometry.metrics import FIM
    from nngeometry.object import PMatDiag
    from torch.utils.data import DataLoader, TensorDataset

    model = copy.deepcopy(model)  # where it fails it leaves its hooks behind
    layers = LayerCollection.from_model(model)
    loader = DataLoader(TensorDataset(x, y), batch_size=BATCH)
    fim = FIM(model, loader, PMatDiag, "classif_logits", "cpu", layer_collection=layers)
    return _split_like(model, fim.get_diag())


def _split_like(model: nn.Module, flat: Tensor) -> Fisher:
    # nngeometry puts weight and bias of each layer one after the other, as PyTorch does.
    pieces = flat.split([p.numel() for p in model.parameters()])
    named = zip(model.named_parameters(), pieces, strict=True)
    return {name: piece.view_as(p) for (name, p), piece in named}


def avalanche(batch: int) -> Method:
    """Importances as Avalanche computes them, squaring the gradients of batches of this size."""

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Fisher | None:
        from avalanche.training.plugins.ewc import EWCPlugin
        from torch.utils.data import TensorDataset

        model = copy.deepcopy(model)
        tasks = torch.zeros(len(x), dtype=torch.long)
        importances = EWCPlugin(ewc_lambda=1.0).compute_importances(
            model,
            F.cross_entropy,
            torch.optim.SGD(model.parameters(), lr=0.1),
            TensorDataset(x, y, tasks),
            "cpu",
            batch,
        )
        return {name: value.data for name, value in importances.items()} if batch == 1 else None

    return run


def available(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
