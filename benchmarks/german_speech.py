"""A full cycle of the speech service in German: corrections of a new voice, a training, the gate.

    python -m benchmarks.german_speech [--seeds 5]

espeak-ng says German sentences at 16 kHz. A small CTC model grows up with four of its voices. A
fifth sends corrections to a running service, by HTTP, and a training follows, from the same model
each time: with the service's defaults, with a penalty beside replay or in its place, without any
protection, and without any at ten times the rate. A version may cost the old voices 5 points of
word error rate, by a paired test on recordings that the service holds out. Beside these, each
version that is served is measured on recordings that the service never had.

Writes ``german_speech.csv`` and ``german_speech.md`` into ``benchmarks/results/``, a row for each
training as soon as it is finished; what is there already is not run again. Takes about ten minutes
for each seed on one idle core.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import soundfile
import torch

from ewc_tutorial.speech import audio
from ewc_tutorial.speech.base import TinyTraining, tiny_recogniser
from ewc_tutorial.speech.client import running_service
from ewc_tutorial.speech.learning import evaluate
from ewc_tutorial.speech.recogniser import Recogniser

RESULTS = Path(__file__).parent / "results"
LETTERS = "abcdefghijklmnopqrstuvwxyzäöüß"
#: Who does what to what, and where or when.
PHRASES = tuple(
    line.split(", ")
    for line in """
