"""A PostgreSQL server of the tests' own, in a temporary folder."""

from __future__ import annotations

import glob
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Debian has the programs beside each other, by version, and not on the path.
FOLDERS = [*sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True), *os.get_exec_path()]
PROGRAMS = next((f for f in FOLDERS if shutil.which("initdb", path=f)), None)


def why_not() -> str | None:
    """Return why no server can be started here, or None."""
    if PROGRAMS is None:
        return "no PostgreSQL server is installed"
    if _is_root():
        import pwd

        if not shutil.which("runuser") or "postgres" not in {u.pw_name for u in pwd.getpwall()}:
            return "PostgreSQL does not run as root, and there is no runuser or no user postgres"
    return None


def _is_root() -> bool:
    return os.name != "nt" and os.getuid() == 0


class Server:
    """A server that trusts whoever comes from this machine.

    Attributes:
        url: the address of its database.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.url = f"postgresql://postgres@127.0.0.1:{self._port}/postgres"
        self._call("initdb", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")

    def start(self) -> None:
        """Start it, and wait until it answers."""
        # Tests end programs, not the machine, so nothing needs to be on the disk.
        options = f"-p {self._port} -k {self._home} -c listen_addresses=127.0.0.1"
        options += " -c max_connections=400 -c fsync=off"
        self._call("pg_ctl", "-w", "-l", str(self._home / "log.txt"), "-o", options, "start")

    def stop(self) -> None:
        """Stop it as a crash would."""
        self._call("pg_ctl", "-w", "-m", "immediate", "stop")

    def new(self, name: str) -> str:
        """Return the address of a place with nothing in it: a schema, for it is made at once."""
        self.run(f"CREATE SCHEMA {name}")
        return f"{self.url}?options=-csearch_path%3D{name}"

    def run(self, statement: str) -> None:
        """Run a statement outside all transactions."""
        import psycopg

        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement)

    def _call(self, program: str, *arguments: str) -> None:
        user = ["runuser", "-u", "postgres", "--"] if _is_root() else []
        command = [*user, str(Path(PROGRAMS or "") / program), "-D", str(self._home / "data")]
        # Into a file: the server keeps what it was started with open.
        with open(self._home / "calls.txt", "w+b") as said:
            done = subprocess.run(
                [*command, *arguments], cwd=self._home, stdin=subprocess.DEVNULL,
                stdout=said, stderr=said,
            )  # fmt: skip
            said.seek(0)
            assert done.returncode == 0, said.read().decode()


@contextmanager
def running() -> Iterator[Server]:
    """Start a server for a ``with`` block."""
    home = Path(tempfile.mkdtemp(prefix="pg"))
    try:
        if _is_root():
            shutil.chown(home, "postgres")
        server = Server(home)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(home, ignore_errors=True)
