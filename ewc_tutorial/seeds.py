"""Small parts of a pass over the data: its random numbers, and its seeds at the model's outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor


class Draws:
    """Random numbers, of which the i-th depends on the generator alone, not on the batch size.

    They are drawn in blocks of a fixed size: how many numbers are asked for at a time changes what
    PyTorch's generators return.
    """

    BLOCK = 4096

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator
        self._rest: dict[str, Tensor] = {}

    def uniform(self, like: Tensor) -> Tensor:
        """Return numbers from [0, 1) in the shape and on the device of ``like``, in float64."""
        return self._take("rand", like)

    def normal(self, like: Tensor) -> Tensor:
        """Return standard normal numbers in the shape and on the device of ``like``."""
        return self._take("randn", like)

    def _take(self, kind: str, like: Tensor) -> Tensor:
        pieces = [self._rest.get(kind, torch.empty(0, dtype=torch.float64))]
        while sum(len(piece) for piece in pieces) < like.numel():
            block = getattr(torch, kind)(
                self.BLOCK,
                generator=self._generator,
                device=self._generator.device,
                dtype=torch.float64,
            )
            pieces.append(block.cpu())
        numbers = torch.cat(pieces)
        self._rest[kind] = numbers[like.numel() :]
        # Not every device knows float64.
        return numbers[: like.numel()].reshape(like.shape).to(like.dtype).to(like.device)


class Seeds:
    """The seeds of a batch, each in the shape of the outputs, made anew each time they are read."""

    def __init__(self, make: Callable[[], Iterator[Tensor]], length: int) -> None:
        self._make = make
        self._length = length

    def __iter__(self) -> Iterator[Tensor]:
        return self._make()

    def __len__(self) -> int:
        return self._length