der mann, die frau, das kind, der lehrer, die ärztin, der nachbar, die schwester, mein bruder
sieht, sucht, kauft, bringt, findet, öffnet, zeigt, vergisst, holt, braucht, trägt
das buch, den schlüssel, die zeitung, einen apfel, das fenster, die tür, das brot, den brief
am morgen, in der stadt, im garten, heute abend, auf der straße, vor dem haus, jeden tag
""".strip().splitlines()
)
BUDGET = 5.0
#: ``trained`` is the end of the training, ``served`` what became of it: so far on the way from the
#: first model, 0 if nothing is served. ``cost`` is what it costs the old voices at most, in points.
#: ``tested`` stands for the recordings that the service never had, before and after.
COLUMNS = [
    "seed", "training", "state", "old_before", "new_before",
    "trained_old", "trained_new", "trained_cost",
    "fraction", "served_old", "served_new", "served_cost",
    "tested_old_before", "tested_new_before", "tested_old", "tested_new",
]  # fmt: skip
#: What a training does otherwise than the service's defaults.
TRAININGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "replay and EWC": {"lam": 100},
    "EWC": {"replay": 0, "lam": 100},
    "plain": {"replay": 0, "lam": 0},
    "plain, ten times the rate": {"replay": 0, "lam": 0, "learning_rate": 2e-2},
}


@dataclass(frozen=True)
class Voice:
    """A voice of espeak-ng.

    Attributes:
        name: as its option ``-v`` takes it.
        speed: words per minute.
        pitch: 0 to 99.
    """

    name: str
    speed: int = 160
    pitch: int = 50


OLD_VOICES = (Voice("de+m1"), Voice("de+f2", 150), Voice("de+m3", 175, 40), Voice("de+f4", 165, 55))
NEW_VOICE = Voice("de+klatt", 125, 70)


@dataclass(frozen=True)
class Size:
    """How much there is of everything; the steps are those of the first model."""

    steps: int = 1000
    first: int = 800
    old: int = 240
    corrections: int = 75
    old_tests: int = 120
    new_tests: int = 80
    width: int = 96
    layers: int = 3


def sentences(n: int, seed: int) -> list[str]:
    """Return ``n`` German sentences of three or four phrases."""
    generator = np.random.default_rng(seed)
    return [
        " ".join(generator.choice(part) for part in PHRASES[: generator.integers(3, 5)])
        for _ in range(n)
    ]


def say(text: str, voice: Voice, generator: np.random.Generator) -> np.ndarray:
    """Return a recording ``(samples,)`` at 16 kHz, each time a little faster, higher or lower."""
    speed = voice.speed * generator.uniform(0.92, 1.08)
    pitch = np.clip(voice.pitch + 5 * generator.standard_normal(), 0, 99)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "said.wav"
        options = ["-v", voice.name, "-s", f"{speed:.0f}", "-p", f"{pitch:.0f}", "-w", str(path)]
        subprocess.run(["espeak-ng", *options, text], check=True, capture_output=True)
        wave = audio.read(path)
    noise = 0.003 * generator.standard_normal(len(wave), dtype=np.float32)
    return np.clip(wave + noise, -1.0, 1.0)


def recordings(voices: Sequence[Voice], n: int, seed: int) -> list[tuple[np.ndarray, str]]:
    """Return ``n`` recordings with their texts; the voices take turns."""
    generator = np.random.default_rng((seed, 1))
    texts = sentences(n, seed)
    return [(say(text, voices[i % len(voices)], generator), text) for i, text in enumerate(texts)]


def write(folder: Path, spoken: Sequence[tuple[np.ndarray, str]]) -> list[tuple[Path, str]]:
    """Write recordings as NAME.wav with NAME.txt, and return paths and texts."""
    folder.mkdir()
    written = []
    for i, (wave, text) in enumerate(spoken):
        path = folder / f"{i:04d}.wav"
        soundfile.write(path, wave, audio.RATE, subtype="PCM_16")
        path.with_suffix(".txt").write_text(text + "\n", encoding="utf-8")
        written.append((path, text))
    return written


def cycle(
    folder: Path, base: Path, old: Path, corrections: Sequence[tuple[Path, str]], **wish: Any
) -> tuple[dict[str, Any], Path]:
    """Send corrections to a service of its own, train, and return the job and what is served."""
    data = folder / "data"
    with running_service(
        data=data, old=old, model=base, old_budget=BUDGET, threads=1, fisher_samples=100
    ) as service:
        for path, text in corrections:
            service.send(path, text)
        job = service.train(**wish)
        try:
            service.wait(job, seconds=1800.0)
        except RuntimeError:  # its model may not be served; the job says why
            if service.job(job)["state"] != "rejected":
                raise
        served = service.client.get("/health").raise_for_status().json()["model"]
        return service.job(job), data / "models" / served


def run_seed(
    seed: int, size: Size = Size(), done: Collection[str] = ()
) -> Iterator[dict[str, Any]]:
    """Let a model grow up, and yield a row for each training of it, with :data:`COLUMNS`.

    Trainings named in ``done`` are left out.
    """
    wanted = {name: wish for name, wish in TRAININGS.items() if name not in done}
    if not wanted:
        return
    start = 10 * seed
    old_tests = recordings(OLD_VOICES, size.old_tests, start + 3)
    new_tests = recordings([NEW_VOICE], size.new_tests, start + 4)
    with TemporaryDirectory() as name:
        folder = Path(name)
        old = write(folder / "old", recordings(OLD_VOICES, size.old, start + 1))
        corrections = write(folder / "new", recordings([NEW_VOICE], size.corrections, start + 2))
        first = TinyTraining(
            seed,
            size.steps,
            recordings(OLD_VOICES, size.first, start),
            tiny_recogniser(seed, LETTERS, size.width, size.layers),
        )
        first.run()
        first.recogniser.save(folder / "base")
        before = [evaluate(first.recogniser, tests) for tests in (old_tests, new_tests)]
        for training, wish in wanted.items():
            own = folder / training
            own.mkdir()
            job, served = cycle(own, folder / "base", old[0][0].parent, corrections, **wish)
            model = Recogniser(served)
            row = {"seed": seed, "training": training, "state": job["state"]}
            row |= _of_the_service(job)
            row |= dict(zip(("tested_old_before", "tested_new_before"), before, strict=True))
            row |= {"tested_old": evaluate(model, old_tests)}
            row |= {"tested_new": evaluate(model, new_tests)}
            print(training, job["outcome"] or job["error"], flush=True)
            yield row


def _of_the_service(job: dict[str, Any]) -> dict[str, Any]:
    """Return what the service measured on its own held-out recordings."""
    before, path = job["word_error_rate_before"], job["path"]
    row = {"old_before": before["old"], "new_before": before["new"]}
    if path:
        row |= {f"trained_{key}": path[0][key] for key in ("old", "new", "cost")}
    row["fraction"] = job["fraction"] if job["state"] == "done" else 0.0
    for point in path:
        if point["fraction"] == row["fraction"]:
            row |= {f"served_{key}": point[key] for key in ("old", "new", "cost")}
    return row


def table_of(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Return rows as they are written down."""
    return pd.DataFrame(rows, columns=COLUMNS).round(4)


