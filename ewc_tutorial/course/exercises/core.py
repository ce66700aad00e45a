"""What an exercise is, and how an answer to it is judged.

There are two kinds here: an :class:`Exercise` asks for a function, a :class:`Prediction` for the
number that an experiment will give. Any other kind needs the two methods of :class:`Question`.
"""

from __future__ import annotations

import dis
import inspect
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from ewc_tutorial.console import printable
from ewc_tutorial.course.exercises.compare import difference, same

#: Every way into automatic differentiation. All reverse modes end in ``autograd.grad`` or
#: ``backward``, all forward modes in ``make_dual``; the others are there to be called by name.
AUTOGRAD = (
    "requires_grad_",
    "backward",
    "autograd.grad",
    "autograd.functional.jacobian",
    "autograd.functional.hessian",
    "autograd.forward_ad.make_dual",
    "func.grad",
    "func.grad_and_value",
    "func.jacrev",
    "func.jacfwd",
    "func.hessian",
    "func.vjp",
    "func.jvp",
)

Function = Callable[..., Any]
Cases = Sequence[tuple[Any, ...]]


@dataclass(frozen=True, repr=False)
class Result:
    """A verdict: true or false, and shown as the sentence that the reader sees."""

    correct: bool
    text: str

    def __bool__(self) -> bool:
        return self.correct

    def __repr__(self) -> str:
        return printable(self.text)


class Question(Protocol):
    """Anything that a notebook can ``check`` and ``reveal``."""

    def judge(self, *given: Any, seed: int = 0) -> Result:
        """Return the verdict on what the reader has given; each seed tries other cases."""

    def answered(self) -> str:
        """Return the answer as text, for instance its source."""


@dataclass(frozen=True)
class Exercise:
    """An exercise whose answer is a function.

    Attributes:
        answer: the textbook function of :mod:`ewc_tutorial.course.reference`.
        cases: builds fresh lists of arguments to try; called for each function under test, so a
            function that changes its arguments spoils nobody else's. One that takes a seed draws
            other cases for each, and an answer that was typed in for one draw fails in the next.
        mistakes: what a wrong function does, as a sentence to the reader → that wrong function.
        rtol: relative tolerance, against the largest entry of the right answer.
        forbidden: functions that the answer must do without, by their names in ``torch``,
            ``torch.Tensor`` or ``torch.autograd``: ``"func.vmap"``, ``"std"``; all of
            :data:`AUTOGRAD` where a derivative is to be written down.
    """

    answer: Function
    cases: Callable[[], Cases] | Callable[[int], Cases]
    mistakes: Mapping[str, Function] = field(default_factory=dict)
    rtol: float = 1e-4
    forbidden: tuple[str, ...] = ()

    @property
    def draws(self) -> bool:
        """Whether each seed gives other cases."""
        return bool(inspect.signature(self.cases).parameters)

    def drawn(self, seed: int) -> Cases:
        """Return fresh cases: those of the seed, or the only ones there are."""
        return self.cases(seed) if self.draws else self.cases()

    def judge(self, fn: Function, *, seed: int = 0) -> Result:
        """Compare ``fn`` with the answer on every case, and name the mistake if it is known."""
        if does_nothing(fn):  # before the cases are drawn: some of them are trainings
            return NOT_ATTEMPTED
        with _watched(self.forbidden) as called:
            results = self._outputs(fn, seed)
        if any(isinstance(result, NotImplementedError) for result in results):
            return NOT_ATTEMPTED
        if all(result is ... for result in results):
            return NOT_ATTEMPTED
        if called:
            return Result(False, f"✗ Your function calls `{called[0]}`: {self._instead(called[0])}")
        if all(result is None for result in results):
            return _NOTHING_RETURNED
        right = self._outputs(self.answer, seed)
        wrong_cases = [
            number
            for number, (mine, wanted) in enumerate(zip(results, right, strict=True), start=1)
            if not same(mine, wanted, self.rtol)
        ]
        if not wrong_cases:
            return Result(True, f"✓ Right: {len(right)} of {len(right)} cases agree.")
        for sentence, mistake in self.mistakes.items():
            known = self._outputs(mistake, seed)
            if all(
                same(mine, wrong, self.rtol, wanted)
                for mine, wrong, wanted in zip(results, known, right, strict=True)
            ):
                return Result(False, f"✗ {sentence}")
        number = wrong_cases[0]
        mine, wanted = results[number - 1], right[number - 1]
        if isinstance(mine, Exception):
            return Result(False, f"✗ Case {number} raised {type(mine).__name__}: {mine}")
        return Result(False, f"✗ Case {number} of {len(right)} differs: {difference(mine, wanted)}")

    def answered(self) -> str:
        """Return the source of the answer."""
        return inspect.getsource(self.answer)

    @staticmethod
    def _instead(name: str) -> str:
        if name in AUTOGRAD:
            return "this exercise asks for the formula. Write the derivative down."
        return "this exercise is to do without."

    def _outputs(self, fn: Function, seed: int) -> list[Any]:
        """Return the result of every case, or the exception that was raised in its place."""
        found: list[Any] = []
        for arguments in self.drawn(seed):
            try:
                found.append(fn(*arguments))
            except Exception as error:
                found.append(error)
        return found


