"""What stands for the Fisher matrix in the penalty of an :class:`~ewc_tutorial.ewc.EWC`.

Each kind is one file and one class: how it is measured and stored, how tasks combine in it, and
what the penalty, its gradient and its proximal step are.

* ``diagonal``: :class:`Diagonal`, a number per weight (Kirkpatrick et al. 2017), and
  :class:`Identity`, where that number is one;
* ``compact``: :class:`Compact`, a number per weight in a byte, with ``minifloat``, these numbers,
  and ``mapped``, an anchor that stays in its file;
* ``kronecker``: :class:`Kronecker`, two small matrices per layer (Ritter, Botev and Barber 2018),
  with ``layers``, which of them, ``blocks``, what is kept of each and how tasks combine in it, and
  ``subproblem``, its proximal step without a closed form;
* ``base``: what they have in common.

A further kind is a further subclass of :class:`Curvature`: pass an instance of it as ``curvature``.
"""

from __future__ import annotations

import copy

from ewc_tutorial.curvature.base import RULES, Curvature
from ewc_tutorial.curvature.compact import Compact
from ewc_tutorial.curvature.diagonal import Diagonal, Identity
from ewc_tutorial.curvature.kronecker import Kronecker

__all__ = [
    "KINDS",
    "RULES",
    "Compact",
    "Curvature",
    "Diagonal",
    "Identity",
    "Kronecker",
    "make_curvature",
]

#: The kinds that a name is enough for.
KINDS: dict[str, type[Curvature]] = {
    kind.name: kind for kind in (Diagonal, Kronecker, Identity, Compact)
}


def make_curvature(curvature: str | Curvature) -> Curvature:
    """Return a curvature of its own for one EWC, from a name or from one with options.

    Raises:
        ValueError: the name is unknown.
    """
    if isinstance(curvature, Curvature):
        return copy.copy(curvature)
    if curvature not in KINDS:
        raise ValueError(
            f"curvature must be one of {', '.join(KINDS)}, or a Curvature, not {curvature!r}."
        )
    return KINDS[curvature]()
