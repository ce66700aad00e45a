"""Figures of notebook 14."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ewc_tutorial.course.plots.description import described


@described
def paired_gains(reports: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw by how many points each method beats the reference, a panel for each setting.

    Args:
        reports: by the panel's title, from :func:`~ewc_tutorial.course.referee.report`, the same
            methods in all. A difference that is not ``clear`` is hollow.
    """
    fig, axes = plt.subplots(1, len(reports), figsize=(2.9 * len(reports), 3.9), sharey=True)
    for ax, (title, report) in zip(np.atleast_1d(axes), reports.items(), strict=True):
        rows = np.arange(len(report))[::-1]
        gain, error = 100 * report.gain.to_numpy(), 100 * report.gain_sem.to_numpy()
        ax.axvline(0, color="0.4", lw=1)
        clear = report.clear.to_numpy(dtype=bool)
        ax.errorbar(gain, rows, xerr=error, fmt="none", ecolor="0.6", capsize=3)
        ax.plot(gain[clear], rows[clear], "o", color="C0", label="clear of zero")
        ax.plot(gain[~clear], rows[~clear], "o", color="0.5", mfc="white", label="not clear")
        edge = 1.15 * np.abs(gain).max() + error.max()
        ax.set(xlim=(-edge, edge), title=title, ylim=(-0.6, len(report) - 0.4))
        ax.set_yticks(rows, report.index)
    fig.supxlabel(
        "accuracy − that of the exact diagonal, in points (± 1 standard error)", fontsize=10
    )
    return fig
