"""How the service does, and what it hears."""

from __future__ import annotations

import sqlite3
from typing import Any

from fastapi import Depends, FastAPI, Request, UploadFile

from ewc_tutorial.speech import audio as recordings
from ewc_tutorial.speech.disk import disk_problem
from ewc_tutorial.speech.messages import Health, Problem, Transcript
from ewc_tutorial.speech.routes.common import check_file_name, exactly, problems
from ewc_tutorial.speech.service import Service
from ewc_tutorial.speech.settings import Settings


def add_health(app: FastAPI) -> None:
    """Add ``/health``, which never needs a token."""

    @app.get("/health", responses={413: {"model": Problem}})
    def health(request: Request) -> Health:
        """Whether the service answers, and whether its disk does. It never needs a token."""
        service: Service = request.app.state.service
        training, problem = None, None
        try:
            training = service.jobs.unfinished()
        except (OSError, sqlite3.Error) as error:
            problem = disk_problem(error)[1]
        return Health(
            status="degraded" if problem else "ok",
            model=service.serving.current()[0],
            training=training,
            problem=problem,
        )


def add_transcription(app: FastAPI, settings: Settings, bearer: list[Any]) -> None:
    """Add ``/transcribe``."""

    @app.post(
        "/transcribe",
        dependencies=[*bearer, Depends(exactly("audio"))],
        responses=problems(400, 422),
    )
    def transcribe(request: Request, audio: UploadFile) -> Transcript:
        """What the model in use hears. The recording is not kept."""
        check_file_name(audio.filename)
        _, wave = recordings.decode(audio.file, settings.max_seconds)
        text, model = request.app.state.service.serving.transcribe(wave)
        return Transcript(text=text, model=model)
