"""The likelihood of classes and of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ewc_tutorial.fisher.likelihoods.base import (
    NEEDS_LABELS,
    Draws,
    Likelihood,
    Seeds,
    at_least_float32,
)


@dataclass(frozen=True, eq=False)
class Categorical(Likelihood):
    """Logits (B, C) with labels (B,), or (B, ..., C) or (B, C, ...) with labels (B, ...).

    Each place of (B, ...), a token or a pixel, has a label of its own. Labels are whole numbers of
    any type, or one-hot in the shape of the outputs.

    Attributes:
        classes: the active classes, ascending, or None for all: the softmax is over them alone,
            so that the other logits get no gradient.
        ignore_index: tokens of this label do not count.
        class_dim: the dimension of the classes in outputs with more than two: −1 for (B, T, C), 1
            for (B, C, H, W). None finds it out by the shape of the labels.
    """

    classes: Tensor | None = None
    ignore_index: int = -100
    class_dim: int | None = None

    def seeds(self, estimator: str, outputs: Tensor, labels: Tensor | None, draws: Draws) -> Seeds:
        if outputs.ndim < 3 or (labels is None and estimator in NEEDS_LABELS):
            return super().seeds(estimator, outputs, labels, draws)
        dim = self._find_class_dim(outputs, labels)
        if labels is not None and labels.shape == outputs.shape:  # one-hot
            labels = labels.movedim(dim, -1)
        found = super().seeds(estimator, outputs.movedim(dim, -1), labels, draws)
        return Seeds(lambda: (s.movedim(-1, dim).contiguous() for s in found), len(found))

    def _find_class_dim(self, outputs: Tensor, labels: Tensor | None) -> int:
        shape, last = tuple(outputs.shape), outputs.ndim - 1
        if self.class_dim is not None:
            if self.class_dim not in {*range(1, outputs.ndim), *range(1 - outputs.ndim, 0)}:
                raise ValueError(
                    f"class_dim must be a dimension of outputs {shape} that does not count "
                    f"samples, not {self.class_dim!r}."
                )
            return self.class_dim % outputs.ndim
        fitting = [1, last]
        if labels is not None and labels.shape != outputs.shape:
            fitting = [d for d in fitting if tuple(labels.shape) == shape[:d] + shape[d + 1 :]]
        if len(fitting) == 2:
            raise ValueError(
                f"logits of shape {shape} {'without' if labels is None else 'and these'} labels "
                "leave open where the classes are: pass class_dim=-1 for (B, ..., C), or "
                "class_dim=1 for (B, C, ...)."
            )
        return fitting[0] if fitting else last

    def checked(self, outputs: Tensor, labels: Tensor | None) -> Tensor | None:
        if outputs.ndim < 2 or outputs.shape[-1] == 1:
            raise ValueError(
                "likelihood 'categorical' needs logits of shape (B, C) or (B, T, C), C > 1, but "
                f"the model returned {tuple(outputs.shape)}: for one logit per decision take "
                "'bernoulli', for regression 'gaussian'."
            )
        C = outputs.shape[-1]
        if self.classes is not None and self.classes[-1] >= C:
            raise ValueError(
                f"classes names class {self.classes[-1].item()}, but the model has {C} logits."
            )
        if self.classes is not None and len(self.classes) == 1:
            raise ValueError(
                f"classes must name two classes or more, not {self.classes.tolist()}: a single one "
                "is certain whatever the weights."
            )
        if labels is None:
            return None
        if labels.shape == outputs.shape:
            labels = _from_one_hot(labels)
        if labels.is_floating_point() or labels.is_complex():
            raise TypeError(
                f"labels must be whole numbers (int64), not {labels.dtype}: take y.long(), or "
                "another likelihood ('bernoulli', 'gaussian')."
            )
        if labels.shape != outputs.shape[:-1]:
            raise ValueError(
                f"labels for logits of shape {tuple(outputs.shape)} must have shape "
                f"{tuple(outputs.shape[:-1])}, not {tuple(labels.shape)}."
            )
        labels = labels.long()
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
        return labels

    def doubt(self, outputs: Tensor, labels: Tensor | None) -> str | None:
        if outputs.ndim < 2:
            return None
        p = at_least_float32(outputs)
        if outputs.ndim > 2:
            p = p.movedim(self._find_class_dim(outputs, labels), -1)
        rounding = 4 * p.shape[-1] * torch.finfo(outputs.dtype).eps
        sums_to_one = ((p.sum(-1) - 1).abs() <= rounding).all()
        if not sums_to_one or not ((p >= 0) & (p <= 1)).all():
            return None
        return (
            "the model's outputs are probabilities: each sample's lie between 0 and 1 and sum to "
            "1. The likelihood 'categorical' needs logits: leave the softmax out of the model, or "
            "return log-probabilities."
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
        # Not of log-probabilities: their rounding makes ties.
        return self._as_labels(self._active(outputs).argmax(-1), outputs, labels)

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

    def _active(self, outputs: Tensor) -> Tensor:
        """Return the logits of the active classes."""
        if self.classes is None:
            return outputs
        return outputs.index_select(-1, self.classes.to(outputs.device))

    def _log_p(self, outputs: Tensor) -> Tensor:
        return at_least_float32(self._active(outputs)).log_softmax(-1)

    def _spread(self, seed: Tensor, outputs: Tensor) -> Tensor:
        seed = seed.to(outputs.dtype)
        if self.classes is None:
            return seed
        return torch.zeros_like(outputs).index_copy(-1, self.classes.to(seed.device), seed)


def _from_one_hot(labels: Tensor) -> Tensor:
    """Return the classes that labels (..., C) name with one 1 and zeros elsewhere."""
    ones = labels == 1
    if not (ones | (labels == 0)).all() or not (ones.sum(-1) == 1).all():
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} have a number per class and are not one-hot, "
            "but a score is taken at one label: pass y.argmax(-1), or None where the estimator "
            "takes its labels from the model."
        )
    return ones.to(torch.uint8).argmax(-1)
