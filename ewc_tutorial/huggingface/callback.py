"""A callback for a Trainer of Transformers that cannot be replaced by :class:`EWCTrainer`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ewc_tutorial.attachment import Attachment
from ewc_tutorial.ewc import EWC
from ewc_tutorial.files import replacing
from ewc_tutorial.huggingface.trainer import ATTACHED_FILE, EWC_FILE, restore
from ewc_tutorial.sharded import check_saved_by_one

__all__ = ["EWCCallback"]


class EWCCallback(TrainerCallback):
    """Let an EWC pull after each step of the Trainer's optimizer.

        ewc = EWC(model, lam=100)
        consolidate(ewc, old_data)
        Trainer(model, args, train_dataset=new_data, callbacks=[EWCCallback(ewc)]).train()

    What :class:`~ewc_tutorial.huggingface.EWCTrainer` does with ``ewc_update="proximal"``, for a
    Trainer that is somebody else's. Checkpoints hold what was consolidated; a training that is
    resumed from one in ``output_dir`` goes on from there.

    Args:
        ewc: made with the Trainer's model.
        every: as for :meth:`EWC.attach <ewc_tutorial.ewc.EWC.attach>`.

    Raises:
        ValueError: when training begins, the optimizer trains nothing that the EWC protects, or is
            of an unknown kind.
        FileNotFoundError: training is resumed, nothing is consolidated, and the checkpoint holds
            nothing of an EWC either.
        NotImplementedError: the weights are spread over processes (FSDP).
    """

    def __init__(self, ewc: EWC, every: int | None = None) -> None:
        self.ewc, self.every = ewc, every
        self._attached: Attachment | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.on_train_end()  # of a training that ended with an error
        check_saved_by_one(self.ewc.weights().values(), type(self).__name__)
        folder = self._checkpoint(args, state)
        if state.global_step:
            restore(self.ewc, folder / EWC_FILE)
        self._attached = self.ewc.attach(kwargs["optimizer"], self.every)
        if state.global_step and (file := folder / ATTACHED_FILE).exists():
            attached = torch.load(file, map_location="cpu", weights_only=True)
            self._attached.load_state_dict(attached)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        stops = control.should_evaluate or control.should_save or control.should_training_stop
        if stops and self._attached is not None:
            self._attached.complete()

    on_epoch_end = on_step_end

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._attached is None or not state.is_world_process_zero:
            return
        for name, content in ((EWC_FILE, self.ewc), (ATTACHED_FILE, self._attached)):
            with replacing(self._checkpoint(args, state) / name) as file:
                torch.save(content.state_dict(), file)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        if self._attached is not None:
            self._attached.remove()
            self._attached = None

    @staticmethod
    def _checkpoint(args: Any, state: Any) -> Path:
        return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
