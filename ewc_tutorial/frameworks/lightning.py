"""A callback for the Trainer of Lightning."""

from __future__ import annotations

from typing import Any

try:
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import Callback
except ImportError as error:
    raise ImportError(
        "ewc_tutorial.frameworks.lightning needs Lightning: pip install 'ewc-tutorial[frameworks]'"
    ) from error

from ewc_tutorial.attachment import Attachment
from ewc_tutorial.ewc import EWC
from ewc_tutorial.sharded import check_saved_by_one

__all__ = ["EWCCallback"]


class EWCCallback(Callback):
    """Let an EWC pull after each step of every optimizer that trains what it protects.

        ewc = EWC(module, lam=100)
        ewc.consolidate(old_data)
        Trainer(callbacks=[EWCCallback(ewc)]).fit(module, new_data)

    Accumulated batches count as the one step that they are, and a step that a gradient scaler skips
    as none. Checkpoints hold what was consolidated and where the pulling is, and training goes on
    from there. Validation sees the weights after a proximal step.

    Args:
        ewc: made with the module that is trained, or with a part of it.
        every: as for :meth:`EWC.attach <ewc_tutorial.ewc.EWC.attach>`.

    Raises:
        ValueError: when training begins, no optimizer trains anything that the EWC protects, or one
            that does is of an unknown kind.
        NotImplementedError: the weights are spread over processes then.
    """

    def __init__(self, ewc: EWC, every: int | None = None) -> None:
        self.ewc, self.every = ewc, every
        self._attached: list[Attachment] = []
        self._resumed: list[dict[str, Any]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        protected = set(self.ewc.weights().values())
        check_saved_by_one(protected, type(self).__name__)
        optimizers = [
            optimizer
            for optimizer in trainer.optimizers
            if any(p in protected for group in optimizer.param_groups for p in group["params"])
        ]
        # Where none does, attach() has the sentence.
        self._attached = [
            self.ewc.attach(optimizer, self.every) for optimizer in optimizers or trainer.optimizers
        ]
        for attached, state in zip(self._attached, self._resumed, strict=False):
            attached.load_state_dict(state)
        self._resumed = []

    def on_train_end(self, *_: Any) -> None:
        for attached in self._attached:
            attached.remove()
        self._attached = []

    def on_exception(self, *_: Any) -> None:
        self.on_train_end()

    def on_validation_start(self, *_: Any) -> None:
        for attached in self._attached:
            attached.complete()

    def state_dict(self) -> dict[str, Any]:
        attached = [attached.state_dict() for attached in self._attached]
        return {"ewc": self.ewc.state_dict(), "attached": attached}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.ewc.load_state_dict(state_dict["ewc"])
        self._resumed = state_dict["attached"]
