"""Requests by the hundred, made from the OpenAPI document, valid and not: never a 5xx."""

from __future__ import annotations

from typing import Any

import pytest

schemathesis = pytest.importorskip("schemathesis", reason="the group 'test' is not installed")
pytest.importorskip("fastapi", reason="the group 'speech' is not installed")

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


@pytest.mark.parametrize("mode", list(GenerationMode), ids=str)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/health"),
        ("POST", "/upload/corrections"),
        ("GET", "/corrections"),
        ("POST", "/train/ewc"),
        ("GET", "/train/ewc/{job_id}"),
        ("POST", "/transcribe"),
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
