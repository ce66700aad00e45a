"""The proximal step of a Kronecker block in a metric of its own per weight, as Adam has it.

With a scale d per weight, the minimum of

    ½ Δᵀ K Δ + ½ (Δ − Δ_now)ᵀ M (Δ − Δ_now),    K = λ G ⊗ A,    M = d/η (diagonal),

has no closed form: M is not diagonal in the eigenbasis of K. It is approached by a few iterations
of conjugate gradients, preconditioned by the diagonal of M + K.

They begin at the weights Δ_0 *before* the optimizer's step. There the residual of the system,
M(Δ_now − Δ_0) − KΔ_0, is minus the gradient of loss plus penalty, as M(Δ_now − Δ_0) is minus the
gradient of the loss for an optimizer that has settled. So however few iterations there are, the
step rests where the objective has no gradient and nowhere else; and as each iteration lowers the
quadratic above, it is stable at every λ. More iterations bring it nearer to the exact step.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ewc_tutorial.precision import widest

#: The relative residual at which iterations end, and what is done where no start is known.
TOLERANCE, TOLERANCE_ALONE, ITERATIONS_ALONE = 1e-3, 1e-9, 1000


def solve(
    product: Callable[[Tensor], Tensor],
    diagonal: Tensor,
    metric: Tensor,
    now: Tensor,
    start: Tensor | None,
    iterations: int,
) -> Tensor:
    """Return a Δ that lowers the quadratic above, the minimum if there are enough iterations.

    Args:
        product: Δ ↦ KΔ.
        diagonal: of K, in the shape of Δ.
        metric: M; infinite where Δ stays at Δ_now.
        now: Δ_now.
        start: Δ_0; without it the iterations begin at Δ_now and go on to a tolerance of 1e-9.
        iterations: at most, of one product each, if there is a start.
    """
    free = metric.isfinite()
    metric = metric.where(free, 0.0)
    tolerance = TOLERANCE
    if start is None:
        start, iterations, tolerance = now, ITERATIONS_ALONE, TOLERANCE_ALONE
    x = start.where(free, now)
    residual = (metric * (now - x) - product(x)).where(free, 0.0)
    inverse = (metric + diagonal).reciprocal().where(free, 0.0)
    towards = direction = inverse * residual
    size = first = _dot(residual, towards)
    for _ in range(iterations):
        if not size > tolerance**2 * first:
            break
        image = (metric * direction + product(direction)).where(free, 0.0)
        length = size / _dot(direction, image)
        x = x + length * direction
        residual = residual - length * image
        towards = inverse * residual
        before, size = size, _dot(residual, towards)
        direction = towards + size / before * direction
    return x


def _dot(a: Tensor, b: Tensor) -> float:
    return (a * b).sum(dtype=widest(a.device)).item()
