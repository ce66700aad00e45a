"""The likelihood of speech recognisers with CTC: p(text | sound), summed over all alignments.

A model gives a distribution over characters and a *blank* for every frame, independent given the
sound. A path (one symbol per frame) stands for the text that is left when repeated symbols are
merged and blanks removed, B(path). So

    p(y | x) = Σ over paths with B(path) = y of Π_t p(path_t | x)    (Graves et al. 2006, eq. 3)

There is no categorical distribution over labels: the sum over all texts of an ``exact`` Fisher has
too many terms. But drawing is easy: a path drawn frame by frame, with B applied, is a draw from
p(y | x) itself, for that is what the sum says. The score is then taken of the *text*, all its
alignments included, and not of the path.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ewc_tutorial.fisher.likelihoods.base import Draws, Likelihood, Seeds
from ewc_tutorial.precision import widest


@dataclass(frozen=True)
class CTC(Likelihood):
    """Logits (B, T, C) with labels (B, 1 + L): how many frames count, then the text.

    The number of frames is −1 where all count; the text is padded with negative numbers.

    Attributes:
        blank: the class of the blank (``config.pad_token_id`` in Transformers).
        zero_infinity: let a text that is too long for its frames count as score zero, as
            ``config.ctc_zero_infinity`` does in training; else it is an error.
    """

    blank: int = 0
    zero_infinity: bool = False

    def seeds(self, estimator: str, outputs: Tensor, labels: Tensor | None, draws: Draws) -> Seeds:
        if estimator not in ("sampled", "empirical"):
            raise ValueError(
                f"estimator {estimator!r} is impossible for CTC, whose possible texts are too many "
                "to go through: take 'sampled' or 'empirical'."
            )
        return super().seeds(estimator, outputs, labels, draws)

    def checked(self, outputs: Tensor, labels: Tensor | None) -> Tensor:
        if outputs.ndim != 3:
            raise ValueError(f"CTC needs logits (B, T, C), not {tuple(outputs.shape)}.")
        if labels is None or labels.ndim != 2 or len(labels) != len(outputs):
            raise ValueError(
                "CTC needs labels (B, 1 + L), the frames that count and the text, not "
                f"{None if labels is None else tuple(labels.shape)}."
            )
        if labels[:, 1:].numel() and (largest := labels[:, 1:].max().item()) >= outputs.shape[-1]:
            raise ValueError(
                f"label {largest} is outside the model's {outputs.shape[-1]} classes "
                f"(0 to {outputs.shape[-1] - 1})."
            )
        if (labels[:, 1:] == self.blank).any():
            raise ValueError(
                f"a text must not have the blank {self.blank} among its labels: pad texts with "
                "negative numbers (-100)."
            )
        return labels

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return −log p(text) of each sample, (B,)."""
        frames, text = self._frames(outputs, labels), labels[:, 1:]
        return functional.ctc_loss(
            outputs.log_softmax(-1).transpose(0, 1),
            text[text >= 0],
            frames,
            (text >= 0).sum(1),
            blank=self.blank,
            reduction="none",
            zero_infinity=self.zero_infinity,
        )

    def score(self, outputs: Tensor, labels: Tensor) -> Tensor:
        with torch.enable_grad():
            z = _wide(outputs).requires_grad_()
            losses = self.losses(z, labels)
            if not losses.isfinite().all():
                i = int((~losses.isfinite()).nonzero()[0])
                raise ValueError(
                    f"a text of {int((labels[i, 1:] >= 0).sum())} symbols cannot be read off "
                    f"{int(self._frames(outputs, labels)[i])} frames: leave such samples out, or "
                    "set ctc_zero_infinity in the model's configuration, as for training."
                )
            (seed,) = torch.autograd.grad(losses.sum(), z)
        return seed.to(outputs.dtype)

    def sample(self, outputs: Tensor, labels: Tensor | None, draws: Draws) -> Tensor:
        cdf = _wide(outputs).softmax(-1).cumsum(-1)
        assert labels is not None  # they hold the numbers of frames
        frames = self._frames(outputs, labels)
        counts = torch.arange(cdf.shape[1], device=cdf.device) < frames[:, None]
        u = torch.zeros_like(cdf[..., 0])
        u[counts] = draws.uniform(u[counts])
        u = u.unsqueeze(-1) * cdf[..., -1:]
        path = torch.searchsorted(cdf, u, right=True).squeeze(-1).clamp(max=cdf.shape[-1] - 1)
        return torch.cat([frames[:, None], self._collapsed(path, counts)], dim=1)

    def factors(self, outputs: Tensor, labels: Tensor | None) -> Iterator[Tensor]:
        raise NotImplementedError

    def mode(self, outputs: Tensor, labels: Tensor | None) -> Tensor:
        raise NotImplementedError

    def n_factors(self, outputs: Tensor) -> int:
        raise NotImplementedError

    def _collapsed(self, path: Tensor, counts: Tensor) -> Tensor:
        """Return B(path): repeats merged, blanks removed, (B, T) padded with −1."""
        kept = counts & (path != self.blank)
        kept[:, 1:] &= path[:, 1:] != path[:, :-1]
        order = (~kept).to(torch.uint8).argsort(dim=1, stable=True)
        return torch.where(kept, path, -1).gather(1, order)

    @staticmethod
    def _frames(outputs: Tensor, labels: Tensor) -> Tensor:
        return torch.where(labels[:, 0] < 0, outputs.shape[1], labels[:, 0])


def _wide(outputs: Tensor) -> Tensor:
    return outputs.detach().to(widest(outputs.device))
