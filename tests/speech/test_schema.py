"""Requests by the hundred, made from the OpenAPI document, valid and not: never a 5xx."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the group 'speech' is not installed")

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings, strategies
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

pytestmark = pytest.mark.timeout(300)
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
PER_ROUTE_AND_MODE = 40


@pytest.fixture(scope="module")
def schema(service):
    return schemathesis.openapi.from_url(str(service.client.base_url.join("/openapi.json")))


POSITIVE, NEGATIVE = GenerationMode.POSITIVE, GenerationMode.NEGATIVE


@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [
        ("GET", "/health", POSITIVE),  # nothing about it can be wrong
        ("GET", "/metrics", POSITIVE),
        ("POST", "/upload/corrections", POSITIVE),
        ("POST", "/upload/corrections", NEGATIVE),
        ("POST", "/upload/corrections/archive", POSITIVE),
        ("POST", "/upload/corrections/archive", NEGATIVE),
        ("GET", "/deletions", POSITIVE),
        ("GET", "/deletions", NEGATIVE),
        ("GET", "/corrections", POSITIVE),
        ("GET", "/corrections", NEGATIVE),
        ("GET", "/corrections/{correction_id}", POSITIVE),
        ("GET", "/corrections/{correction_id}/audio", POSITIVE),
        ("PATCH", "/corrections/{correction_id}", POSITIVE),
        ("PATCH", "/corrections/{correction_id}", NEGATIVE),
        ("DELETE", "/corrections/{correction_id}", POSITIVE),
        ("GET", "/train/ewc", POSITIVE),
        ("GET", "/train/ewc", NEGATIVE),
        ("DELETE", "/train/ewc/{job_id}", POSITIVE),
        ("GET", "/models", POSITIVE),
        ("GET", "/models/{name}/diff/{other}", POSITIVE),
        ("POST", "/models/{name}/serve", POSITIVE),
        ("GET", "/models/{name}/archive", POSITIVE),
        ("POST", "/train/ewc", POSITIVE),
        ("POST", "/train/ewc", NEGATIVE),
        ("GET", "/train/ewc/{job_id}", POSITIVE),  # nor about this: any text is an id
        ("POST", "/transcribe", POSITIVE),
        ("POST", "/transcribe", NEGATIVE),
    ],
)
def test_whatever_is_sent_the_answer_is_one_of_the_documented(schema, method, path, mode, session):
    operation = schema[path][method]
    cases = []

    @given(data=strategies.data())
    @settings(
        max_examples=PER_ROUTE_AND_MODE, deadline=None, derandomize=True, database=None,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    def send(data: Any) -> None:
        case = data.draw(operation.as_strategy(generation_mode=mode))
        cases.append(case)
        case.call_and_validate(session=session, checks=CHECKS, timeout=30)

    send()
    assert cases


@pytest.fixture(scope="module")
def session():
    import requests

    with requests.Session() as session:
        session.trust_env = False
        yield session
