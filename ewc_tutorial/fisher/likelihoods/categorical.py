"""The likelihood of classes and of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ewc_tutorial.fisher.likelihoods.base import Draws, Likelihood, at_least_float32


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
        # Numbers only for what counts: then padding does not change which ones the others get.
        counts = self._counts(outputs, labels)
        u = torch.zeros_like(cdf[..., 0])
        u[counts] = draws.uniform(u[counts])
        u = u.unsqueeze(-1) * cdf[..., -1:]
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
        z = at_least_float32(outputs)
        if self.classes is not None:
            z = z.index_select(-1, self.classes.to(z.device))
        return z.log_softmax(-1)

    def _spread(self, seed: Tensor, outputs: Tensor) -> Tensor:
        seed = seed.to(outputs.dtype)
        if self.classes is None:
            return seed
        return torch.zeros_like(outputs).index_copy(-1, self.classes.to(seed.device), seed)
