"""What the Fisher information needs from a likelihood: score vectors at the model's outputs.

The score of a sample is the gradient of log p(y | x, θ) by θ. It is linear in the gradient s of
−log p by the *outputs* f: score = −Jᵀs, with J = ∂f/∂θ. Squared, the sign is gone, so one backward
pass seeded with s gives what one label contributes. For the expectation over all labels any vectors
s_k will do whose outer products sum to the Fisher information of the outputs,

    Σ_k s_k s_kᵀ = E_y[s sᵀ],      since then      diag F = E_y[(Jᵀs)²] = Σ_k (Jᵀs_k)².

A likelihood yields these seeds, already weighted; the engine only sums squares.

Several outputs that are independent given the inputs (the tokens of a sequence, the components of
Bernoulli or Gaussian outputs) have independent scores of mean zero, so that their cross terms
vanish in the expectation: the seeds of ``exact`` then treat one output at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ewc_tutorial.seeds import Draws, Seeds

ESTIMATORS = ("exact", "sampled", "empirical", "argmax", "batched")
LIKELIHOODS = ("categorical", "bernoulli", "gaussian")
NEEDS_LABELS = ("empirical", "batched")


class Likelihood(ABC):
    """p(y | outputs), as far as the Fisher information needs it."""

    @abstractmethod
    def check(self, outputs: Tensor, labels: Tensor | None) -> None:
        """Raise ValueError or TypeError for outputs or labels that do not fit."""

    @abstractmethod
    def score(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return ∂(−log p(labels))/∂outputs, in the shape of ``outputs``."""

    @abstractmethod
    def factors(self, outputs: Tensor, labels: Tensor | None) -> Iterator[Tensor]:
        """Yield seeds s_k with Σ_k s_k s_kᵀ = E_y[s sᵀ] for every sample."""

    @abstractmethod
    def sample(self, outputs: Tensor, labels: Tensor | None, draws: Draws) -> Tensor:
        """Return labels drawn from the model; ``labels`` only says what to ignore."""

    @abstractmethod
    def mode(self, outputs: Tensor, labels: Tensor | None) -> Tensor:
        """Return the likeliest labels; ``labels`` only says what to ignore."""

    @abstractmethod
    def n_factors(self, outputs: Tensor) -> int:
        """Return how many seeds :meth:`factors` yields at most."""

    def seeds(self, estimator: str, outputs: Tensor, labels: Tensor | None, draws: Draws) -> Seeds:
        """Return the seeds of one estimator for a batch.

        Args:
            estimator: one of :data:`ESTIMATORS`.
            outputs: what the model returned, (B, ...), detached.
            labels: (B, ...), or None where the estimator needs none.
            draws: the random numbers for ``sampled``.

        Raises:
            ValueError, TypeError: outputs or labels do not fit the likelihood.
        """
        if labels is None and estimator in NEEDS_LABELS:
            raise ValueError(
                f"estimator {estimator!r} needs labels, but data has none: pass pairs (x, y), or "
                "take the estimator 'exact'."
            )
        self.check(outputs, labels)
        if estimator == "exact":
            return Seeds(lambda: self.factors(outputs, labels), self.n_factors(outputs))
        if estimator == "sampled":
            labels = self.sample(outputs, labels, draws)
        elif estimator == "argmax":
            labels = self.mode(outputs, labels)
        return Seeds(lambda: iter([self.score(outputs, labels)]), 1)


def make_likelihood(
    likelihood: str,
    classes: Sequence[int] | Tensor | None = None,
    ignore_index: int = -100,
    variance: float = 1.0,
) -> Likelihood:
    """Return the likelihood of that name.

    Raises:
        ValueError: unknown name, or an argument that is out of range or of another likelihood.
    """
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


def _wide(outputs: Tensor) -> Tensor:
    """Return the outputs in float32 at least: half precision is too coarse for probabilities."""
    return outputs.detach().to(torch.promote_types(outputs.dtype, torch.float32))


