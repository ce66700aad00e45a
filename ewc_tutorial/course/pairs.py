"""Notebook 01's question for 200 pairs of tasks instead of one: is N_A / N_B the best λ?

Each pair is task A with inputs along a line and task B with inputs from everywhere, as in the
notebook, drawn anew. For three memories of A (the whole matrix, its diagonal, one number) B is
learned to the exact minimum at each λ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ewc_tutorial.course import bayes


@dataclass(frozen=True)
class Study:
    """What came out, over ``P`` pairs and ``L`` values of λ.

    Attributes:
        ratio: ``(L,)``, λ divided by N_A / N_B.
        distance: kind of memory → ``(P, L)``, from where B ends to the joint optimum, in standard
            deviations of the joint posterior.
        alone: ``(P,)``, the same without any memory.
        across: ``(P,)``, how far B pulls across A's ellipse, relative to along it, each in A's own
            standard deviations.
    """

    ratio: Tensor
    distance: dict[str, Tensor]
    alone: Tensor
    across: Tensor

    @property
    def best(self) -> dict[str, Tensor]:
        """Per memory and pair the ratio at which B ends nearest to the joint optimum."""
        return {kind: self.ratio[d.argmin(1)] for kind, d in self.distance.items()}

    def at(self, kind: str, ratio: float = 1.0) -> Tensor:
        """Return the distances ``(P,)`` at the λ nearest to so many times N_A / N_B."""
        return self.distance[kind][:, int((self.ratio / ratio).log().abs().argmin())]


def study_pairs(
    weights_b: tuple[float, float],
    ratio: Tensor,
    n_pairs: int = 200,
    n_a: int = 200,
    n_b: int = 100,
    precision: float = 0.25,
) -> Study:
    """Learn B after A for many pairs of tasks, with each memory and at each λ.

    Args:
        weights_b: the weights that B's labels come from; A's come from (1, −0.5).
        ratio: ``(L,)``, the values of λ divided by N_A / N_B.
        n_pairs: P.
        n_a, n_b: samples of each task.
        precision: τ of the prior.
    """
    prior = bayes.prior(precision)
    x_a, y_a = _draw(n_pairs, n_a, 0, angle=15)
    x_b, y_b = _draw(n_pairs, n_b, 1000, angle=45, weights=weights_b, spread=(1.0, 1.0))
    x_both, y_both = torch.cat([x_a, x_b], 1), torch.cat([y_a, y_b], 1)
    start, alone = bayes.optimum(x_a, y_a, prior), bayes.optimum(x_b, y_b, prior)
    goal = bayes.optimum(x_both, y_both, prior)
    P_goal = (n_a + n_b) * bayes.fisher_matrix(goal, x_both) + prior.precision
    F = bayes.fisher_matrix(start, x_a)

    def distance(ends: Tensor) -> Tensor:
        gap = ends - goal[:, None]
        return torch.einsum("pli,pij,plj->pl", gap, P_goal, gap).sqrt()

    def ends(kind: str, matrix: Tensor) -> Tensor:
        one_for_each = (part[:, None] for part in (x_b, y_b, start, bayes.simplify(matrix, kind)))
        return bayes.ewc_optimum(*one_for_each, ratio * n_a / n_b)

    # The whole matrix keeps the prior, as in step 3 of the notebook's table.
    matrices = {"full": F + prior.precision / n_a, "diagonal": F, "isotropic": F}
    distances = {kind: distance(ends(kind, matrix)) for kind, matrix in matrices.items()}
    return Study(ratio, distances, distance(alone[:, None])[:, 0], _across(alone - start, F))


def _draw(n_pairs: int, n: int, first_seed: int, **how: Any) -> tuple[Tensor, Tensor]:
    draws = [bayes.toy_task(n, seed=first_seed + i, **how) for i in range(n_pairs)]
    x, y = (torch.stack(part) for part in zip(*draws, strict=True))
    return x, y


def _across(pull: Tensor, F: Tensor) -> Tensor:
    stretch, directions = torch.linalg.eigh(F)  # the soft direction first
    lengths = torch.einsum("pi,pij->pj", pull, directions).abs() * stretch.sqrt()
    return lengths[:, 1] / lengths[:, 0]
