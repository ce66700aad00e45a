"""The first cell of every notebook: seed, device, style, and one line that says what runs here."""

from __future__ import annotations

import platform
import warnings

import torch

from ewc_tutorial.course.plots.description import write_descriptions
from ewc_tutorial.course.plots.style import set_style
from ewc_tutorial.course.training import pick_device


def setup(seed: int = 0, device: str = "cpu") -> torch.device:
    """Seed PyTorch, set up the course's figures, print one line of versions, return the device.

    This is the one function of the package that changes global state, and it is for notebooks.

    Args:
        seed: of PyTorch's global random state; the package's own functions take theirs.
        device: ``"cpu"``, where these small networks are fastest and results repeat exactly, or
            ``"auto"`` for the GPU if there is one.

    On the CPU it also keeps PyTorch to one thread: networks as small as these gain nothing from
    more, and sums then come out the same on machines with any number of cores.
    """
    # What torch.func says of PyTorch's own insides is nothing that a reader can act on.
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*is deprecated")
    torch.manual_seed(seed)
    set_style()
    write_descriptions()
    chosen = pick_device(device)
    if chosen.type == "cpu":
        torch.set_num_threads(1)
    name = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else chosen.type
    print(
        f"Python {platform.python_version()}, torch {torch.__version__.split('+')[0]}, "
        f"device: {name}, seed: {seed}"
    )
    return chosen


def below(value: float | torch.Tensor, bound: float) -> str:
    """Return ``"below 1e-06"`` for a value below such a bound, any other value with two digits.

    Of a rounding error it is the size that counts, and that it repeats: its digits do not.
    """
    value = float(torch.as_tensor(value).detach())
    return f"below {bound:g}" if abs(value) < bound else f"{value:.2g}"
