"""uvicorn, set so that nobody can keep others out by doing nothing.

A connection costs a file descriptor, and a process has few of these. One that sends no whole
request within :data:`PATIENCE_SECONDS` is closed; when there are too many, the one that has waited
longest goes, so that a new one always gets in.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

#: So long a connection may take until its request has come, up to the body.
PATIENCE_SECONDS = 15.0
#: Descriptors for files, the index, and connections that are accepted before others are closed.
_RESERVED = 600
#: More connections than this help nobody.
_MOST = 8_000
#: Connections that the system keeps until they are accepted. Small, for asyncio writes a line per
#: one of them when descriptors are short.
_BACKLOG = 128
_log = logging.getLogger(__name__)


def serve(app: FastAPI, listening: socket.socket) -> None:
    """Answer requests until the process is told to end."""
    config = uvicorn.Config(
        app,
        http=protocol(most_connections()),
        ws="none",
        log_config=None,  # its lines go where all others go
        log_level="warning",
        access_log=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=5,
    )
    uvicorn.Server(config).run(sockets=[listening])


def most_connections() -> int:
    """Raise the limit of descriptors as far as this process may; return what it can hold."""
    try:
        import resource
    except ImportError:  # on Windows there is no such limit
        return _MOST
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST + _RESERVED
    if hard == resource.RLIM_INFINITY or hard >= wanted:
        soft = max(soft, wanted) if soft != resource.RLIM_INFINITY else wanted
    else:
        soft = hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    most = max(16, min(_MOST, soft - _RESERVED))
    if most < _MOST:
        _log.info("At most %d connections at once, for the limit of open files is %d.", most, soft)
    return most


def protocol(most: int) -> type[H11Protocol]:
    """Return uvicorn's protocol for HTTP with patience that ends, and room for ``most``."""

    class Impatient(H11Protocol):
        #: Connections without a request under way, that which has waited longest first.
        idle: dict[Impatient, None] = {}  # noqa: RUF012 (shared by all of them)
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait()
            if len(self.connections) > most:
                longest = next(iter(self.idle))
                longest._go_on()  # at once, so that each new connection closes another one
                longest.transport.abort()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._is_waiting():
                if self._deadline is None:  # of a second request on the same connection
                    self._wait()
            else:
                self._go_on()

        def connection_lost(self, exc: Exception | None) -> None:
            self._go_on()
            super().connection_lost(exc)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self._is_waiting() and not self.transport.is_closing():
                self.idle[self] = None

        def _is_waiting(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _wait(self) -> None:
            self.idle.setdefault(self)
            self._deadline = self.loop.call_later(PATIENCE_SECONDS, self.transport.close)

        def _go_on(self) -> None:
            self.idle.pop(self, None)
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

    return Impatient
