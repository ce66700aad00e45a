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
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ewc_tutorial.precision import widest

NEEDS_LABELS = ("empirical", "batched")


class Draws:
    """Random numbers, of which the i-th depends on the generator alone, not on the batch size.

    They are drawn in blocks of a fixed size: how many numbers are asked for at a time changes what
    PyTorch's generators return.
    """

    BLOCK = 4096

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator
        self._rest: dict[str, Tensor] = {}

    def uniform(self, like: Tensor) -> Tensor:
        """Return numbers from [0, 1) in the shape and on the device of ``like``."""
        return self._take("rand", like)

    def normal(self, like: Tensor) -> Tensor:
        """Return standard normal numbers in the shape and on the device of ``like``."""
        return self._take("randn", like)

    def state_dict(self) -> dict[str, Any]:
        """Return where it is."""
        return {"generator": self._generator.get_state(), "rest": dict(self._rest)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was called."""
        self._generator.set_state(state["generator"])
        self._rest = dict(state["rest"])

    def _take(self, kind: str, like: Tensor) -> Tensor:
        dtype = widest(self._generator.device)
        pieces = [self._rest.get(kind, torch.empty(0, dtype=dtype))]
        while sum(len(piece) for piece in pieces) < like.numel():
            block = getattr(torch, kind)(
                self.BLOCK,
                generator=self._generator,
                device=self._generator.device,
                dtype=dtype,
            )
            pieces.append(block.cpu())
        numbers = torch.cat(pieces)
        self._rest[kind] = numbers[like.numel() :]
        # Not every device knows float64.
        return numbers[: like.numel()].reshape(like.shape).to(like.dtype).to(like.device)


class Seeds:
    """The seeds of a batch, each in the shape of the outputs, made anew each time they are read."""

    def __init__(self, make: Callable[[], Iterator[Tensor]], length: int) -> None:
        self._make = make
        self._length = length

    def __iter__(self) -> Iterator[Tensor]:
        return self._make()

    def __len__(self) -> int:
        return self._length


class Likelihood(ABC):
    """p(y | outputs), as far as the Fisher information needs it."""

    @abstractmethod
    def checked(self, outputs: Tensor, labels: Tensor | None) -> Tensor | None:
        """Return the labels as the other methods take them.

        Raises:
            ValueError, TypeError: outputs or labels do not fit.
        """

    def doubt(self, outputs: Tensor, labels: Tensor | None) -> str | None:
        """Return what is wrong with a model all of whose outputs are like these, or None."""
        return None

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
            estimator: ``exact``, ``sampled``, ``empirical``, ``argmax`` or ``batched``.
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
        labels = self.checked(outputs, labels)
        if estimator == "exact":
            return Seeds(lambda: self.factors(outputs, labels), self.n_factors(outputs))
        if estimator == "sampled":
            chosen = self.sample(outputs, labels, draws)
        elif estimator == "argmax":
            chosen = self.mode(outputs, labels)
        else:
            assert labels is not None  # asked for above
            chosen = labels
        return Seeds(lambda: iter([self.score(outputs, chosen)]), 1)


def at_least_float32(outputs: Tensor) -> Tensor:
    """Return the outputs in float32 at least: half precision is too coarse for probabilities."""
    return outputs.detach().to(torch.promote_types(outputs.dtype, torch.float32))
