"""The first cell of every notebook: seed, device, style, and one line that says what runs here."""

from __future__ import annotations

import platform

import torch

from ewc_tutorial.course.plots.style import set_style
from ewc_tutorial.course.training import pick_device


def setup(seed: int = 0, device: str = "cpu") -> torch.device:
    """Seed PyTorch, set the course's plotting style, print one line of versions, return the device.

    This is the one function of the package that changes global state, and it is for notebooks.

    Args:
        seed: of PyTorch's global random state; the package's own functions take theirs.
        device: ``"cpu"``, where these small networks are fastest and results repeat exactly, or
            ``"auto"`` for the GPU if there is one.

    On the CPU it also keeps PyTorch to one thread: networks as small as these gain nothing from
    more, and sums then come out the same on machines with any number of cores.
    """
    torch.manual_seed(seed)
    set_style()
    chosen = pick_device(device)
    if chosen.type == "cpu":
        torch.set_num_threads(1)
    name = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else chosen.type
    print(
        f"Python {platform.python_version()}, torch {torch.__version__.split('+')[0]}, "
        f"device: {name}, seed: {seed}"
    )
    return chosen
