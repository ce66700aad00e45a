"""What a diagnosis is given: F and anchors as other programs keep them, in an object of theirs, by
name, in arrays, or as flat vectors."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ewc_tutorial.ewc import EWC


def by_name(model: nn.Module, argument: str, values: Any) -> dict[str, Tensor]:
    """Return tensors by parameter name, which share their memory with what is given.

    Args:
        model: the network.
        argument: what to call the values in an error.
        values: a mapping from parameter names to tensors, arrays or objects with a tensor in
            ``data`` (as Avalanche has), or a flat vector of all parameters in their order (as
            Mammoth has).

    Raises:
        TypeError: ``values`` has another form.
        ValueError: a vector has another length than the parameters together.
    """
    if isinstance(values, Mapping):
        return {name: _tensor(f"{argument}[{name!r}]", value) for name, value in values.items()}
    vector = _tensor(argument, values)
    everything = dict(model.named_parameters())
    trainable = {name: p for name, p in everything.items() if p.requires_grad}
    for parameters in (trainable, everything):
        if vector.ndim == 1 and len(vector) == sum(p.numel() for p in parameters.values()):
            parts = vector.split([p.numel() for p in parameters.values()])
            shapes = zip(parameters.items(), parts, strict=True)
            return {name: part.view(p.shape) for (name, p), part in shapes}
    raise ValueError(
        f"{argument} must be a mapping by parameter name, or a vector of all "
        f"{sum(p.numel() for p in trainable.values())} trainable parameters in their order, not a "
        f"tensor of shape {tuple(vector.shape)}."
    )


def parts_of(ewc: Any, fisher: Any, anchor: Any, penalty: Any, lam: Any) -> tuple[Any, ...]:
    """Return fisher, anchor, penalty and λ, those of ``ewc`` where they are not given."""

    def first(*names: str) -> Any:
        return next((getattr(ewc, n) for n in names if hasattr(ewc, n)), None)

    if ewc is not None:
        if fisher is None:
            fisher = ewc.stored() if isinstance(ewc, EWC) else first("importance", "fisher")
        anchor = first("anchor", "params") if anchor is None else anchor
        penalty = first("penalty") if penalty is None else penalty
        lam = first("lam") if lam is None else lam
    return fisher, anchor, penalty, lam


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Leave the random states of Python, NumPy and PyTorch as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    cuda = torch.cuda.device_count() if torch.cuda.is_initialized() else 0
    try:
        with torch.random.fork_rng(devices=range(cuda)):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _tensor(what: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor | np.ndarray):
        value = getattr(value, "data", value)
    if isinstance(value, np.ndarray):
        return torch.as_tensor(value)
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{what} must be a tensor, an array or an object with a tensor in .data, or a mapping "
            f"of these by parameter name, not a {type(value).__name__}."
        )
    return value
