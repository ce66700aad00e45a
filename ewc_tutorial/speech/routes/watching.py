"""For those who watch over the service: numbers for Prometheus, a page for people."""

from __future__ import annotations

from importlib import resources
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse
from prometheus_client import CONTENT_TYPE_LATEST

from ewc_tutorial.speech.metrics import Metrics
from ewc_tutorial.speech.routes.common import problems
from ewc_tutorial.speech.settings import Settings

#: The page may load nothing, and ask nobody but this service.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; frame-ancestors 'none'; form-action 'none'; base-uri 'none'"
)


def add_watching(app: FastAPI, settings: Settings, bearer: list[Any], metrics: Metrics) -> None:
    """Add ``/metrics`` and the page at ``/``."""
    page = (resources.files("ewc_tutorial.speech") / "page.html").read_text(encoding="utf-8")

    @app.get(
        "/metrics",
        dependencies=bearer,
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}}, **problems()},
    )
    def get_metrics(request: Request) -> Response:
        """Numbers in Prometheus' text format."""
        text = metrics.text(request.app.state.service)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    async def progress() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": _POLICY})
