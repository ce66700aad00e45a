"""Records what the closed forms need from a forward pass: layer inputs, and where to ask for g.

A forward hook keeps the input a of every layer that has a rule, and the place in the autograd graph
where the gradient g by its output will appear. ``torch.autograd.grad`` is then asked for these g
alone, so that no weight gradient is ever computed.

A hook sees only calls of its module. A parameter that is also used elsewhere
(``F.linear(x, layer.weight)``, a weight norm, a module whose ``forward`` is called directly) would
be given the Fisher information of some of its uses. The graph knows better: it has one edge into a
parameter for each use, and :class:`Graph` counts them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from ewc_tutorial.layer_rules import has_rule


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

    @property
    def intact(self) -> bool:
        """Whether the input still holds what the layer saw."""
        return self.a._version == self.version


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
        if self._calls is None or not output.requires_grad:
            return
        (a,) = args or kwargs.values()
        # An in-place activation moves a view's history to the view's base, so ask at the base.
        base = output._base if output._is_view() else None
        if base is not None and base.numel() == output.numel() and base.requires_grad:
            output = base
        a = a.detach()
        self._calls.append(Call(layer, a, a._version, get_gradient_edge(output)))


class Graph:
    """The autograd graph behind some outputs.

    Attributes:
        nodes: the operations that a gradient of the outputs passes through.
        uses: how often each leaf enters them.
    """

    def __init__(self, outputs: Tensor) -> None:
        self.uses: Counter[Tensor] = Counter()
        self.nodes = {outputs.grad_fn} - {None}
        front = list(self.nodes)
        while front:
            for node, _ in front.pop().next_functions:
                if hasattr(node, "variable"):  # the node that accumulates into a leaf
                    self.uses[node.variable] += 1
                elif node is not None and node not in self.nodes:
                    self.nodes.add(node)
                    front.append(node)
