"""Remembers the plans of models, so that the probe is not made anew at each call.

A plan must not outlive what it was found out about. It is kept with the model, for one state of its
modules' classes, attributes and hooks, of its parameters and of autocast, and for one kind of
inputs. What these do not show (a global variable, a list that has changed) shows in the graph of
the first batch: the plan holds only if that is, operation by operation and shape by shape, as it
was for a batch of that size before.
"""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ewc_tutorial.fisher.inputs import Inputs, tensors
from ewc_tutorial.fisher.probe import Plan

#: Kinds of inputs that are remembered for each model.
KINDS_KEPT = 16
#: Containers that are longer are known by what they are, not by what is in them.
LONGEST = 100

_plans: WeakKeyDictionary[nn.Module, dict[Hashable, Remembered]] = WeakKeyDictionary()


class Remembered:
    """A plan, and the graphs that it was right for.

    Attributes:
        plan: the plan.
        graphs: by the size of the batch, a number that two graphs share only if they are alike.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.graphs: dict[int, int] = {}


def recall(model: nn.Module, kind: Hashable) -> Remembered | None:
    """Return what is remembered of a model and kind of inputs, or None."""
    with suppress(TypeError):  # a module with an == of its own has no place in a dictionary
        return _plans.get(model, {}).get(kind)
    return None


def remember(model: nn.Module, kind: Hashable, plan: Plan, batch: int, graph: int) -> None:
    """Keep a plan that was right for a graph."""
    with suppress(TypeError):
        known = _plans.setdefault(model, {})
        if kind not in known and len(known) >= KINDS_KEPT:
            known.clear()
        if kind not in known or known[kind].plan != plan:
            known[kind] = Remembered(plan)
        known[kind].graphs[batch] = graph


def state_of(model: nn.Module) -> Hashable:
    """Return what a plan depends on in a model, as far as its modules show it."""
    modules = tuple(
        (type(m), type(m).forward, *m._forward_hooks, None, *m._forward_pre_hooks, _frozen(vars(m)))
        for m in model.modules()
    )
    numbers: dict[int, int] = {}  # the same for tied parameters
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    return modules, tuple(
        (name, numbers.setdefault(id(t), len(numbers)), t.shape, t.dtype, t.device, t.requires_grad)
        for name, t in named
    )


def kind_of(x: Inputs) -> Hashable:
    """Return what a plan depends on in inputs, and in what they will be calculated with."""
    shapes = tuple((t.shape[1:], t.dtype) for t in tensors(x))
    device = tensors(x)[0].device.type
    autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
    return shapes, () if isinstance(x, torch.Tensor) else tuple(x), autocast


def _frozen(value: Any) -> Hashable:
    """Return plain values as they are, containers of them as tuples, and of others which it is."""
    if isinstance(value, (bool, int, float, str, type(None), torch.dtype)):
        return value
    if isinstance(value, (tuple, list)) and len(value) <= LONGEST:
        return tuple(map(_frozen, value))
    if isinstance(value, dict) and len(value) <= LONGEST:
        # The keys, too, might be modules, which are not to be kept alive here.
        return tuple((_frozen(k), _frozen(v)) for k, v in value.items() if k not in _SEEN_ELSEWHERE)
    return id(value)


#: Attributes of a module that :func:`state_of` looks at more closely, or that do not matter.
_SEEN_ELSEWHERE = {"_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks"}
