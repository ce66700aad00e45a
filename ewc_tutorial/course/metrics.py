"""Numbers that sum up continual learning. All take arrays and know nothing of models.

R is the accuracy matrix: R[i, j] is the test accuracy on task j after learning task i; T is the
number of tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def average_accuracy(R: ArrayLike) -> float:
    """Return the mean accuracy over all tasks after the last one: (1/T) Σ_j R[T, j].

    Source: Lopez-Paz and Ranzato 2017, equation 2.
    """
    return float(_matrix(R)[-1].mean())


def forgetting(R: ArrayLike) -> float:
    """Return how far accuracy fell from its best: 1/(T−1) Σ_{j<T} (max_{i<T} R[i, j] − R[T, j]).

    Zero for a single task. Source: Chaudhry et al. 2018, equation 3 with k = T. As there, the
    maximum runs over all earlier stages; for tasks that are still to come these are accuracies
    before learning.
    """
    R = _matrix(R)
    if len(R) == 1:
        return 0.0
    return float((R[:-1, :-1].max(axis=0) - R[-1, :-1]).mean())


def backward_transfer(R: ArrayLike) -> float:
    """Return what later learning did to earlier tasks: 1/(T−1) Σ_{j<T} (R[T, j] − R[j, j]).

    Negative values are forgetting; zero for a single task. Source: Lopez-Paz and Ranzato 2017,
    equation 3.
    """
    R = _matrix(R)
    if len(R) == 1:
        return 0.0
    return float((R[-1] - np.diag(R))[:-1].mean())


def forward_transfer(R: ArrayLike, before: ArrayLike) -> float:
    """Return what earlier tasks did for later ones: 1/(T−1) Σ_{j>1} (R[j−1, j] − b_j).

    Args:
        R: ``(T, T)``, the entries above the diagonal included.
        before: ``(T,)``, b, the accuracies of the untrained network.

    Zero for a single task. Source: Lopez-Paz and Ranzato 2017, equation 4.
    """
    R = _matrix(R)
    before = np.asarray(before, dtype=float)
    if before.shape != (len(R),):
        raise ValueError(f"before must have shape ({len(R)},) like R, not {before.shape}.")
    if len(R) == 1:
        return 0.0
    return float((np.diag(R, k=1) - before[1:]).mean())


def fisher_overlap(F1: Any, F2: Any) -> float:
    """Return how far two tasks use the same weights: 1 − ½ ‖√F̂₁ − √F̂₂‖², in [0, 1].

    F̂ is a Fisher diagonal scaled to trace one. 1 means the same weights, 0 disjoint ones.
    Source: Kirkpatrick et al. 2017, section 4.3 of the appendix, for diagonal F.

    Args:
        F1, F2: arrays of one shape, or dicts of such (all their entries are one long diagonal).

    Raises:
        ValueError: the shapes differ, or an entry is negative, or all are zero.
    """
    roots = []
    for name, F in (("F1", F1), ("F2", F2)):
        flat = _flat(F)
        if not np.isfinite(flat).all() or (flat < 0).any() or not flat.any():
            raise ValueError(f"{name} must be finite, not negative, and not all zero.")
        roots.append(np.sqrt(flat / flat.sum()))
    if roots[0].shape != roots[1].shape:
        raise ValueError(
            f"F1 and F2 must have as many entries, not {roots[0].size} and {roots[1].size}."
        )
    return float(1 - 0.5 * np.square(roots[0] - roots[1]).sum())


def disagreement(logits: ArrayLike, others: ArrayLike) -> float:
    """Return the share of inputs that two networks put into different classes.

    Args:
        logits, others: ``(N, C)``; probabilities do as well.
    """
    p, q = _pair(logits, others)
    return float((p.argmax(axis=1) != q.argmax(axis=1)).mean())


def mean_kl(logits: ArrayLike, others: ArrayLike) -> float:
    """Return the mean over inputs of KL(p ‖ q) in nats; p has the first logits, q the second.

    Args:
        logits, others: ``(N, C)``.
    """
    p, q = (a - np.logaddexp.reduce(a, axis=1, keepdims=True) for a in _pair(logits, others))
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def _pair(logits: ArrayLike, others: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    p, q = (
        np.asarray(a.detach().cpu() if hasattr(a, "detach") else a, dtype=float)
        for a in (logits, others)
    )
    if p.ndim != 2 or p.shape != q.shape or not p.size:
        raise ValueError(f"Both need logits of one shape (N, C), not {p.shape} and {q.shape}.")
    return p, q


def freedom(importance: Any, lr: float, lam: float, steps: int) -> NDArray[np.float64]:
    """Return which part of the way a constant push moves a weight that a spring holds, in [0, 1].

    ``steps`` gradient steps of a constant gradient, each followed by the proximal step, move a
    weight by (1 − (1 + x)⁻ⁿ) / (n x) of what they would move it without the spring: x = ηλS,
    n = ``steps``. That is 1 / (1 + x) for one step, 1 where S = 0, and about 1 / (n x) where the
    spring has come to rest long before the end.

    Args:
        importance: S ≥ 0, an array, or a dict of such (all their entries are one long diagonal).
        lr: η ≥ 0, the learning rate.
        lam: λ ≥ 0.
        steps: of training on one task.

    Returns:
        One number per weight, ``(P,)``.

    Raises:
        ValueError: an argument is out of range.
    """
    S = _flat(importance)
    if not np.isfinite(S).all() or (S < 0).any():
        raise ValueError("importance must be finite and not negative.")
    for name, value, least in (("lr", lr, 0.0), ("lam", lam, 0.0), ("steps", steps, 1)):
        if not np.isfinite(value) or value < least:
            raise ValueError(
                f"{name} must be a finite number of at least {least:g}, not {value!r}."
            )
    x = lr * lam * S
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(x > 0, -np.expm1(-steps * np.log1p(x)) / (steps * x), 1.0)


def share_free(importance: Any, lr: float, lam: float, steps: int) -> float:
    """Return the share of weights whose :func:`freedom` is at least one half.

    Arguments and errors as there. An empty ``importance`` is an error, too.
    """
    free = freedom(importance, lr, lam, steps)
    if not free.size:
        raise ValueError("importance must hold at least one weight, but it is empty.")
    return float((free >= 0.5).mean())


def _matrix(R: ArrayLike) -> NDArray[np.float64]:
    R = np.asarray(R, dtype=float)
    if R.ndim != 2 or R.shape[0] != R.shape[1] or not R.size:
        raise ValueError(f"R must be a square accuracy matrix, not of shape {R.shape}.")
    return R


def _flat(F: Any) -> NDArray[np.float64]:
    if isinstance(F, Mapping):
        return np.concatenate([_flat(part) for part in F.values()])
    if hasattr(F, "detach"):
        F = F.detach().cpu()
    return np.asarray(F, dtype=float).ravel()
