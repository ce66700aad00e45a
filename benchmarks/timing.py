"""Measures functions side by side on a machine that also does other things."""

from __future__ import annotations

import ctypes
import re
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

Function = Callable[[], object]


def paired(pairs: Mapping[str, tuple[Function, Function]], rounds: int) -> dict[str, Seconds]:
    """Time functions, each with its unit of comparison right before it, round by round.

    What slows the machine for a moment then slows both: compare within a round.
    """
    for function, unit in pairs.values():  # warm up
        unit()
        function()
    seconds = {name: Seconds() for name in pairs}
    for _ in range(rounds):
        for name, (function, unit) in pairs.items():
            seconds[name].of_unit.append(_seconds(unit))
            seconds[name].of_function.append(_seconds(function))
    return seconds


@dataclass(frozen=True)
class Seconds:
    """What a function and its unit took in each round."""

    of_function: list[float] = field(default_factory=list)
    of_unit: list[float] = field(default_factory=list)

    def median(self) -> float:
        return statistics.median(self.of_function)

    def multiple(self) -> float:
        """Return the median over rounds of the function's time as a multiple of its unit's."""
        pairs = zip(self.of_function, self.of_unit, strict=True)
        return statistics.median(a / b for a, b in pairs)


def _seconds(function: Function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def peak_megabytes(function: Callable[[], object]) -> float | None:
    """Return how far the process's memory rises while the function runs (Linux only)."""
    try:
        start_peak_anew()
        before = memory("VmRSS")
    except OSError:
        return None
    function()
    return max(0.0, memory("VmHWM") - before) / 2**20


def start_peak_anew() -> None:
    """Give back what nobody uses, and forget the high-water mark of the process's memory."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def memory(field: str) -> float:
    """Return a field of the process's status in bytes, such as ``VmHWM``, the peak (Linux only)."""
    status = Path("/proc/self/status").read_text()
    return 1024.0 * int(re.search(rf"{field}:\s+(\d+) kB", status)[1])
