"""One training, in a process of its own.

    python -m ewc_tutorial.speech.worker JOB     (the server starts it)

The first line on its standard input holds the settings. The input then stays open for as long as
the server lives: when it closes, for whatever reason, the process ends at once, and the next start
of the server takes the job up from its last checkpoint. All the state is in the job's row and in
its work folder.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

from ewc_tutorial.speech.corrections import Corrections, recordings_in, text_beside, text_of
from ewc_tutorial.speech.database import Database, lock_folder
from ewc_tutorial.speech.errors import RefusedError
from ewc_tutorial.speech.jobs import Jobs
from ewc_tutorial.speech.settings import Settings
from ewc_tutorial.speech.versions import BASE, Versions

#: The share of all progress at which each phase begins.
PHASES = {
    "measuring before": 0.0,
    "importance": 0.05,
    "learning": 0.2,
    "measuring after": 0.9,
    "saving": 0.97,
}


def main() -> None:
    job = sys.argv[1]
    settings = Settings.model_validate(json.loads(sys.stdin.readline()))
    threading.Thread(target=_end_with_the_server, daemon=True).start()
    if hasattr(os, "nice"):
        os.nice(10)  # answering comes first
    database = Database(settings.data / "service.sqlite3")
    # A predecessor that is just ending has it for a moment longer.
    lock = lock_folder(settings.data, "worker.lock", seconds=60.0)
    jobs = Jobs(database)
    try:
        run(job, settings, database)
    except Exception as error:
        jobs.fail(job, f"{type(error).__name__}: {error}".splitlines()[0])
        raise
    finally:
        lock.close()


def _end_with_the_server() -> None:
    sys.stdin.read()
    os._exit(1)


def run(job: str, settings: Settings, database: Database) -> None:
    """Do a job, or what is left of it."""
    import torch

    from ewc_tutorial.speech.learning import Plan, evaluate, learn
    from ewc_tutorial.speech.recogniser import Recogniser

    if settings.threads:
        torch.set_num_threads(settings.threads)
    jobs, models = Jobs(database), Versions(settings.data / "models")
    jobs.begin(job)
    row = jobs.get(job)
    plan = Plan(**row["options"]["plan"])
    work = settings.data / "work" / job
    work.mkdir(parents=True, exist_ok=True)
    results = row["results"]

    def phase(name: str) -> None:
        jobs.progress(job, name, PHASES[name])

    def measured(when: str) -> None:
        if when not in results:
            phase(f"measuring {when}")
            rates = {"old": evaluate(recogniser, old_tests), "new": evaluate(recogniser, new_tests)}
            results[when] = rates
            jobs.add_results(job, {when: rates})

    def heard(step: int, loss: float, penalty: float) -> None:
        jobs.add_loss(job, step, loss, penalty)
        start, end = PHASES["learning"], PHASES["measuring after"]
        jobs.progress(job, "learning", start + (end - start) * step / plan.steps)

    after = f"{row['seq']:04d}-{job[:8]}"
    recogniser = Recogniser(models.path(row["model_before"]))
    old, old_tests, skipped = _old_recordings(settings, recogniser)
    corrections = Corrections(
        settings.data, database, settings.max_bytes, settings.max_seconds
    ).split(row["last_seq"], settings.hold_out)
    new, new_tests = ([(path, text_of(path)) for path in part] for part in corrections)
    sizes = [len(part) for part in (old, old_tests, new, new_tests)]
    names = ("old_for_importance", "old_for_measuring", "new_for_training", "new_for_measuring")
    counts = dict(zip(names, sizes, strict=True)) | {"old_left_out": skipped}
    jobs.add_results(job, {"recordings": counts})
    measured("before")
    learn(recogniser, old, new, plan, work, heard, phase)
    measured("after")
    phase("saving")
    models.publish(after, recogniser.save)
    jobs.finish(job, after)
    shutil.rmtree(work / "checkpoints", ignore_errors=True)


def old_files(folder: Path) -> list[Path]:
    """Return the recordings below a folder that have a text, in a fixed order."""
    return [path for path in recordings_in(folder) if text_beside(path) is not None]


def _old_recordings(settings: Settings, recogniser: Any) -> tuple[list, list, int]:
    """Return earlier speech for the importance, for measuring, and how much was left out.

    A third at most is for measuring, and nothing is for both (unless there is only one recording).
    Left out is what the model cannot write.
    """
    paths = old_files(settings.old_folder)
    order = np.random.default_rng(settings.seed).permutation(len(paths))
    usable = []
    for i in order:
        try:
            text = recogniser.spelling.clean(text_of(paths[i]), 10**6)
        except RefusedError:
            continue
        usable.append((paths[i], text))
    if not usable:
        raise RefusedError(
            f"none of the {len(paths)} texts in {str(settings.old_folder)!r} is one that the "
            "model can write."
        )
    n_tests = min(settings.max_tests, max(1, len(usable) // 3))
    return usable[n_tests:] or usable, usable[:n_tests], len(paths) - len(usable)


def start_version(models: Versions, start: str) -> str:
    """Return the version that a training starts from: ``base`` or the one that is ``served``."""
    return BASE if start == "base" else (models.current() or BASE)


if __name__ == "__main__":
    main()
