"""Whether two results are the same, and in which sentence they differ."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

import numpy as np


def leaves(value: Any) -> list[tuple[str, np.ndarray]]:
    """Flatten dicts, tuples and lists of tensors, arrays and numbers into named float64 arrays."""
    if isinstance(value, Exception):
        return [(f" raised {type(value).__name__}", np.array(0.0))]
    if isinstance(value, Mapping):
        return [
            (f"[{key!r}]{path}", leaf)
            for key in sorted(value, key=str)
            for path, leaf in leaves(value[key])
        ]
    if isinstance(value, list | tuple):
        return [
            (f"[{i}]{path}", leaf) for i, item in enumerate(value) for path, leaf in leaves(item)
        ]
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    try:
        return [("", np.asarray(value, dtype=np.float64))]
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return [("", np.array(np.nan))]


def same(mine: Any, wanted: Any, rtol: float, right: Any = None) -> bool:
    """Return whether two results agree within ``rtol`` of the largest entry of either's scale.

    The scale of the right answer counts, too: a mistake that cancels everything leaves rounding
    errors, and nobody else's rounding errors are the same.
    """
    mine, wanted = leaves(mine), leaves(wanted)
    if [path for path, _ in mine] != [path for path, _ in wanted]:
        return False
    floor = rtol * max([np.abs(leaf).max(initial=0.0) for _, leaf in leaves(right)], default=0.0)
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


def difference(mine: Any, wanted: Any) -> str:
    """Say where two results differ first; small arrays are drawn beside each other."""
    if other := _built_differently(mine, wanted):
        return other + _beside(mine, wanted)
    for (path, a), (_, b) in zip(leaves(mine), leaves(wanted), strict=True):
        where = f"entry {path} " if path else ""
        if not np.isfinite(a).all():
            return f"{where}is not a finite number." + _beside(a, b)
        error = np.abs(a - b)
        if error.max(initial=0.0) > 0:
            at = np.unravel_index(error.argmax(), a.shape)
            text = f"{where}your {a[at]:.6g}, expected {b[at]:.6g}"
            return (
                f"{text} at index {tuple(map(int, at))}.{_beside(a, b)}" if a.ndim else f"{text}."
            )
    return "it differs by less than can be shown."


#: Arrays of more rows or columns are not drawn.
DRAWN = 8


def _beside(mine: Any, wanted: Any) -> str:
    """Draw two small arrays, yours | target, or nothing where there is nothing to draw."""
    arrays = [_drawable(value) for value in (mine, wanted)]
    if any(array is None for array in arrays) or not any(array.ndim for array in arrays):
        return ""
    left, right = (
        [title, *_rows(array)] for title, array in zip(("yours", "target"), arrays, strict=True)
    )
    width = max(map(len, left))
    lines = (f"  {a:{width}} | {b}".rstrip() for a, b in zip_longest(left, right, fillvalue=""))
    return "\n" + "\n".join(lines)


def _drawable(value: Any) -> np.ndarray | None:
    """Return an array of at most two dimensions and ``DRAWN`` rows and columns, or None."""
    if value is None or isinstance(value, str):
        return None
    try:
        value = value.detach().cpu() if hasattr(value, "detach") else value
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None
    return array if array.ndim <= 2 and max(array.shape, default=0) <= DRAWN else None


def _rows(array: np.ndarray) -> list[str]:
    cells = [[f"{entry:.3g}" for entry in row] for row in np.atleast_2d(array)]
    width = max((len(cell) for row in cells for cell in row), default=0)
    return [" ".join(f"{cell:>{width}}" for cell in row) for row in cells]


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
