"""One number per weight: the diagonal of the Fisher matrix, or one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ewc_tutorial.curvature.base import (
    RULES,
    Curvature,
    Remembered,
    Tensors,
    buffer_key,
    checked,
    gradient_of,
    same_dtypes,
    with_rows,
)
from ewc_tutorial.fisher import fisher_diagonal
from ewc_tutorial.fisher.likelihoods import ESTIMATORS
from ewc_tutorial.precision import widest
from ewc_tutorial.sharded import spread_like, whole


class Diagonal(Curvature):
    """S is diagonal: the sum over weights of S_i (θ_i − μ_i)².

    Under ``separate`` one such quadratic is the sum of one per task, exactly:

        Σ_t F_t (θ − θ_t)² = S (θ − μ)² + constant,   S = Σ_t F_t,   μ = Σ_t F_t θ_t / S.
    """

    name = "diagonal"
    rules: tuple[str, ...] = RULES
    spreads: ClassVar[bool] = True

    def protect(self, buffers: dict[str, Tensor], model: nn.Module, values: Tensors) -> None:
        super().protect(buffers, model, values)
        self._remembered, self._scaled_anchors = Remembered(), Remembered()
        self.reset()

    @property
    def importance(self) -> dict[str, Tensor]:
        return {name: self._buffers[buffer_key("importance", name)] for name in self.names}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(S.shape) for name, S in self.importance.items()}

    def stored(self) -> dict[str, Tensor]:
        return self.importance

    def explain(self) -> dict[str, str]:
        return dict.fromkeys(self.names, self.name)

    def measure(
        self,
        model: nn.Module,
        data: Any,
        estimator: str,
        fisher: Callable[..., dict[str, Tensor]] | None,
        options: dict[str, Any],
    ) -> dict[str, Tensor]:
        return (fisher or fisher_diagonal)(model, data, estimator, **options)

    def merge(self, F: Tensors, weight: float, here: Tensors, rule: str, gamma: float) -> None:
        self.commit(*self.merged(F, weight, here, rule, gamma))

    def merged(
        self, F: Tensors, weight: float, here: Tensors, rule: str, gamma: float
    ) -> tuple[list[tuple[Tensor, Tensor]], dict[str, float], float]:
        """Return what :meth:`commit` takes: S and μ of each name, constants, what all tasks weigh.

        Raises:
            ValueError: as :meth:`merge`.
        """
        updates = []
        constants = dict(self._constants)
        total_weight = gamma * self._total_weight + weight
        anchors = self.anchor
        for name, S in self.importance.items():
            anchor = anchors[name]
            new, at = weight * _checked(F, name, S), here[name].to(anchor)
            if rule == "separate":
                total = S + new
                share = torch.where(total > 0, new / total, 1.0)
                offset = at - anchor
                # What two quadratics around different anchors still cost at their common minimum.
                cost = (S * share * offset.square()).sum(dtype=widest(S.device))
                constants[name] += whole(cost).item()
                updates.append((total, anchor + share * offset))
            elif rule == "average":
                step = weight / total_weight if total_weight else 0.0
                updates.append((S + step * (new / weight - S) if weight else S, at))
            else:
                updates.append((gamma * S + new, at))
        return updates, constants, total_weight

    def commit(
        self,
        updates: list[tuple[Tensor, Tensor]],
        constants: dict[str, float],
        total_weight: float,
    ) -> None:
        """Make what :meth:`merged` returned the present state."""
        for S, anchor, new in zip(
            self.importance.values(), self.anchor.values(), updates, strict=True
        ):
            S.copy_(new[0])
            anchor.copy_(new[1])
        self._constants, self._total_weight = constants, total_weight

    def quadratic(self, values: Tensors) -> Tensor:
        importance, anchors = self.importance, self.anchor
        total: Tensor | float = sum(self._constants.values())
        for name in self.names:
            squares = importance[name] * (values[name] - anchors[name]).square()
            total = total + whole(squares.sum())
        return torch.as_tensor(total)

    def add_gradient_(self, values: Tensors, lam: float) -> None:
        parameters = [values[name] for name in self.names]
        importance, anchors = list(self.importance.values()), list(self.anchor.values())
        gradients = [gradient_of(parameter) for parameter in parameters]
        if not same_dtypes(gradients, parameters, anchors):
            # In half precision the difference has to be taken before anything is rounded.
            offsets = torch._foreach_sub(parameters, anchors)
            torch._foreach_addcmul_(gradients, offsets, importance, value=lam)
            return
        # λSθ − λSμ instead of λS(θ − μ) needs no room for the differences: a third faster. It
        # costs no precision, as its rounding error is that of storing θ: λS times an ulp of θ.
        scaled = self._scaled_anchors.get(
            (lam,),
            importance + anchors,
            lambda: [lam * S * mu for S, mu in zip(importance, anchors, strict=True)],
        )
        torch._foreach_addcmul_(gradients, parameters, importance, value=lam)
        torch._foreach_sub_(gradients, scaled)

    def proximal_step_(
        self,
        values: Tensors,
        lam: float,
        rates: Mapping[str, float],
        scale: Mapping[str, float | Tensor],
        start: Tensors | None = None,
    ) -> None:
        """Take the step θ ← (dθ + ηλSμ) / (d + ηλS) of each weight."""
        importance, anchors = self.importance, self.anchor
        names = [name for name in self.names if rates.get(name)]
        parameters = [values[name] for name in names]
        S, mu = [importance[name] for name in names], [anchors[name] for name in names]
        lrs, scales = [rates[name] for name in names], [scale.get(name, 1.0) for name in names]

        def stiffness() -> list[Tensor]:
            # Not infinite, so that the share of it below is 1 there, and not NaN.
            largest = [torch.finfo(s.dtype).max / 2 for s in S]
            products = [lr * (lam * s) for lr, s in zip(lrs, S, strict=True)]
            return [c.clamp_max_(top) for c, top in zip(products, largest, strict=True)]

        def pulls(stiffness: list[Tensor]) -> list[Tensor]:
            return [c / (d + c) for c, d in zip(stiffness, scales, strict=True)]

        if any(isinstance(d, Tensor) for d in scales):
            shares = pulls(self._remembered.get((lam, *lrs), S, stiffness))
        else:
            numbers = (lam, *lrs, *scales)
            shares = self._remembered.get(numbers, S, lambda: pulls(stiffness()))
        if same_dtypes(parameters, mu):
            torch._foreach_lerp_(parameters, mu, shares)
            return
        # A model in half precision: step in the anchor's precision, then round once.
        for parameter, anchor, share in zip(parameters, mu, shares, strict=True):
            parameter.copy_(parameter.to(anchor).lerp_(anchor, share))

    def minima(
        self, values: Tensors, F: Tensors, damping: float
    ) -> Callable[[float], dict[str, Tensor]]:
        # A copy, as later tasks are merged into these very tensors.
        importance, anchors = (
            {name: tensor.clone() for name, tensor in part.items()}
            for part in (self.importance, self.anchor)
        )
        new = {name: _checked(F, name, S) for name, S in importance.items()}
        new = {name: f + damping * whole(f.mean()) for name, f in new.items()}

        def at(lam: float) -> dict[str, Tensor]:
            found = {}
            for name, S in importance.items():
                old = lam * S
                total = old + new[name]
                share = torch.where(total > 0, old / total, 0.0)
                found[name] = values[name].to(S).lerp(anchors[name].to(S), share)
            return found

        return at

    def grow_(self, rows: Mapping[str, int]) -> None:
        for name, extra in rows.items():
            for kind in ("importance", "anchor"):
                key = buffer_key(kind, name)
                self._buffers[key] = with_rows(self._buffers[key], extra)

    def reset(self) -> None:
        self._constants = dict.fromkeys(self.names, 0.0)
        self._total_weight = 0.0

    def state(self) -> dict[str, Any]:
        return {"constants": dict(self._constants), "total_weight": self._total_weight}

    def load(self, state: Mapping[str, Any]) -> None:
        total, constants = state["total_weight"], state["constants"]
        if not self._constants.keys() <= constants.keys():  # some stays as it is
            total = max(total, self._total_weight)
        self._constants = {n: constants.get(n, mine) for n, mine in self._constants.items()}
        self._total_weight = total

    def _layout(self, name: str, zeros: Tensor) -> dict[str, Tensor]:
        return {buffer_key("importance", name): zeros.clone()}


def _checked(F: Tensors, name: str, S: Tensor) -> Tensor:
    """Return ``F[name]`` as S is kept, if it is Fisher information."""
    new = checked(F, name, S.shape)
    return spread_like(new.to(S.device, S.dtype), S)


class Identity(Diagonal):
    """S is one everywhere: the penalty ‖θ − μ‖² that treats all weights alike."""

    name = "identity"
    rules = ("average", "separate", "latest", "online")

    def measure(
        self,
        model: nn.Module,
        data: Any,
        estimator: str,
        fisher: Callable[..., dict[str, Tensor]] | None,
        options: dict[str, Any],
    ) -> dict[str, Tensor]:
        """Return ones; the arguments are checked and not used.

        Raises:
            TypeError: an option is unknown.
            ValueError: the estimator is.
        """
        if estimator not in ESTIMATORS:
            raise ValueError(
                f"estimator must be one of {', '.join(ESTIMATORS)}, not {estimator!r}."
            )
        inspect.signature(fisher or fisher_diagonal).bind(None, None, **options)
        return {name: torch.ones_like(S) for name, S in self.importance.items()}
