"""A forked program does what it does when it is started in the usual way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading

import forked
import pytest

pytestmark = pytest.mark.skipif(not forked.THERE_IS_FORK, reason="this system has no fork")
SEEN = """
import json, os, sys
print(json.dumps([__name__, sys.argv[1:], os.getcwd(), dict(os.environ), sys.stdin.read()]))
print("and this", file=sys.stderr)
"""


@pytest.fixture(params=[forked.popen, subprocess.Popen], ids=["forked", "usual"])
def start(request, monkeypatch):
    monkeypatch.setitem(forked.IMPORTS, "nothing", ("numpy",))
    more = {"like": "nothing"} if request.param is forked.popen else {}

    def start(code, *arguments, **options):
        return request.param([sys.executable, "-c", code, *arguments], **more, **options)

    process = start("")
    assert process.wait(60) == 0
    assert isinstance(process, forked.Forked if more else subprocess.Popen)
    return start


def test_it_has_its_arguments_folder_environment_and_streams(start, tmp_path):
    own = {"PATH": os.environ["PATH"], "OWN": "ä"}
    with open(tmp_path / "log", "wb") as log:
        process = start(
            SEEN, "one", cwd=tmp_path, env=own, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
        )  # fmt: skip
    process.stdin.write("asked\n")
    process.stdin.close()
    name, arguments, folder, environment, said = json.loads(process.stdout.read())
    process.stdout.close()
    assert process.wait() == 0
    assert (name, arguments, said) == ("__main__", ["one"], "asked\n")
    assert os.path.samefile(folder, tmp_path)
    assert own.items() <= environment.items()
    assert "HOME" not in environment
    assert (tmp_path / "log").read_text() == "and this\n"


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("import sys; sys.exit(3)", 3, b""),
        ("raise SystemExit('In a sentence.')", 1, b"In a sentence.\n"),
        ("import os; os._exit(4)", 4, b""),
        ("import os; os.abort()", -signal.SIGABRT, b""),
    ],
)
def test_how_it_ends_is_seen(start, code, status, said):
    process = start(code, stderr=subprocess.PIPE)
    assert process.wait() == status == process.poll()
    assert process.stderr.read() == said
    process.stderr.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_can_be_killed_while_several_wait(start, number):
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    code = "import sys; print('here', flush=True); sys.stdin.read()"
    process = start(code, start_new_session=True, **streams)
    assert os.getpgid(process.pid) == process.pid
    assert process.stdout.readline() == b"here\n"
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    waiting = [threading.Thread(target=process.wait) for _ in range(3)]
    for thread in waiting:
        thread.start()
    process.send_signal(number)
    for thread in waiting:
        thread.join()
    assert process.returncode == -number
    process.kill()  # is over, and nobody else is meant
    process.stdin.close()
    process.stdout.close()


def test_the_end_of_who_asked_is_the_end_of_its_input(start):
    """As the trainings of a service notice that it is gone."""
    reads, writes = os.pipe()
    process = start("import sys; sys.stdin.read(); sys.exit(5)", stdin=reads)
    os.close(reads)
    assert process.poll() is None
    os.close(writes)
    assert process.wait(60) == 5
