"""What no penalty holds: the running statistics of BatchNorm, which are no parameters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ewc_tutorial.diagnosis.report import Diagnosis, Finding
from ewc_tutorial.fisher.inputs import apply
from ewc_tutorial.fisher.per_sample import run
from ewc_tutorial.fisher.samples import make_samples
from ewc_tutorial.fisher.undisturbed import undisturbed

#: Root mean square, over the channels, of the distance between a running mean and the mean on the
#: old data, in standard deviations. After training on these data it is about 0.1.
FAR = 0.5


def check_statistics(report: Diagnosis, model: nn.Module, data: Any, n_samples: int | None) -> None:
    """See whether the running statistics are those that the old data have at these weights."""
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        and module.running_mean is not None
        and module.num_batches_tracked  # else nothing has been trained yet
        and (module.training or not model.training)  # else it is frozen by intent
    }
    if not layers:
        return
    if data is None or isinstance(data, Iterator):
        report.skipped["running statistics"] = "needs the old task's data, to read once more"
        return
    report.checked.append("running statistics")
    distances = _distances(model, layers, data, n_samples)
    name, worst = max(distances.items(), key=lambda item: item[1], default=("", 0.0))
    if worst > FAR:
        report.findings.append(
            Finding(
                "running statistics",
                f"those of the BatchNorm {name!r} are not the old data's any more (means off by "
                f"{worst:.2g} standard deviations), and no penalty holds them",
                "keep BatchNorm in eval mode while you train on the next task, put the old "
                "statistics back for the old task, or take LayerNorm or GroupNorm",
            )
        )


def _distances(
    model: nn.Module, layers: dict[str, _BatchNorm], data: Any, n_samples: int | None
) -> dict[str, float]:
    sums: dict[str, list[Any]] = {name: [0, 0.0] for name in layers}

    def watch(name: str, x: Tensor) -> None:
        values = x.transpose(0, 1).flatten(1).float()
        sums[name][0] += values.shape[1]
        sums[name][1] = sums[name][1] + values.sum(1)

    handles = [
        layer.register_forward_pre_hook(lambda _, args, name=name: watch(name, args[0]))
        for name, layer in layers.items()
    ]
    device = next(model.parameters()).device
    samples = make_samples(data, n_samples, torch.Generator().manual_seed(0))
    try:
        with undisturbed(model), torch.no_grad():
            for x, _ in samples.batches(256):
                run(model, apply(lambda t: t.to(device), x))
    finally:
        for handle in handles:
            handle.remove()
    distances = {}
    for name, (count, total) in sums.items():
        if count:
            layer: Any = layers[name]
            squares = (total / count - layer.running_mean).square()
            distances[name] = (squares / (layer.running_var + layer.eps)).mean().sqrt().item()
    return distances
