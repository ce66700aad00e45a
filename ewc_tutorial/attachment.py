"""An EWC that makes its proximal steps by itself, after the steps of an optimizer.

A proximal step that costs as much as several training steps, as that of Kronecker factors does,
need not follow each of them. Between two of them the penalty acts as a *force*: the gradient f that
it had at the last one, which costs an addition. With the step −(η_t/d)·f after each training step,
the proximal step then takes the force back and puts what it finds in its place:

    θ ← prox(θ + (η/d)·f),    f ← (d/η)·(θ + (η/d)·f − prox(θ + (η/d)·f)),    η = Σ η_t.

It rests exactly where loss plus penalty has no gradient, as with a proximal step every time: there
f is minus the gradient of the loss, and nothing moves. This is ProxSkip (Mishchenko, Malinovsky,
Stich and Richtárik 2022, arXiv:2202.09357, algorithm 1) with a fixed period instead of a coin.
Without the force the weights would rest where the gradient is of order η times the period.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from torch import Tensor

from ewc_tutorial.optimizers import Step, steps_of

if TYPE_CHECKING:
    from ewc_tutorial.ewc import EWC


#: Those that have not been removed; the hooks of their optimizers keep them alive.
_LIVE: WeakSet[Attachment] = WeakSet()


class Attachment:
    """What :meth:`EWC.attach` returns: :meth:`remove` ends it, as does leaving a ``with`` block.

    Args:
        ewc: whose step is made.
        optimizer: one that :mod:`ewc_tutorial.optimizers` knows.
        every: optimizer steps for each proximal step.
    """

    def __init__(self, ewc: EWC, optimizer: torch.optim.Optimizer, every: int) -> None:
        self._ewc = ewc
        self._every = every
        self._optimizer = optimizer
        self._names: dict[Tensor, str] = {p: name for name, p in ewc.model.named_parameters()}
        self._start: dict[str, Tensor] | None = None
        self._rates: dict[str, float]
        self._force: dict[str, Tensor]
        self._begin()
        self._handles = [optimizer.register_step_post_hook(self._after_step)]
        if ewc.needs_start:
            self._handles.append(optimizer.register_step_pre_hook(self._before_step))
        _LIVE.add(self)

    def complete(self) -> None:
        """Make the proximal step now for those steps that have had none, to evaluate or save."""
        if self._waited and not self._stale:
            self._proximal_step(self._steps())

    def remove(self) -> None:
        """Complete and end it."""
        for handle in self._handles:
            handle.remove()
        _LIVE.discard(self)
        self.complete()

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def state_dict(self) -> dict[str, Any]:
        """Return what it knows between two proximal steps, for a checkpoint."""
        return {
            "tasks": self._tasks,
            "waited": self._waited,
            "rates": dict(self._rates),
            "force": dict(self._force),
            "start": self._start,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was called."""
        self._tasks, self._waited = state["tasks"], state["waited"]
        self._rates, self._force = dict(state["rates"]), self._placed(state["force"])
        self._start = state["start"] and self._placed(state["start"])

    def _placed(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors where the parameters of their names are, which may be a GPU again."""
        devices = {name: p.device for p, name in self._names.items()}
        return {name: tensor.to(devices[name]) for name, tensor in tensors.items()}

    def _begin(self) -> None:
        self._tasks = self._ewc.n_tasks
        self._waited = 0
        self._rates, self._force = {}, {}

    @property
    def _idle(self) -> bool:
        return not self._ewc.n_tasks or not self._ewc.lam

    @property
    def _stale(self) -> bool:
        """Whether there is no penalty, or another one: a task more has moved the anchor."""
        return self._idle or self._tasks != self._ewc.n_tasks

    def _steps(self) -> dict[str, tuple[Tensor, Step]]:
        steps = steps_of(self._optimizer)
        return {self._names[p]: (p, step) for p, step in steps.items() if p in self._names}

    def _before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        # A task more ends the period that has begun.
        if (not self._waited or self._stale) and not self._idle:
            values = self._ewc.values()
            self._start = {name: value.detach().clone() for name, value in values.items()}

    @torch.no_grad()
    def _after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self._stale:
            self._begin()
        if self._idle:
            return
        skipped = getattr(optimizer, "found_inf", None)  # a fused step under a gradient scaler
        if skipped is not None and skipped.item():
            return
        steps = self._steps()
        self._waited += 1
        for name, (parameter, step) in steps.items():
            self._rates[name] = self._rates.get(name, 0.0) + step.lr
            if name in self._force:
                parameter.sub_(self._force[name] * (step.lr / step.scale))
        if self._waited >= self._every:  # more, if `every` is smaller since a checkpoint
            self._proximal_step(steps)

    @torch.no_grad()
    def _proximal_step(self, steps: dict[str, tuple[Tensor, Step]]) -> None:
        protected = [n for n in self._ewc.weights() if n in steps and self._rates.get(n)]
        rates = self._rates

        def share(name: str) -> float | Tensor:
            """Return η/d of the whole period."""
            return rates[name] / steps[name][1].scale

        for name in protected:
            if name in self._force:
                steps[name][0].add_(self._force[name] * share(name))
        if self._every > 1:
            before = {name: steps[name][0].clone() for name in protected}
        self._ewc.proximal_step_(rates, _Scales(steps), self._start)
        self._waited, self._rates = 0, {}
        if self._every > 1:
            self._force = {n: (before[n] - steps[n][0]) / share(n) for n in protected}


def is_attached(ewc: EWC, optimizer: torch.optim.Optimizer) -> bool:
    """Return whether an EWC pulls after the steps of an optimizer already."""
    return any(live._ewc is ewc and live._optimizer is optimizer for live in _LIVE)


class _Scales(Mapping[str, float | Tensor]):
    """The d of each parameter, computed when it is looked at."""

    def __init__(self, steps: Mapping[str, tuple[Tensor, Step]]) -> None:
        self._steps = steps

    def __getitem__(self, name: str) -> float | Tensor:
        return self._steps[name][1].scale

    def __iter__(self) -> Iterator[str]:
        return iter(self._steps)

    def __len__(self) -> int:
        return len(self._steps)