@dataclass(frozen=True, eq=False)
class Categorical(Likelihood):
    """Logits (B, C) with labels (B,), or (B, T, C) with labels (B, T) for tokens.

    Attributes:
        classes: the active classes, ascending, or None for all: the softmax is over them alone,
            so that the other logits get no gradient.
        ignore_index: tokens of this label do not count.
    """

    classes: Tensor | None = None
    ignore_index: int = -100

    def check(self, outputs: Tensor, labels: Tensor | None) -> None:
        if outputs.ndim < 2:
            raise ValueError(
                "likelihood 'categorical' needs logits of shape (B, C) or (B, T, C), but the model "
                f"returned {tuple(outputs.shape)}."
            )
        C = outputs.shape[-1]
        if self.classes is not None and self.classes[-1] >= C:
            raise ValueError(
                f"classes names class {self.classes[-1].item()}, but the model has {C} logits."
            )
        if labels is None:
            return
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise TypeError(f"labels must be whole numbers (int64), not {labels.dtype}.")
        if labels.shape != outputs.shape[:-1]:
            raise ValueError(
                f"labels for logits of shape {tuple(outputs.shape)} must have shape "
                f"{tuple(outputs.shape[:-1])}, not {tuple(labels.shape)}."
            )
        used = labels[self._counts(outputs, labels)]
        outside = used[(used < 0) | (used >= C)]
        if outside.numel():
            raise ValueError(
                f"label {outside[0].item()} is outside the model's {C} classes (0 to {C - 1})."
            )
        if self.classes is not None:
            inactive = used[~torch.isin(used, self.classes.to(used))]
            if inactive.numel():
                raise ValueError(
                    f"label {inactive[0].item()} is not among the active classes "
                    f"{self.classes.tolist()}."
                )

    def score(self, outputs: Tensor, labels: Tensor) -> Tensor:
        p = self._log_p(outputs).exp()
        counts = self._counts(outputs, labels)
        position = torch.where(counts, labels, 0 if self.classes is None else self.classes[0])
        if self.classes is not None:
            position = torch.searchsorted(self.classes.to(position.device), position)
        position = position.unsqueeze(-1)
        # The entry of the label is p − 1. For a certain model that difference has no correct digit
        # left; minus the sum of the other probabilities is the same number with all of them.
        seed = p.scatter(-1, position, 0.0)
        seed = seed.scatter(-1, position, -seed.sum(-1, keepdim=True))
        return self._spread(seed * counts.unsqueeze(-1), outputs)

    def factors(self, outputs: Tensor, labels: Tensor | None) -> Iterator[Tensor]:
        """Yield C − 1 seeds per token: the columns of the Cholesky factor of diag(p) − p pᵀ.

        In closed form (Tanabe and Sagae 1992, theorem 1), with the tail sums q_k = Σ_{j>k} p_j,

            L_kk = √(p_k q_k / q_{k−1}),      L_ik = −(p_i / q_k) L_kk      for i > k.

        Read as breaking a stick: class k against all later ones is one Bernoulli decision, of
        variance p_k q_k / q_{k−1}² and probability q_{k−1} of being reached. The last column is
        zero, hence C − 1 passes and not C. Everything is computed from logarithms, so that the
        seeds keep their relative precision when the model is certain.
        """
        log_p = self._log_p(outputs)
        log_p = log_p.reshape(len(log_p), -1, log_p.shape[-1])
        # q_{k−1} at place k. The clamp keeps −∞ − (−∞) away where logits of −∞ forbid a class.
        log_q = log_p.flip(-1).logcumsumexp(-1).flip(-1).clamp(min=-1e30)
        counts = self._counts(outputs, labels).reshape(log_p.shape[:2])
        for t in range(log_p.shape[1]):
            if not counts[:, t].any():
                continue
            for k in range(log_p.shape[2] - 1):
                seed = torch.zeros_like(log_p)
                seed[:, t, k:] = self._column(log_p[:, t], log_q[:, t], k)
                seed *= counts[:, t, None, None]
                yield self._spread(seed.reshape(*outputs.shape[:-1], -1), outputs)

    def n_factors(self, outputs: Tensor) -> int:
        C = outputs.shape[-1] if self.classes is None else len(self.classes)
        return outputs[0, ..., 0].numel() * (C - 1)

    @staticmethod
    def _column(log_p: Tensor, log_q: Tensor, k: int) -> Tensor:
        """Return column k of the Cholesky factor from its diagonal down, (B, C − k)."""
        diagonal = (0.5 * (log_p[:, k] + log_q[:, k + 1] - log_q[:, k])).exp()
        below = -(log_p[:, k + 1 :] - log_q[:, k + 1, None]).exp() * diagonal[:, None]
        return torch.cat([diagonal[:, None], below], dim=1)

    def sample(self, outputs: Tensor, labels: Tensor | None, draws: Draws) -> Tensor:
        cdf = self._log_p(outputs).exp().cumsum(-1)
        u = draws.uniform(cdf[..., :1]) * cdf[..., -1:]
        return self._as_labels(torch.searchsorted(cdf, u, right=True).squeeze(-1), outputs, labels)

    def mode(self, outputs: Tensor, labels: Tensor | None) -> Tensor:
        return self._as_labels(self._log_p(outputs).argmax(-1), outputs, labels)

    def _as_labels(self, position: Tensor, outputs: Tensor, labels: Tensor | None) -> Tensor:
        if self.classes is None:
            position = position.clamp(max=outputs.shape[-1] - 1)
        else:
            position = self.classes.to(position)[position.clamp(max=len(self.classes) - 1)]
        return torch.where(self._counts(outputs, labels), position, self.ignore_index)

    def _counts(self, outputs: Tensor, labels: Tensor | None) -> Tensor:
        """Return which outputs count: all but the ignored tokens, (B,) or (B, T)."""
        if labels is None or outputs.ndim == 2:
            return torch.ones(outputs.shape[:-1], dtype=torch.bool, device=outputs.device)
        return labels != self.ignore_index

    def _log_p(self, outputs: Tensor) -> Tensor:
        z = _wide(outputs)
        if self.classes is not None:
            z = z.index_select(-1, self.classes.to(z.device))
        return z.log_softmax(-1)

    def _spread(self, seed: Tensor, outputs: Tensor) -> Tensor:
        seed = seed.to(outputs.dtype)
        if self.classes is None:
            return seed
        return torch.zeros_like(outputs).index_copy(-1, self.classes.to(seed.device), seed)


