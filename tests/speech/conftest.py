"""One small trained model and one folder of earlier speech for all tests of the service."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import forked
import numpy as np
import postgresql
import pytest

#: What the small model needs otherwise than a large one.
TINY = {
    "steps": 60, "fisher_samples": 30,
    "checkpoint_every": 10, "threads": 1, "max_tests": 15, "lam": 100.0,
    "old_budget": 100.0,  # the small model forgets much; test_acceptance is about the budget
}  # fmt: skip


@pytest.fixture(autouse=True, scope="session")
def started_by_a_fork() -> None:
    forked.start_services_by(forked.popen)


@pytest.fixture(autouse=True)
def temporary_files(monkeypatch) -> None:
    """The service's command makes its own folder that of all temporary files; after a test in which
    it ran here, it is not."""
    monkeypatch.setattr(tempfile, "tempdir", tempfile.gettempdir())


@pytest.fixture
def start_trainings_by(monkeypatch) -> Callable[[Callable[..., Any]], None]:
    """Puts a function in the place of Popen for the runner of trainings alone.

    The PostgreSQL server, for one, needs the real one, and any test may be the first to start it.
    """
    from ewc_tutorial.speech import runner

    def put(popen: Callable[..., Any]) -> None:
        monkeypatch.setattr(runner, "subprocess", forked.subprocess_with(popen))

    return put


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """The small model, trained for two thirds of its time, as a folder.

    Parallel test processes share it: the first trains, the others wait.
    """
    from ewc_tutorial.speech.base import train_tiny
    from ewc_tutorial.speech.database import lock_folder

    shared = tmp_path_factory.getbasetemp()
    if shared.name.startswith("popen-"):
        shared = shared.parent
    lock = lock_folder(shared, "tiny.lock", seconds=300.0)
    folder = shared / "tiny_model"
    if not folder.exists():
        train_tiny(steps=260, recordings=250).save(shared / "half")
        (shared / "half").rename(folder)
    lock.close()
    return folder


@pytest.fixture(scope="session")
def server() -> Iterator[postgresql.Server]:
    """A PostgreSQL server, one for all tests."""
    if reason := postgresql.why_not():
        pytest.skip(reason)
    pytest.importorskip("psycopg", reason="the group 'speech-hosts' is not installed")
    with postgresql.running() as server:
        yield server


class Indexes:
    """Indexes of one kind, by the folder that their recordings are in."""

    def __init__(self, server: postgresql.Server | None) -> None:
        self._server = server
        self._addresses: dict[Path, str] = {}
        self._opened: list[Any] = []

    def place(self, folder: Path) -> Path | str:
        """Return where the index of a folder is: it may not be there yet, or be empty."""
        if self._server is None:
            return folder / "service.sqlite3"
        if folder not in self._addresses:
            self._addresses[folder] = self._server.new(f"t{uuid.uuid4().hex}")
        return self._addresses[folder]

    def store(self, folder: Path) -> Any:
        """Return the corrections in a folder."""
        from ewc_tutorial.speech.corrections import Corrections
        from ewc_tutorial.speech.database import Database

        folder.mkdir(exist_ok=True)
        self._opened.append(Database(self.place(folder)))
        return Corrections(folder, self._opened[-1], 10**6, 30.0)

    def lose(self, folder: Path) -> None:
        """Delete the index of a folder."""
        self.close()
        self._addresses.pop(folder, None)
        for path in folder.glob("service.sqlite3*"):
            path.unlink()

    def close(self) -> None:
        """Let go of all that were opened here."""
        while self._opened:
            self._opened.pop().close()


@pytest.fixture(params=["sqlite", "postgresql"])
def indexes(request) -> Iterator[Indexes]:
    """Indexes of either kind."""
    on_server = request.param == "postgresql"
    made = Indexes(request.getfixturevalue("server") if on_server else None)
    yield made
    made.close()


@pytest.fixture
def store(indexes) -> Callable[[Path], Any]:
    """Makes of a folder its corrections, with an index of either kind."""
    return indexes.store


@pytest.fixture(scope="session")
def old_speech(tmp_path_factory) -> Path:
    from ewc_tutorial.speech import synthetic

    folder = tmp_path_factory.mktemp("old")
    synthetic.write_folder(folder, synthetic.OLD_SPEAKERS, 45, seed=1)
    return folder


@pytest.fixture(scope="session")
def new_speech(tmp_path_factory) -> list[tuple[Path, str]]:
    """Recordings of the new speaker with their texts."""
    from ewc_tutorial.speech import synthetic

    folder = tmp_path_factory.mktemp("new")
    return synthetic.write_folder(folder, [synthetic.NEW_SPEAKER], 40, seed=2)


@pytest.fixture(scope="session")
def settings(tiny_model, old_speech) -> dict[str, Any]:
    """Settings of a service with the small model; a test adds ``data``."""
    return {"model": str(tiny_model), "old": str(old_speech), **TINY}


@pytest.fixture
def start(tmp_path, settings) -> Iterator[Callable[..., Any]]:
    """Starts servers on the test's own folder; those still running at the end are stopped."""
    from ewc_tutorial.speech.client import RunningService

    running = []

    def start(**more: Any) -> RunningService:
        running.append(RunningService(**({"data": tmp_path / "data"} | settings | more)))
        return running[-1]

    yield start
    for service in running:
        if service.process.poll() is None:
            service.stop()


@pytest.fixture
def refused_start(tmp_path, monkeypatch) -> Callable[..., str]:
    """Runs the service's command with settings that it cannot use, and returns what it says."""

    def refused_start(**settings: str) -> str:
        from ewc_tutorial.speech import __main__

        for name, value in {"DATA": str(tmp_path), **settings}.items():
            monkeypatch.setenv(f"EWC_SPEECH_{name}", value)
        for part, name in ((__main__.logs, "set_up"), (os, "umask")):
            monkeypatch.setattr(part, name, lambda _: None)
        with pytest.raises(SystemExit) as caught:
            __main__.main()
        return str(caught.value)

    return refused_start


@pytest.fixture(scope="session")
def service(tmp_path_factory, settings) -> Iterator[Any]:
    """One server for all tests that leave it as usable as before. It has no earlier speech, so no
    request starts a training."""
    from ewc_tutorial.speech.client import running_service

    empty = {"data": tmp_path_factory.mktemp("data"), "old": tmp_path_factory.mktemp("no_old")}
    with running_service(**(settings | empty)) as running:
        yield running


@pytest.fixture
def wav(tmp_path) -> Callable[..., Path]:
    """Writes a file of noise and returns its path."""
    import soundfile

    def write(
        name: str = "x.wav",
        seconds: float = 1.0,
        rate: int = 16_000,
        channels: int = 1,
        seed: int = 0,
        **options: Any,
    ) -> Path:
        shape = (int(seconds * rate), channels)
        path = tmp_path / name
        sound = 0.1 * np.random.default_rng(seed).standard_normal(shape)
        soundfile.write(path, sound, rate, **options)
        return path

    return write
