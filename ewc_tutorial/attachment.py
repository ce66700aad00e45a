"""An EWC that makes its proximal steps by itself, after the steps of an optimizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ewc_tutorial.optimizers import steps_of

if TYPE_CHECKING:
    from ewc_tutorial.ewc import EWC


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
        self._names: dict[Tensor, str] = {p: name for name, p in ewc.model.named_parameters()}
        self._start: dict[str, Tensor] | None = None
        self._begin()
        self._handles = [optimizer.register_step_post_hook(self._after_step)]
        if ewc.needs_start:
            self._handles.append(optimizer.register_step_pre_hook(self._before_step))

    def remove(self) -> None:
        """End it."""
        for handle in self._handles:
            handle.remove()

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def _begin(self) -> None:
        self._waited = 0
        self._rates: dict[str, float] = {}

    @property
    def _idle(self) -> bool:
        return not self._ewc.n_tasks or not self._ewc.lam

    def _before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if not self._waited and not self._idle:
            values = self._ewc.values()
            self._start = {name: value.detach().clone() for name, value in values.items()}

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self._idle:
            self._begin()
            return
        skipped = getattr(optimizer, "found_inf", None)  # a fused step under a gradient scaler
        if skipped is not None and skipped.item():
            return
        steps = {self._names[p]: s for p, s in steps_of(optimizer).items() if p in self._names}
        self._waited += 1
        for name, step in steps.items():
            self._rates[name] = self._rates.get(name, 0.0) + step.lr
        if self._waited < self._every:
            return
        scales = {name: step.scale for name, step in steps.items()}
        self._ewc.proximal_step_(self._rates, scales, self._start)
        self._begin()
