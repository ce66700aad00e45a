"""Records the calls of layers: what they were given, and where to ask for gradients.

A forward hook keeps the input a of every layer that has a closed form, and the place in the
autograd graph where the gradient g by its output will appear. ``torch.autograd.grad`` is then asked
for these g alone, so that no weight gradient is ever computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from ewc_tutorial.fisher.closed_forms.layers import RULES, Part, has_rule


@dataclass(frozen=True)
class Call:
    """One call of a layer.

    Attributes:
        layer: the layer.
        a: its input, detached.
        version: a's version at the call.
        edge: where the gradient by the output will be.
    """

    layer: nn.Module
    a: Tensor
    version: int
    edge: GradientEdge

    def parts(self, batch: int) -> dict[nn.Parameter, Part]:
        """Return what the closed form gives, if the input has rows for each sample."""
        a = self.a
        if a.ndim == 0 or not len(a) or len(a) % batch or a._version != self.version:
            return {}
        rule = RULES[type(self.layer)]
        try:
            with plain_arithmetic(a.device):
                parts = rule(self.layer, wide(a) if a.is_floating_point() else a, batch)
        except RuntimeError:  # its elements cannot be dealt out among the samples
            return {}
        return {
            parameter: parts[name]
            for name, parameter in self.layer._parameters.items()
            if parameter is not None and name in parts
        }


class Recorder:
    """Hooks on the layers that have a rule and a trainable parameter; remove with :meth:`close`."""

    def __init__(self, model: nn.Module) -> None:
        self._calls: list[Call] | None = None
        self._handles = [
            # First in line: a hook of the user's may change the output that the next layer sees.
            module.register_forward_hook(self._record, prepend=True, with_kwargs=True)
            for module in model.modules()
            if has_rule(module) and any(p.requires_grad for p in module.parameters(recurse=False))
        ]

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()

    @contextmanager
    def recording(self) -> Iterator[list[Call]]:
        """Collect the calls that are made inside the block."""
        self._calls = calls = []
        try:
            yield calls
        finally:
            # Later calls are not ours, such as those of activation checkpointing in the backward.
            self._calls = None

    def _record(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> None:
        a = next(iter((*args, *kwargs.values())), None)
        tensors = isinstance(a, Tensor) and isinstance(output, Tensor)
        if self._calls is None or not tensors or not output.requires_grad:
            return
        # An in-place activation moves a view's history to the view's base, so ask at the base.
        base = output._base if output._is_view() else None
        if base is not None and base.numel() == output.numel() and base.requires_grad:
            output = base
        a = a.detach()
        self._calls.append(Call(layer, a, a._version, get_gradient_edge(output)))


def wide(t: Tensor) -> Tensor:
    """Return t in float32 at least, which is what squares are summed in."""
    return t.to(torch.promote_types(t.dtype, torch.float32))


@contextmanager
def plain_arithmetic(device: torch.device) -> Iterator[None]:
    """Compute without a graph and in the precision of the operands."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield
