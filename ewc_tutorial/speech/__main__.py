"""Starts the service with uvicorn: ``python -m ewc_tutorial.speech``; with ``worker`` behind it,
a worker for the trainings of one on another machine."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Sequence

from ewc_tutorial.speech import logs
from ewc_tutorial.speech.app import create_app
from ewc_tutorial.speech.base import prepare
from ewc_tutorial.speech.disk import DISK_ERRORS, disk_problem
from ewc_tutorial.speech.errors import (
    AlreadyServedError,
    UnusableIndexError,
    UnusableModelError,
    UnusableStorageError,
)
from ewc_tutorial.speech.server import serve
from ewc_tutorial.speech.service import Service
from ewc_tutorial.speech.settings import Settings, read_settings


def main(arguments: Sequence[str] = ()) -> None:
    if list(arguments) not in ([], ["worker"]):
        raise SystemExit("python -m ewc_tutorial.speech takes no argument, or the word worker.")
    settings = read_settings()
    logs.set_up(settings.log_format)
    # Recordings of people and the index are for this user alone.
    os.umask(0o077)
    try:
        if arguments:
            _work(settings)
            return
        service = Service(settings)  # holds the folder's lock from here on
        # Parts of uploads lie where they are for this user alone and are swept away after a kill.
        tempfile.tempdir = str(service.corrections.incoming)
        prepare(settings)
        listening = _listen(settings)
        service.start()
    except (
        AlreadyServedError,
        UnusableIndexError,
        UnusableModelError,
        UnusableStorageError,
    ) as error:
        raise SystemExit(str(error)) from None
    except DISK_ERRORS as error:
        raise SystemExit(f"{settings.data}: {disk_problem(error)[1]}") from None
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    # The first line on the standard output: programs that start the service wait for it.
    print(f"Speech corrections: http://{shown}:{port}/docs", flush=True)
    serve(create_app(settings, service), listening)


def _work(settings: Settings) -> None:
    from ewc_tutorial.speech.attending import attend

    attend(settings)


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host.strip("[]"), settings.port))
    except OSError as error:
        raise SystemExit(
            f"{settings.host}:{settings.port} cannot be used ({error.strerror}): set "
            "EWC_SPEECH_HOST or EWC_SPEECH_PORT."
        ) from None
    return listening


if __name__ == "__main__":
    main(sys.argv[1:])
