"""What a choice of λ rests on, in numbers, in a picture and in a sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ewc_tutorial.choice.trainings import Run
from ewc_tutorial.console import printable

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """A quantity at L values of λ: its mean over the seeds, with the standard error of the mean.

    Attributes:
        lams: ``(L,)`` ascending.
        mean, error: ``(L,)``; the error of a single seed is not a number.
        n: ``(L,)``, the number of seeds.
    """

    lams: Numbers
    mean: Numbers
    error: Numbers
    n: NDArray[np.int64]

    @classmethod
    def of(cls, values: Mapping[float, Sequence[float]]) -> Curve:
        lams = sorted(values)
        runs = [np.array(values[lam], float) for lam in lams]
        errors = [r.std(ddof=1) / math.sqrt(len(r)) if len(r) > 1 else math.nan for r in runs]
        means, counts = [r.mean() for r in runs], [len(r) for r in runs]
        return cls(np.array(lams), np.array(means), np.array(errors), np.array(counts))

    def at(self, lam: float) -> str:
        """Return mean ± error at a λ, in words."""
        i = list(self.lams).index(lam)
        return number(self.mean[i], self.error[i])


@dataclass(frozen=True, repr=False)
class Choice:
    """A value of λ, and what is known of it. Printed, it is a table and the sentence.

    Attributes:
        lam: the λ that was chosen.
        sure: whether all other values tried are worse, at a confidence of 95 %.
        unclear: those that are not clearly so, ascending.
        sentence: what was chosen, how sure that is, and what is not known.
        runs: all trainings it rests on.
        curves: ``score`` (what was compared), ``new``, and where there are such ``old`` and
            ``predicted``, each a :class:`Curve`.
        bayes: N_old / N_new, as it was given.
    """

    lam: float
    sure: bool
    unclear: tuple[float, ...]
    sentence: str
    runs: tuple[Run, ...]
    curves: dict[str, Curve]
    bayes: float

    def __repr__(self) -> str:
        names = ["old", "new", "score"] if "old" in self.curves else ["new"]
        names += ["predicted"] if "predicted" in self.curves else []
        head = f"{'λ':>10} {'seeds':>6}" + "".join(f"{name:>20}" for name in names)
        lines = []
        for lam, n in zip(self.curves["new"].lams, self.curves["new"].n, strict=True):
            mark = "*" if lam == self.lam else "~" if lam in self.unclear else " "
            cells = "".join(f"{self.curves[name].at(lam):>20}" for name in names)
            lines.append(f"{lam_text(lam):>10} {n:>6}{cells} {mark}".rstrip())
        return printable("\n".join([head, *lines, self.sentence]))

    def plot(self, ax: Any) -> Any:
        """Draw the curves on Matplotlib's axes, with standard errors, and return the axes.

        A line marks the chosen λ, a dotted one Bayes' value; a band covers what may as well be the
        best. λ = 0 is the left end.
        """
        looks = {
            "old": {"color": "C0", "marker": "o", "ls": "-"},
            "new": {"color": "C1", "marker": "s", "ls": "--"},
            "score": {"color": "0.3", "marker": "D", "ls": "-."},
        }
        for name, look in looks.items():
            if name in self.curves and not (name == "score" and "old" not in self.curves):
                c = self.curves[name]
                ax.errorbar(c.lams, c.mean, c.error, capsize=3, ms=4, label=name, **look)
        positive = [lam for lam in self.curves["new"].lams if lam]
        ax.set_xscale("symlog", linthresh=min(positive), linscale=0.5)
        near = [self.lam, *self.unclear]
        if len(near) > 1:
            ax.axvspan(min(near), max(near), color="0.5", alpha=0.12, lw=0, label="may be best")
        ax.axvline(self.lam, color="0.3", lw=1.2, label=f"chosen: {lam_text(self.lam)}")
        ax.axvline(self.bayes, color="0.3", lw=1.2, ls=":", label=f"Bayes: {lam_text(self.bayes)}")
        ax.set(xlabel="λ", ylabel="metric")
        ax.legend(fontsize="small")
        return ax


def lam_text(lam: float) -> str:
    """Return λ with three digits, and in full up to a million."""
    return f"{lam:,.0f}" if 1000 <= lam < 1e6 else f"{lam:.3g}"


def number(mean: float, error: float) -> str:
    """Return mean ± error with the error's two leading digits."""
    if not math.isfinite(error) or error == 0:
        return f"{mean:.3g}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{mean:.{digits}f} ± {error:.{digits}f}"
