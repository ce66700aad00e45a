"""The Python of the README, and the names that a reader is to put into its place."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

README = Path(__file__).resolve().parent.parent / "README.md"


def examples() -> list[str]:
    """Return the README's blocks of Python, as they stand."""
    return re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)


def data(seed: int) -> torch.utils.data.TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(40, 5, generator=generator)
    return torch.utils.data.TensorDataset(x, torch.randint(3, (40,), generator=generator))


def names_of_the_library() -> dict[str, Any]:
    """Return what the example of a model of one's own leaves open."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return {
        "model": model,
        "old_data": data(1),
        "new_data": data(2),
        "optimizer": optimizer,
        "lr": 0.1,
    }
