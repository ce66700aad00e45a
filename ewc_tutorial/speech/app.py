"""The HTTP interface, as FastAPI builds it from these functions and their types."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Form, HTTPException, Query, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline

from ewc_tutorial.speech import audio
from ewc_tutorial.speech.corrections import Corrections
from ewc_tutorial.speech.database import Database, lock_folder
from ewc_tutorial.speech.errors import RefusedError
from ewc_tutorial.speech.gate import Gate
from ewc_tutorial.speech.jobs import Jobs
from ewc_tutorial.speech.messages import (
    CorrectionOut,
    CorrectionPage,
    Health,
    Job,
    Problem,
    TrainRequest,
    TrainStarted,
    Transcript,
)
from ewc_tutorial.speech.recogniser import SMALL, Recogniser
from ewc_tutorial.speech.runner import Runner
from ewc_tutorial.speech.settings import Settings
from ewc_tutorial.speech.versions import Versions
from ewc_tutorial.speech.worker import old_files, start_version

_MEANINGS = {
    400: "The body cannot be read.",
    401: "The token is missing or wrong.",
    403: "The request does not come from this machine, and there is no token.",
    404: "There is no such thing.",
    409: "The state of the service does not allow it.",
    413: "It is too large.",
    422: "What was sent cannot be used.",
}


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {s: {"model": Problem, "description": _MEANINGS[s]} for s in (401, 403, 413, *statuses)}


class Service:
    """Everything that the routes need, made when the server starts."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        settings.data.mkdir(parents=True, exist_ok=True)
        self._lock = lock_folder(settings.data, "server.lock")
        database = Database(settings.data / "service.sqlite3")
        self.corrections = Corrections(
            settings.data, database, settings.max_bytes, settings.max_seconds
        )
        self.jobs = Jobs(database)
        self.models = Versions(settings.data / "models")
        self.runner = Runner(settings, self.jobs)
        self._loading = threading.Lock()
        self._served: tuple[str, Recogniser] | None = None

    def start(self) -> None:
        """Put in order what an earlier end has left, and take up its training."""
        self.corrections.recover()
        self.served()
        self.runner.recover()

    def stop(self) -> None:
        self.runner.stop()
        self._lock.close()

    def served(self) -> tuple[str, Recogniser]:
        """Return the version in use and the model, loaded anew if the version has changed."""
        with self._loading:
            name = self.models.current()
            if self._served is None or self._served[0] != name:
                self._served = (name, Recogniser(self.models.path(name)))
            return self._served

    def transcribe(self, wave: Any) -> Transcript:
        name, recogniser = self.served()
        with self._loading:
            (text,) = recogniser.transcribe([wave])
        return Transcript(text=text, model=name)


