"""How a training is to go: its numbers, and what follows from them before it begins."""

from __future__ import annotations

import math
from dataclasses import dataclass

#: The steps of a training that nobody has set, unless the corrections need more.
USUAL_STEPS = 150


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
        replay: share of each batch that is earlier speech, 0 or more and less than 1.
    """

    lam: float = 10.0
    steps: int = USUAL_STEPS
    batch_size: int = 8
    learning_rate: float = 3e-5
    fisher_samples: int = 200
    lora_rank: int = 0
    freeze_encoder: bool = True
    checkpoint_every: int = 25
    seed: int = 0
    curvature: str = "diagonal"
    replay: float = 0.0

    @property
    def new_per_batch(self) -> int:
        """The corrections in a batch; the rest of it is earlier speech."""
        return self.batch_size - (old_per_batch(self.replay, self.batch_size) if self.replay else 0)

    def unread(self, n_new: int) -> str | None:
        """Return a sentence if the steps are too few to read ``n_new`` corrections, or None."""
        room = self.steps * self.new_per_batch
        if room >= n_new:
            return None
        return (
            f"{n_new - room:,} of {n_new:,} corrections are not read: {self.steps:,} steps have "
            f"room for {room:,}; {math.ceil(n_new / self.new_per_batch):,} would read each once. "
            "Another training reads others."
        )


def old_per_batch(share: float, batch_size: int) -> int:
    """Return how much of a batch is earlier speech: at least one recording of either kind."""
    return min(batch_size - 1, max(1, round(share * batch_size)))


def usual_lam(replay: float) -> float:
    """Return the λ of a training for which nobody has set one.

    Beside replay a penalty costs the new voice much and spares the old ones nothing; without it,
    10 is about Bayes' value and the best bargain of the decades (notebook 10, section 6).
    """
    return 0.0 if replay else 10.0


def steps_for(n_new: int, new_per_batch: int) -> int:
    """Return the steps of a training that nobody has set: all corrections are read."""
    return max(USUAL_STEPS, math.ceil(n_new / new_per_batch))
