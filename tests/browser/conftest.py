"""A browser, and the servers that the course is shown by.

Tests are skipped with a reason where there is no Chromium. Screenshots go to tests/artifacts.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import forked
import nbformat
import pytest
from shortened import keep_cells

import make

ROOT = Path(__file__).resolve().parents[2]
ARTIFACTS = ROOT / "tests" / "artifacts"
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
# The last one proves that a page needs nothing from outside this machine.
CHROMIUM_OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
]
TOKEN = "browser-test"
#: Milliseconds that a page may take. On a machine that is busy otherwise, a kernel alone takes one
#: minute to start.
TIMEOUT = 180_000
# Resolves when the notebook in front is open and its kernel answers.
READY = """async () => {
    const app = window.jupyterapp;
    await app.restored;
    const panel = app.shell.currentWidget;
    await panel.context.ready;
    await panel.revealed;
    const session = panel.sessionContext;
    await session.ready;
    while (session.session?.kernel?.connectionStatus !== 'connected')
        await new Promise(done => setTimeout(done, 100));
    await session.session.kernel.info;
}"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)
            item.add_marker(
                pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome is installed")
            )


@contextmanager
def server(home: Path, command: list[str], port: int, alive: str) -> Iterator[str]:
    """Run a server of Python in ``home``, with its settings there, until it answers; yield its
    address."""
    folders = {
        f"JUPYTER{kind}_DIR": str(home / kind.lower().strip("_"))
        for kind in ("_CONFIG", "_DATA", "_RUNTIME", "LAB_SETTINGS", "LAB_WORKSPACES")
    }
    # No question about news in front of the screenshots.
    settings = home / "lab_settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True, exist_ok=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
    address = f"http://127.0.0.1:{port}"
    log = (home / "log.txt").open("w")
    with subprocess.Popen(
        [sys.executable, *command],
        cwd=home,
        stdout=log,
        stderr=log,
        env={**os.environ, **folders, "PYTHONPATH": str(ROOT)},
    ) as process:
        try:
            deadline = time.monotonic() + 90
            while not answers(address + alive):
                assert process.poll() is None, (home / "log.txt").read_text()
                assert time.monotonic() < deadline, (home / "log.txt").read_text()
                time.sleep(0.2)
            yield address
        finally:
            process.terminate()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


#: What the browser needs of a lesson: the cells with one of these. The others train what its
#: tests do not look at; that all of them run is seen by nbval.
SHORTENED = {
    "00_start_here.ipynb": (
        "import matplotlib", "permuted_tasks(2, seed=0)", "budget =", "lambdas =", "def accuracy",
        '("accuracy"',
    ),
    "05_the_lambda_lab.ipynb": ("import matplotlib", "lab = "),
}  # fmt: skip


@pytest.fixture(scope="session")
def lab(tmp_path_factory) -> Iterator[str]:
    """Serve a copy of the course as ``make lab`` does and yield the server's address."""
    home = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", home / "notebooks")
    shutil.copy(ROOT / "README.md", home)
    for name, needed in SHORTENED.items():
        lesson = nbformat.read(home / "notebooks" / name, as_version=4)
        keep_cells(lesson, needed)
        nbformat.write(lesson, home / "notebooks" / name)
    port = free_port()
    options = [
        *("--no-browser", "--allow-root"),
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={TOKEN}",
        "--LabApp.expose_app_in_browser=True",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make, "ROOT", home)
        (module,) = make.lab(options)
    command = [*forked.with_forked_kernels(module[0]), *module[1:]]
    with server(home, command, port, "/api") as address:
        yield address


@pytest.fixture
def contents(lab):
    """Return a function that asks the server for a file, as JupyterLab does to show it."""

    def ask(path: str) -> str:
        request = urllib.request.Request(f"{lab}/api/contents/{path}")
        request.add_header("Authorization", f"token {TOKEN}")
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)["content"]

    return ask


@pytest.fixture(scope="module")
def voila(tmp_path_factory) -> Iterator[str]:
    """Serve the lab alone as ``make app`` does and yield the page's address."""
    home = tmp_path_factory.mktemp("voila")
    shutil.copytree(ROOT / "notebooks" / "app", home / "notebooks" / "app")
    port = free_port()
    (module,) = make.app(["--no-browser", f"--port={port}", "--Voila.ip=127.0.0.1"])
    # The page itself answers only when its notebook has run.
    with server(home, ["-m", *module], port, "/voila/static/none") as address:
        yield address


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_OPTIONS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page(browser):
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(TIMEOUT)
    yield page
    page.close()


@pytest.fixture
def visitor(browser):
    """A page of its own, which the test may leave as it likes."""
    page = browser.new_page()
    page.set_default_timeout(TIMEOUT)
    yield page
    page.close()


@pytest.fixture
def screenshot(page):
    """Return a function that keeps a picture of the page under a name."""

    def keep(name: str, of=None) -> None:
        ARTIFACTS.mkdir(exist_ok=True)
        (of or page).screenshot(path=ARTIFACTS / f"{name}.png")

    return keep


@pytest.fixture
def open_notebook(page, lab):
    """Return a function that opens a notebook in JupyterLab and waits for its kernel."""

    def open_it(name: str) -> None:
        page.goto(f"{lab}/lab/tree/notebooks/{name}?token={TOKEN}&reset")
        page.wait_for_function("window.jupyterapp?.shell?.currentWidget?.sessionContext")
        page.evaluate(READY)

    return open_it
