"""What other packages hand out as the diagonal Fisher information, called as they are meant to be.

Each function takes a model in evaluation mode and samples, and returns what the package returns, in
the package's own scale, by parameter. Nothing is corrected here; labels that a package draws come
from PyTorch's global random state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.fisher_rivals import vmap_empirical, vmap_exact
from ewc_tutorial.fisher import fisher_diagonal

Fisher = dict[str, Tensor]
Call = Callable[[nn.Module, Tensor, Tensor], Fisher]
#: The last batch of the samples that are measured is smaller.
BATCH = 32


def loader(x: Tensor, y: Tensor, batch_size: int = BATCH) -> DataLoader:
    return DataLoader(TensorDataset(x, y), batch_size)


def batches(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(x.split(BATCH), y.split(BATCH), strict=True)


def by_name(model: nn.Module, flat: Tensor) -> Fisher:
    """Return a flat vector by parameter."""
    pieces = flat.detach().split([p.numel() for p in model.parameters()])
    named = zip(model.named_parameters(), pieces, strict=True)
    return {name: piece.reshape(p.shape) for (name, p), piece in named}


def ours(estimator: str) -> Call:
    options = {"batch_size": BATCH} if estimator == "batched" else {}
    return lambda model, x, y: fisher_diagonal(model, (x, y), estimator, **options)


def torch_func(estimator: str) -> Call:
    return {"empirical": vmap_empirical, "exact": vmap_exact}[estimator]


def avalanche(batch_size: int = BATCH) -> Call:
    def call(model: nn.Module, x: Tensor, y: Tensor) -> Fisher:
        from avalanche.training.plugins import EWCPlugin

        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        data = TensorDataset(x, y, torch.zeros(len(x), dtype=torch.long))
        importances = EWCPlugin(ewc_lambda=1.0).compute_importances(
            model, nn.functional.cross_entropy, optimizer, data, "cpu", batch_size
        )
        return {name: value.data for name, value in importances.items()}

    return call


def capymoa(model: nn.Module, x: Tensor, y: Tensor) -> Fisher:
    from capymoa.ocl.strategy._ewc import fd_compute

    device, loss = torch.device("cpu"), nn.CrossEntropyLoss()
    values = fd_compute(model, model, loader(x, y), device, loss)
    return dict(zip(dict(model.named_parameters()), values, strict=True))


def clearn(model: nn.Module, x: Tensor, y: Tensor) -> Fisher:
    from clearn.strategies.ewc import EWC

    ewc = EWC(model, n_fisher_samples=len(x))
    ewc.consolidate(loader(x, y))
    return ewc._fisher


def clarena(epochs: int) -> Call:
    """Go through its own training of so many epochs, at the learning rate 0, and what follows."""

    def call(model: nn.Module, x: Tensor, y: Tensor) -> Fisher:
        from clarena.cl_algorithms import EWC

        still = torch.optim.SGD(model.parameters(), lr=0.0)
        data = SimpleNamespace(train_dataloader=lambda: loader(x, y))
        # What the methods read of their Lightning module; the heads' importance is not measured.
        module = SimpleNamespace(
            backbone=model, criterion=nn.CrossEntropyLoss(), device="cpu", eval=model.eval,
            forward=lambda x, stage, task_id: (model(x), {}), optimizers=lambda: still,
            manual_backward=lambda loss: loss.backward(), trainer=SimpleNamespace(datamodule=data),
            when_calculate_fisher_information="train_end", parameter_importance={},
            previous_task_backbones={}, task_id=1,
        )  # fmt: skip
        measure = EWC.accumulate_fisher_information_on_train_end
        module.accumulate_fisher_information_on_train_end = partial(measure, module)
        EWC.on_train_start(module)
        for _ in range(epochs):
            for batch in batches(x, y):
                EWC.training_step(module, batch)
        EWC.on_train_end(module)
        return module.parameter_importance[1]

    return call


def modelgeometry(model: nn.Module, x: Tensor, y: Tensor) -> Fisher:
    from modelgeometry.fisher import diagonal_fisher

    return diagonal_fisher(model, loader(x, y), len(x), nn.functional.cross_entropy)


def laplace(backend: str) -> Call:
    def call(model: nn.Module, x: Tensor, y: Tensor) -> Fisher:
        from laplace import Laplace
        from laplace import curvature as backends

        options = {"subset_of_weights": "all", "hessian_structure": "diag"}
        fitted = Laplace(model, "classification", **options, backend=getattr(backends, backend))
        fitted.fit(loader(x, y))
        return by_name(model, fitted.H)

    return call


def nngeometry(trials: int | None = None) -> Call:
    def call(model: nn.Module, x: Tensor, y: Tensor) -> Fisher:
        from nngeometry.metrics import FIM, FIM_MonteCarlo
        from nngeometry.object import PMatDiag

        data = {"model": model, "loader": loader(x, y), "representation": PMatDiag}
        variant = {"variant": "classif_logits", "device": "cpu"}
        drawn = trials and FIM_MonteCarlo(**data, **variant, trials=trials)
        return by_name(model, (drawn or FIM(**data, **variant)).get_diag())

    return call


def backpack(extension: str, attribute: str, reduction: str) -> Call:
    """Add up a quantity over batches; with ``mean``, divide by their number."""

    def call(model: nn.Module, x: Tensor, y: Tensor) -> Fisher:
        from backpack import backpack, extend, extensions

        model, loss = extend(model), extend(nn.CrossEntropyLoss(reduction=reduction))
        sums = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        for x_part, y_part in batches(x, y):
            model.zero_grad()
            with backpack(getattr(extensions, extension)()):
                loss(model(x_part), y_part).backward()
            for name, p in model.named_parameters():
                sums[name] += getattr(p, attribute)
        parts = len(x) if reduction == "sum" else len(x.split(BATCH))
        return {name: value / parts for name, value in sums.items()}

    return call


def curvlinops(operator: str) -> Call:
    """Take the diagonal of a linear operator, one unit vector after the other."""

    def call(model: nn.Module, x: Tensor, y: Tensor) -> Fisher:
        import curvlinops

        parameters = list(model.parameters())
        options: dict[str, Any] = {"progressbar": False, "check_deterministic": False}
        if "KFAC" in operator:
            options |= {"fisher_type": "type-2"}
        data = [*batches(x, y)]
        matrix = getattr(curvlinops, operator)(
            model, nn.CrossEntropyLoss(), parameters, data, **options
        )
        size = sum(p.numel() for p in parameters)
        columns = torch.arange(size).split(512)
        parts = [(matrix @ torch.eye(size)[:, c])[c].diagonal() for c in columns]
        return by_name(model, torch.cat(parts))

    return call


def asdl(fisher_type: str) -> Call:
    """Accumulate over batches, each with the number of all samples."""

    def call(model: nn.Module, x: Tensor, y: Tensor) -> Fisher:
        from asdl.fisher import FisherConfig, get_fisher_maker

        config = FisherConfig(fisher_type, ["diag"], "cross_entropy", data_size=len(x))
        maker = get_fisher_maker(model, config)
        maker.zero_fisher()
        for x_part, y_part in batches(x, y):
            output = maker.setup_model_call(model, x_part)
            if fisher_type == "fisher_emp":
                sum_of_losses = nn.CrossEntropyLoss(reduction="sum")
                maker.setup_loss_call(sum_of_losses, output, y_part)
            maker.forward_and_backward(accumulate=True)
        kept = {n: m.fisher.diag for n, m in model.named_modules() if hasattr(m, "fisher")}
        return {f"{n}.{k}": getattr(d, k) for n, d in kept.items() for k in ("weight", "bias")}

    return call
