"""What several routes check and document."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query, Request

from ewc_tutorial.speech.errors import RefusedError
from ewc_tutorial.speech.messages import Problem

#: The rows of a page.
Limit = Annotated[int, Query(ge=1, le=1000)]

_MEANINGS = {
    400: "The body cannot be read.",
    401: "The token is missing or wrong.",
    403: "The request does not come from this machine, and there is no token.",
    404: "There is no such thing.",
    408: "The body did not come.",
    409: "The state of the service does not allow it.",
    413: "It is too large.",
    415: "Its format cannot be read here.",
    422: "What was sent cannot be used.",
    429: "Too many wrong tokens came from this address.",
    503: "The service cannot do it now; try again later.",
    507: "The disk of the service is full.",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what a route documents of its refusals."""
    always = (401, 403, 408, 413, 429, 503, 507)
    return {s: {"model": Problem, "description": _MEANINGS[s]} for s in (*always, *statuses)}


def exactly(*names: str) -> Any:
    """Return a dependency that wants each of these form fields once and no others."""

    async def check(request: Request) -> None:
        given = [name for name, _ in (await request.form()).multi_items()]
        if sorted(given) != sorted(names):
            raise RefusedError(
                f"the form must have {' and '.join(names)}, each once, and nothing else."
            )

    return check


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
