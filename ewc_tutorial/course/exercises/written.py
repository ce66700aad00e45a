"""An exercise whose answer is a test: it is run on faulty programs and on correct ones."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ewc_tutorial.course.exercises.core import NOT_ATTEMPTED, Function, Result, does_nothing


@dataclass(frozen=True)
class WrittenTest:
    """Ask for a test, and say which mistakes it catches and whether it cries wolf.

    A test fails a program as tests do: by an ``assert`` that does not hold or any other exception.
    It may also return ``False``.

    Attributes:
        answer: a test that catches all.
        made: builds the program of a name, afresh for each run; the seed draws network and data.
        faulty, correct: names of programs.
        least: as many must be caught.
    """

    answer: Function
    made: Callable[[str, int], Any]
    faulty: Sequence[str]
    correct: Sequence[str]
    least: int

    def judge(self, test: Function, *, seed: int = 0) -> Result:
        """Run the test on every program."""
        if does_nothing(test):
            return NOT_ATTEMPTED
        for name in self.correct:
            outcome, why = self._run(test, name, seed)
            if outcome is ...:
                return NOT_ATTEMPTED
            if not outcome:
                return Result(False, f"✗ It cries wolf: the program “{name}” is correct{why}.")
        passed = [name for name in self.faulty if self._run(test, name, seed)[0]]
        caught = [name for name in self.faulty if name not in passed]
        if not caught:
            return Result(False, f"✗ All {len(passed)} faulty programs pass your test.")
        text = f"{len(caught)} of {len(self.faulty)} mistakes caught: {', '.join(caught)}."
        if passed:
            text += f"\n  Still undetected: {', '.join(passed)}."
        text += f"\n  It passes all {len(self.correct)} correct programs."
        if len(caught) < self.least:
            return Result(False, f"✗ {text} Catch at least {self.least}.")
        return Result(True, f"✓ {text}")

    def answered(self) -> str:
        """Return the source of a test that catches all."""
        return inspect.getsource(self.answer)

    def _run(self, test: Function, name: str, seed: int) -> tuple[Any, str]:
        """Return whether the program passes, and what the test said if not."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                outcome = test(self.made(name, seed))
                return (outcome if outcome is ... else outcome is None or bool(outcome)), ""
            except NotImplementedError:
                return ..., ""
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # what pytest.fail raises is no Exception
                said = f": {error}" if str(error) else ""
                return False, f", and your test raises {type(error).__name__}{said}"
