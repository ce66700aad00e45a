"""Measures functions side by side on a machine that also does other things."""

from __future__ import annotations

import ctypes
import re
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

Functions = Mapping[str, Callable[[], object]]


def interleaved(functions: Functions, rounds: int) -> dict[str, list[float]]:
    """Return seconds per round and function; each round runs every function once.

    What slows the machine for a while then slows all of them: compare within a round.
    """
    for function in functions.values():  # warm up
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def median_ratio(seconds: Mapping[str, list[float]], name: str, unit: str) -> float:
    """Return the median over rounds of one function's time as a multiple of another's."""
    pairs = zip(seconds[name], seconds[unit], strict=True)
    return statistics.median(a / b for a, b in pairs)


def peak_megabytes(function: Callable[[], object]) -> float | None:
    """Return how far the process's memory rises while the function runs (Linux only)."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        before = _memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # start the high-water mark anew
    except OSError:
        return None
    function()
    return max(0.0, _memory("VmHWM") - before)


def _memory(field: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) / 1024
