"""λ after training: the way from old weights to new ones, to choose a point on it.

Train on the new task without any penalty, then go back as far as the old one needs. On the straight
line between both ends that is weight averaging (Wortsman et al. 2022, *Robust fine-tuning of
zero-shot models*), :func:`between`. With the Fisher information of both tasks it is
:class:`WeightPath`: if both losses were the parabolas that their Fisher matrices say, its point at
λ would be where training with EWC at that λ ends, without any further training. With diagonals that
is the Fisher-weighted average of Matena and Raffel (2022, equation 4).

Real losses are no parabolas. Whether the path is a good one is to be measured along it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from numbers import Real

import torch
from torch import Tensor

__all__ = ["WeightPath", "between"]


@torch.no_grad()
def between(old: Mapping[str, Tensor], new: Mapping[str, Tensor], t: float) -> dict[str, Tensor]:
    """Return the weights at t of the straight line from ``old`` (t = 0) to ``new`` (t = 1).

    Args:
        old, new: two ``state_dict()`` of one architecture. Tensors of integers, such as BatchNorm's
            counter, are those of the nearer end, and so is everything that is no tensor.
        t: in [0, 1].

    Raises:
        ValueError: t is outside, or names or shapes differ.
    """
    if isinstance(t, bool) or not isinstance(t, Real) or not 0 <= t <= 1:
        raise ValueError(f"t must be between 0 (old) and 1 (new), not {t!r}.")
    if odd := sorted(old.keys() ^ new.keys()):
        raise ValueError(f"old and new must have the same names, but {odd[0]!r} is in one only.")
    found = {}
    for name, end in new.items():
        start = old[name]
        if not isinstance(start, Tensor) or not isinstance(end, Tensor):
            found[name] = end if t >= 0.5 else start
            continue
        if start.shape != end.shape:
            raise ValueError(
                f"{name!r} has shape {tuple(start.shape)} in old, but {tuple(end.shape)} in new."
            )
        if end.is_floating_point() or end.is_complex():
            found[name] = torch.lerp(start.to(end), end, t)
        else:
            found[name] = (end if t >= 0.5 else start).clone()
    return found


class WeightPath:
    """The minima of λ/2 (θ − μ)ᵀ S (θ − μ) + ½ (θ − θ_new)ᵀ F (θ − θ_new), for every λ.

    Made by :meth:`EWC.path <ewc_tutorial.ewc.EWC.path>`. μ and S are what it remembers of earlier
    tasks, θ_new the weights after training on a new one, and F that task's Fisher information
    there, all as they were when the path was made. λ = 0 is θ_new. Where nothing is known,
    S = F = 0, weights stay at θ_new; where only the old tasks know something, they go to μ at once.
    Each point is a closed form: the weighted mean of both ends, weight by weight with diagonals,
    and with Kronecker factors in the basis in which those of both tasks are diagonal.

    Args:
        parameters: θ_new by name, the model's own.
        minima: returns them at a λ above zero.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        minima: Callable[[float], dict[str, Tensor]],
    ) -> None:
        self._parameters, self._minima = parameters, minima
        self._new = {name: value.detach().clone() for name, value in parameters.items()}

    @torch.no_grad()
    def at(self, lam: float) -> dict[str, Tensor]:
        """Return the protected parameters at λ."""
        if isinstance(lam, bool) or not isinstance(lam, Real) or not 0 <= lam < float("inf"):
            raise ValueError(f"lam must be a finite number that is not negative, not {lam!r}.")
        return {
            name: value.to(self._new[name], copy=True)
            for name, value in (self._minima(float(lam)) if lam else self._new).items()
        }

    @torch.no_grad()
    def go_(self, lam: float) -> None:
        """Put the weights at λ into the model; ``go_(0)`` puts the new ones back."""
        found = self.at(lam)
        for name, parameter in self._parameters.items():
            parameter.copy_(found[name])

    def pick_(self, lams: Iterable[float], score: Callable[[], float]) -> float:
        """Put the weights with the highest score into the model and return their λ.

        Args:
            lams: those to try; of equal scores the first wins.
            score: what the model is worth as it is, for instance the accuracy on the new task, or
                minus infinity where the old one has lost more than it may.

        Raises:
            ValueError: no score is above minus infinity. Then, and if ``score`` raises anything,
                the new weights are in the model.
        """
        best, chosen = -float("inf"), None
        try:
            for lam in lams:
                self.go_(lam)
                if (value := float(score())) > best:
                    best, chosen = value, lam
        except BaseException:
            self.go_(0.0)
            raise
        self.go_(chosen or 0.0)
        if chosen is None:
            raise ValueError("score must be above minus infinity for one of the λ at least.")
        return chosen
