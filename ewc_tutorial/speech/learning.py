"""The lesson that a model takes: importance from earlier speech, then training on the corrections.

Nothing here knows of HTTP or of the database. What was done is kept in a work folder step by step,
so that a training which is killed goes on where it was, with the result that it would have had.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ewc_tutorial import files
from ewc_tutorial.ewc import EWC
from ewc_tutorial.huggingface import LoraEWC, consolidate
from ewc_tutorial.speech.acceptance import Heard
from ewc_tutorial.speech.errors import NotLearnedError
from ewc_tutorial.speech.plan import Plan
from ewc_tutorial.speech.recogniser import Recogniser, no_progress_bars
from ewc_tutorial.speech.samples import Recording, Samples, wave_of
from ewc_tutorial.speech.training import Listener, train

#: Where LoRA puts its adapters: the attention of wav2vec 2.0.
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
_BATCH = 8


def evaluate(recogniser: Recogniser, recordings: Sequence[Recording]) -> float:
    """Return the word error rate on recordings."""
    return heard_by(recogniser, recordings).rate


def heard_by(recogniser: Recogniser, recordings: Sequence[Recording]) -> Heard:
    """Return what a model makes of recordings with texts."""
    heard: list[str] = []
    for start in range(0, len(recordings), _BATCH):
        part = recordings[start : start + _BATCH]
        heard += recogniser.transcribe([wave_of(sound) for sound, _ in part])
    return Heard.of([text or "" for _, text in recordings], heard)


def learn(
    recogniser: Recogniser,
    old: Sequence[Recording],
    new: Sequence[Recording],
    plan: Plan,
    work: Path | None = None,
    listener: Listener | None = None,
    on_phase: Callable[[str], None] | None = None,
    importance: Path | None = None,
) -> None:
    """Train ``recogniser.model`` in place on ``new``, held by what matters for ``old``.

    Args:
        recogniser: at its finished weights; they become the anchor.
        old: earlier speech, for the Fisher information, which needs no texts; and for replay, if
            the plan says so, which needs them.
        new: the corrections.
        plan: λ and the rest.
        work: keeps the checkpoints. If it holds those of the same training, they are taken up.
            None uses a temporary folder.
        listener: hears of losses about a hundred times.
        on_phase: hears ``importance`` and ``learning`` when these begin.
        importance: the file that keeps the Fisher information; if it is there, it is used, and
            ``old`` may be empty. If it is not, it is made at λ = 0, too, for a later training may
            have no earlier speech left [WORK/importance.pt, where λ is above 0].

    Raises:
        NotLearnedError: the importance or a loss is no finite number, or there is nothing to
            replay.
    """
    if work is None:
        with tempfile.TemporaryDirectory() as folder:
            learn(recogniser, old, new, plan, Path(folder), listener, on_phase, importance)
        return
    work.mkdir(parents=True, exist_ok=True)
    kept = importance or work / "importance.pt"
    replayed = [pair for pair in old if pair[1] is not None] if plan.replay else []
    if plan.replay and not replayed:
        raise NotLearnedError("replay needs earlier speech with texts, and there is none.")
    tell = on_phase or (lambda phase: None)
    with _random_states_kept(plan.seed), no_progress_bars():
        model = _prepared(recogniser.model, plan)
        ewc = None
        if plan.lam > 0 or importance is not None:
            ewc = (LoraEWC if plan.lora_rank else EWC)(
                model, lam=plan.lam, curvature=plan.curvature
            )
            if not _restored(ewc, kept):
                tell("importance")
                measure_importance(recogniser, ewc, old, plan)
                with files.replacing(kept) as file:
                    torch.save(ewc.state_dict(), file)
            ewc.lam = plan.lam  # the file has that of the training which measured it
        tell("learning")
        held = ewc if plan.lam > 0 else None
        train(recogniser, model, held, new, replayed, plan, work / "checkpoints", listener)
        if plan.lora_rank:
            model = model.merge_and_unload()
    model.requires_grad_(True)
    recogniser.model = model.cpu().eval()


def measure_importance(
    recogniser: Recogniser, ewc: EWC, old: Sequence[Recording], plan: Plan
) -> None:
    """Consolidate ``ewc`` on earlier speech: F from texts that the model itself would write.

    Raises:
        NotLearnedError: there is no earlier speech, or F is not finite.
    """
    if not old:
        raise NotLearnedError("There is no earlier speech to measure importance on.")
    consolidate(
        ewc,
        # Without their texts, which F does not ask for and some do not have.
        Samples(recogniser, [(sound, None) for sound, _ in old]),
        n_samples=plan.fisher_samples,
        batch_size=_BATCH,
        collate=recogniser.collate,
        generator=torch.Generator().manual_seed(plan.seed),
    )
    for name, value in ewc.importance.items():
        if not value.isfinite().all():
            raise NotLearnedError(f"The importance of {name} is no finite number.")


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


def _restored(ewc: EWC, path: Path) -> bool:
    if not path.exists():
        return False
    ewc.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return True


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
