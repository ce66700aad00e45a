"""Looks at a model without leaving a trace."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Differentiate in evaluation mode and leave the model and the random state as they were."""
    training = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, None if buffer is None else buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
    ]
    devices = {t.device for t in model.parameters() if t.device.type == "cuda"}
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.random.fork_rng(devices=[device.index for device in devices]))
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.enter_context(_recurrent_layers_step_by_step())
        for kind in {parameter.device.type for parameter in model.parameters()}:
            if torch.is_autocast_enabled(kind):
                # Weights that were cast without a graph, or for several uses at once, would hide
                # uses from the engine.
                dtype = torch.get_autocast_dtype(kind)
                stack.enter_context(torch.autocast(kind, dtype=dtype, cache_enabled=False))
        stack.enter_context(_gradient_hooks_off(model))
        try:
            model.eval()
            yield
        finally:
            for module, was_training in training:
                module.training = was_training
            with torch.no_grad():
                for module, name, buffer, value in buffers:
                    module._buffers[name] = buffer
                    if buffer is not None and not torch.equal(buffer, value):
                        buffer.copy_(value)


@contextmanager
def _gradient_hooks_off(model: nn.Module) -> Iterator[None]:
    """Take the user's hooks off the parameters: they would change gradients or count them."""
    hooks = [(p, p._backward_hooks) for p in model.parameters() if p._backward_hooks]
    for parameter, _ in hooks:
        parameter._backward_hooks = None
    try:
        yield
    finally:
        for parameter, before in hooks:
            parameter._backward_hooks = before


@contextmanager
def _recurrent_layers_step_by_step() -> Iterator[None]:
    """Let recurrent layers multiply where the graph shows it.

    oneDNN's fused LSTM hides its products; cuDNN's layers do, too, and have no backward pass in
    evaluation mode.
    """
    before = torch.backends.mkldnn.enabled
    with torch.backends.cudnn.flags(enabled=False):
        torch.backends.mkldnn.enabled = False
        try:
            yield
        finally:
            torch.backends.mkldnn.enabled = before


@contextmanager
def only_trainable(model: nn.Module, names: Collection[str]) -> Iterator[None]:
    """Let just the parameters ``names`` be trainable for a while."""
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in names)
        yield
    finally:
        for parameter, flag in before.items():
            parameter.requires_grad_(flag)
