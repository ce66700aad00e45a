"""Waiting for what another process or thread does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def wait_for(condition: Callable[[], object], seconds: float = 240.0) -> None:
    """Return as soon as a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.02)


def run_async(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Return what a coroutine returns.

    It runs in a thread of its own: a browser test before leaves the main one a loop that runs.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()
