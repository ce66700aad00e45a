"""Go back from the new voice to the old ones on three ways, for notebook 10, a row per point.

    python -m experiments.speech_path            # five seeds, and three that choose
    python -m experiments.speech_path 0 1 2      # these

Base models, recordings and the training without a penalty are those of ``speech_corrections``. Ways
back to the base: ``line``, where ``point`` is the part of the way from the base to the trained
weights, and ``diagonal`` and ``kronecker``, along :meth:`EWC.path <ewc_tutorial.ewc.EWC.path>` with
the Fisher information of the old recordings at the base and of the corrections at the trained
weights, where ``point`` is λ. ``old_loss`` and ``new_loss`` are means of −log p(text | sound) over
the recordings whose word error rates ``old`` and ``new`` are.

A row goes to the table ``speech_path`` as soon as it is done; a seed of which rows are missing is
trained again for these. Takes about a minute and a half for each seed on one idle core.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ewc_tutorial.course import tables
from ewc_tutorial.ewc import EWC
from ewc_tutorial.huggingface import sequence_fisher
from ewc_tutorial.path import WeightPath, between
from ewc_tutorial.speech.base import mean_ctc_loss, train_tiny
from ewc_tutorial.speech.learning import Recording, evaluate, learn, measure_importance
from ewc_tutorial.speech.recogniser import Recogniser
from ewc_tutorial.speech.samples import Samples
from experiments import stored_rows
from experiments.speech_corrections import PLAN, material

TABLE = tables.path("speech_path")
KEY = ["seed", "way", "point"]
COLUMNS = [*KEY, "old_loss", "new_loss", "old", "new"]
FRACTIONS = tuple(k / 10 for k in range(11))
LAMBDAS = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 1.0)
WAYS = {"line": FRACTIONS, "diagonal": LAMBDAS, "kronecker": LAMBDAS}
SEEDS = (*range(5), *range(tables.FIRST_SEARCH_SEED, tables.FIRST_SEARCH_SEED + 3))
_BATCH = 20


@torch.no_grad()
def loss_on(recogniser: Recogniser, recordings: Sequence[Recording]) -> float:
    """Return the mean of −log p(text | sound) over recordings."""
    samples = Samples(recogniser, recordings)
    total = 0.0
    for first in range(0, len(samples), _BATCH):
        batch = [samples[i] for i in range(first, min(first + _BATCH, len(samples)))]
        total += len(batch) * mean_ctc_loss(recogniser.model, recogniser.collate(batch)).item()
    return total / len(samples)


def path_by_fisher(recogniser: Recogniser, ewc: EWC, new: Sequence[Recording]) -> WeightPath:
    """Return the way back from the present weights by the F of ``ewc`` and that of ``new``."""
    fisher = ewc.measure(
        Samples(recogniser, [(sound, None) for sound, _ in new]),
        "sampled",
        fisher=sequence_fisher,
        collate=recogniser.collate,
        batch_size=8,
        generator=PLAN.seed,
    )
    return ewc.path(fisher)


def run_seed(seed: int) -> None:
    """Measure the points of one seed that are not in the table."""
    table = stored_rows.read(TABLE, COLUMNS)
    have = set(table[KEY].itertuples(index=False, name=None))
    left = {w: [p for p in points if (seed, w, p) not in have] for w, points in WAYS.items()}
    if not any(left.values()):
        return
    old, old_tests, corrections, new_tests = material(seed)
    with TemporaryDirectory() as folder:
        train_tiny(seed).save(Path(folder))
        recogniser = Recogniser(folder)
        model = recogniser.model
        start = copy.deepcopy(model.state_dict())
        plan = replace(PLAN, lam=0.0, seed=seed, checkpoint_every=10**6)
        learn(recogniser, old, corrections, plan)
        end = copy.deepcopy(model.state_dict())
        for way, points in left.items():
            if points and way != "line":
                model.load_state_dict(start)
                ewc = EWC(model, curvature=way)
                measure_importance(recogniser, ewc, old, PLAN)
                model.load_state_dict(end)
                path = path_by_fisher(recogniser, ewc, corrections)
            for point in points:
                if way == "line":
                    model.load_state_dict(between(start, end, point))
                else:
                    path.go_(point)
                measured = [loss_on(recogniser, tests) for tests in (old_tests, new_tests)]
                measured += [evaluate(recogniser, tests) for tests in (old_tests, new_tests)]
                row = [seed, way, point, *(round(value, 4) for value in measured)]
                stored_rows.append(TABLE, [dict(zip(COLUMNS, row, strict=True))])
                print(*row, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("seeds", nargs="*", type=int, default=SEEDS)
    torch.set_num_threads(1)
    for seed in parser.parse_args().seeds:
        run_seed(seed)


if __name__ == "__main__":
    main()
