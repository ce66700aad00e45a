"""What axes show, in words: what they measure, and how the curves on them go."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from weakref import WeakKeyDictionary

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.contour import QuadContourSet
from matplotlib.lines import Line2D
from matplotlib.patches import StepPatch
from matplotlib.ticker import FixedFormatter, FuncFormatter
from numpy.typing import ArrayLike

Namer = Callable[[float], str]

_X_NAMERS: WeakKeyDictionary[Axes, Namer] = WeakKeyDictionary()
_GREEK = {"\\theta": "θ", "\\lambda": "λ", "\\log": "log", "\\gamma": "γ", "\\eta": "η"}


def name_places(ax: Axes, name: Namer) -> None:
    """Say how the places of a horizontal axis are called that is not numbered as it is drawn."""
    _X_NAMERS[ax] = name


def sentences(panels: list[Axes], leads: Mapping[Axes, str], detail: int) -> Iterator[str]:
    """Say what panels are and show.

    Args:
        panels: of one figure.
        leads: what a panel is, for those of which it is known.
        detail: 2 tells how curves go, 1 where they begin and end, 0 only what they are called.
    """
    if len(panels) > 1:
        yield f"{len(panels)} panels."
    yield from dict.fromkeys(f"{leads[ax]}." for ax in panels if ax in leads)
    if all(_is_picture(ax) for ax in panels) and len(panels) > 4:
        yield f"Their titles: {', '.join(_title(ax) or 'none' for ax in panels)}."
        yield _first_upper(f"{_grid(panels[0].images[-1].get_array())} in the first.")
        return
    measures = [_measures(ax) for ax in panels]
    common = measures[0] if len(set(measures)) == 1 else ""
    if common:
        yield f"{_first_upper(common)}."
    before: list[tuple[object, ...]] = []
    for place, (ax, measure) in enumerate(zip(panels, measures, strict=True)):
        told = list(_contents(ax, detail))
        drawn = (told, _drawn(ax))
        if drawn in before:
            told = ["the same"]
        before.append(drawn)
        if measure and not common:
            told = [measure, *told]
        if told:
            name = _title(ax)
            if len(panels) > 1:
                name = name or f"panel {place + 1}"
            yield _first_upper(f"{name}: {'; '.join(told)}." if name else f"{'; '.join(told)}.")


def _drawn(ax: Axes) -> list[object]:
    """Return the data of curves and contours, to tell panels apart that are told alike."""
    sets = [drawn for drawn in ax.collections if isinstance(drawn, QuadContourSet)]
    paths = [path.vertices.tolist() for drawn in sets for path in drawn.get_paths()]
    return [line.get_xydata().tolist() for line in ax.get_lines()] + paths


def _is_picture(ax: Axes) -> bool:
    return bool(ax.images) and not ax.get_lines() and not ax.xaxis.get_label_text()


def _title(ax: Axes) -> str:
    return _clean(ax.get_title() or ax.get_title("left"))


def _first_upper(text: str) -> str:
    return text[:1].upper() + text[1:] if text[:1].isascii() else text  # λ stays λ


def _measures(ax: Axes) -> str:
    parts = []
    for axis, way in ((ax.xaxis, "across"), (ax.yaxis, "up")):
        label = _clean(axis.get_label_text() or _shared_label(ax, way))
        if label:
            parts.append(f"{way} {label}{', logarithmic' if axis.get_scale() == 'log' else ''}")
    return "; ".join(parts)


def _shared_label(ax: Axes, way: str) -> str:
    """Return the label of a panel that shares an axis and shows no label of its own."""
    group = ax.get_shared_x_axes() if way == "across" else ax.get_shared_y_axes()
    for other in group.get_siblings(ax):
        label = (other.xaxis if way == "across" else other.yaxis).get_label_text()
        if label:
            return label
    return ""


def _contents(ax: Axes, detail: int) -> Iterator[str]:
    named = {c.lines[0]: c.get_label() for c in ax.containers if isinstance(c, ErrorbarContainer)}
    lines = [(named.get(line) or line.get_label(), line) for line in ax.get_lines()]
    labelled = [(name, line) for name, line in lines if not str(name).startswith("_")]
    if not labelled and not named:
        labelled = [("", line) for _, line in lines if len(line.get_xdata()) > 1][:6]
    plane = any(isinstance(drawn, QuadContourSet) for drawn in ax.collections) or any(
        line.get_linestyle() != "None" and (np.diff(_values(line)[0]) < 0).any()
        for _, line in labelled
    )
    for name, line in labelled:
        told = _line(ax, _clean(str(name)), line, detail, plane)
        if told:
            yield told
    for bars in ax.containers:
        if isinstance(bars, BarContainer) and bars.patches:
            top = max(bars.patches, key=lambda bar: bar.get_height())
            low, high = top.get_x(), top.get_x() + top.get_width()
            yield f"highest bar, {_text(top.get_height())}, from {_text(low)} to {_text(high)}"
    for patch in ax.patches:
        if isinstance(patch, StepPatch):
            values, edges, _ = patch.get_data()
            peak = int(np.argmax(values))
            at = _text((edges[peak] + edges[peak + 1]) / 2)
            yield f"{_clean(str(patch.get_label()))}, peak at {at}"
    yield from _pictures(ax, detail)


def _pictures(ax: Axes, detail: int) -> Iterator[str]:
    for image in ax.images[-1:]:
        yield _grid(image.get_array())
    for drawn in ax.collections:
        if isinstance(drawn, QuadMesh):
            texts = [text.get_text() or "0" for text in ax.texts]
            rows, columns = np.shape(drawn.get_array())
            if detail and len(texts) == rows * columns:
                names = [tick.get_text() for tick in ax.get_yticklabels()]
                names = names if len(names) == rows else [f"row {i + 1}" for i in range(rows)]
                cells = np.reshape(texts, (rows, columns))
                yield ", ".join(
                    f"{name or f'row {i + 1}'}: {' '.join(row)}"
                    for i, (name, row) in enumerate(zip(names, cells, strict=True))
                )
            else:
                yield _grid(drawn.get_array())
    sets = [drawn for drawn in ax.collections if isinstance(drawn, QuadContourSet)]
    if sets:
        yield f"contours of {len(sets)} function{'s' if len(sets) > 1 else ''}"


def _grid(drawn: ArrayLike) -> str:
    values = np.ma.filled(np.ma.asarray(drawn, dtype=float), np.nan)
    rows, columns = values.shape[:2]
    if np.isnan(values).all():
        return f"a picture of {rows} by {columns}"
    row, column = np.unravel_index(int(np.nanargmax(values)), values.shape)[:2]
    low, high = _text(float(np.nanmin(values))), _text(float(np.nanmax(values)))
    place = f"row {row + 1}, column {column + 1}"
    return f"{rows} by {columns} values from {low} to {high}, largest in {place}"


def _values(line: Line2D) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.ravel(np.asarray(v, dtype=float)) for v in line.get_data())


def _line(ax: Axes, name: str, line: Line2D, detail: int, plane: bool) -> str:
    x, y = _values(line)
    if line.get_transform() != ax.transData:  # axvline and axhline
        value = x[0] if len(set(x)) == 1 else y[0]
        return f"{name or 'line'} at {_text(value)}"
    seen = np.isfinite(x) & np.isfinite(y)
    lost, x, y = int((~seen).sum()), x[seen], y[seen]
    if not len(x):
        return ""
    name = name or ("curve" if line.get_linestyle() != "None" else "dots")
    x_name, y_name = _namer(ax, "x"), _namer(ax, "y")
    ends = f", {lost} without a value" if lost else ""
    if detail == 0:
        return name + ends
    if _categories(ax, "y"):
        told = ", ".join(f"{y_name(b)} {x_name(a)}" for a, b in zip(x, y, strict=True))
        return f"{name}: {told}{ends}"
    if len(x) == 1:
        return f"{name} at {x_name(x[0])}, {y_name(y[0])}"
    few = _categories(ax, "x") and len(x) <= 6 and detail > 1
    if few or (line.get_linestyle() == "None" and len(x) <= 12):
        told = ", ".join(f"{x_name(a)} {y_name(b)}" for a, b in zip(x, y, strict=True))
        return f"{name}: {told}{ends}"
    if line.get_linestyle() == "None":
        return f"{name}: {_cloud(x, y)}"
    if plane:  # a way, not a function
        first, last = (f"({_text(x[i])}, {_text(y[i], np.abs(y).max())})" for i in (0, -1))
        return f"{name} from {first} to {last}"
    return f"{name} {_course(x, y, x_name, ax.get_yscale() == 'log', detail)}{ends}"


def _cloud(x: np.ndarray, y: np.ndarray) -> str:
    ranks = np.corrcoef(*(np.argsort(np.argsort(v)) for v in (x, y)))[0, 1]
    across = f"across from {_text(x.min())} to {_text(x.max())}"
    up = f"up from {_text(y.min())} to {_text(y.max())}"
    return f"{len(x):,} dots {across} and {up}, rank correlation {ranks:.2f}"


def _course(x: np.ndarray, y: np.ndarray, x_name: Namer, logarithmic: bool, detail: int) -> str:
    """Return where a curve begins and ends, and where it turns."""
    scale = None if logarithmic else float(np.abs(y).max())
    first, last = _text(y[0], scale), _text(y[-1], scale)
    if detail == 1:
        return f"{first} to {last}"
    height = np.log(np.maximum(y, y[y > 0].min(initial=1.0))) if logarithmic else y
    span = float(np.ptp(height))
    if span <= (0.05 if logarithmic else 0.02 * float(np.abs(y).max())):
        return f"stays near {last}"
    above = float(height.max() - max(height[0], height[-1]))
    below = float(min(height[0], height[-1]) - height.min())
    if max(above, below) <= 0.1 * span:
        return f"{'rises' if height[-1] > height[0] else 'falls'} from {first} to {last}"
    turn = int(height.argmax() if above >= below else height.argmin())
    kind = "highest" if above >= below else "lowest"
    at = f"{kind} at {x_name(x[turn])} with {_text(y[turn], scale)}"
    return f"begins at {first}, is {at}, ends at {last}"


def _categories(ax: Axes, which: str) -> bool:
    """Tell whether an axis has names at its ticks and not numbers."""
    axis = ax.xaxis if which == "x" else ax.yaxis
    if not isinstance(axis.get_major_formatter(), (FixedFormatter, FuncFormatter)):
        return False
    names = axis.get_major_formatter().format_ticks(axis.get_ticklocs())
    return any(re.search(r"[^\W\d_]{2}|[A-Z]", name) for name in names)


def _namer(ax: Axes, which: str) -> Namer:
    if which == "x" and ax in _X_NAMERS:
        return _X_NAMERS[ax]
    axis = ax.xaxis if which == "x" else ax.yaxis
    if not _categories(ax, which):
        return _text
    ticks = list(axis.get_ticklocs())
    names = [_clean(name) for name in axis.get_major_formatter().format_ticks(ticks)]

    def name(value: float) -> str:
        nearest = int(np.argmin(np.abs(np.asarray(ticks) - value)))
        return names[nearest] if nearest < len(names) else _text(value)

    return name


def _text(value: float, scale: float | None = None) -> str:
    """Return a number with three digits, or as precisely as one of the given size with two."""
    if scale:
        value = round(value, 1 - math.floor(math.log10(scale)))
    value = float(f"{value:.3g}")
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e5:
        return re.sub(r"e([+-])0*(\d)", lambda m: f"e{m[1].strip('+')}{m[2]}", f"{value:.3g}")
    return f"{value:,.12g}".replace("-", "−")


def _clean(text: str) -> str:
    """Return a label without line breaks and without the marks of formulas."""
    text = re.sub(r"\$|\\[a-z]+ ?|[{}]", lambda m: _GREEK.get(m[0].strip(), ""), text)
    return " ".join(text.split()).rstrip(":.")
