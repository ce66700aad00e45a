"""Corrections: send one or an archive of them, list, fetch, correct, delete."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Form, Query, Request, Response, UploadFile
from fastapi.responses import FileResponse
from starlette.types import Message, Receive, Scope, Send

from ewc_tutorial.speech.disk import DISK_ERRORS, disk_problem
from ewc_tutorial.speech.errors import RefusedError
from ewc_tutorial.speech.index import Correction
from ewc_tutorial.speech.messages import (
    ArchiveEntry,
    ArchiveOut,
    CorrectionOut,
    CorrectionPage,
    DeletionOut,
    DeletionPage,
    NewText,
)
from ewc_tutorial.speech.pairs import pairs_in_archive, read_text
from ewc_tutorial.speech.routes.common import Limit, check_file_name, exactly, problems
from ewc_tutorial.speech.service import Service
from ewc_tutorial.speech.settings import Settings

#: What a page begins behind: the number of a correction.
After = Annotated[int, Query(ge=0, lt=2**63)]

_MEDIA = {
    "wav": "audio/wav", "flac": "audio/flac", "mp3": "audio/mpeg", "ogg": "audio/ogg",
    "m4a": "audio/mp4", "webm": "audio/webm",
}  # fmt: skip


class _Recording(FileResponse):
    """A file that may be gone, also if it is deleted while this is about to be sent."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        held: list[Message] = []

        async def send_once_open(message: Message) -> None:
            if message["type"] == "http.response.start":  # which comes before the file is opened
                held.append(message)
                return
            while held:
                await send(held.pop())
            await send(message)

        try:
            self.stat_result = os.stat(self.path)
            self.set_stat_headers(self.stat_result)
            await super().__call__(scope, receive, send_once_open)
        except FileNotFoundError:
            raise RefusedError("The recording of this correction is gone.", 404) from None


def add_corrections(app: FastAPI, settings: Settings, bearer: list[Any]) -> None:
    """Add ``/upload/corrections`` and ``/corrections``."""

    @app.post(
        "/upload/corrections",
        status_code=201,
        dependencies=[*bearer, Depends(exactly("audio", "text"))],
        responses={
            200: {"model": CorrectionOut, "description": "The same had been sent before."},
            **problems(400, 415, 422),
        },
    )
    def upload_correction(
        request: Request,
        response: Response,
        audio: UploadFile,
        text: Annotated[
            str | UploadFile, Form(description="what was really said; a file in UTF-8 will do")
        ],
    ) -> CorrectionOut:
        """Keep a recording with its corrected text: WAV or FLAC, and where ffmpeg is installed MP3,
        Ogg (Opus, Vorbis), M4A or WebM.

        The answer comes when both are whole on the disk. Sending the same again changes nothing.
        """
        service: Service = request.app.state.service
        check_file_name(audio.filename)
        if not isinstance(text, str):
            check_file_name(text.filename)
            text = read_text(text.file)
        correction, new = service.keep(audio.file, text)
        if not new:
            response.status_code = 200
        return CorrectionOut.model_validate(correction)

    @app.post(
        "/upload/corrections/archive",
        dependencies=[*bearer, Depends(exactly("archive"))],
        responses=problems(400, 422),
    )
    def upload_archive(request: Request, archive: UploadFile) -> ArchiveOut:
        """Keep the corrections in a ZIP file: `audio_0001.wav` with `text_0001.txt`, or `NAME.wav`
        with `NAME.txt`, in folders or not.

        Each is answered as if it had been sent alone, so one that cannot be used keeps no other
        from being kept, and sending all again changes nothing.
        """
        service: Service = request.app.state.service
        check_file_name(archive.filename)
        entries = []
        for name, sound, text in pairs_in_archive(archive.file, settings.max_bytes):
            entry = ArchiveEntry(name=name)
            try:
                with sound() as audio:
                    correction, entry.new = service.keep(audio, text())
                entry.correction = CorrectionOut.model_validate(correction)
            except RefusedError as error:
                entry.problem = error.sentence
            except DISK_ERRORS as error:  # the others may be kept, or are already
                entry.problem = disk_problem(error)[1]
            entries.append(entry)
        return ArchiveOut(
            kept=sum(entry.correction is not None for entry in entries),
            refused=sum(entry.problem is not None for entry in entries),
            entries=entries,
        )

    @app.get("/corrections", dependencies=bearer, responses=problems(422))
    def list_corrections(
        request: Request,
        after: After = 0,
        limit: Limit = 100,
    ) -> CorrectionPage:
        """The corrections in the order of arrival, a page at a time."""
        service: Service = request.app.state.service
        page = [
            CorrectionOut.model_validate(c) for c in service.corrections.index.page(after, limit)
        ]
        return CorrectionPage(total=service.corrections.index.count(), corrections=page)

    @app.get("/deletions", dependencies=bearer, responses=problems(422))
    def list_deletions(
        request: Request,
        after: After = 0,
        limit: Limit = 100,
    ) -> DeletionPage:
        """The corrections that were deleted, why, and which models may have learned from them."""
        service: Service = request.app.state.service
        models = service.models
        # What a model learned its descendants have from it.
        lines = {name: [models.about(n) for n in models.line(name)] for name in models.names()}
        return DeletionPage(
            deletions=[
                DeletionOut(
                    **asdict(deletion),
                    models=[
                        name
                        for name, line in lines.items()
                        if any(
                            (known.get("last_seq") or 0) >= deletion.seq
                            and (known.get("gathered") or "") <= deletion.deleted
                            for known in line
                        )
                    ],
                )
                for deletion in service.corrections.index.deletions(after, limit)
            ]
        )

    _add_one(app, bearer)


def _add_one(app: FastAPI, bearer: list[Any]) -> None:
    def found(request: Request, correction_id: str) -> Correction:
        correction = request.app.state.service.corrections.index.get(correction_id)
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
            200: {"content": {kind: {} for kind in _MEDIA.values()}},
            **problems(404, 422),
        },
    )
    def get_recording(request: Request, correction_id: str) -> FileResponse:
        """Its recording, as it was sent."""
        correction = found(request, correction_id)
        path = request.app.state.service.corrections.original(correction)
        return _Recording(path, media_type=_MEDIA[correction.format])

    @app.patch(one, dependencies=bearer, responses=problems(400, 404, 409, 422))
    def change_text(request: Request, correction_id: str, new: NewText) -> CorrectionOut:
        """Put another text in the place of the one it has. Models change with the next training."""
        service: Service = request.app.state.service
        correction = found(request, correction_id)
        text = service.clean(new.text)
        service.recogniser.check_room(text, correction.seconds)
        changed = service.corrections.change_text(correction, text, new.text)
        return CorrectionOut.model_validate(changed)

    @app.delete(one, status_code=204, dependencies=bearer, responses=problems(404, 422))
    def delete_correction(request: Request, correction_id: str) -> None:
        """Delete it, recording and text. Models that have learned from it are not changed: a
        training from the base, which is the default, makes one that has not. `GET /deletions`
        keeps its number, the times and the reason."""
        request.app.state.service.corrections.remove(found(request, correction_id))
