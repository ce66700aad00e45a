"""The lesson that a model takes: importance from earlier speech, then training on the corrections.

Nothing here knows of HTTP or of the database. What was done is kept in a work folder step by step,
so that a training which is killed goes on where it was, with the result that it would have had.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from ewc_tutorial import files
from ewc_tutorial.ewc import EWC
from ewc_tutorial.huggingface import EWCTrainer, LoraEWC, consolidate
from ewc_tutorial.speech import audio
from ewc_tutorial.speech.recogniser import (
    Recogniser,
    no_progress_bars,
    word_error_rate,
)

#: A recording, as a file or as samples (samples,) at 16 kHz, and its text.
Recording = tuple[Path | np.ndarray, str]
#: Called with the step, the loss on the new data and the penalty.
Listener = Callable[[int, float, float], None]
#: Where LoRA puts its adapters: the attention of wav2vec 2.0.
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
_COMPLETE = "complete"
_BATCH = 8


@dataclass(frozen=True)
class Plan:
    """How to train.

    Attributes:
        lam: λ of the penalty. The loss is the mean over recordings of −log p(text | sound), so
            Bayes' rule says N_old / N_new.
        steps, batch_size, learning_rate: of AdamW, the rate rising over the first tenth of the
            steps and falling to zero by the last.
        fisher_samples: earlier recordings that importance is measured on.
        lora_rank: of LoRA adapters, merged into the weights at the end; 0 trains the weights.
        freeze_encoder: leave the convolutions as they are.
        checkpoint_every: steps between two checkpoints.
        seed: of the order of the recordings, of dropout, and of the texts drawn for the Fisher.
        curvature: the form that the Fisher matrix is kept in, as for :class:`EWC`.
    """

    lam: float = 100.0
    steps: int = 150
    batch_size: int = 8
    learning_rate: float = 3e-5
    fisher_samples: int = 200
    lora_rank: int = 0
    freeze_encoder: bool = True
    checkpoint_every: int = 25
    seed: int = 0
    curvature: str = "diagonal"


class Samples(Dataset):
    """Recordings as a data set of what the model takes, read when they are asked for."""

    def __init__(self, recogniser: Recogniser, recordings: Sequence[Recording]) -> None:
        self._recogniser = recogniser
        self._recordings = recordings

    def __len__(self) -> int:
        return len(self._recordings)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sound, text = self._recordings[index]
        return self._recogniser.sample(_wave(sound), text)


def evaluate(recogniser: Recogniser, recordings: Sequence[Recording]) -> float:
    """Return the word error rate on recordings."""
    heard = recogniser.transcribe([_wave(sound) for sound, _ in recordings])
    return word_error_rate([text for _, text in recordings], heard)


def learn(
    recogniser: Recogniser,
    old: Sequence[Recording],
    new: Sequence[Recording],
    plan: Plan,
    work: Path | None = None,
    listener: Listener | None = None,
    on_phase: Callable[[str], None] | None = None,
) -> None:
    """Train ``recogniser.model`` in place on ``new``, held by what matters for ``old``.

    Args:
        recogniser: at its finished weights; they become the anchor.
        old: earlier speech, for the Fisher information alone; nothing is trained on it.
        new: the corrections.
        plan: λ and the rest.
        work: keeps the Fisher information and checkpoints. If it holds those of the same training,
            they are taken up. None uses a temporary folder.
        listener: hears of losses about a hundred times.
        on_phase: hears ``importance`` and ``learning`` when these begin.
    """
    if work is None:
        with tempfile.TemporaryDirectory() as folder:
            learn(recogniser, old, new, plan, Path(folder), listener, on_phase)
        return
    work.mkdir(parents=True, exist_ok=True)
    tell = on_phase or (lambda phase: None)
    with _random_states_kept(plan.seed), no_progress_bars():
        model = _prepared(recogniser.model, plan)
        ewc = None
        if plan.lam > 0:
            ewc = (LoraEWC if plan.lora_rank else EWC)(
                model, lam=plan.lam, curvature=plan.curvature
            )
            if not _restored(ewc, work / "importance.pt"):
                tell("importance")
                measure_importance(recogniser, ewc, old, plan)
                with files.replacing(work / "importance.pt") as file:
                    torch.save(ewc.state_dict(), file)
        tell("learning")
        _train(recogniser, model, ewc, new, plan, work / "checkpoints", listener)
        if plan.lora_rank:
            model = model.merge_and_unload()
    model.requires_grad_(True)
    recogniser.model = model.cpu().eval()


def measure_importance(
    recogniser: Recogniser, ewc: EWC, old: Sequence[Recording], plan: Plan
) -> None:
    """Consolidate ``ewc`` on earlier speech: F from texts that the model itself would write."""
    consolidate(
        ewc,
        Samples(recogniser, old),
        n_samples=plan.fisher_samples,
        batch_size=_BATCH,
        collate=recogniser.collate,
        generator=torch.Generator().manual_seed(plan.seed),
    )


def _prepared(model: nn.Module, plan: Plan) -> nn.Module:
    """Return the model with the right weights trainable, inside an adapter if the plan says so."""
    model.requires_grad_(True)
    if plan.freeze_encoder:
        model.freeze_feature_encoder()
    if not plan.lora_rank:
        return model
    import peft

    config = peft.LoraConfig(
        r=plan.lora_rank,
        lora_alpha=2 * plan.lora_rank,
        target_modules=list(LORA_TARGETS),
        lora_dropout=0.0,
    )
    return peft.get_peft_model(model, config)


class _MeanOverRecordings(EWCTrainer):
    """The loss is the mean over recordings, as λ wants it, not over characters."""

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
        if self._listener is not None and logs and "loss" in logs:
            self._listener(state.global_step, logs["loss"], logs.get("ewc_penalty", 0.0))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        files.sync_tree(folder)
        files.replace_file(folder / _COMPLETE, b"")


def _train(
    recogniser: Recogniser,
    model: nn.Module,
    ewc: EWC | None,
    new: Sequence[Recording],
    plan: Plan,
    checkpoints: Path,
    listener: Listener | None,
) -> None:
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=plan.steps,
        per_device_train_batch_size=plan.batch_size,
        learning_rate=plan.learning_rate,
        warmup_steps=max(1, plan.steps // 10),
        max_grad_norm=5.0,
        weight_decay=0.0,
        logging_steps=max(1, plan.steps // 100),
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
            train_dataset=Samples(recogniser, new),
            data_collator=recogniser.collate,
            ewc=ewc,
            callbacks=[_Reports(listener)],
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


def _restored(ewc: EWC, path: Path) -> bool:
    if not path.exists():
        return False
    ewc.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return True


def _wave(sound: Path | np.ndarray) -> np.ndarray:
    return sound if isinstance(sound, np.ndarray) else audio.read(sound)


@contextmanager
def _random_states_kept(seed: int) -> Iterator[None]:
    """Seed the global random states that the Trainer and LoRA draw from; put them back after."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
