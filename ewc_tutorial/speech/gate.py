"""Who may come in, and with how much: asked before anything of a request's body is read."""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from fastapi import HTTPException
from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from ewc_tutorial.speech.brake import Brake
from ewc_tutorial.speech.settings import Settings, is_loopback

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
#: What a multipart body may hold beside the recording: boundaries, headers, the text.
OVERHEAD = 64 * 1024
#: After a refusal the connection is closed: else the server would go on reading the body.
_LEAVE = {"Connection": "close"}
#: The route that everybody may ask.
HEALTH = "/health"
#: What needs no token where there is one: pages, which ask for it and then send it themselves.
PAGES = ("/", "/docs", "/redoc", "/openapi.json")
_PAGE_FILES = "/static-offline-docs/"
#: The routes that the token for uploads opens, by POST.
UPLOADS = ("/upload/corrections", "/upload/corrections/archive")
#: The route that takes more than one recording.
ARCHIVE = "/upload/corrections/archive"
#: The route that has a queue of its own.
QUEUED = "/transcribe"
#: So many other requests are answered at once.
MAX_REQUESTS = 100
#: So long a sender may pause in a body.
BODY_SECONDS = 30.0
_log = logging.getLogger(__name__)


class Gate:
    """ASGI middleware.

    * With a token, every route wants it, except those that say nothing of what the service keeps.
      Wrong ones are logged, and after some of them their sender has to wait. The token for uploads
      opens these alone.
    * Without one, only this machine is answered, under its own name and to its own pages. Else any
      web page that is open in a browser here could send corrections to the service.
    * So many requests are answered at once; transcriptions have a queue of their own.
    * A body is refused as soon as its declared or its counted size passes the limit, or nothing
      more of it comes.
    """

    def __init__(self, app: Any, settings: Settings) -> None:
        self._app = app
        self._token = _bytes_of(settings.token)
        self._upload_token = _bytes_of(settings.upload_token)
        self._brake = Brake()
        self._under_way = 0
        self._origins = settings.allowed_origins
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
        if scope["path"] in (HEALTH, QUEUED):
            await self._app(scope, _counted(receive, most), send)
            return
        if self._under_way >= MAX_REQUESTS:
            sentence = f"{MAX_REQUESTS} requests are under way: try again later."
            await _problem(503, sentence, {"Retry-After": "5"} | _LEAVE)(scope, receive, send)
            return
        self._under_way += 1
        try:
            await self._app(scope, _counted(receive, most), send)
        finally:
            self._under_way -= 1

    def _refusal(self, scope: Scope, headers: Headers, most: int) -> JSONResponse | None:
        if scope["path"] != HEALTH:
            if self._token is not None:
                refusal = self._without_token(scope, headers)
            else:
                sentence = _stranger(scope, headers, self._origins)
                refusal = None if sentence is None else _problem(403, sentence, _LEAVE)
            if refusal is not None:
                return refusal
        declared = headers.get("content-length", "")
        if declared.isdigit() and int(declared) > most:
            return _problem(413, _too_large(most), _LEAVE)
        return None

    def _without_token(self, scope: Scope, headers: Headers) -> JSONResponse | None:
        """Return what to answer a request whose token does not open what it wants, or None."""
        path, address = scope["path"], (scope.get("client") or ("",))[0]
        if scope["method"] in ("GET", "HEAD") and (
            path in PAGES or (path.startswith(_PAGE_FILES) and ".." not in path)
        ):
            return None
        given = headers.get("authorization")
        if given is not None and (seconds := self._brake.wait(address)):
            return _problem(
                429,
                f"Too many wrong tokens came from your address: wait {seconds:.0f} seconds.",
                {"Retry-After": str(math.ceil(seconds))} | _LEAVE,
            )
        kind, _, token = (given or "").partition(" ")
        # Spaces alone: others would be bytes of a letter, as the last one of an à in UTF-8.
        sent = token.strip(" \t").encode("latin-1") if kind.lower() == "bearer" else b""
        if hmac.compare_digest(sent, self._token or b""):
            return None
        if self._upload_token is not None and hmac.compare_digest(sent, self._upload_token):
            if path in UPLOADS and scope["method"] == "POST":
                return None
            return _problem(403, "This token may send corrections and do nothing else.", _LEAVE)
        if given is not None:
            self._brake.wrong(address)
            _log.warning("A wrong token came from %s for %s %r.", address, scope["method"], path)
        return _problem(
            401,
            "Send the header 'Authorization: Bearer TOKEN' with the service's token.",
            {"WWW-Authenticate": "Bearer"} | _LEAVE,
        )


def _bytes_of(secret: SecretStr | None) -> bytes | None:
    return None if secret is None else secret.get_secret_value().encode()


def _counted(receive: Receive, most: int) -> Receive:
    size, more = 0, True

    async def counted() -> MutableMapping[str, Any]:
        nonlocal size, more
        try:
            message = await (asyncio.wait_for(receive(), BODY_SECONDS) if more else receive())
        except TimeoutError:
            sentence = f"Nothing of the request has come for {BODY_SECONDS:g} seconds."
            raise HTTPException(408, sentence, _LEAVE) from None
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
        if size > most:
            raise HTTPException(413, _too_large(most), _LEAVE)
        return message

    return counted


def _too_large(most: int) -> str:
    return f"The request must have at most {most:,} bytes."


def _stranger(scope: Scope, headers: Headers, origins: Collection[str]) -> str | None:
    """Return why a request without a token is not from this machine, or None."""
    client = scope.get("client")
    if client and not is_loopback(client[0]):
        return "Without a token the service answers this machine alone."
    try:
        host = urlsplit(f"//{headers.get('host', '')}")
        known = host.hostname is not None and is_loopback(host.hostname)
        origin = headers.get("origin")
        same_site = origin is None or origin in origins or urlsplit(origin).netloc == host.netloc
    except ValueError:
        known = same_site = False
    if not known:
        return "Without a token the service answers to the name localhost or 127.0.0.1 alone."
    if not same_site:
        return "Without a token the service does not answer web pages of other sites."
    return None


def _problem(status: int, sentence: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"detail": sentence}, status, headers)
