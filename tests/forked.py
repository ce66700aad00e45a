"""Starts programs of Python in the place of ``subprocess.Popen``, without waiting for imports.

A kernel of the course and a server of speech corrections import for ten seconds before they do
anything of their own, and the tests start some forty of them. Here they are forked from a template
that has imported all that already. What follows is what the command would do, in a process of its
own with its own streams, folder, environment and session, which ends and is killed like any other.
Whatever else is asked for is left to ``subprocess``, as is all of it where there is no fork.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

#: The modules that are started so, and what each of them, or a process of its own, will import.
IMPORTS = {
    "ipykernel_launcher": ("ipykernel.kernelapp", "ewc_tutorial.course.plots", "torch._dynamo"),
    "ewc_tutorial.speech": ("ewc_tutorial.speech.__main__", "ewc_tutorial.speech.worker"),
    "ewc_tutorial.speech.worker": ("ewc_tutorial.speech.worker",),
}
THERE_IS_FORK = hasattr(socket, "send_fds") and hasattr(os, "fork")
#: How a test had better start processes that run a function: without importing PyTorch anew.
METHOD = "fork" if sys.platform == "linux" else "spawn"
_starting = threading.Lock()  # several threads may ask first
STREAMS = ("stdin", "stdout", "stderr")
OPTIONS = {*STREAMS, "cwd", "env", "start_new_session", "text"}


@functools.cache
def _template() -> tuple[str, subprocess.Popen[bytes]]:
    folder = tempfile.mkdtemp(prefix="forked")
    process = subprocess.Popen(
        [sys.executable, __file__, f"{folder}/socket"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout.readline() == b"ready\n"
    return f"{folder}/socket", process  # kept, so its input stays open while this process lives


def own_template() -> str:
    """Return the address of the template of this process, started when it is first asked for."""
    with _starting:
        return _template()[0]


def popen(
    command: Sequence[str],
    like: str | None = None,
    template: str | None = None,
    **options: Any,
) -> Any:
    """Start a command, as ``subprocess.Popen`` does.

    Args:
        like: of a program that is given with ``-c``, the module that imports what it does.
        template: the address of the template, if it is another process's.
    """
    program, kind, what, *_ = [*command, None, None]
    like = what if kind == "-m" else like
    if THERE_IS_FORK and program == sys.executable and like in IMPORTS and {*options} <= OPTIONS:
        return Forked(template or own_template(), command, like, **options)
    return subprocess.Popen(command, **options)


def start_kernels_by(popen: Callable[..., Any]) -> None:
    """Let kernels be started by a function."""
    import jupyter_client.launcher

    jupyter_client.launcher.Popen = popen  # type: ignore[misc, assignment]


def with_forked_kernels(module: str) -> list[str]:
    """Return how Python is to run a module so that the kernels that it starts are forked."""
    if not THERE_IS_FORK:
        return ["-m", module]
    code = (
        f"import sys; sys.path.append({os.path.dirname(os.path.abspath(__file__))!r}); "
        "import functools, runpy, forked; "
        f"forked.start_kernels_by(functools.partial(forked.popen, template={own_template()!r})); "
        f"sys.argv[0] = {module!r}; runpy.run_module({module!r}, run_name='__main__')"
    )
    return ["-c", code]


def subprocess_with(popen: Callable[..., Any]) -> Any:
    """Return what a module sees as ``subprocess`` that is to start its processes by a function."""
    return SimpleNamespace(**vars(subprocess) | {"Popen": popen})


def start_services_by(popen: Callable[..., Any]) -> None:
    """Let the service of speech corrections and its trainings be started by a function."""
    from ewc_tutorial.speech import client, runner

    client.subprocess = runner.subprocess = subprocess_with(popen)


class Forked:
    """A process that was forked from the template: what is used here of ``subprocess.Popen``."""

    def __init__(
        self,
        template: str,
        command: Sequence[str],
        like: str,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        start_new_session: bool = False,
        text: bool = False,
        **streams: Any,
    ) -> None:
        self.args = command
        self.returncode: int | None = None
        self._reading = threading.Lock()
        theirs, opened = [], []
        for number, name in enumerate(STREAMS):
            stream, mine = streams.get(name), None
            if stream is None:
                stream = number
            elif stream == subprocess.DEVNULL:
                opened.append(stream := os.open(os.devnull, os.O_RDWR))
            elif stream == subprocess.PIPE:
                reads, writes = os.pipe()
                stream, end, mode = (reads, writes, "w") if number == 0 else (writes, reads, "r")
                opened.append(stream)
                mine = os.fdopen(end, mode) if text else os.fdopen(end, f"{mode}b", 0)
            theirs.append(stream if isinstance(stream, int) else stream.fileno())
            setattr(self, name, mine)
        request = {
            "imports": IMPORTS[like],
            "kind": command[1],
            "program": command[2],
            "arguments": command[3:],
            "folder": os.fspath(cwd or os.getcwd()),
            "environment": dict(os.environ if env is None else env),
            "new_session": start_new_session,
        }
        self._told = socket.socket(socket.AF_UNIX)
        self._told.connect(template)
        socket.send_fds(self._told, [json.dumps(request).encode() + b"\n"], theirs)
        for number in opened:
            os.close(number)
        self._answers = self._told.makefile("rb")
        self.pid = int(self._answers.readline())

    def poll(self) -> int | None:
        """Return how it ended, or None if it has not."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; several threads may."""
        if self.returncode is None and not select.select([self._told], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout)
        with self._reading:
            if self.returncode is None:
                self.returncode = int(self._answers.readline())
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)


