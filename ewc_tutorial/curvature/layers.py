"""Which layers of a model have Kronecker factors, and their weights as matrices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from ewc_tutorial.curvature.base import Tensors

#: The layers that have factors, by their exact type: a subclass may compute something else.
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Layer:
    """A block: a weight (O, ...) and, if it is protected as well, its bias (O,)."""

    weight: str
    bias: str | None

    @property
    def names(self) -> list[str]:
        """The names of its values."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]

    def matrix(self, values: Tensors) -> Tensor:
        """Return its values as one matrix (O, I), the bias as the last column."""
        weight = values[self.weight].flatten(1)
        if self.bias is None:
            return weight
        return torch.cat([weight, values[self.bias].unsqueeze(1)], dim=1)

    def parts(self, matrix: Tensor, values: Tensors) -> dict[str, Tensor]:
        """Return a matrix (O, I) as the values that it is made of, in their shapes."""
        shape = values[self.weight].shape
        if self.bias is None:
            return {self.weight: matrix.reshape(shape)}
        return {self.weight: matrix[:, :-1].reshape(shape), self.bias: matrix[:, -1]}


def find_layers(
    model: nn.Module, values: Tensors, limit: int, diagonal: Sequence[str]
) -> tuple[list[Layer], dict[str, str]]:
    """Return the layers that get factors, and why each other name gets a diagonal.

    Args:
        model: the network.
        values: its protected parameters, by name.
        limit: the largest side of a factor.
        diagonal: shell patterns of names to leave out.
    """
    users = Counter(p for m in model.modules() for p in m._parameters.values() if p is not None)
    layers, why = [], dict.fromkeys(values, "no weight of a linear layer or a convolution")
    for path, module in model.named_modules():
        own = module._parameters
        names = {kind: f"{path}.{kind}" if path else kind for kind in ("weight", "bias")}
        if type(module) not in LAYERS or names["weight"] not in values:
            continue
        weight = own["weight"]
        bias = own.get("bias") if names["bias"] in values else None
        sides = (weight[0].numel() + (bias is not None), len(weight))
        block = [names["weight"]] + ([] if bias is None else [names["bias"]])
        if getattr(module, "groups", 1) > 1:
            reason = "a convolution with groups"
        elif max(users[p] for p in (weight, bias) if p is not None) > 1:
            reason = "several modules share it"
        elif max(sides) > limit:
            reason = f"a factor would have {max(sides):,} rows, above the limit {limit:,}"
        elif any(fnmatchcase(name, p) for name in block for p in diagonal):
            reason = "named in diagonal"
        elif not weight.is_floating_point():
            reason = "no real numbers"
        else:
            layers.append(Layer(*block) if bias is not None else Layer(block[0], None))
            continue
        why.update(dict.fromkeys(block, reason))
    return layers, why
