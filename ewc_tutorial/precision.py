"""Double precision on devices of which some have none."""

from __future__ import annotations

import torch
from torch import Tensor

#: Kinds of devices without float64: Apple's GPUs.
WITHOUT_FLOAT64 = {"mps"}


def widest(device: torch.device) -> torch.dtype:
    """Return the widest floating-point type of a device: float64, or else float32."""
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64


def double(tensor: Tensor) -> Tensor:
    """Return a tensor in float64, on the CPU if its own device has none."""
    return (tensor.cpu() if tensor.device.type in WITHOUT_FLOAT64 else tensor).double()
