"""What telephones and browsers record, made into FLAC by ffmpeg where that is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from ewc_tutorial.speech.errors import RefusedError

#: Kind of file → how ffmpeg names its container. Only that one is tried: a list of addresses that
#: calls itself a recording would make the service fetch them.
CONTAINERS = {"mp3": "mp3", "ogg": "ogg", "m4a": "mov", "webm": "matroska"}
#: Longer than this no recording of an upload's size takes.
TIMEOUT_SECONDS = 60.0


def kind_of(start: bytes) -> str | None:
    """Return which of :data:`CONTAINERS` a file is that begins so, or None."""
    if start[:3] == b"ID3" or (start[:1] == b"\xff" and start[1:2] > b"\xe0"):
        return "mp3"
    if start[:4] == b"OggS":
        return "ogg"
    if start[4:8] == b"ftyp":
        return "m4a"
    return "webm" if start[:4] == b"\x1aE\xdf\xa3" else None


def available() -> bool:
    """Return whether ffmpeg is installed."""
    return shutil.which("ffmpeg") is not None


def to_flac(source: Path, target: Path, kind: str, max_seconds: float = float("inf")) -> None:
    """Write the first sound track of a file, in 16 bits, at its own rate.

    Args:
        source: one of :data:`CONTAINERS`.
        target: the new file.
        kind: which.
        max_seconds: little more than this is written.

    Raises:
        RefusedError: there is no ffmpeg (415), or it cannot read the file (422).
    """
    program = shutil.which("ffmpeg")
    if program is None:
        raise RefusedError(
            f"audio is {kind.upper()}, which this service cannot read, for ffmpeg is not "
            "installed: send WAV or FLAC.",
            415,
        )
    limit = [] if max_seconds == float("inf") else ["-t", str(max_seconds + 1)]
    command = [
        program, "-nostdin", "-loglevel", "error", "-threads", "1", "-protocol_whitelist", "file",
        "-f", CONTAINERS[kind], "-i", f"file:{source}", *limit, "-map", "0:a:0", "-c:a", "flac",
        "-sample_fmt", "s16", "-map_metadata", "-1", "-f", "flac", "-y", f"file:{target}",
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        raise RefusedError(f"audio takes ffmpeg more than {TIMEOUT_SECONDS:g} seconds.") from None
    if done.returncode:
        if b"No space left" in done.stderr:
            raise OSError(28, "No space left on device")
        raise RefusedError(f"audio looks like {kind.upper()} but cannot be decoded.")
