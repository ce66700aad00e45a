"""Corrections sent to a service that is killed again and again: nothing is lost, doubled, mixed up.

    python -m benchmarks.speech_kills --database postgresql://USER@HOST/NAME --folder FOLDER

Four senders send seeded recordings, each with a text of its own, while the service is ended by
``SIGKILL`` at seeded moments and started again. Who gets no answer sends the same once more, except
every tenth time. In the end every correction that was answered with 200 or 201 must be there once,
with its own recording and text, in the index and on the disk, and of those that were not answered
each once or not at all.

What was answered is written to ``FOLDER``, and the same command goes on from there. Without
``--database`` the index is a file. Adds a row to ``benchmarks/results/speech_kills.csv``.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import multiprocessing
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import soundfile

from ewc_tutorial.speech.settings import PREFIX
from ewc_tutorial.speech.synthetic import LETTERS

RESULTS = Path(__file__).parent / "results" / "speech_kills.csv"
SENDERS = 4
#: One sender in so many that got no answer gives up.
GIVES_UP = 10
ANSWERS = "answers.jsonl"


@dataclass(frozen=True)
class Outcome:
    """What became of all uploads; the last four must be 0.

    Attributes:
        uploads, kills: how many there were.
        answered: with 200 or 201.
        resent: how often somebody got no answer and sent the same again.
        lost: answered, and not there.
        doubled: there more than once.
        mixed_up: with the text of another, or with an answer that was not about it.
        damaged: of which index and files say different things.
    """

    uploads: int
    kills: int
    answered: int
    resent: int
    lost: int
    doubled: int
    mixed_up: int
    damaged: int


def recording(number: int) -> bytes:
    """Return half a second of noise that no other number has, as WAV."""
    file = io.BytesIO()
    sound = 0.1 * np.random.default_rng(number).standard_normal(8_000)
    soundfile.write(file, sound, 16_000, format="WAV", subtype="PCM_16")
    return file.getvalue()


def text(number: int) -> str:
    """Return a word that no other number has."""
    word = ""
    while number:
        number, digit = divmod(number, len(LETTERS))
        word += LETTERS[digit]
    return word or LETTERS[0]


class Service:
    """A service in a process that is forked from one which has its modules already, for a start of
    its own takes seconds.

    Args:
        settings: by their names in small letters; what is not given is the default.
    """

    def __init__(self, **settings: Any) -> None:
        folder = Path(settings["data"])
        folder.mkdir(parents=True, exist_ok=True)
        said = folder / "said.txt"
        said.unlink(missing_ok=True)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["ewc_tutorial.speech.__main__"])
        self._process = context.Process(target=serve, args=(settings, folder), daemon=True)
        self._process.start()
        while not (said.exists() and said.read_text().endswith("/docs\n")):
            assert self._process.is_alive(), (folder / "server.log").read_text()
            time.sleep(0.02)
        address = said.read_text().split()[-1].removesuffix("/docs")
        self.client = httpx.Client(base_url=address, timeout=60.0, trust_env=False)

    def kill(self) -> None:
        """End it as a power cut would."""
        self._process.kill()
        self._process.join()
        self.client.close()


def serve(settings: dict[str, Any], folder: Path) -> None:
    """Be a service."""
    from ewc_tutorial.speech.__main__ import main

    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        del os.environ[name]
    for name, value in ({"port": 0} | settings).items():
        os.environ[PREFIX + name.upper()] = str(value)
    sys.stdout = open(folder / "said.txt", "w")  # noqa: SIM115 (until the process ends)
    sys.stderr = open(folder / "server.log", "a")  # noqa: SIM115
    main()


class Attack:
    """Sends corrections to a service and kills it.

    Args:
        folder: keeps the service's data and what was answered; may be from a run that was cut off.
        uploads, kills, seed: how many, and of the moments.
        settings: of the service.
    """

    def __init__(
        self, folder: Path, uploads: int, kills: int, seed: int, settings: dict[str, Any]
    ) -> None:
        self._uploads, self._kills = uploads, kills
        self._settings = settings | {"data": folder / "data"}
        self._random = random.Random(seed)
        self._answers = folder / ANSWERS
        self._lock = threading.Lock()
        self._up = threading.Event()
        self._resent = 0
        self._answered: dict[int, dict[str, Any]] = {}
        self._given_up: set[int] = set()
        if self._answers.exists():
            for line in self._answers.read_text(encoding="utf-8").splitlines():
                number, row = json.loads(line)
                self._answered[number] = row
        self._numbers = iter([n for n in range(uploads) if n not in self._answered])

    def run(self) -> Outcome:
        """Send everything, and look at what is there."""
        self._service = Service(**self._settings)
        self._up.set()
        senders = [threading.Thread(target=self._send_all) for _ in range(SENDERS)]
        for sender in senders:
            sender.start()
        for killed in range(1, self._kills + 1):
            # At a moment between this kill's share of the answers and the next's.
            share = self._uploads * killed / (self._kills + 1)
            while len(self._answered) + len(self._given_up) < share:
                time.sleep(0.01)
            time.sleep(self._random.uniform(0, 0.3))
            self._up.clear()
            self._service.kill()
            self._service = Service(**self._settings)
            self._up.set()
        for sender in senders:
            sender.join()
        try:
            return self._look()
        finally:
            self._service.kill()

    def _send_all(self) -> None:
        while True:
            with self._lock:
                number = next(self._numbers, None)
            if number is None:
                return
            self._send(number)

    def _send(self, number: int) -> None:
        patience = random.Random(number)
        while True:
            self._up.wait()
            try:
                with httpx.Client(
                    base_url=self._service.client.base_url, trust_env=False
                ) as client:
                    answer = client.post(
                        "/upload/corrections",
                        files={"audio": ("x.wav", recording(number))},
                        data={"text": text(number)},
                        timeout=60.0,
                    )
                if answer.status_code in (200, 201):
                    with self._lock, open(self._answers, "a", encoding="utf-8") as file:
                        self._answered[number] = answer.json()
                        file.write(json.dumps([number, answer.json()]) + "\n")
                    return
                assert answer.status_code in (503, 507), answer.text
            except httpx.TransportError:
                pass
            if patience.randrange(GIVES_UP) == 0:
                with self._lock:
                    self._given_up.add(number)
                return
            self._resent += 1
            time.sleep(0.05)

    def _there(self) -> Iterator[dict[str, Any]]:
        after = 0
        while True:
            page = self._service.client.get(f"/corrections?limit=1000&after={after}").json()
            if not page["corrections"]:
                return
            yield from page["corrections"]
            after = page["corrections"][-1]["seq"]

    def _look(self) -> Outcome:
        files = {
            path.name: (
                digest((path / "audio.wav").read_bytes()),
                (path / "text.txt").read_text(encoding="utf-8"),
            )
            for path in (self._settings["data"] / "corrections").iterdir()
        }
        return judge(
            self._uploads, self._kills, self._resent, self._answered, [*self._there()], files
        )


def judge(
    uploads: int,
    kills: int,
    resent: int,
    answered: Mapping[int, Mapping[str, Any]],
    there: Sequence[Mapping[str, Any]],
    files: Mapping[str, tuple[str, str]],
) -> Outcome:
    """Compare what was sent and answered with what is there.

    Args:
        uploads, kills, resent: as in :class:`Outcome`.
        answered: the answers by the number of the upload.
        there: the rows of the index.
        files: hash of the recording and text on the disk, by the correction's id.
    """
    texts = {digest(recording(n)): text(n) for n in range(uploads)}
    times = Counter(row["sha256"] for row in there)
    rows = {row["id"]: row for row in there}
    numbers = {row["seq"] for row in there}
    wanted = {n: digest(recording(n)) for n in answered}
    return Outcome(
        uploads=uploads,
        kills=kills,
        answered=len(answered),
        resent=resent,
        lost=sum(times[sha256] == 0 for sha256 in wanted.values()),
        doubled=sum(n - 1 for n in times.values()) + len(there) - len(numbers),
        mixed_up=sum(row["text"] != texts.get(row["sha256"]) for row in there)
        + sum(
            (answer["sha256"], answer["text"]) != (wanted[n], text(n))
            or (answer["id"] in rows and rows[answer["id"]] != answer)
            for n, answer in answered.items()
        ),
        damaged=len(
            {(i, row["sha256"], row["sent"]) for i, row in rows.items()}
            ^ {(i, *content) for i, content in files.items()}
        ),
    )


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--database", default=None)
    parser.add_argument("--model", default="tiny", help="what the service begins with")
    parser.add_argument("--uploads", type=int, default=1500)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {"model": arguments.model}
    if arguments.database is not None:
        settings["database"] = arguments.database
    attack = Attack(arguments.folder, arguments.uploads, arguments.kills, arguments.seed, settings)
    began = time.monotonic()
    outcome = attack.run()
    row = {
        "index": "PostgreSQL" if arguments.database else "SQLite",
        "seed": arguments.seed,
        **asdict(outcome),
        "minutes": round((time.monotonic() - began) / 60, 1),
    }
    print(row)
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    main()
