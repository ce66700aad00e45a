"""A measurement that is killed goes on where it was last saved, to the same bits."""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Hashable
from numbers import Number
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ewc_tutorial.files import replacing
from ewc_tutorial.fisher.inputs import tensors
from ewc_tutorial.fisher.likelihoods.base import Draws, Likelihood
from ewc_tutorial.fisher.samples import Batch

#: Seconds between two savings, or so many times what the last one took, if that is longer.
EVERY, TIMES_ITS_OWN = 60.0, 20.0


class Saved:
    """The sums over the samples so far, in a file.

    Args:
        path: the file; with several processes each adds its number to the name.
        sums: what is saved and restored, in place.
        draws: the random numbers, likewise.
        key: what must be the same for a file to be gone on with.

    Attributes:
        count: of samples in the file, zero if it is not there.

    Raises:
        ValueError: the file belongs to another measurement.
    """

    def __init__(
        self, path: str | os.PathLike[str], sums: dict[str, Tensor], draws: Draws, key: Hashable
    ) -> None:
        self._path = Path(path)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            self._path = self._path.with_name(f"{self._path.name}.{torch.distributed.get_rank()}")
        self._sums, self._draws, self._key = sums, draws, key
        self._next = time.monotonic() + EVERY
        self.count, self.doubt = 0, True
        if self._path.exists():
            self._restore(torch.load(self._path, map_location="cpu", weights_only=True))

    def _restore(self, state: dict[str, Any]) -> None:
        if state["key"] != self._key:
            raise ValueError(
                f"resume={str(self._path)!r} holds another measurement, of other weights, data or "
                "options: delete it, or name another file."
            )
        self.count, self.doubt = state["count"], state["doubt"]
        self._draws.load_state_dict(state["draws"])
        for name, total in self._sums.items():
            total.copy_(state["sums"][name])

    def has(self, count: int, batch: int) -> bool:
        """Return whether the file has a batch already, which ends with so many samples.

        Raises:
            ValueError: it has a part of it.
        """
        if count - batch < self.count < count:
            raise ValueError(
                f"resume={str(self._path)!r} ends after {self.count} samples, in the middle of a "
                "batch: pass the same batches, or delete it."
            )
        return count <= self.count

    def save(self, count: int, doubt: str | bool | None, at_once: bool = False) -> None:
        """Write the file if its time has come."""
        if count < self.count:
            raise ValueError(
                f"resume={str(self._path)!r} has {self.count} samples, but data only {count}: "
                "delete it, or name another file."
            )
        start = time.monotonic()
        if start < self._next and not at_once:
            return
        state = {
            "key": self._key,
            "count": count,
            "doubt": doubt,
            "draws": self._draws.state_dict(),
            "sums": self._sums,
        }
        with replacing(self._path) as file:
            torch.save(state, file)
        now = time.monotonic()
        self._next = now + max(EVERY, TIMES_ITS_OWN * (now - start))


def checksum(tensor: Tensor) -> int:
    """Return a number that tells a tensor from others."""
    numbers = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return zlib.crc32(numbers.data)


def described(rule: Likelihood) -> str:
    """Return what tells a likelihood from others: its class and its options."""
    options: dict[str, object] = {}
    for name, value in vars(rule).items():
        if isinstance(value, Tensor):
            options[name] = checksum(value), tuple(value.shape)
        elif isinstance(value, str | Number | tuple | list | None):
            options[name] = value
        else:  # of which repr() may give an address, another one in each process
            options[name] = type(value).__name__
    return repr((type(rule).__name__, options))


def fingerprint(model: nn.Module, first: Batch | None) -> int:
    """Return a number that tells a model's weights and buffers, and its first data, from others."""
    x, y = (None, None) if first is None else first
    every = [*model.parameters(), *model.buffers(), *([] if x is None else tensors(x))]
    numbers = [checksum(t) for t in (every if y is None else [*every, y])]
    return zlib.crc32(repr(numbers).encode())
