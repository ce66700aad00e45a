"""The likelihoods that a model's outputs can be read by.

* ``base``: what a likelihood is, :class:`Likelihood`: seeds for backward passes;
* ``categorical``: classes and tokens;
* ``independent``: Bernoulli and Gaussian outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

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
) -> Likelihood:
    """Return the likelihood of that name, or the one that is given.

    Raises:
        ValueError: unknown name, or an argument that is out of range or of another likelihood.
    """
    if isinstance(likelihood, Likelihood):
        return likelihood
    if likelihood not in LIKELIHOODS:
        raise ValueError(f"likelihood must be one of {', '.join(LIKELIHOODS)}, not {likelihood!r}.")
    if classes is not None and likelihood != "categorical":
        raise ValueError(f"classes applies to the likelihood 'categorical', not to {likelihood!r}.")
    if likelihood == "categorical":
        return Categorical(_class_indices(classes), ignore_index)
    if likelihood == "bernoulli":
        return Bernoulli()
    if not 0 < variance < float("inf"):
        raise ValueError(f"variance must be a finite positive number, not {variance!r}.")
    return Gaussian(float(variance))


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
