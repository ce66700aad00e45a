"""Likelihoods of outputs that are independent given the inputs: Bernoulli and Gaussian."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ewc_tutorial.fisher.likelihoods.base import Draws, Likelihood, at_least_float32


@dataclass(frozen=True)
class Bernoulli(Likelihood):
    """Independent logits (B,) or (B, K) with labels 0 or 1 of the same shape."""

    def checked(self, outputs: Tensor, labels: Tensor | None) -> Tensor | None:
        if labels is None:
            return None
        _same_shape("bernoulli", outputs, labels)
        outside = labels[(labels != 0) & (labels != 1)]
        if outside.numel():
            raise ValueError(
                f"labels of the likelihood 'bernoulli' must be 0 or 1, not {outside[0].item()}."
            )
        return labels

    def score(self, outputs: Tensor, labels: Tensor) -> Tensor:
        # σ(f) − y, without the cancellation of σ(f) − 1.
        f = at_least_float32(outputs)
        labels = labels.reshape(f.shape)
        return torch.where(labels > 0, -(-f).sigmoid(), f.sigmoid()).to(outputs.dtype)

    def factors(self, outputs: Tensor, labels: Tensor | None) -> Iterator[Tensor]:
        f = at_least_float32(outputs)
        deviation = (f.sigmoid() * (-f).sigmoid()).sqrt()
        return _one_output_at_a_time(deviation.to(outputs.dtype))

    def n_factors(self, outputs: Tensor) -> int:
        return outputs[0].numel()

    def sample(self, outputs: Tensor, labels: Tensor | None, draws: Draws) -> Tensor:
        p = at_least_float32(outputs).sigmoid()
        return draws.uniform(p) < p

    def mode(self, outputs: Tensor, labels: Tensor | None) -> Tensor:
        return outputs > 0


@dataclass(frozen=True)
class Gaussian(Likelihood):
    """Independent outputs (B,) or (B, K) with one fixed variance; labels of the same shape."""

    variance: float = 1.0

    def checked(self, outputs: Tensor, labels: Tensor | None) -> Tensor | None:
        if labels is None:
            return None
        _same_shape("gaussian", outputs, labels)
        if labels.is_complex():
            raise TypeError(f"labels must be real numbers, not {labels.dtype}.")
        return labels.to(torch.promote_types(outputs.dtype, torch.float32))

    def score(self, outputs: Tensor, labels: Tensor) -> Tensor:
        f = at_least_float32(outputs)
        return ((f - labels.reshape(f.shape)) / self.variance).to(outputs.dtype)

    def factors(self, outputs: Tensor, labels: Tensor | None) -> Iterator[Tensor]:
        return _one_output_at_a_time(torch.full_like(outputs, self.variance**-0.5))

    def n_factors(self, outputs: Tensor) -> int:
        return outputs[0].numel()

    def sample(self, outputs: Tensor, labels: Tensor | None, draws: Draws) -> Tensor:
        f = at_least_float32(outputs)
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
