"""Teach the small recogniser a new voice with many λ and seeds, for notebook 10.

    python -m experiments.speech_corrections            # five seeds
    python -m experiments.speech_corrections 0 1 2      # these

For each seed a base model is trained on the old speakers, then, always from the same base, it
learns from 40 corrections of the new speaker in several ways. A row per run goes to the table
``speech_corrections`` as soon as it is done; what is there is not run again. The word error rates
are those on 120 recordings of old speakers and 80 of the new one, made for this and used for
nothing else. What is "drawn back" is a trained model on the straight line from its base, at
``fraction`` of the way, all parts of it from one training; :mod:`experiments.speech_path` walks on
other ways back, too. All rows of a seed must come from one kind of machine. ``replay`` is the share
of each batch that is old speech, from all 100 old recordings; "old speech mixed in" adds 40 of them
to the corrections. Takes about four minutes for each seed on one idle core.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ewc_tutorial.course import tables
from ewc_tutorial.path import between
from ewc_tutorial.speech.base import train_tiny
from ewc_tutorial.speech.learning import (
    Plan,
    Recording,
    evaluate,
    learn,
)
from ewc_tutorial.speech.recogniser import Recogniser
from ewc_tutorial.speech.synthetic import (
    NEW_SPEAKER,
    OLD_SPEAKERS,
    Speaker,
    recordings,
)
from experiments import stored_rows

TABLE = tables.path("speech_corrections")
KEY = ["seed", "run", "lam", "replay", "fraction"]
COLUMNS = [*KEY, "old_before", "new_before", "old", "new"]
PLAN = Plan(learning_rate=2e-3, steps=100, freeze_encoder=False, fisher_samples=100)
KRONECKER = replace(PLAN, curvature="kronecker")
LAMBDAS = (1.0, 10.0, 100.0, 1000.0, 10_000.0)
#: Parts of the way from the base to the trained weights.
FRACTIONS = (0.8, 0.6, 0.4, 0.2)
#: How a run is called, what it trains on besides the corrections, where F comes from, the plan.
RUNS = (
    [("replay", "old", replace(PLAN, lam=0.0, replay=0.5))]
    + [("EWC and replay", "old", replace(PLAN, lam=lam, replay=0.5)) for lam in (10.0, 100.0)]
    + [("plain", "old", replace(PLAN, lam=0.0))]
    + [("EWC", "old", replace(PLAN, lam=lam)) for lam in LAMBDAS]
    + [("EWC, Kronecker factors", "old", replace(KRONECKER, lam=lam)) for lam in LAMBDAS[:4]]
    + [("replay", "old", replace(PLAN, lam=0.0, replay=share)) for share in (0.125, 0.25, 0.75)]
    + [("EWC, F of the corrections", "corrections", replace(PLAN, lam=lam)) for lam in LAMBDAS]
    + [("old speech mixed in", "old", replace(PLAN, lam=0.0))]
    + [("LoRA", "old", replace(PLAN, lam=lam, lora_rank=4)) for lam in (0.0, 100.0, 1000.0)]
)
#: Which of them are drawn back, and with which λ.
DRAWN_BACK = {"plain": (0.0,), "EWC": (10.0,), "replay": (0.0,), "EWC and replay": (10.0,)}


def spoken(speakers: tuple[Speaker, ...], n: int, seed: int) -> list[Recording]:
    """Return recordings without the names of their speakers."""
    return [(wave, text) for wave, text, _ in recordings(speakers, n, seed)]


def material(seed: int) -> tuple[list[Recording], ...]:
    """Return old speech, recordings to test on it, corrections, and recordings to test on these."""
    start = 1000 * (seed + 1)
    return (
        spoken(OLD_SPEAKERS, 100, start + 1),
        spoken(OLD_SPEAKERS, 120, start + 2),
        spoken((NEW_SPEAKER,), 40, start + 3),
        spoken((NEW_SPEAKER,), 80, start + 4),
    )


def points(name: str, plan: Plan) -> list[tuple[str, float, float]]:
    """Return what is measured of a training: how it is called, its λ, the part of the way."""
    found = [(name, plan.lam, 1.0)]
    if plan.lam in DRAWN_BACK.get(name, ()):
        found += [(f"{name}, drawn back", plan.lam, fraction) for fraction in FRACTIONS]
    return found


def missing(seed: int) -> Iterator[tuple[str, str, Plan, list[tuple[str, float, float]]]]:
    """Yield the trainings of a seed with their points that are not in the table."""
    table = stored_rows.read(TABLE, COLUMNS)
    have = set(table[KEY].itertuples(index=False, name=None))
    for name, source, plan in RUNS:
        wanted = [
            (called, lam, fraction)
            for called, lam, fraction in points(name, plan)
            if (seed, called, lam, plan.replay, fraction) not in have
        ]
        if wanted:
            yield name, source, plan, wanted


def check_base(seed: int, before: tuple[float, float]) -> None:
    """Refuse to add to rows of another base: another processor rounds otherwise, and a comparison
    of methods within a seed would compare bases.

    Raises:
        SystemExit: the table's rows of this seed began with other error rates.
    """
    table = stored_rows.read(TABLE, COLUMNS)
    stored = table[table.seed == seed][["old_before", "new_before"]].drop_duplicates()
    if len(stored) and abs(stored.to_numpy() - before).max() > 5e-5:
        raise SystemExit(
            f"The base model of seed {seed} is another one here than where the table's rows were "
            "made: delete the rows of this seed to run them all on this machine."
        )


def run_seed(seed: int) -> None:
    """Do the runs of one seed that are not in the table."""
    left = list(missing(seed))
    if not left:
        return
    old, old_tests, corrections, new_tests = material(seed)
    with TemporaryDirectory() as folder:
        base = train_tiny(seed)
        base.save(Path(folder))
        before = evaluate(base, old_tests), evaluate(base, new_tests)
        check_base(seed, before)
        start = base.model.state_dict()
        for name, source, plan, wanted in left:
            recogniser = Recogniser(folder)
            new = corrections + old[:40] if name == "old speech mixed in" else corrections
            learn(
                recogniser,
                corrections if source == "corrections" else old,
                new,
                replace(plan, seed=seed, checkpoint_every=10**6),
            )
            end = copy.deepcopy(recogniser.model.state_dict())
            for called, lam, fraction in wanted:
                recogniser.model.load_state_dict(between(start, end, fraction))
                rates = (*before, evaluate(recogniser, old_tests), evaluate(recogniser, new_tests))
                row = [seed, called, lam, plan.replay, fraction]
                row += [round(rate, 4) for rate in rates]
                stored_rows.append(TABLE, [dict(zip(COLUMNS, row, strict=True))])
                print(*row, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("seeds", nargs="*", type=int, default=range(5))
    torch.set_num_threads(1)
    for seed in parser.parse_args().seeds:
        run_seed(seed)


if __name__ == "__main__":
    main()
