"""Which layers of a model have Kronecker factors, and their weights as matrices."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from ewc_tutorial.curvature.base import Tensors

#: The layers that have factors, by their exact type: a subclass may compute something else. The
#: last one is what ``nn.MultiheadAttention`` has for its outputs.
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, NonDynamicallyQuantizableLinear)


@dataclass(frozen=True)
class Layer:
    """A block: a weight (O, ...) and, if it is protected as well, its bias (O,).

    Attributes:
        weight, bias: their names.
        transposed: whether the weight is stored as (I, O).
    """

    weight: str
    bias: str | None
    transposed: bool = False

    @property
    def names(self) -> list[str]:
        """The names of its values."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]

    def sides(self, weight: Tensor) -> tuple[int, int]:
        """Return I, with the bias, and O."""
        outputs, inputs = self._oriented(weight).shape
        return inputs + (self.bias is not None), outputs

    def matrix(self, values: Tensors) -> Tensor:
        """Return its values as one matrix (O, I), the bias as the last column."""
        weight = self._oriented(values[self.weight])
        if self.bias is None:
            return weight
        return torch.cat([weight, values[self.bias].unsqueeze(1)], dim=1)

    def parts(self, matrix: Tensor, values: Tensors) -> dict[str, Tensor]:
        """Return a matrix (O, I) as the values that it is made of, in their shapes."""
        weight = matrix if self.bias is None else matrix[:, :-1]
        weight = (weight.T if self.transposed else weight).reshape(values[self.weight].shape)
        if self.bias is None:
            return {self.weight: weight}
        return {self.weight: weight, self.bias: matrix[:, -1]}

    def _oriented(self, weight: Tensor) -> Tensor:
        return weight.T if self.transposed else weight.flatten(1)


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
    users: dict[Tensor | None, list[tuple[nn.Module, str]]] = defaultdict(list)
    for module in model.modules():
        for role, parameter in module._parameters.items():
            users[parameter].append((module, role))
    layers, why = [], dict.fromkeys(values, "no weight of a linear layer or a convolution")
    for path, module in model.named_modules():
        names = {role: f"{path}.{role}" if path else role for role in module._parameters}
        if isinstance(module, nn.Embedding) and names.get("weight") in values:
            why[names["weight"]] = "an embedding, whose inputs are numbers of rows"
        roles = _roles(module)
        # Pruning and weight_norm make the weight of other parameters, at each call anew.
        if roles is None or names.get(roles[0]) not in values:
            continue
        weight, bias = map(module._parameters.get, roles)
        assert weight is not None  # it is among the values
        together = bias is not None and names[roles[1]] in values
        if together and {m for m, _ in users[bias]} != {m for m, _ in users[weight]}:
            why[names[roles[1]]] = f"other modules use it than use {names[roles[0]]}"
            together = False
        layer = Layer(names[roles[0]], names[roles[1]] if together else None, _stored_io(module))
        sides = layer.sides(weight)
        if any(getattr(m, "groups", 1) > 1 for m, _ in users[weight]):
            reason = "a convolution with groups"
        elif any((type(m), role) != (type(module), roles[0]) for m, role in users[weight]):
            reason = "another kind of module shares it"
        elif path.endswith("multihead_attn") and _is_decoder(model, path):
            reason = "packed projections of different inputs"
        elif max(sides) > limit:
            reason = f"a factor would have {max(sides):,} rows, above the limit {limit:,}"
        elif any(fnmatchcase(name, p) for name in layer.names for p in diagonal):
            reason = "named in diagonal"
        elif not weight.is_floating_point():
            reason = "no real numbers"
        else:
            layers.append(layer)
            continue
        why.update(dict.fromkeys(layer.names, reason))
    return layers, why


def layer_of(model: nn.Module, weight: str, values: Tensors, inputs: int) -> Layer | None:
    """Return the block of a weight that has a factor of so many inputs, or None.

    Args:
        model: the network.
        weight: its name.
        values: among which it is, and its bias if that belongs to the block.
        inputs: rows of A.
    """
    path, _, role = weight.rpartition(".")
    module = model.get_submodule(path)
    bias = weight.removesuffix(role) + role.replace("weight", "bias")
    layer = Layer(weight, None, _stored_io(module))
    if values[weight].ndim > 1 and layer.sides(values[weight])[0] < inputs and bias in values:
        layer = replace(layer, bias=bias)
    return layer if values[weight].ndim > 1 else None


def _roles(module: nn.Module) -> tuple[str, str] | None:
    """Return what a module calls the weight that it multiplies with, and its bias."""
    if type(module) in LAYERS or _stored_io(module):
        return "weight", "bias"
    if type(module) is nn.MultiheadAttention and module.in_proj_weight is not None:
        # Queries, keys and values of one input are one linear layer.
        return "in_proj_weight", "in_proj_bias"
    return None


def _stored_io(module: nn.Module) -> bool:
    """Return whether it is the linear layer of GPT-2, whose weight is stored as (I, O)."""
    # Who has one has imported it.
    library = sys.modules.get("transformers.pytorch_utils")
    return type(module) is getattr(library, "Conv1D", None)


def _is_decoder(model: nn.Module, path: str) -> bool:
    return type(model.get_submodule(path.rpartition(".")[0])) is nn.TransformerDecoderLayer
