"""How the service does, and what it hears."""

from __future__ import annotations

from typing import Any

from anyio import CapacityLimiter, move_on_after, to_thread
from fastapi import Depends, FastAPI, Request, UploadFile

from ewc_tutorial.speech import audio as recordings
from ewc_tutorial.speech.base import stand_in
from ewc_tutorial.speech.disk import DISK_ERRORS, disk_problem
from ewc_tutorial.speech.messages import Health, Problem, Transcript
from ewc_tutorial.speech.routes.common import check_file_name, exactly, problems
from ewc_tutorial.speech.service import Service
from ewc_tutorial.speech.settings import Settings

#: So long the index and a new model may take before the answer comes without them.
HEALTH_SECONDS = 2.0


def add_health(app: FastAPI) -> None:
    """Add ``/health``, which never needs a token."""
    # Threads of its own: those for requests may all be busy.
    threads = CapacityLimiter(4)

    @app.get("/health", responses={413: {"model": Problem}})
    async def health(request: Request) -> Health:
        """Whether the service answers, and whether its disk does. It never needs a token."""
        service: Service = request.app.state.service
        with move_on_after(HEALTH_SECONDS):
            return await to_thread.run_sync(
                _health, service, limiter=threads, abandon_on_cancel=True
            )
        model = service.serving.peek()[0]
        problem = (
            f"The index, the disk or the storage has not answered for {HEALTH_SECONDS:g} seconds."
        )
        return Health(status="degraded", model=model, training=None, problem=problem)


def _health(service: Service) -> Health:
    training, problem = None, stand_in(service.models)
    try:
        service.corrections.storage.look()
        training = service.jobs.unfinished()
    except DISK_ERRORS as error:
        problem = disk_problem(error)[1].replace("; nothing was changed", "")
    return Health(
        status="degraded" if problem else "ok",
        model=service.serving.current()[0],
        training=training,
        problem=problem,
    )


def add_transcription(app: FastAPI, settings: Settings, bearer: list[Any]) -> None:
    """Add ``/transcribe``."""
    # One is heard while the next is decoded; more at once would take longer for each.
    threads = CapacityLimiter(2)

    @app.post(
        "/transcribe",
        dependencies=[*bearer, Depends(exactly("audio"))],
        responses=problems(400, 415, 422),
    )
    async def transcribe(request: Request, audio: UploadFile) -> Transcript:
        """What the model in use hears. The recording is not kept."""
        check_file_name(audio.filename)
        serving = request.app.state.service.serving

        def heard() -> Transcript:
            _, wave = recordings.decode(audio.file, settings.max_seconds)
            text, model = serving.transcribe(wave)
            return Transcript(text=text, model=model)

        with serving.queue():
            return await to_thread.run_sync(heard, limiter=threads)
