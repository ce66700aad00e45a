"""Weights that are spread over processes: the DTensors of FSDP2, ``fully_shard``.

What an EWC keeps of a number per weight is spread as the weights are, each process holding its part
of S and μ, and its steps need no communication. Only sums over all weights do, and F: while that is
measured, every process holds whole weights, as for a forward pass without FSDP.

DTensors are known here by their ``full_tensor()``, as importing their class takes seconds.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn


def is_spread(tensor: Any) -> bool:
    """Return whether the tensor is a DTensor."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Any) -> Tensor:
    """Return a tensor of its own, put together from the parts of all processes, each of which must
    call this; an ordinary tensor as it is."""
    return tensor.full_tensor() if is_spread(tensor) else tensor


def spread_like(tensor: Tensor, model: Any) -> Tensor:
    """Return the tensor spread over processes as ``model`` is; all of them must call this.

    Of a whole tensor the first process's is taken.
    """
    if not is_spread(model):
        return whole(tensor)
    from torch.distributed.tensor import distribute_tensor

    if is_spread(tensor):
        spread: Any = tensor
        return spread.redistribute(model.device_mesh, model.placements)
    return distribute_tensor(tensor, model.device_mesh, model.placements)


def take_apart(model: nn.Module) -> None:
    """Let FSDP take weights apart again that it has left whole from a forward pass on, until the
    backward pass, which puts them together anew."""
    if "torch.distributed.fsdp" in sys.modules:
        from torch.distributed.fsdp import FSDPModule

        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def check_saved_by_one(weights: Iterable[Tensor], who: str) -> None:
    """Raise NotImplementedError where one process would write the state of all."""
    if any(map(is_spread, weights)):
        raise NotImplementedError(
            f"{who} writes what the first process holds, which is a part where weights are spread "
            "over processes: take a training loop of your own with EWC.attach(), and "
            "torch.distributed.checkpoint for its state_dict()."
        )


def check_known(model: nn.Module) -> None:
    """Raise NotImplementedError for weights that are taken apart in a way that hides them."""
    for module in model.modules():
        if type(module).__name__ == "FullyShardedDataParallel":
            raise NotImplementedError(
                "model is wrapped in FullyShardedDataParallel, which makes one flat tensor of many "
                "weights: take its successor, torch.distributed.fsdp.fully_shard."
            )
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "ds_tensor"):
            raise NotImplementedError(
                f"Parameter {name!r} is emptied between steps by DeepSpeed's ZeRO-3: take ZeRO-2, "
                "or torch.distributed.fsdp.fully_shard."
            )


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Let every process have whole weights for a while, and run the model without FSDP.

    How each of them is spread is known to :func:`spread_as_before`.
    """
    take_apart(model)
    if not any(map(is_spread, model.parameters())):
        yield
        return
    made: dict[int, Any] = {}  # one for all uses of a tied parameter
    with ExitStack() as stack:
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is None or not is_spread(parameter):
                    continue
                if id(parameter) not in made:
                    one: Any = nn.Parameter(whole(parameter.detach()), parameter.requires_grad)
                    one._spread_as = parameter
                    made[id(parameter)] = one
                stack.callback(module._parameters.__setitem__, name, parameter)
                module._parameters[name] = made[id(parameter)]
            for hooks in (module._forward_pre_hooks, module._forward_hooks):
                if any(map(_is_of_fsdp, hooks.values())):
                    stack.callback(_restore, hooks, dict(hooks))
                    for key in [key for key, hook in hooks.items() if _is_of_fsdp(hook)]:
                        del hooks[key]
        yield


def spread_as_before(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Return the tensor spread as a parameter is that has been :func:`gathered`."""
    return spread_like(tensor, getattr(parameter, "_spread_as", parameter))


def was_spread(parameter: Tensor) -> bool:
    """Return whether a parameter has been :func:`gathered`."""
    return hasattr(parameter, "_spread_as")


def _is_of_fsdp(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith("torch.distributed.fsdp")


def _restore(hooks: dict[int, Any], before: dict[int, Any]) -> None:
    hooks.clear()
    hooks.update(before)
