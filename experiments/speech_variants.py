"""What else could be done with Dora's corrections: more ways for notebook 10, a row per run.

    python -m experiments.speech_variants            # five seeds
    python -m experiments.speech_variants 0 1 2      # these

Base models, recordings and budget are those of ``speech_corrections``, whose runs without a penalty
and with EWC are done again here, for one more column. ``drift`` needs no text and no old voice: the
share of words on which the trained model disagrees with the base model, on 60 recordings of three
voices that are neither old nor new. New here:

    F of other voices     F measured on 100 recordings of these voices, in place of the old ones
    LoRA, k times the rate
    encoder frozen        the convolutions stay as they are, as for a large model

A row goes to the table ``speech_variants`` as soon as it is done; what is there is not run again.
Takes about a minute and a half for each seed on one idle core.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ewc_tutorial.course import tables
from ewc_tutorial.speech.base import train_tiny
from ewc_tutorial.speech.learning import evaluate, learn
from ewc_tutorial.speech.recogniser import Recogniser, word_error_rate
from ewc_tutorial.speech.synthetic import OTHER_SPEAKERS
from experiments import stored_rows
from experiments.speech_corrections import LAMBDAS, PLAN, material, spoken

TABLE = tables.path("speech_variants")
COLUMNS = ["seed", "run", "lam", "old", "new", "drift"]
LORA = replace(PLAN, lora_rank=4)
FROZEN = replace(PLAN, freeze_encoder=True)
#: How a run is called, and its plan.
RUNS = [
    ("plain, encoder frozen", replace(FROZEN, lam=0.0)),
    *(("EWC, encoder frozen", replace(FROZEN, lam=lam)) for lam in (10.0, 100.0)),
    *(
        (f"LoRA, {times} times the rate", replace(LORA, lam=lam, learning_rate=times * 2e-3))
        for times, lam in ((3, 0.0), (10, 0.0), (10, 100.0))
    ),
    *(("EWC, F of other voices", replace(PLAN, lam=lam)) for lam in (10.0, 100.0)),
    ("plain", replace(PLAN, lam=0.0)),
    *(("EWC", replace(PLAN, lam=lam)) for lam in LAMBDAS),
]


def run_seed(seed: int) -> None:
    """Do the runs of one seed that are not in the table."""
    table = stored_rows.read(TABLE, COLUMNS)
    have = set(table[COLUMNS[:3]].itertuples(index=False, name=None))
    left = [(name, plan) for name, plan in RUNS if (seed, name, plan.lam) not in have]
    if not left:
        return
    old, old_tests, corrections, new_tests = material(seed)
    others = spoken(OTHER_SPEAKERS, 100, 1000 * (seed + 1) + 6)
    sounds = [wave for wave, _ in spoken(OTHER_SPEAKERS, 60, 1000 * (seed + 1) + 5)]
    with TemporaryDirectory() as folder:
        base = train_tiny(seed)
        base.save(Path(folder))
        # A reference without a word has no error rate.
        heard = {i: text for i, text in enumerate(base.transcribe(sounds)) if text}
        for name, plan in left:
            recogniser = Recogniser(folder)
            measured_on = others if name == "EWC, F of other voices" else old
            learn(
                recogniser,
                measured_on,
                corrections,
                replace(plan, seed=seed, checkpoint_every=10**6),
            )
            now = recogniser.transcribe([sounds[i] for i in heard])
            rates = (
                evaluate(recogniser, old_tests),
                evaluate(recogniser, new_tests),
                word_error_rate(list(heard.values()), now),
            )
            row = [seed, name, plan.lam, *(round(rate, 4) for rate in rates)]
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
