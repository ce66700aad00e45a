"""Corrections: send, list, fetch, correct, delete."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, FastAPI, Form, Query, Request, Response, UploadFile
from fastapi.responses import FileResponse

from ewc_tutorial.speech.audio import Clip
from ewc_tutorial.speech.corrections import Correction
from ewc_tutorial.speech.errors import RefusedError
from ewc_tutorial.speech.messages import CorrectionOut, CorrectionPage, NewText
from ewc_tutorial.speech.routes.common import check_file_name, exactly, problems
from ewc_tutorial.speech.service import Service
from ewc_tutorial.speech.settings import Settings


def add_corrections(app: FastAPI, settings: Settings, bearer: list[Any]) -> None:
    """Add ``/upload/corrections`` and ``/corrections``."""

    @app.post(
        "/upload/corrections",
        status_code=201,
        dependencies=[*bearer, Depends(exactly("audio", "text"))],
        responses={
            200: {"model": CorrectionOut, "description": "The same had been sent before."},
            **problems(400, 422),
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
        recogniser, text = service.recogniser, service.clean(text)

        def check(clip: Clip) -> None:
            recogniser.check_length(clip.seconds)
            recogniser.check_room(text, clip.seconds)

        correction, new = service.corrections.add(audio.file, text, check)
        if not new:
            response.status_code = 200
        return CorrectionOut.model_validate(correction)

    @app.get("/corrections", dependencies=bearer, responses=problems(422))
    def list_corrections(
        request: Request,
        after: Annotated[int, Query(ge=0, lt=2**63)] = 0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> CorrectionPage:
        """The corrections in the order of arrival, a page at a time."""
        service: Service = request.app.state.service
        page = [CorrectionOut.model_validate(c) for c in service.corrections.page(after, limit)]
        return CorrectionPage(total=service.corrections.count(), corrections=page)

    _add_one(app, bearer)


def _add_one(app: FastAPI, bearer: list[Any]) -> None:
    def found(request: Request, correction_id: str) -> Correction:
        correction = request.app.state.service.corrections.get(correction_id)
        if correction is None:
            raise RefusedError("There is no correction of this id.", 404)
        return correction

    one = "/corrections/{correction_id}"

    @app.get(one, dependencies=bearer, responses=problems(404, 422))
    def get_correction(request: Request, correction_id: str) -> CorrectionOut:
        """A correction."""
        return CorrectionOut.model_validate(found(request, correction_id))

    @app.get(
        f"{one}/audio",
        dependencies=bearer,
        response_class=FileResponse,
        responses={
            200: {"content": {"audio/wav": {}, "audio/flac": {}}},
            **problems(404, 422),
        },
    )
    def get_recording(request: Request, correction_id: str) -> FileResponse:
        """Its recording, as it was sent."""
        correction = found(request, correction_id)
        path = request.app.state.service.corrections.path(correction)
        if not path.exists():
            raise RefusedError("The recording of this correction is gone.", 404)
        return FileResponse(path, media_type=f"audio/{correction.format}")

    @app.patch(one, dependencies=bearer, responses=problems(400, 404, 409, 422))
    def change_text(request: Request, correction_id: str, new: NewText) -> CorrectionOut:
        """Put another text in the place of the one it has. Models change with the next training."""
        service: Service = request.app.state.service
        correction = found(request, correction_id)
        text = service.clean(new.text)
        service.recogniser.check_room(text, correction.seconds)
        return CorrectionOut.model_validate(service.corrections.change_text(correction, text))

    @app.delete(one, status_code=204, dependencies=bearer, responses=problems(404, 422))
    def delete_correction(request: Request, correction_id: str) -> None:
        """Delete it, recording and text. Models that have learned from it are not changed: a
        training from the base, which is the default, makes one that has not."""
        request.app.state.service.corrections.remove(found(request, correction_id))
