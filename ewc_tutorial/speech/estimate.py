"""How long a training still takes, told by what has taken how long so far."""

from __future__ import annotations

import time
from collections.abc import Callable


class Estimate:
    """Counts the seconds of one process; after a resumption it begins anew.

    Args:
        steps: of the learning.
        clock: seconds that only grow.
    """

    def __init__(self, steps: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._steps = steps
        self._clock = clock
        self._began: tuple[int, float] | None = None
        self._hearing: float | None = None

    def heard(self, seconds: float) -> None:
        """Take note of how long a model needs to hear all that is measured on."""
        self._hearing = seconds

    def at_step(self, step: int) -> float | None:
        """Return the seconds from the end of a step to the end of the training, or None at first.

        It ends with one more hearing; walking back over the budget would need more of them.
        """
        now = self._clock()
        if self._began is None:
            self._began = step, now
        first, began = self._began
        if step == first or self._hearing is None:
            return None
        return (now - began) / (step - first) * (self._steps - step) + self._hearing

    def hearings(self, n: int) -> float | None:
        """Return the seconds of ``n`` hearings, or None if none was timed."""
        return None if self._hearing is None else n * self._hearing
