"""The speech service's page: it asks for the token, and shows trainings to people without curl."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi", reason="the group 'speech' is not installed")

from ewc_tutorial.speech.base import tiny_recogniser
from ewc_tutorial.speech.client import running_service
from ewc_tutorial.speech.database import Database
from ewc_tutorial.speech.jobs import Jobs

TOKEN = "a-token-of-sixteen-or-more"


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """The service with a model that has learned nothing, and two trainings that were."""
    data = tmp_path_factory.mktemp("speech")
    tiny_recogniser().save(data / "model")
    (data / "data").mkdir()
    jobs = Jobs(Database(data / "data" / "service.sqlite3"))
    done, rejected = (jobs.create({"plan": {"lam": 1.0}, "wish": {}}, 2, "base") for _ in range(2))
    jobs.add_results(
        done,
        {"before": {"old": 0.1, "new": 0.75}, "after": {"old": 0.125, "new": 0.5},
         "outcome": "It is <b>served</b>."},
    )  # fmt: skip
    jobs.finish(done, "0001-x")
    jobs.reject(rejected, "Nothing is served.")
    with running_service(
        data=data / "data", model=data / "model", old=data / "none", token=TOKEN
    ) as service:
        yield service


def test_the_page_shows_what_was_trained_once_it_has_the_token(speech, visitor):
    errors: list[str] = []
    visitor.on("pageerror", lambda error: errors.append(str(error)))
    visitor.goto(str(speech.client.base_url))
    visitor.get_by_label("Token").fill("wrong-token-of-sixteen")
    visitor.get_by_role("button", name="Show").click()
    visitor.get_by_role("status").get_by_text("Authorization: Bearer").wait_for()
    visitor.get_by_label("Token").fill(TOKEN)
    visitor.get_by_role("button", name="Show").click()
    visitor.get_by_text("In use: base.").wait_for()
    assert not visitor.get_by_label("Token").is_visible()
    rows = visitor.locator("#trainings tr").all_inner_texts()
    assert len(rows) == 2
    assert "rejected" in rows[0]
    assert "Nothing is served." in rows[0]
    assert "75.0 % → 50.0 %" in rows[1]
    assert "10.0 % → 12.5 %" in rows[1]
    assert "It is <b>served</b>." in rows[1], "as text"
    assert visitor.locator("#models tr").count() == 1
    assert errors == []
    # It is remembered by the page alone.
    visitor.reload()
    visitor.get_by_text("In use: base.").wait_for()
