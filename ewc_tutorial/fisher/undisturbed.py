"""Looks at a model without leaving a trace."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Differentiate in evaluation mode and leave the model and the random state as they were."""
    training = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, None if buffer is None else buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
    ]
    was_training, changing = model.training, _that_change_with_their_mode(model)
    kept = [
        (parameter, parameter.detach().clone())
        for module in model.modules()
        if module in changing or getattr(module, "max_norm", None) is not None
        for parameter in module.parameters(recurse=False)
    ]
    devices = {t.device for t in model.parameters() if t.device.type == "cuda"}
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.random.fork_rng(devices=[device.index for device in devices]))
        if devices:
            stack.enter_context(_full_precision())
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
            if changing:
                model.train()  # forget tables that were kept from an earlier evaluation
            were_merged = not _unchanged(kept)
            model.eval()
            if were_merged or not _unchanged(kept):  # adapters merge themselves into a weight
                model.train()
                for module, _ in training:
                    module.training = False
                if was_training:
                    _restore(kept)  # what merging and parting has rounded
            yield
        finally:
            if changing:
                model.train()  # forget those that were kept here
                if not was_training:
                    model.eval()
            _restore(kept)
            for module, mode in training:
                module.training = mode
            with torch.no_grad():
                for module, name, buffer, value in buffers:
                    module._buffers[name] = buffer
                    if buffer is not None and value is not None and not torch.equal(buffer, value):
                        buffer.copy_(value)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Let a GPU multiply in float32 what is in float32.

    By default convolutions round to the ten bits of TensorFloat-32, in ways that depend on the
    size of the batch: samples would seem to influence each other.
    """
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    try:
        matrices, convolutions = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    except RuntimeError:
        # Someone has used the names of PyTorch 2.9, which these raise beside. They come first all
        # the same: Transformers and PyTorch itself read them in the middle of a model.
        parts = (matmul, cudnn.conv, cudnn.rnn)
        before = [part.fp32_precision for part in parts]
        try:
            for part in parts:
                part.fp32_precision = "ieee"
            yield
        finally:
            for part, value in zip(parts, before, strict=True):
                part.fp32_precision = value
        return
    try:
        torch.set_float32_matmul_precision("highest")
        cudnn.allow_tf32 = False
        yield
    finally:
        torch.set_float32_matmul_precision(matrices)
        cudnn.allow_tf32 = convolutions


def _that_change_with_their_mode(model: nn.Module) -> set[nn.Module]:
    """Return the modules with a ``train`` or ``eval`` of their own, which may do more than that."""
    own = (nn.Module.train, nn.Module.eval)
    return {
        module
        for module in model.modules()
        if tuple(getattr(f, "__func__", None) for f in (module.train, module.eval)) != own
    }


def _unchanged(kept: list[tuple[nn.Parameter, Tensor]]) -> bool:
    return all(torch.equal(parameter, value) for parameter, value in kept)


def _restore(kept: list[tuple[nn.Parameter, Tensor]]) -> None:
    with torch.no_grad():
        for parameter, value in kept:
            if not torch.equal(parameter, value):
                parameter.copy_(value)


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
    backends: tuple[Any, ...] = (torch.backends.mkldnn, torch.backends.cudnn)
    before = [backend.enabled for backend in backends]
    try:
        for backend in backends:
            backend.enabled = False
        yield
    finally:
        for backend, enabled in zip(backends, before, strict=True):
            backend.enabled = enabled


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
