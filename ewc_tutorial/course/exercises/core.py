"""What an exercise is, and how an answer to it is judged."""

from __future__ import annotations

import dis
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ewc_tutorial.console import printable

Function = Callable[..., Any]


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    Attributes:
        answer: the textbook function of :mod:`ewc_tutorial.course.reference`.
        cases: builds fresh lists of arguments to try; called for each function under test, so a
            function that changes its arguments spoils nobody else's.
        mistakes: what a wrong function does, as a sentence to the reader → that wrong function.
        rtol: relative tolerance, against the largest entry of the right answer.
    """

    answer: Function
    cases: Callable[[], Sequence[tuple[Any, ...]]]
    mistakes: Mapping[str, Function] = field(default_factory=dict)
    rtol: float = 1e-4


@dataclass(frozen=True, repr=False)
class Result:
    """A verdict: true or false, and shown as the sentence that the reader sees."""

    correct: bool
    text: str

    def __bool__(self) -> bool:
        return self.correct

    def __repr__(self) -> str:
        return printable(self.text)


def judge(exercise: Exercise, fn: Function) -> Result:
    """Compare ``fn`` with the answer on every case, and name the mistake if it is a known one."""
    results = []
    for number, arguments in enumerate(exercise.cases(), start=1):
        try:
            results.append(fn(*arguments))
        except NotImplementedError:
            return _NOT_ATTEMPTED
        except Exception as error:
            return Result(False, f"✗ Case {number} raised {type(error).__name__}: {error}")
    if all(result is ... for result in results) or _does_nothing(fn):
        return _NOT_ATTEMPTED
    if all(result is None for result in results):
        return _NOTHING_RETURNED
    right = _outputs(exercise.answer, exercise)
    wrong_cases = [
        number
        for number, (mine, wanted) in enumerate(zip(results, right, strict=True), start=1)
        if not _same(mine, wanted, exercise.rtol)
    ]
    if not wrong_cases:
        return Result(True, f"✓ Right: {len(right)} of {len(right)} cases agree.")
    for sentence, mistake in exercise.mistakes.items():
        known = _outputs(mistake, exercise)
        if all(
            _same(mine, wrong, exercise.rtol, wanted)
            for mine, wrong, wanted in zip(results, known, right, strict=True)
        ):
            return Result(False, f"✗ {sentence}")
    number = wrong_cases[0]
    return Result(
        False,
        f"✗ Case {number} of {len(right)} differs: "
        f"{_difference(results[number - 1], right[number - 1])}",
    )


_NOT_ATTEMPTED = Result(False, "○ Not attempted yet: write the function above and run this again.")
_NOTHING_RETURNED = Result(
    False,
    "✗ Your function returned nothing (None). End it with `return` and the result: `print` shows a "
    "value, but does not hand it on.",
)


def _does_nothing(fn: Function) -> bool:
    """Return whether a function's body is a stub: at most a docstring, ``...`` or ``pass``."""
    code = getattr(fn, "__code__", None)
    if code is None:
        return False
    idle = {"RESUME", "NOP", "LOAD_CONST", "RETURN_VALUE", "RETURN_CONST"}
    names = {instruction.opname for instruction in dis.get_instructions(code)}
    return names <= idle and not set(code.co_consts) - {None, ..., fn.__doc__}


def _outputs(fn: Function, exercise: Exercise) -> list[Any]:
    return [fn(*arguments) for arguments in exercise.cases()]


def _leaves(value: Any) -> list[tuple[str, np.ndarray]]:
    """Flatten dicts, tuples and lists of tensors, arrays and numbers into named float64 arrays."""
    if isinstance(value, Mapping):
        return [
            (f"[{key!r}]{path}", leaf)
            for key in sorted(value, key=str)
            for path, leaf in _leaves(value[key])
        ]
    if isinstance(value, list | tuple):
        return [
            (f"[{i}]{path}", leaf) for i, item in enumerate(value) for path, leaf in _leaves(item)
        ]
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    try:
        return [("", np.asarray(value, dtype=np.float64))]
    except (TypeError, ValueError):
        return [("", np.array(np.nan))]


def _same(mine: Any, wanted: Any, rtol: float, right: Any = None) -> bool:
    """Return whether two results agree within ``rtol`` of the largest entry of either's scale.

    The scale of the right answer counts, too: a mistake that cancels everything leaves rounding
    errors, and nobody else's rounding errors are the same.
    """
    mine, wanted = _leaves(mine), _leaves(wanted)
    if [path for path, _ in mine] != [path for path, _ in wanted]:
        return False
    floor = rtol * max([np.abs(leaf).max(initial=0.0) for _, leaf in _leaves(right)], default=0.0)
    floor = 0.0 if right is None or not np.isfinite(floor) else floor

    def close(a: np.ndarray, b: np.ndarray) -> bool:
        # A mistake that divides by zero is known by where its NaN and infinities are.
        alike = (a == b) | (np.isnan(a) & np.isnan(b))
        error = np.abs(np.subtract(a, b, where=~alike, out=np.zeros(a.shape)))
        scale = np.abs(b[np.isfinite(b)]).max(initial=1e-30)
        return bool(error.max(initial=0.0) <= max(floor, rtol * scale))

    return all(
        a.shape == b.shape and close(a, b) for (_, a), (_, b) in zip(mine, wanted, strict=True)
    )


def _difference(mine: Any, wanted: Any) -> str:
    if other := _built_differently(mine, wanted):
        return other
    for (path, a), (_, b) in zip(_leaves(mine), _leaves(wanted), strict=True):
        where = f"entry {path} " if path else ""
        if not np.isfinite(a).all():
            return f"{where}is not a finite number."
        error = np.abs(a - b)
        if error.max(initial=0.0) > 0:
            at = np.unravel_index(error.argmax(), a.shape)
            return f"{where}your {a[at]:.6g}, expected {b[at]:.6g}" + (
                f" at index {tuple(map(int, at))}." if a.ndim else "."
            )
    return "it differs by less than can be shown."


def _built_differently(mine: Any, wanted: Any, path: str = "") -> str | None:
    """Return the first place where two results differ in kind, length, keys or shape."""
    keys = _keys(wanted)
    if keys is not None and _keys(mine) == keys:
        for key in keys:
            if other := _built_differently(mine[key], wanted[key], f"{path}[{key!r}]"):
                return other
        return None
    if _kind(mine) == _kind(wanted):
        return None
    where = f"entry {path} is" if path else "it returned"
    return f"{where} {_kind(mine)}, not {_kind(wanted)}."


def _keys(value: Any) -> list[Any] | None:
    if isinstance(value, Mapping):
        return sorted(value, key=str)
    return list(range(len(value))) if isinstance(value, list | tuple) else None


def _kind(value: Any) -> str:
    """Describe a result for the reader, without its numbers."""
    if value is None:
        return "nothing (None)"
    if isinstance(value, Mapping):
        return f"a dict with the keys {', '.join(map(repr, _keys(value)))}" if value else "a dict"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, str) or not hasattr(value, "__float__"):
        return f"a {type(value).__name__}"
    shape = tuple(getattr(value, "shape", ()))
    return f"an array of shape {shape}" if shape else "a number"