@dataclass(frozen=True)
class Bernoulli(Likelihood):
    """Independent logits (B,) or (B, K) with labels 0 or 1 of the same shape."""

    def check(self, outputs: Tensor, labels: Tensor | None) -> None:
        if labels is None:
            return
        _same_shape("bernoulli", outputs, labels)
        outside = labels[(labels != 0) & (labels != 1)]
        if outside.numel():
            raise ValueError(
                f"labels of the likelihood 'bernoulli' must be 0 or 1, not {outside[0].item()}."
            )

    def score(self, outputs: Tensor, labels: Tensor) -> Tensor:
        # σ(f) − y, without the cancellation of σ(f) − 1.
        f = _wide(outputs)
        labels = labels.reshape(f.shape)
        return torch.where(labels > 0, -(-f).sigmoid(), f.sigmoid()).to(outputs.dtype)

    def factors(self, outputs: Tensor, labels: Tensor | None) -> Iterator[Tensor]:
        f = _wide(outputs)
        deviation = (f.sigmoid() * (-f).sigmoid()).sqrt()
        return _one_output_at_a_time(deviation.to(outputs.dtype))

    def n_factors(self, outputs: Tensor) -> int:
        return outputs[0].numel()

    def sample(self, outputs: Tensor, labels: Tensor | None, draws: Draws) -> Tensor:
        p = _wide(outputs).sigmoid()
        return draws.uniform(p) < p

    def mode(self, outputs: Tensor, labels: Tensor | None) -> Tensor:
        return outputs > 0


@dataclass(frozen=True)
class Gaussian(Likelihood):
    """Independent outputs (B,) or (B, K) with one fixed variance; labels of the same shape."""

    variance: float = 1.0

    def check(self, outputs: Tensor, labels: Tensor | None) -> None:
        if labels is not None:
            _same_shape("gaussian", outputs, labels)

    def score(self, outputs: Tensor, labels: Tensor) -> Tensor:
        f = _wide(outputs)
        return ((f - labels.reshape(f.shape)) / self.variance).to(outputs.dtype)

    def factors(self, outputs: Tensor, labels: Tensor | None) -> Iterator[Tensor]:
        return _one_output_at_a_time(torch.full_like(outputs, self.variance**-0.5))

    def n_factors(self, outputs: Tensor) -> int:
        return outputs[0].numel()

    def sample(self, outputs: Tensor, labels: Tensor | None, draws: Draws) -> Tensor:
        f = _wide(outputs)
        return f + self.variance**0.5 * draws.normal(f)

    def mode(self, outputs: Tensor, labels: Tensor | None) -> Tensor:
        raise ValueError(
            "estimator 'argmax' is zero for the likelihood 'gaussian', whose mode is the model's "
            "own output: take 'exact'."
        )


def _same_shape(likelihood: str, outputs: Tensor, labels: Tensor) -> None:
    # Outputs (B, 1) with labels (B,) are common and leave no doubt.
    squeezed = outputs.shape[:-1] if outputs.ndim > 1 and outputs.shape[-1] == 1 else outputs.shape
    if labels.shape not in (outputs.shape, squeezed):
        raise ValueError(
            f"labels of the likelihood {likelihood!r} must have the shape of the model's outputs "
            f"{tuple(outputs.shape)}, not {tuple(labels.shape)}."
        )


def _one_output_at_a_time(deviation: Tensor) -> Iterator[Tensor]:
    flat = deviation.reshape(len(deviation), -1)
    for k in range(flat.shape[1]):
        seed = torch.zeros_like(flat)
        seed[:, k] = flat[:, k]
        yield seed.reshape(deviation.shape)
