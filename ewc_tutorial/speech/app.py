"""The HTTP interface, as FastAPI builds it from the functions in ``routes`` and their types."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline

from ewc_tutorial.speech import routes
from ewc_tutorial.speech.database import cause
from ewc_tutorial.speech.disk import DISK_ERRORS, disk_problem
from ewc_tutorial.speech.errors import RefusedError
from ewc_tutorial.speech.gate import Gate
from ewc_tutorial.speech.metrics import Counting, Metrics
from ewc_tutorial.speech.service import Service
from ewc_tutorial.speech.settings import Settings

#: So long a sender should wait who is told that there are too many.
_RETRY_SECONDS = "10"
_log = logging.getLogger(__name__)


def create_app(settings: Settings, service: Service | None = None) -> FastAPI:
    """Return the application; its lifespan holds the data folder's lock.

    Args:
        settings: as :class:`~ewc_tutorial.speech.settings.Settings` reads them.
        service: already started; without it, one is made and started with the server.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        running = service
        if running is None:
            running = Service(settings)
            running.start()
        app.state.service = running
        try:
            yield
        finally:
            running.stop()

    bearer = [Depends(HTTPBearer(auto_error=False))] if settings.token is not None else []
    app = FastAPIOffline(  # its page of documents loads nothing from elsewhere
        title="Speech corrections",
        version="1",
        description="Collects corrected transcriptions and teaches them to a speech recogniser, "
        "with Elastic Weight Consolidation for the voices it knows already.",
        lifespan=lifespan,
    )
    app.add_middleware(Gate, settings=settings)
    if settings.allowed_origins:
        # Around the gate: a browser asks beforehand, without a token, whether it may ask.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["GET", "POST", "PATCH", "DELETE"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["Retry-After"],
            max_age=600,
        )
    app.add_exception_handler(RefusedError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    for kind in DISK_ERRORS:
        app.add_exception_handler(kind, _no_disk)
    routes.add_health(app)
    for add in (
        routes.add_corrections,
        routes.add_trainings,
        routes.add_models,
        routes.add_transcription,
    ):
        add(app, settings, bearer)
    metrics = Metrics()
    routes.add_watching(app, settings, bearer, metrics)
    # Around all others, so that what they refuse is counted.
    app.add_middleware(Counting, metrics=metrics, log=settings.log_format == "json")
    return app


async def _refused(request: Request, error: RefusedError) -> JSONResponse:
    headers = {"Retry-After": _RETRY_SECONDS} if error.status == 503 else None
    return JSONResponse({"detail": error.sentence}, error.status, headers)


async def _no_disk(request: Request, error: Exception) -> JSONResponse:
    """Answer when files or the index cannot be read or written."""
    _log.error("%s %s: %s", request.method, request.url.path, cause(error))
    status, sentence = disk_problem(error)
    return JSONResponse({"detail": sentence}, status, {"Retry-After": _RETRY_SECONDS})


async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    """Answer with one sentence. Escaped, for what was sent may be no Unicode text."""
    first = error.errors()[0]
    where = " ".join(ascii(str(part))[1:-1] for part in first["loc"])
    what = ascii(first["msg"])[1:-1]
    return JSONResponse({"detail": f"{where}: {what}."}, 422)
