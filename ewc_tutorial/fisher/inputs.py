"""Several named inputs of a model, taken by samples as one tensor is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree


class Inputs:
    """Named tensors with a row per sample; a model gets them as a dictionary.

    It does what the engine does with a tensor of inputs: counts, slices and splits samples.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)

    def map(self, change: Callable[[Tensor], Any]) -> Inputs:
        return Inputs({name: change(tensor) for name, tensor in self.tensors.items()})

    def join(self, other: Inputs) -> Inputs:
        return Inputs({n: torch.cat([t, other.tensors[n]]) for n, t in self.tensors.items()})

    def split(self, size: int) -> list[Inputs]:
        return [self[start : start + size] for start in range(0, len(self), size)]

    def __getitem__(self, rows: Any) -> Inputs:
        return self.map(lambda tensor: tensor[rows])

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))


# So that vmap goes through the samples of each tensor.
_pytree.register_pytree_node(
    Inputs,
    lambda inputs: (list(inputs.tensors.values()), list(inputs.tensors)),
    lambda values, names: Inputs(dict(zip(names, values, strict=True))),
)
