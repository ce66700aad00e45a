"""Figures of notebook 10: sounds, CTC paths, and error rates on old and new voices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from ewc_tutorial.course.plots.description import described
from ewc_tutorial.course.plots.style import (
    METHOD_STYLE,
    axes_or_new,
    curve_with_band,
    looks,
    standard_error,
)

VOICES = {"old": "old voices", "new": "new voice"}
#: Looks of ways to learn from corrections that no other notebook has.
LEARNING_STYLE = {
    **METHOD_STYLE,
    "EWC, F of the corrections": {"color": "C3", "linestyle": ":", "marker": "X"},
    "averaging": {"color": "C1", "linestyle": "--", "marker": "^"},
    "EWC, Kronecker factors": {"color": "C4", "linestyle": "-.", "marker": "v"},
    "replay": {"color": "C2", "linestyle": ":", "marker": "D"},
}


@described
def waveform(wave: ArrayLike, rate: int, ax: Axes | None = None, title: str = "") -> Axes:
    """Draw a recording ``(samples,)`` over its time in seconds."""
    ax = axes_or_new(ax, (8.0, 2.0))
    wave = np.asarray(wave)
    ax.plot(np.arange(len(wave)) / rate, wave, color="C0", lw=0.4)
    ax.set(xlabel="time (s)", ylabel="sound pressure", title=title, xlim=(0, len(wave) / rate))
    return ax


@described("how loud each frequency of a recording is over time")
def spectrogram(
    wave: ArrayLike, rate: int, ax: Axes | None = None, title: str = "", top: float = 5000.0
) -> Axes:
    """Draw how loud each frequency is over time, in steps of 5 ms, from 0 to ``top`` hertz."""
    ax = axes_or_new(ax, (8.0, 2.6))
    window, step = round(0.025 * rate), round(0.005 * rate)
    frames = np.lib.stride_tricks.sliding_window_view(np.asarray(wave), window)[::step]
    loudness = np.abs(np.fft.rfft(frames * np.hanning(window), n=1024)).T
    kept = np.fft.rfftfreq(1024, 1 / rate) <= top
    decibel = 20 * np.log10(loudness[kept] / loudness.max() + 1e-4)
    ax.imshow(
        decibel, origin="lower", aspect="auto", cmap="Greys", vmin=-50, vmax=0,
        extent=(0, len(wave) / rate, 0, top / 1000), interpolation="nearest",
    )  # fmt: skip
    ax.grid(visible=False)
    ax.set(xlabel="time (s)", ylabel="frequency (kHz)", title=title)
    return ax


@described
def symbol_frames(
    probabilities: ArrayLike,
    symbols: Sequence[str],
    ax: Axes | None = None,
    title: str = "",
    seconds: float | None = None,
) -> Axes:
    """Draw the probability of each symbol ``(frames, symbols)`` in each frame.

    Args:
        probabilities: rows sum to one.
        symbols: names of the columns.
        ax: where to draw.
        title: above the axes.
        seconds: how long all frames last together; without it the axis counts frames.
    """
    p = np.asarray(probabilities)
    ax = axes_or_new(ax, (8.0, 3.2))
    end = len(p) if seconds is None else seconds
    image = ax.imshow(
        p.T, aspect="auto", cmap="Blues", vmin=0, vmax=1, interpolation="nearest",
        extent=(0, end, len(symbols) - 0.5, -0.5),
    )  # fmt: skip
    ax.set(yticks=range(len(symbols)), title=title, ylabel="symbol")
    ax.set_yticklabels(symbols)
    ax.set_xlabel("frame" if seconds is None else "time (s)")
    ax.grid(visible=False)
    ax.figure.colorbar(image, ax=ax, label="probability", pad=0.01)
    return ax


@described
def learning_losses(runs: Mapping[str, Sequence[Mapping[str, float]]]) -> Sequence[Axes]:
    """Draw the loss on the corrections and the penalty over steps, a curve per training.

    Args:
        runs: what the training is called → its ``step``, ``loss`` and ``penalty``, as the service
            gives them.
    """
    _, axes = plt.subplots(1, 2, figsize=(9.0, 3.2))
    lines = looks(runs, first=("C7", "C0", "C2"), markers=False)
    for rows, look in zip(runs.values(), lines, strict=True):
        steps = [row["step"] for row in rows]
        axes[0].plot(steps, [row["loss"] for row in rows], **look)
        penalty = [row["penalty"] for row in rows]
        if any(penalty):
            axes[1].plot(steps, penalty, **look)
    axes[0].set(xlabel="step", ylabel="−log p(text | sound)\nper recording", yscale="log")
    axes[1].set(xlabel="step", ylabel="penalty")
    for ax in axes:
        ax.legend(fontsize="small")
    return axes


@described
def error_rate_moves(
    moves: Mapping[str, tuple[Mapping[str, float], Mapping[str, float]]], ax: Axes | None = None
) -> Axes:
    """Draw, per training, how the word error rates on old and new voices have moved.

    Args:
        moves: name of the training → rates before and after, each with ``old`` and ``new``.
        ax: where to draw.
    """
    ax = axes_or_new(ax, (7.5, 0.9 + 0.8 * len(moves)))
    for row, (before, after) in enumerate(moves.values()):
        for key, shift, color, marker in (("old", -0.16, "C0", "o"), ("new", 0.16, "C1", "s")):
            start, end, y = 100 * before[key], 100 * after[key], row + shift
            ax.annotate(
                "", (end, y), (start, y),
                arrowprops={"arrowstyle": "->", "color": color, "lw": 1.8, "shrinkB": 4},
            )  # fmt: skip
            ax.plot(start, y, marker, color="white", markeredgecolor=color, markersize=8)
            ax.plot(
                end, y, marker, color=color, markersize=8,
                label=VOICES[key] if row == 0 else None,
            )  # fmt: skip
            ax.annotate(
                f"{end:.0f} %", (end, y), (0, 7), textcoords="offset points", ha="center",
                fontsize="small", color=color,
            )  # fmt: skip
    ax.set(yticks=range(len(moves)), ylim=(len(moves) - 0.4, -0.6), xlabel="word error rate (%)")
    ax.set_yticklabels(moves)
    ax.set_xlim(left=-4)
    ax.grid(visible=False, axis="y")
    legend = ax.legend(
        loc="upper left", bbox_to_anchor=(1.01, 1), fontsize="small", alignment="left",
        title="hollow: before,\nfull: after",
    )  # fmt: skip
    legend.get_title().set_fontsize("small")
    return ax


@described
def error_rates_by_lambda(
    lambdas: Sequence[float],
    old: ArrayLike,
    new: ArrayLike,
    plain: tuple[ArrayLike, ArrayLike],
    ax: Axes | None = None,
    bayes: float | None = None,
    title: str = "",
) -> Axes:
    """Draw word error rates on old and new voices over λ, with plain fine-tuning as dashed lines.

    Args:
        lambdas: ``(K,)``, increasing.
        old, new: rates ``(seeds, K)`` in [0, …].
        plain: rates without penalty on old and new voices, ``(seeds,)`` each.
        ax: where to draw.
        bayes: marks N_A / N_B.
        title: above the axes.
    """
    ax = axes_or_new(ax, (6.0, 3.6))
    for rates, reference, name, color, marker in (
        (old, plain[0], VOICES["old"], "C0", "o"),
        (new, plain[1], VOICES["new"], "C1", "s"),
    ):
        look = {"color": color, "marker": marker, "label": name}
        curve_with_band(ax, lambdas, 100 * np.asarray(rates), **look)
        ax.axhline(100 * np.mean(reference), color=color, ls="--", lw=1)
    if bayes is not None:
        ax.axvline(bayes, color="0.4", ls=":", label="$N_A/N_B$")
    ax.set(xscale="log", xlabel="λ", ylabel="word error rate (%)", title=title)
    ax.set_ylim(bottom=0)
    ax.legend(fontsize="small")
    return ax


@described
def damage_and_gain(
    fractions: Sequence[float], old: ArrayLike, new: ArrayLike, ax: Axes | None = None
) -> Axes:
    """Draw how much of the damage is done and how much of the gain is missing on the straight line.

    Both are shares of the change in loss from one end of the line to the other; a dotted line is
    what a loss would do that changes by the same amount everywhere.

    Args:
        fractions: ``(K,)`` parts of the way from the old weights (0) to the new (1), both included.
        old, new: losses on old and new voices there, ``(seeds, K)``.
        ax: where to draw.
    """
    ax = axes_or_new(ax, (6.0, 3.6))
    old, new = (np.asarray(losses, dtype=float) for losses in (old, new))
    damage = (old - old[:, :1]) / (old[:, -1:] - old[:, :1])
    missing = (new - new[:, -1:]) / (new[:, :1] - new[:, -1:])
    ax.plot([0, 1], [0, 100], color="C0", ls=":", lw=1)
    ax.plot([0, 1], [100, 0], color="C1", ls=":", lw=1)
    for shares, name, color, marker, line in (
        (damage, "damage to the old voices", "C0", "o", "-"),
        (missing, "gain on the new voice, missing", "C1", "s", "--"),
    ):
        look = {"color": color, "marker": marker, "linestyle": line, "label": name}
        curve_with_band(ax, fractions, 100 * shares, **look)
    ax.set(xlabel="part of the way from the old weights to the new", ylabel="share of the loss (%)")
    ax.legend(fontsize="small", loc="upper center")
    return ax


@described
def error_trade_off(
    runs: Mapping[str, tuple[ArrayLike, ArrayLike]],
    ax: Axes | None = None,
    lambdas: Mapping[str, Sequence[float | str]] | None = None,
) -> Axes:
    """Draw ways to learn in the plane of both word error rates; lower left is better.

    Args:
        runs: name (a key of :data:`LEARNING_STYLE`) → rates on new and on old voices, each
            ``(seeds, K)`` in [0, …]; the K points of a run, its λ, are joined in their order.
        ax: where to draw.
        lambdas: name → the K values of λ, or other words, written at the points.
    """
    ax = axes_or_new(ax, (6.4, 4.4))
    styles = {name: look | {"label": name} for name, look in LEARNING_STYLE.items()}
    for (name, (new, old)), look in zip(runs.items(), looks(runs, styles), strict=True):
        x, y = (100 * np.atleast_2d(np.asarray(r, dtype=float)) for r in (new, old))
        ax.errorbar(
            x.mean(axis=0), y.mean(axis=0), xerr=standard_error(x), yerr=standard_error(y),
            capsize=2, elinewidth=0.8, markersize=7, **look,
        )  # fmt: skip
        # Below the lowest curves and above the others, where nothing else is.
        side = {"xytext": (-5, -5), "ha": "right", "va": "top"}
        if name not in ("EWC", "averaging"):
            side = {"xytext": (5, 5), "ha": "left", "va": "bottom"}
        values = (lambdas or {}).get(name, ())
        for at_x, at_y, lam in zip(x.mean(axis=0), y.mean(axis=0), values, strict=False):
            ax.annotate(
                lam if isinstance(lam, str) else f"{lam:,g}", (at_x, at_y),
                textcoords="offset points", fontsize="x-small", color=look["color"], **side,
            )  # fmt: skip
    ax.set(
        xlabel="word error rate on the new voice (%)", ylabel="word error rate on old voices (%)"
    )
    ax.set_xlim(left=0)
    ax.set_ylim(bottom=0)
    ax.legend(fontsize="small")
    return ax
