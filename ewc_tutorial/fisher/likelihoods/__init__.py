"""The likelihoods that a model's outputs can be read by.

* ``base``: what a likelihood is, :class:`Likelihood`: seeds for backward passes;
* ``categorical``: classes and tokens;
* ``independent``: Bernoulli and Gaussian outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ewc_tutorial.fisher.likelihoods.base import Likelihood
from ewc_tutorial.fisher.likelihoods.categorical import Categorical
from ewc_tutorial.fisher.likelihoods.independent import Bernoulli, Gaussian

ESTIMATORS = ("exact", "sampled", "empirical", "argmax", "batched")
LIKELIHOODS = ("categorical", "bernoulli", "gaussian")

__all__ = [
    "ESTIMATORS",
    "LIKELIHOODS",
    "Bernoulli",
    "Categorical",
    "Gaussian",
    "Likelihood",
    "make_likelihood",
]


def make_likelihood(
    likelihood: str | Likelihood,
    classes: Sequence[int] | Tensor | None = None,
    ignore_index: int = -100,
    variance: float = 1.0,
    class_dim: int | None = None,
) -> Likelihood:
    """Return the likelihood of that name, or the one that is given.

    Raises:
        ValueError: unknown name, or an argument that is out of range or of another likelihood.
    """
    if not isinstance(likelihood, Likelihood) and likelihood not in LIKELIHOODS:
        raise ValueError(f"likelihood must be one of {', '.join(LIKELIHOODS)}, not {likelihood!r}.")
    _check_foreign("categorical", likelihood, classes=classes, class_dim=class_dim)
    if ignore_index != -100:
        _check_foreign("categorical", likelihood, ignore_index=ignore_index)
    if variance != 1.0:
        _check_foreign("gaussian", likelihood, variance=variance)
    if isinstance(likelihood, Likelihood):
        return likelihood
    if likelihood == "categorical":
        return Categorical(_class_indices(classes), ignore_index, class_dim)
    if likelihood == "bernoulli":
        return Bernoulli()
    if not 0 < variance < float("inf"):
        raise ValueError(f"variance must be a finite positive number, not {variance!r}.")
    return Gaussian(float(variance))


def _check_foreign(owner: str, likelihood: str | Likelihood, **given: Any) -> None:
    """Raise ValueError if an option of the likelihood ``owner`` is given to another one."""
    names = [name for name, value in given.items() if value is not None]
    if not names or likelihood == owner:
        return
    if isinstance(likelihood, Likelihood):
        raise ValueError(
            f"{names[0]} applies to likelihood={owner!r} by its name: give it to the "
            f"{type(likelihood).__name__} that you pass instead."
        )
    raise ValueError(f"{names[0]} applies to the likelihood {owner!r}, not to {likelihood!r}.")


def _class_indices(classes: Sequence[int] | Tensor | None) -> Tensor | None:
    if classes is None:
        return None
    indices = torch.as_tensor(classes).cpu()
    if indices.dtype == torch.bool:
        indices = indices.nonzero().flatten()
    if indices.ndim != 1 or indices.is_floating_point() or not len(indices) or indices.min() < 0:
        raise ValueError(
            f"classes must be class numbers or a boolean mask with some class on, not {classes!r}."
        )
    return indices.long().unique()
