"""EWC in the Trainer of Transformers.

The penalty never enters ``compute_loss``. There it would be computed once per micro-batch and per
device, be divided by the accumulation steps or by a number of tokens, be forgotten by label
smoothing, and show up in the evaluation loss. It acts where there is one of it: at the optimizer
step, on gradients that are complete, averaged over devices, unscaled and clipped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from ewc_tutorial.attachment import Attachment
from ewc_tutorial.ewc import EWC
from ewc_tutorial.files import replacing
from ewc_tutorial.sharded import check_saved_by_one

#: The file in a checkpoint that holds what was consolidated.
EWC_FILE = "ewc.pt"
#: What :meth:`EWC.attach <ewc_tutorial.EWC.attach>` knows between two of its steps, likewise.
ATTACHED_FILE = "ewc_attached.pt"
#: How the penalty enters a step: as a gradient before it, or as a proximal step after it.
UPDATES = ("gradient", "proximal")


# A mixin: the Trainer that it is mixed with has these methods.
_Trainer: Any = Trainer if TYPE_CHECKING else object


class EWCTrainerMixin(_Trainer):
    """Adds EWC to a Trainer: ``class Mine(EWCTrainerMixin, Seq2SeqTrainer): pass``.

    * The penalty acts exactly once per optimizer step, whatever the gradient accumulation, the
      number of processes, label smoothing, clipping or mixed precision; a step that a gradient
      scaler skips has none. Clipping bounds the gradient of the new task's loss alone.
    * ``ewc_penalty`` is logged beside ``loss``, which stays the loss of the new data alone.
    * Each evaluation also reports the old data: ``eval_old_loss`` beside ``eval_loss`` (and
      ``eval_old_…`` for each of ``compute_metrics``).
    * ``save_model`` and every checkpoint hold what was consolidated, in ``ewc.pt``, and
      ``train(resume_from_checkpoint=…)`` restores it, λ included.

    Args:
        args, kwargs: as for the Trainer.
        ewc: made for the same model, consolidated on earlier data; or None for no penalty.
        old_eval_dataset: held-out data of earlier tasks, or a dict of several by name, which gives
            ``eval_old_NAME_loss``.
        ewc_update: ``gradient`` adds λS(θ − μ) to the gradients, so that training ends where
            loss plus penalty is least, with any optimizer; λ then means what Bayes' rule says.
            ``proximal`` is :meth:`EWC.attach <ewc_tutorial.EWC.attach>`: training ends at the same
            place and is stable at every λ.
        ewc_every: optimizer steps for each proximal step, as for ``attach``; one more comes before
            each evaluation and checkpoint.

    Raises:
        ValueError: ``ewc`` belongs to another model, or ``ewc_update`` is unknown.
        NotImplementedError: the weights are spread over devices (DeepSpeed, FSDP).
    """

    def __init__(
        self,
        *args: Any,
        ewc: EWC | None = None,
        old_eval_dataset: Any = None,
        ewc_update: str = "gradient",
        ewc_every: int | None = None,
        **kwargs: Any,
    ) -> None:
        if ewc_update not in UPDATES:
            raise ValueError(f"ewc_update must be one of {', '.join(UPDATES)}, not {ewc_update!r}.")
        super().__init__(*args, **kwargs)
        self.ewc = ewc
        self.old_eval_dataset = old_eval_dataset
        self.ewc_update = ewc_update
        self.ewc_every = ewc_every
        self._old_prefix: str | None = None
        self._attached: Attachment | None = None
        self._resumed: dict[str, Any] | None = None
        if ewc is None:
            return
        if ewc.model is not self.model:
            raise ValueError(
                "ewc must be made with the model that the Trainer gets, EWC(model, …); it was made "
                "with another one (model_init makes a new model each time and cannot be used)."
            )
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise NotImplementedError(
                "EWC in a Trainer needs whole weights on every device, which DeepSpeed and FSDP do "
                "not keep: use plain data parallelism, or fully_shard and EWC.attach() in a loop "
                "of your own."
            )
        check_saved_by_one(ewc.weights().values(), type(self).__name__)
        self.add_callback(_AtEachStep(self, ewc))

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        if self.ewc is not None and resume_from_checkpoint:
            given = resume_from_checkpoint
            folder = get_last_checkpoint(self.args.output_dir) if given is True else given
            if folder is not None:
                restore(self.ewc, Path(folder) / EWC_FILE)
                if (attached := Path(folder) / ATTACHED_FILE).exists():
                    self._resumed = torch.load(attached, map_location="cpu", weights_only=True)
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            if self._attached is not None:
                self._attached.remove()
            self._attached = self._resumed = None

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)
        if self.ewc is not None and self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            with replacing(folder / EWC_FILE) as file:
                torch.save(self.ewc.state_dict(), file)
            if self._attached is not None:
                with replacing(folder / ATTACHED_FILE) as file:
                    torch.save(self._attached.state_dict(), file)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if self.ewc is not None and "loss" in logs:
            with torch.no_grad():
                logs["ewc_penalty"] = self.ewc.penalty().item()
        super().log(logs, *args, **kwargs)

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
        **kwargs: Any,
    ) -> dict[str, float]:
        # For a dict of evaluation sets this is called again for each: the old data comes once.
        outermost = self._old_prefix is None
        if outermost:
            self._old_prefix = "" if self.old_eval_dataset is None else f"{metric_key_prefix}_old"
        try:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix, **kwargs)
        finally:
            if outermost:
                self._old_prefix = None

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        output = super().evaluation_loop(*args, **kwargs)
        prefix, self._old_prefix = self._old_prefix, "" if self._old_prefix is not None else None
        if prefix:
            output.metrics.update(self._old_metrics(prefix))
        return output

    def _old_metrics(self, prefix: str) -> dict[str, float]:
        old = self.old_eval_dataset
        sets = old if isinstance(old, Mapping) else {"": old}
        metrics: dict[str, float] = {}
        # A loader draws a number from the global generator, which the dropout of training uses.
        with torch.random.fork_rng(devices=[]):
            for name, data in sets.items():
                part = super().evaluation_loop(
                    # Not get_eval_dataloader, which may hand out a loader that it has kept.
                    self.get_test_dataloader(data),
                    description="Evaluation on old data",
                    prediction_loss_only=True if self.compute_metrics is None else None,
                    metric_key_prefix=f"{prefix}_{name}" if name else prefix,
                )
                metrics |= part.metrics
        return {n: v for n, v in metrics.items() if not n.endswith("_model_preparation_time")}


class EWCTrainer(EWCTrainerMixin, Trainer):
    """The Trainer of Transformers with EWC; the arguments are those of :class:`EWCTrainerMixin`."""


class _AtEachStep(TrainerCallback):
    """Lets an EWC act when training begins, or before each step of the optimizer."""

    def __init__(self, trainer: EWCTrainerMixin, ewc: EWC) -> None:
        self._trainer, self._ewc = trainer, ewc

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        if self._trainer.ewc_update == "proximal":
            if self._trainer._attached is not None:  # begun anew, with smaller batches
                self._trainer._attached.remove()
            attached = self._ewc.attach(self._trainer.optimizer, self._trainer.ewc_every)
            if self._trainer._resumed is not None:
                attached.load_state_dict(self._trainer._resumed)
            self._trainer._attached = attached

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        stops = control.should_evaluate or control.should_save or control.should_training_stop
        if stops and self._trainer._attached is not None:
            self._trainer._attached.complete()

    on_epoch_end = on_step_end

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        if self._trainer.ewc_update == "gradient":
            # Clipping has unscaled the gradients already, where there is any; twice is an error.
            with contextlib.suppress(RuntimeError):
                self._trainer.accelerator.unscale_gradients()
            self._ewc.add_gradient_()


def restore(ewc: EWC, path: Path) -> None:
    """Load what a checkpoint holds of an EWC; without that the EWC must have something itself."""
    if path.exists():
        ewc.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    elif not ewc.n_tasks:
        raise FileNotFoundError(
            f"{path.parent} holds no {EWC_FILE}, so nothing of the old task can be restored: "
            "consolidate before resuming, or resume a checkpoint of an EWCTrainer."
        )
