"""Exercises of notebook 13, Beyond the diagonal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ewc_tutorial.course import reference
from ewc_tutorial.course.capstone import REPORT_SEEDS, Design, Report, audit, is_empty
from ewc_tutorial.course.exercises.core import Exercise, Question, Result


def _matrices(seed: int) -> list[Tensor]:
    """Draw second moments of gradients that go together, some with a stiff weight among them."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for size in (2, 4, 6):
        rows = torch.randn(30, size, generator=generator, dtype=torch.float64) + 0.7
        rows = rows * 10 ** torch.rand(size, generator=generator, dtype=torch.float64)
        found.append(rows.T @ rows / 30)
    return found


def _steps(seed: int) -> list[tuple[Tensor, Tensor]]:
    return [(F, 1 + torch.sin(torch.arange(len(F)) + F[0, 0])) for F in _matrices(seed)]


def _layers(seed: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Draw what went into a layer, and softmax gradients by what came out, through a matrix."""
    generator = torch.Generator().manual_seed(seed)
    cases = []
    for N, inputs, C, outputs in ((6, 2, 3, 4), (8, 3, 4, 2), (5, 4, 2, 3)):
        a = torch.rand(N, inputs, generator=generator, dtype=torch.float64) + 0.2
        p = torch.randn(N, C, generator=generator, dtype=torch.float64).softmax(1)
        V = torch.randn(N, C, outputs, generator=generator, dtype=torch.float64)
        g = (torch.eye(C, dtype=torch.float64) - p[:, None, :]) @ V
        cases.append((a, g, p))
    return cases


def _blocks(seed: int) -> list[tuple[Tensor, Tensor, Tensor, Tensor, float, float]]:
    cases = []
    for (a, g, p), lam, lr in zip(_layers(seed), (3.0, 100.0, 1e6), (0.1, 0.5, 0.1), strict=True):
        A, G = reference.layer_factors(a, g, p)
        W = torch.sin(torch.arange(len(G) * len(A), dtype=torch.float64)).view(len(G), len(A))
        cases.append((W, torch.cos(2 * W), A, G, lam, lr))
    return cases


def _summed(
    weigh: Callable[[Tensor], Tensor], bias: bool = True, N: bool = True
) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return a wrong ``layer_factors``: other weights of the classes, or what is left out."""

    def wrong(a: Tensor, g: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        if bias:
            a = torch.cat([a, torch.ones(len(a), 1, dtype=a.dtype)], dim=1)
        count = len(a) if N else 1
        return a.T @ a / count, torch.einsum("nc,nco,ncq->oq", weigh(p), g, g) / count

    return wrong


def _centred(a: Tensor, g: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    A, G = reference.layer_factors(a, g, p)
    mean = A[-1]  # the row of the bias is E[a]
    return A - torch.outer(mean, mean), G


def _of_means(a: Tensor, g: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    A, _ = reference.layer_factors(a, g, p)
    mean = (p[:, :, None] * g).mean(0).sum(0)
    return A, torch.outer(mean, mean)


def _rotated(
    divide: Callable[..., Tensor], back: bool = True, anchored: bool = True
) -> Callable[..., Tensor]:
    """Return a wrong ``kronecker_step``."""

    def wrong(W: Tensor, anchor: Tensor, A: Tensor, G: Tensor, lam: float, lr: float) -> Tensor:
        (a, U_a), (g, U_g) = torch.linalg.eigh(A), torch.linalg.eigh(G)
        rotated = U_g.T @ (W - anchor if anchored else W) @ U_a
        rotated = divide(rotated, a, g, lam, lr)
        moved = U_g @ rotated @ U_a.T if back else rotated
        return anchor + moved if anchored else moved

    return wrong


def _right_division(rotated: Tensor, a: Tensor, g: Tensor, lam: float, lr: float) -> Tensor:
    return rotated / (1 + lr * lam * torch.outer(g, a))


@dataclass(frozen=True)
class Audited:
    """An exercise whose answer is a report: every number in it is computed again."""

    example: str

    def judge(self, design: Design, report: Report, *, seed: int = 0) -> Result:
        if is_empty(report):
            return Result(
                False, "○ Not attempted yet: fill in the report above and run this again."
            )
        if faults := audit(design, report):
            return Result(False, "✗ " + "\n  ".join(faults))
        return Result(
            True,
            f"✓ Every number holds. Over plain fine-tuning {report.gain:+.3f} ± {report.error:.3f} "
            f"on {len(REPORT_SEEDS)} seeds; and you have said why.",
        )

    def answered(self) -> str:
        return self.example


EXERCISES: dict[str, Question] = {
    "mean_over_signs": Exercise(
        answer=reference.mean_over_signs,
        cases=_steps,
        mistakes={
            "That is the prediction for the step itself, ½vᵀFv. The mean runs over all signs of "
            "its entries.": lambda F, step: 0.5 * step @ F @ step,
            "The ½ is missing.": lambda F, step: (F.diagonal() * step**2).sum(),
            "That is zero. Each product of two different entries is as often positive as "
            "negative, but a square is always positive.": lambda F, step: 0.0,
            "That gives every weight the mean stiffness. Which entry is large matters: "
            "F_ii goes with v_i².": lambda F, step: 0.5 * F.diagonal().mean() * (step**2).sum(),
        },
    ),
    "blindness": Exercise(
        answer=reference.blindness,
        cases=lambda seed: [(F,) for F in _matrices(seed)],
        mistakes={
            "That is the largest eigenvalue of F. It is how stiff the stiffest direction is, not "
            "how much the diagonal misses of it: measure each weight in units of its own "
            "stiffness first.": lambda F: torch.linalg.eigvalsh(F)[-1],
            "That is the factor along F's stiffest direction. In another one, with smaller parts "
            "along the stiff weights, the diagonal misses more.": (
                lambda F: (lambda e, v: e / (F.diagonal() * v**2).sum())(
                    torch.linalg.eigh(F)[0][-1], torch.linalg.eigh(F)[1][:, -1]
                )
            ),
            "That is the largest eigenvalue over the largest diagonal entry: two different "
            "directions. Take both of the same step.": (
                lambda F: torch.linalg.eigvalsh(F)[-1] / F.diagonal().max()
            ),
            "That is the *smallest* factor: where the diagonal overestimates.": (
                lambda F: torch.linalg.eigvals(F / F.diagonal()[:, None]).real.min()
            ),
            "That is the step of equal entries. It is seldom the worst.": (
                lambda F: F.sum() / F.diagonal().sum()
            ),
        },
    ),
    "layer_factors": Exercise(
        answer=reference.layer_factors,
        cases=_layers,
        mistakes={
            "The column of ones is missing: the bias is a weight whose input is always 1, and A "
            "has one row and one column more.": _summed(lambda p: p, bias=False),
            "All classes count alike in G. The exact Fisher information is an expectation: weigh "
            "each class by its probability.": _summed(torch.ones_like),
            "G is the mean over the classes, each with 1/C. Weigh each by its probability.": (
                _summed(lambda p: torch.full_like(p, 1 / p.shape[1]))
            ),
            "G is of the likeliest class alone. Sum over all classes, each with its probability.": (
                _summed(
                    lambda p: torch.nn.functional.one_hot(p.argmax(1), p.shape[1]).to(p.dtype)
                )
            ),
            "The probabilities are squared: weigh g gᵀ by p, not p·g by itself.": _summed(
                lambda p: p**2
            ),
            "Those are sums over the samples. Divide both by N.": _summed(lambda p: p, N=False),
            "A is the covariance of the inputs: their mean was taken off. The gradient is g times "
            "the input itself, so A = E[a aᵀ].": _centred,
            "G is built from the mean gradient, which is nearly zero. Multiply first, then "
            "average.": _of_means,
        },
    ),
    "kronecker_step": Exercise(
        answer=reference.kronecker_step,
        cases=_blocks,
        mistakes={
            "The result is still in the eigenbasis: rotate back with U_g · Uₐᵀ.": _rotated(
                _right_division, back=False
            ),
            "That shrinks W itself. The penalty pulls towards the anchor: rotate and divide "
            "W − W*.": _rotated(_right_division, anchored=False),
            "The eigenvalues of a Kronecker product are the *products* of those of G and A, not "
            "their sums.": _rotated(
                lambda r, a, g, lam, lr: r / (1 + lr * lam * (g[:, None] + a[None, :]))
            ),
            "λ is missing.": _rotated(
                lambda r, a, g, lam, lr: r / (1 + lr * torch.outer(g, a))
            ),
            "η is missing: the step is W' with η times the penalty's gradient.": _rotated(
                lambda r, a, g, lam, lr: r / (1 + lam * torch.outer(g, a))
            ),
            "That is the gradient step, 1 − ηλs. It explodes where ηλs > 2; the minimum divides "
            "by 1 + ηλs.": _rotated(
                lambda r, a, g, lam, lr: r * (1 - lr * lam * torch.outer(g, a))
            ),
            "That takes the diagonals of A and G, without any rotation: it is the diagonal "
            "again.": (
                lambda W, anchor, A, G, lam, lr: (
                    anchor
                    + (W - anchor) / (1 + lr * lam * torch.outer(G.diagonal(), A.diagonal()))
                )
            ),
        },
    ),
    "capstone": Audited(
        """\
Here is how one design could be defended, in four sentences. Yours has other tasks.

estimator  "exact": ten classes are cheap to sum over, and the network is too certain for one drawn
           label to show what the others would change.
curvature  "kronecker": along the step that B's training took, the whole Fisher matrix said 24 times
           as much as its diagonal, and signs decided, so the weights move together.
rule       any: with one old task there is nothing to add up, and all rules are the same.
λ          the best of four on the seeds 100 and 101; its neighbours lose less than the standard
           error, so the choice is not sharp, and the reported seeds chose nothing."""
    ),
}  # fmt: skip
