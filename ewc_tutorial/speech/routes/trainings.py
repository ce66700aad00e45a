"""Trainings: start, list, follow, cancel."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, Query, Request

from ewc_tutorial.speech.errors import RefusedError
from ewc_tutorial.speech.messages import Job, JobPage, TrainRequest, TrainStarted
from ewc_tutorial.speech.routes.common import Limit, problems
from ewc_tutorial.speech.service import Service
from ewc_tutorial.speech.settings import Settings


def add_trainings(app: FastAPI, settings: Settings, bearer: list[Any]) -> None:
    """Add ``/train/ewc`` and what is below it."""

    @app.post("/train/ewc", status_code=202, dependencies=bearer, responses=problems(400, 409, 422))
    def start_training(request: Request, wish: TrainRequest | None = None) -> TrainStarted:
        """Start a training on all corrections so far, held by what matters for earlier speech.

        Its model is served only if it costs the old voices no more than the budget allows and is
        better on the new ones. While another training runs, it waits for its turn, and then takes
        the corrections that are there by then.
        """
        service: Service = request.app.state.service
        return TrainStarted(id=service.trainings.request(wish or TrainRequest()))

    @app.get("/train/ewc", dependencies=bearer, responses=problems(422))
    def list_trainings(
        request: Request,
        before: Annotated[int | None, Query(ge=0, lt=2**62)] = None,
        limit: Limit = 100,
    ) -> JobPage:
        """The trainings, the newest first, without their losses."""
        service: Service = request.app.state.service
        return JobPage(trainings=[_shown(row) for row in service.jobs.page(before, limit)])

    def found(request: Request, job_id: str) -> dict[str, Any]:
        row = request.app.state.service.jobs.get(job_id)
        if row is None:
            raise RefusedError("There is no training of this id.", 404)
        return row

    @app.get("/train/ewc/{job_id}", dependencies=bearer, responses=problems(404, 422))
    def get_training(request: Request, job_id: str) -> Job:
        """How a training goes, or went."""
        return _shown(found(request, job_id))

    @app.delete("/train/ewc/{job_id}", dependencies=bearer, responses=problems(404, 409, 422))
    def cancel_training(request: Request, job_id: str) -> Job:
        """End a training that is not finished; nothing of it is served."""
        service: Service = request.app.state.service
        found(request, job_id)
        service.trainings.cancel(job_id)
        row = found(request, job_id)
        if row["state"] != "cancelled":
            raise RefusedError(f"This training is over: {row['state']}.", 409)
        return _shown(row)


def _shown(row: dict[str, Any]) -> Job:
    results = row["results"] if row["finished"] is None else row["results"] | {"seconds_left": None}
    return Job(
        **{key: row[key] for key in row.keys() & Job.model_fields.keys()},
        lam=row["options"]["plan"]["lam"],
        word_error_rate_before=results.get("before"),
        word_error_rate_after=results.get("after"),
        **{
            key: results[key]
            for key in (
                "recordings",
                "left_out",
                "seconds_left",
                "fraction",
                "path",
                "outcome",
                "removed",
            )
            if key in results
        },
    )
