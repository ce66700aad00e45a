"""Alternative text: what a figure shows, in words, made from what was drawn in it.

A function that draws is :func:`described`: the first sentence of its docstring says what the
picture is. What it shows is read from the axes (:mod:`words`): what they measure, and where each
curve begins, turns and ends. :func:`write_descriptions` puts the text into every figure that a
notebook shows: in the output's metadata, where an export to HTML takes ``alt`` from, and in the
PNG's own ``Description``.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ParamSpec, TypeVar, overload
from weakref import WeakKeyDictionary

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ewc_tutorial.course.plots.words import sentences

P = ParamSpec("P")
R = TypeVar("R")

_LEADS: WeakKeyDictionary[Axes, str] = WeakKeyDictionary()
#: An alternative text is listened to: beyond this many characters curves are told more briefly.
MOST = 1000


@overload
def described(draw: Callable[P, R]) -> Callable[P, R]: ...
@overload
def described(draw: str) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def described(draw: Any) -> Any:
    """Make a function that draws say what its pictures are.

    Used as ``@described``, it takes the first sentence of the docstring, *Draw …*; as
    ``@described("…")`` that sentence instead.
    """
    if isinstance(draw, str):
        return functools.partial(_described, lead=draw)
    first = " ".join(draw.__doc__.split("\n\n")[0].split())
    first = re.split(r"(?<=[a-z)`λ])\.(?:\s|$)", first)[0]
    first = re.sub(r" ?``\([^`]*\)``,?|(?<=\w), one line per \w+$|``", "", first)
    return _described(draw, lead=re.sub(r"^(?:Draw|Show),? ", "", first))


def _described(draw: Callable[P, R], lead: str) -> Callable[P, R]:
    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> R:
        result = draw(*args, **kwargs)
        found = list(_axes_in(result)) or list(_axes_in([*args, *kwargs.values()]))
        describe(found, lead)
        return result

    return drawn


def describe(drawn: Axes | Figure | Iterable[Axes], lead: str) -> None:
    """Say what a picture is; what it shows is told from its curves."""
    for ax in _axes_in(drawn):
        if ax.get_label() != "<colorbar>":
            _LEADS[ax] = lead[:1].upper() + lead[1:].rstrip(".")


def _axes_in(drawn: Any) -> Iterator[Axes]:
    if isinstance(drawn, Axes):
        yield drawn
    elif isinstance(drawn, Figure):
        yield from drawn.axes
    elif isinstance(drawn, (list, tuple, np.ndarray)):
        for part in drawn:
            yield from _axes_in(part)


def write_descriptions() -> None:
    """From now on, give every figure that this notebook shows its alternative text."""
    from IPython.core.getipython import get_ipython
    from IPython.core.pylabtools import print_figure

    shell = get_ipython()
    if shell is None:
        return
    import matplotlib_inline.backend_inline  # noqa: F401  sets its own formatter at first import

    def show(figure: Figure) -> tuple[bytes, dict[str, str]]:
        text = alternative_text(figure)
        return print_figure(figure, "png", metadata={"Description": text}), {"alt": text}

    shell.display_formatter.formatters["image/png"].for_type(Figure, show)


def alternative_text(figure: Figure) -> str:
    """Return what a figure shows: what it is, its axes, and the course of each curve."""
    panels = [ax for ax in figure.axes if ax.get_visible() and ax.get_label() != "<colorbar>"]
    text = ""
    for detail in (2, 1, 0):
        text = " ".join(sentences(panels, _LEADS, detail))
        if len(text) <= MOST:
            break
    return text