class Template:
    """The process that others are forked from. It ends, and they with it, when its input does."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._running: dict[int, socket.socket] = {}

    def serve(self) -> dict[str, Any]:
        """Fork whatever is asked for; in each process that comes of it, return what it is to be."""
        woken, wakes = socket.socketpair()
        wakes.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        # Ctrl+C ends who asks, and the end of that ends the template.
        interrupted = signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.set_wakeup_fd(wakes.fileno())
        with woken, wakes, socket.socket(socket.AF_UNIX) as listening:
            listening.bind(self._address)
            listening.listen()
            print("ready", flush=True)
            while True:
                ready, _, _ = select.select([sys.stdin, woken, listening], [], [])
                if sys.stdin in ready:
                    for pid in self._running:
                        os.kill(pid, signal.SIGKILL)
                    shutil.rmtree(os.path.dirname(self._address))
                    raise SystemExit
                if woken in ready:
                    woken.recv(1000)
                    self._bury()
                if listening in ready:
                    asking, _ = listening.accept()
                    if (request := self._fork(asking)) is not None:
                        signal.set_wakeup_fd(-1)
                        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                        signal.signal(signal.SIGINT, interrupted)
                        return request

    def _bury(self) -> None:
        for pid in list(self._running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                with self._running.pop(pid) as asking, contextlib.suppress(OSError):
                    asking.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))

    def _fork(self, asking: socket.socket) -> dict[str, Any] | None:
        line, streams = b"", []
        while not line.endswith(b"\n"):
            more, descriptors, _, _ = socket.recv_fds(asking, 2**16, len(STREAMS))
            line, streams = line + more, streams + descriptors
        request = json.loads(line)
        for module in request["imports"]:
            importlib.import_module(module)
        gc.collect()
        gc.freeze()
        if pid := os.fork():
            for descriptor in streams:
                os.close(descriptor)
            self._running[pid] = asking
            return None
        # Before anyone knows of it: whoever interrupts its group must not mean the template's.
        if request["new_session"]:
            os.setsid()
        asking.sendall(b"%d\n" % os.getpid())
        for other in (asking, *self._running.values()):
            other.close()
        for number, descriptor in enumerate(streams):
            os.dup2(descriptor, number)
            os.close(descriptor)
        return request


def be(request: Mapping[str, Any], template: str) -> None:
    """Become what was asked for."""
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    # Python's own random numbers part at a fork, NumPy's do not.
    sys.modules["numpy"].random.seed()
    if "ewc_tutorial.speech.__main__" in request["imports"]:  # its trainings are processes, too
        start_services_by(functools.partial(popen, template=template))
    sys.path[0] = request["folder"]
    sys.argv = [request["program"], *request["arguments"]]
    if request["kind"] == "-m":
        runpy.run_module(request["program"], run_name="__main__", alter_sys=True)
    else:
        exec(request["program"], {"__name__": "__main__"})


if __name__ == "__main__":
    sys.path[0] = os.getcwd()  # as with -m
    # A kernel says so before it imports matplotlib.
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    be(Template(sys.argv[1]).serve(), sys.argv[1])