def create_app(settings: Settings) -> FastAPI:
    """Return the application; its lifespan holds the data folder's lock.

    Args:
        settings: as :class:`~ewc_tutorial.speech.settings.Settings` reads them.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service = app.state.service = Service(settings)
        service.start()
        try:
            yield
        finally:
            service.stop()

    bearer = [Depends(HTTPBearer(auto_error=False))] if settings.token is not None else []
    app = FastAPIOffline(  # its page of documents loads nothing from elsewhere
        title="Speech corrections",
        version="1",
        description="Collects corrected transcriptions and teaches them to a speech recogniser, "
        "with Elastic Weight Consolidation for the voices it knows already.",
        lifespan=lifespan,
    )
    app.add_middleware(Gate, settings=settings)
    app.add_exception_handler(RefusedError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    _add_health(app)
    _add_corrections(app, settings, bearer)
    _add_training(app, settings, bearer)
    _add_transcription(app, settings, bearer)
    return app


def _add_health(app: FastAPI) -> None:
    @app.get("/health", responses={413: {"model": Problem}})
    def health(request: Request) -> Health:
        """Whether the service answers. This route never needs a token."""
        service: Service = request.app.state.service
        return Health(
            status="ok",
            model=service.models.current() or "",
            training=service.jobs.unfinished(),
        )


def _add_corrections(app: FastAPI, settings: Settings, bearer: list[Any]) -> None:
    @app.post(
        "/upload/corrections",
        status_code=201,
        dependencies=[*bearer, Depends(_exactly("audio", "text"))],
        responses={
            200: {"model": CorrectionOut, "description": "The same had been sent before."},
            **_problems(400, 422),
        },
    )
    def upload_correction(
        request: Request,
        response: Response,
        audio: UploadFile,
        text: Annotated[str, Form(description="what was really said")],
    ) -> CorrectionOut:
        """Keep a recording (WAV or FLAC) with its corrected text.

        The answer comes when both are whole on the disk. Sending the same again changes nothing.
        """
        service: Service = request.app.state.service
        check_file_name(audio.filename)
        text = service.served()[1].spelling.clean(text, settings.max_characters)
        correction, new = service.corrections.add(
            audio.file, text, lambda clip: service.served()[1].check_room(text, clip.seconds)
        )
        if not new:
            response.status_code = 200
        return CorrectionOut.model_validate(correction)

    @app.get("/corrections", dependencies=bearer, responses=_problems(422))
    def list_corrections(
        request: Request,
        after: Annotated[int, Query(ge=0, lt=2**63)] = 0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> CorrectionPage:
        """The corrections in the order of arrival, a page at a time."""
        service: Service = request.app.state.service
        page = [CorrectionOut.model_validate(c) for c in service.corrections.page(after, limit)]
        return CorrectionPage(total=service.corrections.count(), corrections=page)


def _add_training(app: FastAPI, settings: Settings, bearer: list[Any]) -> None:
    @app.post(
        "/train/ewc",
        status_code=202,
        dependencies=bearer,
        responses=_problems(400, 409, 422),
    )
    def start_training(request: Request, wish: TrainRequest | None = None) -> TrainStarted:
        """Start a training on all corrections so far, held by what matters for earlier speech."""
        service: Service = request.app.state.service
        wish = wish or TrainRequest()
        last_seq = service.corrections.last_seq()
        new, new_tests = service.corrections.split(last_seq, settings.hold_out)
        if not new or not new_tests:
            raise RefusedError(
                f"There are {len(new) + len(new_tests)} corrections; a training needs at least "
                "2, one to learn from and one to measure on.",
                409,
            )
        if not old_files(settings.old_folder):
            raise RefusedError(
                f"There is no earlier speech in {str(settings.old_folder)!r} to measure importance "
                "on, and corrections cannot take its place: put NAME.wav with NAME.txt there.",
                409,
            )
        job = service.jobs.create(
            {"plan": _plan(settings, wish, small=hasattr(service.served()[1].model.config, SMALL))},
            last_seq,
            start_version(service.models, wish.start),
        )
        service.runner.start(job)
        return TrainStarted(id=job)

    @app.get("/train/ewc/{job_id}", dependencies=bearer, responses=_problems(404, 422))
    def get_training(request: Request, job_id: str) -> Job:
        """How a training goes, or went."""
        service: Service = request.app.state.service
        row = service.jobs.get(job_id)
        if row is None:
            raise HTTPException(404, "There is no training of this id.")
        results = row["results"]
        return Job(
            **{key: row[key] for key in row.keys() & Job.model_fields.keys()},
            lam=row["options"]["plan"]["lam"],
            word_error_rate_before=results.get("before"),
            word_error_rate_after=results.get("after"),
            recordings=results.get("recordings", {}),
        )


def _add_transcription(app: FastAPI, settings: Settings, bearer: list[Any]) -> None:
    @app.post(
        "/transcribe",
        dependencies=[*bearer, Depends(_exactly("audio"))],
        responses=_problems(400, 422),
    )
    def transcribe(request: Request, audio: UploadFile) -> Transcript:
        """What the model in use hears. The recording is not kept."""
        check_file_name(audio.filename)
        with TemporaryDirectory() as folder:
            path = Path(folder) / "audio"
            path.write_bytes(audio.file.read())
            wave = read_checked(path, settings.max_seconds)
        return request.app.state.service.transcribe(wave)


def read_checked(path: Path, max_seconds: float) -> Any:
    """Return the samples of a file that anybody may have sent.

    Raises:
        RefusedError: it is no acceptable recording.
    """
    audio.examine(path, max_seconds)
    return audio.read(path)


def check_file_name(name: str | None) -> None:
    """Check the name that a sender gives a file. It is never used, but tricks are refused.

    Raises:
        RefusedError: it is empty, a path, or has control characters.
    """
    if (
        not name
        or len(name) > 255
        or name in (".", "..")
        or any(c in "/\\:" or not c.isprintable() for c in name)
    ):
        raise RefusedError("the file's name must be a plain one, such as recording.wav.")


def _exactly(*names: str) -> Any:
    """Return a dependency that wants each of these form fields once and no others."""

    async def check(request: Request) -> None:
        given = [name for name, _ in (await request.form()).multi_items()]
        if sorted(given) != sorted(names):
            raise RefusedError(
                f"the form must have {' and '.join(names)}, each once, and nothing else."
            )

    return check


def _plan(settings: Settings, wish: TrainRequest, small: bool) -> dict[str, Any]:
    names = (
        "lam", "steps", "batch_size", "learning_rate", "fisher_samples", "lora_rank",
        "freeze_encoder", "checkpoint_every", "seed",
    )  # fmt: skip
    plan = {"learning_rate": 2e-3 if small else 3e-5, "freeze_encoder": not small}
    for source in (settings, wish):
        plan |= {name: value for name, value in source if name in names and value is not None}
    return plan


async def _refused(request: Request, error: RefusedError) -> JSONResponse:
    return JSONResponse({"detail": error.sentence}, error.status)


async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    """Answer with one sentence. Escaped, for what was sent may be no Unicode text."""
    first = error.errors()[0]
    where = " ".join(ascii(str(part))[1:-1] for part in first["loc"])
    what = ascii(first["msg"])[1:-1]
    return JSONResponse({"detail": f"{where}: {what}."}, 422)