def number_said(predicted: Any) -> float | Result:
    """Return a prediction as a number, or the verdict on what is none."""
    if predicted is ... or predicted is None:
        return Result(False, "○ Not attempted yet: write your number above and run this again.")
    try:
        number = float(predicted)
    except OverflowError:
        return Result(False, "✗ A prediction is a finite number; this one is too large.")
    except (TypeError, ValueError, RuntimeError):  # the last by a tensor of several numbers
        return Result(False, f"✗ A prediction is one number, not {predicted!r}.")
    if not math.isfinite(number):
        return Result(False, f"✗ A prediction is a finite number, not {number}.")
    return number


@dataclass(frozen=True)
class Prediction:
    """An exercise whose answer is a number, said before the experiment and judged by it.

    ``check(name, predicted, measured)`` stands after the run. Or it makes the run itself, once
    there is a number: ``measured`` is a function of a seed then, another one at each check.

    Attributes:
        why: how the number could have been known, shown by ``reveal``.
        within: how far off is near enough, in the number's own unit.
        factor: or by which factor; for numbers of which the size counts.
        unit: behind the number, with its space: ``" points"``.
        mistakes: what a wrong prediction overlooks, as a sentence → the number that it gives,
            from the measured one.
    """

    why: str
    within: float = 0.0
    factor: float = 1.0
    unit: str = ""
    mistakes: Mapping[str, Callable[[float], float]] = field(default_factory=dict)

    def judge(self, predicted: Any, measured: Any, *, seed: int = 0) -> Result:
        """Say how far the prediction was off."""
        said = number_said(predicted)
        if isinstance(said, Result):
            return said
        found = float(measured(1000 + seed) if callable(measured) else measured)
        both = f"You said {said:.3g}{self.unit}, the run gave {found:.3g}{self.unit}"
        off = self._off(said, found)
        if self._near(said, found):
            return Result(True, f"✓ {both}: {off}.")
        for sentence, wrong in self.mistakes.items():
            if self._near(said, wrong(found)):
                return Result(False, f"✗ {both}: {off}. {sentence}")
        return Result(False, f"✗ {both}: {off}. Why?")

    def answered(self) -> str:
        """Return how the number could have been known."""
        return self.why

    def _near(self, said: float, found: float) -> bool:
        ratio = said / found if found else np.inf
        return abs(said - found) <= self.within or 1 / self.factor <= ratio <= self.factor

    def _off(self, said: float, found: float) -> str:
        if self.factor == 1.0:
            return f"{abs(said - found):.2g}{self.unit} off"
        if not said * found > 0:
            return "not even the sign is the same"
        ratio = said / found
        return f"{max(ratio, 1 / ratio):.2g} times too {'large' if ratio > 1 else 'small'}"


NOT_ATTEMPTED = Result(False, "○ Not attempted yet: write the function above and run this again.")
_NOTHING_RETURNED = Result(
    False,
    "✗ Your function returned nothing (None). End it with `return` and the result: `print` shows a "
    "value, but does not hand it on.",
)


def does_nothing(fn: Function) -> bool:
    """Return whether a function's body is a stub: at most a docstring, ``...`` or ``pass``."""
    code = getattr(fn, "__code__", None)
    if code is None:
        return False
    idle = {"RESUME", "NOP", "LOAD_CONST", "RETURN_VALUE", "RETURN_CONST"}
    names = {instruction.opname for instruction in dis.get_instructions(code)}
    return names <= idle and not set(code.co_consts) - {None, ..., fn.__doc__}


@contextmanager
def _watched(names: Sequence[str]) -> Iterator[list[str]]:
    """Note which of some functions are called meanwhile, under whatever name they were imported."""
    called: list[str] = []
    if not names:
        yield called
        return
    watched = {_known_by(name): name for name in names}

    def see(frame: Any, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code in watched:
            called.append(watched[frame.f_code])
        elif event == "c_call" and argument.__name__ in watched:
            called.append(watched[argument.__name__])

    before = sys.getprofile()
    sys.setprofile(see)
    try:
        yield called
    finally:
        sys.setprofile(before)


def _known_by(name: str) -> Any:
    """Return what a call shows of a function: its code, or its name if it is written in C."""
    for owner in (torch, torch.autograd, torch.Tensor):
        found: Any = owner
        for part in name.split("."):
            found = getattr(found, part, None)
        if found is not None:
            return getattr(inspect.unwrap(found), "__code__", name.split(".")[-1])
    raise ValueError(f"forbidden names {name!r}, but PyTorch has no such function.")
