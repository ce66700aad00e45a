"""Who may come in, and with how much: asked before anything of a request's body is read."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from ewc_tutorial.speech.settings import Settings, is_loopback

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
#: What a multipart body may hold beside the recording: boundaries, headers, the text.
OVERHEAD = 64 * 1024
#: After a refusal the connection is closed: else the server would go on reading the body.
_LEAVE = {"Connection": "close"}
#: The route that needs no token.
OPEN = "/health"
#: The route that takes more than one recording.
ARCHIVE = "/upload/corrections/archive"


class Gate:
    """ASGI middleware.

    * With a token, every route but /health wants it.
    * Without one, only this machine is answered, under its own name and to its own pages. Else any
      web page that is open in a browser here could send corrections to the service.
    * A body is refused as soon as its declared or its counted size passes the limit.
    """

    def __init__(self, app: Any, settings: Settings) -> None:
        self._app = app
        self._token = None
        if settings.token is not None:
            self._token = settings.token.get_secret_value().encode()
        self._max_body = settings.max_bytes + OVERHEAD
        self._max_archive = settings.max_archive_bytes + OVERHEAD

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        most = self._max_archive if scope["path"] == ARCHIVE else self._max_body
        refusal = self._refusal(scope, headers, most)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        await self._app(scope, _counted(receive, most), send)

    def _refusal(self, scope: Scope, headers: Headers, most: int) -> JSONResponse | None:
        if scope["path"] != OPEN:
            if self._token is not None:
                if not self._has_token(headers):
                    return _problem(
                        401,
                        "Send the header 'Authorization: Bearer TOKEN' with the service's token.",
                        {"WWW-Authenticate": "Bearer"} | _LEAVE,
                    )
            elif sentence := _stranger(scope, headers):
                return _problem(403, sentence, _LEAVE)
        declared = headers.get("content-length", "")
        if declared.isdigit() and int(declared) > most:
            return _problem(413, _too_large(most), _LEAVE)
        return None

    def _has_token(self, headers: Headers) -> bool:
        kind, _, given = headers.get("authorization", "").partition(" ")
        return kind.lower() == "bearer" and hmac.compare_digest(
            given.strip().encode("latin-1"), self._token
        )


def _counted(receive: Receive, most: int) -> Receive:
    size = 0

    async def counted() -> MutableMapping[str, Any]:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > most:
            raise HTTPException(413, _too_large(most), _LEAVE)
        return message

    return counted


def _too_large(most: int) -> str:
    return f"The request must have at most {most:,} bytes."


def _stranger(scope: Scope, headers: Headers) -> str | None:
    """Return why a request without a token is not from this machine, or None."""
    client = scope.get("client")
    if client and not is_loopback(client[0]):
        return "Without a token the service answers this machine alone."
    try:
        host = urlsplit(f"//{headers.get('host', '')}")
        known = host.hostname is not None and is_loopback(host.hostname)
        origin = headers.get("origin")
        same_site = origin is None or urlsplit(origin).netloc == host.netloc
    except ValueError:
        known = same_site = False
    if not known:
        return "Without a token the service answers to the name localhost or 127.0.0.1 alone."
    if not same_site:
        return "Without a token the service does not answer web pages of other sites."
    return None


def _problem(status: int, sentence: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"detail": sentence}, status, headers)
