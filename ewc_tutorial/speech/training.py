"""The training itself: the Trainer of Transformers, with replay and with checkpoints."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from ewc_tutorial import files
from ewc_tutorial.ewc import EWC
from ewc_tutorial.huggingface import EWCTrainer
from ewc_tutorial.speech.errors import NotLearnedError
from ewc_tutorial.speech.plan import Plan, old_per_batch
from ewc_tutorial.speech.recogniser import Recogniser
from ewc_tutorial.speech.samples import Recording, Samples

#: Called with the step, the loss on the new data and the penalty.
Listener = Callable[[int, float, float], None]
_COMPLETE = "complete"


class Mixture(Sampler):
    """The order of recordings for a whole training with replay.

    Every batch has the same share of earlier speech, at least one recording of either kind. Both
    kinds are gone through in a random order, again and again.

    Args:
        n_new, n_old: how many there are; numbers from ``n_new`` on mean old ones.
        steps, batch_size, share, seed: of the training; the share is that of old ones.
    """

    def __init__(
        self, n_new: int, n_old: int, steps: int, batch_size: int, share: float, seed: int
    ) -> None:
        if batch_size < 2:
            raise NotLearnedError("replay needs batches of at least 2, one of either kind.")
        per_batch = old_per_batch(share, batch_size)
        generator = np.random.default_rng((seed, 3))
        new = _rounds(n_new, steps * (batch_size - per_batch), generator)
        old = n_new + _rounds(n_old, steps * per_batch, generator)
        rows = np.concatenate([new.reshape(steps, -1), old.reshape(steps, -1)], axis=1)
        self._order = rows.flatten().tolist()

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[int]:
        return iter(self._order)


def _rounds(n: int, length: int, generator: np.random.Generator) -> np.ndarray:
    rounds = [generator.permutation(n) for _ in range(math.ceil(length / n))]
    return np.concatenate(rounds)[:length]


class _MeanOverRecordings(EWCTrainer):
    """The loss is the mean over recordings, as λ wants it, not over characters."""

    mixture: Mixture | None = None

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        return self.mixture or super()._get_train_sampler(*args, **kwargs)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any
    ) -> Any:
        outputs = model(**inputs)
        loss = outputs.loss / len(inputs["labels"])
        return (loss, outputs) if return_outputs else loss


class _Reports(TrainerCallback):
    """Passes losses on, and marks checkpoints as complete when they are on the disk."""

    def __init__(self, listener: Listener | None) -> None:
        self._listener = listener

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if not logs or "loss" not in logs:
            return
        loss, penalty = logs["loss"], logs.get("ewc_penalty", 0.0)
        if not math.isfinite(loss + penalty):
            raise NotLearnedError(
                f"At step {state.global_step} the loss was {loss} and the penalty {penalty}: a "
                "smaller learning rate may help."
            )
        if self._listener is not None:
            self._listener(state.global_step, loss, penalty)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        files.sync_tree(folder)
        files.replace_file(folder / _COMPLETE, b"")


def train(
    recogniser: Recogniser,
    model: nn.Module,
    ewc: EWC | None,
    new: Sequence[Recording],
    replayed: Sequence[Recording],
    plan: Plan,
    checkpoints: Path,
    listener: Listener | None,
) -> None:
    """Train ``model`` in place; take up the newest checkpoint if there is one.

    Args:
        recogniser: makes samples of recordings.
        model: the recogniser's, perhaps inside an adapter.
        ewc: holds it, or None.
        new, replayed: the corrections, and earlier speech of which each batch gets a share.
        plan: as for :func:`~ewc_tutorial.speech.learning.learn`.
        checkpoints: their folder.
        listener: hears of losses.

    Raises:
        NotLearnedError: a loss or the penalty is no finite number.
    """
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=plan.steps,
        per_device_train_batch_size=plan.batch_size,
        learning_rate=plan.learning_rate,
        warmup_steps=max(1, plan.steps // 10),
        max_grad_norm=5.0,
        weight_decay=0.0,
        logging_steps=max(1, plan.steps // 100),
        logging_nan_inf_filter=False,  # it would show a loss of 0
        save_strategy="steps",
        save_steps=plan.checkpoint_every,
        save_total_limit=2,
        seed=plan.seed,
        data_seed=plan.seed,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    config = recogniser.model.config
    reduction, config.ctc_loss_reduction = config.ctc_loss_reduction, "sum"
    try:
        trainer = _MeanOverRecordings(
            model,
            arguments,
            train_dataset=Samples(recogniser, [*new, *replayed]),
            data_collator=recogniser.collate,
            ewc=ewc,
            callbacks=[_Reports(listener)],
        )
        if replayed:
            trainer.mixture = Mixture(
                len(new), len(replayed), plan.steps, plan.batch_size, plan.replay, plan.seed
            )
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=_latest(checkpoints))
    finally:
        config.ctc_loss_reduction = reduction


def _latest(checkpoints: Path) -> str | None:
    """Return the newest complete checkpoint; those that were cut off are deleted."""
    complete = {}
    for path in checkpoints.glob("checkpoint-*"):
        if (path / _COMPLETE).exists():
            complete[int(path.name.split("-")[1])] = path
        else:
            shutil.rmtree(path)
    return str(complete[max(complete)]) if complete else None
