"""One training, in a process of its own.

    python -m ewc_tutorial.speech.worker JOB     (the server starts it)

The first line on its standard input holds the settings. The input then stays open for as long as
the server lives: when it closes, for whatever reason, the process ends at once, and the next start
of the server takes the job up from its last checkpoint. All the state is in the job's row and in
its work folder.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from sqlalchemy import Connection, select
from sqlalchemy.exc import SQLAlchemyError

from ewc_tutorial.path import between
from ewc_tutorial.speech.acceptance import (
    FRACTIONS,
    MIN_OLD_TESTS,
    Heard,
    Verdict,
    fault_of,
    judge,
)
from ewc_tutorial.speech.corrections import Corrections
from ewc_tutorial.speech.database import Database, lock_folder
from ewc_tutorial.speech.errors import (
    AlreadyServedError,
    NotLearnedError,
    StorageError,
    UnusableStorageError,
)
from ewc_tutorial.speech.estimate import Estimate
from ewc_tutorial.speech.folders import recordings_in
from ewc_tutorial.speech.jobs import Jobs
from ewc_tutorial.speech.learning import heard_by, learn
from ewc_tutorial.speech.material import Material, Measured, Reader, some, split_old, without
from ewc_tutorial.speech.plan import Plan, usual_lam
from ewc_tutorial.speech.recogniser import Recogniser
from ewc_tutorial.speech.runner import INDEX_SECONDS, LOST_INDEX, OCCUPIED
from ewc_tutorial.speech.samples import in_memory
from ewc_tutorial.speech.settings import Settings
from ewc_tutorial.speech.versions import BASE, IMPORTANCE, Versions

#: The share of all progress at which each phase begins.
PHASES = {
    "measuring before": 0.0,
    "importance": 0.05,
    "learning": 0.2,
    "measuring after": 0.85,
    "walking back": 0.9,
    "saving": 0.97,
}
#: So many sentences about recordings that were left out are kept.
_LEFT_OUT = 100


def main() -> None:
    job = sys.argv[1]
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    os.umask(0o077)
    settings = Settings.model_validate(json.loads(sys.stdin.readline()))
    threading.Thread(target=_end_with_the_server, daemon=True).start()
    if hasattr(os, "nice"):
        os.nice(10)  # answering comes first
    if settings.threads:
        torch.set_num_threads(settings.threads)
    database = Database(settings.index, INDEX_SECONDS)
    # A predecessor that is just ending has it for a moment longer.
    try:
        if database.on_server:
            lock = database.hold("worker", seconds=120.0)
        else:
            lock = lock_folder(settings.data, "worker.lock", seconds=60.0)
    except AlreadyServedError:
        sys.exit(OCCUPIED)
    jobs = Jobs(database)
    try:
        Training(job, settings, database, lambda: still_held(lock)).run()
    except (NotLearnedError, UnusableStorageError) as error:
        jobs.fail(job, str(error))
    except Exception as error:
        lost_index = isinstance(error, SQLAlchemyError) and database.on_server
        if lost_index or isinstance(error, StorageError):
            logging.exception("The index or the storage cannot be reached.")
            sys.exit(LOST_INDEX)
        jobs.fail(job, f"{type(error).__name__}: {error}".splitlines()[0])
        raise
    finally:
        lock.close()


def still_held(lock: sqlite3.Connection | Connection) -> None:
    """Raise if a lock is lost, as that of PostgreSQL is with its connection."""
    if isinstance(lock, Connection):
        lock.scalar(select(1))


def _end_with_the_server() -> None:
    sys.stdin.read()
    os._exit(1)


class Training:
    """A job, or what is left of it; each method is a phase.

    Args:
        check: is called at every step; it raises if the job is no longer this process's.
    """

    def __init__(
        self,
        job: str,
        settings: Settings,
        database: Database,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._job = job
        self._check = check
        self._settings = settings
        self._jobs = Jobs(database)
        self._corrections = Corrections(
            settings.data, database, settings.max_bytes, settings.max_seconds, settings.storage
        )
        self._models = Versions(settings.data / "models")
        self._jobs.begin(job)
        self._row = self._jobs.get(job) or {}
        self._start = self._row["model_before"]
        self._plan = Plan(**self._row["options"]["plan"])
        self._recogniser = Recogniser(self._models.path(self._start))
        self._estimate = Estimate(self._plan.steps)
        self._name = f"{self._row['seq']:04d}-{job[:8]}"
        self._rival: str | None = None  # the version in use that the model was found better than

    def run(self) -> None:
        """Learn, and serve what may be served."""
        if self._row["finished"] is not None:  # cancelled before this process had begun
            return
        if self._models.exists(self._name):
            # An earlier attempt was cut off at its end. Judged again, the model might be compared
            # with itself, for it may be in use by now.
            self._finish()
            return
        work = self._settings.data / "work" / self._job
        work.mkdir(parents=True, exist_ok=True)
        material, importance = self._gather()
        unread = self._plan.unread(len(material.new))
        left_out = [*([unread] if unread else []), *material.left_out]
        self._note(recordings=material.counts(), left_out=left_out[:_LEFT_OUT])
        self._phase("measuring before")
        began = time.monotonic()
        before = self._hear(self._recogniser, material)
        self._estimate.heard(time.monotonic() - began)
        self._note(before=_rates(before))
        start = {n: w.clone() for n, w in self._recogniser.model.state_dict().items()}
        learn(
            self._recogniser, material.old, material.new, self._plan, work, self._listen,
            self._phase, importance,
        )  # fmt: skip
        self._note(seconds_left=self._estimate.hearings(1))
        self._phase("measuring after")
        self._conclude(self._judge(material, start, before), material)
        shutil.rmtree(work / "checkpoints", ignore_errors=True)

    def _gather(self) -> tuple[Material, Path]:
        """Return what to work with, and where the importance is or is to be."""
        settings = self._settings
        reader = Reader(self._recogniser, settings.max_seconds, settings.spelling)
        importance = self._models.importance(self._start)
        old, tests, record, known = split_old(
            reader.earlier_speech(recordings_in(settings.old_folder)),
            settings.max_tests, self._plan, Measured.beside(importance),
        )  # fmt: skip
        if importance is None or not known:
            importance = self._models.path(self._start) / IMPORTANCE
            record.write(importance)
        # What was deleted is not to be left here, either.
        self._corrections.storage.forget(self._corrections.index.ids)
        parts = self._corrections.split(self._row["last_seq"], settings.hold_out)
        new, new_tests = (reader.corrections(part) for part in parts)
        for part, usable in zip(parts, (new, new_tests), strict=True):
            if not usable:
                raise NotLearnedError(
                    f"None of {len(part)} corrections can be used, for {reader.left_out[-1]}"
                )
        # What is both earlier speech and a correction is for learning or for measuring.
        old, tests = without(old, new_tests) or old, without(tests, new)
        if self._plan.replay and not any(text for _, text in old):
            set_by = (settings.lam, self._row["options"]["wish"]["lam"])
            lam = usual_lam(0.0) if set_by == (None, None) else self._plan.lam
            self._plan = replace(self._plan, replay=0.0, lam=lam)
            reader.left_out.append(
                f"Replay: no earlier speech for it has a text, so none is mixed in; λ is {lam:g}."
            )
        # Both models must hear the same, whatever is deleted between them.
        tests, new_tests = in_memory(tests), in_memory(some(new_tests, settings.max_tests))
        if not new_tests:
            raise NotLearnedError("All corrections to measure on were deleted meanwhile.")
        return Material(old, tests, new, new_tests, reader.left_out), importance

    def _judge(
        self, material: Material, start: dict[str, Any], before: tuple[Heard, Heard]
    ) -> Verdict | None:
        """Leave the weights at the best point that may be served; None if that cannot be told."""
        losses = [row["loss"] for row in (self._jobs.get(self._job) or {})["losses"]]
        model = self._recogniser.model
        end = {name: weight.clone() for name, weight in model.state_dict().items()}
        if fault := fault_of(losses, end):
            return Verdict(None, fault, ())
        if len(material.old_tests) < MIN_OLD_TESTS:
            self._note(after=_rates(self._hear(self._recogniser, material)))
            return None
        served = self._models.current() or BASE
        others = {
            name: before
            if name == self._start
            else self._hear(Recogniser(self._models.path(name)), material)
            for name in {BASE, served}
            if name == served or self._models.exists(name)
        }

        def at(fraction: float) -> tuple[Heard, Heard]:
            if fraction < 1.0:
                left = sum(f <= fraction for f in FRACTIONS)
                self._note(seconds_left=self._estimate.hearings(left))
                self._phase("walking back")
            model.load_state_dict(between(start, end, fraction))
            return self._hear(self._recogniser, material)

        verdict = judge(
            at, [old for old, _ in others.values()], others[served][1], self._settings.old_budget
        )
        self._rival = served
        point = verdict.chosen or verdict.tried[0]
        model.load_state_dict(between(start, end, point.fraction))
        self._note(
            after=_rates((point.old, point.new)),
            path=[
                {"fraction": p.fraction, "old": p.old.rate, "new": p.new.rate, "cost": p.cost}
                for p in verdict.tried
            ],
        )
        return verdict

    def _conclude(self, verdict: Verdict | None, material: Material) -> None:
        """Keep and serve the model, or do not, and say why."""
        if verdict is not None and verdict.chosen is None:
            self._jobs.reject(self._job, f"Nothing is served. {verdict.sentence}")
            return
        self._phase("saving")
        fraction, outcome = 1.0, (
            f"It is kept as {self._name} but not served, for {len(material.old_tests)} held-out "
            f"recordings of earlier speech with texts are too few to tell what it costs; at least "
            f"{MIN_OLD_TESTS} are needed. {self._by_hand}"
        )  # fmt: skip
        if verdict is not None and verdict.chosen is not None:
            fraction, outcome = verdict.chosen.fraction, verdict.sentence
        self._note(fraction=fraction, outcome=outcome)
        results = (self._jobs.get(self._job) or {})["results"]
        about = {
            "parent": self._start,
            "rival": self._rival,
            "job": self._job,
            "last_seq": self._row["last_seq"],
            "gathered": self._row["options"].get("settled", self._row["created"]),
            "plan": self._row["options"]["plan"],
            **{key: results.get(key) for key in ("recordings", "before", "after", "fraction")},
            "outcome": outcome,
        }
        self._models.add(self._name, self._recogniser.save, about)
        self._finish()

    def _finish(self) -> None:
        """Note that the job is done, and put its version into use if that was found to be better
        than the one in use."""
        rival = self._models.about(self._name).get("rival")

        def serve() -> dict[str, Any]:
            served = self._models.current() or BASE
            results: dict[str, Any] = {}
            if rival is not None and served in (rival, self._name):
                self._models.switch(self._name)
            elif rival is not None:
                results["outcome"] = (
                    f"It is kept as {self._name} but not served, for {served} has been put into "
                    f"use while it was compared with {rival}. {self._by_hand}"
                )
            return results | {"removed": self._pruned()}

        self._jobs.finish(self._job, self._name, serve)

    @property
    def _by_hand(self) -> str:
        return f"POST /models/{self._name}/serve serves it all the same."

    def _pruned(self) -> list[str]:
        """Return the versions that were removed; one that cannot be is no fault of the training."""
        try:
            return self._models.prune(self._settings.keep_versions)
        except OSError as error:
            logging.error("Versions that nobody needs cannot be removed: %s.", error.strerror)
            return []

    def _phase(self, name: str) -> None:
        self._check()
        self._jobs.progress(self._job, name, PHASES[name])

    def _note(self, **results: Any) -> None:
        self._jobs.add_results(self._job, results)

    def _listen(self, step: int, loss: float, penalty: float) -> None:
        self._check()
        self._jobs.add_loss(self._job, step, loss, penalty)
        start, end = PHASES["learning"], PHASES["measuring after"]
        share = step / self._plan.steps
        self._note(seconds_left=self._estimate.at_step(step))
        self._jobs.progress(self._job, "learning", start + (end - start) * share)

    @staticmethod
    def _hear(recogniser: Recogniser, material: Material) -> tuple[Heard, Heard]:
        return heard_by(recogniser, material.old_tests), heard_by(recogniser, material.new_tests)


def _rates(heard: tuple[Heard, Heard]) -> dict[str, float | None]:
    old, new = heard
    return {"old": old.rate if len(old.words) else None, "new": new.rate}


if __name__ == "__main__":
    main()
