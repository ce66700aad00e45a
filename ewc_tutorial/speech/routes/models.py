"""Versions of the model: list, compare, put into use."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from ewc_tutorial.speech.errors import RefusedError
from ewc_tutorial.speech.messages import Difference, ModelList, ModelOut
from ewc_tutorial.speech.routes.common import problems
from ewc_tutorial.speech.service import Service
from ewc_tutorial.speech.settings import Settings


def add_models(app: FastAPI, settings: Settings, bearer: list[Any]) -> None:
    """Add ``/models`` and what is below it."""

    @app.get("/models", dependencies=bearer, responses=problems())
    def list_models(request: Request) -> ModelList:
        """All versions, the newest first."""
        service: Service = request.app.state.service
        return ModelList(models=[_shown(service, name) for name in service.models.names()])

    @app.get("/models/{name}/diff/{other}", dependencies=bearer, responses=problems(404, 422))
    def compare_models(request: Request, name: str, other: str) -> Difference:
        """What the version ``other`` has that ``name`` has not."""
        service: Service = request.app.state.service
        one, two = _found(service, name), _found(service, other)
        plans = one.plan or {}, two.plan or {}
        return Difference(
            old=one,
            new=two,
            corrections=sorted(
                correction.seq
                for correction in service.corrections.index.page(one.last_seq, 2**31)
                if correction.seq <= two.last_seq
            ),
            settings={
                key: (plans[0].get(key), plans[1].get(key))
                for key in sorted(plans[0].keys() | plans[1].keys())
                if plans[0].get(key) != plans[1].get(key)
            },
        )

    @app.post("/models/{name}/serve", dependencies=bearer, responses=problems(404, 409, 422))
    def serve_model(request: Request, name: str) -> ModelOut:
        """Put a version into use, an earlier or a later one, if it can be loaded."""
        service: Service = request.app.state.service
        service.serving.switch(name)
        return _shown(service, name)

    @app.get(
        "/models/{name}/archive",
        dependencies=bearer,
        response_class=StreamingResponse,
        responses={200: {"content": {"application/x-tar": {}}}, **problems(404, 422)},
    )
    def download_model(request: Request, name: str) -> StreamingResponse:
        """A version as a tar file: weights, processor, what is known of it, and its importance."""
        service: Service = request.app.state.service
        if not service.models.exists(name):
            raise RefusedError("There is no version of this name.", 404)
        length, parts = service.models.archive(name)
        headers = {
            "Content-Length": str(length),
            "Content-Disposition": f'attachment; filename="{name}.tar"',
        }
        return StreamingResponse(parts, media_type="application/x-tar", headers=headers)


def _found(service: Service, name: str) -> ModelOut:
    if not service.models.exists(name):
        raise RefusedError("There is no version of this name.", 404)
    return _shown(service, name)


def _shown(service: Service, name: str) -> ModelOut:
    about = service.models.about(name)
    return ModelOut(
        name=name,
        served=name == service.serving.current()[0],
        parent=about.get("parent"),
        training=about.get("job"),
        last_seq=about.get("last_seq") or 0,
        recordings=about.get("recordings") or {},
        word_error_rate_before=about.get("before"),
        word_error_rate_after=about.get("after"),
        fraction=about.get("fraction"),
        outcome=about.get("outcome"),
        plan=about.get("plan"),
        importance=service.models.importance(name) is not None,
    )