def markdown(table: pd.DataFrame) -> str:
    """Return a table as a page."""
    lines = [
        "# A full cycle in German",
        "",
        "espeak-ng's voices, a small CTC model, corrections of a new voice, a training by the "
        f"running service, and its budget of {BUDGET:g} points for the old voices. *Trained*: word "
        "error rates (%) at the end of the training, on recordings that the service holds out, and "
        "how many points it costs the old voices there, at most. *Served*: how far on the way from "
        "the first model to that, and what it costs at most. The last two columns are on "
        "recordings that the service never had, of the first model and of what is served. "
        "`python -m benchmarks.german_speech` makes this file.",
        "",
        "## What is served, on recordings that the service never had",
        "",
        "Word error rate after the training less that before, in points, and on the new voice less "
        "that of the defaults; mean ± standard error of the differences within each seed.",
        "",
        "| training | seeds | old voices | new voice | new voice, beside the defaults |",
        "| --- | ---: | ---: | ---: | ---: |",
        *summary(table),
        "",
        "## Each training",
        "",
        "| seed | training | trained: old | new | cost | served | cost | old voices | new voice |",
        "| ---: | --- | ---: | ---: | ---: | --- | ---: | --- | --- |",
    ]
    for row in table.itertuples():
        trained = f"{100 * row.trained_old:.1f} | {100 * row.trained_new:.1f}"
        served, cost = "nothing", "—"
        if row.fraction > 0:
            served, cost = f"{row.fraction:.0%} of the way", f"{row.served_cost:.1f}"
        lines.append(
            f"| {row.seed} | {row.training} | {trained} | {row.trained_cost:.1f} "
            f"| {served} | {cost} "
            f"| {100 * row.tested_old_before:.1f} → {100 * row.tested_old:.1f} "
            f"| {100 * row.tested_new_before:.1f} → {100 * row.tested_new:.1f} |"
        )
    return "\n".join(lines) + "\n"


def summary(table: pd.DataFrame) -> list[str]:
    """Return a line for each training: how far what is served differs, over the seeds."""
    of = {name: rows.set_index("seed") for name, rows in table.groupby("training", sort=False)}
    lines = []
    for name, rows in of.items():
        old = rows.tested_old - rows.tested_old_before
        new = rows.tested_new - rows.tested_new_before
        beside = "—"
        if "defaults" in of and name != "defaults":
            beside = _mean((rows.tested_new - of["defaults"].tested_new).dropna())
        lines.append(f"| {name} | {len(rows)} | {_mean(old)} | {_mean(new)} | {beside} |")
    return lines


def _mean(shares: pd.Series) -> str:
    """Return mean ± standard error in points; of one share, itself."""
    error = f" ± {100 * shares.sem():.1f}" if len(shares) > 1 else ""
    return f"{100 * shares.mean():+.1f}{error}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(parser.parse_args().seeds)
    torch.set_num_threads(1)
    path = RESULTS / "german_speech.csv"
    stored = pd.read_csv(path) if path.exists() else table_of([])
    for seed in seeds:
        done = set(stored.training[stored.seed == seed])
        for row in run_seed(seed, done=done):
            stored = pd.concat([stored, table_of([row])], ignore_index=True)
            stored.to_csv(path, index=False)
    (RESULTS / "german_speech.md").write_text(markdown(stored), encoding="utf-8")


if __name__ == "__main__":
    main()
