"""Starts the server from Python and talks to it: for the lesson and the tests."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from ewc_tutorial.speech.settings import PREFIX

_START_SECONDS = 120.0


class RunningService:
    """A server in a process of its own, on a free port of this machine.

    Args:
        settings: by their names in small letters, as in :class:`Settings`; what is not given comes
            from defaults, not from the environment.

    Attributes:
        client: an ``httpx.Client`` for it, which sends the token if there is one.
    """

    def __init__(self, **settings: Any) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(PREFIX)}
        environment |= {
            f"{PREFIX}{key.upper()}": str(value) for key, value in ({"port": 0} | settings).items()
        }
        self._log = Path(settings["data"]) / "server.log"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with open(self._log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ewc_tutorial.speech"],
                env=environment, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            raise RuntimeError(f"The service did not start: {self.log().strip()}")
        token = settings.get("token")
        self.client = httpx.Client(
            base_url=line.split()[-1].removesuffix("/docs"),
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=60.0,
            trust_env=False,
        )
        self._wait_until_it_answers()

    def log(self) -> str:
        """Return what the server has written to its standard error."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def send(self, path: Path, text: str) -> dict[str, Any]:
        """Send a correction and return what the service says of it."""
        answer = self.client.post(
            "/upload/corrections",
            files={"audio": (path.name, path.read_bytes())},
            data={"text": text},
        )
        answer.raise_for_status()
        return answer.json()

    def train(self, **wish: Any) -> str:
        """Start a training and return its id."""
        answer = self.client.post("/train/ewc", json=wish)
        answer.raise_for_status()
        return answer.json()["id"]

    def job(self, job: str) -> dict[str, Any]:
        """Return how a training goes."""
        return self.client.get(f"/train/ewc/{job}").raise_for_status().json()

    def wait(self, job: str, seconds: float = 300.0) -> dict[str, Any]:
        """Wait until a training is over and return it.

        Raises:
            RuntimeError: it has failed, was cancelled, or its model may not be served.
            TimeoutError: it is not over after ``seconds``.
        """
        deadline = time.monotonic() + seconds
        while (state := self.job(job))["state"] in ("waiting", "queued", "running"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"Training {job} is still in the phase {state['phase']!r}.")
            time.sleep(0.1)
        if state["state"] != "done":
            verb = "has failed" if state["state"] == "failed" else f"was {state['state']}"
            raise RuntimeError(f"Training {job} {verb}: {state['error']}")
        return state

    def kill(self) -> None:
        """End the server as a power cut would: it has no chance to tidy up."""
        self.process.kill()
        self._close()

    def stop(self) -> None:
        """End the server as Ctrl+C would."""
        self.process.terminate()
        try:
            self.process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self._close()

    def _close(self) -> None:
        self.process.wait()
        self.process.stdout.close()
        self.client.close()

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if self.client.get("/health").is_success:
                    return
            except httpx.TransportError:
                time.sleep(0.05)
        self.kill()
        raise RuntimeError(f"The service did not start: {self.log().strip()}")


@contextmanager
def running_service(**settings: Any) -> Iterator[RunningService]:
    """Start a server for a ``with`` block and stop it afterwards."""
    service = RunningService(**settings)
    try:
        yield service
    finally:
        if service.process.poll() is None:
            service.stop()
