"""Numbers for Prometheus: what is asked and how long it takes, and how the service does."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from ewc_tutorial.speech.gate import Receive, Scope, Send
from ewc_tutorial.speech.service import Service

_METHODS = frozenset({"GET", "HEAD", "POST", "PATCH", "DELETE", "OPTIONS"})
#: Seconds of a request; the last ones are for a slow model.
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
_log = logging.getLogger(__name__)


class Metrics:
    """The counters of one application."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "ewc_speech_requests",
            "Requests that were answered.",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self.seconds = Histogram(
            "ewc_speech_request_seconds",
            "Seconds until the answer was whole.",
            ("route",),
            buckets=_SECONDS,
            registry=self._registry,
        )

    def text(self, service: Service) -> bytes:
        """Return all numbers in Prometheus' text format."""
        now = CollectorRegistry()
        now.register(_State(service))
        return generate_latest(self._registry) + generate_latest(now)


class Counting:
    """ASGI middleware that counts requests and, if asked to, writes a line for each.

    Args:
        app: what is inside.
        metrics: where to count.
        log: write lines.
    """

    def __init__(self, app: Any, metrics: Metrics, log: bool) -> None:
        self._app = app
        self._metrics = metrics
        self._lines = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, began = 500, time.perf_counter()

        async def noted(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            seconds = time.perf_counter() - began
            # The route as it is documented, not what was asked: else senders could make up labels.
            route = getattr(scope.get("route"), "path", "")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.requests.labels(method, route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(seconds)
            if self._lines:
                about = {
                    "method": method, "path": scope["path"], "status": status,
                    "seconds": round(seconds, 4), "client": (scope.get("client") or ("",))[0],
                }  # fmt: skip
                _log.info("request", extra=about)


class _State:
    """What is so at the moment that somebody asks."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        service = self._service
        served, _ = service.serving.peek()
        yield _gauge("corrections", "Corrections on the disk.", service.corrections.index.count())
        states = GaugeMetricFamily("ewc_speech_trainings", "Trainings by state.", labels=["state"])
        for state, n in service.jobs.states().items():
            states.add_metric([state], n)
        yield states
        job = service.jobs.unfinished()
        row = service.jobs.get(job) if job else None
        yield _gauge(
            "training_progress", "Of the training that runs, from 0 to 1.",
            row["progress"] if row else 0.0,
        )  # fmt: skip
        yield _gauge(
            "transcriptions", "Transcriptions under way or waiting.", service.serving.in_queue
        )
        free = shutil.disk_usage(service.settings.data).free
        yield _gauge("disk_free_bytes", "Free bytes where the data is.", free)
        model = GaugeMetricFamily("ewc_speech_model", "The version in use.", labels=["name"])
        model.add_metric([served], 1.0)
        yield model
        rates = GaugeMetricFamily(
            "ewc_speech_word_error_rate",
            "Of the version in use, when it was made.",
            labels=["voices"],
        )
        for voices, rate in (service.models.about(served).get("after") or {}).items():
            if rate is not None:
                rates.add_metric([voices], rate)
        yield rates


def _gauge(name: str, help_text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"ewc_speech_{name}", help_text, value=value)
